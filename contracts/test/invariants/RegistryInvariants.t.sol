// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Test} from "forge-std/Test.sol";

import {INodeRegistry} from "../../src/interfaces/INodeRegistry.sol";
import {RegistryHandler} from "./RegistryHandler.sol";

/// @notice What holds of the registry, whatever is done to it.
contract RegistryInvariantsTest is Test {
    RegistryHandler internal handler;
    INodeRegistry internal registry;

    function setUp() external {
        handler = new RegistryHandler();
        registry = INodeRegistry(handler.theRegistry());
        vm.warp(1_700_000_000);
        bytes4[] memory selectors = new bytes4[](4);
        selectors[0] = RegistryHandler.stake.selector;
        selectors[1] = RegistryHandler.startUnbond.selector;
        selectors[2] = RegistryHandler.finishUnbond.selector;
        selectors[3] = RegistryHandler.wait.selector;
        targetSelector(FuzzSelector({addr: address(handler), selectors: selectors}));
        targetContract(address(handler));
    }

    function invariant_TheRegistryHoldsExactlyAllStakes() external view {
        uint256 owed;
        for (uint256 i = 0; i < 3; ++i) {
            (uint128 active, uint128 unbonding,) = registry.stakeOf(handler.nodes(i));
            owed += uint256(active) + unbonding;
        }
        assertEq(address(registry).balance, owed);
        assertEq(handler.staked(), owed + handler.left());
    }

    function invariant_StakeLeavesOnlyAfterUnbonding() external view {
        assertFalse(handler.leftWrongly());
    }

    function invariant_ANodeIsStakedExactlyFromTheMinimumOn() external view {
        for (uint256 i = 0; i < 3; ++i) {
            (uint128 active,,) = registry.stakeOf(handler.nodes(i));
            assertEq(registry.isStaked(handler.nodes(i)), active >= registry.minStake());
        }
    }
}
