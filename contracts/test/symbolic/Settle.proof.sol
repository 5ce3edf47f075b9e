// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobSpec, JobState, Order, Result} from "../../src/interfaces/IJobEscrow.sol";
import {ProofBase} from "./ProofBase.sol";

/// @dev A signature of 65 bytes.
struct Signature {
    bytes32 r;
    bytes32 s;
    uint8 v;
}

/// @dev A result in words of fixed length.
struct Claim {
    address node;
    uint64 assignmentExpiry;
    uint128 price;
    bytes32 resultHash;
    Signature assignment;
    Signature receipt;
    Signature order;
}

/// @title Jobs: what is locked is all that is given out, to nobody but the parties, and once
abstract contract JobProof is ProofBase {
    function _bytes(Signature memory s) internal pure returns (bytes memory) {
        return abi.encodePacked(s.r, s.s, s.v);
    }

    function _results(Order memory order, Claim memory claim, bool signed)
        internal
        pure
        returns (Result[] memory results)
    {
        results = new Result[](1);
        results[0] = Result({
            order: order,
            node: claim.node,
            assignmentExpiry: claim.assignmentExpiry,
            price: claim.price,
            resultHash: claim.resultHash,
            assignmentSignature: order.node == address(0) ? _bytes(claim.assignment) : bytes(""),
            receiptSignature: _bytes(claim.receipt),
            orderSignature: signed ? _bytes(claim.order) : bytes("")
        });
    }

    function _begin(Order memory order, address node, JobState state, bool signed, Job memory job)
        internal
        returns (bytes32 jobId, Money memory before)
    {
        vm.warp(NOW);
        _key(order.requester);
        _key(node);
        jobId = escrow.jobIdOf(order);
        // What `check_openLocksTheMaximum` proves of open jobs, to whose amount nothing else writes.
        if (state == JobState.Open) job.amount = order.maxPrice;
        _put(jobId, state, signed, job);
        before = _read(order, node, jobId);
        _assumeSound(before);
    }

    /// @dev What holds of every step of a job.
    function _assertConserved(Money memory before, Money memory afterwards) internal pure {
        bool rising = _and(afterwards.earned >= before.earned, afterwards.fees >= before.fees);
        rising = _and(rising, afterwards.claimed >= before.claimed);
        bool same = _and(afterwards.covered == before.covered, _sum(afterwards) == _sum(before));
        assert(_and(rising, same));
    }
}

