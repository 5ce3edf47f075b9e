// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order, Result, SignedVoucher, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base, KeyVoucher} from "./Base.sol";
import {KeyWallet, RevertingWallet} from "./mocks/Wallets.sol";

contract RedeemTest is Base {
    function test_PaysWhatIsDue() external {
        _deposit(10);
        vm.expectEmit(address(escrow));
        bytes memory told =
            abi.encodePacked(requester.addr, uint96(4), uint128(6), uint128(0), uint96(4), uint96(0), uint64(7));
        emit IJobEscrow.VouchersRedeemed(node.addr, NATIVE, 4, told);
        _redeem(4, 7);
        _assertChannel(4, 7, 0);
        _assertAccount(requester.addr, NATIVE, 6, 0, 0);
        assertEq(escrow.earned(node.addr, NATIVE), 4);
    }

    function test_IsCumulative() external {
        _deposit(10);
        _redeem(4, 4);
        _redeem(9, 9);
        _redeemSkipped(requester, 9, 9, SkipReason.NothingDue);
        _redeemSkipped(requester, 4, 4, SkipReason.NothingDue);
        assertEq(escrow.earned(node.addr, NATIVE), 9);
        _assertChannel(9, 9, 0);
    }

    function testFuzz_DrawsOnTheReservationThenFreeThenThawing(uint128 due) external {
        due = uint128(bound(due, 1, 12));
        _deposit(9);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 2);
        escrow.thaw(NATIVE, 4);
        vm.stopPrank();
        _redeem(due, 1);
        uint256 paid = due < 9 ? due : 9;
        uint256 thawing = paid < 5 ? 4 : 9 - paid;
        _assertAccount(
            requester.addr,
            NATIVE,
            paid < 2 ? 3 : paid < 5 ? 5 - paid : 0,
            thawing,
            thawing == 0 ? 0 : block.timestamp + THAW_PERIOD
        );
        _assertChannel(paid, 1, paid < 2 ? 2 - paid : 0);
        assertEq(escrow.earned(node.addr, NATIVE), paid);
    }

    function test_TheRestStaysClaimable() external {
        _deposit(3);
        _redeem(9, 9);
        assertEq(escrow.earned(node.addr, NATIVE), 3);
        _redeemSkipped(requester, 9, 9, SkipReason.InsufficientFunds);
        _deposit(10);
        _redeem(9, 9);
        assertEq(escrow.earned(node.addr, NATIVE), 9);
        assertEq(_free(requester.addr, NATIVE), 4);
    }

    function test_AnOlderVoucherUncoversNothing() external {
        _deposit(10);
        _redeem(4, 9);
        _redeem(5, 3);
        _assertChannel(5, 9, 0);
    }

    function test_ChannelsAreApart() external {
        _deposit(10);
        _redeem(4, 4);
        (uint256 claimed,) = escrow.channel(requester.addr, otherNode.addr, NATIVE);
        assertEq(claimed, 0);
        (claimed,) = escrow.channel(requester.addr, node.addr, address(token));
        assertEq(claimed, 0);
    }

    /// @dev A channel counts to 2^96 - 1 and pays no voucher beyond.
    function test_AChannelThatIsFullPaysNoMore() external {
        uint128 most = type(uint96).max;
        vm.deal(requester.addr, type(uint256).max);
        _deposit(3 * uint256(most));
        _redeem(type(uint128).max, 1);
        assertEq(escrow.earned(node.addr, NATIVE), most);
        _redeemSkipped(requester, type(uint128).max, 1, SkipReason.NothingDue);
        _settleAlone(2, most);
        _assertChannel(most, 1, 0);
        assertEq(escrow.earned(node.addr, NATIVE), 2 * uint256(most));
    }

    // ── Whose word counts ───────────────────────────────────────────────────────────────────────────────────────────

    /// @dev A voucher voids the orders it covers: in others' hands, one over nothing would cost the node its pay.
    function test_RevertWhen_NeitherNodeNorSettlerRedeems() external {
        _deposit(10);
        KeyVoucher[] memory vouchers = _keyVoucher(requester, 1, type(uint64).max);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotSettler.selector, node.addr, requester.addr));
        vm.prank(requester.addr);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        SignedVoucher[] memory signed = _signedVoucher(1, type(uint64).max, new Order[](0));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotSettler.selector, node.addr, requester.addr));
        vm.prank(requester.addr);
        escrow.redeemSigned(node.addr, NATIVE, signed);
    }

    function test_ASettlerRedeemsForTheNodeWhileAllowed() external {
        _deposit(10);
        KeyVoucher[] memory vouchers = _keyVoucher(requester, 1, 1);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.SettlerSet(node.addr, settler, true);
        vm.prank(node.addr);
        escrow.setSettler(settler, true);
        assertTrue(escrow.isSettler(node.addr, settler));
        vm.prank(settler);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        assertEq(escrow.earned(node.addr, NATIVE), 1);
        vm.prank(node.addr);
        escrow.setSettler(settler, false);
        assertFalse(escrow.isSettler(node.addr, settler));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotSettler.selector, node.addr, settler));
        vm.prank(settler);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
    }

    function test_SkipsWhen_SignedByAnother() external {
        _deposit(10);
        _redeemSkipped(otherNode, 4, 4, SkipReason.BadVoucherSignature);
        _redeemSkipped(node, 4, 4, SkipReason.BadVoucherSignature);
    }

    function testFuzz_SkipsWhen_NotWhatWasSigned(uint128 cumulative, uint64 coveredNonce, bytes32 r, bytes32 vs)
        external
    {
        _deposit(10);
        cumulative = uint128(bound(cumulative, 1, type(uint128).max));
        vm.assume(cumulative != 4 || coveredNonce != 4);
        KeyVoucher[] memory vouchers = _keyVoucher(requester, 4, 4);
        (vouchers[0].cumulative, vouchers[0].coveredNonce) = (cumulative, coveredNonce);
        vm.startPrank(node.addr);
        vm.record();
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        (vouchers[0].r, vouchers[0].vs) = (r, vs);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        _assertNothingWritten();
    }

    function test_SkipsWhen_TheSignatureIsTheHighTwin() external {
        _deposit(10);
        KeyVoucher[] memory vouchers = _keyVoucher(requester, 4, 4);
        uint256 order = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
        uint256 parity = uint256(vouchers[0].vs) >> 255;
        uint256 twin = order - (uint256(vouchers[0].vs) << 1 >> 1);
        // A twin has its highest bit set, where the form keeps the parity: either reading is no signature of the key.
        for (uint256 bit = 0; bit < 2; ++bit) {
            vouchers[0].vs = bytes32((twin << 1 >> 1) | ((parity ^ bit) << 255));
            vm.expectEmit(address(escrow));
            emit IJobEscrow.VoucherSkipped(requester.addr, node.addr, NATIVE, 4, SkipReason.BadVoucherSignature);
            vm.prank(node.addr);
            escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        }
    }

    function test_SkipsWhen_AnotherChannelOrChain() external {
        _deposit(10);
        KeyVoucher[] memory vouchers = _keyVoucher(requester, 4, 4);
        vm.record();
        vm.prank(otherNode.addr);
        escrow.redeem(otherNode.addr, NATIVE, _packed(vouchers));
        vm.startPrank(node.addr);
        escrow.redeem(node.addr, address(token), _packed(vouchers));
        vm.chainId(block.chainid + 1);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        _assertNothingWritten();
    }

    function test_WalletsSignVouchers() external {
        KeyWallet wallet = new KeyWallet(requester.addr);
        vm.prank(requester.addr);
        escrow.depositFor{value: 10}(address(wallet), NATIVE, 10);
        bytes memory signature = _sign(requester, _voucherDigest(address(wallet), node.addr, NATIVE, 4, 4));
        SignedVoucher[] memory vouchers = new SignedVoucher[](1);
        vouchers[0] = SignedVoucher(address(wallet), 4, 4, signature, new Order[](0));
        vm.startPrank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        assertEq(escrow.earned(node.addr, NATIVE), 4);
        vouchers[0].requester = address(new RevertingWallet());
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(vouchers[0].requester, node.addr, NATIVE, 4, SkipReason.BadVoucherSignature);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
    }

    function test_SkipsWhen_TheRequesterIsNobody() external {
        KeyVoucher[] memory vouchers = new KeyVoucher[](1);
        vouchers[0].cumulative = 1;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(address(0), node.addr, NATIVE, 1, SkipReason.InsufficientFunds);
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
    }

    /// @dev Good and bad ones do together what they would do alone, and the event tells of the good ones only.
    function test_ABatchIsWorthItsItems() external {
        _deposit(10);
        KeyVoucher[] memory vouchers = new KeyVoucher[](4);
        vouchers[0] = _keyVoucher(requester, 2, 1)[0];
        vouchers[1] = _keyVoucher(otherNode, 3, 1)[0];
        vouchers[2] = _keyVoucher(requester, 5, 2)[0];
        vouchers[3] = _keyVoucher(requester, 5, 3)[0];
        bytes memory told = abi.encodePacked(
            abi.encodePacked(requester.addr, uint96(2), uint128(8), uint128(0), uint96(2), uint96(0), uint64(1)),
            abi.encodePacked(requester.addr, uint96(5), uint128(5), uint128(0), uint96(3), uint96(0), uint64(2))
        );
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VouchersRedeemed(node.addr, NATIVE, 5, told);
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
    }

    function test_NothingIsToldOfNothing() external {
        vm.recordLogs();
        vm.startPrank(node.addr);
        escrow.redeem(node.addr, NATIVE, "");
        escrow.redeemSigned(node.addr, NATIVE, new SignedVoucher[](0));
        assertEq(vm.getRecordedLogs().length, 0);
    }
}

