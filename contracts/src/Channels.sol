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
        address requester;
        address node;
        address token;
        uint256 cumulative;
        uint256 coveredNonce;
        // 0xc0: what its digest is the hash of, from the last two bytes of the prefix on.
        uint256 prefix;
        bytes32 domainSeparator;
        bytes32 structHash;
        /// Where in memory the next redemption is written.
        uint256 next;
        uint256 paid;
    }

    /// @dev Of a voucher in `redeem`: requester (20), cumulative (16), coveredNonce (8), r (32), vs (32).
    uint256 private constant VOUCHER_LENGTH = 108;
    uint256 private constant REDEMPTION_LENGTH = 96;
    uint256 private constant MAX_CLAIMED = type(uint96).max;

    // ── Vouchers ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function redeem(address node, address token, bytes calldata vouchers) external override {
        require(vouchers.length % VOUCHER_LENGTH == 0, WrongLength(vouchers.length, VOUCHER_LENGTH));
        (Batch memory batch, bytes memory redemptions) = _start(node, token, vouchers.length / VOUCHER_LENGTH);
        mapping(address => Channel) storage channels = _channels[node][token];
        mapping(address => Account) storage accounts = _accounts[token];
        for (uint256 start = 0; start < vouchers.length; start += VOUCHER_LENGTH) {
            address signer = SignatureLib.recover(
                _take(batch, vouchers, start), _word(vouchers, start + 44), _word(vouchers, start + 76)
            );
            _redeem(batch, channels, accounts, signer, batch.cumulative);
        }
        _finish(batch, redemptions);
    }

    /// @inheritdoc IJobEscrow
    function redeemSigned(address node, address token, SignedVoucher[] calldata vouchers) external override {
        (Batch memory batch, bytes memory redemptions) = _start(node, token, vouchers.length);
        for (uint256 i = 0; i < vouchers.length; ++i) {
            SignedVoucher calldata voucher = vouchers[i];
            address signer = voucher.requester;
            (batch.requester, batch.cumulative, batch.coveredNonce) = (signer, voucher.cumulative, voucher.coveredNonce);
            bytes32 digest = _digest(batch);
            if (!signer.isValid(digest, voucher.signature)) {
                (signer,,) = ECDSA.tryRecoverCalldata(digest, voucher.signature);
            }
            _redeem(
                batch,
                _channels[node][token],
                _accounts[token],
                signer,
                batch.cumulative + _settledAbove(batch, voucher.settledAbove)
            );
        }
        _finish(batch, redemptions);
    }

    /// @inheritdoc IJobEscrow
    function setSettler(address settler, bool allowed) external override {
        isSettler[msg.sender][settler] = allowed;
        emit SettlerSet(msg.sender, settler, allowed);
    }

    function _start(address node, address token, uint256 count)
        private
        view
        returns (Batch memory batch, bytes memory redemptions)
    {
        require(msg.sender == node || isSettler[node][msg.sender], NotSettler(node, msg.sender));
        redemptions = new bytes(count * REDEMPTION_LENGTH);
        batch.typeHash = TypedData.VOUCHER_TYPEHASH;
        batch.node = node;
        batch.token = token;
        batch.prefix = 0x1901;
        batch.domainSeparator = _domainSeparatorV4();
        uint256 next;
        assembly ("memory-safe") {
            next := add(redemptions, 0x20)
        }
        batch.next = next;
    }

    /// @dev Makes the packed voucher the one the batch is at, and returns its digest. `start` must be the start of a whole one.
    function _take(Batch memory batch, bytes calldata vouchers, uint256 start) private pure returns (bytes32) {
        assembly ("memory-safe") {
            start := add(vouchers.offset, start)
            mstore(add(batch, 0x20), shr(96, calldataload(start)))
            mstore(add(batch, 0x80), shr(128, calldataload(add(start, 20))))
            mstore(add(batch, 0xa0), shr(192, calldataload(add(start, 36))))
        }
        return _digest(batch);
    }

    function _word(bytes calldata vouchers, uint256 start) private pure returns (bytes32 word) {
        assembly ("memory-safe") {
            word := calldataload(add(vouchers.offset, start))
        }
    }

    /// @dev Of the voucher the batch is at. In place, because a batch hashes hundreds of them.
    function _digest(Batch memory batch) private pure returns (bytes32 digest) {
        assembly ("memory-safe") {
            mstore(add(batch, 0x100), keccak256(batch, 0xc0))
            digest := keccak256(add(batch, 0xde), 0x42)
        }
    }

    /// @dev `signer` is the requester, a session key to be, or zero for nobody; `entitled` is what the channel should have
    /// paid when all is paid.
    function _redeem(
        Batch memory batch,
        mapping(address => Channel) storage channels,
        mapping(address => Account) storage accounts,
        address signer,
        uint256 entitled
    ) private {
        address requester = batch.requester;
        Channel storage channel_ = channels[requester];
        (uint256 claimed, uint256 reserved, uint256 covered) = _load(channel_);
        if (entitled > MAX_CLAIMED) entitled = MAX_CLAIMED;
        if (entitled <= claimed) return _skip(batch, SkipReason.NothingDue);
        // What was compared bounds every sum and difference from here on.
        unchecked {
            uint256 due = entitled - claimed;
            if (signer != requester) {
                Session storage used = _sessions[requester][batch.token][signer];
                if (signer == address(0) || used.expiry < block.timestamp) {
                    return _skip(batch, SkipReason.BadVoucherSignature);
                }
                if (used.left < due) return _skip(batch, SkipReason.SessionCapExceeded);
            }

            uint256 free;
            uint256 thawing;
            uint256 drawn;
            uint256 paid = due < reserved ? due : reserved;
            if (paid != due) {
                (drawn, free, thawing) = _draw(accounts[requester], due - paid);
                paid += drawn;
                if (paid == 0) return _skip(batch, SkipReason.InsufficientFunds);
                if (drawn == 0) (free, thawing) = (0, 0);
            }
            reserved -= paid - drawn;
            claimed += paid;
            if (signer != requester) _spend(requester, batch.token, signer, paid);
            if (batch.coveredNonce > covered) covered = batch.coveredNonce;
            _store(channel_, claimed, reserved, covered);
            batch.paid += paid;
            assembly ("memory-safe") {
                let next := mload(add(batch, 0x120))
                mstore(next, or(shl(96, requester), claimed))
                mstore(add(next, 0x20), or(shl(128, free), thawing))
                mstore(add(next, 0x40), or(or(shl(160, drawn), shl(64, reserved)), covered))
                mstore(add(batch, 0x120), add(next, 0x60))
            }
        }
    }

    function _spend(address requester, address token, address key, uint256 amount) private {
        Session storage used = _sessions[requester][token][key];
        // forge-lint: disable-next-line(unsafe-typecast)
        uint128 left = used.left - uint128(amount); // at most what was due, which the key may spend
        used.left = left;
        emit SessionUpdated(requester, key, token, left, used.expiry);
    }

    function _skip(Batch memory batch, SkipReason reason) private {
        emit VoucherSkipped(batch.requester, batch.node, batch.token, batch.cumulative, reason);
    }

    function _finish(Batch memory batch, bytes memory redemptions) private {
        // The redemptions end where the next one would have gone: skipped vouchers leave none.
        uint256 next = batch.next;
        assembly ("memory-safe") {
            mstore(redemptions, sub(next, add(redemptions, 0x20)))
        }
        if (redemptions.length == 0) return;
        uint256 total = earned[batch.node][batch.token] + batch.paid;
        earned[batch.node][batch.token] = total;
        emit VouchersRedeemed(batch.node, batch.token, total, redemptions);
    }

    /// @dev What was paid for those of the given orders that count: of this channel, not covered, settled by signature, and
    /// each once, which ascending ids ensure.
    function _settledAbove(Batch memory batch, Order[] calldata orders) private view returns (uint256 sum) {
        bytes32 last;
        for (uint256 i = 0; i < orders.length; ++i) {
            Order calldata order = orders[i];
            bytes32 jobId = jobIdOf(order);
            Job storage j = _jobs[jobId];
            if (
                jobId > last && order.requester == batch.requester && order.token == batch.token
                    && order.nonce > batch.coveredNonce && j.signed && _paidNode(j, order) == batch.node
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
        _setAside(c, msg.sender, node, token, (c.reserved + amount).toUint96(), free);
    }

    /// @dev Ends a notice that is under way.
    function _setAside(Channel storage c, address requester, address node, address token, uint96 reserved, uint256 free)
        internal
    {
        c.reserved = reserved;
        if (c.thawing != 0) c.thawing = 0;
        emit ReservationChanged(requester, node, token, reserved, 0, 0, free);
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
