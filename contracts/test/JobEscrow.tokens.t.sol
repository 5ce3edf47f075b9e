// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IJobEscrow, Order, Result, SignedVoucher} from "../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Base, KeyVoucher} from "./Base.sol";
import {BlocklistToken, BurningToken, HostilePermitToken, RebasingToken} from "./mocks/HostileBalances.sol";
import {
    FalseToken,
    FeeToken,
    NoReturnToken,
    ReentrantToken,
    ReturnBombToken,
    RevertingToken
} from "./mocks/HostileTokens.sol";
import {TestToken} from "./mocks/TestToken.sol";

/// @notice Every function with a hostile token, and the same with an honest one beside it, which must not notice.
contract HostileTokenMarketTest is Base {
    uint128 internal constant FUNDS = 100 ether;
    address internal arbiter = makeAddr("arbiter");

    function setUp() public override {
        super.setUp();
        vm.prank(owner);
        escrow.setFeeBps(500);
    }

    function _put(TestToken t, uint256 amount) internal {
        t.mint(requester.addr, amount);
        vm.startPrank(requester.addr);
        t.approve(address(escrow), type(uint256).max);
        escrow.deposit(address(t), amount);
        vm.stopPrank();
    }

    /// @dev All that is owed of the token.
    function _owed(address t) internal view returns (uint256) {
        (uint128 free, uint128 thawing,) = escrow.account(requester.addr, t);
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, t);
        return uint256(free) + thawing + reserved + escrow.earned(node.addr, t) + escrow.fees(t);
    }

    function _orderIn(address t, uint64 nonce, bool windowed) internal view returns (Order memory order) {
        order = _signedOrder(nonce, 10 ether);
        (order.token, order.maxFeeBps, order.deadline) = (t, 500, uint64(NOW + 1 days));
        if (windowed) (order.challengeWindow, order.arbiter) = (WINDOW, arbiter);
    }

    function _pair(Order memory a, Order memory b) internal pure returns (Order[] memory orders) {
        orders = new Order[](2);
        (orders[0], orders[1]) = (a, b);
    }

    function _submitBoth(Order memory a, Order memory b) internal {
        Result[] memory results = new Result[](2);
        (results[0], results[1]) = (_signedResult(a, 4 ether), _signedResult(b, 4 ether));
        vm.prank(settler);
        escrow.submitResults(results);
    }

    function _redeemIn(address t, uint128 cumulative, uint64 covered) internal {
        bytes32 digest = _voucherDigest(requester.addr, node.addr, t, cumulative, covered);
        KeyVoucher[] memory vouchers = new KeyVoucher[](1);
        (bytes32 r, bytes32 vs) = vm.signCompact(requester.privateKey, digest);
        vouchers[0] = KeyVoucher(requester.addr, cumulative, covered, r, vs);
        bytes memory call_ = _redeemCall(node.addr, t, vouchers);
        SignedVoucher[] memory signed = new SignedVoucher[](1);
        digest = _voucherDigest(requester.addr, node.addr, t, cumulative + 1, covered);
        signed[0] = SignedVoucher(requester.addr, cumulative + 1, covered, _sign(requester, digest), new Order[](0));
        vm.startPrank(node.addr);
        (bool done,) = address(escrow).call(call_);
        assertTrue(done);
        escrow.redeemSigned(node.addr, t, signed);
        vm.stopPrank();
    }

    /// @dev Everything that moves no token: the hostile one has no say in it. Each batch has an honest order behind the hostile.
    function _settleEverything(address hostile) internal {
        (address a, address b) = (hostile, address(token));
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, a, 30 ether);
        escrow.reserve(node.addr, b, 30 ether);
        escrow.openJob(_orderIn(a, 20, false), _spec());
        escrow.openJob(_orderIn(b, 20, false), _spec());
        escrow.openJob(_orderIn(a, 21, false), _spec());
        escrow.openJob(_orderIn(b, 21, false), _spec());
        vm.stopPrank();
        _submitBoth(_orderIn(a, 20, false), _orderIn(b, 20, false));
        _submitBoth(_orderIn(a, 1, false), _orderIn(b, 1, false));
        for (uint64 nonce = 10; nonce < 13; ++nonce) {
            _submitBoth(_orderIn(a, nonce, true), _orderIn(b, nonce, true));
        }
        _redeemIn(a, 6 ether, 2);
        _redeemIn(b, 6 ether, 2);
        vm.startPrank(requester.addr);
        escrow.accept(_orderIn(a, 10, true));
        escrow.accept(_orderIn(b, 10, true));
        escrow.dispute(_orderIn(a, 11, true));
        escrow.dispute(_orderIn(b, 11, true));
        escrow.thawReservation(node.addr, a, 1 ether);
        escrow.thawReservation(node.addr, b, 1 ether);
        vm.stopPrank();
        vm.startPrank(arbiter);
        escrow.resolve(_orderIn(a, 11, true), 5000, 100);
        escrow.resolve(_orderIn(b, 11, true), 5000, 100);
        vm.stopPrank();
        skip(WINDOW + 1);
        escrow.finalize(_pair(_orderIn(a, 12, true), _orderIn(b, 12, true)));
        vm.warp(NOW + 1 days + 1);
        escrow.refundExpired(_pair(_orderIn(a, 21, false), _orderIn(b, 21, false)));
    }

    /// @dev What every token that is honest in substance comes to, and the honest one beside any.
    function _assertSettled(address t, uint256 deposited) internal view {
        assertEq(_owed(t), deposited, "conserved");
        // Paid: 4 opened, 4 alone, what the voucher adds to make 6 and a unit, 4 accepted, 2 resolved, 4 finalized.
        uint256 paid = 4 ether + (6 ether + 1) + 4 ether + 2 ether + 4 ether;
        uint256 fees = (4 ether + 4 ether + 4 ether + 2 ether + 4 ether) * 500 / 10_000;
        assertEq(escrow.earned(node.addr, t), paid - fees, "earned");
        assertEq(escrow.fees(t), fees, "fees");
    }

    function _withdrawEverything(address t) internal {
        vm.startPrank(requester.addr);
        (, uint256 thawing,) = escrow.reservation(requester.addr, node.addr, t);
        if (thawing != 0) escrow.releaseReservation(node.addr, t);
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, t);
        if (reserved != 0) {
            escrow.thawReservation(node.addr, t, reserved);
            skip(THAW_PERIOD);
            escrow.releaseReservation(node.addr, t);
        }
        escrow.thaw(t, _free(requester.addr, t));
        skip(THAW_PERIOD);
        escrow.withdraw(t, requester.addr);
        vm.stopPrank();
        vm.prank(node.addr);
        escrow.withdrawEarned(t, node.addr);
        vm.prank(owner);
        escrow.withdrawFees(t, owner);
        assertEq(_owed(t), 0, "owed");
    }

    function _takeBothWays(TestToken hostile) internal {
        _put(hostile, FUNDS);
        _put(token, FUNDS);
        uint256 deposited = hostile.balanceOf(address(escrow));
        _settleEverything(address(hostile));
        _assertSettled(address(hostile), deposited);
        _assertSettled(address(token), FUNDS);
        _withdrawEverything(address(hostile));
        _withdrawEverything(address(token));
        assertEq(hostile.balanceOf(address(escrow)), 0);
        assertEq(token.balanceOf(address(escrow)), 0);
        assertEq(token.balanceOf(requester.addr) + token.balanceOf(node.addr) + token.balanceOf(owner), FUNDS);
    }

    function test_FeeOnTransfer() external {
        _takeBothWays(new FeeToken());
    }

    function test_NoReturnValue() external {
        _takeBothWays(new NoReturnToken());
    }

    function test_HugeReturnData() external {
        _takeBothWays(new ReturnBombToken());
    }

    // ── Rebasing ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev What rebases upwards belongs to nobody: accounts are in what came in.
    function test_RebasingUpGivesNobodyMore() external {
        RebasingToken hostile = new RebasingToken();
        _put(hostile, FUNDS);
        _put(token, FUNDS);
        hostile.rebase(200);
        _settleEverything(address(hostile));
        _assertSettled(address(hostile), FUNDS);
        _withdrawEverything(address(hostile));
        assertApproxEqAbs(hostile.balanceOf(address(escrow)), FUNDS, 10);
        _assertSettled(address(token), FUNDS);
        _withdrawEverything(address(token));
    }

    /// @dev What is missing after it rebased downwards, the last ones miss, in that token only, and keep their claim.
    function test_RebasingDownHarmsOnlyThatToken() external {
        RebasingToken hostile = new RebasingToken();
        _put(hostile, FUNDS);
        _put(token, FUNDS);
        hostile.rebase(50);
        _settleEverything(address(hostile));
        _assertSettled(address(hostile), FUNDS);
        vm.prank(node.addr);
        escrow.withdrawEarned(address(hostile), node.addr);
        vm.startPrank(requester.addr);
        escrow.thaw(address(hostile), _free(requester.addr, address(hostile)));
        skip(THAW_PERIOD);
        vm.expectRevert();
        escrow.withdraw(address(hostile), requester.addr);
        vm.stopPrank();
        (, uint128 thawing,) = escrow.account(requester.addr, address(hostile));
        assertGt(thawing, 50 ether);
        _assertSettled(address(token), FUNDS);
        _withdrawEverything(address(token));
    }

    // ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev A withdrawal that a token refuses reverts and leaves the claim; everything else goes on.
    function _assertRefusedAndKept(address hostile) internal {
        vm.startPrank(requester.addr);
        escrow.thaw(hostile, 1 ether);
        skip(THAW_PERIOD);
        (uint128 free, uint128 thawing, uint64 end) = escrow.account(requester.addr, hostile);
        (bool done,) = address(escrow).call{gas: 1_000_000}(abi.encodeCall(escrow.withdraw, (hostile, requester.addr)));
        assertFalse(done);
        _assertAccount(requester.addr, hostile, free, thawing, end);
        vm.stopPrank();
        uint256 earned = escrow.earned(node.addr, hostile);
        vm.prank(node.addr);
        (done,) = address(escrow).call{gas: 1_000_000}(abi.encodeCall(escrow.withdrawEarned, (hostile, node.addr)));
        assertFalse(done);
        assertEq(escrow.earned(node.addr, hostile), earned);
        uint256 fees = escrow.fees(hostile);
        vm.prank(owner);
        (done,) = address(escrow).call{gas: 1_000_000}(abi.encodeCall(escrow.withdrawFees, (hostile, owner)));
        assertFalse(done);
        assertEq(escrow.fees(hostile), fees);
        vm.prank(requester.addr);
        (done,) = address(escrow).call{gas: 1_000_000}(abi.encodeCall(escrow.deposit, (hostile, 1)));
        assertFalse(done);
        assertEq(_free(requester.addr, hostile), free);
        _assertSettled(address(token), FUNDS);
        _withdrawEverything(address(token));
    }

    function _fundBoth(TestToken hostile) internal {
        _put(hostile, FUNDS);
        _put(token, FUNDS);
        hostile.mint(requester.addr, 1);
    }

    function test_ReturningFalse() external {
        FalseToken hostile = new FalseToken();
        _fundBoth(hostile);
        hostile.refuse();
        _settleEverything(address(hostile));
        _assertSettled(address(hostile), FUNDS);
        _assertRefusedAndKept(address(hostile));
    }

    function test_Reverting() external {
        RevertingToken hostile = new RevertingToken();
        _fundBoth(hostile);
        hostile.refuse();
        _settleEverything(address(hostile));
        _assertSettled(address(hostile), FUNDS);
        _assertRefusedAndKept(address(hostile));
    }

    function test_BurningAllGas() external {
        BurningToken hostile = new BurningToken();
        _fundBoth(hostile);
        hostile.burnAll();
        _settleEverything(address(hostile));
        _assertSettled(address(hostile), FUNDS);
        _assertRefusedAndKept(address(hostile));
    }

    function test_BlockingTheEscrow() external {
        BlocklistToken hostile = new BlocklistToken();
        _fundBoth(hostile);
        hostile.setBlocked(address(escrow), true);
        _settleEverything(address(hostile));
        _assertSettled(address(hostile), FUNDS);
        _assertRefusedAndKept(address(hostile));
        hostile.setBlocked(address(escrow), false);
        _withdrawEverything(address(hostile));
        assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    /// @dev Somebody who is blocked names another to receive; nobody else is held up.
    function test_BlockingTheNode() external {
        BlocklistToken hostile = new BlocklistToken();
        _fundBoth(hostile);
        hostile.setBlocked(node.addr, true);
        _settleEverything(address(hostile));
        vm.startPrank(node.addr);
        vm.expectRevert(abi.encodeWithSelector(BlocklistToken.Blocked.selector, node.addr));
        escrow.withdrawEarned(address(hostile), node.addr);
        uint256 earned = escrow.withdrawEarned(address(hostile), settler);
        vm.stopPrank();
        assertEq(hostile.balanceOf(settler), earned);
        vm.prank(owner);
        escrow.withdrawFees(address(hostile), owner);
    }

    // ── Reentrancy ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev From within a deposit and a withdrawal, the token calls every function of the escrow, as itself. What moves tokens
    /// refuses; what does not finds books that are already in order; and the token ends with nothing of anyone's.
    function test_ReenteringEveryFunction() external {
        ReentrantToken hostile = new ReentrantToken();
        _put(hostile, FUNDS);
        _put(token, FUNDS);
        _settleEverything(address(hostile));
        uint256 owed = _owed(address(hostile));
        bytes[] memory calls = _everyCall(address(hostile));
        for (uint256 i = 0; i < calls.length; ++i) {
            uint256 before = vm.snapshotState();
            hostile.arm(address(escrow), calls[i]);
            hostile.mint(requester.addr, 7);
            // Minting has spent the charge: again, for the deposit.
            hostile.arm(address(escrow), calls[i]);
            vm.prank(requester.addr);
            escrow.deposit(address(hostile), 7);
            _assertReentered(hostile, i, owed + 7);
            hostile.arm(address(escrow), calls[i]);
            vm.prank(node.addr);
            uint256 amount = escrow.withdrawEarned(address(hostile), node.addr);
            _assertReentered(hostile, i, owed + 7 - amount);
            vm.revertToState(before);
        }
    }

    function _assertReentered(ReentrantToken hostile, uint256 i, uint256 owed) internal view {
        assertEq(hostile.target(), address(0), "not called");
        if (i < 6) {
            assertFalse(hostile.succeeded());
            bytes4 guard = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;
            // The owner's withdrawal is refused to the token before the guard is asked.
            if (i < 5) assertEq(bytes4(hostile.returned()), guard);
        }
        assertEq(_owed(address(hostile)), owed, "owed");
        assertEq(hostile.balanceOf(address(escrow)), owed, "held");
        _assertSettled(address(token), FUNDS);
    }

    /// @dev Those that move tokens come first.
    function _everyCall(address t) internal view returns (bytes[] memory calls) {
        calls = new bytes[](25);
        calls[0] = abi.encodeCall(escrow.deposit, (t, 1));
        calls[1] = abi.encodeCall(escrow.depositFor, (node.addr, t, 1));
        calls[2] = abi.encodeCall(escrow.depositWithPermit, (t, 1, 0, 0, 0, 0));
        calls[3] = abi.encodeCall(escrow.withdraw, (t, t));
        calls[4] = abi.encodeCall(escrow.withdrawEarned, (t, t));
        calls[5] = abi.encodeCall(escrow.withdrawFees, (t, t));
        calls[6] = abi.encodeCall(escrow.thaw, (t, 1));
        calls[7] = abi.encodeCall(escrow.openJob, (_orderIn(t, 30, false), _spec()));
        calls[8] = abi.encodeCall(escrow.cancelJob, (_orderIn(t, 30, false)));
        calls[9] = abi.encodeCall(escrow.refundExpired, (_batch(_orderIn(t, 21, false))));
        calls[10] = abi.encodeCall(escrow.submitResults, (_batch(_signedResult(_orderIn(t, 1, false), 4 ether))));
        calls[11] = abi.encodeCall(escrow.finalize, (_batch(_orderIn(t, 12, true))));
        calls[12] = abi.encodeCall(escrow.accept, (_orderIn(t, 12, true)));
        calls[13] = abi.encodeCall(escrow.dispute, (_orderIn(t, 12, true)));
        calls[14] = abi.encodeCall(escrow.resolve, (_orderIn(t, 12, true), 0, 0));
        KeyVoucher[] memory vouchers = _keyVoucher(requester, 1 ether, 99);
        calls[15] = _redeemCall(node.addr, t, vouchers);
        calls[16] = _redeemCall(t, t, vouchers);
        calls[17] = abi.encodeCall(escrow.redeemSigned, (node.addr, t, _signedVoucher(1 ether, 99, new Order[](0))));
        calls[18] = abi.encodeCall(escrow.setSettler, (t, true));
        calls[19] = abi.encodeCall(escrow.authorizeSession, (t, t, 1 ether, type(uint64).max));
        calls[20] = abi.encodeCall(escrow.revokeSession, (t, t));
        calls[21] = abi.encodeCall(escrow.reserve, (t, t, 1));
        calls[22] = abi.encodeCall(escrow.thawReservation, (t, t, 1));
        calls[23] = abi.encodeCall(escrow.releaseReservation, (t, t));
        calls[24] = abi.encodeCall(escrow.setFeeBps, (500));
    }

    // ── Permits ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function _depositWithPermit(HostilePermitToken hostile) internal {
        hostile.mint(requester.addr, 5);
        vm.startPrank(requester.addr);
        hostile.approve(address(escrow), 5);
        escrow.depositWithPermit(address(hostile), 5, 0, 0, 0, 0);
        vm.stopPrank();
        assertEq(_free(requester.addr, address(hostile)), 5);
        assertEq(hostile.balanceOf(address(escrow)), 5);
    }

    function test_APermitThatRevertsWithMuchDataDoesNoHarm() external {
        HostilePermitToken hostile = new HostilePermitToken();
        hostile.arm(address(0), "", 100_000);
        _depositWithPermit(hostile);
    }

    function test_APermitThatCallsBackIsRefused() external {
        HostilePermitToken hostile = new HostilePermitToken();
        hostile.arm(address(escrow), abi.encodeCall(IJobEscrow.deposit, (address(hostile), 0)), 0);
        _depositWithPermit(hostile);
        assertFalse(hostile.succeeded());
    }

    /// @dev A permit that stakes for a node is odd and harmless: it is the token's own money.
    function test_APermitMayCallOthers() external {
        HostilePermitToken hostile = new HostilePermitToken();
        hostile.arm(address(registry), abi.encodeCall(INodeRegistry.isStaked, (node.addr)), 0);
        _depositWithPermit(hostile);
        assertTrue(hostile.succeeded());
    }
}
