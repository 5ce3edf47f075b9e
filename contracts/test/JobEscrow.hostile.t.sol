// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IJobEscrow, JobState, Order, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";
import {
    FalseToken,
    FeeToken,
    LyingToken,
    NoReturnToken,
    ReentrantReceiver,
    ReentrantToken,
    ReturnBombToken,
    RevertingToken
} from "./mocks/HostileTokens.sol";
import {TestToken} from "./mocks/TestToken.sol";

/// @notice Tokens and receivers that do not play by the rules.
contract HostileTokensTest is Base {
    function _fund(TestToken hostile, uint256 amount) internal {
        hostile.mint(requester.addr, amount);
        vm.startPrank(requester.addr);
        hostile.approve(address(escrow), amount);
        escrow.deposit(address(hostile), amount);
        vm.stopPrank();
    }

    function _openIn(address hostile) internal returns (Order memory order) {
        order = _order();
        order.token = hostile;
        vm.prank(requester.addr);
        escrow.openJob(order, _spec());
    }

    /// @dev A token that misbehaves only in form takes the whole way: deposit, job, payment, both withdrawals.
    function _takeTheWholeWay(TestToken hostile) internal {
        _fund(hostile, MAX_PRICE);
        Order memory order = _openIn(address(hostile));
        _submit(_result(order));
        vm.prank(node.addr);
        escrow.withdrawEarned(address(hostile), node.addr);
        assertEq(hostile.balanceOf(node.addr), PRICE);
        vm.startPrank(requester.addr);
        escrow.thaw(address(hostile), MAX_PRICE - PRICE);
        skip(THAW_PERIOD);
        escrow.withdraw(address(hostile), requester.addr);
        assertEq(hostile.balanceOf(requester.addr), MAX_PRICE - PRICE);
        assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    function test_ATokenThatReturnsNothingWorks() external {
        _takeTheWholeWay(new NoReturnToken());
    }

    function test_ATokenThatReturnsFarTooMuchWorks() external {
        _takeTheWholeWay(new ReturnBombToken());
    }

    // ── Fee on transfer ─────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_OnlyWhatArrivesIsCredited(uint128 amount) external {
        amount = uint128(bound(amount, 100, type(uint128).max));
        FeeToken hostile = new FeeToken();
        _fund(hostile, amount);
        _assertAccount(requester.addr, address(hostile), amount - amount / 100, 0, 0);
        assertEq(hostile.balanceOf(address(escrow)), amount - amount / 100);
    }

    // ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_RevertWhen_ADepositReturnsFalse() external {
        FalseToken hostile = new FalseToken();
        hostile.refuse();
        vm.expectRevert();
        vm.prank(requester.addr);
        escrow.deposit(address(hostile), 1);
    }

    function test_RevertWhen_AWithdrawalReturnsFalse() external {
        FalseToken hostile = new FalseToken();
        _fund(hostile, MAX_PRICE);
        _submit(_result(_openIn(address(hostile))));
        hostile.refuse();
        vm.expectRevert();
        vm.prank(node.addr);
        escrow.withdrawEarned(address(hostile), node.addr);
        assertEq(escrow.earned(node.addr, address(hostile)), PRICE);
    }

    /// @dev Nothing but its own withdrawals depends on a token's behaviour.
    function test_ATokenThatRevertsHoldsUpNoSettlement() external {
        RevertingToken hostile = new RevertingToken();
        _fund(hostile, 2 * MAX_PRICE);
        Order memory order = _openIn(address(hostile));
        Order memory expired = _order();
        expired.token = address(hostile);
        expired.nonce = 1;
        vm.prank(requester.addr);
        escrow.openJob(expired, _spec());
        hostile.refuse();
        _submit(_result(order));
        assertEq(escrow.earned(node.addr, address(hostile)), PRICE);
        vm.warp(expired.deadline + 1);
        _refund(expired);
        assertEq(_free(requester.addr, address(hostile)), 2 * MAX_PRICE - PRICE);
        vm.expectRevert(RevertingToken.Refused.selector);
        vm.prank(node.addr);
        escrow.withdrawEarned(address(hostile), node.addr);
    }

    // ── Lies ────────────────────────────────────────────────────────────────────────────────────────────────────────

    function _pretend(LyingToken hostile, uint256 amount) internal {
        hostile.pretend(amount);
        vm.prank(requester.addr);
        escrow.deposit(address(hostile), amount);
    }

    function testFuzz_RevertWhen_MoreThanTheLedgerHoldsSeemsToArrive(uint256 amount) external {
        LyingToken hostile = new LyingToken();
        hostile.pretend(bound(amount, uint256(type(uint128).max) + 1, type(uint256).max));
        vm.expectRevert();
        vm.prank(requester.addr);
        escrow.deposit(address(hostile), 1);
        _assertAccount(requester.addr, address(hostile), 0, 0, 0);
    }

    function test_RevertWhen_ATopUpWouldOverflow() external {
        LyingToken hostile = new LyingToken();
        _pretend(hostile, type(uint128).max);
        hostile.pretend(1);
        vm.expectRevert();
        vm.prank(requester.addr);
        escrow.deposit(address(hostile), 1);
    }

    /// @dev With a supply beyond uint128 a lock can come home to a full balance. It must not hold up the batch.
    function test_ABalanceThatIsFullHoldsUpNoBatch() external {
        LyingToken hostile = new LyingToken();
        _pretend(hostile, type(uint128).max);
        Order memory full = _openIn(address(hostile));
        _pretend(hostile, MAX_PRICE);
        assertEq(_free(requester.addr, address(hostile)), type(uint128).max);

        Order memory good = _order();
        good.nonce = 7;
        _open(good);
        vm.warp(full.deadline + 1);
        Order[] memory orders = new Order[](2);
        (orders[0], orders[1]) = (full, good);
        escrow.refundExpired(orders);
        assertEq(_free(requester.addr, address(hostile)), type(uint128).max);
        assertEq(_free(requester.addr, NATIVE), MAX_PRICE);
    }

    // ── Reentrancy ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Without the guard both calls would measure the inner transfer, and it would be credited twice.
    function test_ADepositInsideADepositIsRefused() external {
        ReentrantToken hostile = new ReentrantToken();
        hostile.mint(address(hostile), 5);
        vm.prank(address(hostile));
        hostile.approve(address(escrow), 5);
        hostile.mint(requester.addr, 5);
        hostile.arm(address(escrow), abi.encodeCall(IJobEscrow.deposit, (address(hostile), 5)));
        vm.startPrank(requester.addr);
        hostile.approve(address(escrow), 5);
        escrow.deposit(address(hostile), 5);
        assertFalse(hostile.succeeded());
        assertEq(bytes4(hostile.returned()), ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        _assertAccount(requester.addr, address(hostile), 5, 0, 0);
        _assertAccount(address(hostile), address(hostile), 0, 0, 0);
    }

    function test_AWithdrawalInsideAWithdrawalIsRefused() external {
        ReentrantReceiver receiver = new ReentrantReceiver();
        receiver.execute{value: 5}(address(escrow), 5, abi.encodeCall(IJobEscrow.deposit, (NATIVE, 5)));
        receiver.execute(address(escrow), 0, abi.encodeCall(IJobEscrow.thaw, (NATIVE, 5)));
        _open(_order());
        skip(THAW_PERIOD);
        bytes memory withdrawal = abi.encodeCall(IJobEscrow.withdraw, (NATIVE, address(receiver)));
        receiver.arm(address(escrow), withdrawal);
        receiver.execute(address(escrow), 0, withdrawal);
        assertFalse(receiver.succeeded());
        assertEq(bytes4(receiver.returned()), ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        assertEq(address(receiver).balance, 5);
        assertEq(address(escrow).balance, MAX_PRICE);
    }

    /// @dev Calls that move no tokens may come from within a transfer: they see a ledger that is already settled.
    function test_SettlingInsideATransferChangesNothingElse() external {
        ReentrantToken hostile = new ReentrantToken();
        _fund(hostile, MAX_PRICE);
        Order memory order = _openIn(address(hostile));
        _submit(_result(order));
        bytes memory again = abi.encodeCall(IJobEscrow.submitResults, (_batch(_result(order))));
        hostile.arm(address(escrow), again);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Skipped(escrow.jobIdOf(order), SkipReason.NotOpen);
        vm.prank(node.addr);
        escrow.withdrawEarned(address(hostile), node.addr);
        assertTrue(hostile.succeeded());
        assertEq(escrow.earned(node.addr, address(hostile)), 0);
        assertEq(hostile.balanceOf(node.addr), PRICE);
        _assertJob(escrow.jobIdOf(order), JobState.Paid, 0, 0, address(0));
    }
}
