// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {INodeRegistry} from "../../src/interfaces/INodeRegistry.sol";
import {ProofBase} from "./ProofBase.sol";

/// @title Stakes and bonds
contract RegistryProof is ProofBase {
    /// @dev The node and one that is another.
    function _two(address node, address other) internal pure {
        vm.assume(node != other);
    }

    function _assertSame(Staked memory a, Staked memory b) internal pure {
        uint256 difference = (a.stake ^ b.stake) | (a.unbonding ^ b.unbonding) | (a.bonds ^ b.bonds);
        assert(difference | (a.number ^ b.number) | (a.unbondEnd ^ b.unbondEnd) == 0);
    }

    /// @notice Slashing takes at most what is asked and what is there, active before unbonding; all of it leaves, up to
    /// `compensation` to the escrow, and no other node is touched.
    function check_releaseBond(
        address node,
        address other,
        bool disputed,
        bool lost,
        uint256 slash,
        uint256 compensation
    ) external {
        _two(node, other);
        Staked memory before = _staked(node);
        Staked memory untouched = _staked(other);
        uint256[3] memory held = [address(escrow).balance, address(registry).balance, address(0).balance];
        vm.prank(address(escrow));
        (uint256 slashed, uint256 compensated) = registry.releaseBond(node, disputed, lost, slash, compensation);
        Staked memory left = _staked(node);
        unchecked {
            assert(before.stake + before.unbonding - left.stake - left.unbonding == slashed);
            assert(slashed <= slash);
            assert(slashed == slash || left.stake + left.unbonding == 0);
            assert(left.unbonding == before.unbonding || left.stake == 0);
            assert(compensated <= compensation);
            assert(compensated <= slashed);
            assert(held[1] - address(registry).balance == slashed);
            assert(address(escrow).balance - held[0] == compensated);
            assert(address(0).balance - held[2] == slashed - compensated);
            assert(left.bonds == before.bonds - 1);
        }
        assert(left.number == before.number);
        _assertSame(untouched, _staked(other));
    }

    /// @notice A locked bond is covered by stake; no stake moves.
    function check_lockBond(address node, address other, uint64 time) external {
        _at(time);
        _two(node, other);
        Staked memory before = _staked(node);
        Staked memory untouched = _staked(other);
        vm.prank(address(escrow));
        uint48 number = registry.lockBond(node);
        Staked memory afterwards = _staked(node);
        assert(afterwards.stake == before.stake);
        assert(afterwards.unbonding == before.unbonding);
        assert(afterwards.bonds == (number == 0 ? before.bonds : before.bonds + 1));
        assert(number == 0 || afterwards.stake >= afterwards.bonds * BOND);
        _assertSame(untouched, _staked(other));
    }

    /// @notice Nobody but the escrow locks or slashes.
    function check_onlyTheEscrow(address caller, address node, uint256 slash) external {
        vm.assume(caller != address(escrow));
        vm.prank(caller);
        (bool done,) = address(registry).call(abi.encodeCall(INodeRegistry.lockBond, (node)));
        assert(!done);
        vm.prank(caller);
        (done,) = address(registry).call(abi.encodeCall(INodeRegistry.releaseBond, (node, true, true, slash, slash)));
        assert(!done);
    }

    /// @notice Unbonding moves stake from one pocket to the other, and its time starts anew.
    function check_startUnbond(address node, address other, uint256 amount, uint64 time) external {
        _at(time);
        _two(node, other);
        Staked memory before = _staked(node);
        Staked memory untouched = _staked(other);
        vm.assume(before.stake + before.unbonding < 2 ** 128);
        vm.prank(node);
        registry.startUnbond(amount);
        Staked memory afterwards = _staked(node);
        assert(_less(before.stake, afterwards.stake) == amount);
        assert(_less(afterwards.unbonding, before.unbonding) == amount);
        assert(afterwards.unbondEnd == uint256(time) + 40 days);
        assert(afterwards.bonds == before.bonds);
        _assertSame(untouched, _staked(other));
    }

    /// @notice Stake leaves only unbonded, in time, and with the rest covering every bond.
    function check_finishUnbond(address node, address other, uint64 time) external {
        _at(time);
        _two(node, other);
        Staked memory before = _staked(node);
        Staked memory untouched = _staked(other);
        vm.assume(registry.payoutOf(node) == PAYEE);
        uint256 held = address(registry).balance;
        vm.prank(node);
        uint256 amount = registry.finishUnbond();
        Staked memory afterwards = _staked(node);
        assert(time >= before.unbondEnd);
        assert(amount == before.unbonding);
        assert(afterwards.unbonding == 0);
        assert(afterwards.stake == before.stake);
        assert(afterwards.stake >= before.bonds * BOND);
        assert(_less(held, address(registry).balance) == amount);
        _assertSame(untouched, _staked(other));
    }
}
