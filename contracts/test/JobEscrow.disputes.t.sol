// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";

import {IJobEscrow, JobState, Order, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Base} from "./Base.sol";

contract DisputesTest is Base {
    uint128 internal constant DISPUTE_BOND = MAX_PRICE / 20;
    address internal arbiter = makeAddr("arbiter");

    function setUp() public override {
        super.setUp();
        _deposit(MAX_PRICE);
    }

    /// @dev With an arbiter and a result that waits: opened where the nonce is zero, else signed.
    function _waiting(uint64 nonce) internal returns (Order memory order) {
        order = _windowedOrder();
        order.arbiter = arbiter;
        order.nonce = nonce;
        if (nonce == 0) {
            _open(order);
            _submit(_result(order));
        } else {
            _submit(_signedResult(order, PRICE));
        }
    }

    function _dispute(Order memory order) internal {
        vm.prank(requester.addr);
        escrow.dispute(order);
    }

    function _disputed(uint64 nonce) internal returns (Order memory order) {
        order = _waiting(nonce);
        _dispute(order);
    }

    function _resolve(Order memory order, uint16 payNodeBps, uint16 slashBps) internal {
        vm.prank(arbiter);
        escrow.resolve(order, payNodeBps, slashBps);
    }

    function _assertRecord(uint32 bonds, uint32 paid, uint32 disputed, uint32 lost) internal view {
        (uint32 actualBonds, uint32 actualPaid, uint32 actualDisputed, uint32 actualLost) = registry.recordOf(node.addr);
        assertEq(actualBonds, bonds, "bonds");
        assertEq(actualPaid, paid, "paid");
        assertEq(actualDisputed, disputed, "disputed");
        assertEq(actualLost, lost, "lost");
    }

    /// @dev All that was deposited and opened with is somewhere, and the escrow holds it.
    function _assertConserved(uint256 whole) internal view {
        (uint128 free, uint128 thawing,) = escrow.account(requester.addr, NATIVE);
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, NATIVE);
        assertEq(uint256(free) + thawing + reserved + escrow.earned(node.addr, NATIVE) + escrow.fees(NATIVE), whole);
        assertEq(address(escrow).balance, whole);
    }

    // ── Bonds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_AResultLocksABondAndItsPaymentReleasesIt() external {
        Order memory order = _windowedOrder();
        order.arbiter = arbiter;
        _open(order);
        vm.expectEmit(address(registry));
        emit INodeRegistry.BondLocked(node.addr, 1);
        _submit(_result(order));
        _assertRecord(1, 0, 0, 0);
        skip(WINDOW);
        vm.expectEmit(address(registry));
        emit INodeRegistry.BondReleased(node.addr, 0, 1, 0, 0);
        _finalize(order);
        _assertRecord(0, 1, 0, 0);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_WithoutAnArbiterNoBondIsLocked() external {
        Order memory order = _windowedOrder();
        _open(order);
        _submit(_result(order));
        _assertRecord(0, 0, 0, 0);
        vm.expectRevert(IJobEscrow.NoArbiter.selector);
        _dispute(order);
    }

    function test_SkipsWhen_TheStakeCoversNoMoreBonds() external {
        for (uint64 i = 1; i <= MIN_STAKE / BOND; ++i) {
            Order memory open = _signedOrder(i, 1);
            (open.challengeWindow, open.arbiter) = (WINDOW, arbiter);
            _submit(_signedResult(open, 1));
        }
        _assertRecord(10, 0, 0, 0);
        Order memory order = _windowedOrder();
        order.arbiter = arbiter;
        _open(order);
        _submitSkipped(_result(order), SkipReason.NotStaked);
    }

    function test_SkipsWhen_ANodeWithAnArbiterIsNotStaked() external {
        vm.prank(node.addr);
        registry.startUnbond(1);
        Order memory order = _windowedOrder();
        order.arbiter = arbiter;
        _open(order);
        _submitSkipped(_result(order), SkipReason.NotStaked);
    }

    function test_StakeCannotLeaveWhileABondIsLocked() external {
        Order memory order = _waiting(0);
        vm.startPrank(node.addr);
        registry.startUnbond(MIN_STAKE);
        skip(UNBONDING_PERIOD);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BondsLocked.selector, 1));
        registry.finishUnbond();
        vm.stopPrank();
        _finalize(order);
        vm.prank(node.addr);
        assertEq(registry.finishUnbond(), MIN_STAKE);
    }

    function test_WhatIsLeftMayCoverTheBond() external {
        _waiting(0);
        vm.startPrank(node.addr);
        registry.startUnbond(MIN_STAKE - BOND);
        skip(UNBONDING_PERIOD);
        assertEq(registry.finishUnbond(), MIN_STAKE - BOND);
    }

    // ── Accept ──────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_AcceptingPaysAtOnce() external {
        Order memory order = _waiting(0);
        vm.prank(requester.addr);
        escrow.accept(order);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        _assertRecord(0, 1, 0, 0);
        _assertConserved(2 * MAX_PRICE);
    }

    function test_AcceptingEndsADispute() external {
        Order memory order = _disputed(1);
        vm.prank(requester.addr);
        escrow.accept(order);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        _assertChannel(PRICE, 0, 0);
        _assertRecord(0, 1, 1, 0);
        _assertConserved(MAX_PRICE);
    }

    function test_RevertWhen_AnotherAcceptsOrNothingWaits() external {
        Order memory order = _waiting(0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotRequester.selector, requester.addr, node.addr));
        vm.prank(node.addr);
        escrow.accept(order);
        vm.startPrank(requester.addr);
        escrow.accept(order);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongState.selector, JobState.Paid));
        escrow.accept(order);
    }

    // ── Dispute ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_ADisputeLocksItsBondAndStartsTheArbitersTime() external {
        Order memory order = _waiting(0);
        skip(WINDOW - 1);
        uint64 decideBy = uint64(block.timestamp) + ARBITER_PERIOD;
        uint256 free = 2 * MAX_PRICE - PRICE - DISPUTE_BOND;
        bytes32 jobId = escrow.jobIdOf(order);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobDisputed(jobId, requester.addr, node.addr, NATIVE, DISPUTE_BOND, decideBy, free, 0);
        _dispute(order);
        _assertJob(jobId, JobState.Disputed, PRICE + DISPUTE_BOND, decideBy, node.addr);
        _assertAccount(requester.addr, NATIVE, free, 0, 0);
    }

    function test_TheBondComesFromThawingFundsToo() external {
        Order memory order = _waiting(1);
        vm.prank(requester.addr);
        escrow.thaw(NATIVE, MAX_PRICE - PRICE);
        _dispute(order);
        _assertAccount(requester.addr, NATIVE, 0, MAX_PRICE - PRICE - DISPUTE_BOND, block.timestamp + THAW_PERIOD);
    }

    function test_RevertWhen_TheRequesterCannotPayTheBond() external {
        Order memory order = _waiting(1);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, MAX_PRICE - PRICE);
        vm.expectRevert(
            abi.encodeWithSelector(IJobEscrow.Insufficient.selector, requester.addr, NATIVE, 0, DISPUTE_BOND)
        );
        escrow.dispute(order);
    }

    function test_RevertWhen_AnotherDisputes() external {
        Order memory order = _waiting(0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotRequester.selector, requester.addr, arbiter));
        vm.prank(arbiter);
        escrow.dispute(order);
    }

    function test_RevertWhen_TheWindowIsOverOrADisputeIsOn() external {
        Order memory order = _waiting(0);
        Order memory other = _disputed(1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongState.selector, JobState.Disputed));
        _dispute(other);
        skip(WINDOW);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.TooLate.selector, block.timestamp));
        _dispute(order);
    }

    // ── Resolve ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_TheArbiterDividesAndSlashes(uint16 payNodeBps, uint16 slashBps, bool signed) external {
        payNodeBps = uint16(bound(payNodeBps, 0, 10_000));
        slashBps = uint16(bound(slashBps, 0, 10_000));
        Order memory order = _disputed(signed ? 1 : 0);
        bytes32 jobId = escrow.jobIdOf(order);
        uint256 whole = address(escrow).balance;
        _resolve(order, payNodeBps, slashBps);
        uint256 paid = uint256(PRICE) * payNodeBps / 10_000;
        uint256 slashed = uint256(BOND) * slashBps / 10_000;
        bool lost = payNodeBps != 10_000;
        _assertJob(jobId, JobState.Resolved, 0, 0, address(0));
        assertEq(escrow.earned(node.addr, NATIVE), lost ? paid : paid + DISPUTE_BOND);
        _assertRecord(0, lost ? 0 : 1, 1, lost ? 1 : 0);
        _assertChannel(signed ? paid : 0, 0, 0);
        (uint128 active,,) = registry.stakeOf(node.addr);
        assertEq(active, MIN_STAKE - slashed);
        assertEq(address(registry).balance, MIN_STAKE - slashed);
        _assertConserved(whole + slashed);
    }

    function test_WhatExceedsThePriceIsBurnt() external {
        Order memory order = _windowedOrder();
        (order.arbiter, order.nonce) = (arbiter, 1);
        _submit(_signedResult(order, 0.03 ether));
        _dispute(order);
        vm.expectEmit(address(registry));
        emit INodeRegistry.Slashed(node.addr, BOND, 0.03 ether, MIN_STAKE - BOND, 0);
        bytes32 jobId = escrow.jobIdOf(order);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobResolved(
            jobId, requester.addr, node.addr, NATIVE, 0, 0, BOND, 0.03 ether, MAX_PRICE + 0.03 ether, 0
        );
        uint256 burnt = address(0).balance;
        _resolve(order, 0, 10_000);
        assertEq(address(0).balance - burnt, BOND - 0.03 ether);
        _assertConserved(MAX_PRICE + 0.03 ether);
    }

    /// @dev Stake is in the native coin, and no price in another compares.
    function test_AllIsBurntWhereTheOrderIsInAToken() external {
        Order memory order = _windowedOrder();
        (order.arbiter, order.token) = (arbiter, address(token));
        _open(order);
        _submit(_result(order));
        _dispute(order);
        uint256 burnt = address(0).balance;
        _resolve(order, 0, 10_000);
        assertEq(address(0).balance - burnt, BOND);
        _assertAccount(requester.addr, address(token), MAX_PRICE, 0, 0);
        assertEq(address(escrow).balance, MAX_PRICE);
    }

    function test_UnbondingStakeIsSlashed() external {
        Order memory order = _disputed(0);
        vm.prank(node.addr);
        registry.startUnbond(MIN_STAKE - BOND / 4);
        _resolve(order, 0, 10_000);
        (uint128 active, uint128 unbonding,) = registry.stakeOf(node.addr);
        assertEq(active, 0);
        assertEq(unbonding, MIN_STAKE - BOND);
    }

    function test_TheFeeIsTakenOfWhatTheNodeIsPaid() external {
        vm.prank(owner);
        escrow.setFeeBps(100);
        Order memory order = _windowedOrder();
        (order.arbiter, order.maxFeeBps) = (arbiter, 500);
        _open(order);
        _submit(_result(order));
        _dispute(order);
        _resolve(order, 5000, 0);
        assertEq(escrow.fees(NATIVE), PRICE / 200);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE / 2 - PRICE / 200);
        _assertConserved(2 * MAX_PRICE);
    }

    function test_ASilentArbiterLeavesTheNodePaidAndBothBondsReturned() external {
        Order memory order = _disputed(0);
        skip(ARBITER_PERIOD - 1);
        _finalizeSkipped(order, SkipReason.WindowOpen);
        skip(1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.TooLate.selector, block.timestamp));
        _resolve(order, 0, 10_000);
        _finalize(order);
        _assertJob(escrow.jobIdOf(order), JobState.Paid, 0, 0, address(0));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        assertEq(_free(requester.addr, NATIVE), 2 * MAX_PRICE - PRICE);
        _assertRecord(0, 1, 1, 0);
    }

    /// @dev A voucher that covers the job in dispute pays for it, and there is nothing left to decide.
    function test_AVoucherEndsADispute() external {
        Order memory order = _disputed(1);
        bytes32 jobId = escrow.jobIdOf(order);
        _redeem(PRICE, 1);
        _resolve(order, 10_000, 10_000);
        _assertJob(jobId, JobState.Refunded, 0, 0, address(0));
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
        _assertRecord(0, 1, 1, 0);
        _assertChannel(PRICE, 1, PRICE);
        _assertConserved(MAX_PRICE);
    }

    /// @dev What a lost job was paid is all that counts on top of a voucher that does not cover it.
    function test_ALostJobCountsByWhatWasPaid() external {
        Order memory order = _disputed(7);
        _resolve(order, 2500, 0);
        Order[] memory above = new Order[](1);
        above[0] = order;
        _redeemAbove(1 ether, 5, above);
        _assertChannel(PRICE / 4 + 1 ether, 5, 0);
        _submitSkipped(_signedResult(order, PRICE), SkipReason.NotOpen);
    }

    function test_RevertWhen_AnotherResolvesOrNothingIsInDispute() external {
        Order memory order = _waiting(0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotArbiter.selector, arbiter, requester.addr));
        vm.prank(requester.addr);
        escrow.resolve(order, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongState.selector, JobState.Submitted));
        _resolve(order, 0, 0);
        _dispute(order);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.ShareTooHigh.selector, 10_001));
        _resolve(order, 10_001, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.ShareTooHigh.selector, 10_001));
        _resolve(order, 0, 10_001);
        _resolve(order, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongState.selector, JobState.Resolved));
        _resolve(order, 0, 0);
        _finalizeSkipped(order, SkipReason.NotSubmitted);
        _refundSkipped(order, SkipReason.NotOpen);
    }

    function test_RevertWhen_TheOwnerOrAStrangerTouchesBonds() external {
        bytes memory refused = abi.encodeWithSelector(INodeRegistry.NotEscrow.selector, owner);
        vm.startPrank(owner);
        vm.expectRevert(refused);
        registry.lockBond(node.addr);
        vm.expectRevert(refused);
        registry.releaseBond(node.addr, true, true, 1, 1);
    }

    /// @dev Only a fault of the escrow could ask for more than the stake: what there is is taken.
    function test_SlashingClamps() external {
        vm.startPrank(address(escrow));
        assertEq(registry.lockBond(node.addr), 1);
        (uint256 slashed, uint256 compensated) = registry.releaseBond(node.addr, true, true, 100 ether, 100 ether);
        assertEq(slashed, MIN_STAKE);
        assertEq(compensated, MIN_STAKE);
        assertEq(address(registry).balance, 0);
    }

    // ── Construction ────────────────────────────────────────────────────────────────────────────────────────────────

    function test_RevertWhen_TheRegistryNamesAnotherEscrow() external {
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongRegistry.selector, address(registry)));
        _deployEscrow(address(registry));
    }

    function test_RevertWhen_UnbondingIsNoLongerThanWindowAndArbiter() external {
        address next = vm.computeCreateAddress(address(this), vm.getNonce(address(this)) + 1);
        uint64 longest = MAX_WINDOW + ARBITER_PERIOD;
        address short = _deploy("NodeRegistry", abi.encode(MIN_STAKE, longest, BOND, next, owner));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.UnbondingTooShort.selector, longest, longest + 1));
        _deployEscrow(short);
    }
}