/// @notice Orders and vouchers in every order of events: nothing is paid twice, and nothing is lost.
contract RailsTest is Base {
    function setUp() public override {
        super.setUp();
        _deposit(100);
    }

    function _one(Order memory order) internal pure returns (Order[] memory orders) {
        orders = new Order[](1);
        orders[0] = order;
    }

    function _assertPaid(uint256 amount) internal view {
        assertEq(escrow.earned(node.addr, NATIVE), amount);
        (uint256 claimed,) = escrow.channel(requester.addr, node.addr, NATIVE);
        assertEq(claimed, amount);
    }

    function test_AnOrderSettledAloneCountsAgainstTheVoucherThatCoversIt() external {
        _settleAlone(3, 1);
        _redeem(5, 5);
        _assertPaid(5);
    }

    function test_SkipsWhen_ARedeemedVoucherCoversTheOrder() external {
        _redeem(5, 5);
        _submitSkipped(_signedResult(_signedOrder(5, 1), 1), SkipReason.Covered);
        _settleAlone(6, 1);
        _assertPaid(6);
    }

    function test_AVoucherPaidInPartCoversItsOrders() external {
        _redeem(200, 5);
        _deposit(1);
        _submitSkipped(_signedResult(_signedOrder(5, 1), 1), SkipReason.Covered);
        _assertPaid(100);
    }

    /// @dev Somebody settles a later order first. The node shows it and gets all it is owed, at once or afterwards.
    function test_AnOrderSettledAheadOfTheVoucherCostsTheNodeNothing() external {
        Order memory ahead = _settleAlone(7, 1);
        _redeemAbove(5, 5, _one(ahead));
        _assertPaid(6);
    }

    function test_TheOrderAheadMayBeShownLater() external {
        Order memory ahead = _settleAlone(7, 1);
        _redeem(5, 5);
        _assertPaid(5);
        _redeemAbove(5, 5, _one(ahead));
        _assertPaid(6);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(requester.addr, node.addr, NATIVE, 5, SkipReason.NothingDue);
        _redeemAbove(5, 5, _one(ahead));
        _redeem(7, 7);
        _assertPaid(7);
    }

    function test_OnlyOrdersThatCountAreCounted() external {
        Order[] memory orders = new Order[](6);
        orders[0] = _settleAlone(4, 1); // covered
        orders[1] = _signedOrder(8, 1); // not settled
        orders[2] = _order(); // opened, with its own money
        orders[2].nonce = 9;
        _open(orders[2]);
        _submit(_result(orders[2]));
        orders[3] = _windowedOrder(); // waiting
        orders[3].nonce = 10;
        _submit(_signedResult(orders[3], 1));
        orders[4] = orders[5] = _signedOrder(11, 1); // another token
        orders[4].token = address(token);
        orders[5].requester = otherNode.addr; // another requester
        for (uint256 i = 0; i < 6; ++i) {
            uint256 before = vm.snapshotState();
            _redeemAbove(5, 5, _one(orders[i]));
            assertEq(escrow.earned(node.addr, NATIVE), PRICE + 5, "counted");
            vm.revertToState(before);
        }
    }

    function test_AnOrderForAnotherNodeDoesNotCount() external {
        Order memory order = _signedOrder(7, 1);
        order.node = otherNode.addr;
        escrow.submitResults(_batch(_withOrderSignature(order)));
        assertEq(escrow.earned(otherNode.addr, NATIVE), 1);
        _redeemAbove(5, 5, _one(order));
        _assertPaid(5);
    }

    function _withOrderSignature(Order memory order) internal view returns (Result memory result) {
        result = _result(order, otherNode, 1);
        result.orderSignature = _sign(requester, escrow.jobIdOf(order));
    }

    function test_AnOrderShownTwiceCountsOnce() external {
        Order memory ahead = _settleAlone(7, 1);
        Order[] memory orders = new Order[](2);
        orders[0] = orders[1] = ahead;
        _redeemAbove(5, 5, orders);
        _assertPaid(6);
    }

    /// @dev The voucher pays for the job while its result waits: the lock goes into the channel, and home after the notice.
    function test_AVoucherMayOvertakeAWaitingResult() external {
        Order memory order = _windowedOrder();
        order.nonce = 3;
        bytes32 jobId = escrow.jobIdOf(order);
        _submit(_signedResult(order, 10));
        _redeem(10, 3);
        skip(WINDOW);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ChannelUpdated(jobId, requester.addr, node.addr, NATIVE, 80, 0, 10, 10);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ReservationChanged(requester.addr, node.addr, NATIVE, 10, 0, 0, 80);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.JobRefunded(jobId, requester.addr, NATIVE, 10, 80);
        _finalize(order);
        _assertPaid(10);
        _assertJob(jobId, JobState.Refunded, 0, 0, address(0));
        _assertChannel(10, 3, 10);
        assertEq(_free(requester.addr, NATIVE), 80);
    }

    /// @dev A voucher that found too little because of the lock draws the rest from it once it has come back, whatever the
    /// requester did meanwhile: its notice on the channel starts anew.
    function test_WhatAVoucherWasShortOfStaysTheNodes() external {
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 10);
        escrow.thawReservation(node.addr, NATIVE, 10);
        escrow.thaw(NATIVE, 90);
        skip(THAW_PERIOD);
        vm.stopPrank();
        Order memory order = _windowedOrder();
        order.nonce = 3;
        _submit(_signedResult(order, 10));
        vm.startPrank(requester.addr);
        escrow.withdraw(NATIVE, requester.addr);
        escrow.deposit{value: 1}(NATIVE, 1);
        vm.stopPrank();
        _redeem(10, 3);
        _assertPaid(1);
        vm.startPrank(requester.addr);
        escrow.accept(order);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.releaseReservation(node.addr, NATIVE);
        vm.stopPrank();
        _redeem(10, 3);
        _assertPaid(10);
        _assertChannel(10, 3, 1);
    }

    /// @dev A channel counts to 2^96 - 1; what does not fit into its reservation is free.
    function test_ALockBeyondWhatAChannelCountsComesBackFree() external {
        uint128 most = type(uint96).max;
        vm.deal(requester.addr, 2 * uint256(most));
        _deposit(uint256(most) + 5);
        vm.prank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 3);
        Order memory order = _windowedOrder();
        order.nonce = 3;
        order.maxPrice = most + 4;
        _submit(_signedResult(order, most + 4));
        _redeem(1, 3);
        skip(WINDOW);
        _finalize(order);
        _assertChannel(1, 3, most);
        assertEq(_free(requester.addr, NATIVE), 100 + 4);
    }

    function test_AResultPaidBeforeTheVoucherCountsAgainstIt() external {
        Order memory order = _windowedOrder();
        order.nonce = 3;
        _submit(_signedResult(order, 10));
        skip(WINDOW);
        _finalize(order);
        _redeem(12, 3);
        _assertPaid(12);
        _redeemAbove(12, 2, _one(order));
        _assertPaid(22);
    }

    /// @dev A requester signs orders and vouchers over a prefix of them, and goes silent. In whatever order the pieces are
    /// settled, by whomever, the node ends up with all of it and not a unit more.
    function testFuzz_EveryOrderOfEventsPaysTheSame(uint256 seed) external {
        uint64 n = 8;
        uint64 covered = uint64(seed % (n + 1));
        Order[] memory above = new Order[](n - covered);
        for (uint64 nonce = covered + 1; nonce <= n; ++nonce) {
            above[nonce - covered - 1] = _signedOrder(nonce, nonce);
        }
        for (uint256 step = 0; step < 16; ++step) {
            uint256 pick = uint256(keccak256(abi.encode(seed, step))) % (n + 2);
            // Any prefix voucher that is not the best one adds nothing in the end.
            if (pick > n) _redeem(_sum(covered / 2), covered / 2);
            else if (pick == 0) _redeem(_sum(covered), covered);
            else _submit(_signedResult(_signedOrder(uint64(pick), uint128(pick)), uint128(pick)));
            (uint256 claimed,) = escrow.channel(requester.addr, node.addr, NATIVE);
            assertLe(claimed, _sum(n));
        }
        if (covered != 0) _redeem(_sum(covered), covered);
        for (uint64 nonce = covered + 1; nonce <= n; ++nonce) {
            _submit(_signedResult(_signedOrder(nonce, nonce), nonce));
        }
        if (covered != 0) _redeemAbove(_sum(covered), covered, _sorted(above));
        _assertPaid(_sum(n));
    }

    function _sum(uint64 n) internal pure returns (uint128) {
        return uint128(n) * (n + 1) / 2;
    }

    function _sorted(Order[] memory orders) internal view returns (Order[] memory) {
        for (uint256 i = 1; i < orders.length; ++i) {
            for (uint256 k = i; k != 0 && escrow.jobIdOf(orders[k]) < escrow.jobIdOf(orders[k - 1]); --k) {
                (orders[k], orders[k - 1]) = (orders[k - 1], orders[k]);
            }
        }
        return orders;
    }
}

