// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {IJobEscrow, JobState, Order, SignedVoucher} from "../src/interfaces/IJobEscrow.sol";
import {KeyVoucher} from "./Base.sol";
import {Orderings} from "./rails/Orderings.sol";

/// @notice What the cases share.
abstract contract RailsCase is Orderings {
    function _submitCall(Order memory order, uint128 price) internal view returns (bytes memory) {
        return abi.encodeCall(IJobEscrow.submitResults, (_batch(_signedResult(order, price))));
    }

    function _above(Order memory order) internal pure returns (Order[] memory) {
        return _batch(order);
    }

    function _redeemKeysCall(uint128 cumulative, uint64 coveredNonce) internal view returns (bytes memory) {
        return _redeemCall(node.addr, NATIVE, _keyVoucher(requester, cumulative, coveredNonce));
    }

    function _mayTakeBackTheDeposit(bool all) internal {
        uint256 free = _free(requester.addr, NATIVE);
        _mayNotify("thaw", abi.encodeCall(IJobEscrow.thaw, (NATIVE, all ? free : free / 2)));
        _may("withdraw", requester.addr, abi.encodeCall(IJobEscrow.withdraw, (NATIVE, requester.addr)));
    }
}

/// @notice Two orders that are paid at once, and a voucher that covers the first.
contract RailsAtOnceTest is RailsCase {
    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        Order memory first = _lasting(1, P1, 0, address(0));
        Order memory second = _lasting(2, P2, 0, address(0));
        _does("second alone", _submitCall(second, P2));
        _does("voucher", _redeemKeysCall(P1, 1));
        _does("voucher showing the second", _redeemSignedCall(P1, 1, _above(second)));
        _may("first alone", settler, _submitCall(first, P1));
        _mayNotify("cancel the first", abi.encodeCall(IJobEscrow.cancelJob, (first)));
        _mayNotify("cancel the second", abi.encodeCall(IJobEscrow.cancelJob, (second)));
        _mayTakeBackTheDeposit(true);
        _mayWait("notice over", THAW_PERIOD);
    }

    function _most() internal pure override returns (uint256) {
        return P1 + P2;
    }
}

/// @notice An order with a window, one paid at once, and vouchers that cover the first or both.
contract RailsWindowTest is RailsCase {
    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        Order memory first = _lasting(1, P1, WINDOW, address(0));
        Order memory second = _lasting(2, P2, 0, address(0));
        _may("first alone", settler, _submitCall(first, P1));
        _may("accept the first", requester.addr, abi.encodeCall(IJobEscrow.accept, (first)));
        _may("finalize the first", settler, abi.encodeCall(IJobEscrow.finalize, (_batch(first))));
        _does("second alone", _submitCall(second, P2));
        _does("voucher over the first", _redeemKeysCall(P1, 1));
        _does("voucher over both", _redeemKeysCall(P1 + P2, 2));
        _mayTakeBackTheDeposit(true);
        _mayWait("window over", WINDOW);
    }

    function _most() internal pure override returns (uint256) {
        return P1 + P2;
    }
}

/// @notice Nobody signs a voucher: the requester signed two orders and is silent, or takes back what it can.
contract RailsSilenceTest is RailsCase {
    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        Order memory first = _lasting(1, P1, WINDOW, address(0));
        Order memory second = _lasting(2, P2, 0, address(0));
        _does("first alone", _submitCall(first, P1));
        _does("second alone", _submitCall(second, P2));
        _may("finalize the first", settler, abi.encodeCall(IJobEscrow.finalize, (_batch(first))));
        _mayNotify("cancel the first", abi.encodeCall(IJobEscrow.cancelJob, (first)));
        _mayNotify("cancel the second", abi.encodeCall(IJobEscrow.cancelJob, (second)));
        _mayTakeBackTheDeposit(true);
        _mayWait("notice over", THAW_PERIOD);
        _mayWait("window over", WINDOW);
    }

    function _most() internal pure override returns (uint256) {
        return P1 + P2;
    }
}

