//! `node run`: claims jobs, does them, and has them acknowledged.

mod accept;
pub mod earnings;
mod guard;
mod held;
pub mod ledger;
pub mod settle;
mod setup;
mod store;
pub mod verify;
mod work;

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, Bytes};
use alloy::signers::local::PrivateKeySigner;
use market::Amount;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::api::{Api, ApiError, Capabilities, ClaimRequest, Heartbeat, HeartbeatRequest, Lease, RegisterRequest};
use crate::args::RunArgs;
use crate::chain::Chain;
use crate::context::Context;
use crate::ops::Operations;
use crate::output::Out;
use accept::Accepted;
use held::{Held, Taken};
use ledger::Ledger;
use store::{Entry, Store};
use work::End;
pub use work::pause_after;

/// How long the API may hold a claim for which there is no work.
const CLAIM_WAIT_SECS: u64 = 20;
/// How long it may take to give jobs back when the time for finishing them is over.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(10);

/// What the operator allows.
#[derive(Debug, Clone)]
struct Limits {
    min_time_left: u64,
    max_input: u64,
    price: Option<Amount>,
    accepted: Accepted,
    concurrency: u32,
    shutdown_timeout: Duration,
    settle_before: u64,
    no_settle: bool,
}

/// A running node.
struct Node {
    api: Api,
    chain: Chain,
    signer: PrivateKeySigner,
    address: Address,
    public_key: Bytes,
    operations: Operations,
    limits: Limits,
    store: Store,
    ledger: Ledger,
    rpc_url: Url,
    held: Held,
    /// No more claims.
    stop: CancellationToken,
    /// No more work.
    abort: CancellationToken,
    out: Out,
}

/// Works until told to stop.
pub async fn run(context: &Context, args: RunArgs) -> anyhow::Result<()> {
    let node = Arc::new(setup::node(context, args).await?);
    let entries = node.store.recover(node.now_unix())?;
    node.forget_undelivered(&entries)?;
    let watching = tokio::spawn(stop_on_signal(Arc::clone(&node), Signals::new()?));
    node.event("started", json!({ "operations": node.operations.names, "concurrency": node.limits.concurrency }));

    node.introduce().await?;
    let jobs = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(usize::try_from(node.limits.concurrency)?));
    for entry in entries {
        Arc::clone(&node).resume(entry, &jobs);
    }
    let beating = tokio::spawn(Arc::clone(&node).beat());
    let guarding = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.guard().await })
    };
    Arc::clone(&node).claim_until_stopped(&jobs, &slots).await;

    jobs.close();
    if tokio::time::timeout(node.limits.shutdown_timeout, jobs.wait()).await.is_err() {
        node.abort.cancel();
        tokio::time::timeout(GIVE_BACK_WITHIN, jobs.wait()).await.ok();
    }
    beating.abort();
    guarding.abort();
    watching.abort();
    node.event("stopped", json!({}));
    Ok(())
}

