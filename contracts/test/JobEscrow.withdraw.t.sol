// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, Order} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";
import {RejectingReceiver} from "./mocks/HostileTokens.sol";

contract ThawTest is Base {
    function setUp() public override {
        super.setUp();
        vm.prank(requester.addr);
        escrow.deposit{value: 10 ether}(NATIVE, 10 ether);
        _fundToken(requester.addr, 10 ether);
        vm.startPrank(requester.addr);
    }

    // ── Thaw ────────────────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_ThawMovesFreeBalance(uint256 amount) external {
        amount = bound(amount, 1, 10 ether);
        uint64 end = uint64(block.timestamp) + THAW_PERIOD;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Thawing(requester.addr, NATIVE, 10 ether - amount, amount, end);
        escrow.thaw(NATIVE, amount);
        _assertAccount(requester.addr, NATIVE, 10 ether - amount, amount, end);
        _assertAccount(requester.addr, address(token), 10 ether, 0, 0);
    }

    function test_ThawingMoreRestartsTheThaw() external {
        escrow.thaw(NATIVE, 3 ether);
        skip(THAW_PERIOD - 1);
        escrow.thaw(NATIVE, 1 ether);
        uint64 end = uint64(block.timestamp) + THAW_PERIOD;
        _assertAccount(requester.addr, NATIVE, 6 ether, 4 ether, end);
        skip(1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.StillThawing.selector, end));
        escrow.withdraw(NATIVE, requester.addr);
    }

    function test_RevertWhen_ThawingNothing() external {
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.thaw(NATIVE, 0);
    }

    function testFuzz_RevertWhen_ThawingMoreThanIsFree(uint256 amount) external {
        amount = bound(amount, 10 ether + 1, type(uint256).max);
        vm.expectRevert(
            abi.encodeWithSelector(IJobEscrow.Insufficient.selector, requester.addr, NATIVE, 10 ether, amount)
        );
        escrow.thaw(NATIVE, amount);
    }

    function test_RevertWhen_ThawingLockedFunds() external {
        escrow.openJob(_order(), _spec());
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.Insufficient.selector, requester.addr, NATIVE, 0, 1));
        escrow.thaw(NATIVE, 1);
    }

    // ── Withdraw ────────────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_WithdrawSendsAllThatThawed(uint256 amount, uint32 wait) external {
        amount = bound(amount, 1, 10 ether);
        address to = makeAddr("savings");
        escrow.thaw(NATIVE, amount);
        skip(THAW_PERIOD + uint256(wait));
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Withdrawn(requester.addr, NATIVE, to, amount, 10 ether - amount, 0);
        assertEq(escrow.withdraw(NATIVE, to), amount);
        assertEq(to.balance, amount);
        _assertAccount(requester.addr, NATIVE, 10 ether - amount, 0, 0);
        assertEq(address(escrow).balance, 10 ether - amount);
    }

    function test_WithdrawSendsTokens() external {
        address to = makeAddr("savings");
        escrow.thaw(address(token), 4 ether);
        skip(THAW_PERIOD);
        assertEq(escrow.withdraw(address(token), to), 4 ether);
        assertEq(token.balanceOf(to), 4 ether);
        _assertAccount(requester.addr, address(token), 6 ether, 0, 0);
        _assertAccount(requester.addr, NATIVE, 10 ether, 0, 0);
    }

    function test_ASecondThawStartsAfresh() external {
        escrow.thaw(NATIVE, 1 ether);
        skip(THAW_PERIOD);
        escrow.withdraw(NATIVE, requester.addr);
        escrow.thaw(NATIVE, 2 ether);
        uint64 end = uint64(block.timestamp) + THAW_PERIOD;
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.StillThawing.selector, end));
        escrow.withdraw(NATIVE, requester.addr);
        skip(THAW_PERIOD);
        assertEq(escrow.withdraw(NATIVE, requester.addr), 2 ether);
    }

    function testFuzz_RevertWhen_StillThawing(uint256 wait) external {
        escrow.thaw(NATIVE, 1);
        uint64 end = uint64(block.timestamp) + THAW_PERIOD;
        skip(bound(wait, 0, THAW_PERIOD - 1));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.StillThawing.selector, end));
        escrow.withdraw(NATIVE, requester.addr);
    }

    function test_RevertWhen_NothingThawed() external {
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.withdraw(NATIVE, requester.addr);
        escrow.thaw(NATIVE, 1);
        skip(THAW_PERIOD);
        escrow.withdraw(NATIVE, requester.addr);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.withdraw(NATIVE, requester.addr);
    }

    function test_RevertWhen_WithdrawingToNowhere() external {
        escrow.thaw(NATIVE, 1);
        escrow.thaw(address(token), 1);
        skip(THAW_PERIOD);
        vm.expectRevert(IJobEscrow.ZeroAddress.selector);
        escrow.withdraw(NATIVE, address(0));
        vm.expectRevert(IJobEscrow.ZeroAddress.selector);
        escrow.withdraw(address(token), address(0));
    }

    function test_RevertWhen_WithdrawingToTheEscrow() external {
        escrow.thaw(address(token), 1);
        skip(THAW_PERIOD);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.TransferFailed.selector, address(escrow)));
        escrow.withdraw(address(token), address(escrow));
    }

    function test_RevertWhen_TheReceiverRejectsTheCoin() external {
        address receiver = address(new RejectingReceiver());
        escrow.thaw(NATIVE, 1);
        skip(THAW_PERIOD);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.TransferFailed.selector, receiver));
        escrow.withdraw(NATIVE, receiver);
        _assertAccount(requester.addr, NATIVE, 10 ether - 1, 1, block.timestamp);
    }

    function test_NobodyElseCanWithdraw() external {
        escrow.thaw(NATIVE, 1 ether);
        skip(THAW_PERIOD);
        vm.stopPrank();
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        vm.prank(settler);
        escrow.withdraw(NATIVE, settler);
    }
}

