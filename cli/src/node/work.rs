//! One job, from its lease to its acknowledged result.
//!
//! Killed at any moment, a node loses nothing: before the result is in the journal, the API gives the lease to the node
//! again and the work is redone; afterwards the result is sent again from the journal, under the same lease if it still
//! holds and otherwise under the next one.

use std::time::Duration;

use alloy::primitives::B256;
use alloy::signers::SignerSync;
use market::abi::Order;
use market::job::Fence;
use market::{Amount, ContentId, typed_data};
use tokio_util::sync::CancellationToken;

use super::earnings::Earning;
use super::store::{Entry, JobDir};
use super::{Node, verify};
use crate::api::{ApiError, Assigned, CompleteRequest, Completed, FailRequest, Lease};
use crate::error::Failure;
use crate::ops::{OpError, Output, Task};

/// How often an input is asked for before the job is given back.
const FETCH_TRIES: u32 = 5;
/// Longest reason that is sent.
const MAX_REASON: usize = 1_000;

/// How the work on a lease ended.
#[derive(Debug)]
pub enum End {
    /// The API has the result.
    Completed(CompleteRequest),
    /// The API was told that the job cannot be done, or not now.
    Failed {
        /// What it was told.
        reason: String,
        /// Whether another attempt may succeed.
        retryable: bool,
    },
    /// The lease is somebody else's, or nobody's. A result that was made stays in the journal until its deadline.
    Lost(String),
    /// The node stops. A result that was made stays in the journal.
    Stopped,
}

/// Why there is no result.
enum Stop {
    /// To be reported to the API.
    Fail { reason: String, retryable: bool },
    /// The lease was lost or the node stops.
    Cancelled,
}

impl Node {
    /// Works on a lease. `lost` is cancelled when the lease is.
    pub async fn work(&self, lease: &Lease, lost: &CancellationToken) -> End {
        let job_id = lease.job_id;
        let made = match self.store.entry(job_id) {
            // Done before, under a lease that ended before the result arrived.
            Some(entry) => Ok(entry),
            None => {
                let cancel = self.abort.child_token();
                let work = self.make(lease, &cancel);
                tokio::select! {
                    made = work => made,
                    () = lost.cancelled() => { cancel.cancel(); Err(Stop::Cancelled) }
                    () = self.abort.cancelled() => Err(Stop::Cancelled),
                }
            }
        };
        let (reason, retryable) = match made {
            Ok(entry) => return self.deliver(&entry, lost).await,
            Err(Stop::Cancelled) if lost.is_cancelled() => {
                self.clean(job_id);
                return End::Lost("the API gave it up".into());
            }
            Err(Stop::Cancelled) => ("the node is stopping".to_owned(), true),
            Err(Stop::Fail { reason, retryable }) => (reason, retryable),
        };
        self.clean(job_id);
        self.give_back(job_id, reason, retryable).await
    }

