// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IJobEscrow, JobState, Order, Result, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base, KeyVoucher} from "./Base.sol";
import {ReentrantToken} from "./mocks/HostileTokens.sol";

/// @notice What only one changed character of the escrow would change.
contract EdgesTest is Base {
    // ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev The measured deposit would count what leaves meanwhile.
    function test_FeesAreNotWithdrawnInsideADeposit() external {
        ReentrantToken hostile = new ReentrantToken();
        vm.prank(owner);
        Ownable2Step(address(escrow)).transferOwnership(address(hostile));
        vm.prank(address(hostile));
        Ownable2Step(address(escrow)).acceptOwnership();
        hostile.mint(requester.addr, 5);
        hostile.arm(address(escrow), abi.encodeCall(IJobEscrow.withdrawFees, (address(hostile), owner)));
        vm.startPrank(requester.addr);
        hostile.approve(address(escrow), 5);
        escrow.deposit(address(hostile), 5);
        assertFalse(hostile.succeeded());
        assertEq(bytes4(hostile.returned()), ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
    }

    // ── Channels ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev One more than a channel counts pays no less, and no more, than the most it counts.
    function test_TheFirstAmountThatDoesNotFitAChannelFillsIt() external {
        vm.deal(requester.addr, type(uint128).max);
        _deposit(type(uint128).max);
        _redeem(uint128(type(uint96).max) + 1, 3);
        assertEq(escrow.earned(node.addr, NATIVE), type(uint96).max);
        _assertChannel(type(uint96).max, 3, 0);
    }

    /// @dev Vouchers of the usual requester over one more each, as one call.
    function _ascending(uint256 from, uint256 count) internal view returns (bytes memory) {
        KeyVoucher[] memory vouchers = new KeyVoucher[](count);
        for (uint256 i = 0; i < count; ++i) {
            vouchers[i] = _keyVoucher(requester, uint128(from + i), 0)[0];
        }
        return _redeemCall(node.addr, NATIVE, vouchers);
    }

    /// @dev In assembly, as Solidity would copy the data, at a cost that grows with the test's memory.
    function _gasOf(bytes memory data) internal returns (uint256 spent) {
        address target = address(escrow);
        bool ok;
        vm.prank(node.addr);
        assembly ("memory-safe") {
            spent := gas()
            ok := call(gas(), target, 0, add(data, 0x20), mload(data), 0, 0)
            spent := sub(spent, gas())
        }
        assertTrue(ok);
    }

    /// @dev Memory costs by its square: a batch must not set aside more than it tells.
    function test_TwiceTheVouchersCostTwiceTheGas() external {
        _deposit(1000);
        uint256 one = _gasOf(_ascending(1, 1));
        uint256 some = _gasOf(_ascending(2, 100));
        uint256 twice = _gasOf(_ascending(102, 200));
        assertEq(escrow.earned(node.addr, NATIVE), 301);
        assertLt(one, 150_000);
        assertLt(twice, some * 21 / 10);
    }

    function _redeemBoth(Order memory first, Order memory second) internal {
        Order[] memory above = new Order[](2);
        (above[0], above[1]) = (first, second);
        _redeemAbove(5, 5, above);
    }

    /// @dev Both were settled alone, above the voucher, for the same node.
    function test_OrdersOfAnotherTokenOrRequesterCountNothing() external {
        _deposit(100);
        _fundToken(requester.addr, 7);
        Order memory order = _signedOrder(7, 7);
        order.token = address(token);
        _submit(_signedResult(order, 7));
        assertEq(escrow.earned(node.addr, address(token)), 7);

        Order memory other = _signedOrder(8, 9);
        other.requester = otherNode.addr;
        vm.deal(otherNode.addr, 9);
        vm.prank(otherNode.addr);
        escrow.deposit{value: 9}(NATIVE, 9);
        Result memory result = _result(other, node, 9);
        result.orderSignature = _sign(otherNode, escrow.jobIdOf(other));
        _submit(result);
        assertEq(escrow.earned(node.addr, NATIVE), 9);

        _redeemBoth(order, other);
        assertEq(escrow.earned(node.addr, NATIVE), 9 + 5);
    }

    /// @dev A job that was opened has its own money: it neither counts, nor takes the place of one that does.
    function _openedAmongTheOrdersAbove(Order memory opened) internal {
        _deposit(100);
        opened.nonce = 9;
        _open(opened);
        _submit(_result(opened));
        skip(opened.challengeWindow);
        _finalize(opened);
        uint64 nonce = 10;
        while (escrow.jobIdOf(_signedOrder(nonce, 3)) > escrow.jobIdOf(opened)) ++nonce;
        Order memory ahead = _settleAlone(nonce, 3);
        _redeemBoth(opened, ahead);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE + 3 + 5);
    }

    function test_AnOpenedJobAmongTheOrdersAboveHoldsUpNone() external {
        _openedAmongTheOrdersAbove(_order());
    }

    function test_AFinalizedJobAmongTheOrdersAboveHoldsUpNone() external {
        _openedAmongTheOrdersAbove(_windowedOrder());
    }

    function test_TheLastOrderThatAVoucherCoversDoesNotCountOnTop() external {
        _deposit(100);
        Order memory covered = _settleAlone(5, 2);
        _redeemBoth(covered, _settleAlone(6, 1));
        assertEq(escrow.earned(node.addr, NATIVE), 5 + 1);
    }

    // ── Session keys ────────────────────────────────────────────────────────────────────────────────────────────────

    function _authorize(uint128 cap, uint256 expiry) internal {
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, cap, uint64(expiry));
    }

    function test_APermissionIsInForceInItsLastSecond() external {
        _authorize(10, NOW);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.SessionInForce.selector, 10, NOW));
        _authorize(9, NOW + 1);
    }

    function test_APermissionIsExtendedInOneRespectAlone() external {
        _authorize(10, NOW + 1);
        _authorize(10, NOW + 2);
        _authorize(11, NOW + 2);
        (uint128 left, uint64 expiry) = escrow.session(requester.addr, otherNode.addr, NATIVE);
        assertEq(left, 11);
        assertEq(expiry, NOW + 2);
    }

    function _expectSession(uint128 left, uint256 expiry) internal {
        vm.expectEmit(address(escrow));
        emit IJobEscrow.SessionUpdated(requester.addr, otherNode.addr, NATIVE, left, uint64(expiry));
    }

    function test_EveryChangeOfAPermissionIsTold() external {
        _deposit(10);
        _expectSession(9, NOW + 1 days);
        _authorize(9, NOW + 1 days);
        bytes memory vouchers = _packed(_keyVoucher(otherNode, 4, 4));
        vm.prank(node.addr);
        _expectSession(5, NOW + 1 days);
        escrow.redeem(node.addr, NATIVE, vouchers);
        _expectSession(5, NOW + THAW_PERIOD);
        vm.prank(requester.addr);
        escrow.revokeSession(otherNode.addr, NATIVE);
    }

    // ── Reservations ────────────────────────────────────────────────────────────────────────────────────────────────

    function test_ReservingMoreStopsTheThawOfEvenOneWei() external {
        _deposit(10);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 5);
        escrow.thawReservation(node.addr, NATIVE, 1);
        escrow.reserve(node.addr, NATIVE, 5);
        skip(THAW_PERIOD);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.releaseReservation(node.addr, NATIVE);
    }

    // ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_TheLongestWindowIsTakenOnEitherRail() external {
        Order memory order = _windowedOrder();
        (order.challengeWindow, order.nonce) = (MAX_WINDOW, 1);
        bytes32 opened = _open(order);
        _assertJob(opened, JobState.Open, MAX_PRICE, 0, address(0));
        order.nonce = 2;
        _deposit(PRICE);
        _submit(_signedResult(order, PRICE));
        _assertJob(escrow.jobIdOf(order), JobState.Submitted, PRICE, NOW + MAX_WINDOW, node.addr);
    }

    /// @dev A result still counts in that second.
    function test_AtItsDeadlineAJobIsNotRefundedYet() external {
        Order memory order = _order();
        _open(order);
        vm.warp(order.deadline);
        _refundSkipped(order, SkipReason.NotExpired);
    }

    function _bondsAfterAWindowOf(uint32 window) internal returns (uint32 bonds) {
        Order memory order = _order();
        (order.arbiter, order.challengeWindow) = (address(this), window);
        _open(order);
        _submit(_result(order));
        (bonds,,,) = registry.recordOf(node.addr);
    }

    /// @dev It is paid at once: nothing would release the bond.
    function test_AnArbiterWithoutAWindowLocksNoBond() external {
        assertEq(_bondsAfterAWindowOf(0), 0);
    }

    function test_AnArbiterWithAWindowOfASecondLocksABond() external {
        assertEq(_bondsAfterAWindowOf(1), 1);
    }
}
