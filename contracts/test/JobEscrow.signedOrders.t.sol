// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order, Result, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";
import {KeyWallet} from "./mocks/Wallets.sol";

/// @notice Orders that were signed and never opened.
contract SignedOrdersTest is Base {
    function _funded() internal returns (Order memory order) {
        _deposit(MAX_PRICE);
        order = _signedOrder(1, MAX_PRICE);
    }

    function testFuzz_DrawsOnlyThePrice(uint128 price) external {
        price = uint128(bound(price, 0, MAX_PRICE));
        Order memory order = _funded();
        bytes32 jobId = escrow.jobIdOf(order);
        Result memory result = _signedResult(order, price);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ChannelUpdated(jobId, requester.addr, node.addr, NATIVE, MAX_PRICE - price, 0, 0, price);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobPaid(jobId, requester.addr, node.addr, NATIVE, price, RESULT_HASH, MAX_PRICE - price, price);
        _submit(result);
        _assertJob(jobId, JobState.Paid, 0, 0, address(0));
        _assertAccount(requester.addr, NATIVE, MAX_PRICE - price, 0, 0);
        _assertChannel(price, 0, 0);
        assertEq(escrow.earned(node.addr, NATIVE), price);
    }

    function testFuzz_DrawsOnTheReservationThenFreeThenThawing(uint128 price) external {
        price = uint128(bound(price, 0, 9 ether));
        _deposit(9 ether);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 2 ether);
        escrow.thaw(NATIVE, 4 ether);
        vm.stopPrank();
        _settleAlone(1, price);
        uint256 reserved = price < 2 ether ? 2 ether - price : 0;
        uint256 free = price < 2 ether ? 3 ether : price < 5 ether ? 5 ether - price : 0;
        uint256 thawing = price < 5 ether ? 4 ether : 9 ether - price;
        _assertAccount(requester.addr, NATIVE, free, thawing, thawing == 0 ? 0 : block.timestamp + THAW_PERIOD);
        _assertChannel(price, 0, reserved);
        assertEq(escrow.earned(node.addr, NATIVE), price);
    }

    function test_SkipsWhen_TheFundsDoNotSuffice() external {
        _deposit(PRICE - 1);
        Order memory order = _signedOrder(1, MAX_PRICE);
        _submitSkipped(_signedResult(order, PRICE), SkipReason.InsufficientFunds);
        _deposit(1);
        _submit(_signedResult(order, PRICE));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_SkipsWhen_AnothersReservationHoldsTheFunds() external {
        _deposit(PRICE);
        vm.prank(requester.addr);
        escrow.reserve(otherNode.addr, NATIVE, 1);
        _submitSkipped(_signedResult(_signedOrder(1, PRICE), PRICE), SkipReason.InsufficientFunds);
    }

    function test_SkipsWhen_SettledBefore() external {
        Order memory order = _funded();
        _submit(_signedResult(order, PRICE));
        _submitSkipped(_signedResult(order, PRICE), SkipReason.NotOpen);
        _submitSkipped(_signedResult(order, PRICE - 1), SkipReason.NotOpen);
    }

    function test_RevertWhen_OpenedAfterItWasSettled() external {
        Order memory order = _funded();
        _submit(_signedResult(order, PRICE));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.JobExists.selector, escrow.jobIdOf(order)));
        vm.prank(requester.addr);
        escrow.openJob{value: MAX_PRICE}(order, _spec());
    }

    /// @dev Opened and signed: it is paid once, from the lock.
    function test_AnOpenedOrderIsPaidFromItsLock() external {
        Order memory order = _funded();
        vm.prank(requester.addr);
        escrow.openJob(order, _spec());
        _submit(_signedResult(order, PRICE));
        _submitSkipped(_signedResult(order, PRICE), SkipReason.NotOpen);
        _assertAccount(requester.addr, NATIVE, MAX_PRICE - PRICE, 0, 0);
        _assertChannel(0, 0, 0);
    }

    function test_SkipsWhen_TheNonceIsZero() external {
        _deposit(MAX_PRICE);
        _submitSkipped(_signedResult(_signedOrder(0, PRICE), PRICE), SkipReason.Covered);
    }

    function test_SkipsWhen_TheOrderIsSignedByAnother() external {
        Order memory order = _funded();
        Result memory result = _signedResult(order, PRICE);
        result.orderSignature = _sign(node, escrow.jobIdOf(order));
        _submitSkipped(result, SkipReason.BadOrderSignature);
    }

    /// @dev A session key signs vouchers and nothing else.
    function test_SkipsWhen_TheOrderIsSignedByASessionKey() external {
        Order memory order = _funded();
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, MAX_PRICE, uint64(block.timestamp + 1 days));
        Result memory result = _signedResult(order, PRICE);
        result.orderSignature = _sign(otherNode, escrow.jobIdOf(order));
        _submitSkipped(result, SkipReason.BadOrderSignature);
    }

    function test_SkipsWhen_TheReceiptIsSignedByAnother() external {
        Result memory result = _signedResult(_funded(), PRICE);
        result.receiptSignature = _sign(otherNode, _receiptDigest(escrow.jobIdOf(result.order), PRICE, RESULT_HASH));
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    function test_SkipsWhen_LateOrTooDearOrAnothers() external {
        Order memory order = _funded();
        _submitSkipped(_signedResult(order, MAX_PRICE + 1), SkipReason.PriceAboveMax);
        Result memory result = _signedResult(order, PRICE);
        result.node = otherNode.addr;
        _submitSkipped(result, SkipReason.WrongNode);
        vm.warp(order.deadline + 1);
        _submitSkipped(_signedResult(order, PRICE), SkipReason.Expired);
    }

    function test_SkipsWhen_AnotherChain() external {
        Result memory result = _signedResult(_funded(), PRICE);
        vm.chainId(block.chainid + 1);
        _submitSkipped(result, SkipReason.BadOrderSignature);
    }

    function test_AWalletMaySignOrders() external {
        KeyWallet wallet = new KeyWallet(requester.addr);
        vm.prank(requester.addr);
        escrow.depositFor{value: PRICE}(address(wallet), NATIVE, PRICE);
        Order memory order = _signedOrder(1, PRICE);
        order.requester = address(wallet);
        _submit(_signedResult(order, PRICE));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    // ── With a window ───────────────────────────────────────────────────────────────────────────────────────────────

    function test_AWindowedOrderLocksItsPriceAndIsPaidLater() external {
        _deposit(MAX_PRICE);
        Order memory order = _windowedOrder();
        order.nonce = 1;
        bytes32 jobId = escrow.jobIdOf(order);
        _submit(_signedResult(order, PRICE));
        _assertJob(jobId, JobState.Submitted, PRICE, block.timestamp + WINDOW, node.addr);
        _assertAccount(requester.addr, NATIVE, MAX_PRICE - PRICE, 0, 0);
        _assertChannel(0, 0, 0);
        _finalizeSkipped(order, SkipReason.WindowOpen);
        skip(WINDOW);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ChannelUpdated(jobId, requester.addr, node.addr, NATIVE, MAX_PRICE - PRICE, 0, 0, PRICE);
        _finalize(order);
        _finalizeSkipped(order, SkipReason.NotSubmitted);
        _assertJob(jobId, JobState.Paid, 0, 0, address(0));
        _assertChannel(PRICE, 0, 0);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_AnAssignedOrderCountsInTheAssignedNodesChannel() external {
        _deposit(MAX_PRICE);
        Order memory order = _assignedOrder();
        order.nonce = 1;
        _submit(_signedResult(order, PRICE));
        skip(WINDOW);
        _finalize(order);
        _assertChannel(PRICE, 0, 0);
    }

    function test_SkipsWhen_AnOpenOrderHasNoWindow() external {
        _deposit(MAX_PRICE);
        Order memory order = _assignedOrder();
        order.nonce = 1;
        order.challengeWindow = 0;
        _submitSkipped(_signedResult(order, PRICE), SkipReason.WindowRequired);
    }

    function test_SkipsWhen_AnOpenOrderHasNoAssigner() external {
        _deposit(MAX_PRICE);
        Order memory order = _assignedOrder();
        order.nonce = 1;
        order.assigner = address(0);
        _submitSkipped(_signedResult(order, PRICE), SkipReason.BadAssignmentSignature);
    }

    function test_SkipsWhen_TheWindowIsTooLong() external {
        _deposit(MAX_PRICE);
        Order memory order = _windowedOrder();
        order.nonce = 1;
        order.challengeWindow = MAX_WINDOW + 1;
        _submitSkipped(_signedResult(order, PRICE), SkipReason.WindowTooLong);
    }

    function test_SkipsWhen_ANodeWithAWindowIsNotStaked() external {
        _deposit(MAX_PRICE);
        Order memory order = _windowedOrder();
        order.nonce = 1;
        vm.prank(node.addr);
        registry.startUnbond(1);
        _submitSkipped(_signedResult(order, PRICE), SkipReason.NotStaked);
    }
}

/// @notice Orders taken back, opened or only signed.
contract CancelJobTest is Base {
    function _cancel(Order memory order) internal {
        vm.prank(requester.addr);
        escrow.cancelJob(order);
    }

    function test_TheLockComesBackAfterTheNotice() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        uint64 end = uint64(block.timestamp) + THAW_PERIOD;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobCancelling(jobId, requester.addr, end);
        _cancel(order);
        assertEq(escrow.cancelAt(jobId), end);
        skip(THAW_PERIOD - 1);
        _refundSkipped(order, SkipReason.NotExpired);
        skip(1);
        _submitSkipped(_result(order), SkipReason.Cancelled);
        _refund(order);
        _assertJob(jobId, JobState.Refunded, 0, 0, address(0));
        _assertAccount(requester.addr, NATIVE, MAX_PRICE, 0, 0);
        assertEq(escrow.cancelAt(jobId), 0);
    }

    function test_WorkUnderWayIsPaid() external {
        Order memory order = _order();
        _open(order);
        _cancel(order);
        skip(THAW_PERIOD - 1);
        _submit(_result(order));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        skip(1);
        _refundSkipped(order, SkipReason.NotOpen);
    }

    function test_AResultInTheNoticeStillHasItsWholeWindow() external {
        Order memory order = _windowedOrder();
        bytes32 jobId = _open(order);
        _cancel(order);
        _submit(_result(order));
        _assertJob(jobId, JobState.Submitted, PRICE, block.timestamp + WINDOW, node.addr);
        assertEq(escrow.cancelAt(jobId), 0);
    }

    function test_ASignedOrderEndsAfterTheNotice() external {
        _deposit(2 * PRICE);
        Order memory first = _signedOrder(1, PRICE);
        Order memory second = _signedOrder(2, PRICE);
        _cancel(first);
        _cancel(second);
        assertEq(escrow.cancelAt(escrow.jobIdOf(first)), block.timestamp + THAW_PERIOD);
        skip(THAW_PERIOD - 1);
        _submit(_signedResult(first, PRICE));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        skip(1);
        _submitSkipped(_signedResult(second, PRICE), SkipReason.Cancelled);
    }

    function test_OpeningTakesACancellationBack() external {
        Order memory order = _order();
        _cancel(order);
        skip(THAW_PERIOD);
        bytes32 jobId = _open(order);
        assertEq(escrow.cancelAt(jobId), 0);
        _submit(_result(order));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_RevertWhen_NotTheRequester() external {
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotRequester.selector, requester.addr, settler));
        vm.prank(settler);
        escrow.cancelJob(_order());
    }

    function test_RevertWhen_CancelledOrSettledBefore() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        _cancel(order);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotCancellable.selector, jobId));
        _cancel(order);
        _submit(_result(order));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotCancellable.selector, jobId));
        _cancel(order);
    }
}
