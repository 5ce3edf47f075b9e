//! The command line: options, commands and what they say of themselves.

use std::path::PathBuf;

use alloy::primitives::{Address, B256};
use clap::{Args, Parser, Subcommand};
use market::Amount;
use market::job::JobStatus;
use market::order::parse_address;
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

    /// Deployments manifest; by default the only one under .littoral/deployments
    #[arg(long, env = "LITTORAL_DEPLOYMENT", value_name = "FILE", global = true)]
    pub deployment: Option<PathBuf>,

    /// File with your private key (64 hex digits); LITTORAL_KEY may hold the key itself
    #[arg(long, env = "LITTORAL_KEY_FILE", value_name = "FILE", global = true)]
    pub key_file: Option<PathBuf>,

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
    /// Store a file, announce a job on it, and pay for it on the chain
    Submit(SubmitArgs),
    /// Pay for a job that was announced but not opened, such as after an interrupted `submit`
    Open(JobArg),
    /// Follow a job until it is paid, failed, expired or refunded
    Watch(WatchArgs),
    /// Download a job's result, verified against its content id
    Fetch(FetchArgs),
    /// Take back the money of expired jobs
    Refund(RefundArgs),
    /// Show a job; without one, your account and the health of API and chain
    Status(StatusArgs),
    /// List your jobs, newest first
    Jobs(JobsArgs),
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

/// `deposit`
#[derive(Args, Debug)]
pub struct DepositArgs {
    /// How much, in the token's smallest unit
    pub amount: Amount,
    #[command(flatten)]
    /// In what.
    pub token: TokenArg,
}

/// `thaw`
#[derive(Args, Debug)]
pub struct ThawArgs {
    /// How much, in the token's smallest unit
    pub amount: Amount,
    #[command(flatten)]
    /// Of what.
    pub token: TokenArg,
}

/// `withdraw`
#[derive(Args, Debug)]
pub struct WithdrawArgs {
    #[command(flatten)]
    /// Of what.
    pub token: TokenArg,
    /// Where to; your own address by default
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub to: Option<Address>,
}

/// `submit`
#[derive(Args, Debug)]
pub struct SubmitArgs {
    /// The input
    pub file: PathBuf,

    /// What is to be done: encrypt, decrypt, command, or what else a node offers
    #[arg(long, value_name = "NAME", default_value = crate::ops::ENCRYPT)]
    pub op: String,

    /// Recipient of the result, for encrypt and decrypt; may be given several times
    #[arg(long, value_name = "age1…")]
    pub to: Vec<String>,

    /// The operation's parameters: a JSON object
    #[arg(long, value_name = "JSON", conflicts_with = "to")]
    pub params: Option<String>,

    /// Most the job may cost, in the token's smallest unit
    #[arg(long, value_name = "AMOUNT")]
    pub price: Amount,

    #[command(flatten)]
    /// In what.
    pub token: TokenArg,

    /// The only node that may do it, by address or node id; any staked node by default
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,

    /// Seconds from now by which the result must be on the chain
    #[arg(long, value_name = "SECS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    pub deadline: u64,

    /// Seconds between result and payment; by default 0 for a named node and 3600 otherwise
    #[arg(long, value_name = "SECS")]
    pub window: Option<u32>,

    /// Place in the queue; 100 is first come, first served, more is earlier
    #[arg(long, value_name = "0-1000", value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub priority: Option<u16>,
}

/// `watch`
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// The job's id
    pub job: B256,
    /// Give up after so long
    #[arg(long, value_name = "SECS")]
    pub timeout: Option<u64>,
}

/// `fetch`
#[derive(Args, Debug)]
pub struct FetchArgs {
    /// The job's id
    pub job: B256,
    /// Where to; - is standard output; by default the job's short id with .age or .out
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Decrypt the result with the age identity in this file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Overwrite the file if it exists
    #[arg(long)]
    pub force: bool,
}

/// `refund`
#[derive(Args, Debug)]
pub struct RefundArgs {
    /// Ids of expired jobs
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<B256>,
}

/// `status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The job's id
    pub job: Option<B256>,
}

/// `jobs`
#[derive(Args, Debug)]
pub struct JobsArgs {
    /// Only those with this status
    #[arg(long)]
    pub status: Option<JobStatus>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// `keygen`
#[derive(Args, Debug)]
pub struct KeygenArgs {
    /// The file to write, readable by you only; never overwritten
    #[arg(short, long, value_name = "FILE", default_value = "key.txt")]
    pub out: PathBuf,
}

/// `node …`
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// Register your account as a node, with an encryption key of its own
    Register(RegisterArgs),
    /// Change what the registry says of your node; what is not given stays
    Update(UpdateArgs),
    /// Add to your node's stake
    Stake(StakeArgs),
    /// Take stake out: first an amount, then --finish after the unbonding period
    Unbond(UnbondArgs),
    /// Work: claim jobs, do them, and sign receipts for them
    Run(RunArgs),
    /// Send what your node has earned to its payout address
    Withdraw(WithdrawArgs),
    /// Show what registry, escrow and API say of a node
    Status(NodeStatusArgs),
}

