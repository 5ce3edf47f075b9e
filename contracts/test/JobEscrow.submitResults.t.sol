// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order, Result, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

contract SubmitResultsTest is Base {
    function _expectPaid(Order memory order, uint128 price, uint256 free, uint256 earned) internal {
        bytes32 jobId = escrow.jobIdOf(order);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobPaid(jobId, order.requester, node.addr, order.token, price, RESULT_HASH, free, earned);
    }

    function _expectSubmitted(Order memory order, uint128 price, uint256 free) internal {
        bytes32 jobId = escrow.jobIdOf(order);
        uint64 finalizeAt = uint64(block.timestamp) + order.challengeWindow;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ResultSubmitted(
            jobId, order.requester, node.addr, order.token, price, RESULT_HASH, finalizeAt, free
        );
    }

    // ── Paid at once ────────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_PaysANamedNodeAtOnce(uint128 price) external {
        price = uint128(bound(price, 0, MAX_PRICE));
        Order memory order = _order();
        bytes32 jobId = _open(order);
        Result memory result = _result(order, node, price);
        _expectPaid(order, price, MAX_PRICE - price, price);
        _submit(result);
        _assertJob(jobId, JobState.Paid, 0, 0, address(0));
        _assertAccount(requester.addr, NATIVE, MAX_PRICE - price, 0, 0);
        assertEq(escrow.earned(node.addr, NATIVE), price);
    }

    function test_PaysInTokens() external {
        Order memory order = _order();
        order.token = address(token);
        _open(order);
        _expectPaid(order, PRICE, MAX_PRICE - PRICE, PRICE);
        _submit(_result(order));
        assertEq(escrow.earned(node.addr, address(token)), PRICE);
        assertEq(escrow.earned(node.addr, NATIVE), 0);
    }

    function test_ANamedNodeNeedsNoStakeToBePaidAtOnce() external {
        Order memory order = _order();
        order.node = otherNode.addr;
        _open(order);
        _submit(_result(order, otherNode, PRICE));
        assertEq(escrow.earned(otherNode.addr, NATIVE), PRICE);
    }

    function test_AssignmentIsIgnoredWhereTheOrderNamesItsNode() external {
        Order memory order = _order();
        _open(order);
        Result memory result = _result(order);
        result.assignmentSignature = "rubbish";
        _submit(result);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_SettlesAtTheDeadline() external {
        Order memory order = _order();
        _open(order);
        vm.warp(order.deadline);
        _submit(_result(order));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    // ── With a window ───────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_HoldsThePriceForTheWindow(uint128 price, uint32 window) external {
        price = uint128(bound(price, 0, MAX_PRICE));
        Order memory order = _windowedOrder();
        order.challengeWindow = uint32(bound(window, 1, 30 days));
        bytes32 jobId = _open(order);
        Result memory result = _result(order, node, price);
        _expectSubmitted(order, price, MAX_PRICE - price);
        _submit(result);
        _assertJob(jobId, JobState.Submitted, price, block.timestamp + order.challengeWindow, node.addr);
        _assertAccount(requester.addr, NATIVE, MAX_PRICE - price, 0, 0);
        assertEq(escrow.earned(node.addr, NATIVE), 0);
    }

    function test_TakesTheAssignersWordForAnOpenOrder() external {
        Order memory order = _assignedOrder();
        bytes32 jobId = _open(order);
        _expectSubmitted(order, PRICE, MAX_PRICE - PRICE);
        _submit(_result(order));
        _assertJob(jobId, JobState.Submitted, PRICE, block.timestamp + WINDOW, node.addr);
    }

    function test_TakesAnAssignmentAtItsExpiry() external {
        Order memory order = _assignedOrder();
        bytes32 jobId = _open(order);
        Result memory result = _result(order);
        vm.warp(result.assignmentExpiry);
        _submit(result);
        _assertJob(jobId, JobState.Submitted, PRICE, block.timestamp + WINDOW, node.addr);
    }

    // ── Skipped ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_SkipsWhen_NeverOpened() external {
        _submitSkipped(_result(_order()), SkipReason.NotOpen);
    }

    function test_SkipsWhen_PaidBefore() external {
        Order memory order = _order();
        _open(order);
        _submit(_result(order));
        _submitSkipped(_result(order), SkipReason.NotOpen);
    }

    function test_SkipsWhen_AResultIsWaiting() external {
        Order memory order = _windowedOrder();
        _open(order);
        _submit(_result(order));
        _submitSkipped(_result(order, node, PRICE - 1), SkipReason.NotOpen);
    }

    function test_SkipsWhen_Finalized() external {
        Order memory order = _windowedOrder();
        order.challengeWindow = 1;
        _open(order);
        _submit(_result(order));
        skip(1);
        _finalize(order);
        _submitSkipped(_result(order), SkipReason.NotOpen);
    }

    function test_SkipsWhen_Refunded() external {
        Order memory order = _order();
        _open(order);
        Result memory result = _result(order);
        vm.warp(order.deadline + 1);
        _refund(order);
        _submitSkipped(result, SkipReason.NotOpen);
    }

    function testFuzz_SkipsWhen_TheDeadlinePassed(uint32 late) external {
        Order memory order = _order();
        _open(order);
        Result memory result = _result(order);
        vm.warp(uint256(order.deadline) + 1 + late);
        _submitSkipped(result, SkipReason.Expired);
    }

    function testFuzz_SkipsWhen_ThePriceIsAboveTheMost(uint128 price) external {
        Order memory order = _order();
        _open(order);
        price = uint128(bound(price, MAX_PRICE + 1, type(uint128).max));
        _submitSkipped(_result(order, node, price), SkipReason.PriceAboveMax);
    }

    function test_SkipsWhen_TheOrderNamesAnotherNode() external {
        Order memory order = _order();
        _open(order);
        _submitSkipped(_result(order, otherNode, PRICE), SkipReason.WrongNode);
    }

    function testFuzz_SkipsWhen_TheAssignmentExpired(uint32 late) external {
        Order memory order = _assignedOrder();
        order.deadline = uint64(block.timestamp + MAX_DEADLINE);
        _open(order);
        Result memory result = _result(order);
        vm.warp(result.assignmentExpiry + bound(late, 1, 300 days));
        _submitSkipped(result, SkipReason.AssignmentExpired);
    }

    function test_SkipsWhen_TheExpiryIsNotTheOneSigned() external {
        Order memory order = _assignedOrder();
        _open(order);
        Result memory result = _result(order);
        result.assignmentExpiry += 1;
        _submitSkipped(result, SkipReason.BadAssignmentSignature);
    }

    function test_SkipsWhen_TheAssignmentIsAnotherNodes() external {
        _register(otherNode.addr, MIN_STAKE);
        Order memory order = _assignedOrder();
        _open(order);
        Result memory result = _result(order, otherNode, PRICE);
        result.assignmentSignature = _result(order, node, PRICE).assignmentSignature;
        _submitSkipped(result, SkipReason.BadAssignmentSignature);
    }

    function test_SkipsWhen_TheAssignmentIsAnotherJobs() external {
        Order memory order = _assignedOrder();
        Result memory other = _result(order);
        order.nonce = 1;
        _open(order);
        Result memory result = _result(order);
        result.assignmentSignature = other.assignmentSignature;
        _submitSkipped(result, SkipReason.BadAssignmentSignature);
    }

    function test_SkipsWhen_TheNodeAssignsItself() external {
        Order memory order = _assignedOrder();
        bytes32 jobId = _open(order);
        Result memory result = _result(order);
        result.assignmentSignature = _sign(node, _assignmentDigest(jobId, node.addr, result.assignmentExpiry));
        _submitSkipped(result, SkipReason.BadAssignmentSignature);
    }

    function test_SkipsWhen_TheAssignmentIsMissing() external {
        Order memory order = _assignedOrder();
        _open(order);
        Result memory result = _result(order);
        result.assignmentSignature = "";
        _submitSkipped(result, SkipReason.BadAssignmentSignature);
    }

    function test_SkipsWhen_ANodeWithAWindowIsNotRegistered() external {
        Order memory order = _assignedOrder();
        _open(order);
        _submitSkipped(_result(order, otherNode, PRICE), SkipReason.NotStaked);
        order = _windowedOrder();
        order.node = otherNode.addr;
        _open(order);
        _submitSkipped(_result(order, otherNode, PRICE), SkipReason.NotStaked);
    }

    function test_SkipsWhen_ANodeWithAWindowHasTooLittleStake() external {
        Order memory order = _windowedOrder();
        _open(order);
        vm.prank(node.addr);
        registry.startUnbond(1);
        _submitSkipped(_result(order), SkipReason.NotStaked);
    }

    function test_SkipsWhen_TheReceiptIsSignedByAnother() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        Result memory result = _result(order);
        result.receiptSignature = _sign(otherNode, _receiptDigest(jobId, PRICE, RESULT_HASH));
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    function test_SkipsWhen_TheRequesterForgesTheReceipt() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        Result memory result = _result(order);
        result.price = 0;
        result.receiptSignature = _sign(requester, _receiptDigest(jobId, 0, RESULT_HASH));
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    function testFuzz_SkipsWhen_PriceOrResultIsNotTheOneSigned(uint128 price, bytes32 resultHash) external {
        price = uint128(bound(price, 0, MAX_PRICE));
        vm.assume(price != PRICE || resultHash != RESULT_HASH);
        Order memory order = _order();
        _open(order);
        Result memory result = _result(order);
        result.price = price;
        result.resultHash = resultHash;
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    /// @dev Whatever is changed in the order makes it another job, which was never opened.
    function testFuzz_SkipsWhen_TheOrderIsChanged(uint256 field, uint128 by) external {
        Order memory order = _windowedOrder();
        _open(order);
        Result memory result = _result(order);
        by = uint128(bound(by, 1, type(uint16).max));
        field = bound(field, 0, 10);
        if (field == 0) result.order.requester = address(uint160(order.requester) ^ by);
        else if (field == 1) result.order.token = address(uint160(by));
        else if (field == 2) result.order.maxPrice ^= by;
        else if (field == 3) result.order.node = address(0);
        else if (field == 4) result.order.assigner = address(uint160(by));
        else if (field == 5) result.order.specHash ^= bytes32(uint256(by));
        else if (field == 6) result.order.deadline ^= uint64(by);
        else if (field == 7) result.order.challengeWindow ^= uint32(by);
        else if (field == 8) result.order.arbiter = address(uint160(by));
        else if (field == 9) result.order.maxFeeBps ^= uint16(by);
        else result.order.nonce ^= uint64(by);
        _submitSkipped(result, SkipReason.NotOpen);
    }

    // ── Batches ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_ABatchMayBeEmpty() external {
        vm.record();
        escrow.submitResults(new Result[](0));
        escrow.finalize(new Order[](0));
        escrow.refundExpired(new Order[](0));
        _assertNothingWritten();
    }

    function test_TheSameResultTwiceInABatchPaysOnce() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        Result[] memory results = new Result[](2);
        results[0] = results[1] = _result(order);
        _expectPaid(order, PRICE, MAX_PRICE - PRICE, PRICE);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Skipped(jobId, SkipReason.NotOpen);
        escrow.submitResults(results);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        _assertAccount(requester.addr, NATIVE, MAX_PRICE - PRICE, 0, 0);
    }

    /// @dev Invariant 7 of the design: a batch does what its items would do one by one.
    function testFuzz_ABatchIsWorthItsItems(uint256 bad) external {
        uint256 n = 8;
        Result[] memory results = new Result[](n);
        for (uint256 i = 0; i < n; ++i) {
            Order memory order = i % 3 == 0 ? _order() : i % 3 == 1 ? _windowedOrder() : _assignedOrder();
            order.nonce = uint64(i);
            _open(order);
            results[i] = _result(order, node, uint128(i));
            if (bad >> i & 1 == 1) results[i].receiptSignature[40] ^= 0x01;
        }
        uint256 before = vm.snapshotState();
        for (uint256 i = 0; i < n; ++i) {
            _submit(results[i]);
        }
        bytes32 oneByOne = _stateHash(results);
        assertTrue(vm.revertToState(before));
        vm.prank(settler);
        escrow.submitResults(results);
        assertEq(_stateHash(results), oneByOne);
    }

    function _stateHash(Result[] memory results) internal view returns (bytes32 hash) {
        hash = keccak256(abi.encode(escrow.earned(node.addr, NATIVE), _free(requester.addr, NATIVE)));
        for (uint256 i = 0; i < results.length; ++i) {
            (JobState state, uint128 locked, uint64 finalizeAt, address waiting) =
                escrow.job(escrow.jobIdOf(results[i].order));
            hash = keccak256(abi.encode(hash, state, locked, finalizeAt, waiting));
        }
    }
}
