// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Order, Result, SignedVoucher} from "../src/interfaces/IJobEscrow.sol";
import {Base, KeyVoucher} from "./Base.sol";

/// @notice A batch does what its items would do one by one, and a skipped one changes nothing.
contract BatchesTest is Base {
    uint256 internal constant ITEMS = 12;
    address internal arbiter = makeAddr("arbiter");
    Order[] internal _orders;

    function setUp() public override {
        super.setUp();
        _deposit(20 ether);
        vm.deal(settler, 10 ether);
        vm.prank(settler);
        registry.stake{value: 10 ether}(node.addr);
        vm.prank(owner);
        escrow.setFeeBps(100);
    }

    // ── The same, batched or not ────────────────────────────────────────────────────────────────────────────────────

    /// @dev Of every kind, opened or only signed; more than the deposit pays for.
    function _make(uint256 seed) internal {
        for (uint64 i = 0; i < ITEMS; ++i) {
            uint256 dice = uint256(keccak256(abi.encode(seed, i)));
            Order memory order = _signedOrder(i + 1, uint128(dice % 4 ether) + 1);
            if (dice >> 128 & 1 == 0) order.challengeWindow = WINDOW;
            if (dice >> 129 & 1 == 0) order.arbiter = arbiter;
            if (order.challengeWindow != 0 && dice >> 130 & 3 == 0) {
                (order.node, order.assigner) = (address(0), assigner.addr);
            }
            order.maxFeeBps = uint16(dice >> 132 & 255);
            order.deadline += uint64(dice >> 140 & 1) * 10 days;
            _orders.push(order);
            if (dice >> 141 & 3 == 0) _open(order);
        }
    }

    /// @dev Good ones, bad ones, and some twice.
    function _results(uint256 seed) internal view returns (Result[] memory results) {
        results = new Result[](ITEMS);
        for (uint256 i = 0; i < ITEMS; ++i) {
            uint256 dice = uint256(keccak256(abi.encode(seed, i, "result")));
            Order memory order = _orders[dice % ITEMS];
            results[i] = _signedResult(order, uint128(dice >> 32) % (order.maxPrice + order.maxPrice / 8 + 1));
            if (dice >> 160 & 7 == 0) results[i].receiptSignature[5] ^= 0x01;
            if (dice >> 160 & 7 == 1) results[i].node = otherNode.addr;
            if (dice >> 160 & 7 == 2) results[i].orderSignature = "";
        }
    }

    /// @dev All that anybody can see of the orders, their parties and the node's stake.
    function _state() internal view returns (bytes32) {
        (uint128 free, uint128 thawing,) = escrow.account(requester.addr, NATIVE);
        (uint256 claimed, uint64 covered) = escrow.channel(requester.addr, node.addr, NATIVE);
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, NATIVE);
        (uint32 bonds, uint32 paid, uint32 disputed, uint32 lost) = registry.recordOf(node.addr);
        bytes memory seen = abi.encode(free, thawing, claimed, covered, reserved, bonds, paid, disputed, lost);
        seen = bytes.concat(seen, abi.encode(escrow.earned(node.addr, NATIVE), escrow.fees(NATIVE)));
        for (uint256 i = 0; i < _orders.length; ++i) {
            (, bytes memory job) = address(escrow).staticcall(abi.encodeCall(escrow.job, (escrow.jobIdOf(_orders[i]))));
            seen = bytes.concat(seen, job);
        }
        return keccak256(seen);
    }

    /// @dev The calls one by one, without those that write nothing, lead to where the batch led.
    function _assertSame(bytes memory whole, bytes[] memory items, address by) internal {
        uint256 before = vm.snapshotState();
        _do(by, whole);
        bytes32 batched = _state();
        vm.revertToState(before);
        bool[] memory changes = new bool[](items.length);
        for (uint256 i = 0; i < items.length; ++i) {
            vm.record();
            _do(by, items[i]);
            (, bytes32[] memory writes) = vm.accesses(address(escrow));
            changes[i] = writes.length != 0;
        }
        assertEq(_state(), batched, "one by one");
        vm.revertToState(before);
        for (uint256 i = 0; i < items.length; ++i) {
            if (changes[i]) _do(by, items[i]);
        }
        assertEq(_state(), batched, "without the skipped ones");
    }

    function _do(address by, bytes memory data) internal {
        vm.prank(by);
        (bool done,) = address(escrow).call(data);
        assertTrue(done);
    }

    function testFuzz_ResultsDoWhatTheyDoAlone(uint256 seed) external {
        _make(seed);
        Result[] memory results = _results(seed);
        bytes[] memory items = new bytes[](ITEMS);
        for (uint256 i = 0; i < ITEMS; ++i) {
            items[i] = abi.encodeCall(escrow.submitResults, (_batch(results[i])));
        }
        _assertSame(abi.encodeCall(escrow.submitResults, (results)), items, settler);
    }

    /// @dev Some wait, some are in dispute, some are covered by a voucher, some have ended; some come twice.
    function testFuzz_FinalizingAndRefundingDoWhatTheyDoAlone(uint256 seed) external {
        _make(seed);
        escrow.submitResults(_results(seed));
        for (uint256 i = 0; i < ITEMS; i += 3) {
            vm.prank(requester.addr);
            (bool done,) = address(escrow).call(abi.encodeCall(escrow.dispute, (_orders[i])));
            done;
        }
        _redeem(uint128(seed % 3 ether), uint64(seed % 5));
        skip(WINDOW + 1);
        Order[] memory orders = new Order[](ITEMS);
        bytes[] memory finalized = new bytes[](ITEMS);
        bytes[] memory refunded = new bytes[](ITEMS);
        for (uint256 i = 0; i < ITEMS; ++i) {
            orders[i] = _orders[uint256(keccak256(abi.encode(seed, i, "order"))) % ITEMS];
            finalized[i] = abi.encodeCall(escrow.finalize, (_batch(orders[i])));
            refunded[i] = abi.encodeCall(escrow.refundExpired, (_batch(orders[i])));
        }
        _assertSame(abi.encodeCall(escrow.finalize, (orders)), finalized, settler);
        _assertSame(abi.encodeCall(escrow.refundExpired, (orders)), refunded, settler);
    }

    function testFuzz_VouchersDoWhatTheyDoAlone(uint256 seed) external {
        _make(seed);
        escrow.submitResults(_results(seed));
        vm.prank(requester.addr);
        escrow.authorizeSession(otherNode.addr, NATIVE, 1 ether, uint64(block.timestamp + 1));
        KeyVoucher[] memory vouchers = new KeyVoucher[](ITEMS);
        SignedVoucher[] memory signed = new SignedVoucher[](ITEMS);
        bytes[] memory items = new bytes[](ITEMS);
        bytes[] memory signedItems = new bytes[](ITEMS);
        for (uint256 i = 0; i < ITEMS; ++i) {
            uint256 dice = uint256(keccak256(abi.encode(seed, i, "voucher")));
            (uint128 cumulative, uint64 covered) = (uint128(dice % 8 ether), uint64((dice >> 64) % ITEMS));
            KeyVoucher[] memory one = _keyVoucher(dice >> 128 & 3 == 0 ? otherNode : requester, cumulative, covered);
            signed[i] = _signedVoucher(cumulative, covered, _batch(_orders[dice >> 130 & 7]))[0];
            if (dice >> 140 & 7 == 0) (one[0].cumulative, signed[i].cumulative) = (cumulative + 1, cumulative + 1);
            vouchers[i] = one[0];
            items[i] = _redeemCall(node.addr, NATIVE, one);
            signedItems[i] = abi.encodeCall(escrow.redeemSigned, (node.addr, NATIVE, _one(signed[i])));
        }
        _assertSame(_redeemCall(node.addr, NATIVE, vouchers), items, node.addr);
        _assertSame(abi.encodeCall(escrow.redeemSigned, (node.addr, NATIVE, signed)), signedItems, node.addr);
    }

    function _one(SignedVoucher memory voucher) internal pure returns (SignedVoucher[] memory vouchers) {
        vouchers = new SignedVoucher[](1);
        vouchers[0] = voucher;
    }
}

