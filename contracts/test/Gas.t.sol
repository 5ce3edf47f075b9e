// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {JobSpec, Order, Result, SignedVoucher} from "../src/interfaces/IJobEscrow.sol";
import {Base, KeyVoucher} from "./Base.sol";

/// @notice What everything costs, as transactions of their own: intrinsic gas and cold storage included, refunds taken off.
/// @dev The figures are kept in `snapshots/`, and `forge test` fails when one changes. After a change that is meant, run
/// `FORGE_SNAPSHOT_CHECK=false forge test --match-contract Gas` and commit what it wrote. Batches are the dear kind:
/// every item has a requester of its own. The node has earned before. Of a figure per item the rest is dropped.
/// forge-config: default.isolate = true
contract GasTest is Base {
    string internal constant ESCROW = "JobEscrow";
    string internal constant REGISTRY = "NodeRegistry";
    /// @dev What `scripts/bench gas` reports, under the names it reports.
    string internal constant SCENARIOS = "Scenarios";

    enum Kind {
        Named,
        Windowed,
        Assigned
    }

    function setUp() public override {
        super.setUp();
        // Two jobs before the first that is measured, so that the node's earnings and the settler are not new.
        for (uint64 i = 0; i < 2; ++i) {
            Order memory order = _order();
            order.nonce = type(uint64).max - i;
            order.token = i == 0 ? NATIVE : address(token);
            _open(order);
            _submit(_result(order));
        }
    }

    // ── Requesters ──────────────────────────────────────────────────────────────────────────────────────────────────

    function test_Deposit() external {
        address fresh = makeAddr("fresh");
        vm.deal(fresh, 10 ether);
        vm.startPrank(fresh);
        escrow.deposit{value: 1 ether}(NATIVE, 1 ether);
        uint256 gas = vm.snapshotGasLastCall(ESCROW, "deposit native, first");
        assertLt(gas, 50_907);
        vm.snapshotValue(SCENARIOS, "deposit_first", gas);
        escrow.deposit{value: 1 ether}(NATIVE, 1 ether);
        gas = vm.snapshotGasLastCall(ESCROW, "deposit native, next");
        assertLt(gas, 33_807);
        vm.snapshotValue(SCENARIOS, "deposit_next", gas);
    }

    function test_DepositToken() external {
        address fresh = makeAddr("fresh");
        token.mint(fresh, 10 ether);
        vm.startPrank(fresh);
        token.approve(address(escrow), type(uint256).max);
        escrow.deposit(address(token), 1 ether);
        vm.snapshotGasLastCall(ESCROW, "deposit ERC-20, first");
        escrow.deposit(address(token), 1 ether);
        vm.snapshotGasLastCall(ESCROW, "deposit ERC-20, next");
    }

    function test_OpenJob() external {
        vm.startPrank(requester.addr);
        escrow.deposit{value: 5 * MAX_PRICE}(NATIVE, 5 * MAX_PRICE);
        Order memory order = _order();
        JobSpec memory spec = _spec();
        spec.params = '{"to":"0x2fe57da347cd62431528daac5fbb290730fff684afc4cfc2ed90995f58cb3b74"}';
        order.specHash = _specHash(spec);
        escrow.openJob(order, spec);
        uint256 gas = vm.snapshotGasLastCall(ESCROW, "openJob from the deposit");
        assertLt(gas, 195_488);
        vm.snapshotValue(SCENARIOS, "open_job", gas);
        order.nonce = 1;
        escrow.openJob{value: MAX_PRICE}(order, spec);
        vm.snapshotGasLastCall(ESCROW, "openJob with value");
    }

    function test_Withdraw() external {
        vm.startPrank(requester.addr);
        escrow.deposit{value: 10 ether}(NATIVE, 10 ether);
        escrow.thaw(NATIVE, 1 ether);
        vm.snapshotGasLastCall(ESCROW, "thaw, first");
        skip(THAW_PERIOD);
        escrow.withdraw(NATIVE, requester.addr);
        uint256 gas = vm.snapshotGasLastCall(ESCROW, "withdraw native to oneself");
        assertLt(gas, 40_509);
        vm.snapshotValue(SCENARIOS, "withdraw", gas);
        escrow.thaw(NATIVE, 1 ether);
        vm.snapshotGasLastCall(ESCROW, "thaw, next");
        skip(THAW_PERIOD);
        escrow.withdraw(NATIVE, settler);
        vm.snapshotGasLastCall(ESCROW, "withdraw native to another");
    }

    function test_WithdrawEarned() external {
        vm.startPrank(node.addr);
        escrow.withdrawEarned(NATIVE, node.addr);
        assertLt(vm.snapshotGasLastCall(ESCROW, "withdrawEarned native to oneself"), 40_509);
        escrow.withdrawEarned(address(token), node.addr);
        vm.snapshotGasLastCall(ESCROW, "withdrawEarned ERC-20 to oneself");
    }

    // ── Batches ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Opens `n` jobs of distinct requesters, who keep a free balance.
    function _openMany(Kind kind, uint256 n) internal returns (Order[] memory orders, Result[] memory results) {
        orders = new Order[](n);
        results = new Result[](n);
        Vm.Wallet memory usual = requester;
        for (uint256 i = 0; i < n; ++i) {
            requester.addr = address(uint160(uint256(keccak256(abi.encode("requester", i)))));
            vm.deal(requester.addr, 1000 ether);
            vm.prank(requester.addr);
            escrow.deposit{value: 1 ether}(NATIVE, 1 ether);
            orders[i] = kind == Kind.Named ? _order() : kind == Kind.Windowed ? _windowedOrder() : _assignedOrder();
            _open(orders[i]);
            results[i] = _result(orders[i]);
        }
        requester = usual;
    }

    function _snapshotBatch(string memory name, uint256 n) internal returns (uint256 perItem) {
        perItem = vm.snapshotGasLastCall(ESCROW, string.concat(name, ", batch of ", vm.toString(n))) / n;
        vm.snapshotValue(ESCROW, string.concat(name, ", batch of ", vm.toString(n), ", per item"), perItem);
    }

    /// @dev What finalizing an item of the batch settled last took.
    uint256 internal finalizing;

    function _settle(Kind kind, string memory name, uint256 n) internal returns (uint256 perItem) {
        (Order[] memory orders, Result[] memory results) = _openMany(kind, n);
        vm.prank(settler);
        escrow.submitResults(results);
        perItem = _snapshotBatch(string.concat("submitResults ", name), n);
        if (kind == Kind.Named) {
            assertEq(escrow.earned(node.addr, NATIVE), PRICE * (n + 1));
            return perItem;
        }
        skip(WINDOW);
        vm.prank(settler);
        escrow.finalize(orders);
        finalizing = _snapshotBatch(string.concat("finalize ", name), n);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE * (n + 1));
    }

    function test_SettleOne() external {
        uint256 gas = _settle(Kind.Named, "paid at once", 1);
        assertLt(gas, 116_712);
        vm.snapshotValue(SCENARIOS, "submit_result_1", gas);
    }

    function test_SettleOneWindowed() external {
        assertLt(_settle(Kind.Windowed, "windowed", 1), 116_712);
    }

    function test_SettleOneAssigned() external {
        assertLt(_settle(Kind.Assigned, "assigned", 1), 116_712);
    }

    function test_SettleBatchOf8() external {
        _settle(Kind.Named, "paid at once", 8);
    }

    function test_SettleBatchOf32() external {
        uint256 gas = _settle(Kind.Named, "paid at once", 32);
        assertLt(gas, 67_317);
        vm.snapshotValue(SCENARIOS, "submit_results_32_per_item", gas);
    }

    function test_SettleBatchOf128() external {
        uint256 gas = _settle(Kind.Named, "paid at once", 128);
        assertLt(gas, 67_317);
        vm.snapshotValue(SCENARIOS, "submit_results_128_per_item", gas);
    }

    function test_SettleWindowedBatchOf32() external {
        assertLt(_settle(Kind.Windowed, "windowed", 32), 67_317);
    }

    function test_SettleAssignedBatchOf8() external {
        _settle(Kind.Assigned, "assigned", 8);
    }

    function test_SettleAssignedBatchOf32() external {
        assertLt(_settle(Kind.Assigned, "assigned", 32), 67_317);
    }

    function test_SettleAssignedBatchOf128() external {
        assertLt(_settle(Kind.Assigned, "assigned", 128), 67_317);
    }

    /// @dev From the deposit: what it costs to open one more job.
    function _openOne(Order memory order) internal returns (uint256 gas) {
        order.nonce = 99;
        vm.startPrank(requester.addr);
        escrow.deposit{value: 2 * MAX_PRICE}(NATIVE, 2 * MAX_PRICE);
        escrow.openJob(order, _spec());
        gas = vm.lastCallGas().gasTotalUsed;
        vm.stopPrank();
    }

    /// @dev One job on-chain from its opening to its payment, when 32 are settled together. The order names its node.
    function test_WholeJob() external {
        uint256 gas = _openOne(_order()) + _settle(Kind.Named, "paid at once", 32);
        vm.snapshotValue(ESCROW, "one job, opened and paid at once in a batch of 32", gas);
        vm.snapshotValue(SCENARIOS, "lifecycle_32_per_job", gas);
        assertLe(gas, 150_000);
    }

    /// @dev The same of an order that is assigned off-chain, has a window, and is finalized in a batch of 32, too.
    function test_WholeAssignedJob() external {
        uint256 gas = _openOne(_assignedOrder());
        gas += _settle(Kind.Assigned, "assigned", 32);
        gas += finalizing;
        vm.snapshotValue(ESCROW, "one job, opened, assigned and paid after its window in batches of 32", gas);
        vm.snapshotValue(SCENARIOS, "lifecycle_assigned_32_per_job", gas);
        assertLe(gas, 150_000);
    }

    function test_RefundBatchOf32() external {
        (Order[] memory orders,) = _openMany(Kind.Named, 32);
        vm.warp(orders[0].deadline + 1);
        vm.prank(settler);
        escrow.refundExpired(orders);
        _snapshotBatch("refundExpired", 32);
    }

    function test_SkippedBatchOf32() external {
        (, Result[] memory results) = _openMany(Kind.Named, 32);
        escrow.submitResults(results);
        vm.prank(settler);
        escrow.submitResults(results);
        _snapshotBatch("submitResults all skipped", 32);
    }

    // ── Signed orders and vouchers ──────────────────────────────────────────────────────────────────────────────────

    function _requesterOf(uint256 i) internal returns (Vm.Wallet memory wallet) {
        wallet.privateKey = uint256(keccak256(abi.encode("requester", i)));
        wallet.addr = vm.addr(wallet.privateKey);
        vm.deal(wallet.addr, 1000 ether);
    }

    /// @dev Vouchers of distinct requesters who have paid the node by voucher before.
    function _redeemMany(string memory name, uint256 n, bool reserved) internal returns (uint256 perItem) {
        Vm.Wallet memory usual = requester;
        KeyVoucher[] memory vouchers = new KeyVoucher[](n);
        for (uint256 i = 0; i < n; ++i) {
            requester = _requesterOf(i);
            _deposit(10 ether);
            if (reserved) {
                vm.prank(requester.addr);
                escrow.reserve(node.addr, NATIVE, 5 ether);
            }
            _redeem(1 ether, 1000);
            vouchers[i] = _keyVoucher(requester, 2.3 ether, 2000)[0];
        }
        requester = usual;
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        perItem = _snapshotBatch(string.concat("redeem ", name), n);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE + n * 2.3 ether);
    }

    function test_RedeemFromFreeFunds() external {
        vm.snapshotValue(SCENARIOS, "redeem_1", _redeemMany("from free funds", 1, false));
    }

    function test_RedeemFromFreeFundsBatchOf32() external {
        _redeemMany("from free funds", 32, false);
    }

    function test_RedeemFromFreeFundsBatchOf128() external {
        uint256 gas = _redeemMany("from free funds", 128, false);
        assertLe(gas, 17_000);
        vm.snapshotValue(SCENARIOS, "redeem_128_per_voucher", gas);
    }

    function test_RedeemFromReservations() external {
        _redeemMany("from reservations", 1, true);
    }

    function test_RedeemFromReservationsBatchOf128() external {
        uint256 gas = _redeemMany("from reservations", 128, true);
        assertLe(gas, 13_000);
        vm.snapshotValue(SCENARIOS, "redeem_reserved_128_per_voucher", gas);
    }

    function test_RedeemSigned() external {
        _deposit(10 ether);
        _redeem(1 ether, 1000);
        SignedVoucher[] memory vouchers = _signedVoucher(2.3 ether, 2000, new Order[](0));
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        vm.snapshotGasLastCall(ESCROW, "redeemSigned, a key's");
        Order[] memory above = new Order[](1);
        above[0] = _settleAlone(4000, 1 ether);
        vouchers = _signedVoucher(3.3 ether, 3000, above);
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
        vm.snapshotGasLastCall(ESCROW, "redeemSigned, a key's, with one order above");
        assertEq(escrow.earned(node.addr, NATIVE), PRICE + 4.3 ether);
    }

    function test_Session() external {
        _deposit(10 ether);
        _redeem(1 ether, 1000);
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, 5 ether, uint64(NOW + 1 days));
        vm.snapshotGasLastCall(ESCROW, "authorizeSession, first");
        _redeemBy(otherNode, 2 ether, 2000);
        vm.snapshotGasLastCall(ESCROW, "redeem from free funds by a session key");
        vm.prank(requester.addr);
        escrow.revokeSession(otherNode.addr, NATIVE);
        vm.snapshotGasLastCall(ESCROW, "revokeSession");
    }

    function test_Reservation() external {
        _deposit(10 ether);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 1 ether);
        vm.snapshotGasLastCall(ESCROW, "reserve, first");
        escrow.reserve(node.addr, NATIVE, 1 ether);
        vm.snapshotGasLastCall(ESCROW, "reserve, next");
        escrow.thawReservation(node.addr, NATIVE, 1 ether);
        vm.snapshotGasLastCall(ESCROW, "thawReservation");
        skip(THAW_PERIOD);
        escrow.releaseReservation(node.addr, NATIVE);
        vm.snapshotGasLastCall(ESCROW, "releaseReservation");
    }

    function test_SetSettler() external {
        vm.prank(node.addr);
        escrow.setSettler(settler, true);
        vm.snapshotGasLastCall(ESCROW, "setSettler");
    }

    // ── Disputes ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev A result that waits in its window, under an arbiter.
    function _waiting(uint64 nonce) internal returns (Order memory order) {
        order = _windowedOrder();
        order.nonce = nonce;
        order.arbiter = makeAddr("arbiter");
        _open(order);
        _submit(_result(order));
        vm.snapshotGasLastCall(ESCROW, "submitResults with an arbiter, batch of 1");
    }

    function test_Disputes() external {
        _deposit(10 ether);
        // The node's counters and bonds have been used before.
        Order memory first = _waiting(1);
        vm.prank(requester.addr);
        escrow.accept(first);
        (Order memory accepted, Order memory won, Order memory lost) = (_waiting(2), _waiting(3), _waiting(4));
        vm.startPrank(requester.addr);
        escrow.accept(accepted);
        vm.snapshotGasLastCall(ESCROW, "accept");
        escrow.dispute(won);
        vm.snapshotGasLastCall(ESCROW, "dispute");
        escrow.dispute(lost);
        vm.stopPrank();
        vm.startPrank(won.arbiter);
        escrow.resolve(won, 10_000, 0);
        vm.snapshotGasLastCall(ESCROW, "resolve for the node");
        escrow.resolve(lost, 0, 10_000);
        vm.snapshotGasLastCall(ESCROW, "resolve against the node, with slashing");
    }

    function test_CancelJob() external {
        Order memory order = _order();
        _open(order);
        vm.startPrank(requester.addr);
        escrow.cancelJob(order);
        vm.snapshotGasLastCall(ESCROW, "cancelJob, opened");
        order.nonce = 5;
        escrow.cancelJob(order);
        vm.snapshotGasLastCall(ESCROW, "cancelJob, signed");
    }

    function _settleSigned(uint256 n) internal returns (uint256 perItem) {
        Vm.Wallet memory usual = requester;
        Result[] memory results = new Result[](n);
        for (uint256 i = 0; i < n; ++i) {
            requester = _requesterOf(i);
            _deposit(10 ether);
            _settleAlone(1, 1 ether);
            results[i] = _signedResult(_signedOrder(2, 2 ether), 1 ether);
        }
        requester = usual;
        vm.prank(settler);
        escrow.submitResults(results);
        perItem = _snapshotBatch("submitResults signed order", n);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE + n * 2 ether);
    }

    function test_SettleSigned() external {
        assertLt(_settleSigned(1), 116_712);
    }

    function test_SettleSignedBatchOf8() external {
        _settleSigned(8);
    }

    function test_SettleSignedBatchOf32() external {
        assertLt(_settleSigned(32), 67_317);
    }

    function test_SettleSignedBatchOf128() external {
        assertLt(_settleSigned(128), 67_317);
    }

    // ── Nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_Registry() external {
        vm.deal(otherNode.addr, 10 ether);
        vm.startPrank(otherNode.addr);
        registry.register{value: MIN_STAKE}(
            "node", new bytes(32), otherNode.addr, 4, _operations(), "https://node.example"
        );
        vm.snapshotGasLastCall(REGISTRY, "register with a stake");
        registry.update(new bytes(32), otherNode.addr, 5, _operations(), "https://node.example");
        vm.snapshotGasLastCall(REGISTRY, "update");
        registry.stake{value: 1 ether}(otherNode.addr);
        vm.snapshotGasLastCall(REGISTRY, "stake");
        registry.startUnbond(1 ether);
        vm.snapshotGasLastCall(REGISTRY, "startUnbond");
        skip(UNBONDING_PERIOD);
        registry.finishUnbond();
        vm.snapshotGasLastCall(REGISTRY, "finishUnbond");
    }
}
