// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {INodeRegistry} from "./interfaces/INodeRegistry.sol";

/// @title NodeRegistry
/// @notice See `INodeRegistry`. Immutable and without an owner: nobody but a node moves its stake.
contract NodeRegistry is INodeRegistry {
    using SafeCast for uint256;

    struct Node {
        // slot 0: all that settling a result reads
        uint128 stake;
        uint64 unbondEnd;
        uint48 number;
        // slot 1
        uint128 unbonding;
        // slot 2
        address payout;
        // slot 3
        bytes32 nodeId;
    }

    /// @notice Bytes of an X25519 public key.
    uint256 public constant PUBLIC_KEY_LENGTH = 32;
    /// @notice Most operations a node may list.
    uint256 public constant MAX_OPERATIONS = 64;
    /// @notice Most bytes of one operation's name.
    uint256 public constant MAX_OPERATION_LENGTH = 64;
    /// @notice Most bytes of a URI.
    uint256 public constant MAX_URI_LENGTH = 512;

    /// @inheritdoc INodeRegistry
    uint128 public immutable override minStake;
    /// @inheritdoc INodeRegistry
    uint64 public immutable override unbondingPeriod;

    /// @dev Nodes ever registered; the latest one's number.
    uint48 private _count;
    mapping(address node => Node) private _nodes;
    /// @inheritdoc INodeRegistry
    mapping(bytes32 nodeId => address node) public override nodeOf;
    /// @inheritdoc INodeRegistry
    mapping(uint48 number => address node) public override nodeAt;

    /// @param minStake_ Wei a node must have staked to be given open orders.
    /// @param unbondingPeriod_ Seconds.
    constructor(uint128 minStake_, uint64 unbondingPeriod_) {
        minStake = minStake_;
        unbondingPeriod = unbondingPeriod_;
    }

    // ── Registration ────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc INodeRegistry
    function register(
        bytes32 nodeId,
        bytes calldata publicKey,
        address payout,
        uint32 capacity,
        string[] calldata operations,
        string calldata uri
    ) external payable override {
        Node storage node = _nodes[msg.sender];
        require(nodeId != 0, ZeroNodeId());
        require(node.number == 0, AlreadyRegistered(msg.sender));
        require(nodeOf[nodeId] == address(0), NodeIdTaken(nodeId));

        uint48 number = ++_count;
        node.number = number;
        node.nodeId = nodeId;
        nodeOf[nodeId] = msg.sender;
        nodeAt[number] = msg.sender;
        _describe(node, publicKey, payout, capacity, operations, uri);
        if (msg.value != 0) _addStake(node, msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function update(
        bytes calldata publicKey,
        address payout,
        uint32 capacity,
        string[] calldata operations,
        string calldata uri
    ) external override {
        _describe(_registered(msg.sender), publicKey, payout, capacity, operations, uri);
    }

    // ── Stake ───────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc INodeRegistry
    function stake(address node) external payable override {
        require(msg.value != 0, ZeroAmount());
        _addStake(_registered(node), node);
    }

    /// @inheritdoc INodeRegistry
    function startUnbond(uint256 amount) external override {
        Node storage node = _registered(msg.sender);
        uint128 active = node.stake;
        require(amount != 0, ZeroAmount());
        require(amount <= active, InsufficientStake(active, amount));

        // forge-lint: disable-next-line(unsafe-typecast)
        uint128 moved = uint128(amount); // at most `active`
        uint128 left = active - moved;
        uint128 unbonding = node.unbonding + moved;
        uint64 unbondEnd = uint64(block.timestamp) + unbondingPeriod;
        node.stake = left;
        node.unbondEnd = unbondEnd;
        node.unbonding = unbonding;
        emit Unbonding(msg.sender, left, unbonding, unbondEnd);
    }

    /// @inheritdoc INodeRegistry
    function finishUnbond() external override returns (uint256 amount) {
        Node storage node = _registered(msg.sender);
        amount = node.unbonding;
        require(amount != 0, NothingUnbonding());
        require(block.timestamp >= node.unbondEnd, StillUnbonding(node.unbondEnd));

        node.unbonding = 0;
        node.unbondEnd = 0;
        address to = node.payout;
        emit Unbonded(msg.sender, to, amount, node.stake);
        (bool sent,) = to.call{value: amount}("");
        require(sent, TransferFailed(to));
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc INodeRegistry
    function isStaked(address node) external view override returns (bool) {
        return stakedNumberOf(node) != 0;
    }

    /// @inheritdoc INodeRegistry
    function stakedNumberOf(address node) public view override returns (uint48) {
        Node storage n = _nodes[node];
        return n.stake >= minStake ? n.number : 0;
    }

    /// @inheritdoc INodeRegistry
    function nodeIdOf(address node) external view override returns (bytes32) {
        return _nodes[node].nodeId;
    }

    /// @inheritdoc INodeRegistry
    function payoutOf(address node) external view override returns (address) {
        return _nodes[node].payout;
    }

    /// @inheritdoc INodeRegistry
    function stakeOf(address node) external view override returns (uint128, uint128, uint64) {
        Node storage n = _nodes[node];
        return (n.stake, n.unbonding, n.unbondEnd);
    }

    // ── Internals ───────────────────────────────────────────────────────────────────────────────────────────────────

    function _registered(address account) private view returns (Node storage node) {
        node = _nodes[account];
        require(node.number != 0, NotRegistered(account));
    }

    function _addStake(Node storage node, address account) private {
        uint128 total = node.stake + msg.value.toUint128();
        node.stake = total;
        emit Staked(account, msg.sender, msg.value, total);
    }

    /// @dev Only the payout address is needed on-chain; the rest lives in the event.
    function _describe(
        Node storage node,
        bytes calldata publicKey,
        address payout,
        uint32 capacity,
        string[] calldata operations,
        string calldata uri
    ) private {
        require(publicKey.length == PUBLIC_KEY_LENGTH, WrongKeyLength(publicKey.length, PUBLIC_KEY_LENGTH));
        require(payout != address(0), ZeroAddress());
        require(capacity != 0, ZeroCapacity());
        require(operations.length != 0, NoOperations());
        _requireAtMost("operations", operations.length, MAX_OPERATIONS);
        for (uint256 i = 0; i < operations.length; ++i) {
            uint256 length = bytes(operations[i]).length;
            require(length != 0, NoOperations());
            _requireAtMost("operation", length, MAX_OPERATION_LENGTH);
        }
        _requireAtMost("uri", bytes(uri).length, MAX_URI_LENGTH);

        node.payout = payout;
        emit NodeUpdated(msg.sender, node.nodeId, publicKey, payout, capacity, operations, uri);
    }

    function _requireAtMost(string memory field, uint256 length, uint256 longest) private pure {
        require(length <= longest, TooLong(field, length, longest));
    }
}
