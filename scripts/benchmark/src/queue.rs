//! `queue`: what the queue can do, beside BullMQ on the same Redis, one after the other in turns.
//!
//! Ours is driven as the HTTP handlers drive it, without HTTP and without the check of the order's signature (`bench http` has
//! those): orders that requesters signed beforehand are kept, nodes claim and hand results in with receipts that are checked, and
//! every answer is durable in Postgres. Redis is kept up meanwhile, as always. BullMQ's worker does nothing with its jobs.

mod bullmq;
mod ours;
mod pending;
mod redis_only;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use devnet::{Postgres, Redis, RedisOptions};
use serde::Serialize;

use crate::figures::{quantile, rounded};
use bullmq::BullMq;
use ours::Ours;

/// Options of `queue`.
#[derive(Args)]
pub struct Queue {
    /// Jobs in each turn
    #[arg(long, default_value_t = 5000)]
    jobs: usize,

    /// Turns of each
    #[arg(long, default_value_t = 3)]
    turns: usize,

    /// Jobs that are worked on at once
    #[arg(long, default_value_t = 50)]
    concurrency: usize,

    /// Jobs in the hands of nodes while assignments are timed
    #[arg(long, default_value_t = 1000)]
    held: usize,

    /// Assignments that are timed
    #[arg(long, default_value_t = 1000)]
    samples: usize,

    /// Jobs that wait while claims are counted, the second time
    #[arg(long, default_value_t = 1_000_000)]
    pending: usize,

    /// Keep the servers' logs in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,

    /// Print nothing but the JSON object
    #[arg(long)]
    json: bool,
}

/// What was measured. Rates are those of the best turn.
#[derive(Debug, Serialize)]
struct Figures {
    submit_per_s: f64,
    claim_complete_per_s: f64,
    redis_only_per_s: f64,
    bullmq_add_per_s: f64,
    bullmq_process_per_s: f64,
    ratio_submit: f64,
    ratio_process: f64,
    ratio_redis_only: f64,
    assign_p50_ms: f64,
    assign_p99_ms: f64,
    bullmq_assign_p99_ms: f64,
    claim_rate_1k_pending: f64,
    claim_rate_1m_pending: f64,
    jobs: usize,
    concurrency: usize,
    pending: usize,
}

impl Queue {
    /// Measures; whether nothing was lost, without which it is an error.
    pub async fn run(self) -> anyhow::Result<bool> {
        let scratch = tempfile::Builder::new().prefix("littoral-bench").tempdir()?;
        let dir = self.logs.clone().unwrap_or_else(|| scratch.path().to_owned());
        let postgres = Postgres::start(&dir.join("postgres"), None).await?;
        let options = RedisOptions { dir: Some(dir.join("redis")), persistent: true, ..RedisOptions::default() };
        let redis = Redis::start(options).await?;
        let mut theirs = BullMq::start(redis.url(), &dir).await?;

        let [mut submit, mut process, mut redis_only, mut add, mut their_process] = [0_f64; 5];
        for turn in 1..=self.turns {
            self.say(&format!("turn {turn} of {}", self.turns));
            let ours = Ours::start(&postgres, &redis, &format!("turn_{turn}"), self.jobs, dir.join("blobs")).await?;
            submit = submit.max(ours.submit().await?);
            process = process.max(ours.work(self.concurrency).await?);
            ours.stop().await;
            let done = theirs.run(self.jobs, self.concurrency).await?;
            (add, their_process) = (add.max(done.add_per_s), their_process.max(done.process_per_s));
            redis_only = redis_only.max(redis_only::run(&redis, self.jobs, self.concurrency).await?);
            self.say(&format!(
                "  ours {submit:.0} and {process:.0} a second, Redis alone {redis_only:.0}, BullMQ {add:.0} and {their_process:.0}"
            ));
        }
        self.say("timing assignments");
        let ours = Ours::start(&postgres, &redis, "assign", self.held + self.samples, dir.join("blobs")).await?;
        let times = ours.assign(self.held, self.samples, Duration::from_millis(10)).await?;
        ours.stop().await;
        let their_times = theirs.assign(self.held, self.samples, Duration::from_millis(10)).await?;
        theirs.stop();

        let mut rates = Vec::new();
        for count in [1000, self.pending] {
            self.say(&format!("counting claims with {count} jobs pending"));
            rates.push(pending::claim_rate(&postgres, &redis, count, dir.join("blobs")).await?);
        }
        let figures = Figures {
            submit_per_s: submit.round(),
            claim_complete_per_s: process.round(),
            redis_only_per_s: redis_only.round(),
            bullmq_add_per_s: add.round(),
            bullmq_process_per_s: their_process.round(),
            ratio_submit: rounded(submit / add),
            ratio_process: rounded(process / their_process),
            ratio_redis_only: rounded(redis_only / their_process),
            assign_p50_ms: rounded(quantile(&times, 0.5)?),
            assign_p99_ms: rounded(quantile(&times, 0.99)?),
            bullmq_assign_p99_ms: rounded(their_times),
            claim_rate_1k_pending: rates.first().copied().unwrap_or_default().round(),
            claim_rate_1m_pending: rates.last().copied().unwrap_or_default().round(),
            jobs: self.jobs,
            concurrency: self.concurrency,
            pending: self.pending,
        };
        println!("{}", serde_json::to_string(&figures)?);
        Ok(true)
    }

    fn say(&self, what: &str) {
        if !self.json {
            eprintln!("{what}");
        }
    }
}
