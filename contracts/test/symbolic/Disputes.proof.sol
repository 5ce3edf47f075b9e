// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order} from "../../src/interfaces/IJobEscrow.sol";
import {ProofBase} from "./ProofBase.sol";

/// @title Disputes: the lock is divided between the parties, and what crosses the border is what was slashed
contract DisputesProof is ProofBase {
    /// @dev How everything stood before an arbiter decided; in memory, as the stack is short.
    struct Resolution {
        bytes32 jobId;
        Money before;
        Slots untouched;
        Staked stake;
        /// What escrow and registry hold.
        uint256[2] held;
    }

    function _begin(Order memory order, JobState state, bool signed, Job memory job)
        internal
        returns (bytes32 jobId, Money memory before)
    {
        vm.warp(NOW);
        _key(order.requester);
        _key(order.node);
        jobId = escrow.jobIdOf(order);
        _put(jobId, state, signed, job);
        before = _read(order, order.node, jobId);
        _assumeSound(before);
    }

    /// @dev A dispute locks its bond out of the requester's account and touches nothing else.
    function _dispute(Order memory order, Job memory job, Other memory other, bool signed) internal {
        (bytes32 jobId, Money memory before) = _begin(order, JobState.Submitted, signed, job);
        _assumeElsewhere(other, order.requester, order.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        vm.prank(order.requester);
        escrow.dispute(order);
        Money memory afterwards = _read(order, order.node, jobId);
        bool same = _and(afterwards.earned == before.earned, afterwards.fees == before.fees);
        same = _and(same, _and(afterwards.reserved == before.reserved, afterwards.claimed == before.claimed));
        assert(_and(same, afterwards.covered == before.covered));
        bool moved = _and(afterwards.locked >= before.locked, _sum(afterwards) == _sum(before));
        assert(_and(moved, afterwards.state == uint256(JobState.Disputed)));
        _assertUntouched(untouched, _slots(other));
    }

    function check_disputeOpened(Order memory order, Job memory job, Other memory other) external {
        _dispute(order, job, other, false);
    }

    function check_disputeSigned(Order memory order, Job memory job, Other memory other) external {
        _dispute(order, job, other, true);
    }

    /// @dev The call, by whomever, about a job in any state but one: it fails.
    function _inNoOther(
        JobState only,
        JobState state,
        address caller,
        Order memory order,
        Job memory job,
        bytes memory call
    ) internal {
        vm.warp(NOW);
        vm.assume(state != only);
        _put(escrow.jobIdOf(order), state, false, job);
        vm.prank(caller);
        (bool done,) = address(escrow).call(call);
        assert(!done);
    }

    /// @notice Only a result within its window is disputed, and only a dispute is resolved.
    function check_disputeInNoOtherState(Order memory order, Job memory job, JobState state, address caller) external {
        bytes memory call = abi.encodeCall(IJobEscrow.dispute, (order));
        _inNoOther(JobState.Submitted, state, caller, order, job, call);
    }

    function check_resolveInNoOtherState(Order memory order, Job memory job, JobState state, address caller, uint16 pay)
        external
    {
        bytes memory call = abi.encodeCall(IJobEscrow.resolve, (order, pay, pay));
        _inNoOther(JobState.Disputed, state, caller, order, job, call);
    }

    /// @dev What the node lost, at most one bond, has left the registry.
    function _slashed(Staked memory before, Staked memory left, uint256 held)
        internal
        view
        returns (uint256 slashed, bool right)
    {
        slashed = _less(_less(before.stake, left.stake), _less(left.unbonding, before.unbonding));
        bool fell = _and(left.stake <= before.stake, left.unbonding <= before.unbonding);
        fell = _and(fell, left.bonds == _less(before.bonds, 1));
        right = _and(fell, _and(slashed <= BOND, _less(held, address(registry).balance) == slashed));
    }

    /// @dev The escrow's balances grow by exactly the coin that the registry sent it; the registry's shrink by exactly what left
    /// it; the node loses no more than a bond; nobody else loses or gains. One question a path.
    function _resolve(
        Order memory order,
        Job memory job,
        Other memory other,
        bool signed,
        uint16 payBps,
        uint16 slashBps
    ) internal {
        Resolution memory r;
        (r.jobId, r.before) = _begin(order, JobState.Disputed, signed, job);
        // What is slashed is coin of the same supply.
        vm.assume(_sum(r.before) < 2 ** 128 - BOND);
        _assumeElsewhere(other, order.requester, order.node, order.token, r.jobId);
        r.untouched = _slots(other);
        r.stake = _staked(order.node);
        r.held = [address(escrow).balance, address(registry).balance];
        _key(order.arbiter);
        vm.prank(order.arbiter);
        escrow.resolve(order, payBps, slashBps);
        assert(_and(_untouched(r.untouched, _slots(other)), _resolved(order, r)));
    }

    function _resolved(Order memory order, Resolution memory r) private view returns (bool) {
        (uint256 slashed, bool right) = _slashed(r.stake, _staked(order.node), r.held[1]);
        uint256 compensation = _less(address(escrow).balance, r.held[0]);
        Money memory afterwards = _read(order, order.node, r.jobId);
        right = _and(right, _and(afterwards.locked == 0, afterwards.claimed >= r.before.claimed));
        right = _and(right, compensation <= slashed);
        return _and(right, _less(_sum(afterwards), _sum(r.before)) == compensation);
    }

    /// @dev The ways that branch least: in coin, without a fee, the registry's counters not at their end, and the active stake
    /// covers the bond, as it does unless it was slashed for another job meanwhile.
    function _plain(Order memory order) internal view {
        order.token = address(0);
        order.maxFeeBps = 0;
        vm.assume(_staked(order.node).stake > BOND);
        _counting(order.node);
    }

    /// @dev What is locked besides the bond of the dispute.
    function _price(Order memory order, Job memory job) internal pure returns (uint256) {
        unchecked {
            return job.amount - uint256(order.maxPrice) * 500 / 10_000;
        }
    }

    function check_resolveForTheNode(Order memory order, Job memory job, Other memory other) external {
        _plain(order);
        _resolve(order, job, other, false, 10_000, 0);
    }

    function check_resolveForTheNodeSigned(Order memory order, Job memory job, Other memory other) external {
        _plain(order);
        _resolve(order, job, other, true, 10_000, 0);
    }

    /// @notice The requester gets the whole bond of the node.
    function check_resolveForTheRequester(Order memory order, Job memory job, Other memory other) external {
        _plain(order);
        vm.assume(_price(order, job) > BOND);
        _resolve(order, job, other, false, 0, 10_000);
    }

    /// @notice The requester gets the price, and the rest of the node's bond is burnt.
    function check_resolveForTheRequesterOfLittle(Order memory order, Job memory job, Other memory other) external {
        _plain(order);
        vm.assume(_price(order, job) < BOND);
        _resolve(order, job, other, false, 0, 10_000);
    }

    /// @notice As `check_resolveForTheRequester` of a signed order.
    function check_resolveForTheRequesterSigned(Order memory order, Job memory job, Other memory other) external {
        _plain(order);
        vm.assume(_price(order, job) > BOND);
        _resolve(order, job, other, true, 0, 10_000);
    }

    /// @notice Whatever part of the price the node gets, with nothing slashed.
    function check_resolveInPart(Order memory order, Job memory job, Other memory other, uint16 pay) external {
        _plain(order);
        _resolve(order, job, other, false, pay, 0);
    }

    /// @notice Half of the bond is slashed.
    function check_resolveInPartWithSlashing(Order memory order, Job memory job, Other memory other, uint16 pay)
        external
    {
        _plain(order);
        vm.assume(_price(order, job) > BOND);
        _resolve(order, job, other, false, pay, 5000);
    }

    function check_deepResolveForTheNodeInAnyToken(Order memory order, Job memory job, Other memory other) external {
        _resolve(order, job, other, false, 10_000, 0);
    }

    function check_deepResolveForTheNodeSignedInAnyToken(Order memory order, Job memory job, Other memory other)
        external
    {
        _resolve(order, job, other, true, 10_000, 0);
    }

    function check_deepResolveForTheRequesterInAnyToken(Order memory order, Job memory job, Other memory other)
        external
    {
        _resolve(order, job, other, false, 0, 10_000);
    }

    function check_deepResolveForTheRequesterSignedInAnyToken(Order memory order, Job memory job, Other memory other)
        external
    {
        _resolve(order, job, other, true, 0, 10_000);
    }

    function check_deepResolveInBetweenInAnyToken(
        Order memory order,
        Job memory job,
        Other memory other,
        uint16 pay,
        uint16 slash
    ) external {
        _resolve(order, job, other, false, pay, slash);
    }

    function check_deepResolveInBetweenSignedInAnyToken(
        Order memory order,
        Job memory job,
        Other memory other,
        uint16 pay,
        uint16 slash
    ) external {
        _resolve(order, job, other, true, pay, slash);
    }
}