contract SessionTest is Base {
    function _authorize(uint128 cap, uint64 time) internal {
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, cap, uint64(block.timestamp) + time);
    }

    function _assertSession(uint256 left, uint256 expiry) internal view {
        (uint128 actualLeft, uint64 actualExpiry) = escrow.session(requester.addr, otherNode.addr, NATIVE);
        assertEq(actualLeft, left, "left");
        assertEq(actualExpiry, expiry, "expiry");
    }

    function test_AKeySpendsUpToItsCap() external {
        _deposit(100);
        _authorize(10, 1 days);
        uint64 expiry = uint64(block.timestamp + 1 days);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.SessionUpdated(requester.addr, otherNode.addr, NATIVE, 4, expiry);
        _redeemBy(otherNode, 6, 1);
        _assertSession(4, expiry);
        _redeemSkipped(otherNode, 11, 2, SkipReason.SessionCapExceeded);
        _redeemBy(otherNode, 10, 2);
        _assertSession(0, expiry);
        assertEq(escrow.earned(node.addr, NATIVE), 10);
    }

    function test_AKeySignsInEitherForm() external {
        _deposit(100);
        _authorize(10, 1 days);
        SignedVoucher[] memory vouchers = _signedVoucher(6, 1, new Order[](0));
        vouchers[0].signature = _sign(otherNode, _voucherDigest(requester.addr, node.addr, NATIVE, 6, 1));
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        _assertSession(4, block.timestamp + 1 days);
        assertEq(escrow.earned(node.addr, NATIVE), 6);
    }

    /// @dev The cap is for what is paid now, not for what the channel paid before.
    function test_TheCapCountsFromTheAuthorization() external {
        _deposit(100);
        _redeem(50, 1);
        _authorize(10, 1 days);
        _redeemBy(otherNode, 60, 2);
        _assertSession(0, block.timestamp + 1 days);
        assertEq(escrow.earned(node.addr, NATIVE), 60);
    }

    function test_SkipsWhen_TheTimeHasPassed() external {
        _deposit(100);
        _authorize(10, 1 days);
        skip(1 days);
        _redeemBy(otherNode, 1, 1);
        skip(1);
        _redeemSkipped(otherNode, 2, 2, SkipReason.BadVoucherSignature);
        _assertSession(0, block.timestamp - 1);
    }

    /// @dev What the key has signed can be redeemed until the notice is over.
    function test_RevokingTakesEffectAfterTheNotice() external {
        _deposit(100);
        _authorize(10, 1 days);
        vm.prank(requester.addr);
        escrow.revokeSession(otherNode.addr, NATIVE);
        _assertSession(10, block.timestamp + THAW_PERIOD);
        skip(THAW_PERIOD);
        _redeemBy(otherNode, 3, 1);
        assertEq(escrow.earned(node.addr, NATIVE), 3);
        skip(1);
        _redeemSkipped(otherNode, 4, 1, SkipReason.BadVoucherSignature);
    }

    function test_RevokingProlongsNothing() external {
        _authorize(10, 5);
        vm.startPrank(requester.addr);
        escrow.revokeSession(otherNode.addr, NATIVE);
        _assertSession(10, block.timestamp + 5);
        escrow.revokeSession(node.addr, NATIVE);
        (uint128 left, uint64 expiry) = escrow.session(requester.addr, node.addr, NATIVE);
        assertEq(left + expiry, 0);
    }

    function test_APermissionInForceCanOnlyBeExtended() external {
        _authorize(10, 1 days);
        uint64 expiry = uint64(block.timestamp + 1 days);
        bytes memory refused = abi.encodeWithSelector(IJobEscrow.SessionInForce.selector, 10, expiry);
        vm.expectRevert(refused);
        _authorize(9, 1 days);
        vm.expectRevert(refused);
        _authorize(10, 1 days - 1);
        _authorize(12, 2 days);
        _assertSession(12, block.timestamp + 2 days);
        skip(2 days + 1);
        _authorize(1, 5);
        _assertSession(1, block.timestamp + 5);
    }

    function test_RevertWhen_TheKeyIsNobodyOrTheTimeIsPast() external {
        vm.startPrank(requester.addr);
        vm.expectRevert(IJobEscrow.ZeroAddress.selector);
        escrow.authorizeSession(address(0), NATIVE, 1, uint64(block.timestamp));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.DeadlinePassed.selector, block.timestamp - 1));
        escrow.authorizeSession(node.addr, NATIVE, 1, uint64(block.timestamp - 1));
    }
}

