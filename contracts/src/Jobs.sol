// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {Channels} from "./Channels.sol";
import {
    Assignment,
    IJobEscrow,
    JobSpec,
    JobState,
    Order,
    Receipt,
    Result,
    SkipReason
} from "./interfaces/IJobEscrow.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {SignatureLib} from "./SignatureLib.sol";
import {TypedData} from "./TypedData.sol";

/// @title The rail of orders: jobs opened on-chain and orders settled by their signature, from result to payment
abstract contract Jobs is Channels {
    using SafeCast for uint256;
    using SignatureLib for address;
    using TypedData for Assignment;
    using TypedData for JobSpec;
    using TypedData for Receipt;

    /// @notice What a dispute costs if it is found to be baseless, in basis points of the order's `maxPrice`.
    uint16 public constant DISPUTE_BOND_BPS = 500;
    /// @notice Seconds from now beyond which a deadline is taken for a mistake.
    uint64 public constant MAX_DEADLINE = 365 days;

    // ── Requesters ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function openJob(Order calldata order, JobSpec calldata spec)
        external
        payable
        override
        whenNotPaused
        returns (bytes32 jobId)
    {
        _checkOrder(order, spec);
        jobId = jobIdOf(order);
        Job storage opened = _jobs[jobId];
        require(opened.state == JobState.None, JobExists(jobId));

        Account storage requester = _accounts[order.token][msg.sender];
        uint256 free = requester.free;
        if (msg.value != 0) {
            require(order.token == address(0), WrongValue(0, msg.value));
            free += msg.value;
            emit Deposited(msg.sender, address(0), msg.sender, msg.value, free);
        }
        require(free >= order.maxPrice, Insufficient(msg.sender, order.token, free, order.maxPrice));
        free -= order.maxPrice;
        requester.free = free.toUint128();
        // This takes back a cancellation, too.
        _store(opened, JobState.Open, false, 0, 0, order.maxPrice);
        _tellOpened(jobId, order, spec, free);
    }

    /// @inheritdoc IJobEscrow
    function cancelJob(Order calldata order) external override {
        require(order.requester == msg.sender, NotRequester(order.requester, msg.sender));
        bytes32 jobId = jobIdOf(order);
        Job storage j = _jobs[jobId];
        require((j.state == JobState.None || j.state == JobState.Open) && j.timer == 0, NotCancellable(jobId));
        uint64 noticeEnd = _noticeEnd();
        j.timer = noticeEnd;
        emit JobCancelling(jobId, msg.sender, noticeEnd);
    }

    /// @inheritdoc IJobEscrow
    function refundExpired(Order[] calldata orders) external override {
        for (uint256 i = 0; i < orders.length; ++i) {
            _refund(orders[i]);
        }
    }

    /// @dev On its own, and its parameters in this order, so that the compiler's unoptimized pipeline, which measures coverage,
    /// can reach them all.
    function _tellOpened(bytes32 jobId, Order calldata order, JobSpec calldata spec, uint256 free) private {
        emit JobOpened(
            jobId,
            msg.sender,
            order.node,
            order.token,
            order.maxPrice,
            order.assigner,
            order.deadline,
            order.challengeWindow,
            order.arbiter,
            order.maxFeeBps,
            order.nonce,
            spec,
            free
        );
    }

    function _checkOrder(Order calldata order, JobSpec calldata spec) private view {
        require(order.requester == msg.sender, NotRequester(order.requester, msg.sender));
        require(order.maxPrice != 0, ZeroAmount());
        require(order.deadline >= block.timestamp, DeadlinePassed(order.deadline));
        uint64 latest = uint64(block.timestamp) + MAX_DEADLINE;
        require(order.deadline <= latest, DeadlineTooFar(order.deadline, latest));
        require(order.challengeWindow <= maxChallengeWindow, WindowTooLong(order.challengeWindow, maxChallengeWindow));
        if (order.node == address(0)) {
            require(order.challengeWindow != 0, WindowRequired());
            require(order.assigner != address(0), AssignerRequired());
        }
        bytes32 specHash = spec.hash();
        require(order.specHash == specHash, SpecHashMismatch(order.specHash, specHash));
    }

    function _refund(Order calldata order) private {
        bytes32 jobId = jobIdOf(order);
        Job storage j = _jobs[jobId];
        if (j.state != JobState.Open) {
            emit Skipped(jobId, SkipReason.NotOpen);
            return;
        }
        if (block.timestamp <= order.deadline && !_isOver(j.timer)) {
            emit Skipped(jobId, SkipReason.NotExpired);
            return;
        }

        _store(j, JobState.Refunded, false, 0, 0, 0);
        uint256 free = _credit(order.requester, order.token, order.maxPrice);
        emit JobRefunded(jobId, order.requester, order.token, order.maxPrice, free);
    }

    /// @dev Zero is no notice.
    function _isOver(uint64 noticeEnd) private view returns (bool) {
        return noticeEnd != 0 && block.timestamp >= noticeEnd;
    }

    // ── Nodes and whoever settles for them ──────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function submitResults(Result[] calldata results) external override {
        for (uint256 i = 0; i < results.length; ++i) {
            _submit(results[i]);
        }
    }

    /// @inheritdoc IJobEscrow
    function finalize(Order[] calldata orders) external override {
        for (uint256 i = 0; i < orders.length; ++i) {
            _finalize(orders[i]);
        }
    }

    function _submit(Result calldata result) private {
        Order calldata order = result.order;
        bytes32 jobId = jobIdOf(order);
        (bool ok, SkipReason reason, uint48 nodeNumber, bool signed) = _checkResult(jobId, result);
        if (!ok) {
            emit Skipped(jobId, reason);
            return;
        }

        if (order.challengeWindow != 0 && order.arbiter != address(0)) {
            nodeNumber = INodeRegistry(registry).lockBond(result.node);
            if (nodeNumber == 0) {
                emit Skipped(jobId, SkipReason.NotStaked);
                return;
            }
        }
        _takeResult(jobId, result, nodeNumber, signed);
    }

    function _takeResult(bytes32 jobId, Result calldata result, uint48 nodeNumber, bool signed) private {
        Order calldata order = result.order;
        bool atOnce = order.challengeWindow == 0;
        Job storage j = _jobs[jobId];
        uint256 free;
        if (signed) free = _drawForOrder(jobId, result, atOnce);
        else free = _credit(order.requester, order.token, order.maxPrice - result.price);
        if (atOnce) {
            _store(j, JobState.Paid, signed, 0, 0, signed ? result.price : 0);
            _pay(jobId, order, result.node, result.price, result.resultHash, free);
        } else {
            uint64 finalizeAt = uint64(block.timestamp) + order.challengeWindow;
            _store(j, JobState.Submitted, signed, nodeNumber, finalizeAt, result.price);
            j.resultHash = result.resultHash;
            emit ResultSubmitted(
                jobId, order.requester, result.node, order.token, result.price, result.resultHash, finalizeAt, free
            );
        }
    }

    /// @dev The cheapest checks come first. `nodeNumber` is zero where the order has no challenge window or has an arbiter.
    function _checkResult(bytes32 jobId, Result calldata result)
        private
        view
        returns (bool ok, SkipReason reason, uint48 nodeNumber, bool signed)
    {
        Order calldata order = result.order;
        (JobState state, uint64 noticeEnd) = (_jobs[jobId].state, _jobs[jobId].timer);
        signed = state == JobState.None && result.orderSignature.length != 0;
        if (state != JobState.Open && !signed) return (false, SkipReason.NotOpen, 0, signed);
        if (block.timestamp > order.deadline) return (false, SkipReason.Expired, 0, signed);
        if (_isOver(noticeEnd)) return (false, SkipReason.Cancelled, 0, signed);
        if (result.price > order.maxPrice) return (false, SkipReason.PriceAboveMax, 0, signed);

        bool assigned = order.node == address(0);
        if (!assigned && result.node != order.node) return (false, SkipReason.WrongNode, 0, signed);
        if (assigned && block.timestamp > result.assignmentExpiry) {
            return (false, SkipReason.AssignmentExpired, 0, signed);
        }
        if (signed) {
            (ok, reason) = _checkSignedOrder(jobId, result);
            if (!ok) return (false, reason, 0, signed);
        }
        // With an arbiter, locking the bond tells.
        if (order.challengeWindow != 0 && order.arbiter == address(0)) {
            nodeNumber = INodeRegistry(registry).stakedNumberOf(result.node);
            if (nodeNumber == 0) return (false, SkipReason.NotStaked, 0, signed);
        }
        if (assigned) {
            Assignment memory assignment = Assignment(jobId, result.node, result.assignmentExpiry);
            if (!order.assigner.isValid(_hashTypedDataV4(assignment.hash()), result.assignmentSignature)) {
                return (false, SkipReason.BadAssignmentSignature, 0, signed);
            }
        }
        Receipt memory receipt = Receipt(jobId, result.price, result.resultHash);
        if (!result.node.isValid(_hashTypedDataV4(receipt.hash()), result.receiptSignature)) {
            return (false, SkipReason.BadReceiptSignature, 0, signed);
        }
        ok = true;
    }

    /// @dev What `openJob` would have ensured, and what the channel and the account say.
    function _checkSignedOrder(bytes32 jobId, Result calldata result) private view returns (bool, SkipReason) {
        Order calldata order = result.order;
        if (order.node == address(0) && order.challengeWindow == 0) return (false, SkipReason.WindowRequired);
        if (order.challengeWindow > maxChallengeWindow) return (false, SkipReason.WindowTooLong);
        Channel storage c = _channels[result.node][order.token][order.requester];
        if (order.nonce <= c.coveredNonce) return (false, SkipReason.Covered);
        Account storage acc = _accounts[order.token][order.requester];
        if (uint256(c.reserved) + acc.free + acc.thawing < result.price) return (false, SkipReason.InsufficientFunds);
        if (!order.requester.isValid(jobId, result.orderSignature)) return (false, SkipReason.BadOrderSignature);
        return (true, SkipReason.NotOpen);
    }

    /// @dev Takes the price of a signed order from the reservation, then the account; `claim` if it is paid at once.
    function _drawForOrder(bytes32 jobId, Result calldata result, bool claim) private returns (uint256 free) {
        Order calldata order = result.order;
        Channel storage c = _channels[result.node][order.token][order.requester];
        (uint96 claimed, uint96 reserved) = (c.claimed, c.reserved);
        // forge-lint: disable-next-line(unsafe-typecast)
        uint96 fromReserved = result.price < reserved ? uint96(result.price) : reserved;
        reserved -= fromReserved;
        if (claim) claimed = _claimed(claimed, result.price);
        _store(c, claimed, reserved, c.coveredNonce);
        uint256 thawing;
        (, free, thawing) = _draw(_accounts[order.token][order.requester], result.price - fromReserved);
        emit ChannelUpdated(jobId, order.requester, result.node, order.token, free, thawing, reserved, claimed);
    }

    /// @dev Saturates: once a channel cannot count any further, vouchers pay nothing more, and orders still do.
    function _claimed(uint96 claimed, uint128 price) private pure returns (uint96) {
        uint256 sum = uint256(claimed) + price;
        // forge-lint: disable-next-line(unsafe-typecast)
        return sum < type(uint96).max ? uint96(sum) : type(uint96).max;
    }

    function _finalize(Order calldata order) private {
        bytes32 jobId = jobIdOf(order);
        Job storage j = _jobs[jobId];
        if (!_isWaiting(j.state)) {
            emit Skipped(jobId, SkipReason.NotSubmitted);
            return;
        }
        if (block.timestamp < j.timer) {
            emit Skipped(jobId, SkipReason.WindowOpen);
            return;
        }
        _settle(jobId, order, j);
    }

    function _isWaiting(JobState state) internal pure returns (bool) {
        return state == JobState.Submitted || state == JobState.Disputed;
    }

    /// @dev Pays the whole price of a result that is waiting or in dispute; a dispute's bond comes back.
    function _settle(bytes32 jobId, Order calldata order, Job storage j) internal {
        address node = _nodeOf(j, order);
        (uint128 price, bytes32 resultHash) = (j.amount, j.resultHash);
        j.resultHash = 0;
        if (order.arbiter != address(0)) {
            bool disputed = j.state == JobState.Disputed;
            if (disputed) {
                uint128 bond = _disputeBond(order);
                price -= bond;
                _credit(order.requester, order.token, bond);
            }
            // Nothing is slashed.
            // slither-disable-next-line unused-return
            INodeRegistry(registry).releaseBond(node, disputed, false, 0, 0);
        }
        if (j.signed) {
            if (_isCovered(order, node)) return _giveBack(jobId, order, j, node, price);
            _store(j, JobState.Paid, true, j.nodeNumber, 0, price);
            _claimForOrder(jobId, order, node, price);
        } else {
            _store(j, JobState.Paid, false, 0, 0, 0);
        }
        _pay(jobId, order, node, price, resultHash, _accounts[order.token][order.requester].free);
    }

    /// @dev A voucher took the job's place while its result waited: the lock goes back, into the channel's reservation. What
    /// the voucher found too little for is drawn from there, and the requester has to give notice first. Given back free,
    /// a reservation could be moved into a lock ahead of the voucher, and out of the node's reach after it.
    function _giveBack(bytes32 jobId, Order calldata order, Job storage j, address node, uint128 locked) private {
        _store(j, JobState.Refunded, true, 0, 0, 0);
        Channel storage c = _channels[node][order.token][order.requester];
        uint96 reserved = c.reserved;
        uint96 room = type(uint96).max - reserved;
        // forge-lint: disable-next-line(unsafe-typecast)
        uint96 kept = locked < room ? uint96(locked) : room;
        reserved += kept;
        (c.reserved, c.thawing) = (reserved, 0);
        uint256 free = _credit(order.requester, order.token, locked - kept);
        _tell(jobId, order, node, reserved, c.claimed);
        emit ReservationChanged(order.requester, node, order.token, reserved, 0, 0, free);
        emit JobRefunded(jobId, order.requester, order.token, locked, free);
    }

    /// @dev Follows from the order, so that it need not be stored. At most `maxPrice`, so it fits.
    function _disputeBond(Order calldata order) internal pure returns (uint128) {
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint128(uint256(order.maxPrice) * DISPUTE_BOND_BPS / BPS);
    }

    function _isCovered(Order calldata order, address node) internal view returns (bool) {
        return order.nonce <= _channels[node][order.token][order.requester].coveredNonce;
    }

    /// @dev Counts what a signed order is paid now, having been drawn when its result came in.
    function _claimForOrder(bytes32 jobId, Order calldata order, address node, uint128 price) internal {
        Channel storage c = _channels[node][order.token][order.requester];
        uint96 claimed = _claimed(c.claimed, price);
        c.claimed = claimed;
        _tell(jobId, order, node, c.reserved, claimed);
    }

    /// @dev Tells what the channel and the account have now on behalf of the job.
    function _tell(bytes32 jobId, Order calldata order, address node, uint256 reserved, uint256 claimed) private {
        Account storage acc = _accounts[order.token][order.requester];
        emit ChannelUpdated(jobId, order.requester, node, order.token, acc.free, acc.thawing, reserved, claimed);
    }

    function _pay(bytes32 jobId, Order calldata order, address node, uint128 price, bytes32 resultHash, uint256 free)
        private
    {
        uint256 total = _earn(node, order.token, price - _takeFee(jobId, order, price));
        emit JobPaid(jobId, order.requester, node, order.token, price, resultHash, free, total);
    }

    function _takeFee(bytes32 jobId, Order calldata order, uint128 price) internal returns (uint256 fee) {
        if (order.maxFeeBps == 0) return 0;
        uint256 bps = feeBps < order.maxFeeBps ? feeBps : order.maxFeeBps;
        fee = uint256(price) * bps / BPS;
        if (fee == 0) return 0;
        uint256 total = fees[order.token] + fee;
        fees[order.token] = total;
        emit FeeTaken(jobId, order.token, fee, total);
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function job(bytes32 jobId)
        external
        view
        override
        returns (JobState state, uint128 locked, uint64 finalizeAt, address node)
    {
        Job storage j = _jobs[jobId];
        state = j.state;
        if (state == JobState.Open || _isWaiting(state)) locked = j.amount;
        if (_isWaiting(state)) (finalizeAt, node) = (j.timer, INodeRegistry(registry).nodeAt(j.nodeNumber));
    }

    /// @inheritdoc IJobEscrow
    function cancelAt(bytes32 jobId) external view override returns (uint64) {
        Job storage j = _jobs[jobId];
        return j.state == JobState.None || j.state == JobState.Open ? j.timer : 0;
    }

    /// @dev The node whose result was taken.
    function _nodeOf(Job storage j, Order calldata order) internal view returns (address) {
        return order.node == address(0) ? INodeRegistry(registry).nodeAt(j.nodeNumber) : order.node;
    }

    /// @inheritdoc Channels
    function _paidNode(Job storage j, Order calldata order) internal view override returns (address) {
        return j.state == JobState.Paid || j.state == JobState.Resolved ? _nodeOf(j, order) : address(0);
    }
}