/// Where a node keeps its encryption key and its work.
#[derive(Args, Debug, Clone)]
pub struct NodeDirArg {
    /// Where the node keeps its encryption key and its work [default: ~/.local/share/littoral]
    #[arg(long, env = "LITTORAL_NODE_DIR", value_name = "DIR")]
    pub node_dir: Option<PathBuf>,
}

impl NodeDirArg {
    /// The directory.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        self.node_dir.clone().map_or_else(crate::keys::default_node_dir, Ok)
    }
}

/// `node register`
#[derive(Args, Debug)]
pub struct RegisterArgs {
    /// Under which the node appears off-chain; the hash of its encryption key by default
    #[arg(long, value_name = "HASH")]
    pub node_id: Option<B256>,
    /// Most jobs at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub capacity: u32,
    /// Operations it performs, such as encrypt,decrypt,command
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    pub ops: Vec<String>,
    /// First stake, in wei
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    pub stake: Amount,
    /// Where stake and earnings go; your own address by default
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub payout: Option<Address>,
    /// Where more can be read about the node
    #[arg(long, default_value = "")]
    pub uri: String,
    /// Where its encryption key is.
    #[command(flatten)]
    pub dir: NodeDirArg,
}

/// `node update`
#[derive(Args, Debug)]
pub struct UpdateArgs {
    /// Most jobs at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub capacity: Option<u32>,
    /// Operations it performs
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub ops: Option<Vec<String>>,
    /// Where stake and earnings go
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub payout: Option<Address>,
    /// Where more can be read about the node
    #[arg(long)]
    pub uri: Option<String>,
    /// Where its encryption key is.
    #[command(flatten)]
    pub dir: NodeDirArg,
}

/// `node stake`
#[derive(Args, Debug)]
pub struct StakeArgs {
    /// How much, in wei
    pub amount: Amount,
}

/// `node unbond`
#[derive(Args, Debug)]
pub struct UnbondArgs {
    /// How much, in wei
    #[arg(required_unless_present = "finish", conflicts_with = "finish")]
    pub amount: Option<Amount>,
    /// Send what has unbonded to the payout address
    #[arg(long)]
    pub finish: bool,
}

/// `node status`
#[derive(Args, Debug)]
pub struct NodeStatusArgs {
    /// Address or node id; your own by default
    pub node: Option<String>,
}

/// `node run`
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Operations to offer, of those that this node can do; all by default
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub ops: Option<Vec<String>>,

    /// Program for the operation `command`, with its arguments; run without a shell
    #[arg(long, value_name = "'PROG ARG…'")]
    pub command: Option<String>,

    /// Longest that the program may run
    #[arg(long, value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub command_timeout: u64,

    /// Longest output of any operation
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub max_output: u64,

    /// Longest input
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub max_input: u64,

    /// Jobs at once; by default the registered capacity, which is also the most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: Option<u32>,

    /// Ask at most this for a job, in its token's smallest unit; by default all that the order offers
    #[arg(long, value_name = "AMOUNT")]
    pub price: Option<Amount>,

    /// Work for this token if an order offers at least this much of it; may be given several times. TOKEN is an ERC-20
    /// contract, a name in the deployments manifest, or `native`; the amount is in its smallest unit. By default 1 of the
    /// native coin and of each token in the manifest
    #[arg(long, value_name = "TOKEN=MIN_AMOUNT", value_parser = parse_accept)]
    pub accept: Vec<AcceptArg>,

    /// Leave jobs alone whose deadline is nearer than this, and withhold results that are made later
    #[arg(long, value_name = "SECS", default_value_t = 30)]
    pub min_time_left: u64,

    /// Where jobs are worked on; `work` in the node's directory by default
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,

    /// How long jobs under way may take once the node is asked to stop
    #[arg(long, value_name = "SECS", default_value_t = 30)]
    pub shutdown_timeout: u64,

    /// Where its encryption key is.
    #[command(flatten)]
    pub dir: NodeDirArg,
}

/// A token to work for, and how much of it an order must offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptArg {
    /// As on the command line: an address, a name, or `native`.
    pub token: String,
    /// In the token's smallest unit.
    pub min: Amount,
}

fn parse_accept(text: &str) -> Result<AcceptArg, String> {
    let (token, min) = text.split_once('=').ok_or("must be TOKEN=MIN_AMOUNT, such as native=1000")?;
    let min = min.parse().map_err(|error| format!("the amount {error}"))?;
    Ok(AcceptArg { token: token.to_owned(), min })
}
