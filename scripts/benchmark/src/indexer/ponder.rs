//! Ponder on the same events: `scripts/benchmark/ponder` is its project, `scripts/bench` installs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use devnet::{Launch, Postgres, Process, paths, ports};

use super::chain::Chain;
use super::ours::peak_rss_mb;

/// How often it is asked whether it is done.
const POLL: Duration = Duration::from_millis(50);
/// A Ponder that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(3600);
/// Where its cap on requests is, as published, and what lifts it. It starts at so many a second and grows as long as all
/// goes well; no setting changes that.
const CAP_FILE: &str = "node_modules/ponder/dist/esm/rpc/index.js";
const CAP: [(&str, &str); 2] = [
    ("const INITIAL_MAX_RPS = 20;", "const INITIAL_MAX_RPS = 1000000;"),
    ("const MAX_RPS = 500;", "const MAX_RPS = 1000000;"),
];

/// How it asks the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// As published.
    Stock,
    /// Without a cap on requests a second.
    Lifted,
}

impl Cap {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Lifted => "uncapped",
        }
    }
}

/// What it took.
pub struct Measured {
    pub seconds: f64,
    pub peak_rss_mb: u64,
}

/// Indexes the blocks `from` to `to` into a new database, from the start of its process until it says that it is done.
pub async fn index(
    chain: &Chain,
    (from, to): (u64, u64),
    events: u64,
    postgres: &Postgres,
    dir: &Path,
    cap: Cap,
) -> anyhow::Result<Measured> {
    let home = home()?;
    set_cap(&home, cap)?;
    let database = postgres.create_database(&format!("ponder_{}", cap.name())).await?;
    let port = ports::free_port()?;
    let manifest = &chain.deployment.manifest;
    let launch =
        Launch::new("ponder", paths::program("node", "nodejs")?, dir.join(format!("ponder_{}.log", cap.name())))
            .arg(home.join("node_modules/ponder/dist/esm/bin/ponder.js"))
            .args(["start", "--schema", "bench", "--hostname", "127.0.0.1", "--port", &port.to_string(), "--root"])
            .arg(&home)
            .current_dir(&home)
            .env("PONDER_TELEMETRY_DISABLED", "true")
            .env("DATABASE_URL", database.as_str())
            .env("BENCH_RPC_URL", &chain.rpc_url)
            .env("BENCH_ARTIFACTS", paths::artifacts_dir())
            .env("BENCH_ESCROW", manifest.escrow.to_string())
            .env("BENCH_REGISTRY", manifest.registry.to_string())
            .env("BENCH_FROM", from.to_string())
            .env("BENCH_TO", to.to_string());
    let started = Instant::now();
    let mut process = launch.spawn()?;
    let done = wait(&mut process, port, started).await;
    let seconds = started.elapsed().as_secs_f64();
    set_cap(&home, Cap::Stock)?;
    done?;
    let indexed = completed(port).await?;
    ensure!(indexed == events, "Ponder has indexed {indexed} of {events} events:\n{}", process.log_tail());
    let peak_rss_mb = peak_rss_mb(process.pid())?;
    Ok(Measured { seconds, peak_rss_mb })
}

async fn wait(process: &mut Process, port: u16, started: Instant) -> anyhow::Result<()> {
    let client = reqwest::Client::new();
    let url = format!("http://127.0.0.1:{port}/ready");
    while !client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
        if let Some(status) = process.exit_status() {
            bail!("Ponder ended ({status}):\n{}", process.log_tail());
        }
        if started.elapsed() > LIMIT {
            bail!("Ponder is not done within {} s:\n{}", LIMIT.as_secs(), process.log_tail());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// How many events it says it has indexed.
async fn completed(port: u16) -> anyhow::Result<u64> {
    let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await?.text().await?;
    let counts = text.lines().filter(|line| line.starts_with("ponder_indexing_completed_events{"));
    let count = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
    counts.map(|line| count(line).with_context(|| format!("`{line}` counts nothing"))).sum()
}

fn home() -> anyhow::Result<PathBuf> {
    let home = paths::state_dir().join("bench/ponder");
    ensure!(home.join(CAP_FILE).is_file(), "{} has no Ponder: run scripts/bench indexer", home.display());
    Ok(home)
}

fn set_cap(home: &Path, cap: Cap) -> anyhow::Result<()> {
    let path = home.join(CAP_FILE);
    let mut text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    for (stock, lifted) in CAP {
        let (from, to) = if cap == Cap::Stock { (lifted, stock) } else { (stock, lifted) };
        ensure!(text.contains(from) || text.contains(to), "{} has no `{stock}`", path.display());
        text = text.replace(from, to);
    }
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
