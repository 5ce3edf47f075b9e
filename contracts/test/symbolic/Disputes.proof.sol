// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {JobState, Order} from "../../src/interfaces/IJobEscrow.sol";
import {ProofBase} from "./ProofBase.sol";

/// @title Disputes: the lock is divided between the parties, and what crosses the border is what was slashed
contract DisputesProof is ProofBase {
    function _begin(Order memory order, uint64 time) internal returns (bytes32 jobId, Money memory before) {
        _at(time);
        _key(order.requester);
        _key(order.node);
        jobId = escrow.jobIdOf(order);
        before = _read(order, order.node, jobId);
        _assumeSound(before, order);
    }

    /// @notice A dispute locks its bond out of the requester's account and touches nothing else.
    function check_disputeLocksABond(Order memory order, Other memory other, uint64 time) external {
        (bytes32 jobId, Money memory before) = _begin(order, time);
        _assumeElsewhere(other, order.requester, order.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        vm.prank(order.requester);
        escrow.dispute(order);
        Money memory afterwards = _read(order, order.node, jobId);
        assert(_sum(afterwards) == _sum(before));
        assert(afterwards.locked >= before.locked);
        assert(afterwards.earned == before.earned);
        assert(afterwards.reserved == before.reserved);
        assert(afterwards.claimed == before.claimed);
        _assertUntouched(untouched, _slots(other));
    }

    /// @dev The escrow's balances grow by exactly the coin that the registry sent it; the registry's shrink by exactly what left
    /// it; the node loses no more than a bond; nobody else loses or gains.
    function _resolve(Order memory order, Other memory other, uint64 time, uint16 payBps, uint16 slashBps) internal {
        (bytes32 jobId, Money memory before) = _begin(order, time);
        _assumeElsewhere(other, order.requester, order.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        Staked memory stake = _staked(order.node);
        uint256[2] memory held = [address(escrow).balance, address(registry).balance];
        _key(order.arbiter);
        vm.prank(order.arbiter);
        escrow.resolve(order, payBps, slashBps);

        Money memory afterwards = _read(order, order.node, jobId);
        Staked memory left = _staked(order.node);
        unchecked {
            assert(_sum(afterwards) - _sum(before) == address(escrow).balance - held[0]);
            uint256 slashed = stake.stake + stake.unbonding - left.stake - left.unbonding;
            assert(slashed <= BOND);
            assert(held[1] - address(registry).balance == slashed);
            assert(address(escrow).balance - held[0] <= slashed);
        }
        assert(left.bonds + 1 == stake.bonds);
        assert(afterwards.claimed >= before.claimed);
        assert(afterwards.locked == 0);
        assert(before.state == uint256(JobState.Disputed));
        _assertUntouched(untouched, _slots(other));
    }

    function check_resolveInTheNodesFavour(Order memory order, Other memory other, uint64 time) external {
        _resolve(order, other, time, 10_000, 0);
    }

    function check_resolveInTheRequestersFavour(Order memory order, Other memory other, uint64 time) external {
        _resolve(order, other, time, 0, 10_000);
    }

    function check_resolveInBetween(Order memory order, Other memory other, uint64 time, uint16 pay, uint16 slash)
        external
    {
        _resolve(order, other, time, pay, slash);
    }
}
