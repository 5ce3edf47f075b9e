// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";

import {IJobEscrow, Order} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

contract OwnerTest is Base {
    uint16 internal constant MAX_FEE_BPS = 500;

    function test_TheOwnerHandsOverInTwoSteps() external {
        Ownable2Step owned = Ownable2Step(address(escrow));
        assertEq(owned.owner(), owner);
        vm.prank(owner);
        owned.transferOwnership(settler);
        assertEq(owned.owner(), owner);
        vm.prank(settler);
        owned.acceptOwnership();
        assertEq(owned.owner(), settler);
    }

    function test_RevertWhen_AStrangerActsAsTheOwner() external {
        bytes memory refused = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, settler);
        vm.startPrank(settler);
        vm.expectRevert(refused);
        escrow.setFeeBps(1);
        vm.expectRevert(refused);
        escrow.setPaused(true);
        vm.expectRevert(refused);
        escrow.withdrawFees(NATIVE, settler);
    }

    // ── Fee ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    function _setFee(uint16 feeBps) internal {
        vm.expectEmit(address(escrow));
        emit IJobEscrow.FeeBpsSet(feeBps);
        vm.prank(owner);
        escrow.setFeeBps(feeBps);
        assertEq(escrow.feeBps(), feeBps);
    }

    function testFuzz_TakesTheLesserOfBothCaps(uint16 feeBps, uint16 maxFeeBps, uint128 price) external {
        feeBps = uint16(bound(feeBps, 0, MAX_FEE_BPS));
        price = uint128(bound(price, 0, MAX_PRICE));
        _setFee(feeBps);
        Order memory order = _order();
        order.maxFeeBps = maxFeeBps;
        _open(order);
        _submit(_result(order, node, price));
        uint256 fee = uint256(price) * (feeBps < maxFeeBps ? feeBps : maxFeeBps) / 10_000;
        assertEq(escrow.fees(NATIVE), fee);
        assertEq(escrow.earned(node.addr, NATIVE), price - fee);
    }

    function test_TakesTheFeeOnEveryWayAnOrderIsPaid() external {
        _setFee(100);
        _deposit(3 * MAX_PRICE);
        Order memory order = _signedOrder(1, MAX_PRICE);
        order.maxFeeBps = 100;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.FeeTaken(escrow.jobIdOf(order), NATIVE, PRICE / 100, PRICE / 100);
        _submit(_signedResult(order, PRICE));
        _assertChannel(PRICE, 0, 0);
        order = _windowedOrder();
        order.maxFeeBps = 100;
        _open(order);
        _submit(_result(order));
        skip(WINDOW);
        _finalize(order);
        assertEq(escrow.fees(NATIVE), PRICE / 50);
        assertEq(escrow.earned(node.addr, NATIVE), 2 * PRICE - PRICE / 50);
    }

    /// @dev A voucher names no fee, so its requester and node have agreed to none.
    function test_VouchersBearNoFee() external {
        _setFee(MAX_FEE_BPS);
        _deposit(1 ether);
        _redeem(1 ether, 1);
        assertEq(escrow.earned(node.addr, NATIVE), 1 ether);
    }

    function test_TheOwnerWithdrawsFeesAndNoMore() external {
        _setFee(100);
        Order memory order = _order();
        order.maxFeeBps = 100;
        _open(order);
        _submit(_result(order));
        address to = makeAddr("treasury");
        vm.startPrank(owner);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.FeesWithdrawn(NATIVE, to, PRICE / 100);
        assertEq(escrow.withdrawFees(NATIVE, to), PRICE / 100);
        assertEq(to.balance, PRICE / 100);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.withdrawFees(NATIVE, to);
    }

    function testFuzz_RevertWhen_TheFeeIsAboveTheCap(uint16 feeBps) external {
        feeBps = uint16(bound(feeBps, MAX_FEE_BPS + 1, type(uint16).max));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.FeeTooHigh.selector, feeBps, MAX_FEE_BPS));
        vm.prank(owner);
        escrow.setFeeBps(feeBps);
    }

    // ── Pause ───────────────────────────────────────────────────────────────────────────────────────────────────────

    function _pause(bool paused) internal {
        vm.expectEmit(address(escrow));
        emit IJobEscrow.PausedSet(paused);
        vm.prank(owner);
        escrow.setPaused(paused);
        assertEq(escrow.paused(), paused);
    }

    function test_RevertWhen_DepositingOrOpeningWhilePaused() external {
        _pause(true);
        vm.startPrank(requester.addr);
        vm.expectRevert(IJobEscrow.Paused.selector);
        escrow.deposit{value: 1}(NATIVE, 1);
        vm.expectRevert(IJobEscrow.Paused.selector);
        escrow.depositFor{value: 1}(node.addr, NATIVE, 1);
        vm.expectRevert(IJobEscrow.Paused.selector);
        escrow.depositWithPermit(address(token), 1, 0, 0, 0, 0);
        vm.expectRevert(IJobEscrow.Paused.selector);
        escrow.openJob{value: MAX_PRICE}(_order(), _spec());
        vm.stopPrank();
        _pause(false);
        _deposit(1);
        assertEq(_free(requester.addr, NATIVE), 1);
    }

    /// @dev Everything that ends something goes on.
    function test_APauseTrapsNothing() external {
        Order memory atOnce = _order();
        Order memory windowed = _windowedOrder();
        Order memory cancelled = _signedOrder(9, MAX_PRICE);
        _open(atOnce);
        _open(windowed);
        _open(cancelled);
        _deposit(10 ether);
        vm.prank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 1 ether);
        _pause(true);

        _submit(_result(atOnce));
        _submit(_result(windowed));
        _settleAlone(1, 1 ether);
        _redeem(3 ether, 1);
        vm.startPrank(requester.addr);
        escrow.cancelJob(cancelled);
        uint256 free = _free(requester.addr, NATIVE);
        escrow.thaw(NATIVE, free);
        skip(WINDOW);
        escrow.withdraw(NATIVE, requester.addr);
        vm.stopPrank();
        _finalize(windowed);
        _refund(cancelled);
        vm.prank(node.addr);
        assertEq(escrow.withdrawEarned(NATIVE, node.addr), 2 * PRICE + 3 ether);
        assertEq(_free(requester.addr, NATIVE), MAX_PRICE);
    }

    function test_AReservationComesBackWhilePaused() external {
        _deposit(5);
        vm.prank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 5);
        _pause(true);
        vm.startPrank(requester.addr);
        escrow.thawReservation(node.addr, NATIVE, 5);
        skip(THAW_PERIOD);
        escrow.releaseReservation(node.addr, NATIVE);
        assertEq(_free(requester.addr, NATIVE), 5);
    }
}

