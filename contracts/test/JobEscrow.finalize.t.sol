// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order, Result, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

contract FinalizeTest is Base {
    function _expectPaid(Order memory order, uint256 free, uint256 earned) internal {
        bytes32 jobId = escrow.jobIdOf(order);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobPaid(jobId, order.requester, node.addr, order.token, PRICE, RESULT_HASH, free, earned);
    }

    function test_PaysANamedNodeWhenTheWindowEnds() external {
        Order memory order = _windowedOrder();
        bytes32 jobId = _open(order);
        _submit(_result(order));
        skip(WINDOW);
        _expectPaid(order, MAX_PRICE - PRICE, PRICE);
        _finalize(order);
        _assertJob(jobId, JobState.Paid, 0, 0, address(0));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        _assertAccount(requester.addr, NATIVE, MAX_PRICE - PRICE, 0, 0);
    }

    function test_PaysAnAssignedNode() external {
        Order memory order = _assignedOrder();
        bytes32 jobId = _open(order);
        _submit(_result(order));
        skip(WINDOW);
        _expectPaid(order, MAX_PRICE - PRICE, PRICE);
        _finalize(order);
        _assertJob(jobId, JobState.Paid, 0, 0, address(0));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_PaysTheNodeThatWasAssignedAndNoOther() external {
        _register(otherNode.addr, MIN_STAKE);
        Order memory first = _assignedOrder();
        Order memory second = _assignedOrder();
        second.nonce = 1;
        _open(first);
        _open(second);
        _submit(_result(first, node, 1));
        _submit(_result(second, otherNode, 2));
        skip(WINDOW);
        Order[] memory orders = new Order[](2);
        (orders[0], orders[1]) = (first, second);
        escrow.finalize(orders);
        assertEq(escrow.earned(node.addr, NATIVE), 1);
        assertEq(escrow.earned(otherNode.addr, NATIVE), 2);
    }

    function test_PaysInTokens() external {
        Order memory order = _windowedOrder();
        order.token = address(token);
        _open(order);
        _submit(_result(order));
        skip(WINDOW);
        _finalize(order);
        assertEq(escrow.earned(node.addr, address(token)), PRICE);
    }

    function test_PaysLongAfterTheDeadline() external {
        Order memory order = _windowedOrder();
        _open(order);
        _submit(_result(order));
        vm.warp(order.deadline + 1000 days);
        _finalize(order);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_PaysANodeThatHasLeftMeanwhile() external {
        Order memory order = _assignedOrder();
        _open(order);
        _submit(_result(order));
        vm.prank(node.addr);
        registry.startUnbond(MIN_STAKE);
        skip(WINDOW);
        _finalize(order);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_SkipsWhen_NeverOpened() external {
        _finalizeSkipped(_order(), SkipReason.NotSubmitted);
    }

    function test_SkipsWhen_NoResultIsIn() external {
        Order memory order = _windowedOrder();
        _open(order);
        _finalizeSkipped(order, SkipReason.NotSubmitted);
    }

    function testFuzz_SkipsWhen_TheWindowIsOpen(uint256 wait) external {
        Order memory order = _windowedOrder();
        _open(order);
        _submit(_result(order));
        skip(bound(wait, 0, WINDOW - 1));
        _finalizeSkipped(order, SkipReason.WindowOpen);
    }

    function test_SkipsWhen_FinalizedBefore() external {
        Order memory order = _windowedOrder();
        _open(order);
        _submit(_result(order));
        skip(WINDOW);
        _finalize(order);
        _finalizeSkipped(order, SkipReason.NotSubmitted);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_SkipsWhen_PaidAtOnce() external {
        Order memory order = _order();
        _open(order);
        _submit(_result(order));
        _finalizeSkipped(order, SkipReason.NotSubmitted);
    }

    function test_TheSameOrderTwiceInABatchPaysOnce() external {
        Order memory order = _windowedOrder();
        bytes32 jobId = _open(order);
        _submit(_result(order));
        skip(WINDOW);
        Order[] memory orders = new Order[](2);
        orders[0] = orders[1] = order;
        _expectPaid(order, MAX_PRICE - PRICE, PRICE);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Skipped(jobId, SkipReason.NotSubmitted);
        escrow.finalize(orders);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }
}

contract RefundExpiredTest is Base {
    function testFuzz_GivesTheWholeLockBackAfterTheDeadline(uint32 late) external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        vm.warp(uint256(order.deadline) + 1 + late);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobRefunded(jobId, requester.addr, NATIVE, MAX_PRICE, MAX_PRICE);
        _refund(order);
        _assertJob(jobId, JobState.Refunded, 0, 0, address(0));
        _assertAccount(requester.addr, NATIVE, MAX_PRICE, 0, 0);
    }

    function test_GivesTokensBack() external {
        Order memory order = _order();
        order.token = address(token);
        _open(order);
        vm.warp(order.deadline + 1);
        _refund(order);
        _assertAccount(requester.addr, address(token), MAX_PRICE, 0, 0);
    }

    function testFuzz_SkipsWhen_TheDeadlineHasNotPassed(uint256 wait) external {
        Order memory order = _order();
        _open(order);
        skip(bound(wait, 0, order.deadline - block.timestamp));
        _refundSkipped(order, SkipReason.NotExpired);
    }

    function test_SkipsWhen_NeverOpened() external {
        Order memory order = _order();
        vm.warp(order.deadline + 1);
        _refundSkipped(order, SkipReason.NotOpen);
    }

    function test_SkipsWhen_AResultIsWaiting() external {
        Order memory order = _windowedOrder();
        bytes32 jobId = _open(order);
        vm.warp(order.deadline);
        _submit(_result(order));
        vm.warp(order.deadline + 1);
        _refundSkipped(order, SkipReason.NotOpen);
        _assertJob(jobId, JobState.Submitted, PRICE, order.deadline + WINDOW, node.addr);
    }

    function test_SkipsWhen_Paid() external {
        Order memory order = _order();
        _open(order);
        _submit(_result(order));
        vm.warp(order.deadline + 1);
        _refundSkipped(order, SkipReason.NotOpen);
    }

    function test_TheSameOrderTwiceInABatchRefundsOnce() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        vm.warp(order.deadline + 1);
        Order[] memory orders = new Order[](2);
        orders[0] = orders[1] = order;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobRefunded(jobId, requester.addr, NATIVE, MAX_PRICE, MAX_PRICE);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Skipped(jobId, SkipReason.NotOpen);
        escrow.refundExpired(orders);
        _assertAccount(requester.addr, NATIVE, MAX_PRICE, 0, 0);
    }
}