contract ReservationTest is Base {
    function setUp() public override {
        super.setUp();
        _deposit(10);
        vm.startPrank(requester.addr);
    }

    function _assertReserved(uint256 reserved, uint256 thawing, uint256 thawEnd) internal view {
        (uint256 actual, uint256 actualThawing, uint64 actualEnd) =
            escrow.reservation(requester.addr, node.addr, NATIVE);
        assertEq(actual, reserved, "reserved");
        assertEq(actualThawing, thawing, "thawing");
        assertEq(actualEnd, thawEnd, "thawEnd");
    }

    function test_SetsFreeFundsAside() external {
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ReservationChanged(requester.addr, node.addr, NATIVE, 4, 0, 0, 6);
        escrow.reserve(node.addr, NATIVE, 4);
        escrow.reserve(node.addr, NATIVE, 1);
        _assertReserved(5, 0, 0);
        _assertAccount(requester.addr, NATIVE, 5, 0, 0);
    }

    function test_OnlyItsNodeDrawsOnIt() external {
        escrow.reserve(otherNode.addr, NATIVE, 8);
        vm.stopPrank();
        _redeem(5, 1);
        assertEq(escrow.earned(node.addr, NATIVE), 2);
        _redeemSkipped(requester, 5, 1, SkipReason.InsufficientFunds);
    }

    /// @dev Nothing but the channel's slot is touched.
    function test_TheAccountIsLeftAloneWhereTheReservationSuffices() external {
        escrow.reserve(node.addr, NATIVE, 8);
        vm.stopPrank();
        bytes memory told =
            abi.encodePacked(requester.addr, uint96(5), uint128(0), uint128(0), uint96(0), uint96(3), uint64(1));
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VouchersRedeemed(node.addr, NATIVE, 5, told);
        vm.record();
        _redeem(5, 1);
        (, bytes32[] memory writes) = vm.accesses(address(escrow));
        assertEq(writes.length, 2);
    }

    function test_ComesBackAfterTheNotice() external {
        escrow.reserve(node.addr, NATIVE, 8);
        uint64 end = uint64(block.timestamp) + THAW_PERIOD;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ReservationChanged(requester.addr, node.addr, NATIVE, 8, 5, end, 2);
        escrow.thawReservation(node.addr, NATIVE, 5);
        _assertReserved(8, 5, end);
        skip(THAW_PERIOD - 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.StillThawing.selector, end));
        escrow.releaseReservation(node.addr, NATIVE);
        skip(1);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.ReservationChanged(requester.addr, node.addr, NATIVE, 3, 0, 0, 7);
        assertEq(escrow.releaseReservation(node.addr, NATIVE), 5);
        _assertReserved(3, 0, 0);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.releaseReservation(node.addr, NATIVE);
    }

    function test_TheNodeDrawsOnWhatThaws() external {
        escrow.reserve(node.addr, NATIVE, 8);
        escrow.thawReservation(node.addr, NATIVE, 8);
        skip(THAW_PERIOD);
        vm.stopPrank();
        _redeem(5, 1);
        _assertReserved(3, 3, block.timestamp);
        vm.prank(requester.addr);
        assertEq(escrow.releaseReservation(node.addr, NATIVE), 3);
        _assertReserved(0, 0, 0);
    }

    /// @dev Else a notice given long ago could take back what is reserved now.
    function test_ReservingMoreStopsTheThaw() external {
        escrow.reserve(node.addr, NATIVE, 4);
        escrow.thawReservation(node.addr, NATIVE, 4);
        skip(THAW_PERIOD);
        escrow.reserve(node.addr, NATIVE, 4);
        _assertReserved(8, 0, 0);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.releaseReservation(node.addr, NATIVE);
    }

    function test_RevertWhen_TheAmountsAreWrong() external {
        vm.expectRevert(IJobEscrow.ZeroAddress.selector);
        escrow.reserve(address(0), NATIVE, 1);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.reserve(node.addr, NATIVE, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.Insufficient.selector, requester.addr, NATIVE, 10, 11));
        escrow.reserve(node.addr, NATIVE, 11);
        vm.expectRevert(IJobEscrow.ZeroAmount.selector);
        escrow.thawReservation(node.addr, NATIVE, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.Insufficient.selector, requester.addr, NATIVE, 0, 1));
        escrow.thawReservation(node.addr, NATIVE, 1);
    }

    function test_RevertWhen_MoreThanAChannelCounts() external {
        vm.deal(requester.addr, type(uint128).max);
        escrow.deposit{value: 2 ** 97}(NATIVE, 2 ** 97);
        vm.expectRevert();
        escrow.reserve(node.addr, NATIVE, 2 ** 96);
    }
}