contract PermitTest is Base {
    function _permit(uint256 amount, uint256 deadline) internal view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 typeHash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 structHash = keccak256(
            abi.encode(typeHash, requester.addr, address(escrow), amount, token.nonces(requester.addr), deadline)
        );
        return
            vm.sign(requester.privateKey, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
    }

    function setUp() public override {
        super.setUp();
        token.mint(requester.addr, 10);
    }

    function test_DepositsWithoutAnApproval() external {
        (uint8 v, bytes32 r, bytes32 s) = _permit(4, block.timestamp);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Deposited(requester.addr, address(token), requester.addr, 4, 4);
        vm.prank(requester.addr);
        escrow.depositWithPermit(address(token), 4, block.timestamp, v, r, s);
        _assertAccount(requester.addr, address(token), 4, 0, 0);
    }

    /// @dev Anyone may spend the permit first; the deposit still goes through.
    function test_APermitSpentByAnotherDoesNoHarm() external {
        (uint8 v, bytes32 r, bytes32 s) = _permit(4, block.timestamp);
        token.permit(requester.addr, address(escrow), 4, block.timestamp, v, r, s);
        vm.prank(requester.addr);
        escrow.depositWithPermit(address(token), 4, block.timestamp, v, r, s);
        _assertAccount(requester.addr, address(token), 4, 0, 0);
    }

    function test_RevertWhen_ThePermitIsNotTheCallers() external {
        (uint8 v, bytes32 r, bytes32 s) = _permit(4, block.timestamp);
        vm.expectRevert();
        vm.prank(node.addr);
        escrow.depositWithPermit(address(token), 4, block.timestamp, v, r, s);
    }

    function test_RevertWhen_TheTokenHasNoCode() external {
        vm.expectRevert();
        escrow.depositWithPermit(makeAddr("no token"), 4, block.timestamp, 0, 0, 0);
    }
}
