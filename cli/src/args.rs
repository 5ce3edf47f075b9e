//! The command line: options, commands and what they say of themselves.

mod node;
mod requester;

use std::path::PathBuf;

use alloy::primitives::B256;
use clap::{Args, Parser, Subcommand};
pub use node::*;
pub use requester::*;
use url::Url;

/// Littoral, a marketplace for compute jobs: for requesters who pay and operators who work.
#[derive(Parser, Debug)]
#[command(name = "littoral", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Amounts are integers in the token's smallest unit (wei for the native coin).
Exit codes: 0 done; 1 refused, unreachable or broken; 2 wrong command line; 3 the job failed or expired;
4 the job was refunded; 5 timeout; 6 what came back does not match what was asked for.";

/// Options of every command.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Base URL of the API
    #[arg(long, env = "LITTORAL_API", value_name = "URL", default_value = "http://127.0.0.1:3001", global = true)]
    pub api: Url,

    /// JSON-RPC endpoint of the chain
    #[arg(long, env = "RPC_URL", value_name = "URL", hide_env_values = true, global = true)]
    pub rpc_url: Option<Url>,

    /// Deployments manifest; by default the only deployments/CHAINID.json
    #[arg(long, env = "LITTORAL_DEPLOYMENT", value_name = "FILE", global = true)]
    pub deployment: Option<PathBuf>,

    /// File with your private key: 64 hex digits, or that encrypted with a passphrase (age); LITTORAL_KEY may hold the key
    /// itself
    #[arg(long, env = "LITTORAL_KEY_FILE", value_name = "FILE", global = true)]
    pub key_file: Option<PathBuf>,

    /// File with the passphrase of encrypted keys; LITTORAL_PASSPHRASE may hold the passphrase itself
    #[arg(long, env = "LITTORAL_PASSPHRASE_FILE", value_name = "FILE", global = true)]
    pub passphrase_file: Option<PathBuf>,

    /// Where your orders, vouchers and session keys are kept [default: ~/.local/share/littoral]
    #[arg(long, env = "LITTORAL_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,

    /// One JSON object per line: results on standard output, notes and errors on standard error
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Pay into your account at the escrow
    Deposit(DepositArgs),
    /// Begin to take money out of your account; `withdraw` sends it after the thaw period
    Thaw(ThawArgs),
    /// Send what has thawed to your wallet
    Withdraw(WithdrawArgs),
    /// Show wallet and account
    Balance(TokenArg),
    /// Show your account: free, thawing, promised, reserved, and the channels with nodes
    Account(TokenArg),
    /// Set free funds aside for one node, as a guarantee for what you come to owe it
    Reserve(ReserveArgs),
    /// Give notice that a node's reservation is to shrink; `release` frees the funds after the thaw period
    ThawReservation(ReserveArgs),
    /// Free what has thawed of a node's reservation
    Release(ReleaseArgs),
    /// Store files and submit a job on each: as orders signed against your deposit, or opened on the chain
    Submit(SubmitArgs),
    /// Pay for a job that was announced but not opened, such as after an interrupted `submit --open`
    Open(JobArg),
    /// Follow a job until it is paid, failed, expired or refunded, and countersign a voucher for it
    Watch(WatchArgs),
    /// Download a job's result, verified against its content id, and countersign a voucher for it
    Fetch(FetchArgs),
    /// Take an order back: at once if no node has it, otherwise after the notice of the thaw period
    Cancel(CancelArgs),
    /// Have failed jobs tried anew, by any node, as long as there is time to their deadline
    Redrive(RedriveArgs),
    /// Take back the money of expired and cancelled jobs
    Refund(RefundArgs),
    /// Pay for a result ahead of the end of its challenge window, or end your dispute of it
    Accept(OrderArg),
    /// Put a result before the order's arbiter, within its challenge window; locks a bond
    Dispute(OrderArg),
    /// As an order's arbiter, decide a dispute
    Resolve(ResolveArgs),
    /// Vouchers: the cumulative promises that pay nodes for signed orders
    #[command(subcommand)]
    Voucher(VoucherCommand),
    /// Session keys: keys that may sign vouchers for you, within a cap and until an expiry
    #[command(subcommand)]
    Session(SessionCommand),
    /// Show a job; without one, your account and the health of API and chain
    Status(StatusArgs),
    /// List your jobs, newest first
    Jobs(JobsArgs),
    /// Count the market's jobs by status
    Stats,
    /// List the nodes that have completed most jobs
    Leaderboard(LeaderboardArgs),
    /// Show what the market's operators have switched on and off
    Features,
    /// Make an age identity, to which results can be encrypted
    Keygen(KeygenArgs),
    /// Run a node and manage its stake
    #[command(subcommand)]
    Node(NodeCommand),
}

/// Which token.
#[derive(Args, Debug, Clone)]
pub struct TokenArg {
    /// ERC-20 contract, or the token's name in the deployments manifest; the native coin by default
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
}

/// Which job.
#[derive(Args, Debug)]
pub struct JobArg {
    /// The job's id
    pub job: B256,
}
