//! The requesters' commands.

use std::path::PathBuf;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand};
use market::Amount;
use market::job::JobStatus;
use market::order::parse_address;

use super::TokenArg;

/// `deposit`
#[derive(Args, Debug)]
pub struct DepositArgs {
    /// How much, in the token's smallest unit
    pub amount: Amount,
    #[command(flatten)]
    /// In what.
    pub token: TokenArg,
    /// For an ERC-20 that knows permits (ERC-2612): sign one in place of a transaction that approves
    #[arg(long, requires = "token")]
    pub permit: bool,
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

/// `reserve` and `thaw-reservation`
#[derive(Args, Debug)]
pub struct ReserveArgs {
    /// Which node, by address or node id
    pub node: String,
    /// How much, in the token's smallest unit
    pub amount: Amount,
    #[command(flatten)]
    /// Of what.
    pub token: TokenArg,
}

/// `release`
#[derive(Args, Debug)]
pub struct ReleaseArgs {
    /// Which node, by address or node id
    pub node: String,
    #[command(flatten)]
    /// Of what.
    pub token: TokenArg,
}

/// `submit`
#[derive(Args, Debug)]
pub struct SubmitArgs {
    /// The inputs: a job for each file
    #[arg(required_unless_present = "files_from", value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Further inputs: a file with one path on each line, or - for standard input
    #[arg(long, value_name = "LIST")]
    pub files_from: Option<PathBuf>,

    /// What is to be done: encrypt, decrypt, command, or what else a node offers
    #[arg(long, value_name = "NAME", default_value = crate::ops::ENCRYPT)]
    pub op: String,

    /// Recipient of the result, for encrypt and decrypt; may be given several times
    #[arg(long, value_name = "age1…")]
    pub to: Vec<String>,

    /// The operation's parameters: a JSON object
    #[arg(long, value_name = "JSON", conflicts_with = "to")]
    pub params: Option<String>,

    /// Most that each job may cost, in the token's smallest unit
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

    /// Who decides a dispute; nobody by default, and then no result can be disputed
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub arbiter: Option<Address>,

    /// Most of the price that the escrow may keep as its fee, in basis points
    #[arg(long, value_name = "BPS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub max_fee_bps: u16,

    /// Place in the queue; 100 is first come, first served, more is earlier
    #[arg(long, value_name = "0-1000", value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub priority: Option<u16>,

    /// Give it to no node earlier: a time such as 2026-12-24T18:00:00Z, or seconds from now
    #[arg(long, value_name = "TIME|SECS", value_parser = parse_not_before)]
    pub not_before: Option<NotBefore>,

    /// Give it only to nodes with this reputation or more
    #[arg(long, value_name = "0-100", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub min_reputation: Option<u8>,

    /// Give it only to nodes with this stake or more, in wei
    #[arg(long, value_name = "AMOUNT")]
    pub min_stake: Option<Amount>,

    /// Open the jobs on the chain, which locks their price, rather than sign orders against the deposit
    #[arg(long)]
    pub open: bool,

    /// Wait for the results, verify them, and countersign vouchers
    #[arg(long)]
    pub wait: bool,

    /// With --wait: give up after so long
    #[arg(long, value_name = "SECS", requires = "wait")]
    pub timeout: Option<u64>,

    /// How vouchers are signed.
    #[command(flatten)]
    pub signing: SigningArgs,
}

/// When a job may be given to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBefore {
    /// So many seconds from now.
    In(u32),
    /// From this time on.
    At(DateTime<Utc>),
}

impl NotBefore {
    /// The time, if it is `now`.
    #[must_use]
    pub fn time(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::In(secs) => now + TimeDelta::seconds(secs.into()),
            Self::At(time) => time,
        }
    }
}

fn parse_not_before(text: &str) -> Result<NotBefore, &'static str> {
    if let Ok(secs) = text.parse() {
        return Ok(NotBefore::In(secs));
    }
    let time =
        DateTime::parse_from_rfc3339(text).map_err(|_| "must be a time such as 2026-12-24T18:00:00Z, or seconds")?;
    Ok(NotBefore::At(time.with_timezone(&Utc)))
}

/// How vouchers are signed.
#[derive(Args, Debug, Clone, Default)]
pub struct SigningArgs {
    /// Do not countersign a voucher, now or for this job by itself later; `voucher sign --accept JOB` does
    #[arg(long)]
    pub no_voucher: bool,

