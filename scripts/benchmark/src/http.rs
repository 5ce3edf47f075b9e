//! `http`: signed orders handed in over HTTP, in bulk and one by one, and jobs read; beside the number of signatures that the
//! same cores could check if they did nothing else.
//!
//! All of it is real: deposits on the chain, the indexer that tells of them, sessions, Postgres, Redis and the process that
//! serves. Whoever asks runs on the same cores too, so that the server could do more than is measured.

use std::num::NonZero;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, ensure};
use chrono::TimeDelta;
use clap::Args;
use devnet::{Market, MarketOptions, Service};
use futures::future::try_join_all;
use indicatif::ProgressBar;
use littoral::api::Api;
use market::abi::{JobSpec, Order};
use market::order::{OrderJson, SpecJson};
use market::{ContentId, clock, db, typed_data};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::figures::{quantile, quotient, rounded};
use crate::people::{self, People};

/// What every job may cost, in wei.
const PRICE: u128 = 1_000_000_000;
/// What is to be done, and what it is to be done with.
const OPERATION: &str = "encrypt";
const INPUT: &[u8] = b"input";
/// How long signatures alone are checked.
const CHECKED_FOR: Duration = Duration::from_secs(3);

/// Options of `http`.
#[derive(Args)]
pub struct Http {
    /// Orders handed in in bulk
    #[arg(long, default_value_t = 40_000)]
    orders: usize,

    /// Orders of a request
    #[arg(long, default_value_t = 1000)]
    bulk: usize,

    /// Orders handed in one by one
    #[arg(long, default_value_t = 10_000)]
    singles: usize,

    /// Jobs read
    #[arg(long, default_value_t = 40_000)]
    reads: usize,

    /// Requesters, who each sign and hand in their share
    #[arg(long, default_value_t = 8)]
    requesters: usize,

    /// Requests under way at once, of single orders and of reads
    #[arg(long, default_value_t = 32)]
    concurrency: usize,

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
    submit_per_s: f64,
    submit_p99_ms: f64,
    read_per_s: f64,
    read_p99_ms: f64,
    signature_limit_per_s: f64,
    ratio_to_limit: f64,
    submit_single_per_s: f64,
    submit_p50_ms: f64,
    read_p50_ms: f64,
    orders: usize,
    /// Jobs in Postgres afterwards: as many as were answered with success.
    stored: usize,
}

/// Orders of one requester, as they are sent.
struct Share {
    api: Api,
    bulk: Vec<Box<RawValue>>,
    singles: Vec<Box<RawValue>>,
    jobs: Vec<B256>,
}

/// How long each of many requests took, and all together.
struct Timed {
    times: Vec<Duration>,
    seconds: f64,
}

