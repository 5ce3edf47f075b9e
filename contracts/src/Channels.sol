// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {EscrowState} from "./EscrowState.sol";
import {IJobEscrow, JobState, KeyVoucher, Order, SignedVoucher, SkipReason} from "./interfaces/IJobEscrow.sol";
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

    /// @dev What a batch shares, and what it has come to so far.
    struct Batch {
        address node;
        address token;
        bytes32 domainSeparator;
        /// Where the next redemption is written, in memory.
        uint256 next;
        uint256 paid;
    }

    uint256 private constant REDEMPTION_LENGTH = 96;
    uint256 private constant MAX_CLAIMED = type(uint96).max;

    // ── Vouchers ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function redeem(address node, address token, KeyVoucher[] calldata vouchers) external override {
        (Batch memory batch, bytes memory redemptions) = _start(node, token, vouchers.length);
        mapping(address => Channel) storage channels = _channels[node][token];
        mapping(address => Account) storage accounts = _accounts[token];
        for (uint256 i = 0; i < vouchers.length; ++i) {
            KeyVoucher calldata voucher = vouchers[i];
            address requester = voucher.requester;
            (uint128 cumulative, uint64 coveredNonce) = (voucher.cumulative, voucher.coveredNonce);
            bytes32 digest = _digest(batch, requester, cumulative, coveredNonce);
            _redeem(
                batch,
                channels[requester],
                accounts[requester],
                requester,
                cumulative,
                coveredNonce,
                SignatureLib.recover(digest, voucher.r, voucher.vs),
                cumulative
            );
        }
        _finish(batch, redemptions);
    }

    /// @inheritdoc IJobEscrow
    function redeemSigned(address node, address token, SignedVoucher[] calldata vouchers) external override {
        (Batch memory batch, bytes memory redemptions) = _start(node, token, vouchers.length);
        for (uint256 i = 0; i < vouchers.length; ++i) {
            SignedVoucher calldata voucher = vouchers[i];
            address requester = voucher.requester;
            bytes32 digest = _digest(batch, requester, voucher.cumulative, voucher.coveredNonce);
            address signer = requester;
            if (!requester.isValid(digest, voucher.signature)) {
                (signer,,) = ECDSA.tryRecoverCalldata(digest, voucher.signature);
            }
            _redeem(
                batch,
                _channels[node][token][requester],
                _accounts[token][requester],
                requester,
                voucher.cumulative,
                voucher.coveredNonce,
                signer,
                voucher.cumulative + _settledAbove(batch, voucher)
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
        batch.node = node;
        batch.token = token;
        batch.domainSeparator = _domainSeparatorV4();
        assembly ("memory-safe") {
            mstore(add(batch, 0x60), add(redemptions, 0x20))
        }
    }

    function _digest(Batch memory batch, address requester, uint128 cumulative, uint64 coveredNonce)
        private
        pure
        returns (bytes32)
    {
        return MessageHashUtils.toTypedDataHash(
            batch.domainSeparator, TypedData.hashVoucher(requester, batch.node, batch.token, cumulative, coveredNonce)
        );
    }

    /// @dev `signer` is the requester, a session key to be, or zero for nobody; `entitled` is what the channel should have
    /// paid when all is paid.
    function _redeem(
        Batch memory batch,
        Channel storage channel_,
        Account storage acc,
        address requester,
        uint128 cumulative,
        uint64 coveredNonce,
        address signer,
        uint256 entitled
    ) private {
        (uint256 claimed, uint256 reserved, uint64 covered) = _load(channel_);
        if (entitled > MAX_CLAIMED) entitled = MAX_CLAIMED;
        if (entitled <= claimed) return _skip(batch, requester, cumulative, SkipReason.NothingDue);
        uint256 due = entitled - claimed;
        if (signer != requester) {
            Session storage used = _sessions[requester][batch.token][signer];
            if (signer == address(0) || used.expiry < block.timestamp) {
                return _skip(batch, requester, cumulative, SkipReason.BadVoucherSignature);
            }
            if (used.left < due) return _skip(batch, requester, cumulative, SkipReason.SessionCapExceeded);
        }

        uint256 free;
        uint256 thawing;
        uint256 drawn;
        uint256 paid = due < reserved ? due : reserved;
        if (paid != due) {
            (drawn, free, thawing) = _draw(acc, due - paid);
            paid += drawn;
            if (paid == 0) return _skip(batch, requester, cumulative, SkipReason.InsufficientFunds);
            if (drawn == 0) (free, thawing) = (0, 0);
        }
        reserved -= paid - drawn;
        claimed += paid;
        if (signer != requester) _spend(requester, batch.token, signer, paid);
        if (coveredNonce > covered) covered = coveredNonce;
        _store(channel_, claimed, reserved, covered);
        batch.paid += paid;
        assembly ("memory-safe") {
            let next := mload(add(batch, 0x60))
            mstore(next, or(shl(96, requester), claimed))
            mstore(add(next, 0x20), or(shl(128, free), thawing))
            mstore(add(next, 0x40), or(or(shl(160, drawn), shl(64, reserved)), covered))
            mstore(add(batch, 0x60), add(next, 0x60))
        }
    }

    function _spend(address requester, address token, address key, uint256 amount) private {
        Session storage used = _sessions[requester][token][key];
        // forge-lint: disable-next-line(unsafe-typecast)
        uint128 left = used.left - uint128(amount); // at most what was due, which the key may spend
        used.left = left;
        emit SessionUpdated(requester, key, token, left, used.expiry);
    }

    function _skip(Batch memory batch, address requester, uint128 cumulative, SkipReason reason) private {
        emit VoucherSkipped(requester, batch.node, batch.token, cumulative, reason);
    }

    function _finish(Batch memory batch, bytes memory redemptions) private {
        // The redemptions end where the next one would have gone: skipped vouchers leave none.
        assembly ("memory-safe") {
            mstore(redemptions, sub(mload(add(batch, 0x60)), add(redemptions, 0x20)))
        }
        if (redemptions.length == 0) return;
        uint256 total = earned[batch.node][batch.token] + batch.paid;
        earned[batch.node][batch.token] = total;
        emit VouchersRedeemed(batch.node, batch.token, total, redemptions);
    }

    /// @dev What was paid for those of the given orders that count: of this channel, not covered, settled by signature, and
    /// each once, which ascending ids ensure.
    function _settledAbove(Batch memory batch, SignedVoucher calldata voucher) private view returns (uint256 sum) {
        bytes32 last;
        for (uint256 i = 0; i < voucher.settledAbove.length; ++i) {
            Order calldata order = voucher.settledAbove[i];
            bytes32 jobId = jobIdOf(order);
            Job storage j = _jobs[jobId];
            if (
                jobId > last && order.requester == voucher.requester && order.token == batch.token
                    && order.nonce > voucher.coveredNonce && j.signed && _paidNode(j, order) == batch.node
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
    function _setAside(
        Channel storage c,
        address requester,
        address node,
        address token,
        uint96 reserved,
        uint256 free
    ) internal {
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