impl Node {
    /// Tells the API that this node is there, until it believes it: the indexer may not have read the registration yet.
    async fn introduce(&self) -> anyhow::Result<()> {
        let body = RegisterRequest {
            wallet_address: self.address,
            public_key: self.public_key.clone(),
            capabilities: Capabilities {
                max_concurrent_jobs: self.limits.concurrency,
                supported_operations: self.operations.names.clone(),
                min_prices: self.limits.accepted.min_prices(&self.operations.names),
            },
        };
        let mut tries = 1;
        while !self.stop.is_cancelled() {
            match self.api.post::<Value>("lit-compute/nodes/register", &body).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() || is_passing(&error) => {
                    tracing::warn!(node = %self.address, %error, "the API does not take the node yet; trying again");
                }
                Err(error) => return Err(error.into()),
            }
            self.pause(tries).await;
            tries += 1;
        }
        Ok(())
    }

    /// An earlier process signed receipts and stopped before the results were in its journal: the work is done again, under
    /// new receipts.
    fn forget_undelivered(&self, entries: &[Entry]) -> anyhow::Result<()> {
        for earning in self.ledger.earnings.open_ones()? {
            if !entries.iter().any(|entry| entry.job_id == earning.job_id) {
                self.ledger.withheld(earning.job_id)?;
            }
        }
        Ok(())
    }

    /// Sends again what an earlier process could not.
    fn resume(self: Arc<Self>, entry: Entry, jobs: &TaskTracker) {
        let Some(lost) = self.held.insert(entry.lease(), market::clock::now()) else { return };
        jobs.spawn(async move {
            tracing::info!(job_id = %entry.job_id, "sending a result again");
            let end = self.deliver(&entry, &lost).await;
            self.tell(entry.job_id, &end);
            if let Some(taken) = self.held.release(entry.job_id, !matches!(end, End::Lost(_))) {
                self.work_through(taken).await;
            }
        });
    }

    /// Takes jobs while there is room. One claim at a time: the API gives a lease again whose answer was lost, and knows
    /// which by what this node says that it holds.
    async fn claim_until_stopped(self: Arc<Self>, jobs: &TaskTracker, slots: &Arc<Semaphore>) {
        let mut failures = 0;
        loop {
            let slot = tokio::select! {
                slot = Arc::clone(slots).acquire_owned() => slot,
                () = self.stop.cancelled() => return,
            };
            // The semaphore is never closed.
            let Ok(slot) = slot else { return };
            let claimed = tokio::select! {
                claimed = self.claim() => claimed,
                () = self.stop.cancelled() => return,
            };
            match claimed {
                Ok(Some(lease)) => {
                    failures = 0;
                    let node = Arc::clone(&self);
                    jobs.spawn(async move {
                        node.take(lease).await;
                        drop(slot);
                    });
                }
                Ok(None) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(node = %self.address, %error, "cannot claim; trying again");
                    if matches!(error.code(), "profile_missing") {
                        self.introduce().await.unwrap_or_else(|error| tracing::warn!(%error, "cannot register"));
                    }
                    self.pause(failures).await;
                }
            }
        }
    }

    async fn claim(&self) -> Result<Option<Lease>, ApiError> {
        let body = ClaimRequest { wait_secs: CLAIM_WAIT_SECS, leases: self.held.list() };
        self.api.poll("lit-compute/jobs/claim", &body, Duration::from_secs(CLAIM_WAIT_SECS + 15)).await
    }

    async fn take(&self, lease: Lease) {
        if let Some(taken) = self.held.take(lease) {
            self.work_through(taken).await;
        }
    }

    /// Works on a lease, and on the next one if that is lost and the job comes back.
    async fn work_through(&self, first: Taken) {
        let mut next = Some(first);
        while let Some((lease, lost)) = next {
            let about = json!({ "jobId": lease.job_id, "fence": lease.fence, "operation": lease.spec.operation });
            self.event("claimed", about);
            let end = self.work(&lease, &lost).await;
            self.tell(lease.job_id, &end);
            next = self.held.release(lease.job_id, !matches!(end, End::Lost(_)));
        }
    }

    /// Heartbeats, which also renew all leases.
    async fn beat(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let body = HeartbeatRequest { leases: self.held.list() };
            match self.api.post::<Heartbeat>("lit-compute/nodes/heartbeat", &body).await {
                Ok(heartbeat) => {
                    failures = 0;
                    for (job_id, reason) in self.held.update(&heartbeat) {
                        tracing::warn!(%job_id, reason, "the lease is lost");
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(node = %self.address, %error, "the heartbeat failed");
                }
            }
            let wait = self.held.next_heartbeat(market::clock::now());
            let wait = if failures > 0 { wait.min(pause_after(failures)) } else { wait };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.held.changed() => {}
            }
        }
    }

    /// Waits longer the more attempts have failed, but not beyond the order to stop.
    async fn pause(&self, failures: u32) {
        tokio::select! {
            () = tokio::time::sleep(pause_after(failures)) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Unix seconds.
    fn now_unix(&self) -> u64 {
        u64::try_from(market::clock::now().timestamp()).unwrap_or(0)
    }

    fn tell(&self, job_id: alloy::primitives::B256, end: &End) {
        match end {
            End::Completed(done) => {
                self.event("completed", json!({ "jobId": job_id, "outputCID": done.output_cid, "price": done.price }));
            }
            End::Failed { reason, retryable } => {
                self.event("failed", json!({ "jobId": job_id, "reason": reason, "retryable": retryable }));
            }
            End::Lost(reason) => self.event("lost", json!({ "jobId": job_id, "reason": reason })),
            End::Stopped => self.event("kept", json!({ "jobId": job_id })),
        }
    }

    /// What happened: a line of the log, and with `--json` an object on standard output.
    fn event(&self, event: &'static str, about: Value) {
        tracing::info!(node = %self.address, %about, "{event}");
        if !self.out.is_json() {
            return;
        }
        let mut value = json!({ "event": event, "at": market::clock::now(), "node": self.address.to_checksum(None) });
        if let (Value::Object(all), Value::Object(about)) = (&mut value, about) {
            all.extend(about);
        }
        if let Err(error) = self.out.result(&value, String::new) {
            tracing::warn!(%error, "cannot write to standard output");
        }
    }
}

/// Refusals that end by themselves: the indexer lags behind, or the stake is on its way.
fn is_passing(error: &ApiError) -> bool {
    matches!(error.code(), "node_not_registered" | "insufficient_stake" | "public_key_mismatch")
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The first signal lets jobs under way finish, the second gives them back.
async fn stop_on_signal(node: Arc<Node>, mut signals: Signals) {
    signals.next().await;
    tracing::info!(node = %node.address, "stopping: no more claims");
    node.stop.cancel();
    signals.next().await;
    tracing::info!(node = %node.address, "stopping at once: jobs under way are given back");
    node.abort.cancel();
}
