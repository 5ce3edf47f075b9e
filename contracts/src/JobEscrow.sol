// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

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

/// @title JobEscrow
/// @notice See `IJobEscrow`. Immutable and without an owner: money moves by the signatures of those it belongs to, and by
/// time.
/// @dev Batches make no external call but to the registry and, within `SignatureLib`'s limits, to the wallets that signed.
/// Warning: The registry is trusted: it decides whose results for open orders count.
/// Warning: Tokens are the requester's and the node's choice. One that takes back balances or lies about them harms those
/// who deal in it, and only in that token.
contract JobEscrow is IJobEscrow, EIP712, ReentrancyGuardTransient {
    using SafeCast for uint256;
    using SafeERC20 for IERC20;
    using SignatureLib for address;
    using TypedData for Assignment;
    using TypedData for JobSpec;
    using TypedData for Order;
    using TypedData for Receipt;

    struct Account {
        // slot 0
        uint128 free;
        uint128 thawing;
        // slot 1
        uint64 thawEnd;
    }

    struct Job {
        // slot 0
        JobState state;
        uint48 nodeNumber;
        uint64 finalizeAt;
        uint128 locked;
        // slot 1: set only while a result is waiting
        bytes32 resultHash;
    }

    /// @notice Seconds from now beyond which a deadline is taken for a mistake.
    uint64 public constant MAX_DEADLINE = 365 days;
    /// @notice Longest challenge window in seconds.
    uint32 public constant MAX_CHALLENGE_WINDOW = 30 days;

    /// @inheritdoc IJobEscrow
    address public immutable override registry;
    /// @inheritdoc IJobEscrow
    uint64 public immutable override thawPeriod;

    mapping(address owner => mapping(address token => Account)) private _accounts;
    mapping(bytes32 jobId => Job) private _jobs;
    /// @inheritdoc IJobEscrow
    mapping(address node => mapping(address token => uint256)) public override earned;

    /// @param registry_ The `NodeRegistry`.
    /// @param thawPeriod_ Seconds between `thaw` and `withdraw`.
    constructor(address registry_, uint64 thawPeriod_) EIP712("Littoral", "1") {
        require(registry_ != address(0), ZeroAddress());
        registry = registry_;
        thawPeriod = thawPeriod_;
    }

    // ── Requesters ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function deposit(address token, uint256 amount) external payable override nonReentrant {
        _deposit(msg.sender, token, amount);
    }

    /// @inheritdoc IJobEscrow
    function depositFor(address owner, address token, uint256 amount) external payable override nonReentrant {
        require(owner != address(0), ZeroAddress());
        _deposit(owner, token, amount);
    }

    /// @inheritdoc IJobEscrow
    function openJob(Order calldata order, JobSpec calldata spec) external payable override returns (bytes32 jobId) {
        _checkOrder(order, spec);
        jobId = jobIdOf(order);
        Job storage opened = _jobs[jobId];
        require(opened.state == JobState.None, JobExists(jobId));

        Account storage requester = _accounts[msg.sender][order.token];
        uint256 free = requester.free;
        if (msg.value != 0) {
            require(order.token == address(0), WrongValue(0, msg.value));
            free += msg.value;
            emit Deposited(msg.sender, address(0), msg.sender, msg.value, free);
        }
        require(free >= order.maxPrice, Insufficient(msg.sender, order.token, free, order.maxPrice));
        free -= order.maxPrice;
        requester.free = free.toUint128();
        opened.state = JobState.Open;
        opened.locked = order.maxPrice;
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

    /// @inheritdoc IJobEscrow
    function refundExpired(Order[] calldata orders) external override {
        for (uint256 i = 0; i < orders.length; ++i) {
            _refund(orders[i]);
        }
    }

    /// @inheritdoc IJobEscrow
    function thaw(address token, uint256 amount) external override {
        Account storage acc = _accounts[msg.sender][token];
        (uint128 free, uint128 thawing) = (acc.free, acc.thawing);
        require(amount != 0, ZeroAmount());
        require(amount <= free, Insufficient(msg.sender, token, free, amount));

        // forge-lint: disable-next-line(unsafe-typecast)
        uint128 moved = uint128(amount); // at most `free`
        uint64 thawEnd = uint64(block.timestamp) + thawPeriod;
        free -= moved;
        thawing += moved;
        (acc.free, acc.thawing, acc.thawEnd) = (free, thawing, thawEnd);
        emit Thawing(msg.sender, token, free, thawing, thawEnd);
    }

    /// @inheritdoc IJobEscrow
    /// @dev `thawEnd` stays behind: overwriting it at the next thaw is cheaper than clearing and setting it again.
    function withdraw(address token, address to) external override nonReentrant returns (uint256 amount) {
        Account storage acc = _accounts[msg.sender][token];
        uint128 free = acc.free;
        amount = acc.thawing;
        require(amount != 0, ZeroAmount());
        require(block.timestamp >= acc.thawEnd, StillThawing(acc.thawEnd));

        (acc.free, acc.thawing) = (free, 0);
        emit Withdrawn(msg.sender, token, to, amount, free, 0);
        _send(token, to, amount);
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

    /// @inheritdoc IJobEscrow
    function withdrawEarned(address token, address to) external override nonReentrant returns (uint256 amount) {
        amount = earned[msg.sender][token];
        require(amount != 0, ZeroAmount());
        earned[msg.sender][token] = 0;
        emit EarnedWithdrawn(msg.sender, token, to, amount, 0);
        _send(token, to, amount);
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function jobIdOf(Order calldata order) public view override returns (bytes32) {
        return _hashTypedDataV4(order.hash());
    }

    /// @inheritdoc IJobEscrow
    function job(bytes32 jobId)
        external
        view
        override
        returns (JobState state, uint128 locked, uint64 finalizeAt, address node)
    {
        Job storage j = _jobs[jobId];
        (state, locked, finalizeAt) = (j.state, j.locked, j.finalizeAt);
        if (j.nodeNumber != 0) node = INodeRegistry(registry).nodeAt(j.nodeNumber);
    }

    /// @inheritdoc IJobEscrow
    function account(address owner, address token)
        external
        view
        override
        returns (uint128 free, uint128 thawing, uint64 thawEnd)
    {
        Account storage acc = _accounts[owner][token];
        (free, thawing) = (acc.free, acc.thawing);
        if (thawing != 0) thawEnd = acc.thawEnd;
    }

    // ── Internals ───────────────────────────────────────────────────────────────────────────────────────────────────

    function _checkOrder(Order calldata order, JobSpec calldata spec) private view {
        require(order.requester == msg.sender, NotRequester(order.requester, msg.sender));
        require(order.maxPrice != 0, ZeroAmount());
        require(order.deadline >= block.timestamp, DeadlinePassed(order.deadline));
        uint64 latest = uint64(block.timestamp) + MAX_DEADLINE;
        require(order.deadline <= latest, DeadlineTooFar(order.deadline, latest));
        require(
            order.challengeWindow <= MAX_CHALLENGE_WINDOW, WindowTooLong(order.challengeWindow, MAX_CHALLENGE_WINDOW)
        );
        if (order.node == address(0)) {
            require(order.challengeWindow != 0, WindowRequired());
            require(order.assigner != address(0), AssignerRequired());
        }
        bytes32 specHash = spec.hash();
        require(order.specHash == specHash, SpecHashMismatch(order.specHash, specHash));
    }

    function _deposit(address owner, address token, uint256 amount) private {
        if (token == address(0)) {
            require(msg.value == amount, WrongValue(amount, msg.value));
        } else {
            require(msg.value == 0, WrongValue(0, msg.value));
            uint256 before = IERC20(token).balanceOf(address(this));
            IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
            amount = IERC20(token).balanceOf(address(this)) - before;
        }
        require(amount != 0, ZeroAmount());

        Account storage acc = _accounts[owner][token];
        uint128 free = (acc.free + amount).toUint128();
        acc.free = free;
        emit Deposited(owner, token, msg.sender, amount, free);
    }

    function _submit(Result calldata result) private {
        Order calldata order = result.order;
        bytes32 jobId = jobIdOf(order);
        (bool ok, SkipReason reason, uint48 nodeNumber) = _checkResult(jobId, result);
        if (!ok) {
            emit Skipped(jobId, reason);
            return;
        }

        Job storage j = _jobs[jobId];
        uint256 free = _credit(order.requester, order.token, order.maxPrice - result.price);
        if (order.challengeWindow == 0) {
            j.state = JobState.Paid;
            j.locked = 0;
            _pay(jobId, order, result.node, result.price, result.resultHash, free);
        } else {
            uint64 finalizeAt = uint64(block.timestamp) + order.challengeWindow;
            j.state = JobState.Submitted;
            j.nodeNumber = nodeNumber;
            j.finalizeAt = finalizeAt;
            j.locked = result.price;
            j.resultHash = result.resultHash;
            emit ResultSubmitted(
                jobId, order.requester, result.node, order.token, result.price, result.resultHash, finalizeAt, free
            );
        }
    }

    /// @dev The cheapest checks come first. `nodeNumber` is zero where the order has no challenge window.
    function _checkResult(bytes32 jobId, Result calldata result)
        private
        view
        returns (bool ok, SkipReason reason, uint48 nodeNumber)
    {
        Order calldata order = result.order;
        if (_jobs[jobId].state != JobState.Open) return (false, SkipReason.NotOpen, 0);
        if (block.timestamp > order.deadline) return (false, SkipReason.Expired, 0);
        if (result.price > order.maxPrice) return (false, SkipReason.PriceAboveMax, 0);

        bool assigned = order.node == address(0);
        if (!assigned && result.node != order.node) return (false, SkipReason.WrongNode, 0);
        if (assigned && block.timestamp > result.assignmentExpiry) return (false, SkipReason.AssignmentExpired, 0);
        if (order.challengeWindow != 0) {
            nodeNumber = INodeRegistry(registry).stakedNumberOf(result.node);
            if (nodeNumber == 0) return (false, SkipReason.NotStaked, 0);
        }
        if (assigned) {
            Assignment memory assignment = Assignment(jobId, result.node, result.assignmentExpiry);
            if (!order.assigner.isValid(_hashTypedDataV4(assignment.hash()), result.assignmentSignature)) {
                return (false, SkipReason.BadAssignmentSignature, 0);
            }
        }
        Receipt memory receipt = Receipt(jobId, result.price, result.resultHash);
        if (!result.node.isValid(_hashTypedDataV4(receipt.hash()), result.receiptSignature)) {
            return (false, SkipReason.BadReceiptSignature, 0);
        }
        ok = true;
    }

    function _finalize(Order calldata order) private {
        bytes32 jobId = jobIdOf(order);
        Job storage j = _jobs[jobId];
        if (j.state != JobState.Submitted) {
            emit Skipped(jobId, SkipReason.NotSubmitted);
            return;
        }
        if (block.timestamp < j.finalizeAt) {
            emit Skipped(jobId, SkipReason.WindowOpen);
            return;
        }

        address node = order.node;
        if (node == address(0)) node = INodeRegistry(registry).nodeAt(j.nodeNumber);
        (uint128 price, bytes32 resultHash) = (j.locked, j.resultHash);
        delete _jobs[jobId];
        j.state = JobState.Paid;
        _pay(jobId, order, node, price, resultHash, _accounts[order.requester][order.token].free);
    }

    function _refund(Order calldata order) private {
        bytes32 jobId = jobIdOf(order);
        Job storage j = _jobs[jobId];
        if (j.state != JobState.Open) {
            emit Skipped(jobId, SkipReason.NotOpen);
            return;
        }
        if (block.timestamp <= order.deadline) {
            emit Skipped(jobId, SkipReason.NotExpired);
            return;
        }

        j.state = JobState.Refunded;
        j.locked = 0;
        uint256 free = _credit(order.requester, order.token, order.maxPrice);
        emit JobRefunded(jobId, order.requester, order.token, order.maxPrice, free);
    }

    function _pay(bytes32 jobId, Order calldata order, address node, uint128 price, bytes32 resultHash, uint256 free)
        private
    {
        uint256 total = earned[node][order.token] + price;
        earned[node][order.token] = total;
        emit JobPaid(jobId, order.requester, node, order.token, price, resultHash, free, total);
    }

    /// @dev Saturates, so that it cannot revert within a batch. Only a token that claims a supply of 2^128 or more gets
    /// there, and only its holders lose.
    function _credit(address owner, address token, uint128 amount) private returns (uint256 free) {
        Account storage acc = _accounts[owner][token];
        free = uint256(acc.free) + amount;
        if (free > type(uint128).max) free = type(uint128).max;
        // forge-lint: disable-next-line(unsafe-typecast)
        acc.free = uint128(free);
    }

    function _send(address token, address to, uint256 amount) private {
        require(to != address(0), ZeroAddress());
        require(to != address(this), TransferFailed(to));
        if (token == address(0)) {
            (bool sent,) = to.call{value: amount}("");
            require(sent, TransferFailed(to));
        } else {
            IERC20(token).safeTransfer(to, amount);
        }
    }
}
