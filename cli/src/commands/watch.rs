//! `watch`: a job's statuses as they come.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use market::job::JobStatus;
use serde_json::json;

use crate::api::{Api, ApiError, Job};
use crate::args::WatchArgs;
use crate::context::Context;
use crate::error::Failure;

const POLL: Duration = Duration::from_millis(400);
const SLOWEST_POLL: Duration = Duration::from_secs(4);

/// Prints each status; ends when the job does.
pub async fn watch(context: &Context, args: &WatchArgs) -> anyhow::Result<()> {
    let api = context.api()?;
    let following = follow(context, &api, args);
    match args.timeout {
        None => following.await,
        Some(secs) => tokio::time::timeout(Duration::from_secs(secs), following).await.unwrap_or_else(|_| {
            Err(Failure::Timeout(format!("job {} has not ended within {secs} s", args.job)).into())
        }),
    }
}

async fn follow(context: &Context, api: &Api, args: &WatchArgs) -> anyhow::Result<()> {
    let path = format!("lit-compute/jobs/{}", args.job);
    let started = Instant::now();
    let mut last: Option<JobStatus> = None;
    let mut pause = POLL;
    let mut is_down = false;
    loop {
        match api.get::<Job>(&path).await {
            Ok(job) => {
                is_down = false;
                pause = POLL;
                if last != Some(job.status) {
                    last = Some(job.status);
                    print(context, &job, started)?;
                }
                if let Some(end) = ending(&job) {
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
                return Err(error).with_context(|| format!("cannot watch job {}", args.job));
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
    }
}

/// How the command ends if the job has ended.
fn ending(job: &Job) -> Option<anyhow::Result<()>> {
    let reason = job.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match job.status {
        JobStatus::Paid => Some(Ok(())),
        JobStatus::Failed => Some(Err(Failure::JobFailed(format!("job {} failed{reason}", job.job_id)).into())),
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
    });
    context.out.result(&value, || {
        let more = match job.status {
            JobStatus::Active => job.node.map(|node| format!("by {node}")),
            JobStatus::Completed => job.output_cid.map(|cid| format!("output {cid}")),
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
            let exit = match ending(&job) {
                None => None,
                Some(Ok(())) => Some(Exit::Ok),
                Some(Err(error)) => {
                    assert!(error.to_string().contains("no such luck"));
                    Some(exit_of(&error))
                }
            };
            let expected = match status {
                JobStatus::Paid => Some(Exit::Ok),
                JobStatus::Failed | JobStatus::Expired => Some(Exit::JobFailed),
                JobStatus::Refunded => Some(Exit::Refunded),
                _ => None,
            };
            assert_eq!(exit, expected, "{status}");
        }
    }
}
