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

    /// @dev In coin and without a fee, which makes for half the paths and less: proofs of some steps are about any token and fee.
    function _plain(Order memory order) internal pure {
        order.token = address(0);
        order.maxFeeBps = 0;
    }

    /// @dev What holds of every step of a job.
    function _conserved(Money memory before, Money memory afterwards) internal pure returns (bool) {
        bool rising = _and(afterwards.earned >= before.earned, afterwards.fees >= before.fees);
        rising = _and(rising, afterwards.claimed >= before.claimed);
        bool same = _and(afterwards.covered == before.covered, _sum(afterwards) == _sum(before));
        return _and(rising, same);
    }

    function _assertConserved(Money memory before, Money memory afterwards) internal pure {
        assert(_conserved(before, afterwards));
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

/// @dev Where the price of a signed order comes from. Every price is one of them; what is more than all of it is skipped.
enum Pocket {
    Reservation,
    Free,
    Thawing
}

/// @title Signed orders: the price leaves reservation, free and thawing funds and is paid or locked, in full or not at all
/// @dev Once, too: a job that has a result takes no other (`OnceProof`).
contract SubmitSignedProof is JobProof {
    /// @dev One question a path.
    function _submit(Order memory order, Claim memory claim, Job memory job, Other memory other, Pocket pocket)
        internal
    {
        (bytes32 jobId, Money memory before) = _begin(order, claim.node, JobState.None, false, job);
        _assumeFrom(before, claim.price, pocket);
        _assumeElsewhere(other, order.requester, claim.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.submitResults(_results(order, claim, true));
        Money memory afterwards = _read(order, claim.node, jobId);
        bool held = _untouched(untouched, _slots(other));
        if (afterwards.state == before.state) assert(_and(held, _same(before, afterwards)));
        else assert(_and(held, _settled(order, claim.price, before, afterwards)));
    }

    /// @dev Each a comparison by itself.
    function _assumeFrom(Money memory before, uint256 price, Pocket pocket) private pure {
        if (pocket == Pocket.Reservation) {
            vm.assume(price <= before.reserved);
        } else if (pocket == Pocket.Free) {
            vm.assume(price > before.reserved);
            vm.assume(price - before.reserved <= before.free);
        } else {
            vm.assume(price > before.reserved);
            vm.assume(price - before.reserved > before.free);
        }
    }

    /// @dev What a voucher covers is not settled alone, and no more is claimed than the price.
    function _settled(Order memory order, uint256 price, Money memory before, Money memory afterwards)
        private
        pure
        returns (bool)
    {
        JobState then = order.challengeWindow == 0 ? JobState.Paid : JobState.Submitted;
        bool allowed = _and(price <= order.maxPrice, order.nonce > before.covered);
        allowed = _and(allowed, afterwards.state == uint256(then));
        bool whole = _and(_less(_spendable(before), _spendable(afterwards)) == price, _conserved(before, afterwards));
        return _and(_and(allowed, whole), _less(afterwards.claimed, before.claimed) <= price);
    }

    function _spendable(Money memory m) private pure returns (uint256) {
        unchecked {
            return m.free + m.thawing + m.reserved;
        }
    }

    /// @dev The order names its node.
    function _named(Order memory order, Claim memory claim) private pure {
        vm.assume(order.node != address(0));
        claim.node = order.node;
        _plain(order);
    }

    function check_signedAtOnceFromReservation(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other
    ) external {
        _named(order, claim);
        order.challengeWindow = 0;
        _submit(order, claim, job, other, Pocket.Reservation);
    }

    function check_signedAtOnceFromFree(Order memory order, Claim memory claim, Job memory job, Other memory other)
        external
    {
        _named(order, claim);
        order.challengeWindow = 0;
        _submit(order, claim, job, other, Pocket.Free);
    }

    function check_signedAtOnceFromThawing(Order memory order, Claim memory claim, Job memory job, Other memory other)
        external
    {
        _named(order, claim);
        order.challengeWindow = 0;
        _submit(order, claim, job, other, Pocket.Thawing);
    }

    function check_signedIntoWindowFromReservation(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other
    ) external {
        _named(order, claim);
        (order.challengeWindow, order.arbiter) = (1 days, address(0));
        _submit(order, claim, job, other, Pocket.Reservation);
    }

    function check_signedIntoWindowFromFree(Order memory order, Claim memory claim, Job memory job, Other memory other)
        external
    {
        _named(order, claim);
        (order.challengeWindow, order.arbiter) = (1 days, address(0));
        _submit(order, claim, job, other, Pocket.Free);
    }

    function check_signedIntoWindowFromThawing(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other
    ) external {
        _named(order, claim);
        (order.challengeWindow, order.arbiter) = (1 days, address(0));
        _submit(order, claim, job, other, Pocket.Thawing);
    }

    /// @notice A result by a node that the order does not name moves nothing.
    function check_signedByAnotherNode(Order memory order, Claim memory claim, Job memory job) external {
        vm.assume(order.node != address(0));
        vm.assume(order.node != claim.node);
        (bytes32 jobId, Money memory before) = _begin(order, claim.node, JobState.None, false, job);
        escrow.submitResults(_results(order, claim, true));
        _assertSame(before, _read(order, claim.node, jobId));
    }

    function check_deepSignedWithAnArbiter(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other,
        uint8 pocket
    ) external {
        _named(order, claim);
        order.challengeWindow = 1 days;
        vm.assume(order.arbiter != address(0));
        vm.assume(pocket < 3);
        _submit(order, claim, job, other, Pocket(pocket));
    }

    function check_deepSignedByAssignment(
        Order memory order,
        Claim memory claim,
        Job memory job,
        Other memory other,
        uint8 pocket
    ) external {
        _plain(order);
        (order.node, order.challengeWindow, order.arbiter) = (address(0), 1 days, address(0));
        _key(order.assigner);
        vm.assume(pocket < 3);
        _submit(order, claim, job, other, Pocket(pocket));
    }
}

contract FinalizeProof is JobProof {
    /// @dev One question a path.
    function _assertSettled(Money memory before, Money memory afterwards, bool elsewhere) internal pure {
        if (afterwards.state == before.state) {
            assert(_and(elsewhere, _same(before, afterwards)));
        } else {
            bool gone = _and(afterwards.locked == 0, afterwards.thawing == before.thawing);
            assert(_and(elsewhere, _and(gone, _conserved(before, afterwards))));
        }
    }

    /// @dev Whoever the order or, where it is open, the registry names.
    function _finalize(Order memory order, Job memory job, Other memory other, JobState state, bool signed) internal {
        address node = order.node != address(0) ? order.node : registry.nodeAt(job.number);
        (bytes32 jobId, Money memory before) = _begin(order, node, state, signed, job);
        _assumeElsewhere(other, order.requester, node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.finalize(_orders(order));
        _assertSettled(before, _read(order, node, jobId), _untouched(untouched, _slots(other)));
    }

    function check_finalizeOpened(Order memory order, Job memory job, Other memory other) external {
        vm.assume(order.node != address(0));
        _finalize(order, job, other, JobState.Submitted, false);
    }

    function check_finalizeOpenOrder(Order memory order, Job memory job, Other memory other) external {
        _plain(order);
        (order.node, order.arbiter) = (address(0), address(0));
        _finalize(order, job, other, JobState.Submitted, false);
    }

    function check_finalizeSigned(Order memory order, Job memory job, Other memory other) external {
        vm.assume(order.node != address(0));
        _finalize(order, job, other, JobState.Submitted, true);
    }

    /// @notice An arbiter who stays silent leaves the node paid, and the requester's bond comes back.
    function check_finalizeDisputedOpened(Order memory order, Job memory job, Other memory other) external {
        _disputed(order);
        _finalize(order, job, other, JobState.Disputed, false);
    }

    function check_finalizeDisputedSigned(Order memory order, Job memory job, Other memory other) external {
        _disputed(order);
        _finalize(order, job, other, JobState.Disputed, true);
    }

    /// @dev Only orders with an arbiter are.
    function _disputed(Order memory order) internal view {
        _plain(order);
        vm.assume(order.node != address(0));
        vm.assume(order.arbiter != address(0));
        _counting(order.node);
    }

    function check_deepFinalizeDisputedInAnyToken(Order memory order, Job memory job, Other memory other) external {
        vm.assume(order.node != address(0));
        _finalize(order, job, other, JobState.Disputed, false);
    }

    function check_deepFinalizeDisputedSignedInAnyToken(Order memory order, Job memory job, Other memory other)
        external
    {
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
        _assertSettled(before, afterwards, _untouched(untouched, _slots(other)));
    }

    function check_acceptOpened(Order memory order, Job memory job, Other memory other) external {
        _accept(order, job, other, JobState.Submitted, false);
    }

    function check_acceptSigned(Order memory order, Job memory job, Other memory other) external {
        _plain(order);
        order.arbiter = address(0);
        _accept(order, job, other, JobState.Submitted, true);
    }

    function check_acceptDisputed(Order memory order, Job memory job, Other memory other) external {
        _disputed(order);
        _accept(order, job, other, JobState.Disputed, false);
    }

    function check_acceptDisputedSigned(Order memory order, Job memory job, Other memory other) external {
        _disputed(order);
        _accept(order, job, other, JobState.Disputed, true);
    }

    function check_deepAcceptSignedInAnyToken(Order memory order, Job memory job, Other memory other) external {
        _accept(order, job, other, JobState.Submitted, true);
    }
}

/// @title One signature, one effect: with whatever signatures, a job that has a result takes no other, and an ended one stays so
contract OnceProof is JobProof {
    function _fails(address caller, bytes memory call) private {
        vm.prank(caller);
        (bool done,) = address(escrow).call(call);
        assert(!done);
    }

    function _takesNoResult(Order memory order, Claim memory claim, Job memory job, JobState state, bool signed)
        private
        returns (bytes32 jobId, Money memory before)
    {
        (jobId, before) = _begin(order, claim.node, state, signed, job);
        escrow.submitResults(_results(order, claim, true));
        escrow.refundExpired(_orders(order));
        assert(_same(before, _read(order, claim.node, jobId)));
        _fails(order.requester, abi.encodeCall(IJobEscrow.cancelJob, (order)));
    }

    function _staysEnded(Order memory order, Claim memory claim, Job memory job, JobState state, bool signed) private {
        (bytes32 jobId, Money memory before) = _takesNoResult(order, claim, job, state, signed);
        escrow.finalize(_orders(order));
        assert(_same(before, _read(order, claim.node, jobId)));
        _fails(order.requester, abi.encodeCall(IJobEscrow.accept, (order)));
    }

    function check_aSubmittedJobTakesNoResult(Order memory order, Claim memory claim, Job memory job) external {
        _takesNoResult(order, claim, job, JobState.Submitted, false);
    }

    function check_aSubmittedOrderTakesNoResult(Order memory order, Claim memory claim, Job memory job) external {
        _takesNoResult(order, claim, job, JobState.Submitted, true);
    }

    function check_aDisputedJobTakesNoResult(Order memory order, Claim memory claim, Job memory job) external {
        _takesNoResult(order, claim, job, JobState.Disputed, false);
    }

    function check_aDisputedOrderTakesNoResult(Order memory order, Claim memory claim, Job memory job) external {
        _takesNoResult(order, claim, job, JobState.Disputed, true);
    }

    function check_aPaidJobStaysPaid(Order memory order, Claim memory claim, Job memory job) external {
        _staysEnded(order, claim, job, JobState.Paid, false);
    }

    function check_aPaidOrderStaysPaid(Order memory order, Claim memory claim, Job memory job) external {
        _staysEnded(order, claim, job, JobState.Paid, true);
    }

    function check_aRefundedJobStaysRefunded(Order memory order, Claim memory claim, Job memory job) external {
        _staysEnded(order, claim, job, JobState.Refunded, false);
    }

    function check_anOrderGivenBackStaysSo(Order memory order, Claim memory claim, Job memory job) external {
        _staysEnded(order, claim, job, JobState.Refunded, true);
    }

    function check_aResolvedJobStaysResolved(Order memory order, Claim memory claim, Job memory job) external {
        _staysEnded(order, claim, job, JobState.Resolved, false);
    }

    function check_aResolvedOrderStaysResolved(Order memory order, Claim memory claim, Job memory job) external {
        _staysEnded(order, claim, job, JobState.Resolved, true);
    }

    /// @notice No job is opened twice, nor one that was settled by its signature.
    function check_noJobIsOpenedAgain(Order memory order, Job memory job, JobState state, address caller) external {
        vm.warp(NOW);
        vm.assume(state != JobState.None);
        _put(escrow.jobIdOf(order), state, false, job);
        _fails(caller, abi.encodeCall(IJobEscrow.openJob, (order, JobSpec("", "", ""))));
    }

    function check_noSignedJobIsOpenedAgain(Order memory order, Job memory job, JobState state, address caller)
        external
    {
        vm.warp(NOW);
        vm.assume(state != JobState.None);
        _put(escrow.jobIdOf(order), state, true, job);
        _fails(caller, abi.encodeCall(IJobEscrow.openJob, (order, JobSpec("", "", ""))));
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
