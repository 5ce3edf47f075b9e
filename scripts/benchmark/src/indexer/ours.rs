//! The real indexer, from an empty database to the chain's head.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use devnet::{Market, MarketOptions, Postgres, Service};
use market::db;
use market::db::outbox::{self, Source};
use sqlx::PgPool;

use super::chain::Chain;

/// How often Postgres is asked how far the indexer is.
const POLL: Duration = Duration::from_millis(10);
/// An indexer that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(1800);

/// An indexer that has reached the head, and goes on running until this is dropped.
pub struct Indexed {
    /// From its start to the cursor at the head.
    pub seconds: f64,
    /// Until Redis had all of it too, counted from the same start.
    pub projected_seconds: f64,
    /// Most memory it ever held.
    pub peak_rss_mb: u64,
    pub pool: PgPool,
    pub market: Market,
}

/// Indexes `chain` up to `head` into a new database of `postgres`.
pub async fn index(chain: &Chain, head: u64, postgres: &Postgres, dir: &Path, name: &str) -> anyhow::Result<Indexed> {
    let url = postgres.create_database(name).await?.to_string();
    let options = MarketOptions {
        dir: dir.join(name),
        database_url: Some(url.clone()),
        rpc_url: Some(chain.rpc_url.clone()),
        deployment: Some(chain.deployment.path.clone()),
        ..MarketOptions::default()
    };
    let mut market = Market::servers(options).await?;
    let pool = db::connect(&url, 4).await?;
    let started = Instant::now();
    market.start_service(Service::Indexer).await?;
    while cursor(&pool).await.is_none_or(|cursor| cursor < head) {
        check(&mut market, started)?;
        tokio::time::sleep(POLL).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    while outbox::depth(&mut *pool.acquire().await?, Source::Chain).await?.0 > 0 {
        check(&mut market, started)?;
        tokio::time::sleep(POLL).await;
    }
    let projected_seconds = started.elapsed().as_secs_f64();
    let peak_rss_mb = peak_rss_mb(market.process(Service::Indexer)?.pid())?;
    Ok(Indexed { seconds, projected_seconds, peak_rss_mb, pool, market })
}

/// Nothing before the indexer has made the tables.
pub async fn cursor(pool: &PgPool) -> Option<u64> {
    let mut db = pool.acquire().await.ok()?;
    Some(db::chain::cursor(&mut db).await.ok()??.block.number)
}

fn check(market: &mut Market, started: Instant) -> anyhow::Result<()> {
    let process = market.process(Service::Indexer)?;
    if let Some(status) = process.exit_status() {
        bail!("the indexer ended ({status}):\n{}", process.log_tail());
    }
    if started.elapsed() > LIMIT {
        bail!("the indexer has not reached the head within {} s:\n{}", LIMIT.as_secs(), process.log_tail());
    }
    Ok(())
}

/// The most memory that the process ever held, as the kernel counts it, in MiB.
pub fn peak_rss_mb(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the process's status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    Ok(peak.context("the kernel does not tell VmHWM")?.trim().parse::<u64>()?.div_ceil(1024))
}