impl Http {
    /// Measures; whether every order that was taken is stored.
    pub async fn run(self) -> anyhow::Result<bool> {
        ensure!((1..=1000).contains(&self.bulk), "--bulk: the API takes up to 1000 orders in a request");
        ensure!(self.requesters > 0 && self.concurrency >= self.requesters, "--concurrency: each requester needs one");
        let scratch = tempfile::Builder::new().prefix("littoral-bench").tempdir()?;
        let dir = self.logs.clone().unwrap_or_else(|| scratch.path().to_owned());
        let mut market = Market::servers(MarketOptions { dir, env: no_limits(), ..MarketOptions::default() }).await?;
        let pool = db::connect(&market.endpoints().database_url, 2).await?;
        db::migrate(&pool).await?;
        self.say("funding requesters, and signing their orders");
        let people = people::prepare(&market, self.requesters, 0).await?.with_node(&market, OPERATION).await?;
        market.start_service(Service::Indexer).await?;
        market.start_service(Service::Api).await?;
        people.indexed(&pool).await?;
        let limit = signature_limit(&people)?;
        self.say(&format!("signatures alone: {limit:.0} a second"));
        let shares = self.sign(&market, &people).await?;

        // First, since what a requester has promised so far is added up for every request, not for every order.
        let single = self.submit_singly(&shares).await?;
        let submit_single = quotient(single.times.len(), single.seconds);
        self.say(&format!("one by one: {submit_single:.0} orders a second"));
        let bulk = self.submit_bulk(&shares).await?;
        let submit = quotient(self.each(self.orders) * self.requesters, bulk.seconds);
        self.say(&format!("in bulk: {submit:.0} orders a second"));
        let reads = self.read(&shares).await?;
        let read = quotient(reads.times.len(), reads.seconds);
        self.say(&format!("reads: {read:.0} a second"));

        let orders: usize = shares.iter().map(|share| share.jobs.len()).sum();
        let stored = stored(&pool).await?;
        let figures = Figures {
            submit_per_s: submit.round(),
            submit_p99_ms: rounded(quantile(&single.times, 0.99)?),
            read_per_s: read.round(),
            read_p99_ms: rounded(quantile(&reads.times, 0.99)?),
            signature_limit_per_s: limit.round(),
            ratio_to_limit: rounded(submit / limit),
            submit_single_per_s: submit_single.round(),
            submit_p50_ms: rounded(quantile(&single.times, 0.5)?),
            read_p50_ms: rounded(quantile(&reads.times, 0.5)?),
            orders,
            stored,
        };
        println!("{}", serde_json::to_string(&figures)?);
        Ok(stored == orders)
    }

    /// What each requester has of `all`.
    fn each(&self, all: usize) -> usize {
        all.div_ceil(self.requesters)
    }

    async fn sign(&self, market: &Market, people: &People) -> anyhow::Result<Vec<Share>> {
        let base = market.endpoints().api_url.parse()?;
        let deployment = market::deployment::Deployment::read(&market.deployment().path)?;
        let spec = JobSpec {
            inputCID: ContentId::of(INPUT).to_string(),
            operation: OPERATION.to_owned(),
            params: String::new(),
        };
        let draft = Order {
            maxPrice: PRICE,
            assigner: market.keys().assigner.address(),
            specHash: typed_data::spec_hash(&spec),
            deadline: u64::try_from((clock::now() + TimeDelta::days(1)).timestamp())?,
            challengeWindow: 60,
            ..Order::default()
        };
        let mut shares = Vec::with_capacity(people.requesters.len());
        for signer in &people.requesters {
            let api = Api::new(&base)?.signed_in(signer.clone(), deployment.chain_id);
            let (mut bodies, mut jobs) = (Vec::new(), Vec::new());
            for nonce in (1..).take(self.each(self.orders) + self.each(self.singles)) {
                let order = Order { requester: signer.address(), nonce, ..draft.clone() };
                let job = typed_data::job_id(&order, &people.domain);
                bodies.push(body(&order, &spec, signer, job)?);
                jobs.push(job);
            }
            let bulk = bodies.split_off(self.each(self.singles));
            let together = |bodies: &[Box<RawValue>]| serde_json::value::to_raw_value(&json!({ "jobs": bodies }));
            let bulk = bulk.chunks(self.bulk).map(together).collect::<Result<_, _>>()?;
            shares.push(Share { api, bulk, singles: bodies, jobs });
        }
        let first = shares.first().context("there are no requesters")?;
        let file = market.dir().join("input");
        std::fs::write(&file, INPUT)?;
        let size = u64::try_from(INPUT.len())?;
        first.api.put_blob(&file, ContentId::of(INPUT), size, &ProgressBar::hidden()).await?;
        Ok(shares)
    }

    async fn submit_bulk(&self, shares: &[Share]) -> anyhow::Result<Timed> {
        timed(shares.iter().map(async |share| {
            let mut times = Vec::with_capacity(share.bulk.len());
            for body in &share.bulk {
                let started = Instant::now();
                let answer: Value = share.api.post("lit-compute/jobs/submit/bulk", body).await?;
                times.push(started.elapsed());
                let items = answer.get("jobs").and_then(Value::as_array).context("an answer without jobs")?;
                let refused = items.iter().find(|item| item.get("problem").is_some());
                ensure!(refused.is_none(), "an order was refused: {refused:?}");
            }
            Ok(times)
        }))
        .await
    }

