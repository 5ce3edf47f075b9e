//! `watch`: a job's statuses as they come, and a voucher for the node once it has delivered.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256};
use anyhow::Context as _;
use futures::{StreamExt, stream};
use market::db::order::Rail;
use market::job::JobStatus;
use serde_json::json;

use super::voucher;
use crate::api::{Api, ApiError, Job};
use crate::args::{SigningArgs, WatchArgs};
use crate::context::{Context, token_name};
use crate::countersign::{Countersigner, mark};
use crate::error::Failure;
use crate::records::Verdict;

const POLL: Duration = Duration::from_millis(400);
const SLOWEST_POLL: Duration = Duration::from_secs(4);
/// Jobs that are followed at once.
const AT_ONCE: usize = 64;

/// Prints each status; ends when the job does.
pub async fn watch(context: &Context, args: &WatchArgs) -> anyhow::Result<()> {
    let api = context.api()?;
    withhold(context, args.job, &args.signing)?;
    let signing = Signing::Lazily(&args.signing);
    let following = follow(context, &api, args.job, Until::Ended, &signing);
    match args.timeout {
        None => following.await,
        Some(secs) => tokio::time::timeout(Duration::from_secs(secs), following).await.unwrap_or_else(|_| {
            Err(Failure::Timeout(format!("job {} has not ended within {secs} s", args.job)).into())
        }),
    }
}

/// Prints the statuses of all jobs until each has delivered; fails as the first that did not.
pub async fn follow_all(
    context: &Context,
    jobs: &[B256],
    countersigner: Option<&Countersigner<'_>>,
) -> anyhow::Result<()> {
    let api = context.api()?;
    let signing = Signing::With(countersigner);
    let following = stream::iter(jobs).map(|job| follow(context, &api, *job, Until::Delivered, &signing));
    let ends: Vec<anyhow::Result<()>> = following.buffer_unordered(AT_ONCE).collect().await;
    ends.into_iter().collect()
}

/// Notes that the user wants no voucher for the job, if that was said.
pub fn withhold(context: &Context, job_id: B256, signing: &SigningArgs) -> anyhow::Result<()> {
    if !signing.no_voucher || !context.has_signer() {
        return Ok(());
    }
    let records = context.records(&context.deployment()?, context.signer()?.address())?;
    mark(&records, job_id, Verdict::Withheld, None)
}

/// Countersigns for `node` after it has delivered the job, if the acting account signed its order.
pub async fn countersign(context: &Context, signing: &SigningArgs, job_id: B256, node: Address) -> anyhow::Result<()> {
    if signing.no_voucher || !context.has_signer() || !context.has_chain() {
        return Ok(());
    }
    let records = context.records(&context.deployment()?, context.signer()?.address())?;
    if records.order(job_id)?.is_none_or(|record| record.signature.is_none()) {
        return Ok(());
    }
    match Countersigner::new(context, signing.session).await {
        Ok(countersigner) => countersign_with(context, &countersigner, job_id, node).await,
        Err(error) => {
            context.out.note(&format!("No voucher for job {job_id}: {error:#}"));
            Ok(())
        }
    }
}

async fn countersign_with(
    context: &Context,
    countersigner: &Countersigner<'_>,
    job_id: B256,
    node: Address,
) -> anyhow::Result<()> {
    let Some(done) = countersigner.after(job_id, node).await else { return Ok(()) };
    let token = countersigner.records().order(job_id)?.map(|record| record.order.token).unwrap_or_default();
    match done.entry() {
        Some(entry) => voucher::report(context, node, token, entry, &token_name(token, &context.deployment()?)),
        None => Ok(()),
    }
}

/// What a job is followed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Nothing will happen to it any more.
    Ended,
    /// Its result is there.
    Delivered,
}

/// Who countersigns.
enum Signing<'a> {
    /// Whoever the command line says, once there is something to sign.
    Lazily(&'a SigningArgs),
    /// Somebody who is ready, or nobody.
    With(Option<&'a Countersigner<'a>>),
}

