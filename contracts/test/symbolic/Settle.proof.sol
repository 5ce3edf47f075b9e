// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {JobSpec, JobState, Order, Result} from "../../src/interfaces/IJobEscrow.sol";
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

    function _begin(Order memory order, address node, uint64 time)
        internal
        returns (bytes32 jobId, Money memory before)
    {
        _at(time);
        _key(order.requester);
        _key(node);
        jobId = escrow.jobIdOf(order);
        before = _read(order, node, jobId);
        _assumeSound(before, order);
    }

    /// @dev What holds of every step of a job.
    function _assertConserved(Money memory before, Money memory afterwards) internal pure {
        assert((_sum(afterwards) ^ _sum(before)) | (afterwards.covered ^ before.covered) == 0);
        assert(afterwards.claimed >= before.claimed);
        assert(afterwards.earned >= before.earned);
    }
}

contract SubmitOpenedProof is JobProof {
    /// @dev An opened job, at once or into its window: no account but the requester's free one gains by it.
    function _submit(Order memory order, Claim memory claim, Other memory other, uint64 time) internal {
        (bytes32 jobId, Money memory before) = _begin(order, claim.node, time);
        _assumeElsewhere(other, order.requester, claim.node, order.token, jobId);
        Slots memory untouched = _slots(other);
        Result[] memory results = _results(order, claim, false);
        escrow.submitResults(results);
        Money memory afterwards = _read(order, claim.node, jobId);
        _assertConserved(before, afterwards);
        assert(afterwards.free >= before.free);
        assert(afterwards.thawing == before.thawing);
        assert(afterwards.reserved == before.reserved);
        assert(afterwards.claimed == before.claimed);
        _assertUntouched(untouched, _slots(other));
        // The same signatures again move nothing.
        escrow.submitResults(results);
        _assertSame(afterwards, _read(order, claim.node, jobId));
    }

    function check_submitOpenedAtOnce(Order memory order, Claim memory claim, Other memory other, uint64 time)
        external
    {
        vm.assume(order.challengeWindow == 0);
        vm.assume(order.node != address(0));
        _submit(order, claim, other, time);
    }

    function check_submitOpenedIntoWindow(Order memory order, Claim memory claim, Other memory other, uint64 time)
        external
    {
        vm.assume(order.challengeWindow != 0);
        vm.assume(order.node != address(0));
        _submit(order, claim, other, time);
    }

    function check_submitOpenedByAssignment(Order memory order, Claim memory claim, Other memory other, uint64 time)
        external
    {
        vm.assume(order.challengeWindow != 0);
        vm.assume(order.node == address(0));
        _key(order.assigner);
        _submit(order, claim, other, time);
    }
}

contract SubmitSignedProof is JobProof {
    /// @dev A signed order, at once or into its window: its price leaves reservation, free and thawing funds and is paid or
    /// locked, in full or not at all.
    function _submit(Order memory order, Claim memory claim, Other memory other, uint64 time) internal {
        (bytes32 jobId, Money memory before) = _begin(order, claim.node, time);
        _assumeElsewhere(other, order.requester, claim.node, order.token, jobId);
        vm.assume(before.state == uint256(JobState.None));
        Slots memory untouched = _slots(other);
        Result[] memory results = _results(order, claim, true);
        escrow.submitResults(results);
        Money memory afterwards = _read(order, claim.node, jobId);
        _assertConserved(before, afterwards);
        _assertUntouched(untouched, _slots(other));
        if (afterwards.state == before.state) {
            _assertSame(before, afterwards);
        } else {
            unchecked {
                uint256 left = afterwards.free + afterwards.thawing + afterwards.reserved;
                assert(before.free + before.thawing + before.reserved - left == claim.price);
                assert(afterwards.claimed - before.claimed <= claim.price);
            }
            assert(claim.price <= order.maxPrice);
            // What a voucher covers is not settled alone.
            assert(order.nonce > before.covered);
        }
        escrow.submitResults(results);
        _assertSame(afterwards, _read(order, claim.node, jobId));
    }

    function check_submitSignedAtOnce(Order memory order, Claim memory claim, Other memory other, uint64 time)
        external
    {
        vm.assume(order.challengeWindow == 0);
        vm.assume(order.node != address(0));
        _submit(order, claim, other, time);
    }

    function check_submitSignedIntoWindow(Order memory order, Claim memory claim, Other memory other, uint64 time)
        external
    {
        vm.assume(order.challengeWindow != 0);
        vm.assume(order.node != address(0));
        _submit(order, claim, other, time);
    }

    function check_submitSignedByAssignment(Order memory order, Claim memory claim, Other memory other, uint64 time)
        external
    {
        vm.assume(order.node == address(0));
        _key(order.assigner);
        _submit(order, claim, other, time);
    }
}

