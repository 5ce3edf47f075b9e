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

    function _redeem(Packed memory v, address node, address token)
        internal
        returns (Money memory before, Money memory afterwards)
    {
        vm.warp(NOW);
        before = _read(v.requester, node, token);
        _assumeSound(before);
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        afterwards = _read(v.requester, node, token);
    }

    /// @notice What the requester lost the node gained, and `claimed` grew by it.
    function check_redeemConserves(Packed memory v, address node, address token) external {
        (Money memory a, Money memory b) = _redeem(v, node, token);
        assert(_sum(a) == _sum(b));
        assert(_less(b.claimed, a.claimed) == _less(b.earned, a.earned));
        assert(b.fees == a.fees);
    }

    /// @notice `claimed` and `coveredNonce` never fall, and no more is claimed than was signed.
    function check_redeemNeverUnclaims(Packed memory v, address node, address token) external {
        (Money memory a, Money memory b) = _redeem(v, node, token);
        assert(b.claimed >= a.claimed);
        if (b.claimed != a.claimed) assert(b.claimed <= v.cumulative);
        assert(b.covered >= a.covered);
        if (b.covered != a.covered) assert(b.covered == v.coveredNonce);
    }

    /// @notice The reservation goes first, then free, then thawing funds; nothing grows.
    function check_redeemInOrder(Packed memory v, address node, address token) external {
        (Money memory a, Money memory b) = _redeem(v, node, token);
        assert(b.reserved <= a.reserved);
        assert(b.free <= a.free);
        assert(b.thawing <= a.thawing);
        if (b.free != a.free) assert(b.reserved == 0);
        if (b.thawing != a.thawing) assert(b.free == 0);
    }

    /// @notice All that is due is paid, or all that the requester has, or nothing.
    function check_redeemPaysInFull(Packed memory v, address node, address token) external {
        (Money memory a, Money memory b) = _redeem(v, node, token);
        if (b.claimed == a.claimed) {
            _assertSame(a, b);
        } else {
            bool all = b.claimed == v.cumulative || b.claimed == type(uint96).max;
            assert(all || b.reserved + b.free + b.thawing == 0);
        }
    }

    /// @notice Nobody else's money moves.
    function check_deepRedeemTouchesNobodyElse(Packed memory v, address node, address token, Other memory other)
        external
    {
        vm.warp(NOW);
        other.jobId = bytes32(0);
        _assumeElsewhere(other, v.requester, node, token, bytes32(uint256(1)));
        Slots memory untouched = _slots(other);
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        _assertUntouched(untouched, _slots(other));
    }

    /// @notice One signature, one effect: a voucher for no more than was paid, or of a requester who has nothing, moves nothing.
    /// By `check_redeemPaysInFull` one or the other holds once it was redeemed.
    function check_redeemSpent(Packed memory v, address node, address token) external {
        vm.warp(NOW);
        Money memory before = _read(v.requester, node, token);
        _assumeSound(before);
        if (v.cumulative > before.claimed) vm.assume(before.reserved + before.free + before.thawing == 0);
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        _assertSame(before, _read(v.requester, node, token));
    }

    /// @notice A key's permission is never used for more than it is worth, and redeeming never widens one.
    function check_deepRedeemSpendsSessions(Packed memory v, address node, address token, address key) external {
        vm.warp(NOW);
        Money memory before = _read(v.requester, node, token);
        _assumeSound(before);
        uint256 left = _sessionLeft(v.requester, token, key);
        vm.prank(node);
        escrow.redeem(node, token, _pack(v));
        uint256 then = _sessionLeft(v.requester, token, key);
        uint256 paid = _less(_read(v.requester, node, token).claimed, before.claimed);
        if (then != left) assert(_less(left, then) == paid);
    }

    /// @notice Only the node and its settlers redeem.
    function check_redeemByOthers(Packed memory v, address node, address token, address caller) external {
        vm.warp(NOW);
        vm.assume(caller != node);
        vm.assume(!escrow.isSettler(node, caller));
        vm.prank(caller);
        (bool done,) = address(escrow).call(abi.encodeCall(escrow.redeem, (node, token, _pack(v))));
        assert(!done);
    }

    /// @notice As `check_redeemConserves` and `check_redeemNeverUnclaims`, where an order that was settled alone is shown: its price counts on top, once.
    function check_deepRedeemSignedAbove(
        Packed memory v,
        uint8 recovery,
        address node,
        address token,
        Order memory above
    ) external {
        vm.warp(NOW);
        _key(v.requester);
        Money memory before = _read(v.requester, node, token);
        _assumeSound(before);
        SignedVoucher[] memory vouchers = new SignedVoucher[](1);
        Order[] memory orders = new Order[](2);
        (orders[0], orders[1]) = (above, above);
        vouchers[0] =
            SignedVoucher(v.requester, v.cumulative, v.coveredNonce, abi.encodePacked(v.r, v.vs, recovery), orders);
        uint256 amount = _readJob(escrow.jobIdOf(above)) >> 128;
        vm.prank(node);
        escrow.redeemSigned(node, token, vouchers);
        Money memory afterwards = _read(v.requester, node, token);
        assert(afterwards.claimed >= before.claimed);
        uint256 paid = _less(afterwards.claimed, before.claimed);
        if (paid != 0) assert(afterwards.claimed <= uint256(v.cumulative) + amount);
        assert(_less(afterwards.earned, before.earned) == paid);
        assert(_sum(afterwards) == _sum(before));
    }
}

contract ReservationProof is ProofBase {
    /// @notice Reserving, thawing and releasing move money between one requester's pockets only.
    function check_reserve(address requester, address node, address token, Other memory other, uint256 amount)
        external
    {
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
        Money memory before = _read(requester, node, token);
        _assumeSound(before);
        other.jobId = bytes32(0);
        _assumeElsewhere(other, requester, node, token, bytes32(uint256(1)));
        Slots memory untouched = _slots(other);
        vm.prank(requester);
        (bool done,) = address(escrow).call(call);
        vm.assume(done);
        Money memory afterwards = _read(requester, node, token);
        assert(_sum(afterwards) == _sum(before));
        assert(afterwards.claimed == before.claimed);
        assert(afterwards.covered == before.covered);
        assert(afterwards.earned == before.earned);
        assert(afterwards.thawing == before.thawing);
        _assertUntouched(untouched, _slots(other));
    }
}
