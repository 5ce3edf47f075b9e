//! `realtime`: a thousand stock clients that follow one job, against ours and against the npm `socket.io` server.
//!
//! The same script (`scripts/benchmark/socketio/client.mjs`) holds the clients and publishes to Redis, from which either
//! server has its messages. Servers have one core to themselves, everything else has the other. First as many messages are
//! sent as can be, then so many a second; the two servers take turns. Last, one of two instances of ours is killed while
//! messages go out, and its clients change to the other.

mod clients;
mod servers;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use devnet::{Market, MarketOptions};
use serde::Serialize;

use crate::figures::rounded;
use clients::{Clients, Run};
use servers::{Kind, Server, Stage};

/// Options of `realtime`.
#[derive(Args)]
pub struct Realtime {
    /// Clients
    #[arg(long, default_value_t = 1000)]
    clients: u32,

    /// Messages a second at which the time on their way is measured, each counted once for every client that gets it
    #[arg(long, default_value_t = 20_000)]
    rate: u32,

    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 10)]
    seconds: u32,

    /// How often the servers take turns
    #[arg(long, default_value_t = 3)]
    rounds: u32,

    /// Keep the servers' logs in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,

    /// Print nothing but the JSON object
    #[arg(long)]
    json: bool,
}

/// What was measured: rates and times of the middle round.
#[derive(Debug, Serialize)]
struct Figures {
    msgs_per_s: f64,
    socketio_msgs_per_s: f64,
    /// CPU time of socket.io's server for a message over that of ours.
    ratio: f64,
    cpu_us_per_msg: f64,
    socketio_cpu_us_per_msg: f64,
    p50_ms: f64,
    p99_ms: f64,
    socketio_p50_ms: f64,
    socketio_p99_ms: f64,
    burst_p50_ms: f64,
    socketio_burst_p50_ms: f64,
    paced_ratio: f64,
    /// Messages that clients of ours never got, or not in order, in all runs.
    missed: u64,
    repeated: u64,
    recovered: u64,
    clients: u32,
    rate: u32,
}

/// A server in one round.
#[derive(Debug, Clone)]
struct Round {
    burst: Measured,
    paced: Measured,
}

#[derive(Debug, Clone)]
struct Measured {
    run: Run,
    cpu_us: f64,
}

impl Realtime {
    /// Measures; whether every client got every message once and in order.
    pub async fn run(self) -> anyhow::Result<bool> {
        ensure!(self.clients > 0 && self.rounds > 0 && self.seconds > 0, "there must be clients, rounds and seconds");
        let scratch = tempfile::Builder::new().prefix("littoral-bench").tempdir()?;
        let dir = self.logs.clone().unwrap_or_else(|| scratch.path().to_owned());
        let market = Market::servers(MarketOptions { dir, ..MarketOptions::default() }).await?;
        let stage = Stage::prepare(&market).await?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            ours.push(self.round(&stage, Kind::Ours, round).await?);
            theirs.push(self.round(&stage, Kind::SocketIo, round).await?);
        }
        let killed = self.killed(&stage).await?;
        let runs = || ours.iter().flat_map(|round| [&round.burst.run, &round.paced.run]).chain([&killed]);
        let cpu = |rounds: &[Round]| middle(rounds, |round| round.burst.cpu_us);
        let paced_cpu = |rounds: &[Round]| middle(rounds, |round| round.paced.cpu_us);
        let figures = Figures {
            msgs_per_s: middle(&ours, |round| round.burst.run.per_second()),
            socketio_msgs_per_s: middle(&theirs, |round| round.burst.run.per_second()),
            ratio: rounded(cpu(&theirs) / cpu(&ours)),
            cpu_us_per_msg: cpu(&ours),
            socketio_cpu_us_per_msg: cpu(&theirs),
            p50_ms: middle(&ours, |round| round.paced.run.p50_ms),
            p99_ms: middle(&ours, |round| round.paced.run.p99_ms),
            socketio_p50_ms: middle(&theirs, |round| round.paced.run.p50_ms),
            socketio_p99_ms: middle(&theirs, |round| round.paced.run.p99_ms),
            burst_p50_ms: middle(&ours, |round| round.burst.run.p50_ms),
            socketio_burst_p50_ms: middle(&theirs, |round| round.burst.run.p50_ms),
            paced_ratio: rounded(paced_cpu(&theirs) / paced_cpu(&ours)),
            missed: runs().map(|run| run.missed).sum(),
            repeated: runs().map(|run| run.repeated).sum(),
            recovered: killed.asked.saturating_sub(killed.refused),
            clients: self.clients,
            rate: self.rate,
        };
        println!("{}", serde_json::to_string(&figures)?);
        Ok(figures.missed == 0 && figures.repeated == 0)
    }

    async fn round(&self, stage: &Stage, kind: Kind, round: u32) -> anyhow::Result<Round> {
        let server = Server::start(stage, kind, &format!("{}{round}", kind.name())).await?;
        let mut clients = Clients::connect(stage, &[&server], self.clients).await?;
        // What is compiled, allocated or loaded when it is first needed is not what is measured.
        clients.burst(2).await?;
        let burst = measure(&server, clients.burst(self.seconds)).await?;
        let paced = measure(&server, clients.paced(self.seconds, self.rate)).await?;
        self.say(&format!(
            "{} {round}: {:.0} messages/s, {:.2} µs of CPU each; at {}/s p50 {:.1} ms, p99 {:.1} ms",
            kind.name(),
            burst.run.per_second(),
            burst.cpu_us,
            self.rate,
            paced.run.p50_ms,
            paced.run.p99_ms
        ));
        ensure!(kind == Kind::Ours || paced.run.missed == 0, "socket.io lost {} messages", paced.run.missed);
        Ok(Round { burst, paced })
    }

    /// One of two instances is killed in the middle.
    async fn killed(&self, stage: &Stage) -> anyhow::Result<Run> {
        let mut first = Server::start(stage, Kind::Ours, "killed").await?;
        let second = Server::start(stage, Kind::Ours, "survivor").await?;
        let mut clients = Clients::connect(stage, &[&first, &second], self.clients).await?;
        let half = Duration::from_secs(self.seconds.into()) / 2;
        let kill = async {
            tokio::time::sleep(half).await;
            first.kill();
        };
        let (run, ()) = tokio::join!(clients.paced(self.seconds, self.rate), kill);
        let run = run?;
        self.say(&format!(
            "an instance killed: {} of {} messages missed, {} twice, {} of {} clients recovered",
            run.missed,
            run.expected,
            run.repeated,
            run.asked - run.refused,
            run.asked
        ));
        ensure!(run.asked > 0, "no client noticed that its server was killed");
        Ok(run)
    }

    fn say(&self, what: &str) {
        if !self.json {
            eprintln!("{what}");
        }
    }
}

async fn measure(server: &Server, run: impl Future<Output = anyhow::Result<Run>>) -> anyhow::Result<Measured> {
    let before = server.cpu_seconds()?;
    let run = run.await?;
    let cpu_us = (server.cpu_seconds()? - before) * 1e6 / run.count();
    Ok(Measured { run, cpu_us })
}

/// The middle value of all rounds.
fn middle(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> f64 {
    let mut all: Vec<f64> = rounds.iter().map(figure).collect();
    all.sort_by(f64::total_cmp);
    rounded(all.get(all.len() / 2).copied().unwrap_or(0.0))
}
