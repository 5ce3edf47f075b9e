//! `redrive`: failed jobs go back into the queue.

use std::collections::BTreeSet;

use serde_json::json;

use crate::api::Redriven;
use crate::args::RedriveArgs;
use crate::context::Context;

/// Puts each failed job back into the queue; fails if any could not be.
pub async fn redrive(context: &Context, args: &RedriveArgs) -> anyhow::Result<()> {
    let (api, _) = context.market(&context.deployment()?).await?;
    let mut refused = None;
    for job_id in args.jobs.iter().collect::<BTreeSet<_>>() {
        match api.post::<Redriven>(&format!("lit-compute/jobs/{job_id}/redrive"), &json!({})).await {
            Ok(Redriven { status }) => {
                let value = json!({ "command": "redrive", "jobId": job_id, "status": status });
                context.out.result(&value, || format!("job {job_id} is {status} again"))?;
            }
            // One job's refusal harms no other, and is itself the command's error where there is one job.
            Err(error) if error.status().is_some() => {
                if args.jobs.len() > 1 {
                    context.out.note(&format!("job {job_id} is not tried anew: {error}"));
                }
                refused = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    refused.map_or(Ok(()), |error| Err(error.into()))
}
