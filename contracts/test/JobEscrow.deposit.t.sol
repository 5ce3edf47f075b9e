// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

contract ConstructorTest is Base {
    function test_KeepsItsParameters() external view {
        assertEq(escrow.registry(), address(registry));
        assertEq(escrow.thawPeriod(), THAW_PERIOD);
        assertEq(registry.minStake(), MIN_STAKE);
        assertEq(registry.unbondingPeriod(), UNBONDING_PERIOD);
    }

    function test_RevertWhen_RegistryIsZero() external {
        vm.expectRevert(IJobEscrow.ZeroAddress.selector);
        _deployEscrow(address(0));
    }
}

contract DepositTest is Base {
    address internal stranger = makeAddr("stranger");

    // ── Native coin ─────────────────────────────────────────────────────────────────────────────────────────────────

    function test_NativeCoinIsCreditedToTheCaller() external {
        vm.startPrank(requester.addr);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Deposited(requester.addr, NATIVE, requester.addr, 3 ether, 3 ether);
        escrow.deposit{value: 3 ether}(NATIVE, 3 ether);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Deposited(requester.addr, NATIVE, requester.addr, 1 ether, 4 ether);
        escrow.deposit{value: 1 ether}(NATIVE, 1 ether);
        _assertAccount(requester.addr, NATIVE, 4 ether, 0, 0);
        assertEq(address(escrow).balance, 4 ether);
    }

    function testFuzz_NativeCoinIsCreditedToAnyAccount(address owner, uint128 amount) external {
        vm.assume(owner != address(0));
        amount = uint128(bound(amount, 1, type(uint128).max));
        vm.deal(stranger, amount);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Deposited(owner, NATIVE, stranger, amount, amount);
        vm.prank(stranger);
        escrow.depositFor{value: amount}(owner, NATIVE, amount);
        _assertAccount(owner, NATIVE, amount, 0, 0);
        if (owner != stranger) _assertAccount(stranger, NATIVE, 0, 0, 0);
    }

    function testFuzz_RevertWhen_ValueIsNotTheAmount(uint96 amount, uint96 value) external {
        vm.assume(amount != value);
        vm.deal(requester.addr, value);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongValue.selector, amount, value));
        vm.prank(requester.addr);
        escrow.deposit{value: value}(NATIVE, amount);
    }

    function test_RevertWhen_AmountIsZero() external {
        vm.startPrank(requester.addr);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.deposit(NATIVE, 0);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.deposit(address(token), 0);
    }

    function test_RevertWhen_DepositedForNobody() external {
        vm.expectRevert(IJobEscrow.ZeroAddress.selector);
        vm.prank(requester.addr);
        escrow.depositFor{value: 1}(address(0), NATIVE, 1);
    }

    function test_RevertWhen_CoinIsSentWithoutACall() external {
        vm.prank(requester.addr);
        (bool sent,) = address(escrow).call{value: 1}("");
        assertFalse(sent);
    }

    // ── ERC-20 ──────────────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_TokensAreCredited(uint128 amount) external {
        amount = uint128(bound(amount, 1, type(uint128).max));
        token.mint(requester.addr, amount);
        vm.startPrank(requester.addr);
        token.approve(address(escrow), amount);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Deposited(requester.addr, address(token), requester.addr, amount, amount);
        escrow.deposit(address(token), amount);
        _assertAccount(requester.addr, address(token), amount, 0, 0);
        _assertAccount(requester.addr, NATIVE, 0, 0, 0);
        assertEq(token.balanceOf(address(escrow)), amount);
    }

    function test_TokensForAnotherComeFromTheCaller() external {
        token.mint(stranger, 5);
        vm.startPrank(stranger);
        token.approve(address(escrow), 5);
        escrow.depositFor(requester.addr, address(token), 5);
        _assertAccount(requester.addr, address(token), 5, 0, 0);
        assertEq(token.balanceOf(stranger), 0);
    }

    function test_RevertWhen_CoinComesWithATokenDeposit() external {
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongValue.selector, 0, 1));
        vm.prank(requester.addr);
        escrow.deposit{value: 1}(address(token), 1);
    }

    function test_RevertWhen_NothingIsApproved() external {
        token.mint(requester.addr, 1);
        vm.expectRevert();
        vm.prank(requester.addr);
        escrow.deposit(address(token), 1);
    }

    function test_RevertWhen_TokenHasNoCode() external {
        vm.expectRevert();
        vm.prank(requester.addr);
        escrow.deposit(makeAddr("no token"), 1);
    }
}
