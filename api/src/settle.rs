//! `littoral-api settle`: sends due payments to the chain, many in one transaction.
//!
//! One process leads, others stand by. In each round the leader follows up the batches it has sent (`pending`), then plans
//! new ones and stores nonce and signed bytes before it sends them (`dispatch`). A payment counts as made only when the
//! indexer has seen it, and the contract pays a job once whatever is sent, so a crash at any moment costs gas at most.

mod crash;
mod dispatch;
mod fees;
mod metrics;
mod pending;
mod settler;
mod transaction;

use std::net::SocketAddr;
use std::time::Duration;

use alloy::signers::local::PrivateKeySigner;
use anyhow::Context;
use chrono::TimeDelta;
use clap::Args;
use market::clock;
use market::db::leader::{FenceError, Leadership, Role};
use market::deployment::Deployment;
use market::settings::{ChainArgs, LogArgs};
use sqlx::PgPool;
use tokio::time::MissedTickBehavior;

use fees::Fees;
use settler::{Options, RoundError, Settler};

/// One for the lock that leads, one for the work, and a reserve.
const DATABASE_CONNECTIONS: u32 = 4;
/// No round takes as long unless the RPC hangs; it is then given up and begun anew.
const ROUND_LIMIT: Duration = Duration::from_secs(120);

/// Options of `settle`.
#[derive(Args, Clone)]
pub struct SettleArgs {
    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,

    #[command(flatten)]
    chain: ChainArgs,

    #[command(flatten)]
    log: LogArgs,

    /// Private key, as 0x…, of the account that pays the gas; it needs no role in the contracts, only coins
    #[arg(long, env = "SETTLER_KEY", hide_env_values = true, value_name = "KEY")]
    settler_key: PrivateKeySigner,

    /// Seconds between two looks at what is due and what was sent
    #[arg(long, env = "SETTLER_INTERVAL", value_parser = seconds, default_value = "1", value_name = "SECS")]
    interval: Duration,

    /// Most payments in one transaction
    #[arg(long, env = "SETTLER_MAX_BATCH", default_value_t = 100, value_name = "ITEMS")]
    max_batch: usize,

    /// Seconds that a payment waits at most for others to join its transaction
    #[arg(long, env = "SETTLER_MAX_WAIT", value_parser = seconds, default_value = "2", value_name = "SECS")]
    max_wait: Duration,

    /// Seconds to a job's deadline below which its payment does not wait for others
    #[arg(long, env = "SETTLER_URGENT_WITHIN", value_parser = seconds, default_value = "600", value_name = "SECS")]
    urgent_within: Duration,

    /// Seconds to a job's deadline below which a transaction would come too late and is not sent
    #[arg(long, env = "SETTLER_DEADLINE_MARGIN", value_parser = seconds, default_value = "2", value_name = "SECS")]
    deadline_margin: Duration,

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
    #[arg(long, env = "SETTLER_MAX_PENDING", default_value_t = 4, value_name = "TRANSACTIONS")]
    max_pending: usize,

    /// Share of the block gas limit that one transaction may take, in percent
    #[arg(long, env = "SETTLER_BLOCK_SHARE", default_value_t = 50, value_name = "PERCENT",
          value_parser = clap::value_parser!(u64).range(1..=100))]
    block_share: u64,

    /// Try each batch with eth_simulateV1 first and leave out what the contract would skip
    #[arg(long, env = "SETTLER_SIMULATE", default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    simulate: bool,

    /// Where to serve GET /metrics and GET /live; nowhere unless given
    #[arg(long, env = "METRICS_BIND", value_name = "ADDRESS:PORT")]
    metrics_bind: Option<SocketAddr>,
}