    /// Sign vouchers with this session key rather than your own
    #[arg(long, env = "LITTORAL_SESSION", value_name = "ADDRESS", value_parser = parse_address)]
    pub session: Option<Address>,
}

/// `watch`
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// The job's id
    pub job: B256,
    /// Give up after so long
    #[arg(long, value_name = "SECS")]
    pub timeout: Option<u64>,
    /// How vouchers are signed.
    #[command(flatten)]
    pub signing: SigningArgs,
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
    /// How vouchers are signed.
    #[command(flatten)]
    pub signing: SigningArgs,
}

/// One order: known here, opened on the chain, or known to the API.
#[derive(Args, Debug)]
pub struct OrderArg {
    /// The job's id
    pub job: B256,
    /// The order as JSON; by default from your data directory, the chain, or the API
    #[arg(long, value_name = "FILE")]
    pub order: Option<PathBuf>,
}

/// `cancel`
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// Which.
    #[command(flatten)]
    pub order: OrderArg,
    /// Give notice on the chain without asking the API
    #[arg(long)]
    pub on_chain: bool,
}

/// `resolve`
#[derive(Args, Debug)]
pub struct ResolveArgs {
    /// Which.
    #[command(flatten)]
    pub order: OrderArg,
    /// Part of the price that the node is paid, in basis points
    #[arg(long, value_name = "BPS", value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub pay: u16,
    /// Part of the node's bond that is slashed, in basis points
    #[arg(long, value_name = "BPS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub slash: u16,
}

/// `refund`
#[derive(Args, Debug)]
pub struct RefundArgs {
    /// Ids of expired or cancelled jobs
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<B256>,
}

/// `redrive`
#[derive(Args, Debug)]
pub struct RedriveArgs {
    /// Ids of failed jobs; see `littoral jobs --status failed`
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<B256>,
}

/// `leaderboard`
#[derive(Args, Debug)]
pub struct LeaderboardArgs {
    /// At most so many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=200))]
    pub limit: u8,
}

/// `voucher …`
#[derive(Subcommand, Debug)]
pub enum VoucherCommand {
    /// List the vouchers that this client has signed, the latest of each channel, and what the chain has paid on them
    List(VoucherListArgs),
    /// Countersign a voucher for what a node has delivered, after verifying each receipt and output
    Sign(VoucherSignArgs),
}

/// `voucher list`
#[derive(Args, Debug)]
pub struct VoucherListArgs {
    /// Every voucher rather than the latest of each channel
    #[arg(long)]
    pub all: bool,
}

/// `voucher sign`
#[derive(Args, Debug)]
pub struct VoucherSignArgs {
    /// For which node, by address or node id; all nodes with something to countersign by default
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    #[command(flatten)]
    /// In what.
    pub token: TokenArg,
    /// Accept this job's result without fetching it; may be given several times
    #[arg(long, value_name = "JOB")]
    pub accept: Vec<B256>,
    /// Sign with this session key rather than your own
    #[arg(long, env = "LITTORAL_SESSION", value_name = "ADDRESS", value_parser = parse_address)]
    pub session: Option<Address>,
}

/// `session …`
#[derive(Subcommand, Debug)]
pub enum SessionCommand {
    /// Make a session key, encrypted with a passphrase
    Create(SessionCreateArgs),
    /// Let a key sign vouchers over at most a cap, until an expiry; also extends that
    Authorize(SessionAuthorizeArgs),
    /// End a key's permission, after the thaw period
    Revoke(SessionRevokeArgs),
    /// List the session keys made here and what the chain lets them do
    List(TokenArg),
}

/// `session create`
#[derive(Args, Debug)]
pub struct SessionCreateArgs {
    /// Keep the key unencrypted, readable by you only
    #[arg(long)]
    pub no_passphrase: bool,
}

/// `session authorize`
#[derive(Args, Debug)]
pub struct SessionAuthorizeArgs {
    /// The key's address
    #[arg(value_parser = parse_address)]
    pub key: Address,
    /// Most that it may spend, in the token's smallest unit
    #[arg(long, value_name = "AMOUNT")]
    pub cap: Amount,
    /// Seconds from now until which it may
    #[arg(long, value_name = "SECS", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(1..))]
    pub expires_in: u64,
    #[command(flatten)]
    /// Of what.
    pub token: TokenArg,
}

/// `session revoke`
#[derive(Args, Debug)]
pub struct SessionRevokeArgs {
    /// The key's address
    #[arg(value_parser = parse_address)]
    pub key: Address,
    #[command(flatten)]
    /// Of what.
    pub token: TokenArg,
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