contract SubmitOpenedProof is JobProof {
    /// @dev An opened job, at once or into its window: no account but the requester's free one gains by it.
    function _submit(Order memory order, Claim memory claim, Job memory job, Other memory other) internal {
        (bytes32 jobId, Money memory before) = _begin(order, claim.node, JobState.Open, false, job);
        _assumeElsewhere(other, order.requester, claim.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.submitResults(_results(order, claim, false));
        Money memory afterwards = _read(order, claim.node, jobId);
        bool same = _and(afterwards.thawing == before.thawing, afterwards.reserved == before.reserved);
        same = _and(same, afterwards.claimed == before.claimed);
        assert(_and(same, afterwards.free >= before.free));
        _assertConserved(before, afterwards);
        if (afterwards.state == before.state) {
            _assertSame(before, afterwards);
        } else {
            assert(claim.price <= order.maxPrice);
            JobState then = order.challengeWindow == 0 ? JobState.Paid : JobState.Submitted;
            assert(afterwards.state == uint256(then));
        }
        _assertUntouched(untouched, _slots(other));
    }

    function check_submitOpenedAtOnce(Order memory order, Claim memory claim, Job memory job, Other memory other)
        external
    {
        order.challengeWindow = 0;
        vm.assume(order.node != address(0));
        _submit(order, claim, job, other);
    }

    function check_deepSubmitOpenedIntoWindow(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other
    ) external {
        vm.assume(order.challengeWindow != 0);
        vm.assume(order.node != address(0));
        _submit(order, claim, job, other);
    }

    function check_deepSubmitOpenedByAssignment(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other
    ) external {
        vm.assume(order.challengeWindow != 0);
        order.node = address(0);
        _key(order.assigner);
        _submit(order, claim, job, other);
    }
}

contract SubmitSignedProof is JobProof {
    /// @dev A signed order, at once or into its window: its price leaves reservation, free and thawing funds and is paid or
    /// locked, in full or not at all.
    function _submit(Order memory order, Claim memory claim, Job memory job, Other memory other) internal {
        (bytes32 jobId, Money memory before) = _begin(order, claim.node, JobState.None, false, job);
        _assumeElsewhere(other, order.requester, claim.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.submitResults(_results(order, claim, true));
        Money memory afterwards = _read(order, claim.node, jobId);
        if (afterwards.state == before.state) {
            _assertSame(before, afterwards);
        } else {
            assert(claim.price <= order.maxPrice);
            // What a voucher covers is not settled alone.
            assert(order.nonce > before.covered);
            JobState then = order.challengeWindow == 0 ? JobState.Paid : JobState.Submitted;
            assert(afterwards.state == uint256(then));
            uint256 left = afterwards.free + afterwards.thawing + afterwards.reserved;
            assert(_less(before.free + before.thawing + before.reserved, left) == claim.price);
        }
        _assertConserved(before, afterwards);
        assert(_less(afterwards.claimed, before.claimed) <= claim.price);
        _assertUntouched(untouched, _slots(other));
    }

    function check_deepSubmitSignedAtOnce(Order memory order, Claim memory claim, Job memory job, Other memory other)
        external
    {
        order.challengeWindow = 0;
        vm.assume(order.node != address(0));
        _submit(order, claim, job, other);
    }

    function check_deepSubmitSignedIntoWindow(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other
    ) external {
        vm.assume(order.challengeWindow != 0);
        vm.assume(order.node != address(0));
        _submit(order, claim, job, other);
    }

    function check_deepSubmitSignedByAssignment(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other
    ) external {
        vm.assume(order.challengeWindow != 0);
        order.node = address(0);
        _key(order.assigner);
        _submit(order, claim, job, other);
    }
}

contract FinalizeProof is JobProof {
    function _assertSettled(Money memory before, Money memory afterwards) internal pure {
        if (afterwards.state == before.state) {
            _assertSame(before, afterwards);
        } else {
            assert(afterwards.locked == 0);
            assert(afterwards.thawing == before.thawing);
        }
        _assertConserved(before, afterwards);
    }

    /// @dev Whoever the order or, where it is open, the registry names.
    function _finalize(Order memory order, Job memory job, Other memory other, JobState state, bool signed) internal {
        address node = order.node != address(0) ? order.node : registry.nodeAt(job.number);
        (bytes32 jobId, Money memory before) = _begin(order, node, state, signed, job);
        _assumeElsewhere(other, order.requester, node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.finalize(_orders(order));
        _assertSettled(before, _read(order, node, jobId));
        _assertUntouched(untouched, _slots(other));
    }

    function check_finalizeOpened(Order memory order, Job memory job, Other memory other) external {
        vm.assume(order.node != address(0));
        _finalize(order, job, other, JobState.Submitted, false);
    }

    function check_deepFinalizeOpenOrder(Order memory order, Job memory job, Other memory other) external {
        order.node = address(0);
        _finalize(order, job, other, JobState.Submitted, false);
    }

    function check_finalizeSigned(Order memory order, Job memory job, Other memory other) external {
        vm.assume(order.node != address(0));
        _finalize(order, job, other, JobState.Submitted, true);
    }

    function check_deepFinalizeDisputedOpened(Order memory order, Job memory job, Other memory other) external {
        vm.assume(order.node != address(0));
        _finalize(order, job, other, JobState.Disputed, false);
    }

    function check_deepFinalizeDisputedSigned(Order memory order, Job memory job, Other memory other) external {
        vm.assume(order.node != address(0));
        _finalize(order, job, other, JobState.Disputed, true);
    }

    function _accept(Order memory order, Job memory job, Other memory other, JobState state, bool signed) internal {
        vm.assume(order.node != address(0));
        (bytes32 jobId, Money memory before) = _begin(order, order.node, state, signed, job);
        _assumeElsewhere(other, order.requester, order.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        vm.prank(order.requester);
        escrow.accept(order);
        Money memory afterwards = _read(order, order.node, jobId);
        assert(afterwards.state != before.state);
        _assertSettled(before, afterwards);
        _assertUntouched(untouched, _slots(other));
    }

    function check_acceptOpened(Order memory order, Job memory job, Other memory other) external {
        _accept(order, job, other, JobState.Submitted, false);
    }

    function check_deepAcceptSigned(Order memory order, Job memory job, Other memory other) external {
        _accept(order, job, other, JobState.Submitted, true);
    }

    function check_deepAcceptDisputed(Order memory order, Job memory job, Other memory other) external {
        _accept(order, job, other, JobState.Disputed, false);
    }
}

/// @title One signature, one effect: with whatever signatures, a job that has a result takes no other, and an ended one stays so
contract OnceProof is JobProof {
    function _submit(Order memory order, Claim memory claim, Job memory job, JobState state, bool signed) internal {
        (bytes32 jobId, Money memory before) = _begin(order, claim.node, state, signed, job);
        escrow.submitResults(_results(order, claim, true));
        _assertSame(before, _read(order, claim.node, jobId));
        escrow.refundExpired(_orders(order));
        _assertSame(before, _read(order, claim.node, jobId));
        vm.prank(order.requester);
        (bool done,) = address(escrow).call(abi.encodeCall(IJobEscrow.openJob, (order, JobSpec("", "", ""))));
        assert(!done);
        vm.prank(order.requester);
        (done,) = address(escrow).call(abi.encodeCall(IJobEscrow.cancelJob, (order)));
        assert(!done);
    }

    function _ended(Order memory order, Claim memory claim, Job memory job, JobState state, bool signed) internal {
        _submit(order, claim, job, state, signed);
        bytes32 jobId = escrow.jobIdOf(order);
        Money memory before = _read(order, claim.node, jobId);
        escrow.finalize(_orders(order));
        _assertSame(before, _read(order, claim.node, jobId));
        vm.prank(order.requester);
        (bool done,) = address(escrow).call(abi.encodeCall(IJobEscrow.accept, (order)));
        assert(!done);
    }

    function check_deepASubmittedJobTakesNoResult(Order memory order, Claim memory claim, Job memory job, bool signed)
        external
    {
        _submit(order, claim, job, JobState.Submitted, signed);
    }

    function check_deepADisputedJobTakesNoResult(Order memory order, Claim memory claim, Job memory job, bool signed)
        external
    {
        _submit(order, claim, job, JobState.Disputed, signed);
    }

    function check_aPaidJobStaysPaid(Order memory order, Claim memory claim, Job memory job, bool signed) external {
        _ended(order, claim, job, JobState.Paid, signed);
    }

    function check_deepARefundedJobStaysRefunded(Order memory order, Claim memory claim, Job memory job, bool signed)
        external
    {
        _ended(order, claim, job, JobState.Refunded, signed);
    }

    function check_deepAResolvedJobStaysResolved(Order memory order, Claim memory claim, Job memory job, bool signed)
        external
    {
        _ended(order, claim, job, JobState.Resolved, signed);
    }
}

contract OpenRefundProof is JobProof {
    /// @notice What `_begin` says of open jobs.
    function check_openLocksTheMaximum(Order memory order, address node, Job memory job) external {
        (bytes32 jobId, Money memory before) = _begin(order, node, JobState.None, false, job);
        vm.prank(order.requester);
        escrow.openJob(order, JobSpec("", "", ""));
        Money memory afterwards = _read(order, node, jobId);
        assert(afterwards.state == uint256(JobState.Open));
        assert(afterwards.locked == order.maxPrice);
        assert(_less(before.free, afterwards.free) == order.maxPrice);
        _assertConserved(before, afterwards);
    }

    function check_cancelMovesNothing(Order memory order, address node, Job memory job) external {
        (bytes32 jobId, Money memory before) = _begin(order, node, JobState.Open, false, job);
        vm.prank(order.requester);
        escrow.cancelJob(order);
        _assertSame(before, _read(order, node, jobId));
    }

    function check_refundGivesTheLockBack(Order memory order, address node, Job memory job, Other memory other)
        external
    {
        (bytes32 jobId, Money memory before) = _begin(order, node, JobState.Open, false, job);
        _assumeElsewhere(other, order.requester, node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.refundExpired(_orders(order));
        Money memory afterwards = _read(order, node, jobId);
        if (afterwards.state == before.state) {
            _assertSame(before, afterwards);
        } else {
            assert(afterwards.state == uint256(JobState.Refunded));
            assert(afterwards.locked == 0);
            assert(afterwards.free == before.free + order.maxPrice);
        }
        _assertConserved(before, afterwards);
        _assertUntouched(untouched, _slots(other));
    }
}