    /// Makes the result and records it.
    async fn make(&self, lease: &Lease, cancel: &CancellationToken) -> Result<Entry, Stop> {
        let now = self.now_unix();
        let refused = |refusal: verify::Refusal| Stop::Fail { reason: refusal.0, retryable: true };
        let order = verify::lease(lease, self.address, &self.chain.domain(), now).map_err(refused)?;
        // This node will not change its mind; of an open order, other nodes are asked still.
        let declined = |refusal: verify::Refusal| Stop::Fail { reason: refusal.0, retryable: false };
        self.limits.accepted.check(&order).map_err(declined)?;
        let asked = verify::Asked {
            job_id: lease.job_id,
            order: &order,
            signature: lease.signature.as_ref().map(AsRef::as_ref),
            me: self.address,
            now,
            margin: self.limits.min_time_left,
        };
        verify::escrow(&self.chain, &asked).await.map_err(refused)?;
        let _promise = match &lease.signature {
            Some(_) => Some(self.ledger.promise(lease.job_id, &order).await.map_err(refused)?),
            None => None,
        };

        let dir = self.store.begin(lease.job_id).map_err(machine)?;
        self.fetch(&lease.spec.input_cid, &dir).await?;
        let (input, output, scratch) = (dir.input(), dir.output(), dir.scratch());
        let task = Task {
            job_id: lease.job_id,
            operation: &lease.spec.operation,
            params: &lease.spec.params,
            input: &input,
            output: &output,
            scratch: &scratch,
            cancel,
        };
        let output = self.operations.run(task).await.map_err(|error| match error {
            OpError::Cancelled => Stop::Cancelled,
            error => Stop::Fail { retryable: error.is_retryable(), reason: error.to_string() },
        })?;
        let entry = self.sign(lease, &order, output)?;
        // What the receipt is worth comes first: a result that is delivered and cannot be settled would be given away.
        self.ledger.earned(&self.earning(lease, &entry)).map_err(machine)?;
        self.store.record(&entry).map_err(machine)?;
        Ok(entry)
    }

    /// The input, to its file.
    async fn fetch(&self, cid: &str, dir: &JobDir) -> Result<(), Stop> {
        let cid: ContentId =
            cid.parse().map_err(|error| Stop::Fail { reason: format!("spec.inputCID {error}"), retryable: false })?;
        let mut tries = 1;
        loop {
            let file = tokio::fs::File::create(dir.input()).await.map_err(machine)?;
            let bar = indicatif::ProgressBar::hidden();
            match self.api.get_blob(cid, file, self.limits.max_input, &bar).await {
                Ok(_) => return Ok(()),
                Err(error) if tries < FETCH_TRIES && is_worth_retrying(&error) => {
                    tokio::time::sleep(pause_after(tries)).await;
                    tries += 1;
                }
                Err(error) => {
                    return Err(Stop::Fail { reason: format!("cannot fetch the input: {error:#}"), retryable: true });
                }
            }
        }
    }

    /// Signs the receipt.
    fn sign(&self, lease: &Lease, order: &Order, output: Output) -> Result<Entry, Stop> {
        let asked = self.limits.price.and_then(|price| price.to_u128().ok()).unwrap_or(u128::MAX);
        let price = order.maxPrice.min(asked);
        let result_hash = output.cid.digest();
        let digest = typed_data::receipt_digest(lease.job_id, price, result_hash, &self.chain.domain());
        let signature = self.signer.sign_hash_sync(&digest).map_err(machine)?;
        let completion = CompleteRequest {
            fence: lease.fence,
            output_cid: output.cid,
            price: Amount::from(price),
            result_hash,
            receipt_signature: signature.as_bytes().into(),
        };
        Ok(Entry { job_id: lease.job_id, deadline: order.deadline, size: output.size, completion })
    }

    /// What the node has to show for the result.
    fn earning(&self, lease: &Lease, entry: &Entry) -> Earning {
        Earning {
            job_id: lease.job_id,
            order: lease.order.clone(),
            spec: lease.spec.clone(),
            order_signature: lease.signature.clone(),
            assignment: lease.assignment.clone(),
            price: entry.completion.price,
            result_hash: entry.completion.result_hash,
            output_cid: entry.completion.output_cid,
            receipt_signature: entry.completion.receipt_signature.clone(),
            signed_at: market::clock::now(),
            acknowledged_at: None,
        }
    }