/// @notice The gas of a batch is linear in its items: each call a transaction of its own, intrinsic gas included.
/// forge-config: default.isolate = true
contract LinearGasTest is Base {
    address internal arbiter = makeAddr("arbiter");

    function setUp() public override {
        super.setUp();
        _deposit(20 ether);
        vm.deal(settler, 10 ether);
        vm.prank(settler);
        registry.stake{value: 10 ether}(node.addr);
    }

    /// @dev `n` orders of one kind, without the money for more than themselves.
    function _alike(uint256 n, uint32 window, address arbiter_, bool open) internal returns (Order[] memory orders) {
        vm.deal(requester.addr, 1000 ether);
        _deposit(n * 0.1 ether);
        orders = new Order[](n);
        for (uint256 i = 0; i < n; ++i) {
            orders[i] = _signedOrder(uint64(i + 1), 0.1 ether);
            (orders[i].challengeWindow, orders[i].arbiter, orders[i].maxFeeBps) = (window, arbiter_, 100);
            if (open) _open(orders[i]);
        }
    }

    function _resultsOf(Order[] memory orders) internal view returns (Result[] memory results) {
        results = new Result[](orders.length);
        for (uint256 i = 0; i < orders.length; ++i) {
            results[i] = _signedResult(orders[i], 0.1 ether);
        }
    }

    function _gasOf(address by, bytes memory data) internal returns (uint256) {
        vm.prank(by);
        (bool done,) = address(escrow).call(data);
        assertTrue(done);
        return vm.lastCallGas().gasTotalUsed;
    }

    /// @dev An item among 64 costs no more than one among 8: what memory grows by is less than what is shared.
    function _assertLinear(function(uint256) internal returns (uint256) measure) internal {
        uint256 before = vm.snapshotState();
        uint256 few = measure(8);
        vm.revertToState(before);
        uint256 many = measure(64);
        vm.revertToState(before);
        assertLe(many / 64, few / 8, "more for an item of a larger batch");
    }

    function _settleOpened(uint256 n) internal returns (uint256) {
        return _gasOf(settler, abi.encodeCall(escrow.submitResults, (_resultsOf(_alike(n, 0, address(0), true)))));
    }

    function _settleSigned(uint256 n) internal returns (uint256) {
        return _gasOf(settler, abi.encodeCall(escrow.submitResults, (_resultsOf(_alike(n, 0, address(0), false)))));
    }

    function _settleBonded(uint256 n) internal returns (uint256) {
        return _gasOf(settler, abi.encodeCall(escrow.submitResults, (_resultsOf(_alike(n, WINDOW, arbiter, false)))));
    }

    function _finalizeBonded(uint256 n) internal returns (uint256) {
        Order[] memory orders = _alike(n, WINDOW, arbiter, false);
        escrow.submitResults(_resultsOf(orders));
        skip(WINDOW);
        return _gasOf(settler, abi.encodeCall(escrow.finalize, (orders)));
    }

    function _refundAll(uint256 n) internal returns (uint256) {
        Order[] memory orders = _alike(n, 0, address(0), true);
        skip(2 days);
        return _gasOf(settler, abi.encodeCall(escrow.refundExpired, (orders)));
    }

    function _redeemAll(uint256 n) internal returns (uint256) {
        KeyVoucher[] memory vouchers = new KeyVoucher[](n);
        for (uint256 i = 0; i < n; ++i) {
            vouchers[i] = _keyVoucher(requester, uint128(i + 1), uint64(i + 1))[0];
        }
        return _gasOf(node.addr, _redeemCall(node.addr, NATIVE, vouchers));
    }

    function _redeemAllSigned(uint256 n) internal returns (uint256) {
        SignedVoucher[] memory vouchers = new SignedVoucher[](n);
        for (uint256 i = 0; i < n; ++i) {
            vouchers[i] = _signedVoucher(uint128(i + 1), uint64(i + 1), new Order[](0))[0];
        }
        return _gasOf(node.addr, abi.encodeCall(escrow.redeemSigned, (node.addr, NATIVE, vouchers)));
    }

    /// @dev Orders shown with one voucher.
    function _showAll(uint256 n) internal returns (uint256) {
        Order[] memory orders = _alike(n, 0, address(0), false);
        escrow.submitResults(_resultsOf(orders));
        for (uint256 i = 0; i < n; ++i) {
            for (uint256 k = i; k != 0 && escrow.jobIdOf(orders[k]) < escrow.jobIdOf(orders[k - 1]); --k) {
                (orders[k], orders[k - 1]) = (orders[k - 1], orders[k]);
            }
        }
        SignedVoucher[] memory vouchers = _signedVoucher(1, 0, orders);
        return _gasOf(node.addr, abi.encodeCall(escrow.redeemSigned, (node.addr, NATIVE, vouchers)));
    }

    function test_EveryBatchIsLinearInItsItems() external {
        _assertLinear(_settleOpened);
        _assertLinear(_settleSigned);
        _assertLinear(_settleBonded);
        _assertLinear(_finalizeBonded);
        _assertLinear(_refundAll);
        _assertLinear(_redeemAll);
        _assertLinear(_redeemAllSigned);
        _assertLinear(_showAll);
    }
}
