// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

// This file imports nothing: the Rust side generates its bindings, typed-data hashes and event decoders from it as it
// stands, so there is one definition of every type for both languages.

/// @title What a requester agrees to pay for
/// @notice EIP-712 struct. The job's id, on every rail, is the EIP-712 digest of its order in the escrow's domain: it is
/// unique across chains and contracts and known before anything is mined.
struct Order {
    /// Who pays.
    address requester;
    /// ERC-20 contract, or zero for the chain's native coin.
    address token;
    /// Most the job may cost, in the token's smallest unit.
    uint128 maxPrice;
    /// The only node that may be paid, or zero to let `assigner` bind one.
    address node;
    /// Who may bind an open order to a node; ignored where `node` is named.
    address assigner;
    /// EIP-712 hash of the `JobSpec`.
    bytes32 specHash;
    /// Unix seconds. A result counts up to and including it; a refund is possible after it.
    uint64 deadline;
    /// Seconds between a result and its payment. Zero pays at once and needs a named node.
    uint32 challengeWindow;
    /// Who decides a dispute; zero for none.
    address arbiter;
    /// Most of the price that may be taken as a fee, in basis points.
    uint16 maxFeeBps;
    /// Makes otherwise equal orders distinct.
    uint64 nonce;
}

/// @title What the node is to do
struct JobSpec {
    /// CIDv1 of the input.
    string inputCID;
    /// Name of the operation, such as `encrypt`.
    string operation;
    /// The operation's parameters as a JSON object, or empty for none.
    string params;
}

/// @title The assigner's word that an open order belongs to a node
struct Assignment {
    bytes32 jobId;
    address node;
    /// Unix seconds up to and including which the result may be settled under this assignment.
    uint64 expiry;
}

/// @title The node's word on what it did and what it asks
struct Receipt {
    bytes32 jobId;
    /// In the token's smallest unit, at most the order's `maxPrice`.
    uint128 price;
    /// SHA2-256 of the output, the digest inside its CID.
    bytes32 resultHash;
}

/// @title One item of a settlement batch
struct Result {
    Order order;
    /// The node that did the work.
    address node;
    /// The assignment's expiry; ignored where the order names its node.
    uint64 assignmentExpiry;
    uint128 price;
    bytes32 resultHash;
    /// By the order's assigner over `Assignment`; empty where the order names its node.
    bytes assignmentSignature;
    /// By the node over `Receipt`.
    bytes receiptSignature;
}

/// @title Why an item of a batch changed nothing
enum SkipReason {
    /// No job is open under this order: never opened, or already settled or refunded.
    NotOpen,
    /// The order's deadline has passed.
    Expired,
    /// The order names another node.
    WrongNode,
    /// The assignment's expiry has passed.
    AssignmentExpired,
    /// The assignment is not signed by the order's assigner.
    BadAssignmentSignature,
    /// The node is not registered with the minimum stake.
    NotStaked,
    /// The receipt is not signed by the node.
    BadReceiptSignature,
    /// The price exceeds the order's `maxPrice`.
    PriceAboveMax,
    /// The order's deadline has not passed yet.
    NotExpired,
    /// No result is waiting under this order.
    NotSubmitted,
    /// The challenge window has not ended.
    WindowOpen
}

/// @title Where a job stands
enum JobState {
    None,
    Open,
    /// A result is in and its challenge window runs.
    Submitted,
    Paid,
    Refunded
}

/// @title The escrow of a compute job marketplace
/// @notice Requesters deposit, open jobs against their deposit, and get back what was not spent; nodes are credited for
/// results and withdraw. Whoever submits a batch pays its gas and can take nothing.
interface IJobEscrow {
    /// @notice `free` is the account's balance afterwards.
    event Deposited(address indexed account, address indexed token, address from, uint256 amount, uint256 free);

    /// @notice All amounts as they stand afterwards.
    event Thawing(address indexed account, address indexed token, uint256 free, uint256 thawing, uint64 thawEnd);

    /// @notice `free` and `thawing` as they stand afterwards.
    event Withdrawn(
        address indexed account, address indexed token, address to, uint256 amount, uint256 free, uint256 thawing
    );

    /// @notice Carries the whole order but `specHash`, which follows from `spec`.
    event JobOpened(
        bytes32 indexed jobId,
        address indexed requester,
        address indexed node,
        address token,
        uint128 maxPrice,
        address assigner,
        uint64 deadline,
        uint32 challengeWindow,
        address arbiter,
        uint16 maxFeeBps,
        uint64 nonce,
        JobSpec spec,
        uint256 free
    );