contract RegistryOwnerTest is Base {
    function test_AHigherMinimumTakesEffectAfterTheUnbondingPeriod() external {
        uint64 since = uint64(block.timestamp) + UNBONDING_PERIOD;
        vm.expectEmit(address(registry));
        emit INodeRegistry.MinStakeSet(MIN_STAKE + 1, since);
        vm.prank(owner);
        registry.setMinStake(MIN_STAKE + 1);
        skip(UNBONDING_PERIOD - 1);
        assertEq(registry.minStake(), MIN_STAKE);
        assertTrue(registry.isStaked(node.addr));
        skip(1);
        assertEq(registry.minStake(), MIN_STAKE + 1);
        assertFalse(registry.isStaked(node.addr));
        vm.prank(owner);
        registry.setMinStake(MIN_STAKE);
        assertTrue(registry.isStaked(node.addr));
    }

    function test_APauseStopsRegistrationsOnly() external {
        vm.expectEmit(address(registry));
        emit INodeRegistry.PausedSet(true);
        vm.prank(owner);
        registry.setPaused(true);
        vm.expectRevert(INodeRegistry.Paused.selector);
        vm.prank(otherNode.addr);
        registry.register(keccak256("id"), new bytes(32), otherNode.addr, 4, _operations(), "");
        vm.startPrank(node.addr);
        registry.update(new bytes(32), node.addr, 4, _operations(), "");
        registry.startUnbond(MIN_STAKE);
        skip(UNBONDING_PERIOD);
        assertEq(registry.finishUnbond(), MIN_STAKE);
    }

    function test_RevertWhen_AStrangerActsAsTheOwner() external {
        bytes memory refused = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, node.addr);
        vm.startPrank(node.addr);
        vm.expectRevert(refused);
        registry.setMinStake(0);
        vm.expectRevert(refused);
        registry.setPaused(true);
    }

    function test_RevertWhen_MadeWithoutAnEscrow() external {
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        _deploy("NodeRegistry", abi.encode(MIN_STAKE, UNBONDING_PERIOD, BOND, address(0), owner));
    }
}
