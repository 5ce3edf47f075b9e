//! The real indexer, from an empty database to the chain's head.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use devnet::{Market, MarketOptions, Postgres, Service};
use market::db;
use market::db::outbox::{self, Source};
use serde::Serialize;
use sqlx::PgPool;

use super::chain::Chain;
use super::rounded;

/// How often Postgres is asked how far the indexer is.
const POLL: Duration = Duration::from_millis(10);
/// An indexer that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(1800);

/// What `/proc` counts processor time in, whatever the machine: USER_HZ.
const TICKS_PER_S: f64 = 100.0;

/// Processor time that everyone took from the indexer's start until Postgres had everything, in seconds. Unlike the time that
/// passed, it does not depend on what else the machine does, and it tells who bounds whom.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cpu {
    indexer: f64,
    node: f64,
    postgres: f64,
}

/// An indexer that has reached the head, and goes on running until this is dropped.
pub struct Indexed {
    /// From its start to the cursor at the head.
    pub seconds: f64,
    /// Until Redis had all of it too, counted from the same start.
    pub projected_seconds: f64,
    /// Most memory it ever held.
    pub peak_rss_mb: u64,
    pub cpu: Cpu,
    pub pool: PgPool,
    pub market: Market,
}

/// Indexes `chain` up to `head` into a new database of `postgres`.
pub async fn index(
    chain: &Chain,
    head: u64,
    postgres: &mut Postgres,
    dir: &Path,
    name: &str,
) -> anyhow::Result<Indexed> {
    let url = postgres.create_database(name).await?.to_string();
    let options = MarketOptions {
        dir: dir.join(name),
        database_url: Some(url.clone()),
        rpc_url: Some(chain.rpc_url.clone()),
        deployment: Some(chain.deployment.path.clone()),
        env: vec![(Service::Indexer, "RPC_WS_URL", devnet::ws_url(&chain.rpc_url))],
        ..MarketOptions::default()
    };
    let mut market = Market::servers(options).await?;
    let pool = db::connect(&url, 4).await?;
    let server = postgres.process().pid();
    let before = (cpu_seconds(chain.pid, false)?, cpu_seconds(server, true)?);
    let started = Instant::now();
    market.start_service(Service::Indexer).await?;
    while cursor(&pool).await.is_none_or(|cursor| cursor < head) {
        check(&mut market, started)?;
        tokio::time::sleep(POLL).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = Cpu {
        indexer: cpu_seconds(market.process(Service::Indexer)?.pid(), false)?,
        node: rounded(cpu_seconds(chain.pid, false)? - before.0),
        postgres: rounded(cpu_seconds(server, true)? - before.1),
    };
    while outbox::depth(&mut *pool.acquire().await?, Source::Chain).await?.0 > 0 {
        check(&mut market, started)?;
        tokio::time::sleep(POLL).await;
    }
    let projected_seconds = started.elapsed().as_secs_f64();
    let peak_rss_mb = peak_rss_mb(market.process(Service::Indexer)?.pid())?;
    Ok(Indexed { seconds, projected_seconds, peak_rss_mb, cpu, pool, market })
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

/// Processor time of a process, in seconds; of its children too, those that have ended and those that have not.
fn cpu_seconds(pid: u32, with_children: bool) -> anyhow::Result<f64> {
    let (_, own, ended) = times(pid).with_context(|| format!("process {pid} is gone"))?;
    if !with_children {
        return Ok(own);
    }
    let entries = fs::read_dir("/proc")?.flatten();
    let all = entries.filter_map(|entry| times(entry.file_name().to_str()?.parse().ok()?));
    let running: f64 = all.filter(|(parent, ..)| *parent == pid).map(|(_, own, ended)| own + ended).sum();
    Ok(own + ended + running)
}

/// Of a process: its parent, and the processor time of itself and of its children that have ended, in seconds.
fn times(pid: u32) -> Option<(u32, f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name comes second, in parentheses, and may have anything in it; the parent is the fourth field.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |field: usize| Some(f64::from(fields.get(field)?.parse::<u32>().ok()?) / TICKS_PER_S);
    Some((fields.get(1)?.parse().ok()?, seconds(11)? + seconds(12)?, seconds(13)? + seconds(14)?))
}
