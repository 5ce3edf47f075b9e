// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {INodeRegistry} from "../../src/interfaces/INodeRegistry.sol";
import {Base} from "../Base.sol";

/// @notice Does to the registry what nodes and strangers may do, in any order.
contract RegistryHandler is Base {
    address[3] public nodes = [address(0xa1), address(0xa2), address(0xa3)];
    /// @notice Wei that went in, and that came out.
    uint256 public staked;
    uint256 public left;
    /// @notice Stake left before its unbonding was over, or more than was unbonding.
    bool public leftWrongly;
    mapping(address node => uint256) internal _unbondEnd;
    mapping(address node => uint256) internal _unbonding;

    constructor() {
        vm.warp(NOW);
        registry = _deployRegistry();
        for (uint256 i = 0; i < 3; ++i) {
            _register(nodes[i], i * 0.5 ether);
            staked += i * 0.5 ether;
        }
    }

    function theRegistry() external view returns (address) {
        return address(registry);
    }

    function stake(uint256 who, uint256 amount) external {
        amount = bound(amount, 1, 10 ether);
        vm.deal(settler, amount);
        vm.prank(settler);
        registry.stake{value: amount}(nodes[who % 3]);
        staked += amount;
    }

    function startUnbond(uint256 who, uint256 amount) external {
        address node_ = nodes[who % 3];
        (uint128 active,,) = registry.stakeOf(node_);
        if (active == 0) return;
        amount = bound(amount, 1, active);
        vm.prank(node_);
        registry.startUnbond(amount);
        _unbonding[node_] += amount;
        _unbondEnd[node_] = block.timestamp + UNBONDING_PERIOD;
    }

    function finishUnbond(uint256 who) external {
        address node_ = nodes[who % 3];
        vm.prank(node_);
        try registry.finishUnbond() returns (uint256 amount) {
            if (block.timestamp < _unbondEnd[node_] || amount != _unbonding[node_]) leftWrongly = true;
            _unbonding[node_] = 0;
            left += amount;
        } catch {}
    }

    function wait(uint256 time) external {
        skip(bound(time, 1, 20 days));
    }
}
