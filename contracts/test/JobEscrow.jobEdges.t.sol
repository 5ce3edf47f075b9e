// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {IJobEscrow, JobState, Order, Result, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

/// @notice As `EdgesTest`, of jobs from result to payment.
contract JobEdgesTest is Base {
    uint256 private constant JOBS_SLOT = 5;

    function _signedWindowed(uint64 nonce, uint128 price) internal view returns (Order memory order) {
        order = _signedOrder(nonce, price);
        order.challengeWindow = WINDOW;
    }

    function _finalizeAfterTheWindow(Order memory order) internal {
        skip(WINDOW);
        _finalize(order);
    }

    function _dispute(Order memory order) internal {
        vm.prank(requester.addr);
        escrow.dispute(order);
    }

    function _reserve(uint256 amount) internal {
        vm.prank(requester.addr);
        escrow.reserve(node.addr, NATIVE, amount);
    }

    function _above(Order memory order) internal pure returns (Order[] memory orders) {
        orders = new Order[](1);
        orders[0] = order;
    }

    // ── Results ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Where there is an arbiter, locking the bond comes last: what is wrong with the result itself is told first.
    function test_ABadReceiptIsToldBeforeTheMissingStake() external {
        Order memory order = _windowedOrder();
        order.arbiter = address(this);
        _open(order);
        vm.prank(node.addr);
        registry.startUnbond(1);
        Result memory result = _result(order);
        bytes memory receipt = result.receiptSignature;
        result.receiptSignature = "";
        _submitSkipped(result, SkipReason.BadReceiptSignature);
        result.receiptSignature = receipt;
        _submitSkipped(result, SkipReason.NotStaked);
    }

    function test_ADrawForAnOrderTellsEveryPocket() external {
        _deposit(20);
        _reserve(7);
        vm.prank(requester.addr);
        escrow.thaw(NATIVE, 2);
        Order memory order = _signedOrder(1, 4);
        bytes32 jobId = escrow.jobIdOf(order);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ChannelUpdated(jobId, requester.addr, node.addr, NATIVE, 11, 2, 3, 4);
        _submit(_signedResult(order, 4));
    }

    function _assertKept(Order memory order, bytes32 resultHash) internal view {
        uint256 slot = uint256(keccak256(abi.encode(escrow.jobIdOf(order), JOBS_SLOT)));
        assertEq(vm.load(address(escrow), bytes32(slot + 1)), resultHash);
    }

    /// @dev Each member in its place, and nothing between.
    function test_AWaitingJobIsOneWord() external {
        _deposit(PRICE);
        Order memory order = _signedWindowed(1, PRICE);
        _submit(_signedResult(order, PRICE));
        uint256 word = uint256(JobState.Submitted) | 1 << 8 | uint256(registry.stakedNumberOf(node.addr)) << 16;
        word |= (NOW + WINDOW) << 64 | uint256(PRICE) << 128;
        bytes32 slot = keccak256(abi.encode(escrow.jobIdOf(order), JOBS_SLOT));
        assertEq(uint256(vm.load(address(escrow), slot)), word);
    }

    /// @dev Clearing a slot pays for a part of the gas.
    function test_AnEndedJobKeepsNoResult() external {
        _deposit(MAX_PRICE);
        Order memory order = _windowedOrder();
        order.arbiter = address(this);
        _open(order);
        _submit(_result(order));
        _assertKept(order, RESULT_HASH);
        _finalizeAfterTheWindow(order);
        _assertKept(order, 0);

        order = _windowedOrder();
        (order.arbiter, order.nonce) = (address(this), 2);
        _open(order);
        _submit(_result(order));
        _dispute(order);
        _assertKept(order, RESULT_HASH);
        escrow.resolve(order, 0, 0);
        _assertKept(order, 0);
    }

    // ── Orders settled alone, shown above a voucher ─────────────────────────────────────────────────────────────────

    function _assignedSigned(address arbiter) internal returns (Order memory order) {
        _deposit(2 * MAX_PRICE);
        order = _assignedOrder();
        (order.nonce, order.arbiter) = (7, arbiter);
        _submit(_signedResult(order, PRICE));
    }

    /// @dev The job keeps the number of the node it was paid to.
    function test_AFinalizedOpenOrderCountsOnTop() external {
        Order memory order = _assignedSigned(address(0));
        _finalizeAfterTheWindow(order);
        _redeemAbove(5, 5, _above(order));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE + 5);
    }

    function test_AResolvedOpenOrderCountsOnTop() external {
        Order memory order = _assignedSigned(address(this));
        _dispute(order);
        escrow.resolve(order, 10_000, 0);
        uint256 earned = escrow.earned(node.addr, NATIVE);
        _redeemAbove(5, 5, _above(order));
        assertEq(escrow.earned(node.addr, NATIVE), earned + 5);
        _assertChannel(PRICE + 5, 5, 0);
    }

    // ── Disputes ────────────────────────────────────────────────────────────────────────────────────────────────────

    function _resolvedInDispute(uint16 payNodeBps, uint128 paid, uint128 bond) internal {
        Order memory order = _windowedOrder();
        order.arbiter = address(this);
        _open(order);
        _deposit(MAX_PRICE);
        _submit(_result(order));
        _dispute(order);
        bytes32 jobId = escrow.jobIdOf(order);
        uint128 free = 2 * MAX_PRICE - paid - bond;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobResolved(jobId, requester.addr, node.addr, NATIVE, paid, bond, 0, 0, free, paid + bond);
        escrow.resolve(order, payNodeBps, 0);
        assertEq(escrow.earned(node.addr, NATIVE), paid + bond);
        assertEq(_free(requester.addr, NATIVE), free);
        (uint32 bonds, uint32 jobsPaid, uint32 disputed, uint32 lost) = registry.recordOf(node.addr);
        assertEq(bonds, 0);
        assertEq(disputed, 1);
        assertEq(jobsPaid, payNodeBps == 10_000 ? 1 : 0);
        assertEq(lost, payNodeBps == 10_000 ? 0 : 1);
    }

    function test_ABaselessDisputeCostsItsBond() external {
        _resolvedInDispute(10_000, PRICE, MAX_PRICE / 20);
    }

    function test_ADisputeWithTheLeastGroundDoesNot() external {
        _resolvedInDispute(9999, PRICE * 9999 / 10_000, 0);
    }

    // ── A voucher that covers a waiting order ───────────────────────────────────────────────────────────────────────

    function test_WhatIsGivenBackJoinsTheReservation() external {
        _deposit(10);
        _reserve(10);
        Order memory order = _signedWindowed(1, 4);
        _submit(_signedResult(order, 4));
        _redeem(2, 1);
        _assertChannel(2, 1, 4);
        skip(WINDOW);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ChannelUpdated(escrow.jobIdOf(order), requester.addr, node.addr, NATIVE, 0, 0, 8, 2);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ReservationChanged(requester.addr, node.addr, NATIVE, 8, 0, 0, 0);
        _finalize(order);
        _assertChannel(2, 1, 8);
    }

    /// @dev A reservation has 96 bits.
    function test_WhatTheReservationHasNoRoomForIsFree() external {
        vm.deal(requester.addr, type(uint128).max);
        _deposit(4);
        Order memory order = _signedWindowed(1, 4);
        _submit(_signedResult(order, 4));
        uint256 most = type(uint96).max;
        _deposit(most);
        _reserve(most);
        _redeem(1, 1);
        _assertChannel(1, 1, most - 1);
        _finalizeAfterTheWindow(order);
        _assertChannel(1, 1, most);
        assertEq(_free(requester.addr, NATIVE), 3);
    }

    // ── Fees ────────────────────────────────────────────────────────────────────────────────────────────────────────

    function _priced(uint64 nonce, uint128 price) internal view returns (Order memory order) {
        order = _signedOrder(nonce, price);
        order.maxFeeBps = 100;
    }

    function _setFeeBps(uint16 feeBps) internal {
        vm.prank(owner);
        escrow.setFeeBps(feeBps);
    }

    function test_TheSmallestFeeIsTakenAndToldWithTheSum() external {
        _deposit(1000);
        _setFeeBps(100);
        for (uint64 i = 1; i <= 2; ++i) {
            Order memory order = _priced(i, 100);
            bytes32 jobId = escrow.jobIdOf(order);
            vm.expectEmit(address(escrow));
            emit IJobEscrow.FeeTaken(jobId, NATIVE, 1, i);
            _submit(_signedResult(order, 100));
        }
        assertEq(escrow.fees(NATIVE), 2);
        assertEq(escrow.earned(node.addr, NATIVE), 198);
    }

    function test_AFeeOfNothingIsNotTold() external {
        _deposit(1000);
        _setFeeBps(100);
        vm.recordLogs();
        _submit(_signedResult(_priced(1, 99), 99));
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; ++i) {
            assertNotEq(logs[i].topics[0], IJobEscrow.FeeTaken.selector);
        }
        assertEq(escrow.earned(node.addr, NATIVE), 99);
    }
}
