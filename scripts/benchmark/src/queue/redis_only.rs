//! What Redis by itself has to do for a job: be asked for it, and be shown that it is leased and that it is done, by the scripts
//! that the projector uses, with no Postgres in the way. Everything durable is left out, as it is in BullMQ.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Instant;

use alloy::primitives::{Address, B256, keccak256};
use anyhow::ensure;
use chrono::{DateTime, TimeDelta, Utc};
use devnet::Redis;
use market::abi::{JobSpec, Order};
use market::db::job_view::{Completion, Due, JobView, Lease};
use market::db::order::{Rail, Terms};
use market::job::{Fence, JobStatus};
use market::redis::keys::Keys;
use market::redis::{Client, apply, queue};
use market::{Amount, ContentId, clock};

use super::ours::OPERATION;
use crate::figures::quotient;

const REQUESTERS: usize = 20;
/// Jobs that are put in at once.
const BULK: usize = 128;

/// Works off `jobs` jobs, `concurrency` at a time: how many a second.
pub async fn run(redis: &Redis, jobs: usize, concurrency: usize) -> anyhow::Result<f64> {
    let prefix = format!("alone_{:08x}:", rand_like(jobs));
    let client = Client::open(redis.url(), Keys::new(prefix))?;
    let (now, version) = (clock::now(), AtomicI64::new(1));
    let waiting: Vec<JobView> = (0..jobs).map(|n| waiting(n, now)).collect();
    for some in waiting.chunks(BULK) {
        apply::show(&client, version.fetch_add(1, Relaxed), some, now).await?;
    }
    let alone = Alone {
        by_id: waiting.iter().map(|view| (view.job_id, view)).collect(),
        node: Address::repeat_byte(0x4e),
        operations: [OPERATION.to_owned()],
        client,
        version,
    };
    let started = Instant::now();
    let (mut done, mut held) = (0, Vec::new());
    while done < jobs {
        // Results come while other jobs are given out, as from many nodes.
        let (leased, completed) = tokio::try_join!(
            alone.claim(concurrency.div_ceil(2).min(jobs - done - held.len())),
            alone.complete(&held)
        )?;
        done += completed;
        ensure!(!leased.is_empty() || completed > 0, "after {done} of {jobs} jobs Redis suggests none");
        held = leased;
    }
    let rate = quotient(done, started.elapsed().as_secs_f64());
    ensure!(queue::depth(&alone.client).await? == 0, "jobs were left");
    Ok(rate)
}

struct Alone<'a> {
    by_id: HashMap<B256, &'a JobView>,
    node: Address,
    operations: [String; 1],
    client: Client,
    version: AtomicI64,
}

impl Alone<'_> {
    /// Asks for `count` jobs and shows that they are leased, in the order of their ids, as the projector does.
    async fn claim(&self, count: usize) -> anyhow::Result<Vec<JobView>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let (now, start) = (clock::now(), Address::ZERO);
        let mut suggested = queue::suggest(&self.client, self.node, &self.operations, start, count, now).await?;
        suggested.sort_unstable();
        let views = suggested.iter().filter_map(|id| self.by_id.get(id));
        let leased: Vec<JobView> = views.map(|view| leased(view, self.node, now)).collect();
        self.show(&leased, now).await?;
        Ok(leased)
    }

    /// Shows that what was leased is done; how many that is.
    async fn complete(&self, leased: &[JobView]) -> anyhow::Result<usize> {
        if leased.is_empty() {
            return Ok(0);
        }
        let now = clock::now();
        let completed: Vec<JobView> = leased.iter().map(|view| completed(view, self.node, now)).collect();
        self.show(&completed, now).await?;
        Ok(completed.len())
    }

    async fn show(&self, views: &[JobView], now: DateTime<Utc>) -> anyhow::Result<()> {
        Ok(apply::show(&self.client, self.version.fetch_add(1, Relaxed), views, now).await?)
    }
}

/// Names this run.
fn rand_like(jobs: usize) -> u64 {
    clock::now().timestamp_micros().unsigned_abs() ^ u64::try_from(jobs).unwrap_or(0)
}

fn waiting(n: usize, now: DateTime<Utc>) -> JobView {
    let requester = Address::from_word(keccak256(format!("requester {}", n % REQUESTERS)));
    let deadline = now + TimeDelta::days(1);
    JobView {
        job_id: keccak256(format!("job {n}")),
        stored_status: JobStatus::Pending,
        chain_id: Some(31337),
        rail: Some(Rail::Signed),
        order: Order { requester, maxPrice: 1000, nonce: 1, ..Order::default() },
        spec: JobSpec {
            inputCID: ContentId::of(b"input").to_string(),
            operation: OPERATION.to_owned(),
            params: String::new(),
        },
        deadline,
        spec_valid: true,
        terms: Terms::default(),
        listed_at: now,
        announced_at: None,
        opened: None,
        node: None,
        node_id: None,
        order_node_id: None,
        fence: Fence(0),
        attempts: 0,
        not_before: None,
        last_error: None,
        lease: None,
        completion: None,
        due: None,
        settled: None,
        batch: None,
        hold_reason: None,
        cancel_at: None,
        dispute: None,
        resolved_paid: None,
        closed: None,
        is_confirmed: true,
        confirmation: None,
    }
}

fn leased(view: &JobView, node: Address, now: DateTime<Utc>) -> JobView {
    JobView {
        stored_status: JobStatus::Active,
        node: Some(node),
        node_id: Some(node.into_word()),
        fence: Fence(1),
        lease: Some(Lease { node, since: now, expires_at: now + TimeDelta::minutes(1) }),
        ..view.clone()
    }
}

fn completed(view: &JobView, node: Address, now: DateTime<Utc>) -> JobView {
    let (output, price) = (ContentId::of(b"output"), Amount::from(1000_u128));
    JobView {
        stored_status: JobStatus::Completed,
        lease: None,
        completion: Some(Completion {
            node,
            fence: Fence(1),
            output_cid: output.to_string(),
            result_hash: output.digest(),
            price,
            started_at: now,
            completed_at: now,
        }),
        due: Some(Due { amount: price, at: now }),
        ..view.clone()
    }
}
