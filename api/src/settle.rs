//! `littoral-api settle`: sends due payments to the chain, many in one transaction.
//!
//! One process leads, others stand by. In each round the leader accounts for every nonce that is used (`nonces`), follows up
//! the batches it has sent (`pending`, `ending`), then plans new ones and stores nonce and signed bytes before it sends them
//! (`dispatch`). A payment counts as made only when the indexer has seen it on the canonical chain, and the contract pays a
//! job once whatever is sent, so a crash at any moment costs gas at most. docs/settlement.md tells the whole.

mod admin;
mod args;
mod crash;
mod dispatch;
mod ending;
mod fees;
mod metrics;
mod nonces;
mod pending;
mod purse;
mod put_off;
mod refusal;
mod settler;
mod transaction;
mod trial;

use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use market::clock;
use market::db::leader::{FenceError, Leadership, Role};
use market::db::settlement;
use market::deployment::Deployment;
use market::production::{self, Used};
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::time::MissedTickBehavior;

pub use args::{RunArgs, SettleArgs};
use settler::{RoundError, Settler};

/// For the work, a reserve, and the lock that leads.
const DATABASE_CONNECTIONS: u32 = 5;
/// No round takes as long unless the RPC hangs; it is then given up and begun anew.
const ROUND_LIMIT: Duration = Duration::from_secs(120);
/// How long to wait for more news of the indexer before acting on them.
const NEWS_GATHER: Duration = Duration::from_millis(100);
/// How often a standby looks whether the lead is free.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);

/// Runs the settler, or does what the subcommand asks.
pub async fn run(args: SettleArgs) -> anyhow::Result<()> {
    match args {
        SettleArgs::Run(args) => settle(*args).await,
        SettleArgs::Admin(command) => admin::run(command).await,
    }
}

/// Settles until told to stop by SIGINT or SIGTERM.
async fn settle(args: RunArgs) -> anyhow::Result<()> {
    market::telemetry::init(args.log.log_json);
    let key = args.settler_key.value("SETTLER_KEY")?;
    if args.environment.environment.is_production() {
        let accounts = [("SETTLER_KEY", key.address())];
        let used = Used { database_url: Some(&args.database_url), redis_url: None, accounts: &accounts };
        production::refuse(&production::weaknesses(used).await)?;
    }
    anyhow::ensure!(!args.interval.is_zero(), "--interval must be more than 0");
    anyhow::ensure!(args.lead_timeout >= Duration::from_secs(1), "--lead-timeout must be at least 1");
    let deployment = Deployment::read(&args.chain.deployment)?;
    let pool = settlement::connect(&args.database_url, DATABASE_CONNECTIONS).await.context("connecting to Postgres")?;
    market::db::migrate(&pool).await.context("migrating the database")?;
    let news = settlement::listen(&args.database_url).await.context("listening to Postgres")?;
    let provider = market::rpc::connect(&args.chain.rpc_urls, &deployment).await?;
    if let Some(bind) = args.metrics_bind {
        metrics::serve(bind).await?;
    }
    tracing::info!(
        chain_id = deployment.chain_id,
        escrow = %deployment.escrow,
        sender = %key.address(),
        "settler started"
    );
    let settler = Settler::new(pool.clone(), provider, key.clone(), &deployment, args.options()?);
    // Stopping drops the round wherever it waits: it must be as safe as a crash anyway.
    tokio::select! {
        () = lead(pool, news, settler, args.interval, args.lead_timeout) => {}
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

/// Runs a round every `interval`, and when the indexer has news, while this process leads; tries to take the lead while it
/// does not.
async fn lead(pool: PgPool, mut news: PgListener, mut settler: Settler, interval: Duration, timeout: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = tokio::time::interval(STANDBY_INTERVAL.min(interval));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leadership: Option<Leadership> = None;
    let mut failing: Option<String> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = looks.tick(), if leadership.is_none() => {}
            () = heard(&mut news, interval.min(NEWS_GATHER)), if leadership.is_some() => ticks.reset(),
        }
        let result = turn(&pool, &mut settler, &mut leadership, timeout).await;
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

/// Ends when the indexer has applied something, and what else it applies at once. Without a listener there are ticks.
async fn heard(news: &mut PgListener, gather: Duration) {
    if news.recv().await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(gather).await;
    while let Some(Ok(_)) = news.recv().now_or_never() {}
}

async fn turn(
    pool: &PgPool,
    settler: &mut Settler,
    leadership: &mut Option<Leadership>,
    lease: Duration,
) -> Result<(), RoundError> {
    if leadership.is_none() {
        *leadership = Leadership::try_acquire_for(pool, Role::Settler, lease, clock::now()).await?;
        if let Some(taken) = leadership {
            tracing::info!(epoch = taken.epoch(), "leading");
        }
    }
    let Some(held) = leadership.as_ref() else { return Ok(()) };
    // Asked before anything is sent: a process that was frozen learns of it here.
    if let Err(lost) = held.check().await {
        return step_down(leadership, &lost);
    }
    let fence = held.fence();
    let result = tokio::select! {
        lost = held.lost() => return step_down(leadership, &lost),
        result = tokio::time::timeout(ROUND_LIMIT, settler.round(fence)) => result,
    };
    let result =
        result.unwrap_or_else(|_| Err(RoundError::Other(anyhow::anyhow!("gave up after {} s", ROUND_LIMIT.as_secs()))));
    match result {
        Err(RoundError::Fence(error @ FenceError::Deposed { .. })) => step_down(leadership, &error),
        result => result,
    }
}

fn step_down(leadership: &mut Option<Leadership>, why: &dyn std::error::Error) -> Result<(), RoundError> {
    if let Some(held) = leadership.take() {
        tracing::warn!(error = %why, epoch = held.epoch(), "lost the lead");
    }
    Ok(())
}