    /// Stores the output and completes the job, again and again until the API has said yes or no.
    pub async fn deliver(&self, entry: &Entry, lost: &CancellationToken) -> End {
        let mut tries = 1;
        loop {
            if entry.deadline < self.now_unix() {
                self.withhold(entry.job_id);
                return End::Lost("its deadline passed before the result arrived".into());
            }
            if is_late(entry.deadline, self.now_unix(), self.limits.min_time_left) {
                self.withhold(entry.job_id);
                let reason = format!(
                    "the result is withheld: fewer than {} seconds are left to the deadline, in which it might not be paid",
                    self.limits.min_time_left
                );
                return self.give_back(entry.job_id, reason, false).await;
            }
            let sent_under = self.held.fence(entry.job_id).unwrap_or(entry.completion.fence);
            let sent = tokio::select! {
                sent = self.send(entry, sent_under) => sent,
                () = lost.cancelled() => return End::Lost("the API gave it up".into()),
                () = self.abort.cancelled() => return End::Stopped,
            };
            let error = match sent {
                Ok((completion, assignment)) => {
                    // Before the journal goes: it is what brings this about again after a crash.
                    if let Err(error) = self.ledger.acknowledged(entry.job_id, assignment) {
                        tracing::error!(job_id = %entry.job_id, error = format!("{error:#}"), "the earning is not kept");
                    }
                    self.clean(entry.job_id);
                    return End::Completed(completion);
                }
                Err(error) => error,
            };
            match verdict(&error) {
                Verdict::Again => {
                    tracing::warn!(job_id = %entry.job_id, error = %error, "the result did not arrive; trying again")
                }
                // Held again, under a lease that came while this was under way.
                Verdict::Later if self.held.fence(entry.job_id).is_some_and(|fence| fence > sent_under) => {}
                Verdict::Later => return End::Lost(error.to_string()),
                Verdict::Never => {
                    self.withhold(entry.job_id);
                    return End::Lost(error.to_string());
                }
                Verdict::Refused => {
                    self.withhold(entry.job_id);
                    return self.give_back(entry.job_id, format!("the API refuses the result: {error}"), true).await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause_after(tries)) => tries += 1,
                () = self.abort.cancelled() => return End::Stopped,
            }
        }
    }

    async fn send(&self, entry: &Entry, fence: Fence) -> anyhow::Result<(CompleteRequest, Option<Assigned>)> {
        let completion = CompleteRequest { fence, ..entry.completion.clone() };
        let output = self.store.dir(entry.job_id).output();
        let bar = indicatif::ProgressBar::hidden();
        self.api.put_blob(&output, completion.output_cid, entry.size, &bar).await?;
        let path = format!("lit-compute/jobs/{}/complete", entry.job_id);
        let completed: Completed = self.api.post(&path, &completion).await?;
        Ok((completion, completed.assignment))
    }

    /// Tells the API that the job is not done.
    async fn give_back(&self, job_id: B256, reason: String, retryable: bool) -> End {
        let Some(fence) = self.held.fence(job_id) else { return End::Lost(reason) };
        let body = FailRequest { fence, reason: shorten(&reason), retryable };
        let path = format!("lit-compute/jobs/{job_id}/fail");
        // Not for ever: an unreachable API takes the lease back by itself.
        for tries in 1..=3 {
            match self.api.post::<serde_json::Value>(&path, &body).await {
                Ok(_) => return End::Failed { reason, retryable },
                Err(error) if error.is_transient() => tokio::time::sleep(pause_after(tries)).await,
                Err(error) => return End::Lost(format!("{reason} (and the API does not want to know: {error})")),
            }
        }
        End::Lost(format!("{reason} (and the API does not answer)"))
    }

    /// The result is not handed out: nothing is to be asked for it.
    fn withhold(&self, job_id: B256) {
        if let Err(error) = self.ledger.withheld(job_id) {
            tracing::warn!(%job_id, error = format!("{error:#}"), "cannot forget the earning of a result that was withheld");
        }
        self.clean(job_id);
    }

    /// Removes the job's files. What stays costs space only, and goes at the next start.
    fn clean(&self, job_id: B256) {
        if let Err(error) = self.store.remove(job_id) {
            tracing::warn!(%job_id, %error, "cannot remove the job's files");
        }
    }
}

