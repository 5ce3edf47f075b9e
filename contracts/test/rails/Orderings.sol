// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {JobState, Order, SignedVoucher} from "../../src/interfaces/IJobEscrow.sol";
import {Base} from "../Base.sol";

/// @notice Plays the events of a case in every order, every subset of them, and lets the node act at the end of each.
/// @dev An event is a call to the escrow, made ready with its signatures beforehand, or time that passes. From every state the
/// search takes each event not yet taken; one that changes nothing (it reverts or is skipped) is not followed further, because
/// what comes after it is found without it, too. After each event what holds at all times is asserted; then the node acts
/// as a node does that hears of it in its notice, everybody repeats everything, the requester takes the rest home, and what
/// each ended with is asserted.
abstract contract Orderings is Base {
    enum Kind {
        Plain,
        /// A notice by which the requester takes something back; the node that stays idle until it is over may lose.
        Notice,
        Time
    }

    struct Event {
        Kind kind;
        string name;
        address by;
        bytes data;
        uint256 time;
    }

    uint256 internal constant FUNDS = 100 ether;
    /// Prices of the orders with nonce 1 and 2: every sum tells what it is made of.
    uint128 internal constant P1 = 1 ether;
    uint128 internal constant P2 = 2 ether;

    Event[] internal _events;
    /// @dev What the node does in the end.
    Event[] internal _closing;
    Order[] internal _orders;
    bool internal _noticed;
    /// @dev A notice has gone by and the node did nothing.
    bool internal _idle;

    /// @dev The most that the channel may ever have paid.
    function _most() internal view virtual returns (uint256);

    /// @dev What the channel has paid in the end, unless the node was idle.
    function _due() internal view virtual returns (uint256) {
        return _most();
    }

    /// @dev What the node got besides: a dispute's bond, or a job opened on-chain.
    function _extra() internal view virtual returns (uint256) {
        return 0;
    }

    // ── The case ────────────────────────────────────────────────────────────────────────────────────────────────────

    function _may(string memory name, address by, bytes memory data) internal {
        _events.push(Event(Kind.Plain, name, by, data, 0));
    }

    function _mayNotify(string memory name, bytes memory data) internal {
        _events.push(Event(Kind.Notice, name, requester.addr, data, 0));
    }

    function _mayWait(string memory name, uint256 time) internal {
        _events.push(Event(Kind.Time, name, address(0), "", time));
    }

    /// @dev The node may do it at any time and does it in the end.
    function _does(string memory name, bytes memory data) internal {
        _may(name, node.addr, data);
        _closes(data);
    }

    function _closes(bytes memory data) internal {
        _closing.push(Event(Kind.Plain, "", node.addr, data, 0));
    }

    /// @dev An order that lasts as long as any case.
    function _lasting(uint64 nonce, uint128 price, uint32 window, address arbiter)
        internal
        returns (Order memory order)
    {
        order = _signedOrder(nonce, price);
        order.deadline = uint64(NOW + 300 days);
        (order.challengeWindow, order.arbiter) = (window, arbiter);
        _orders.push(order);
    }

    function _redeemSignedCall(uint128 cumulative, uint64 coveredNonce, Order[] memory above)
        internal
        view
        returns (bytes memory)
    {
        SignedVoucher[] memory vouchers = _signedVoucher(cumulative, coveredNonce, above);
        return abi.encodeCall(escrow.redeemSigned, (node.addr, NATIVE, vouchers));
    }

    // ── The search ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Every pair of first events in a run of its own, or the machine's journal of changes would grow without end. The
    /// last one is for no event at all.
    function fixtureBranch() public view returns (uint256[] memory branches) {
        branches = new uint256[](_events.length * _events.length + 1);
        for (uint256 i = 0; i < branches.length; ++i) {
            branches[i] = i;
        }
    }

    function tableEveryOrderOfEventsPaysOnceAndInFull(uint256 branch) public {
        // The search costs more than any block has.
        vm.pauseGasMetering();
        uint256 count = _events.length;
        if (branch == count * count) return _end("");
        (uint256 first, uint256 second) = (branch / count, branch % count);
        string memory path = _events[first].name;
        if (!_play(_events[first])) return;
        _always(path);
        if (first == second) return _end(path);
        if (!_play(_events[second])) return;
        path = string.concat(path, " > ", _events[second].name);
        _always(path);
        _explore((1 << first) | (1 << second), path);
    }

    /// @dev A search that prunes itself to nothing proves nothing.
    function test_EveryEventCanHappen() public {
        for (uint256 i = 0; i < _events.length; ++i) {
            assertTrue(_canHappen(0, i), _events[i].name);
        }
    }

    /// @dev After some sequence of others.
    function _canHappen(uint256 taken, uint256 wanted) private returns (bool found) {
        uint256 before = vm.snapshotState();
        found = _play(_events[wanted]);
        vm.revertToState(before);
        for (uint256 i = 0; i < _events.length && !found; ++i) {
            if (taken & (1 << i) == 0 && i != wanted && _play(_events[i])) {
                found = _canHappen(taken | (1 << i), wanted);
            }
            vm.revertToState(before);
        }
    }

    function _explore(uint256 taken, string memory path) private {
        uint256 before = vm.snapshotState();
        uint256 memoryEnd = _memoryEnd();
        _end(path);
        vm.revertToState(before);
        for (uint256 i = 0; i < _events.length; ++i) {
            _freeMemory(memoryEnd);
            if (taken & (1 << i) != 0) continue;
            if (_play(_events[i])) {
                string memory extended = string.concat(path, " > ", _events[i].name);
                _always(extended);
                _explore(taken | (1 << i), extended);
            }
            vm.revertToState(before);
        }
        vm.deleteStateSnapshot(before);
    }

    function _memoryEnd() private pure returns (uint256 end) {
        assembly ("memory-safe") {
            end := mload(0x40)
        }
    }

    /// @dev Nothing that a branch of the search allocated is used after it; kept, it would be gigabytes.
    function _freeMemory(uint256 end) private pure {
        assembly ("memory-safe") {
            mstore(0x40, end)
        }
    }

    /// @return changed Whether anything did.
    function _play(Event storage what) private returns (bool changed) {
        if (what.kind == Kind.Time) {
            skip(what.time);
            _idle = _idle || _noticed;
            return true;
        }
        vm.record();
        vm.prank(what.by);
        (bool done,) = address(escrow).call(what.data);
        (, bytes32[] memory writes) = vm.accesses(address(escrow));
        if (what.kind == Kind.Notice && done) _noticed = true;
        return done && writes.length != 0;
    }

    function _playAll(Event[] storage events) private {
        for (uint256 i = 0; i < events.length; ++i) {
            if (events[i].kind != Kind.Time) _play(events[i]);
        }
    }

    // ── What is asserted ────────────────────────────────────────────────────────────────────────────────────────────

    function _claimedNow() internal view returns (uint256 claimed) {
        (claimed,) = escrow.channel(requester.addr, node.addr, NATIVE);
    }

    function _stateOf(uint256 index) internal view returns (JobState state) {
        (state,,,) = escrow.job(escrow.jobIdOf(_orders[index]));
    }

    /// @dev What the requester has in the escrow, and what is locked for its orders.
    function _kept() internal view returns (uint256 sum) {
        (uint128 free, uint128 thawing,) = escrow.account(requester.addr, NATIVE);
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, NATIVE);
        sum = uint256(free) + thawing + reserved;
        for (uint256 i = 0; i < _orders.length; ++i) {
            (, uint128 locked,,) = escrow.job(escrow.jobIdOf(_orders[i]));
            sum += locked;
        }
    }

    /// @dev What went to others than the node by the requester's own will.
    function _spentElsewhere() internal view virtual returns (uint256) {
        return 0;
    }

    function _always(string memory path) private view {
        assertLe(_claimedNow(), _most(), string.concat("paid more than was signed: ", path));
        uint256 earned = escrow.earned(node.addr, NATIVE);
        assertEq(address(escrow).balance, _kept() + earned + _spentElsewhere(), string.concat("not conserved: ", path));
    }

    function _end(string memory path) private {
        _playAll(_closing);
        skip(WINDOW + ARBITER_PERIOD);
        Order[] memory orders = _orders;
        escrow.finalize(orders);
        _playAll(_closing);
        uint256 claimed = _claimedNow();
        assertLe(claimed, _most(), string.concat("paid more than was signed: ", path));
        if (!_idle) assertEq(claimed, _due(), string.concat("the node was left unpaid: ", path));
        assertEq(escrow.earned(node.addr, NATIVE), claimed + _extra(), string.concat("earned: ", path));

        _playAll(_events);
        skip(WINDOW + ARBITER_PERIOD);
        escrow.finalize(orders);
        escrow.refundExpired(orders);
        if (!_idle) assertEq(_claimedNow(), claimed, string.concat("repeating paid again: ", path));
        _takeHome(path);
    }

    /// @dev The requester gets back all but what was paid, and nobody can keep it from that.
    function _takeHome(string memory path) private {
        uint256 earned = escrow.earned(node.addr, NATIVE);
        uint256 sent = requester.addr.balance;
        uint256 kept = _kept();
        vm.startPrank(requester.addr);
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, NATIVE);
        if (reserved != 0) escrow.thawReservation(node.addr, NATIVE, reserved);
        skip(THAW_PERIOD);
        if (reserved != 0) escrow.releaseReservation(node.addr, NATIVE);
        uint256 free = _free(requester.addr, NATIVE);
        if (free != 0) escrow.thaw(NATIVE, free);
        skip(THAW_PERIOD);
        (, uint128 thawing,) = escrow.account(requester.addr, NATIVE);
        if (thawing != 0) escrow.withdraw(NATIVE, requester.addr);
        vm.stopPrank();
        assertEq(requester.addr.balance, sent + kept, string.concat("not taken home: ", path));
        assertEq(
            requester.addr.balance + earned + _spentElsewhere(), 1000 ether, string.concat("charged wrongly: ", path)
        );
        assertEq(address(escrow).balance, earned + _spentElsewhere(), string.concat("left behind: ", path));
    }
}
