// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order, Result, SignedVoucher, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";
import {ReentrantReceiver, RejectingReceiver} from "./mocks/HostileTokens.sol";
import {
    BurningWallet,
    DirtyReturnWallet,
    FickleWallet,
    InvalidWallet,
    ReentrantWallet,
    RefusingDelegate,
    RevertBombWallet,
    RevertingWallet,
    ShortReturnWallet,
    SilentWallet,
    SpendingWallet,
    WrongMagicWallet
} from "./mocks/Wallets.sol";

/// @notice Contract wallets that do not play by the rules, wherever a signature of theirs may count: each stands between two
/// honest items of a batch, is skipped, and harms neither.
contract HostileWalletsTest is Base {
    bytes internal constant ANY = "any signature";
    address[] internal _wallets;
    ReentrantWallet internal _reentrant;

    function setUp() public override {
        super.setUp();
        FickleWallet fickle = new FickleWallet();
        fickle.refuse();
        _reentrant = new ReentrantWallet();
        _reentrant.arm(address(escrow), abi.encodeCall(IJobEscrow.setSettler, (settler, true)));
        _wallets = [
            address(new BurningWallet()),
            address(new InvalidWallet()),
            address(new RevertingWallet()),
            address(new RevertBombWallet()),
            address(new ShortReturnWallet()),
            address(new DirtyReturnWallet()),
            address(new SilentWallet()),
            address(new SpendingWallet(150_000)),
            address(new WrongMagicWallet()),
            address(fickle),
            address(_reentrant),
            address(token)
        ];
        _deposit(10 ether);
        for (uint256 i = 0; i < _wallets.length; ++i) {
            vm.deal(settler, 5 ether);
            vm.prank(settler);
            escrow.depositFor{value: 5 ether}(_wallets[i], NATIVE, 5 ether);
        }
    }

    function _assertUntouched(address wallet) internal view {
        _assertAccount(wallet, NATIVE, 5 ether, 0, 0);
        (uint256 claimed, uint64 covered) = escrow.channel(wallet, node.addr, NATIVE);
        assertEq(claimed, 0);
        assertEq(covered, 0);
    }

    // ── Vouchers ────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_AsARequesterOfAVoucher() external {
        for (uint256 i = 0; i < _wallets.length; ++i) {
            uint128 honest = uint128(2 * i + 1);
            SignedVoucher[] memory vouchers = new SignedVoucher[](3);
            vouchers[0] = _signedVoucher(honest, 1, new Order[](0))[0];
            vouchers[1] = SignedVoucher(_wallets[i], 1 ether, 1, ANY, new Order[](0));
            vouchers[2] = _signedVoucher(honest + 1, 1, new Order[](0))[0];
            vm.expectEmit(address(escrow));
            emit IJobEscrow.VoucherSkipped(_wallets[i], node.addr, NATIVE, 1 ether, SkipReason.BadVoucherSignature);
            vm.prank(node.addr);
            escrow.redeemSigned{gas: 500_000}(node.addr, NATIVE, vouchers);
            assertEq(escrow.earned(node.addr, NATIVE), honest + 1);
            _assertUntouched(_wallets[i]);
        }
        assertFalse(escrow.isSettler(address(_reentrant), settler));
    }

    // ── Orders ──────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev The two honest ones around `hostile`, which the batch skips for `reason`.
    function _settleAround(Result memory hostile, uint64 nonce, SkipReason reason) internal {
        Result[] memory results = new Result[](3);
        results[0] = _signedResult(_signedOrder(nonce, 1), 1);
        results[1] = hostile;
        results[2] = _signedResult(_signedOrder(nonce + 1, 2), 2);
        uint256 before = escrow.earned(node.addr, NATIVE);
        bytes32 jobId = escrow.jobIdOf(hostile.order);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Skipped(jobId, reason);
        vm.prank(settler);
        escrow.submitResults{gas: 800_000}(results);
        assertEq(escrow.earned(node.addr, NATIVE), before + 3);
    }

    function test_AsARequesterOfAnOrder() external {
        for (uint64 i = 0; i < _wallets.length; ++i) {
            Order memory order = _signedOrder(1, 1 ether);
            order.requester = _wallets[i];
            Result memory result = _result(order, node, 1 ether);
            result.orderSignature = ANY;
            _settleAround(result, 10 * i + 1, SkipReason.BadOrderSignature);
            _assertJob(escrow.jobIdOf(order), JobState.None, 0, 0, address(0));
            _assertUntouched(_wallets[i]);
        }
    }

    function test_AsANode() external {
        for (uint64 i = 0; i < _wallets.length; ++i) {
            Order memory order = _signedOrder(10 * i + 5, 1 ether);
            order.node = _wallets[i];
            Result memory result = _signedResult(order, 1 ether);
            (result.node, result.receiptSignature) = (_wallets[i], ANY);
            _settleAround(result, 10 * i + 1, SkipReason.BadReceiptSignature);
            assertEq(escrow.earned(_wallets[i], NATIVE), 0);
        }
    }

    function test_AsAnAssigner() external {
        for (uint64 i = 0; i < _wallets.length; ++i) {
            Order memory order = _assignedOrder();
            order.nonce = 10 * i + 5;
            order.assigner = _wallets[i];
            Result memory result = _signedResult(order, 1 ether);
            result.assignmentSignature = ANY;
            _settleAround(result, 10 * i + 1, SkipReason.BadAssignmentSignature);
            _assertJob(escrow.jobIdOf(order), JobState.None, 0, 0, address(0));
        }
    }

    // ── Those that change ───────────────────────────────────────────────────────────────────────────────────────────

    /// @dev What was settled while the wallet agreed stays settled.
    function test_AWalletThatChangesItsMindUndoesNothing() external {
        FickleWallet wallet = new FickleWallet();
        vm.prank(requester.addr);
        escrow.depositFor{value: 5}(address(wallet), NATIVE, 5);
        SignedVoucher[] memory vouchers = new SignedVoucher[](1);
        vouchers[0] = SignedVoucher(address(wallet), 3, 1, ANY, new Order[](0));
        vm.startPrank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        wallet.refuse();
        vouchers[0].cumulative = 5;
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        vm.stopPrank();
        assertEq(escrow.earned(node.addr, NATIVE), 3);
        assertEq(_free(address(wallet), NATIVE), 2);
    }

    /// @dev A key stays a key whatever code its account delegates to, for orders, vouchers and receipts.
    function test_ADelegatedAccountStillSignsWithItsKey() external {
        RefusingDelegate refusing = new RefusingDelegate();
        vm.etch(requester.addr, abi.encodePacked(hex"ef0100", address(refusing)));
        vm.etch(node.addr, abi.encodePacked(hex"ef0100", address(refusing)));
        _settleAlone(1, 1);
        _redeem(4, 2);
        _redeemAbove(5, 2, new Order[](0));
        assertEq(escrow.earned(node.addr, NATIVE), 5);
    }

    /// @dev And its code may sign besides.
    function test_ADelegatedAccountsCodeMaySign() external {
        vm.etch(requester.addr, abi.encodePacked(hex"ef0100", address(new FickleWallet())));
        SignedVoucher[] memory vouchers = _signedVoucher(4, 1, new Order[](0));
        vouchers[0].signature = ANY;
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        assertEq(escrow.earned(node.addr, NATIVE), 4);
    }

    /// @dev A wallet that could sign for a session key could not: keys sign with keys.
    function test_AContractIsNoSessionKey() external {
        FickleWallet wallet = new FickleWallet();
        vm.prank(requester.addr);
        escrow.authorizeSession(address(wallet), NATIVE, 5, uint64(block.timestamp + 1));
        SignedVoucher[] memory vouchers = _signedVoucher(4, 1, new Order[](0));
        vouchers[0].signature = ANY;
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        assertEq(escrow.earned(node.addr, NATIVE), 0);
    }

    // ── Those that take no coin ─────────────────────────────────────────────────────────────────────────────────────

    function test_ANodeThatTakesNoCoinSendsItElsewhere() external {
        RejectingReceiver rejecting = new RejectingReceiver();
        _settleAlone(1, 5);
        vm.startPrank(node.addr);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.TransferFailed.selector, address(rejecting)));
        escrow.withdrawEarned(NATIVE, address(rejecting));
        assertEq(escrow.earned(node.addr, NATIVE), 5);
        escrow.withdrawEarned(NATIVE, makeAddr("elsewhere"));
        assertEq(makeAddr("elsewhere").balance, 5);
    }

    /// @dev Slashed coin goes to the escrow and to nobody, so that no one's code runs when a dispute is resolved.
    function test_NobodysCodeRunsWhenADisputeIsResolved() external {
        RejectingReceiver rejecting = new RejectingReceiver();
        vm.deal(address(rejecting), MAX_PRICE * 2);
        Order memory order = _windowedOrder();
        order.requester = address(rejecting);
        order.arbiter = makeAddr("arbiter");
        vm.startPrank(address(rejecting));
        escrow.openJob{value: order.maxPrice}(order, _spec());
        escrow.deposit{value: 1 ether}(NATIVE, 1 ether);
        vm.stopPrank();
        _submit(_result(order));
        vm.prank(address(rejecting));
        escrow.dispute(order);
        vm.prank(order.arbiter);
        escrow.resolve(order, 0, 10_000);
        assertEq(_free(address(rejecting), NATIVE), MAX_PRICE + 1 ether + BOND);
    }

    /// @dev A receiver of coin may call anything; what moves coin refuses, and nothing is paid twice.
    function test_AReceiverThatCallsBackGetsItsCoinOnce() external {
        ReentrantReceiver receiver = new ReentrantReceiver();
        receiver.execute{value: 50}(address(escrow), 50, abi.encodeCall(IJobEscrow.deposit, (NATIVE, 50)));
        receiver.execute(address(escrow), 0, abi.encodeCall(IJobEscrow.thaw, (NATIVE, 20)));
        skip(THAW_PERIOD);
        bytes[5] memory calls = [
            abi.encodeCall(IJobEscrow.withdraw, (NATIVE, address(receiver))),
            abi.encodeCall(IJobEscrow.withdrawEarned, (NATIVE, address(receiver))),
            abi.encodeCall(IJobEscrow.deposit, (NATIVE, 0)),
            abi.encodeCall(IJobEscrow.thaw, (NATIVE, 30)),
            abi.encodeCall(IJobEscrow.reserve, (node.addr, NATIVE, 30))
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            uint256 before = vm.snapshotState();
            receiver.arm(address(escrow), calls[i]);
            receiver.execute(address(escrow), 0, calls[0]);
            assertEq(receiver.succeeded(), i > 2, "guarded");
            assertEq(address(receiver).balance, 20);
            assertEq(address(escrow).balance, 10 ether + _wallets.length * 5 ether + 30);
            vm.revertToState(before);
        }
    }
}
