//! The command line of `settle`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use chrono::TimeDelta;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use market::Amount;
use market::batch::Rate;
use market::db::settlement::{Backoff, Filter};
use market::production::EnvironmentArgs;
use market::settings::{ChainArgs, Hidden, LogArgs};

use super::admin::AdminCommand;
use super::fees::{Fees, TargetFee};
use super::settler::Options;

/// `settle`: runs the settler, or looks at what it does.
#[derive(Clone)]
pub enum SettleArgs {
    /// Without a subcommand.
    Run(Box<RunArgs>),
    /// With one.
    Admin(AdminCommand),
}

impl FromArgMatches for SettleArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand() {
            Some(_) => AdminCommand::from_arg_matches(matches).map(Self::Admin),
            None => RunArgs::from_arg_matches(matches).map(|args| Self::Run(Box::new(args))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for SettleArgs {
    fn augment_args(command: Command) -> Command {
        AdminCommand::augment_subcommands(RunArgs::augment_args(command))
            .subcommand_required(false)
            .arg_required_else_help(false)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Options of `settle`.
#[derive(Args, Clone)]
pub struct RunArgs {
    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub(super) database_url: String,

    #[command(flatten)]
    pub(super) chain: ChainArgs,

    #[command(flatten)]
    pub(super) log: LogArgs,

    #[command(flatten)]
    pub(super) environment: EnvironmentArgs,

    /// Private key, as 0x…, of the account that pays the gas; it needs no role in the contracts, only coins
    #[arg(long, env = "SETTLER_KEY", hide_env_values = true, value_name = "KEY")]
    pub(super) settler_key: Hidden<PrivateKeySigner>,

    /// Seconds between two looks at what is due and what was sent
    #[arg(long, env = "SETTLER_INTERVAL", value_parser = seconds, default_value = "1", value_name = "SECS")]
    pub(super) interval: Duration,

    /// Most payments in one transaction
    #[arg(long, env = "SETTLER_MAX_BATCH", default_value_t = 128, value_name = "ITEMS")]
    max_batch: usize,

    /// Seconds that a result waits for others to join its transaction
    #[arg(long, env = "SETTLER_MAX_WAIT", value_parser = seconds, default_value = "2", value_name = "SECS")]
    max_wait: Duration,

    /// Seconds that a voucher waits for others to join its transaction, or for a better one
    #[arg(long, env = "SETTLER_VOUCHER_WAIT", value_parser = seconds, default_value = "30", value_name = "SECS")]
    voucher_wait: Duration,

    /// Seconds that a signed order's result waits for a voucher before it is settled alone
    #[arg(long, env = "SETTLER_VOUCHER_GRACE", value_parser = seconds, default_value = "600", value_name = "SECS")]
    voucher_grace: Duration,

    /// Seconds after which a payment waits neither for others nor for cheaper gas
    #[arg(long, env = "SETTLER_MAX_AGE", value_parser = seconds, default_value = "3600", value_name = "SECS")]
    max_age: Duration,

    /// Seconds to a deadline, or to the end of a notice by which funds may leave, below which nothing waits any more
    #[arg(long, env = "SETTLER_URGENT_WITHIN", value_parser = seconds, default_value = "600", value_name = "SECS")]
    urgent_within: Duration,

    /// Seconds to a job's deadline below which a transaction would come too late and is not sent
    #[arg(long, env = "SETTLER_DEADLINE_MARGIN", value_parser = seconds, default_value = "2", value_name = "SECS")]
    deadline_margin: Duration,

    /// Only payments in these tokens; zero, or "native", is the chain's coin. All unless given
    #[arg(long = "token", env = "SETTLER_TOKENS", value_parser = token, value_delimiter = ',', value_name = "ADDRESS")]
    tokens: Vec<Address>,

    /// Least payment to send, in the token's smallest unit, as AMOUNT for the chain's coin or TOKEN=AMOUNT
    #[arg(long, env = "SETTLER_MIN_AMOUNT", value_parser = least, value_delimiter = ',', value_name = "[TOKEN=]AMOUNT")]
    min_amount: Vec<(Address, u128)>,

    /// Most, in percent, that gas may take of what a transaction pays, unless it is full, old or urgent
    #[arg(long, env = "SETTLER_MAX_GAS_SHARE", value_parser = share, value_name = "PERCENT")]
    max_gas_share: Option<u64>,

    /// What a token is worth, for --max-gas-share: TOKEN=WEI/UNITS, wei for so many of its smallest units
    #[arg(long, env = "SETTLER_TOKEN_PRICE", value_parser = rate, value_delimiter = ',', value_name = "TOKEN=WEI/UNITS")]
    token_price: Vec<(Address, Rate)>,

    /// Base fee above which payments wait for cheaper gas while nothing presses: wei, or p1 to p99 for that percentile of
    /// the last 1,024 blocks
    #[arg(long, env = "SETTLER_TARGET_FEE", value_name = "WEI|pN")]
    target_fee: Option<TargetFee>,

    /// Most wei that one transaction may cost
    #[arg(long, env = "SETTLER_MAX_TX_COST", value_name = "WEI")]
    max_tx_cost: Option<Amount>,

    /// Most wei to spend on gas in any 24 hours
    #[arg(long, env = "SETTLER_GAS_BUDGET", value_name = "WEI")]
    gas_budget: Option<Amount>,

    /// Blocks, its own included, after which a transaction counts as mined
    #[arg(long, env = "SETTLER_CONFIRMATIONS", default_value_t = 1, value_name = "BLOCKS",
          value_parser = clap::value_parser!(u64).range(1..))]
    confirmations: u64,

    /// Most to pay for a unit of gas, in wei; while the chain asks for more, nothing new is sent
    #[arg(long, env = "SETTLER_MAX_FEE_PER_GAS", default_value_t = 200_000_000_000, value_name = "WEI")]
    max_fee_per_gas: u128,

    /// Most of that to give to the block's builder, in wei
    #[arg(long, env = "SETTLER_MAX_PRIORITY_FEE_PER_GAS", default_value_t = 50_000_000_000, value_name = "WEI")]
    max_priority_fee_per_gas: u128,

    /// Seconds after which a transaction that is not mined is replaced by one with higher fees
    #[arg(long, env = "SETTLER_BUMP_AFTER", value_parser = seconds, default_value = "60", value_name = "SECS")]
    bump_after: Duration,

    /// Most transactions that wait to be mined at once
    #[arg(long, env = "SETTLER_MAX_PENDING", default_value_t = 8, value_name = "TRANSACTIONS")]
    max_pending: usize,

    /// Share of the block gas limit that one transaction may take, in percent
    #[arg(long, env = "SETTLER_BLOCK_SHARE", default_value_t = 50, value_name = "PERCENT",
          value_parser = clap::value_parser!(u64).range(1..=100))]
    block_share: u64,