/// @notice An order before an arbiter that a voucher covers, too.
contract RailsDisputeTest is RailsCase {
    address internal arbiter = makeAddr("arbiter");

    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        Order memory first = _lasting(1, P1, WINDOW, arbiter);
        _may("first alone", settler, _submitCall(first, P1));
        _may("accept", requester.addr, abi.encodeCall(IJobEscrow.accept, (first)));
        _may("dispute", requester.addr, abi.encodeCall(IJobEscrow.dispute, (first)));
        _may("resolve", arbiter, abi.encodeCall(IJobEscrow.resolve, (first, 4000, 0)));
        _may("finalize", settler, abi.encodeCall(IJobEscrow.finalize, (_batch(first))));
        _does("voucher", _redeemKeysCall(P1, 1));
        _mayTakeBackTheDeposit(false);
        _mayWait("window over", WINDOW);
        _mayWait("arbiter's time over", ARBITER_PERIOD);
    }

    function _most() internal pure override returns (uint256) {
        return P1;
    }
}

/// @notice An order before an arbiter that no voucher covers, after one that a voucher covers.
contract RailsDisputeAboveTest is RailsCase {
    address internal arbiter = makeAddr("arbiter");
    uint128 internal constant ORDER_BOND = P2 * 500 / 10_000;

    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        Order memory first = _lasting(1, P1, 0, address(0));
        Order memory second = _lasting(2, P2, WINDOW, arbiter);
        _may("first alone", settler, _submitCall(first, P1));
        _does("second alone", _submitCall(second, P2));
        _may("dispute", requester.addr, abi.encodeCall(IJobEscrow.dispute, (second)));
        _may("resolve 40 %", arbiter, abi.encodeCall(IJobEscrow.resolve, (second, 4000, 0)));
        _may("resolve 100 %", arbiter, abi.encodeCall(IJobEscrow.resolve, (second, 10_000, 0)));
        _may("finalize", settler, abi.encodeCall(IJobEscrow.finalize, (_batch(second))));
        _does("voucher", _redeemKeysCall(P1, 1));
        _does("voucher showing the second", _redeemSignedCall(P1, 1, _above(second)));
        _mayWait("window over", WINDOW);
    }

    function _most() internal pure override returns (uint256) {
        return P1 + P2;
    }

    function _due() internal view override returns (uint256) {
        bool cut = _stateOf(1) == JobState.Resolved && !_wonTheBond();
        return P1 + (cut ? P2 * 4 / 10 : P2);
    }

    function _wonTheBond() internal view returns (bool) {
        return _extra() != 0;
    }

    /// @dev The bond is no part of a channel.
    function _extra() internal view override returns (uint256) {
        return _stateOf(1) == JobState.Resolved && _claimedNow() == P1 + P2 ? ORDER_BOND : 0;
    }
}

/// @notice All that the node can come to earn is reserved for it. The requester has an accomplice whose vouchers empty the
/// account, but for a wei or altogether.
contract RailsReservedTest is RailsCase {
    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        vm.prank(requester.addr);
        escrow.reserve(node.addr, NATIVE, P1 + P2);
        Order memory first = _lasting(1, P1, WINDOW, address(0));
        Order memory second = _lasting(2, P2, 0, address(0));
        uint128 free = uint128(_free(requester.addr, NATIVE));
        _may("first alone", requester.addr, _submitCall(first, P1));
        _may("accept the first", requester.addr, abi.encodeCall(IJobEscrow.accept, (first)));
        _may("second alone", requester.addr, _submitCall(second, P2));
        _does("voucher over both", _redeemKeysCall(P1 + P2, 2));
        _may("all but a wei goes elsewhere", otherNode.addr, _accompliceCall(free - 1));
        _may("all goes elsewhere", otherNode.addr, _accompliceCall(2 * free));
        _mayNotify("thaw the reservation", abi.encodeCall(IJobEscrow.thawReservation, (node.addr, NATIVE, P1 + P2)));
        _may("release it", requester.addr, abi.encodeCall(IJobEscrow.releaseReservation, (node.addr, NATIVE)));
        _mayWait("notice over", THAW_PERIOD);
    }

    function _accompliceCall(uint128 cumulative) internal view returns (bytes memory) {
        KeyVoucher[] memory vouchers = new KeyVoucher[](1);
        bytes32 digest = _voucherDigest(requester.addr, otherNode.addr, NATIVE, cumulative, 1);
        (bytes32 r, bytes32 vs) = vm.signCompact(requester.privateKey, digest);
        vouchers[0] = KeyVoucher(requester.addr, cumulative, 1, r, vs);
        return _redeemCall(otherNode.addr, NATIVE, vouchers);
    }

    function _most() internal pure override returns (uint256) {
        return P1 + P2;
    }

    function _spentElsewhere() internal view override returns (uint256) {
        return escrow.earned(otherNode.addr, NATIVE);
    }
}