/// Whether a result could reach the requester but not the chain in time: they would have both the work and the money.
/// All in seconds.
fn is_late(deadline: u64, now: u64, margin: u64) -> bool {
    deadline < now.saturating_add(margin)
}

/// What follows from a refused result.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The API or the network is at fault: send it again.
    Again,
    /// The lease ended. The result counts under the next one.
    Later,
    /// The job ended.
    Never,
    /// Something is wrong with the result.
    Refused,
}

fn verdict(error: &anyhow::Error) -> Verdict {
    let Some(error) = error.downcast_ref::<ApiError>() else {
        return if error.downcast_ref::<Failure>().is_some() { Verdict::Refused } else { Verdict::Again };
    };
    match error.code() {
        "stale_fence" | "lease_expired" | "not_leased" | "not_holder" => Verdict::Later,
        "job_ended" | "deadline_passed" | "order_expired" | "job_not_found" => Verdict::Never,
        // Stored again at every attempt.
        "output_unknown" => Verdict::Again,
        // The indexer may see the escrow again after a reorg.
        "not_open" => Verdict::Later,
        _ if error.is_transient() || matches!(error, ApiError::Malformed { .. }) => Verdict::Again,
        _ => Verdict::Refused,
    }
}

/// An input that is too long stays so; one that came damaged may come whole.
fn is_worth_retrying(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ApiError>() {
        Some(error) => error.is_transient(),
        None => error.downcast_ref::<Failure>().is_some_and(|failure| matches!(failure, Failure::Timeout(_))),
    }
}

/// This machine's fault: another node may do better.
fn machine(error: impl std::fmt::Display) -> Stop {
    Stop::Fail { reason: format!("the node failed: {error}"), retryable: true }
}

fn shorten(reason: &str) -> String {
    reason.chars().take(MAX_REASON).collect()
}

/// Pause after the `tries`-th attempt: 0.5, 1, 2, … up to 15 s.
pub fn pause_after(tries: u32) -> Duration {
    Duration::from_millis(500).saturating_mul(1 << tries.saturating_sub(1).min(10)).min(Duration::from_secs(15))
}

#[cfg(test)]
mod tests {
    use reqwest::{Method, StatusCode};

    use super::*;
    use crate::api::Problem;

    fn refused(status: u16, code: &str) -> anyhow::Error {
        let problem = Box::new(Problem { code: Some(code.to_owned()), ..Problem::default() });
        let status = StatusCode::from_u16(status).unwrap();
        ApiError::Refused { method: Method::POST, path: String::new(), status, problem }.into()
    }

    #[test]
    fn a_refused_result_is_sent_again_kept_or_dropped_as_the_reason_asks() {
        assert_eq!(verdict(&refused(503, "unavailable")), Verdict::Again);
        assert_eq!(verdict(&refused(422, "output_unknown")), Verdict::Again);
        assert_eq!(verdict(&refused(409, "stale_fence")), Verdict::Later);
        assert_eq!(verdict(&refused(403, "not_holder")), Verdict::Later);
        assert_eq!(verdict(&refused(409, "job_ended")), Verdict::Never);
        assert_eq!(verdict(&refused(422, "bad_receipt_signature")), Verdict::Refused);
        assert_eq!(verdict(&std::io::Error::other("disk").into()), Verdict::Again);
    }

    #[test]
    fn a_result_is_withheld_when_less_than_the_margin_is_left() {
        assert!(!is_late(1_030, 1_000, 30));
        assert!(is_late(1_029, 1_000, 30));
        assert!(!is_late(1_000, 1_000, 0));
        assert!(is_late(u64::MAX - 1, 1_000, u64::MAX));
    }

    #[test]
    fn pauses_grow_and_stop_growing() {
        let secs: Vec<f64> = [1, 2, 3, 6, 7, 100].map(|tries| pause_after(tries).as_secs_f64()).into();
        assert_eq!(secs, [0.5, 1.0, 2.0, 15.0, 15.0, 15.0]);
    }
}
