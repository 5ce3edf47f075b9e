//! The operators' commands.

use std::path::PathBuf;
use std::str::FromStr;

use alloy::primitives::{Address, B256};
use clap::{Args, Subcommand};
use market::Amount;
use market::order::parse_address;

use super::WithdrawArgs;

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
    /// Settle what your node has earned by the chain alone, with the signatures that it keeps
    Settle(SettleArgs),
    /// Send what your node has earned to its payout address
    Withdraw(WithdrawArgs),
    /// Who may redeem your node's vouchers
    #[command(subcommand)]
    Settler(SettlerCommand),
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
        self.node_dir.clone().map_or_else(crate::keys::default_data_dir, Ok)
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
    /// Who may redeem the node's vouchers: an address, `api` for the API's settler, or `none`
    #[arg(long, value_name = "SETTLER", default_value = "api")]
    pub settler: Settler,
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

    /// Most that a requester may owe this node, in the token's smallest unit, beyond what is reserved for it; by default as
    /// much as is free in the requester's account
    #[arg(long, value_name = "AMOUNT")]
    pub max_unsettled: Option<Amount>,

    /// Who may redeem the node's vouchers, allowed at the start: an address, `api` for the API's settler, or `none`
    #[arg(long, value_name = "SETTLER", default_value = "api")]
    pub settler: Settler,

    /// Settle by itself what is not on the chain so long before it could be lost: by an order's deadline, or by a notice
    /// that its requester gave; at half the time that is left where that is later
    #[arg(long, value_name = "SECS", default_value_t = 600)]
    pub settle_before: u64,

    /// Never settle by itself; `node settle` does
    #[arg(long)]
    pub no_settle: bool,

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

/// `node settle`
#[derive(Args, Debug)]
pub struct SettleArgs {
    /// Say what would be sent, and send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Most items in a transaction
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub batch: u16,
    /// Where the node keeps what it was promised.
    #[command(flatten)]
    pub dir: NodeDirArg,
}

/// `node settler …`
#[derive(Subcommand, Debug)]
pub enum SettlerCommand {
    /// Let an account redeem the node's vouchers; it receives nothing
    Allow(SettlerArg),
    /// No longer let an account redeem the node's vouchers
    Deny(SettlerArg),
    /// List who may redeem the node's vouchers
    List,
}

/// Which settler.
#[derive(Args, Debug)]
pub struct SettlerArg {
    /// An address, or `api` for the API's settler
    pub settler: Settler,
}

/// Who may redeem a node's vouchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settler {
    /// Nobody more.
    None,
    /// Whom the API names.
    Api,
    /// This account.
    Account(Address),
}

impl FromStr for Settler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "api" => Ok(Self::Api),
            other => parse_address(other).map(Self::Account).map_err(|error| format!("{error}, or `api` or `none`")),
        }
    }
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