contract WithdrawEarnedTest is Base {
    address internal to = makeAddr("savings");

    function _earn(address token_) internal {
        Order memory order = _order();
        order.token = token_;
        _open(order);
        _submit(_result(order));
    }

    function test_SendsAllThatWasEarned() external {
        _earn(NATIVE);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.EarnedWithdrawn(node.addr, NATIVE, to, PRICE, 0);
        vm.prank(node.addr);
        assertEq(escrow.withdrawEarned(NATIVE, to), PRICE);
        assertEq(to.balance, PRICE);
        assertEq(escrow.earned(node.addr, NATIVE), 0);
    }

    function test_SendsTokens() external {
        _earn(NATIVE);
        _earn(address(token));
        vm.prank(node.addr);
        assertEq(escrow.withdrawEarned(address(token), to), PRICE);
        assertEq(token.balanceOf(to), PRICE);
        assertEq(escrow.earned(node.addr, address(token)), 0);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_RevertWhen_NothingWasEarned() external {
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        vm.prank(node.addr);
        escrow.withdrawEarned(NATIVE, to);
    }

    function test_RevertWhen_WithdrawnBefore() external {
        _earn(NATIVE);
        vm.startPrank(node.addr);
        escrow.withdrawEarned(NATIVE, to);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.withdrawEarned(NATIVE, to);
    }

    function test_RevertWhen_SentNowhere() external {
        _earn(NATIVE);
        vm.expectRevert(IJobEscrow.ZeroAddress.selector);
        vm.prank(node.addr);
        escrow.withdrawEarned(NATIVE, address(0));
    }

    function test_RevertWhen_TheReceiverRejectsTheCoin() external {
        _earn(NATIVE);
        address receiver = address(new RejectingReceiver());
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.TransferFailed.selector, receiver));
        vm.prank(node.addr);
        escrow.withdrawEarned(NATIVE, receiver);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    function test_NobodyElseCanWithdraw() external {
        _earn(NATIVE);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        vm.prank(requester.addr);
        escrow.withdrawEarned(NATIVE, requester.addr);
    }
}