    /// Try each batch with eth_simulateV1 first and leave out what the contract would skip
    #[arg(long, env = "SETTLER_SIMULATE", default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    simulate: bool,

    /// Seconds after which a request to the chain's RPC is given up
    #[arg(long, env = "SETTLER_RPC_TIMEOUT", value_parser = seconds, default_value = "10", value_name = "SECS")]
    rpc_timeout: Duration,

    /// Seconds after which a leader that gives no sign of life loses the lead to a standby
    #[arg(long, env = "SETTLER_LEAD_TIMEOUT", value_parser = seconds, default_value = "3", value_name = "SECS")]
    pub(super) lead_timeout: Duration,

    /// Where to serve GET /metrics and GET /live; nowhere unless given
    #[arg(long, env = "METRICS_BIND", value_name = "ADDRESS:PORT")]
    pub(super) metrics_bind: Option<SocketAddr>,
}

impl RunArgs {
    pub(super) fn options(&self) -> anyhow::Result<Options> {
        Ok(Options {
            max_items: self.max_batch.max(1),
            max_wait: TimeDelta::from_std(self.max_wait)?,
            voucher_wait: TimeDelta::from_std(self.voucher_wait)?,
            max_age: TimeDelta::from_std(self.max_age)?,
            urgent_within: TimeDelta::from_std(self.urgent_within)?,
            deadline_margin: TimeDelta::from_std(self.deadline_margin)?,
            backoff: Backoff {
                first: TimeDelta::seconds(5),
                longest: TimeDelta::hours(1),
                voucher_grace: TimeDelta::from_std(self.voucher_grace)?,
                urgent_within: TimeDelta::from_std(self.urgent_within)?,
            },
            filter: Filter { tokens: self.tokens.clone(), least: self.min_amount.clone() },
            max_gas_share_bps: self.max_gas_share,
            rates: self.token_price.iter().copied().collect::<BTreeMap<_, _>>(),
            target_fee: self.target_fee,
            max_tx_cost: self.max_tx_cost.map_or(U256::MAX, |cost| cost.0),
            gas_budget: self.gas_budget.map(|budget| budget.0),
            confirmations: self.confirmations,
            caps: Fees {
                max_fee_per_gas: self.max_fee_per_gas,
                max_priority_fee_per_gas: self.max_priority_fee_per_gas,
            },
            bump_after: TimeDelta::from_std(self.bump_after)?,
            max_pending: self.max_pending.max(1),
            block_share: self.block_share,
            simulate: self.simulate,
            rpc_timeout: self.rpc_timeout,
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let secs: f64 = text.parse().map_err(|_| "must be a number of seconds, such as 2 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(secs).map_err(|error| error.to_string())
}

/// A percentage with at most two decimals, in basis points.
fn share(text: &str) -> Result<u64, String> {
    let wrong = || "must be a percentage with at most two decimals, such as 5 or 0.25".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 2 {
        return Err(wrong());
    }
    let digits = [whole, part, &"00"[part.len()..]].concat();
    digits.parse().map_err(|_| wrong())
}

pub(super) fn token(text: &str) -> Result<Address, String> {
    if text == "native" {
        return Ok(Address::ZERO);
    }
    Address::from_str(text).map_err(|_| "must be an address, or native".to_owned())
}

fn least(text: &str) -> Result<(Address, u128), String> {
    let (of, amount) = text.split_once('=').map_or(("native", text), |(of, amount)| (of, amount));
    let amount: Amount = amount.parse().map_err(|error: market::amount::AmountError| error.to_string())?;
    Ok((token(of)?, amount.to_u128().map_err(|error| error.to_string())?))
}

fn rate(text: &str) -> Result<(Address, Rate), String> {
    let wrong = || "must be TOKEN=WEI/UNITS, such as 0x…=300000000000000/1000000".to_owned();
    let (of, price) = text.split_once('=').ok_or_else(wrong)?;
    let (wei, units) = price.split_once('/').ok_or_else(wrong)?;
    let rate = Rate { wei: wei.parse().map_err(|_| wrong())?, units: units.parse().map_err(|_| wrong())? };
    if rate.units == 0 { Err(wrong()) } else { Ok((token(of)?, rate)) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: SettleArgs,
    }

    const KEY: &str = "0x0101010101010101010101010101010101010101010101010101010101010101";

    #[test]
    fn the_settler_runs_without_a_subcommand_and_says_what_it_lacks() {
        let given =
            ["settle", "--database-url", "x", "--rpc-url", "http://x", "--deployment", "x", "--settler-key", KEY];
        let SettleArgs::Run(args) = Cli::try_parse_from(given).ok().unwrap().args else { panic!("it runs") };
        assert_eq!(args.options().unwrap().max_pending, 8);
        assert!(Cli::try_parse_from(&given[..7]).is_err());
    }

    #[test]
    fn looking_needs_nothing_but_the_database() {
        let args = Cli::try_parse_from(["settle", "status", "--database-url", "x"]).ok().unwrap().args;
        assert!(matches!(args, SettleArgs::Admin(AdminCommand::Status { .. })));
        let job = format!("0x{}", "07".repeat(32));
        let args = Cli::try_parse_from(["settle", "release", &job, "--database-url", "x"]).ok().unwrap().args;
        assert!(matches!(args, SettleArgs::Admin(AdminCommand::Release { job: Some(_), .. })));
        assert!(Cli::try_parse_from(["settle", "release", "--database-url", "x"]).is_err(), "of what?");
    }

    #[test]
    fn amounts_shares_and_prices_are_exact() {
        let token = Address::repeat_byte(7);
        assert_eq!(share("5"), Ok(500));
        assert_eq!(share("0.25"), Ok(25));
        assert!(share("0.255").is_err() && share("-1").is_err() && share("x").is_err());
        assert_eq!(least("100"), Ok((Address::ZERO, 100)));
        assert_eq!(least(&format!("{token}=5")), Ok((token, 5)));
        assert_eq!(rate(&format!("{token}=3/2")), Ok((token, Rate { wei: 3, units: 2 })));
        assert!(rate("native=1/0").is_err());
    }
}
