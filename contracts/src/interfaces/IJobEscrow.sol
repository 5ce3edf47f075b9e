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
    /// Who decides a dispute; zero for none. Whoever signs a receipt under the order agrees to them.
    address arbiter;
    /// Most of the price that may be taken as a fee, in basis points.
    uint16 maxFeeBps;
    /// Makes otherwise equal orders distinct. An order to be settled by its signature needs one above zero, and a voucher
    /// covers all such orders up to a nonce, so a requester counts upwards.
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
    /// By the requester over `Order`; empty where the job was opened on-chain.
    bytes orderSignature;
}

/// @title The requester's word on all that a node has earned in one token by signed orders
/// @notice EIP-712 struct. A channel is what lies between one requester and one node in one token.
struct Voucher {
    address requester;
    address node;
    address token;
    /// All that the channel ever paid or is to pay for the orders covered, in the token's smallest unit.
    uint128 cumulative;
    /// Orders of the channel with a nonce up to this one are paid for by the voucher and by nothing else.
    uint64 coveredNonce;
}

/// @title A voucher with any signature
/// @notice Node and token are those of the batch.
struct SignedVoucher {
    address requester;
    uint128 cumulative;
    uint64 coveredNonce;
    /// Over `Voucher`, by the requester, be it a key or a contract wallet, or by a session key.
    bytes signature;
    /// Orders of the channel that were settled alone and that the voucher does not cover, by ascending job id: what was
    /// paid for them does not count against `cumulative`. Others are ignored.
    Order[] settledAbove;
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
    /// The challenge window, or the time the arbiter has, has not ended.
    WindowOpen,
    /// The requester cancelled the job or order, and the notice is over.
    Cancelled,
    /// A redeemed voucher pays for this order.
    Covered,
    /// An order that was never opened leaves its node open without a challenge window.
    WindowRequired,
    /// The challenge window of an order that was never opened is longer than any may be.
    WindowTooLong,
    /// The order is not signed by its requester.
    BadOrderSignature,
    /// The requester has too little, or, for a voucher, nothing.
    InsufficientFunds,
    /// The voucher is for no more than was paid.
    NothingDue,
    /// The voucher is signed neither by its requester nor by a session key whose time has not passed.
    BadVoucherSignature,
    /// The session key that signed may not spend as much as is due.
    SessionCapExceeded
}

/// @title Where a job stands
enum JobState {
    None,
    Open,
    /// A result is in and its challenge window runs.
    Submitted,
    Paid,
    Refunded,
    /// The requester has disputed the result, and the arbiter's time runs.
    Disputed,
    /// The arbiter has decided.
    Resolved
}