impl SettleArgs {
    fn options(&self) -> anyhow::Result<Options> {
        Ok(Options {
            max_items: self.max_batch.max(1),
            max_wait: TimeDelta::from_std(self.max_wait)?,
            urgent_within: TimeDelta::from_std(self.urgent_within)?,
            deadline_margin: TimeDelta::from_std(self.deadline_margin)?,
            confirmations: self.confirmations,
            caps: Fees {
                max_fee_per_gas: self.max_fee_per_gas,
                max_priority_fee_per_gas: self.max_priority_fee_per_gas,
            },
            bump_after: TimeDelta::from_std(self.bump_after)?,
            max_pending: self.max_pending.max(1),
            block_share: self.block_share,
            simulate: self.simulate,
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let secs: f64 = text.parse().map_err(|_| "must be a number of seconds, such as 2 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(secs).map_err(|error| error.to_string())
}

/// Settles until told to stop by SIGINT or SIGTERM.
pub async fn run(args: SettleArgs) -> anyhow::Result<()> {
    market::telemetry::init(args.log.log_json);
    anyhow::ensure!(!args.interval.is_zero(), "--interval must be more than 0");
    let deployment = Deployment::read(&args.chain.deployment)?;
    let pool = market::db::connect(&args.database_url, DATABASE_CONNECTIONS).await.context("connecting to Postgres")?;
    market::db::migrate(&pool).await.context("migrating the database")?;
    let provider = market::rpc::connect(&args.chain.rpc_url, &deployment).await?;
    if let Some(bind) = args.metrics_bind {
        metrics::serve(bind).await?;
    }
    tracing::info!(
        chain_id = deployment.chain_id,
        escrow = %deployment.escrow,
        sender = %args.settler_key.address(),
        "settler started"
    );
    let settler = Settler::new(pool.clone(), provider, args.settler_key.clone(), &deployment, args.options()?);
    // Stopping drops the round wherever it waits: it must be as safe as a crash anyway.
    tokio::select! {
        () = lead(pool, settler, args.interval) => {}
        stop = stop_signal() => stop?,
    }
    tracing::info!("settler stopped");
    Ok(())
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupt = tokio::signal::ctrl_c() => interrupt.context("listening for SIGINT")?,
    }
    Ok(())
}

/// Runs a round every `interval` while this process leads, and tries to take the lead while it does not.
async fn lead(pool: PgPool, mut settler: Settler, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leadership: Option<Leadership> = None;
    let mut failing: Option<String> = None;
    loop {
        ticks.tick().await;
        let result = turn(&pool, &mut settler, &mut leadership).await;
        metrics::leading(leadership.is_some());
        match result {
            Ok(()) => {
                if failing.take().is_some() {
                    tracing::info!("settling again");
                }
            }
            Err(error) => {
                metrics::round_failed();
                let text = format!("{error:#}");
                // The same failure every second would bury everything else.
                if failing.as_ref() != Some(&text) {
                    tracing::error!(error = %text, "round failed; trying on");
                }
                failing = Some(text);
            }
        }
    }
}

async fn turn(pool: &PgPool, settler: &mut Settler, leadership: &mut Option<Leadership>) -> Result<(), RoundError> {
    if let Some(held) = leadership.as_mut()
        && let Err(error) = held.check().await
    {
        tracing::warn!(%error, epoch = held.epoch(), "lost the lead with its connection");
        *leadership = None;
    }
    let fence = match leadership {
        Some(held) => held.fence(),
        None => match Leadership::try_acquire(pool, Role::Settler, clock::now()).await? {
            Some(taken) => {
                tracing::info!(epoch = taken.epoch(), "leading");
                leadership.insert(taken).fence()
            }
            None => return Ok(()),
        },
    };
    let result = tokio::time::timeout(ROUND_LIMIT, settler.round(fence))
        .await
        .unwrap_or_else(|_| Err(RoundError::Other(anyhow::anyhow!("gave up after {} s", ROUND_LIMIT.as_secs()))));
    if matches!(result, Err(RoundError::Fence(FenceError::Deposed { .. }))) {
        *leadership = None;
    }
    result
}
