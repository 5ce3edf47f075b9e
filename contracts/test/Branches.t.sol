// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {stdError} from "forge-std/StdError.sol";

import {IJobEscrow, JobState, Order, SignedVoucher, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Base} from "./Base.sol";
import {SiphoningToken} from "./mocks/HostileBalances.sol";

/// @notice The leaves of `trees/` that no other test is about.
contract BranchesTest is Base {
    address internal arbiter = makeAddr("arbiter");

    function _pause() internal {
        vm.prank(owner);
        escrow.setPaused(true);
    }

    // ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_RevertWhen_NothingArrives() external {
        SiphoningToken hostile = new SiphoningToken();
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.deposit(address(hostile), 0);
    }

    function test_RevertWhen_LessRemainsThanBefore() external {
        SiphoningToken hostile = new SiphoningToken();
        vm.expectRevert(stdError.arithmeticError);
        escrow.deposit(address(hostile), 1);
    }

    function test_RevertWhen_DepositingForAnotherWhilePaused() external {
        _pause();
        vm.expectRevert(IJobEscrow.Paused.selector);
        escrow.depositFor(requester.addr, address(token), 1);
    }

    function test_RevertWhen_DepositingWithAPermitWhilePaused() external {
        _pause();
        vm.expectRevert(IJobEscrow.Paused.selector);
        escrow.depositWithPermit(address(token), 1, 0, 0, 0, 0);
    }

    // ── Channels ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev And not even thawing funds.
    function test_SkipsWhen_TheRequesterHasNothing() external {
        _redeemSkipped(requester, 1, 1, SkipReason.InsufficientFunds);
        _assertChannel(0, 0, 0);
    }

    function test_SkipsWhen_ASignedVoucherIsAnothers() external {
        _deposit(10);
        SignedVoucher[] memory vouchers = _signedVoucher(4, 4, new Order[](0));
        vouchers[0].signature = _sign(node, _voucherDigest(requester.addr, node.addr, NATIVE, 4, 4));
        _redeemSignedSkipped(vouchers, SkipReason.BadVoucherSignature);
        vouchers[0].signature = "";
        _redeemSignedSkipped(vouchers, SkipReason.BadVoucherSignature);
    }

    function test_SkipsWhen_ASignedVoucherExceedsTheCap() external {
        _deposit(10);
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, 3, uint64(block.timestamp));
        SignedVoucher[] memory vouchers = _signedVoucher(4, 4, new Order[](0));
        vouchers[0].signature = _sign(otherNode, _voucherDigest(requester.addr, node.addr, NATIVE, 4, 4));
        _redeemSignedSkipped(vouchers, SkipReason.SessionCapExceeded);
        skip(1);
        _redeemSignedSkipped(vouchers, SkipReason.BadVoucherSignature);
    }

    function _redeemSignedSkipped(SignedVoucher[] memory vouchers, SkipReason reason) internal {
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(requester.addr, node.addr, NATIVE, vouchers[0].cumulative, reason);
        vm.record();
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        _assertNothingWritten();
    }

    /// @dev Whoever shows them in the wrong order gets less, and can show them again.
    function test_OrdersShownOutOfOrderCountOnlyWhileTheyAscend() external {
        _deposit(100);
        Order[] memory orders = new Order[](2);
        (orders[0], orders[1]) = (_settleAlone(7, 1), _settleAlone(8, 2));
        if (escrow.jobIdOf(orders[0]) < escrow.jobIdOf(orders[1])) (orders[0], orders[1]) = (orders[1], orders[0]);
        uint256 first = orders[0].maxPrice;
        _redeemAbove(5, 5, orders);
        assertEq(escrow.earned(node.addr, NATIVE), 5 + first);
        (orders[0], orders[1]) = (orders[1], orders[0]);
        _redeemAbove(5, 5, orders);
        assertEq(escrow.earned(node.addr, NATIVE), 8);
    }

    function test_ASecondNoticeReplacesTheFirst() external {
        _deposit(10);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 10);
        escrow.thawReservation(node.addr, NATIVE, 8);
        skip(THAW_PERIOD - 1);
        escrow.thawReservation(node.addr, NATIVE, 3);
        (uint256 reserved, uint256 thawing, uint64 thawEnd) = escrow.reservation(requester.addr, node.addr, NATIVE);
        assertEq(reserved, 10);
        assertEq(thawing, 3);
        assertEq(thawEnd, block.timestamp + THAW_PERIOD);
        skip(THAW_PERIOD - 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.StillThawing.selector, thawEnd));
        escrow.releaseReservation(node.addr, NATIVE);
        skip(1);
        assertEq(escrow.releaseReservation(node.addr, NATIVE), 3);
    }

    function test_RevertWhen_NothingIsReleased() external {
        _deposit(10);
        vm.startPrank(requester.addr);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.releaseReservation(node.addr, NATIVE);
        escrow.reserve(node.addr, NATIVE, 10);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.releaseReservation(node.addr, NATIVE);
        escrow.thawReservation(node.addr, NATIVE, 10);
        vm.stopPrank();
        _redeem(10, 1);
        (uint256 reserved, uint256 thawing, uint64 thawEnd) = escrow.reservation(requester.addr, node.addr, NATIVE);
        assertEq(reserved + thawing + thawEnd, 0, "nothing is left to thaw");
        skip(THAW_PERIOD);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        vm.prank(requester.addr);
        escrow.releaseReservation(node.addr, NATIVE);
    }

    // ── Jobs and disputes ───────────────────────────────────────────────────────────────────────────────────────────

    function _arbitrated() internal returns (Order memory order, bytes32 jobId) {
        order = _windowedOrder();
        order.arbiter = arbiter;
        jobId = _open(order);
        _deposit(MAX_PRICE);
    }

    function _dispute(Order memory order) internal {
        vm.prank(requester.addr);
        escrow.dispute(order);
    }

    function test_AJobTellsWhatIsLockedInEveryState() external {
        (Order memory order, bytes32 jobId) = _arbitrated();
        _assertJob(jobId, JobState.Open, MAX_PRICE, 0, address(0));
        _submit(_result(order));
        _assertJob(jobId, JobState.Submitted, PRICE, block.timestamp + WINDOW, node.addr);
        _dispute(order);
        uint256 bond = MAX_PRICE * 500 / 10_000;
        _assertJob(jobId, JobState.Disputed, PRICE + bond, block.timestamp + ARBITER_PERIOD, node.addr);
        vm.prank(arbiter);
        escrow.resolve(order, 10_000, 0);
        _assertJob(jobId, JobState.Resolved, 0, 0, address(0));
        Order memory signed = _signedOrder(9, PRICE);
        _assertJob(escrow.jobIdOf(signed), JobState.None, 0, 0, address(0));
        _submit(_signedResult(signed, PRICE));
        _assertJob(escrow.jobIdOf(signed), JobState.Paid, 0, 0, address(0));
    }

    function test_RevertWhen_DisputingWithoutAnArbiter() external {
        Order memory order = _windowedOrder();
        _open(order);
        _submit(_result(order));
        vm.expectRevert(IJobEscrow.NoArbiter.selector);
        _dispute(order);
    }

    function test_RevertWhen_ResolvingTooLate() external {
        (Order memory order,) = _arbitrated();
        _submit(_result(order));
        _dispute(order);
        skip(ARBITER_PERIOD);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.TooLate.selector, block.timestamp));
        vm.prank(arbiter);
        escrow.resolve(order, 0, 0);
    }

    // ── The registry ────────────────────────────────────────────────────────────────────────────────────────────────

    function test_TheRegistryKeepsItsParameters() external view {
        assertEq(registry.minStake(), MIN_STAKE);
        assertEq(registry.unbondingPeriod(), UNBONDING_PERIOD);
        assertEq(registry.bond(), BOND);
        assertEq(registry.escrow(), address(escrow));
        assertFalse(registry.paused());
        assertEq(registry.nodeAt(1), node.addr);
        assertEq(registry.nodeAt(2), address(0));
        assertEq(registry.stakedNumberOf(node.addr), 1);
    }

    function test_RevertWhen_TheMinimumStakeDoesNotFit() external {
        uint128 tooMuch = uint128(type(uint96).max) + 1;
        bytes memory refused = abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 96, tooMuch);
        vm.expectRevert(refused);
        vm.prank(owner);
        registry.setMinStake(tooMuch);
        vm.expectRevert(refused);
        _deploy("NodeRegistry", abi.encode(tooMuch, UNBONDING_PERIOD, BOND, address(escrow), owner));
    }

    /// @dev Nobody touches another's timers.
    function test_StakingTouchesNoTimer() external {
        vm.prank(node.addr);
        registry.startUnbond(1);
        (,, uint64 unbondEnd) = registry.stakeOf(node.addr);
        skip(1 days);
        vm.deal(settler, 5);
        vm.prank(settler);
        registry.stake{value: 5}(node.addr);
        (uint128 active, uint128 unbonding, uint64 end) = registry.stakeOf(node.addr);
        assertEq(active, MIN_STAKE + 4);
        assertEq(unbonding, 1);
        assertEq(end, unbondEnd);
    }

    function test_RevertWhen_AStrangerFinishesUnbonding() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, settler));
        vm.prank(settler);
        registry.finishUnbond();
    }

    function test_RevertWhen_NoBondIsLocked() external {
        vm.expectRevert(stdError.arithmeticError);
        vm.prank(address(escrow));
        registry.releaseBond(node.addr, false, false, 0, 0);
    }
}
