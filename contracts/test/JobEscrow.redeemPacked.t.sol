// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, Order, SignedVoucher, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

/// @notice The packed form of vouchers, and the arithmetic on packed slots against a plain model of it.
contract RedeemPackedTest is Base {
    uint256 internal constant MAX_CHANNEL = type(uint96).max;

    struct Money {
        uint256 claimed;
        uint256 reserved;
        uint256 free;
        uint256 thawing;
        uint64 covered;
    }

    function testFuzz_RevertWhen_NotAWholeNumberOfVouchers(uint256 length) external {
        length = bound(length, 1, 1000);
        if (length % 108 == 0) ++length;
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongLength.selector, length, 108));
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, new bytes(length));
    }

    /// @dev Neither a length nor an offset reaches beyond the calldata.
    function test_RevertWhen_TheCalldataEndsBeforeTheVouchers() external {
        _deposit(10);
        bytes memory voucher = _packed(_keyVoucher(requester, 4, 4));
        bytes memory head = abi.encodePacked(escrow.redeem.selector, abi.encode(node.addr, NATIVE, 0x60));
        bytes[4] memory bad = [
            abi.encodePacked(head, uint256(216), voucher),
            abi.encodePacked(head, uint256(108)),
            abi.encodePacked(head, type(uint256).max / 108 * 108, voucher),
            abi.encodePacked(
                escrow.redeem.selector, abi.encode(node.addr, NATIVE, type(uint256).max - 31), uint256(108), voucher
            )
        ];
        vm.startPrank(node.addr);
        for (uint256 i = 0; i < bad.length; ++i) {
            (bool ok,) = address(escrow).call(bad[i]);
            assertFalse(ok);
        }
        (bool good,) = address(escrow).call(abi.encodePacked(head, uint256(108), voucher));
        assertTrue(good);
        assertEq(escrow.earned(node.addr, NATIVE), 4);
    }

    /// @dev Sets up any state of account and channel by ordinary calls.
    function _bringAbout(Money memory m) internal {
        vm.deal(requester.addr, type(uint256).max);
        uint256 sum = m.claimed + m.reserved + m.thawing;
        if (sum != 0) _deposit(sum);
        if (m.claimed != 0) _redeem(uint128(m.claimed), m.covered);
        vm.startPrank(requester.addr);
        if (m.reserved != 0) escrow.reserve(node.addr, NATIVE, m.reserved);
        if (m.thawing != 0) escrow.thaw(NATIVE, m.thawing);
        vm.stopPrank();
        if (m.free != 0) _deposit(m.free);
    }

    /// @dev What a voucher is to do, written down the long way.
    function _model(Money memory m, uint256 cumulative, uint64 nonce) internal pure returns (uint256 paid) {
        uint256 entitled = cumulative < MAX_CHANNEL ? cumulative : MAX_CHANNEL;
        if (entitled <= m.claimed) return 0;
        uint256 due = entitled - m.claimed;
        uint256 has = m.reserved + m.free + m.thawing;
        paid = due < has ? due : has;
        if (paid == 0) return 0;
        uint256 left = paid;
        uint256 part = left < m.reserved ? left : m.reserved;
        (m.reserved, left) = (m.reserved - part, left - part);
        part = left < m.free ? left : m.free;
        (m.free, left) = (m.free - part, left - part);
        m.thawing -= left;
        m.claimed += paid;
        if (nonce > m.covered) m.covered = nonce;
    }

    /// @dev Amounts from nothing to more than a channel counts, and both forms of a voucher.
    function testFuzz_PaysAsTheModelSays(Money memory m, uint128 cumulative, uint64 nonce, bool packed) external {
        m.claimed = bound(m.claimed, 0, MAX_CHANNEL);
        m.reserved = bound(m.reserved, 0, MAX_CHANNEL);
        m.free = bound(m.free, 0, type(uint128).max / 4);
        m.thawing = bound(m.thawing, 0, type(uint128).max / 4);
        if (nonce % 3 == 0) cumulative = uint128(bound(cumulative, 0, m.claimed + m.reserved));
        if (nonce % 3 == 1) cumulative = uint128(bound(cumulative, 0, MAX_CHANNEL));
        _bringAbout(m);
        if (m.claimed == 0) m.covered = 0;
        uint256 earned = escrow.earned(node.addr, NATIVE);
        if (packed) _redeem(cumulative, nonce);
        else _redeemAbove(cumulative, nonce, new Order[](0));
        earned += _model(m, cumulative, nonce);
        assertEq(escrow.earned(node.addr, NATIVE), earned);
        _assertChannel(m.claimed, m.covered, m.reserved);
        _assertAccount(requester.addr, NATIVE, m.free, m.thawing, m.thawing == 0 ? 0 : block.timestamp + THAW_PERIOD);
    }

    /// @dev A voucher tells of as much as it moved, in either form.
    function testFuzz_BothFormsTellTheSame(uint128 cumulative, uint64 nonce) external {
        _deposit(1 ether);
        vm.prank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 0.5 ether);
        cumulative = uint128(bound(cumulative, 1, 2 ether));
        uint256 before = vm.snapshotState();
        vm.recordLogs();
        _redeem(cumulative, nonce);
        bytes memory told = vm.getRecordedLogs()[0].data;
        vm.revertToState(before);
        vm.recordLogs();
        _redeemAbove(cumulative, nonce, new Order[](0));
        assertEq(vm.getRecordedLogs()[0].data, told);
        (uint256 earned, bytes memory redemptions) = abi.decode(told, (uint256, bytes));
        assertEq(earned, escrow.earned(node.addr, NATIVE));
        assertEq(redemptions.length, 96);
        assertEq(keccak256(abi.encode(earned, redemptions)), keccak256(told), "the data is what the ABI says");
    }

    /// @dev Nobody's signature is not the signature of nobody: what does not recover draws on no account.
    function testFuzz_WhatDoesNotRecoverPaysNothing(address from, bytes32 r, bytes32 vs) external {
        vm.assume(from != requester.addr);
        _deposit(10);
        vm.record();
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, abi.encodePacked(from, uint128(1), uint64(1), r, vs));
        _assertNothingWritten();
    }

    // ── Session keys ────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev A new permission is one for what the key signed before, too, and its cap holds.
    function test_AKeyPermittedAgainIsHeldToTheNewCap() external {
        _deposit(100);
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, 50, uint64(NOW));
        skip(1);
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, 5, uint64(NOW + 1));
        _redeemSkipped(otherNode, 40, 1, SkipReason.SessionCapExceeded);
        _redeemBy(otherNode, 5, 1);
        assertEq(escrow.earned(node.addr, NATIVE), 5);
    }

    /// @dev What a part-paid voucher still claims is charged to the key again when it is paid.
    function test_AKeyIsChargedWhatIsPaid() external {
        _deposit(3);
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, 10, uint64(block.timestamp));
        _redeemBy(otherNode, 10, 1);
        (uint128 left,) = escrow.session(requester.addr, otherNode.addr, NATIVE);
        assertEq(left, 7);
        _deposit(100);
        _redeemBy(otherNode, 10, 1);
        (left,) = escrow.session(requester.addr, otherNode.addr, NATIVE);
        assertEq(left, 0);
        _redeemSkipped(otherNode, 11, 1, SkipReason.SessionCapExceeded);
        assertEq(escrow.earned(node.addr, NATIVE), 10);
    }

    /// @dev A key's permission is for one token.
    function test_AKeyOfAnotherTokenIsNobody() external {
        _deposit(10);
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, address(token), 10, uint64(block.timestamp));
        _redeemSkipped(otherNode, 1, 1, SkipReason.BadVoucherSignature);
    }

    // ── Covering ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev A voucher that pays nothing voids nothing, whatever it says it covers.
    function test_NothingDueCoversNothing() external {
        _deposit(100);
        _redeem(10, 1);
        _redeemSkipped(requester, 10, type(uint64).max, SkipReason.NothingDue);
        _redeemSkipped(requester, 3, type(uint64).max, SkipReason.NothingDue);
        _settleAlone(2, 5);
        assertEq(escrow.earned(node.addr, NATIVE), 15);
    }

    /// @dev Of an order decided in part, the part counts on top; of one given back, nothing.
    function test_OrdersAboveCountForWhatTheyPaid() external {
        _deposit(100);
        Order memory order = _windowedOrder();
        (order.nonce, order.maxPrice, order.arbiter) = (7, 10, address(this));
        _submit(_signedResult(order, 8));
        vm.prank(requester.addr);
        escrow.dispute(order);
        escrow.resolve(order, 2500, 0);
        Order[] memory above = new Order[](1);
        above[0] = order;
        _redeemAbove(5, 5, above);
        assertEq(escrow.earned(node.addr, NATIVE), 7);

        order.nonce = 9;
        _submit(_signedResult(order, 8));
        _redeem(20, 9);
        vm.prank(requester.addr);
        escrow.accept(order);
        above[0] = order;
        SignedVoucher[] memory vouchers = _signedVoucher(20, 8, above);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(requester.addr, node.addr, NATIVE, 20, SkipReason.NothingDue);
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        assertEq(escrow.earned(node.addr, NATIVE), 20);
    }
}