/// @title The escrow of a compute job marketplace
/// @notice Requesters deposit, open jobs against their deposit, and get back what was not spent; nodes are credited for
/// results and withdraw. Whoever submits a batch pays its gas and can take nothing.
///
/// A job is paid on one of two rails. By its order: opened on-chain, or signed by the requester and settled from the deposit.
/// Or by a voucher, which is cumulative and pays for any number of signed orders at once. What a signed order pays counts
/// as claimed from its channel, and an order that a redeemed voucher covers is refused, so nothing is paid twice. Jobs opened
/// on-chain have their own money and are no part of a channel.
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

    /// @notice The whole lock went back to the requester, whose balance is now `free`. Where a voucher had paid for the job, it
    /// went into the channel's reservation, of which `ReservationChanged` tells.
    event JobRefunded(bytes32 indexed jobId, address indexed requester, address token, uint128 amount, uint256 free);

    /// @notice A signed order drew on the requester's account or was paid for. All amounts as they stand afterwards.
    event ChannelUpdated(
        bytes32 indexed jobId,
        address indexed requester,
        address indexed node,
        address token,
        uint256 free,
        uint256 thawing,
        uint256 reserved,
        uint256 claimed
    );

    /// @notice Vouchers were redeemed; `earned` is the node's balance after all of them.
    /// @param redemptions 96 bytes for each: requester (20), claimed (12), free (16), thawing (16), drawn (12), reserved (12),
    /// coveredNonce (8), big-endian, as they stand after it. `drawn` is what came from the account, the rest of the growth
    /// of `claimed` came from the reservation; `free` and `thawing` are zero where `drawn` is.
    event VouchersRedeemed(address indexed node, address indexed token, uint256 earned, bytes redemptions);

    /// @notice A voucher of a batch changed nothing.
    event VoucherSkipped(
        address indexed requester, address indexed node, address indexed token, uint256 cumulative, SkipReason reason
    );

    /// @notice A channel's reservation, of which `thawing` can be released from `thawEnd` (unix seconds) on. All amounts as
    /// they stand afterwards.
    event ReservationChanged(
        address indexed requester,
        address indexed node,
        address indexed token,
        uint256 reserved,
        uint256 thawing,
        uint64 thawEnd,
        uint256 free
    );

    /// @notice What the key may still spend, and until when (unix seconds).
    event SessionUpdated(
        address indexed requester, address indexed key, address indexed token, uint256 left, uint64 expiry
    );

    /// @notice Whether the account may redeem the node's vouchers.
    event SettlerSet(address indexed node, address indexed settler, bool allowed);

    /// @notice From `cancelAt` (unix seconds) on no result settles under this order, and a lock can be refunded.
    event JobCancelling(bytes32 indexed jobId, address indexed requester, uint64 cancelAt);

    /// @notice `fees` is what can be withdrawn of the token afterwards. Comes before the payment it was taken from.
    event FeeTaken(bytes32 indexed jobId, address indexed token, uint256 fee, uint256 fees);
    event FeesWithdrawn(address indexed token, address to, uint256 amount);
    event FeeBpsSet(uint16 feeBps);
    event PausedSet(bool paused);

    /// @notice The arbiter has until `decideBy` (unix seconds). `bond` is locked on top of the price; `free` and `thawing` are
    /// the requester's balances afterwards.
    event JobDisputed(
        bytes32 indexed jobId,
        address indexed requester,
        address indexed node,
        address token,
        uint128 bond,
        uint64 decideBy,
        uint256 free,
        uint256 thawing
    );

    /// @notice The arbiter has decided: of the price, `price` went to the node; of the dispute's bond, `bond`; of the node's
    /// stake, `slashed` was taken and `compensation` of it given to the requester. `free` is the requester's and `earned`
    /// the node's balance afterwards.
    event JobResolved(
        bytes32 indexed jobId,
        address indexed requester,
        address indexed node,
        address token,
        uint128 price,
        uint128 bond,
        uint256 slashed,
        uint256 compensation,
        uint256 free,
        uint256 earned
    );

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
    /// @notice The caller is neither the node nor one who may redeem its vouchers.
    error NotSettler(address node, address caller);
    /// @notice The bytes are not a whole number of vouchers of `unit` bytes each.
    error WrongLength(uint256 length, uint256 unit);
    /// @notice The key's permission is in force and can be extended but not cut; revoke it first.
    error SessionInForce(uint256 left, uint64 expiry);
    /// @notice Only what is neither settled nor refunded can be cancelled, and only once.
    error NotCancellable(bytes32 jobId);
    /// @notice The registry names another escrow.
    error WrongRegistry(address registry);
    /// @notice Stake could leave before the last dispute over it is decided.
    error UnbondingTooShort(uint64 unbondingPeriod, uint64 needed);
    /// @notice No result is waiting, or none is in dispute where one must be.
    error WrongState(JobState state);
    /// @notice The time to challenge, or to decide, is over.
    error TooLate(uint64 end);
    error NoArbiter();
    error NotArbiter(address arbiter, address caller);
    error ShareTooHigh(uint256 bps);
    error Paused();
    error FeeTooHigh(uint256 feeBps, uint256 highest);
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

    /// @notice As `deposit` of an ERC-20, after spending the caller's ERC-2612 permit over `amount`. A permit that cannot be
    /// spent, perhaps because somebody else did, does no harm if the allowance suffices.
    function depositWithPermit(address token, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external;

    /// @notice Gives notice, of `thawPeriod`, that the caller's order is not to be settled any more, so that work under way
    /// is still paid. Afterwards `refundExpired` gives back what was locked. Also for orders that were signed and not opened.
    function cancelJob(Order calldata order) external;

    /// @notice Sets free balance aside for what the caller comes to owe `node`; nobody else can draw on it. Stops a thaw of the
    /// channel's reservation that is under way.
    function reserve(address node, address token, uint256 amount) external;

    /// @notice Gives notice, of `thawPeriod`, that the reservation is to shrink by `amount` in all; restarts a notice given
    /// before. The node can still draw on all of it.
    function thawReservation(address node, address token, uint256 amount) external;

    /// @notice Frees what has thawed of the reservation and is still there.
    function releaseReservation(address node, address token) external returns (uint256 amount);

    /// @notice Pays the node for a result that is waiting or in dispute, ahead of time. A dispute's bond comes back.
    function accept(Order calldata order) external;

    /// @notice Puts a result before the order's arbiter, within its window. Locks a bond of `DISPUTE_BOND_BPS` of the order's
    /// `maxPrice`, from free, then thawing funds. It goes to the node if that is found to be owed the whole price, else it
    /// comes back. If the arbiter does not decide in time, the node is paid and the bond comes back.
    function dispute(Order calldata order) external;

    /// @notice The order's arbiter decides a dispute: which part of the price the node is paid, and which part of its bond is
    /// slashed, in basis points. What is slashed goes to the requester, up to the price, if the order is in the native
    /// coin; the rest is burnt, as no price compares between coins.
    function resolve(Order calldata order, uint16 payNodeBps, uint16 slashBps) external;

    /// @notice Lets `key` sign vouchers over at most `cap` of the token from now on, until `expiry` (unix seconds). While a
    /// permission is in force it can only be extended: nodes rely on it. Vouchers that the key signed under an earlier one
    /// count, too.
    function authorizeSession(address key, address token, uint128 cap, uint64 expiry) external;

    /// @notice Ends the key's permission after `thawPeriod`, so that what it has signed can still be redeemed.
    function revokeSession(address key, address token) external;

    /// @notice Gives back the locks of jobs whose deadline, or notice of cancellation, passed without a result. Anyone may
    /// call; the requester is paid.
    function refundExpired(Order[] calldata orders) external;

    /// @notice Moves free balance to thawing and restarts the account's thaw for this token.
    function thaw(address token, uint256 amount) external;

    /// @notice Sends all thawed balance to `to`, once the thaw has ended.
    function withdraw(address token, address to) external returns (uint256 amount);

    // ── Nodes and whoever settles for them ──────────────────────────────────────────────────────────────────────────

    /// @notice Settles results, of open jobs and of signed orders alike. Items that fail emit `Skipped`, change nothing and
    /// harm no other. A signed order is paid from the channel's reservation, then free, then thawing funds, in full or not at
    /// all.
    function submitResults(Result[] calldata results) external;

    /// @notice Pays the node what vouchers are worth beyond what their channels have paid, as far as the requesters' funds
    /// reach: reservation, then free, then thawing funds. The rest stays claimable. Only for the node and its settlers,
    /// because a voucher voids the orders it covers. Items that fail emit `VoucherSkipped` and change nothing.
    /// @param vouchers 108 bytes for each: requester (20), cumulative (16), coveredNonce (8), big-endian, then r (32) and
    /// vs (32), the ERC-2098 signature over `Voucher` by the requester's key or a session key.
    function redeem(address node, address token, bytes calldata vouchers) external;

    /// @notice As `redeem`, for contract wallets, and for channels in which orders were settled ahead of the voucher.
    function redeemSigned(address node, address token, SignedVoucher[] calldata vouchers) external;

    /// @notice Lets `settler` redeem the calling node's vouchers, or no longer.
    function setSettler(address settler, bool allowed) external;

    /// @notice Pays results whose challenge window, or whose arbiter's time, has ended. Items that fail emit `Skipped` and change nothing.
    function finalize(Order[] calldata orders) external;

    /// @notice Sends all that the calling node has earned in `token` to `to`.
    function withdrawEarned(address token, address to) external returns (uint256 amount);

    // ── The owner ───────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice Sets the fee on orders settled from now on; what an order's `maxFeeBps` allows is the most it ever pays.
    function setFeeBps(uint16 feeBps) external;
    /// @notice Stops, or allows again, deposits and new jobs; nothing else is ever stopped.
    function setPaused(bool paused) external;
    /// @notice Sends all fees taken in `token` to `to`.
    function withdrawFees(address token, address to) external returns (uint256 amount);

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice The job's id: the order's EIP-712 digest.
    function jobIdOf(Order calldata order) external view returns (bytes32);
    /// @notice The job's state, what is locked for it, a dispute's bond included, and, while a result is waiting or in
    /// dispute, when it can be finalized and whose it is (both zero otherwise).
    function job(bytes32 jobId) external view returns (JobState state, uint128 locked, uint64 finalizeAt, address node);
    function account(address owner, address token) external view returns (uint128 free, uint128 thawing, uint64 thawEnd);
    function earned(address node, address token) external view returns (uint256);
    /// @notice What the channel has paid, vouchers and orders settled alone together, and up to which nonce a redeemed
    /// voucher covers its orders.
    function channel(address requester, address node, address token)
        external
        view
        returns (uint256 claimed, uint64 coveredNonce);
    /// @notice What is set aside for the node, and how much of it can be released from `thawEnd` (unix seconds) on.
    function reservation(address requester, address node, address token)
        external
        view
        returns (uint256 reserved, uint256 thawing, uint64 thawEnd);
    /// @notice What the key may still spend, zero if its time has passed.
    function session(address requester, address key, address token) external view returns (uint128 left, uint64 expiry);
    /// @notice When a cancelled job or order takes no result any more (unix seconds); zero if not cancelled.
    function cancelAt(bytes32 jobId) external view returns (uint64);
    function isSettler(address node, address settler) external view returns (bool);
    /// @notice Longest challenge window in seconds.
    function maxChallengeWindow() external view returns (uint32);
    /// @notice Seconds an arbiter has.
    function arbiterPeriod() external view returns (uint64);
    function fees(address token) external view returns (uint256);
    function feeBps() external view returns (uint16);
    function paused() external view returns (bool);
    function registry() external view returns (address);
    /// @notice Seconds between `thaw` and `withdraw`: the notice at which a requester takes anything back.
    function thawPeriod() external view returns (uint64);
}
