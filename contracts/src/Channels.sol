// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {EscrowState} from "./EscrowState.sol";
import {IJobEscrow, JobState, Order, SignedVoucher, SkipReason} from "./interfaces/IJobEscrow.sol";
import {SignatureLib} from "./SignatureLib.sol";
import {TypedData} from "./TypedData.sol";

/// @title The rail of vouchers, with the keys that may sign them and the funds set aside for them
/// @dev Why nothing is paid twice, nor lost, whatever comes first:
/// - `claimed` counts all that a channel paid, so a voucher pays only for what no order settled alone was paid for.
/// - A redeemed voucher voids the orders up to its nonce. That takes the node's consent, or else a requester could void
///   orders with a voucher over nothing; hence only the node and its settlers redeem.
/// - Orders settled ahead of a voucher that does not cover them would eat into it. They are shown (`settledAbove`) and
///   counted on top. As nobody but the node gains, nobody is hurt if they are not, and the difference stays claimable.
abstract contract Channels is EscrowState {
    using SafeCast for uint256;
    using SignatureLib for address;

    /// @dev What a batch shares, and the voucher it is at. Assembly relies on the order of the members, a word each.
    struct Batch {
        // 0x00: the EIP-712 encoding of the voucher, hashed where it stands.
        bytes32 typeHash;
        /// An address, and so are the next two. They are clean, and not typed, lest they be cleaned at every use.
        uint256 requester;
        uint256 node;
        uint256 token;
        uint256 cumulative;
        uint256 coveredNonce;
        // 0xc0: what its digest is the hash of, from the last two bytes of the prefix on.
        uint256 prefix;
        bytes32 domainSeparator;
        bytes32 structHash;
        // 0x120: the slots of the mappings from requesters to what is the batch's of them.
        uint256 channels;
        uint256 accounts;
        // 0x160: where in memory the data of the event begins, and where it goes on.
        uint256 told;
        uint256 next;
        uint256 paid;
    }

    /// @dev Of a voucher in `redeem`: requester (20), cumulative (16), coveredNonce (8), r (32), vs (32).
    uint256 private constant VOUCHER_LENGTH = 108;
    uint256 private constant REDEMPTION_LENGTH = 96;
    /// @dev Of the data of `VouchersRedeemed`: `earned`, where the bytes begin, their length.
    uint256 private constant EVENT_HEAD = 0x60;

    // ── Vouchers ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function redeem(address node, address token, bytes calldata vouchers) external override {
        require(vouchers.length % VOUCHER_LENGTH == 0, WrongLength(vouchers.length, VOUCHER_LENGTH));
        Batch memory batch = _start(node, token, vouchers.length / VOUCHER_LENGTH);
        uint256 next;
        assembly ("memory-safe") {
            next := vouchers.offset
        }
        // Calldata ends long before the largest integer.
        unchecked {
            for (uint256 end = next + vouchers.length; next != end; next += VOUCHER_LENGTH) {
                uint256 reason = _redeem(batch, _take(batch, next), batch.cumulative);
                if (reason != 0) _skip(batch, reason);
            }
        }
        _finish(batch);
    }

    /// @inheritdoc IJobEscrow
    function redeemSigned(address node, address token, SignedVoucher[] calldata vouchers) external override {
        Batch memory batch = _start(node, token, vouchers.length);
        for (uint256 i = 0; i < vouchers.length; ++i) {
            SignedVoucher calldata voucher = vouchers[i];
            address signer = voucher.requester;
            batch.requester = uint160(signer);
            batch.cumulative = voucher.cumulative;
            batch.coveredNonce = voucher.coveredNonce;
            bytes32 digest = _digest(batch);
            if (!signer.isValid(digest, voucher.signature)) {
                // The error says why there is no signer, which is then zero.
                // slither-disable-next-line unused-return
                (signer,,) = ECDSA.tryRecoverCalldata(digest, voucher.signature);
            }
            uint256 entitled = batch.cumulative + _settledAbove(batch, voucher.settledAbove);
            uint256 reason = _redeem(batch, uint160(signer), entitled);
            if (reason != 0) _skip(batch, reason);
        }
        _finish(batch);
    }

    /// @inheritdoc IJobEscrow
    function setSettler(address settler, bool allowed) external override {
        isSettler[msg.sender][settler] = allowed;
        emit SettlerSet(msg.sender, settler, allowed);
    }

    function _start(address node, address token, uint256 count) private view returns (Batch memory batch) {
        require(msg.sender == node || isSettler[node][msg.sender], NotSettler(node, msg.sender));
        batch.typeHash = TypedData.VOUCHER_TYPEHASH;
        batch.node = uint160(node);
        batch.token = uint160(token);
        batch.prefix = 0x1901;
        batch.domainSeparator = _domainSeparatorV4();
        mapping(address => Channel) storage channels = _channels[node][token];
        mapping(address => Account) storage accounts = _accounts[token];
        uint256 room = EVENT_HEAD + count * REDEMPTION_LENGTH;
        assembly ("memory-safe") {
            mstore(add(batch, 0x120), channels.slot)
            mstore(add(batch, 0x140), accounts.slot)
            let told := mload(0x40)
            mstore(add(batch, 0x160), told)
            mstore(add(batch, 0x180), add(told, EVENT_HEAD))
            mstore(0x40, add(told, room))
        }
    }

    /// @dev Makes the packed voucher at this place in calldata the one the batch is at, and says who signed it.
    function _take(Batch memory batch, uint256 voucher) private view returns (uint256 signer) {
        bytes32 r;
        bytes32 vs;
        assembly ("memory-safe") {
            mstore(add(batch, 0x20), shr(96, calldataload(voucher)))
            mstore(add(batch, 0x80), shr(128, calldataload(add(voucher, 20))))
            mstore(add(batch, 0xa0), shr(192, calldataload(add(voucher, 36))))
            r := calldataload(add(voucher, 44))
            vs := calldataload(add(voucher, 76))
        }
        return SignatureLib.recover(_digest(batch), r, vs);
    }

    /// @dev Of the voucher the batch is at.
    function _digest(Batch memory batch) private pure returns (bytes32 digest) {
        assembly ("memory-safe") {
            mstore(add(batch, 0x100), keccak256(batch, 0xc0))
            digest := keccak256(add(batch, 0xde), 0x42)
        }
    }

    /// @dev `signer` is the requester, a session key to be, or zero for nobody; `entitled` is what the channel should have
    /// paid when all is paid. The channel's slot stays packed, which keeps the code that a batch runs hundreds of times short.
    /// @return reason Why nothing was paid, or zero.
    function _redeem(Batch memory batch, uint256 signer, uint256 entitled) private returns (uint256 reason) {
        uint256 requester = batch.requester;
        uint256 channelSlot = _slotOf(requester, batch.channels);
        uint256 packed;
        assembly ("memory-safe") {
            packed := sload(channelSlot)
        }
        if (entitled >> 96 != 0) entitled = type(uint96).max;
        if (entitled <= packed >> 160) return uint256(SkipReason.NothingDue);
        uint256 paid;
        uint256 drawn;
        uint256 balances;
        // What was compared bounds every sum and difference.
        unchecked {
            paid = entitled - (packed >> 160);
            if (signer != requester) {
                reason = _checkSession(batch, signer, paid);
                if (reason != 0) return reason;
            }
            // forge-lint: disable-next-line(unsafe-typecast)
            uint256 reserved = uint96(packed >> 64); // the member between two others
            if (paid > reserved) {
                (drawn, balances) = _draw(_slotOf(requester, batch.accounts), paid - reserved);
                paid = reserved + drawn;
                if (paid == 0) return uint256(SkipReason.InsufficientFunds);
            }
        }
        if (signer != requester) _spend(batch, signer, paid);
        assembly ("memory-safe") {
            // claimed += paid, reserved -= what was not drawn, coveredNonce = the higher one. None crosses its bounds.
            packed := sub(add(packed, shl(160, paid)), shl(64, sub(paid, drawn)))
            let covered := and(packed, 0xffffffffffffffff)
            let nonce := mload(add(batch, 0xa0))
            packed := add(packed, mul(gt(nonce, covered), sub(nonce, covered)))
            sstore(channelSlot, packed)

            let next := mload(add(batch, 0x180))
            mstore(next, or(shl(96, requester), shr(160, packed)))
            mstore(add(next, 0x20), mul(balances, iszero(iszero(drawn))))
            mstore(add(next, 0x40), or(shl(160, drawn), shr(96, shl(96, packed))))
            mstore(add(batch, 0x180), add(next, REDEMPTION_LENGTH))
            mstore(add(batch, 0x1a0), add(mload(add(batch, 0x1a0)), paid))
        }
    }

    function _skip(Batch memory batch, uint256 reason) private {
        (address requester, address node, address token) = _addresses(batch);
        emit VoucherSkipped(requester, node, token, batch.cumulative, SkipReason(reason));
    }

    function _addresses(Batch memory batch) private pure returns (address requester, address node, address token) {
        assembly ("memory-safe") {
            requester := mload(add(batch, 0x20))
            node := mload(add(batch, 0x40))
            token := mload(add(batch, 0x60))
        }
    }

    function _sessionOf(Batch memory batch, uint256 key) private view returns (Session storage) {
        (address requester,, address token) = _addresses(batch);
        // forge-lint: disable-next-line(unsafe-typecast)
        return _sessions[requester][token][address(uint160(key))]; // what ecrecover gave
    }

    /// @return Why the key may not spend what is due, or zero.
    function _checkSession(Batch memory batch, uint256 key, uint256 due) private view returns (uint256) {
        Session storage used = _sessionOf(batch, key);
        if (key == 0 || used.expiry < block.timestamp) return uint256(SkipReason.BadVoucherSignature);
        return used.left < due ? uint256(SkipReason.SessionCapExceeded) : 0;
    }

    function _spend(Batch memory batch, uint256 key, uint256 amount) private {
        Session storage used = _sessionOf(batch, key);
        // forge-lint: disable-next-line(unsafe-typecast)
        uint128 left = used.left - uint128(amount); // at most what was due, which the key may spend
        used.left = left;
        (address requester,, address token) = _addresses(batch);
        // forge-lint: disable-next-line(unsafe-typecast)
        emit SessionUpdated(requester, address(uint160(key)), token, left, used.expiry);
    }

    function _finish(Batch memory batch) private {
        if (batch.paid == 0) return;
        (, address node, address token) = _addresses(batch);
        uint256 total = _earn(node, token, batch.paid);
        bytes32 topic = VouchersRedeemed.selector;
        // In place, as the redemptions stand behind room for the head.
        assembly ("memory-safe") {
            let told := mload(add(batch, 0x160))
            let next := mload(add(batch, 0x180))
            mstore(told, total)
            mstore(add(told, 0x20), 0x40)
            mstore(add(told, 0x40), sub(sub(next, told), EVENT_HEAD))
            log3(told, sub(next, told), topic, node, token)
        }
    }

    /// @dev What was paid for those of the given orders that count: of this channel, not covered, settled by signature, and
    /// each once, which ascending ids ensure.
    function _settledAbove(Batch memory batch, Order[] calldata orders) private view returns (uint256 sum) {
        // Zero is below every id.
        // slither-disable-next-line uninitialized-local
        bytes32 last;
        for (uint256 i = 0; i < orders.length; ++i) {
            Order calldata order = orders[i];
            bytes32 jobId = jobIdOf(order);
            Job storage j = _jobs[jobId];
            if (
                jobId > last && uint160(order.requester) == batch.requester && uint160(order.token) == batch.token
                    && order.nonce > batch.coveredNonce && j.signed && uint160(_paidNode(j, order)) == batch.node
            ) {
                sum += j.amount;
                last = jobId;
            }
        }
    }

    /// @dev The node that a signed order was paid to, or zero while it was not.
    function _paidNode(Job storage j, Order calldata order) internal view virtual returns (address);

    // ── Session keys ────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function authorizeSession(address key, address token, uint128 cap, uint64 expiry) external override {
        require(key != address(0), ZeroAddress());
        require(expiry >= block.timestamp, DeadlinePassed(expiry));
        Session storage s = _sessions[msg.sender][token][key];
        (uint128 left, uint64 until) = (s.left, s.expiry);
        require(until < block.timestamp || (cap >= left && expiry >= until), SessionInForce(left, until));
        (s.left, s.expiry) = (cap, expiry);
        emit SessionUpdated(msg.sender, key, token, cap, expiry);
    }

    /// @inheritdoc IJobEscrow
    function revokeSession(address key, address token) external override {
        Session storage s = _sessions[msg.sender][token][key];
        uint64 expiry = _noticeEnd();
        if (s.expiry < expiry) expiry = s.expiry;
        s.expiry = expiry;
        emit SessionUpdated(msg.sender, key, token, s.left, expiry);
    }

    // ── Reservations ────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function reserve(address node, address token, uint256 amount) external override {
        require(node != address(0), ZeroAddress());
        require(amount != 0, ZeroAmount());
        Account storage acc = _accounts[token][msg.sender];
        uint128 free = acc.free;
        require(amount <= free, Insufficient(msg.sender, token, free, amount));
        // forge-lint: disable-next-line(unsafe-typecast)
        free -= uint128(amount); // at most `free`
        acc.free = free;
        Channel storage c = _channels[node][token][msg.sender];
        uint96 reserved = (c.reserved + amount).toUint96();
        c.reserved = reserved;
        if (c.thawing != 0) c.thawing = 0;
        emit ReservationChanged(msg.sender, node, token, reserved, 0, 0, free);
    }

    /// @inheritdoc IJobEscrow
    function thawReservation(address node, address token, uint256 amount) external override {
        Channel storage c = _channels[node][token][msg.sender];
        uint96 reserved = c.reserved;
        require(amount != 0, ZeroAmount());
        require(amount <= reserved, Insufficient(msg.sender, token, reserved, amount));
        uint64 thawEnd = _noticeEnd();
        // forge-lint: disable-next-line(unsafe-typecast)
        (c.thawing, c.thawEnd) = (uint96(amount), thawEnd); // at most `reserved`
        emit ReservationChanged(msg.sender, node, token, reserved, amount, thawEnd, _accounts[token][msg.sender].free);
    }

    /// @inheritdoc IJobEscrow
    function releaseReservation(address node, address token) external override returns (uint256 amount) {
        Channel storage c = _channels[node][token][msg.sender];
        uint96 reserved = c.reserved;
        uint96 released = c.thawing < reserved ? c.thawing : reserved;
        require(released != 0, ZeroAmount());
        require(block.timestamp >= c.thawEnd, StillThawing(c.thawEnd));
        reserved -= released;
        (c.reserved, c.thawing) = (reserved, 0);
        emit ReservationChanged(msg.sender, node, token, reserved, 0, 0, _credit(msg.sender, token, released));
        return released;
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function channel(address requester, address node, address token)
        external
        view
        override
        returns (uint256 claimed, uint64 coveredNonce)
    {
        Channel storage c = _channels[node][token][requester];
        return (c.claimed, c.coveredNonce);
    }

    /// @inheritdoc IJobEscrow
    function reservation(address requester, address node, address token)
        external
        view
        override
        returns (uint256 reserved, uint256 thawing, uint64 thawEnd)
    {
        Channel storage c = _channels[node][token][requester];
        (reserved, thawing) = (c.reserved, c.thawing);
        if (thawing > reserved) thawing = reserved;
        if (thawing != 0) thawEnd = c.thawEnd;
    }

    /// @inheritdoc IJobEscrow
    function session(address requester, address key, address token)
        external
        view
        override
        returns (uint128 left, uint64 expiry)
    {
        Session storage s = _sessions[requester][token][key];
        expiry = s.expiry;
        if (expiry >= block.timestamp) left = s.left;
    }
}
