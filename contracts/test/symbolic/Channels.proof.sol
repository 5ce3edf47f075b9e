// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Order, SignedVoucher} from "../../src/interfaces/IJobEscrow.sol";
import {ProofBase} from "./ProofBase.sol";

/// @dev A voucher as `redeem` takes it.
struct Packed {
    address requester;
    uint128 cumulative;
    uint64 coveredNonce;
    bytes32 r;
    bytes32 vs;
}

/// @title Channels: what vouchers move and what they count
contract RedeemProof is ProofBase {
    function _pack(Packed memory v) internal pure returns (bytes memory) {
        return abi.encodePacked(v.requester, v.cumulative, v.coveredNonce, v.r, v.vs);
    }

    function _assumeSound(Money memory m) internal pure {
        Order memory none;
        // Jobs have no part in this.
        m.locked = 0;
        m.state = 0;
        _assumeSound(m, none);
    }

    function _readMoney(address requester, address node, address token) internal view returns (Money memory m) {
        m = _read(requester, node, token, 0);
        m.locked = 0;
        m.state = 0;
    }

    /// @dev What `claimed` grew by is what the requester lost and the node gained, at most what was signed; `claimed` and
    /// `coveredNonce` never fall; what the packed slots say is what the plain arithmetic says.
    function _assertRedeemed(Money memory a, Money memory b, uint256 entitled, uint64 coveredNonce) internal pure {
        unchecked {
            uint256 paid = b.claimed - a.claimed;
            uint256 due = entitled > type(uint96).max ? type(uint96).max : entitled;
            due = due > a.claimed ? due - a.claimed : 0;
            uint256 funds = a.reserved + a.free + a.thawing;
            assert(paid == 0 || paid == (due < funds ? due : funds));
            assert(b.earned - a.earned == paid);
            uint256 fromReserved = paid < a.reserved ? paid : a.reserved;
            assert(a.reserved - b.reserved == fromReserved);
            uint256 fromFree = paid - fromReserved < a.free ? paid - fromReserved : a.free;
            assert(a.free - b.free == fromFree);
            assert(a.thawing - b.thawing == paid - fromReserved - fromFree);
            assert(b.covered == (paid != 0 && coveredNonce > a.covered ? coveredNonce : a.covered));
            assert(b.fees == a.fees);
        }
    }

    function check_redeem(Packed memory v, address node, address token, Other memory other, uint64 time) external {
        _at(time);
        Money memory before = _readMoney(v.requester, node, token);
        _assumeSound(before);
        other.jobId = bytes32(0);
        _assumeElsewhere(other, v.requester, node, token, bytes32(uint256(1)));
        Slots memory untouched = _slots(other);
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        Money memory afterwards = _readMoney(v.requester, node, token);
        _assertRedeemed(before, afterwards, v.cumulative, v.coveredNonce);
        _assertUntouched(untouched, _slots(other));
    }

    /// @notice One signature, one effect: the same voucher again moves nothing.
    function check_redeemTwice(Packed memory v, address node, address token, uint64 time) external {
        _at(time);
        _assumeSound(_readMoney(v.requester, node, token));
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        Money memory afterwards = _readMoney(v.requester, node, token);
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        _assertSame(afterwards, _readMoney(v.requester, node, token));
    }

    /// @notice A key's permission is never used for more than it is worth, and redeeming never widens one.
    function check_redeemSpendsSessions(Packed memory v, address node, address token, address key, uint64 time)
        external
    {
        _at(time);
        Money memory before = _readMoney(v.requester, node, token);
        _assumeSound(before);
        uint256 left = _sessionLeft(v.requester, token, key);
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        uint256 paid = _readMoney(v.requester, node, token).claimed - before.claimed;
        uint256 then = _sessionLeft(v.requester, token, key);
        assert(then == left || left - then == paid);
        assert(then <= left);
    }

    /// @notice Only the node and its settlers redeem.
    function check_redeemByOthers(Packed memory v, address node, address token, address caller, uint64 time) external {
        _at(time);
        vm.assume(caller != node);
        vm.assume(!escrow.isSettler(node, caller));
        vm.prank(caller);
        (bool done,) = address(escrow).call(abi.encodeCall(escrow.redeem, (node, token, _pack(v))));
        assert(!done);
    }

    /// @notice As `check_redeem`, where an order that was settled alone is shown: its price counts on top, once.
    function check_redeemSignedAbove(
        Packed memory v,
        uint8 recovery,
        address node,
        address token,
        Order memory above,
        uint64 time
    ) external {
        _at(time);
        _key(v.requester);
        Money memory before = _readMoney(v.requester, node, token);
        _assumeSound(before);
        SignedVoucher[] memory vouchers = new SignedVoucher[](1);
        Order[] memory orders = new Order[](2);
        (orders[0], orders[1]) = (above, above);
        vouchers[0] = SignedVoucher(
            v.requester, v.cumulative, v.coveredNonce, abi.encodePacked(v.r, v.vs, recovery), orders
        );
        uint256 amount = _readJob(escrow.jobIdOf(above)) >> 128;
        vm.prank(node);
        escrow.redeemSigned(node, token, vouchers);
        Money memory afterwards = _readMoney(v.requester, node, token);
        unchecked {
            uint256 paid = afterwards.claimed - before.claimed;
            assert(afterwards.claimed >= before.claimed);
            assert(paid == 0 || afterwards.claimed <= uint256(v.cumulative) + amount);
            assert(afterwards.earned - before.earned == paid);
            assert(_sum(afterwards) == _sum(before));
        }
    }
}

contract ReservationProof is ProofBase {
    /// @notice Reserving, thawing and releasing move money between one requester's pockets only.
    function check_reserve(address requester, address node, address token, Other memory other, uint256 amount) external {
        _moves(requester, node, token, other, abi.encodeCall(escrow.reserve, (node, token, amount)));
    }

    function check_thawReservation(address requester, address node, address token, Other memory other, uint256 amount)
        external
    {
        _moves(requester, node, token, other, abi.encodeCall(escrow.thawReservation, (node, token, amount)));
    }

    function check_releaseReservation(address requester, address node, address token, Other memory other) external {
        _moves(requester, node, token, other, abi.encodeCall(escrow.releaseReservation, (node, token)));
    }

    function _moves(address requester, address node, address token, Other memory other, bytes memory call) internal {
        Order memory none;
        Money memory before = _read(requester, node, token, 0);
        (before.locked, before.state) = (0, 0);
        _assumeSound(before, none);
        other.jobId = bytes32(0);
        _assumeElsewhere(other, requester, node, token, bytes32(uint256(1)));
        Slots memory untouched = _slots(other);
        vm.prank(requester);
        (bool done,) = address(escrow).call(call);
        vm.assume(done);
        Money memory afterwards = _read(requester, node, token, 0);
        (afterwards.locked, afterwards.state) = (0, 0);
        assert(_sum(afterwards) == _sum(before));
        assert(afterwards.claimed == before.claimed);
        assert(afterwards.covered == before.covered);
        assert(afterwards.earned == before.earned);
        assert(afterwards.thawing == before.thawing);
        _assertUntouched(untouched, _slots(other));
    }
}
