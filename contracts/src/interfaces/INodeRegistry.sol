// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

// This file imports nothing: the Rust side generates its bindings and event decoders from it as it stands.

/// @title The registry of compute nodes and their stakes
/// @notice A node is known by the address of its operator's key, which signs receipts, and by a `nodeId` of the operator's
/// choice, under which it appears off-chain. Stakes are in the chain's native coin.
interface INodeRegistry {
    /// @notice The node's whole description, at registration and at every later change.
    event NodeUpdated(
        address indexed node,
        bytes32 indexed nodeId,
        bytes publicKey,
        address payout,
        uint32 capacity,
        string[] operations,
        string uri
    );

    /// @notice `stake` is the node's active stake afterwards.
    event Staked(address indexed node, address from, uint256 amount, uint256 stake);

    /// @notice All amounts as they stand afterwards; `unbondEnd` in unix seconds.
    event Unbonding(address indexed node, uint256 stake, uint256 unbonding, uint64 unbondEnd);

    /// @notice Unbonded stake left the registry.
    event Unbonded(address indexed node, address to, uint256 amount, uint256 stake);

    /// @notice `bonds` is how many bonds of the node's stake are locked afterwards.
    event BondLocked(address indexed node, uint32 bonds);

    /// @notice A bonded job ended. All counters as they stand afterwards.
    event BondReleased(address indexed node, uint32 bonds, uint32 paid, uint32 disputed, uint32 lost);

    /// @notice A node lost stake: `compensation` to the requester, the rest to nobody. `stake` and `unbonding` as they stand
    /// afterwards.
    event Slashed(address indexed node, uint256 amount, uint256 compensation, uint256 stake, uint256 unbonding);

    /// @notice The minimum stake is `minStake` from `since` (unix seconds) on.
    event MinStakeSet(uint256 minStake, uint64 since);
    event PausedSet(bool paused);

    error ZeroNodeId();
    error ZeroCapacity();
    error ZeroAddress();
    error ZeroAmount();
    /// @notice The list of operations is empty or names an empty one.
    error NoOperations();
    error WrongKeyLength(uint256 length, uint256 expected);
    error TooLong(string field, uint256 length, uint256 longest);
    error AlreadyRegistered(address node);
    error NodeIdTaken(bytes32 nodeId);
    error NotRegistered(address node);
    error InsufficientStake(uint256 available, uint256 needed);
    /// @notice Unbonding stake can leave from `unbondEnd` on.
    error StillUnbonding(uint64 unbondEnd);
    error NothingUnbonding();
    /// @notice Stake cannot leave while more bonds are locked than the rest would cover.
    error BondsLocked(uint32 bonds);
    error NotEscrow(address caller);
    error Paused();
    error TransferFailed(address to);

    /// @notice Registers the caller as a node; value sent becomes its first stake.
    /// @param nodeId Free, not zero; taken for good by the first to register it.
    /// @param publicKey X25519 key (32 bytes) to which data for the node is to be encrypted.
    /// @param payout Where stake and earnings go by default.
    /// @param capacity Most jobs at once.
    /// @param operations Names of the operations the node performs.
    /// @param uri Where more can be read; may be empty.
    function register(
        bytes32 nodeId,
        bytes calldata publicKey,
        address payout,
        uint32 capacity,
        string[] calldata operations,
        string calldata uri
    ) external payable;

    /// @notice Replaces everything `register` said but the `nodeId`.
    function update(
        bytes calldata publicKey,
        address payout,
        uint32 capacity,
        string[] calldata operations,
        string calldata uri
    ) external;

    /// @notice Adds the value sent to the stake of a registered node.
    function stake(address node) external payable;

    /// @notice Moves active stake of the caller to unbonding and restarts its unbonding time.
    function startUnbond(uint256 amount) external;

    /// @notice Sends all unbonded stake of the caller to its payout address.
    function finishUnbond() external returns (uint256 amount);

    // ── The escrow ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice Locks one bond of a registered node that has the minimum stake and covers one more bond.
    /// @return number The node's number, or zero if nothing was locked.
    function lockBond(address node) external returns (uint48 number);

    /// @notice Releases a bond and counts how the job ended. Takes up to `slash` of the node's stake, active before
    /// unbonding; up to `compensation` of that goes to the escrow, the rest is burnt.
    /// @return slashed What was taken.
    /// @return compensated What the escrow was sent of it.
    function releaseBond(address node, bool disputed, bool lost, uint256 slash, uint256 compensation)
        external
        returns (uint256 slashed, uint256 compensated);

    // ── The owner ───────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice Sets the minimum stake: lower at once, higher after the unbonding period, so that no result under way is
    /// refused for it.
    function setMinStake(uint128 minStake) external;
    /// @notice Stops, or allows again, registrations; nothing else is ever stopped.
    function setPaused(bool paused) external;

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice True for a registered node whose active stake is at least `minStake`.
    function isStaked(address node) external view returns (bool);
    /// @notice The node's number if `isStaked`, else zero. Nodes are numbered from 1 in the order in which they register,
    /// so that other contracts can keep a node in six bytes.
    function stakedNumberOf(address node) external view returns (uint48);
    /// @notice The node with this number, or zero.
    function nodeAt(uint48 number) external view returns (address);
    function nodeIdOf(address node) external view returns (bytes32);
    function nodeOf(bytes32 nodeId) external view returns (address);
    function payoutOf(address node) external view returns (address);
    function stakeOf(address node) external view returns (uint128 stake, uint128 unbonding, uint64 unbondEnd);
    /// @notice Bonds locked, and bonded jobs that ended: paid, disputed and, after a dispute, not paid in full.
    function recordOf(address node) external view returns (uint32 bonds, uint32 paid, uint32 disputed, uint32 lost);
    /// @notice Wei of stake at risk in one job that an arbiter may decide.
    function bond() external view returns (uint128);
    /// @notice The only contract that locks and slashes.
    function escrow() external view returns (address);
    function paused() external view returns (bool);
    /// @notice Wei a node must have staked to be given open orders.
    function minStake() external view returns (uint128);
    /// @notice Seconds between `startUnbond` and `finishUnbond`.
    function unbondingPeriod() external view returns (uint64);
}