contract FinalizeProof is JobProof {
    /// @dev Whoever the order or, where it is open, the registry names.
    function _node(Order memory order, bytes32 jobId) internal view returns (address) {
        return order.node != address(0) ? order.node : registry.nodeAt(uint48(_readJob(jobId) >> 16));
    }

    function check_finalize(Order memory order, Other memory other, uint64 time) external {
        bytes32 jobId = escrow.jobIdOf(order);
        address node = _node(order, jobId);
        (, Money memory before) = _begin(order, node, time);
        _assumeElsewhere(other, order.requester, node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.finalize(_orders(order));
        Money memory afterwards = _read(order, node, jobId);
        _assertConserved(before, afterwards);
        assert(afterwards.thawing == before.thawing);
        _assertUntouched(untouched, _slots(other));
        escrow.finalize(_orders(order));
        _assertSame(afterwards, _read(order, node, jobId));
    }

    function check_accept(Order memory order, Other memory other, uint64 time) external {
        bytes32 jobId = escrow.jobIdOf(order);
        address node = _node(order, jobId);
        (, Money memory before) = _begin(order, node, time);
        _assumeElsewhere(other, order.requester, node, order.token, jobId);
        Slots memory untouched = _slots(other);
        vm.prank(order.requester);
        escrow.accept(order);
        Money memory afterwards = _read(order, node, jobId);
        _assertConserved(before, afterwards);
        _assertUntouched(untouched, _slots(other));
    }
}

contract OpenRefundProof is JobProof {
    /// @notice What `_assumeSound` says of open jobs.
    function check_openLocksTheMaximum(Order memory order, address node, uint64 time) external {
        (bytes32 jobId, Money memory before) = _begin(order, node, time);
        vm.prank(order.requester);
        escrow.openJob(order, JobSpec("", "", ""));
        Money memory afterwards = _read(order, node, jobId);
        _assertConserved(before, afterwards);
        assert(before.state == uint256(JobState.None));
        assert(afterwards.state == uint256(JobState.Open));
        assert(afterwards.locked == order.maxPrice);
        assert(before.free - afterwards.free == order.maxPrice);
    }

    function check_cancelMovesNothing(Order memory order, address node, uint64 time) external {
        (bytes32 jobId, Money memory before) = _begin(order, node, time);
        vm.prank(order.requester);
        escrow.cancelJob(order);
        _assertSame(before, _read(order, node, jobId));
    }

    function check_refundGivesTheLockBack(Order memory order, address node, Other memory other, uint64 time) external {
        (bytes32 jobId, Money memory before) = _begin(order, node, time);
        _assumeElsewhere(other, order.requester, node, order.token, jobId);
        Slots memory untouched = _slots(other);
        escrow.refundExpired(_orders(order));
        Money memory afterwards = _read(order, node, jobId);
        _assertConserved(before, afterwards);
        assert(afterwards.free + afterwards.locked == before.free + before.locked);
        _assertUntouched(untouched, _slots(other));
        escrow.refundExpired(_orders(order));
        _assertSame(afterwards, _read(order, node, jobId));
    }
}
