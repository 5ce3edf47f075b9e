//! `settle`: many payments to many nodes, vouchers and results mixed.
//!
//! Requesters deposit and sign orders, nodes sign receipts, and half of the channels get a voucher; all of it is written to
//! Postgres as the API writes it. Then the settler starts, and the clock with it. It stops when Postgres says of every channel
//! that it has paid all that it owes, which it says only of what the indexer has seen on the chain.

mod verify;
mod work;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use alloy::primitives::U256;
use anyhow::{bail, ensure};
use clap::Args;
use devnet::{Market, MarketOptions, Service};
use market::{clock, db};
use serde::Serialize;
use sqlx::PgPool;

use crate::figures::{quotient, rounded};
use crate::people::{self, People};

/// Options of `settle`.
#[derive(Args)]
pub struct Settle {
    /// Jobs that are done and to be paid
    #[arg(long, default_value_t = 10_000)]
    payments: usize,

    /// Nodes that did them
    #[arg(long, default_value_t = 100)]
    nodes: usize,

    /// Requesters that pay for them; every second pair of requester and node settles by voucher
    #[arg(long, default_value_t = 20)]
    requesters: usize,

    /// Seconds between two blocks of the chain
    #[arg(long, default_value_t = 1.0)]
    block_time: f64,

    /// Give up after as many seconds
    #[arg(long, default_value_t = 600)]
    limit: u64,

    /// Keep the servers' logs in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,

    /// Print nothing but the JSON object
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    payments: usize,
    nodes: usize,
    vouchers: usize,
    seconds: f64,
    payments_per_s: f64,
    transactions: usize,
    gas_per_payment: f64,
    lost: usize,
    doubled: usize,
    block_time_s: f64,
}

impl Settle {
    /// Measures; whether nothing was lost or doubled.
    pub async fn run(self) -> anyhow::Result<bool> {
        let channels = self.requesters * self.nodes;
        ensure!(channels > 0 && self.payments >= channels, "there must be a payment for every requester and node");
        let scratch = tempfile::Builder::new().prefix("littoral-bench").tempdir()?;
        let dir = self.logs.clone().unwrap_or_else(|| scratch.path().to_owned());
        let mut market = Market::servers(MarketOptions {
            dir,
            block_time: Some(self.block_time),
            env: settler_settings(),
            ..MarketOptions::default()
        })
        .await?;
        let pool = db::connect(&market.endpoints().database_url, 4).await?;
        db::migrate(&pool).await?;
        self.say("funding requesters, and nodes that let the settler redeem");
        let people = people::prepare(&market, self.requesters, self.nodes).await?;
        market.start_service(Service::Indexer).await?;
        self.say(&format!("signing and storing {} jobs", self.payments));
        let work = work::store(&pool, &people, self.payments, clock::now()).await?;
        people.indexed(&pool).await?;

        self.say("settling");
        let started = Instant::now();
        market.start_service(Service::Settler).await?;
        let seconds = self.wait(&pool, &people, started).await?;
        let found = verify::compare(&pool, &market, &people, &work).await?;
        let payments = self.payments;
        let figures = Figures {
            payments,
            nodes: self.nodes,
            vouchers: work.vouchers.len(),
            seconds: rounded(seconds),
            payments_per_s: rounded(quotient(payments, seconds)),
            transactions: found.transactions,
            gas_per_payment: rounded(f64::from(u32::try_from(found.gas / 1000)?) * 1000.0 / quotient(payments, 1.0)),
            lost: found.lost,
            doubled: found.doubled,
            block_time_s: self.block_time,
        };
        println!("{}", serde_json::to_string(&figures)?);
        Ok(figures.lost == 0 && figures.doubled == 0)
    }

    async fn wait(&self, pool: &PgPool, people: &People, started: Instant) -> anyhow::Result<f64> {
        let mut told = Instant::now();
        loop {
            let paid = self.paid(pool, people).await?;
            let took = started.elapsed();
            if paid == self.payments {
                return Ok(took.as_secs_f64());
            }
            if took > Duration::from_secs(self.limit) {
                bail!("after {} s only {paid} of {} jobs are paid", self.limit, self.payments);
            }
            if told.elapsed() > Duration::from_secs(5) {
                self.say(&format!("{paid} of {} paid after {:.0} s", self.payments, took.as_secs_f64()));
                told = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// How many payments Postgres knows of: what all channels have paid. Counting the jobs themselves, as is done at the end,
    /// would take the database's time from what is measured.
    async fn paid(&self, pool: &PgPool, people: &People) -> anyhow::Result<usize> {
        let mut claimed = U256::ZERO;
        let mut db = pool.acquire().await?;
        for requester in &people.requesters {
            let channels = db::voucher::channels_of(&mut db, requester.address()).await?;
            claimed += channels.into_iter().map(|(_, channel)| channel.claimed.0).sum::<U256>();
        }
        Ok(usize::try_from(claimed / U256::from(work::PRICE))?)
    }

    fn say(&self, what: &str) {
        if !self.json {
            eprintln!("{what}");
        }
    }
}

/// Nothing is to be waited for: all of the work is done when the settler starts.
fn settler_settings() -> Vec<(Service, &'static str, String)> {
    let set = |name, value: &str| (Service::Settler, name, value.to_owned());
    vec![set("SETTLER_VOUCHER_GRACE", "0"), set("SETTLER_VOUCHER_WAIT", "2"), set("SETTLER_MAX_PENDING", "16")]
}