/// @notice A session key signs the voucher over the first order, and is revoked.
contract RailsSessionTest is RailsCase {
    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        Vm.Wallet memory key = vm.createWallet("session key");
        bytes memory grant = abi.encodeCall(IJobEscrow.authorizeSession, (key.addr, NATIVE, P1, uint64(NOW + 300 days)));
        vm.prank(requester.addr);
        escrow.authorizeSession(key.addr, NATIVE, P1, uint64(NOW + 300 days));
        Order memory second = _lasting(2, P2, 0, address(0));
        bytes memory voucher = _redeemCall(node.addr, NATIVE, _keyVoucher(key, P1, 1));
        _does("voucher", voucher);
        _does("second alone", _submitCall(second, P2));
        _does("voucher showing the second", _sessionAboveCall(key, second));
        _mayNotify("revoke", abi.encodeCall(IJobEscrow.revokeSession, (key.addr, NATIVE)));
        _may("authorize again", requester.addr, grant);
        _mayTakeBackTheDeposit(true);
        _mayWait("notice over", THAW_PERIOD);
    }

    function _sessionAboveCall(Vm.Wallet memory key, Order memory order) internal view returns (bytes memory) {
        SignedVoucher[] memory vouchers = new SignedVoucher[](1);
        bytes32 digest = _voucherDigest(requester.addr, node.addr, NATIVE, P1, 1);
        vouchers[0] = SignedVoucher(requester.addr, P1, 1, _sign(key, digest), _above(order));
        return abi.encodeCall(IJobEscrow.redeemSigned, (node.addr, NATIVE, vouchers));
    }

    function _most() internal pure override returns (uint256) {
        return P1 + P2;
    }
}

/// @notice The second order may be opened on-chain at any time before it is settled by its signature, and then has its own
/// money. A voucher covers the first.
contract RailsOpenedTest is RailsCase {
    function setUp() public override {
        super.setUp();
        _deposit(FUNDS);
        Order memory first = _lasting(1, P1, 0, address(0));
        Order memory second = _lasting(2, P2, 0, address(0));
        _does("first alone", _submitCall(first, P1));
        _does("second's result", _submitCall(second, P2));
        _does("voucher over the first", _redeemSignedCall(P1, 1, _above(second)));
        _may("open the second", requester.addr, abi.encodeCall(IJobEscrow.openJob, (second, _spec())));
        _mayNotify("cancel the second", abi.encodeCall(IJobEscrow.cancelJob, (second)));
        _may("refund the second", settler, abi.encodeCall(IJobEscrow.refundExpired, (_batch(second))));
        _mayTakeBackTheDeposit(true);
        _mayWait("notice over", THAW_PERIOD);
    }

    function _most() internal pure override returns (uint256) {
        return P1 + P2;
    }

    function _due() internal view override returns (uint256) {
        return P1 + P2 - _extra();
    }

    /// @dev What the second order's lock paid.
    function _extra() internal view override returns (uint256) {
        return _openedAndPaid() ? P2 : 0;
    }

    function _openedAndPaid() internal view returns (bool) {
        return _stateOf(1) == JobState.Paid && escrow.earned(node.addr, NATIVE) == _claimedNow() + P2;
    }
}