    async fn submit_singly(&self, shares: &[Share]) -> anyhow::Result<Timed> {
        let lanes = self.concurrency / self.requesters;
        timed(shares.iter().flat_map(|share| (0..lanes).map(move |lane| (share, lane))).map(async |(share, lane)| {
            let mut times = Vec::new();
            for body in share.singles.iter().skip(lane).step_by(lanes) {
                let started = Instant::now();
                let _: Value = share.api.post("lit-compute/jobs/submit", body).await?;
                times.push(started.elapsed());
            }
            Ok(times)
        }))
        .await
    }

    async fn read(&self, shares: &[Share]) -> anyhow::Result<Timed> {
        let each = self.reads.div_ceil(self.concurrency);
        timed((0..self.concurrency).zip(shares.iter().cycle()).map(async |(lane, share)| {
            let mut times = Vec::with_capacity(each);
            for job in share.jobs.iter().cycle().skip(lane * each).take(each) {
                let started = Instant::now();
                let _: Value = share.api.get(&format!("lit-compute/jobs/{job}")).await?;
                times.push(started.elapsed());
            }
            Ok(times)
        }))
        .await
    }

    fn say(&self, what: &str) {
        if !self.json {
            eprintln!("{what}");
        }
    }
}

/// Runs all at once.
async fn timed(
    lanes: impl Iterator<Item = impl Future<Output = anyhow::Result<Vec<Duration>>>>,
) -> anyhow::Result<Timed> {
    let started = Instant::now();
    let times = try_join_all(lanes).await?.into_iter().flatten().collect();
    Ok(Timed { times, seconds: started.elapsed().as_secs_f64() })
}

fn body(order: &Order, spec: &JobSpec, signer: &PrivateKeySigner, job: B256) -> anyhow::Result<Box<RawValue>> {
    let signature = alloy::primitives::Bytes::from(signer.sign_hash_sync(&job)?.as_bytes());
    let body = json!({ "order": OrderJson::from(order), "spec": SpecJson::from(spec), "signature": signature });
    Ok(serde_json::value::to_raw_value(&body)?)
}

/// Signatures of orders that all cores check in a second, with their digests.
fn signature_limit(people: &People) -> anyhow::Result<f64> {
    let signer = people.requesters.first().context("there are no requesters")?;
    let order = Order { requester: signer.address(), ..Order::default() };
    let signature = signer.sign_hash_sync(&typed_data::job_id(&order, &people.domain))?.as_bytes();
    let started = Instant::now();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let checked = thread::scope(|scope| {
        let work = || {
            let mut checked = 0_usize;
            while started.elapsed() < CHECKED_FOR {
                let digest = typed_data::job_id(&order, &people.domain);
                checked += usize::from(typed_data::recover(&signature, digest) == Ok(order.requester));
            }
            checked
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum::<usize>()
    });
    ensure!(checked > 0, "a signature is not that of its signer");
    Ok(quotient(checked, started.elapsed().as_secs_f64()))
}

/// Limits are what is measured elsewhere.
fn no_limits() -> Vec<(Service, &'static str, String)> {
    ["RATE_LIMIT_BURST", "NODE_RATE_LIMIT_BURST", "READER_RATE_LIMIT_BURST"]
        .map(|name| (Service::Api, name, "0".to_owned()))
        .to_vec()
}

#[allow(clippy::disallowed_methods)]
async fn stored(pool: &PgPool) -> anyhow::Result<usize> {
    let count: i64 = sqlx::query_scalar("select count(*) from signed_order").fetch_one(pool).await?;
    Ok(usize::try_from(count)?)
}