    /// @notice A result is in and is paid by `finalize` from `finalizeAt` (unix seconds) on. What the price leaves of the
    /// lock has gone back to the requester, whose balance is now `free`.
    event ResultSubmitted(
        bytes32 indexed jobId,
        address indexed requester,
        address indexed node,
        address token,
        uint128 price,
        bytes32 resultHash,
        uint64 finalizeAt,
        uint256 free
    );

    /// @notice The node was credited. `free` is the requester's and `earned` the node's balance afterwards.
    event JobPaid(
        bytes32 indexed jobId,
        address indexed requester,
        address indexed node,
        address token,
        uint128 price,
        bytes32 resultHash,
        uint256 free,
        uint256 earned
    );

    /// @notice The whole lock went back to the requester, whose balance is now `free`.
    event JobRefunded(bytes32 indexed jobId, address indexed requester, address token, uint128 amount, uint256 free);

    /// @notice An item of a batch changed nothing.
    event Skipped(bytes32 indexed jobId, SkipReason reason);

    /// @notice `earned` is the node's balance afterwards.
    event EarnedWithdrawn(address indexed node, address indexed token, address to, uint256 amount, uint256 earned);

    error ZeroAmount();
    error ZeroAddress();
    /// @notice The call's value is not what the token and amount ask for.
    error WrongValue(uint256 expected, uint256 actual);
    /// @notice The account has less than is asked.
    error Insufficient(address account, address token, uint256 available, uint256 needed);
    /// @notice Thawing funds can be withdrawn from `thawEnd` on.
    error StillThawing(uint64 thawEnd);
    error NotRequester(address requester, address caller);
    error SpecHashMismatch(bytes32 expected, bytes32 actual);
    error DeadlinePassed(uint64 deadline);
    error DeadlineTooFar(uint64 deadline, uint64 latest);
    /// @notice An order that leaves its node open needs a challenge window: without one, whoever steals the assigner's
    /// key could pay a node of their own.
    error WindowRequired();
    error WindowTooLong(uint32 challengeWindow, uint32 longest);
    /// @notice An order that leaves its node open needs an assigner.
    error AssignerRequired();
    /// @notice The job was opened before.
    error JobExists(bytes32 jobId);
    /// @notice The native coin could not be sent to `to`.
    error TransferFailed(address to);
    /// @notice Too little gas is left to give a contract wallet its allowance for checking a signature.
    error NotEnoughGas(uint256 available, uint256 needed);

    // ── Requesters ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice Adds to the caller's free balance. Native coin: `token` zero and `amount` equal to the value sent. ERC-20:
    /// what arrives is what counts.
    function deposit(address token, uint256 amount) external payable;

    /// @notice As `deposit`, to the credit of `account`.
    function depositFor(address account, address token, uint256 amount) external payable;

    /// @notice Locks `order.maxPrice` of the caller's free balance and publishes the job. Value sent is deposited first
    /// (native coin only).
    function openJob(Order calldata order, JobSpec calldata spec) external payable returns (bytes32 jobId);

    /// @notice Gives back the locks of jobs whose deadline passed without a result. Anyone may call; the requester is paid.
    function refundExpired(Order[] calldata orders) external;

    /// @notice Moves free balance to thawing and restarts the account's thaw for this token.
    function thaw(address token, uint256 amount) external;

    /// @notice Sends all thawed balance to `to`, once the thaw has ended.
    function withdraw(address token, address to) external returns (uint256 amount);

    // ── Nodes and whoever settles for them ──────────────────────────────────────────────────────────────────────────

    /// @notice Settles results. Items that fail emit `Skipped`, change nothing and harm no other.
    function submitResults(Result[] calldata results) external;

    /// @notice Pays results whose challenge window has ended. Items that fail emit `Skipped` and change nothing.
    function finalize(Order[] calldata orders) external;

    /// @notice Sends all that the calling node has earned in `token` to `to`.
    function withdrawEarned(address token, address to) external returns (uint256 amount);

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice The job's id: the order's EIP-712 digest.
    function jobIdOf(Order calldata order) external view returns (bytes32);
    /// @notice The job's state, what is locked for it, and, while a result is waiting, when it can be finalized and whose it
    /// is (both zero otherwise).
    function job(bytes32 jobId) external view returns (JobState state, uint128 locked, uint64 finalizeAt, address node);
    function account(address owner, address token) external view returns (uint128 free, uint128 thawing, uint64 thawEnd);
    function earned(address node, address token) external view returns (uint256);
    function registry() external view returns (address);
    /// @notice Seconds between `thaw` and `withdraw`.
    function thawPeriod() external view returns (uint64);
}
