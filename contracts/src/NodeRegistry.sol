// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {INodeRegistry} from "./interfaces/INodeRegistry.sol";

/// @title NodeRegistry
/// @notice See `INodeRegistry`. Immutable: nobody but a node moves its stake, and nobody but the escrow takes of it, one bond
/// for a job at the most.
/// Warning: The escrow is trusted to lock and slash by the word of arbiters only.
contract NodeRegistry is INodeRegistry, Ownable2Step {
    using SafeCast for uint256;

    struct Node {
        // slot 0: all that settling a result reads
        uint128 stake;
        uint64 unbondEnd;
        uint48 number;
        // slot 1: all that locking and releasing a bond writes
        uint128 unbonding;
        uint32 bonds;
        uint32 paid;
        uint32 disputed;
        uint32 lost;
        // slot 2
        address payout;
        // slot 3
        bytes32 nodeId;
    }

    struct MinStake {
        // slot 0
        uint96 current;
        uint96 next;
        uint64 since;
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
    uint64 public immutable override unbondingPeriod;
    /// @inheritdoc INodeRegistry
    uint128 public immutable override bond;
    /// @inheritdoc INodeRegistry
    address public immutable override escrow;

    // Slot 1, behind the pending owner.
    /// @inheritdoc INodeRegistry
    bool public override paused;
    MinStake private _minStake;

    /// @dev Nodes ever registered; the latest one's number.
    uint48 private _count;
    mapping(address node => Node) private _nodes;
    /// @inheritdoc INodeRegistry
    mapping(bytes32 nodeId => address node) public override nodeOf;
    /// @inheritdoc INodeRegistry
    mapping(uint48 number => address node) public override nodeAt;

    /// @param minStake_ Wei a node must have staked to be given open orders.
    /// @param unbondingPeriod_ Seconds.
    /// @param bond_ Wei of stake at risk in one job that an arbiter may decide.
    /// @param escrow_ The `JobEscrow`, which is deployed next: it refuses a registry that names another.
    /// @param owner_ The first owner.
    constructor(uint128 minStake_, uint64 unbondingPeriod_, uint128 bond_, address escrow_, address owner_)
        Ownable(owner_)
    {
        require(escrow_ != address(0), ZeroAddress());
        _minStake.next = uint256(minStake_).toUint96();
        unbondingPeriod = unbondingPeriod_;
        bond = bond_;
        escrow = escrow_;
    }

    modifier onlyEscrow() {
        require(msg.sender == escrow, NotEscrow(msg.sender));
        _;
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
        require(!paused, Paused());
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
        require(node.stake >= _bonded(node.bonds), BondsLocked(node.bonds));

        node.unbonding = 0;
        node.unbondEnd = 0;
        address to = node.payout;
        emit Unbonded(msg.sender, to, amount, node.stake);
        _send(to, amount);
    }

    // ── The escrow ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc INodeRegistry
    function lockBond(address account) external override onlyEscrow returns (uint48 number) {
        number = stakedNumberOf(account);
        Node storage node = _nodes[account];
        uint32 bonds = node.bonds;
        if (number == 0 || bonds == type(uint32).max || node.stake < _bonded(bonds + 1)) return 0;
        node.bonds = bonds + 1;
        emit BondLocked(account, bonds + 1);
    }

    /// @inheritdoc INodeRegistry
    /// @dev The escrow releases each bond it has locked once, so `bonds` is never zero. Counters stop at their end.
    function releaseBond(address account, bool disputed, bool lost, uint256 slash, uint256 compensation)
        external
        override
        onlyEscrow
        returns (uint256 slashed, uint256 compensated)
    {
        Node storage node = _nodes[account];
        uint32 bonds = node.bonds - 1;
        (uint32 paid, uint32 disputes, uint32 losses) = (node.paid, node.disputed, node.lost);
        if (disputed) disputes = _next(disputes);
        if (lost) losses = _next(losses);
        else paid = _next(paid);
        (node.bonds, node.paid, node.disputed, node.lost) = (bonds, paid, disputes, losses);
        emit BondReleased(account, bonds, paid, disputes, losses);
        if (slash != 0) (slashed, compensated) = _slash(node, account, slash, compensation);
    }

    function _slash(Node storage node, address account, uint256 slash, uint256 compensation)
        private
        returns (uint256 slashed, uint256 compensated)
    {
        (uint256 active, uint256 unbonding) = (node.stake, node.unbonding);
        slashed = slash < active + unbonding ? slash : active + unbonding;
        uint256 fromActive = slashed < active ? slashed : active;
        active -= fromActive;
        unbonding -= slashed - fromActive;
        // forge-lint: disable-next-line(unsafe-typecast)
        (node.stake, node.unbonding) = (uint128(active), uint128(unbonding)); // only ever less than they were
        compensated = compensation < slashed ? compensation : slashed;
        emit Slashed(account, slashed, compensated, active, unbonding);
        _send(escrow, compensated);
        _send(address(0), slashed - compensated);
    }

    function _bonded(uint32 bonds) private view returns (uint256) {
        return uint256(bonds) * bond;
    }

    function _next(uint32 counter) private pure returns (uint32) {
        return counter == type(uint32).max ? counter : counter + 1;
    }

    // ── The owner ───────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc INodeRegistry
    function setMinStake(uint128 minStake_) external override onlyOwner {
        uint96 current = _currentMinStake();
        uint96 next = uint256(minStake_).toUint96();
        uint64 since = uint64(block.timestamp) + (next > current ? unbondingPeriod : 0);
        _minStake = MinStake(current, next, since);
        emit MinStakeSet(next, since);
    }

    /// @inheritdoc INodeRegistry
    function setPaused(bool paused_) external override onlyOwner {
        paused = paused_;
        emit PausedSet(paused_);
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc INodeRegistry
    function isStaked(address node) external view override returns (bool) {
        return stakedNumberOf(node) != 0;
    }

    /// @inheritdoc INodeRegistry
    function stakedNumberOf(address node) public view override returns (uint48) {
        Node storage n = _nodes[node];
        return n.stake >= _currentMinStake() ? n.number : 0;
    }

    /// @inheritdoc INodeRegistry
    function minStake() external view override returns (uint128) {
        return _currentMinStake();
    }

    /// @inheritdoc INodeRegistry
    function recordOf(address node) external view override returns (uint32, uint32, uint32, uint32) {
        Node storage n = _nodes[node];
        return (n.bonds, n.paid, n.disputed, n.lost);
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

    function _currentMinStake() private view returns (uint96) {
        return block.timestamp >= _minStake.since ? _minStake.next : _minStake.current;
    }

    // To the payout address of the caller that unbonded, to the escrow, or to nobody.
    // slither-disable-next-line arbitrary-send-eth
    function _send(address to, uint256 amount) private {
        if (amount == 0) return;
        (bool sent,) = to.call{value: amount}("");
        require(sent, TransferFailed(to));
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