async fn follow(context: &Context, api: &Api, job_id: B256, until: Until, signing: &Signing<'_>) -> anyhow::Result<()> {
    let path = format!("lit-compute/jobs/{job_id}");
    let started = Instant::now();
    let mut last: Option<JobStatus> = None;
    let mut pause = POLL;
    let mut is_down = false;
    let mut is_signed = false;
    loop {
        match api.get::<Job>(&path).await {
            Ok(job) => {
                is_down = false;
                pause = POLL;
                if last != Some(job.status) {
                    last = Some(job.status);
                    print(context, &job, started)?;
                }
                if let Some(node) = job.node.filter(|_| has_delivered(job.status) && !is_signed) {
                    is_signed = true;
                    match signing {
                        Signing::Lazily(args) => countersign(context, args, job_id, node).await?,
                        Signing::With(Some(countersigner)) => {
                            countersign_with(context, countersigner, job_id, node).await?;
                        }
                        Signing::With(None) => {}
                    }
                }
                if let Some(end) = ending(&job, until) {
                    return end;
                }
            }
            Err(error) if error.is_transient() => {
                if !is_down {
                    context.out.note(&format!("{error}; still trying"));
                }
                is_down = true;
                pause = (pause * 2).min(SLOWEST_POLL);
            }
            Err(error @ ApiError::Refused { .. }) => {
                return Err(error).with_context(|| format!("cannot watch job {job_id}"));
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Whether a result is there and its node waits for its money.
fn has_delivered(status: JobStatus) -> bool {
    matches!(status, JobStatus::Completed | JobStatus::Settling | JobStatus::Challengeable)
}

/// How the command ends if the job has ended.
fn ending(job: &Job, until: Until) -> Option<anyhow::Result<()>> {
    let reason = job.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match job.status {
        JobStatus::Paid | JobStatus::Resolved => Some(Ok(())),
        status if until == Until::Delivered && has_delivered(status) => Some(Ok(())),
        JobStatus::Cancelled => {
            Some(Err(Failure::JobFailed(format!("job {} was cancelled{reason}", job.job_id)).into()))
        }
        JobStatus::Failed => Some(Err(Failure::JobFailed(format!("job {} failed{reason}", job.job_id)).into())),
        // What is signed locks nothing.
        JobStatus::Expired if job.rail == Some(Rail::Signed) => {
            Some(Err(Failure::JobFailed(format!("job {} expired{reason}", job.job_id)).into()))
        }
        JobStatus::Expired => Some(Err(Failure::JobFailed(format!(
            "job {} expired{reason}; take the money back: littoral refund {}",
            job.job_id, job.job_id
        ))
        .into())),
        JobStatus::Refunded => Some(Err(Failure::Refunded(format!("job {} was refunded{reason}", job.job_id)).into())),
        _ => None,
    }
}

fn print(context: &Context, job: &Job, started: Instant) -> anyhow::Result<()> {
    let now = market::clock::now();
    let seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    let value = json!({
        "jobId": job.job_id, "status": job.status, "at": now, "seconds": seconds,
        "node": job.node.map(|node| node.to_checksum(None)), "outputCID": job.output_cid, "price": job.price,
        "lastError": job.last_error, "submittedTx": job.submitted_tx, "closedTx": job.closed_tx,
        "confirmation": job.confirmation,
    });
    context.out.result(&value, || {
        let more = match job.status {
            JobStatus::Active => job.node.map(|node| format!("by {node}")),
            JobStatus::Completed => job.output_cid.map(|cid| format!("output {cid}")),
            JobStatus::Settling => job.confirmation.filter(|_| job.closed_tx.is_some()).map(|seen| seen.to_string()),
            JobStatus::Challengeable => job.finalize_at.map(|at| format!("until {at}")),
            JobStatus::Paid | JobStatus::Refunded => job.closed_tx.map(|tx| format!("in {tx}")),
            JobStatus::Pending | JobStatus::Failed => job.last_error.clone(),
            _ => None,
        };
        let time = now.format("%H:%M:%S%.3f");
        format!("{time}  {:<16} {}", job.status.name(), more.unwrap_or_default()).trim_end().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Exit, exit_of};

    #[test]
    fn the_ends_of_a_job_have_exit_codes_of_their_own() {
        let json = serde_json::json!({
            "jobId": market::B256::ZERO, "status": "pending",
            "order": market::order::OrderJson::from(&market::abi::Order::default()),
            "spec": { "inputCID": "", "operation": "", "params": "" }, "lastError": "no such luck",
        });
        let mut job: Job = serde_json::from_value(json).unwrap();
        for status in JobStatus::ALL {
            job.status = status;
            let exit = match ending(&job, Until::Ended) {
                None => None,
                Some(Ok(())) => Some(Exit::Ok),
                Some(Err(error)) => {
                    assert!(error.to_string().contains("no such luck"));
                    Some(exit_of(&error))
                }
            };
            let expected = match status {
                JobStatus::Paid | JobStatus::Resolved => Some(Exit::Ok),
                JobStatus::Failed | JobStatus::Expired | JobStatus::Cancelled => Some(Exit::JobFailed),
                JobStatus::Refunded => Some(Exit::Refunded),
                _ => None,
            };
            assert_eq!(exit, expected, "{status}");
            let delivered = matches!(ending(&job, Until::Delivered), Some(Ok(())));
            assert_eq!(delivered, has_delivered(status) || expected == Some(Exit::Ok), "{status}");
        }
    }
}
