//! `fetch`: a job's result, verified, decrypted if asked, and countersigned.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use alloy::primitives::B256;
use alloy::providers::Provider;
use anyhow::Context as _;
use market::ContentId;
use market::abi::IJobEscrow::{JobPaid, ResultSubmitted};
use market::db::order::Rail;
use market::job::JobStatus;
use serde_json::json;
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use super::watch;
use crate::api::{Api, Job};
use crate::args::FetchArgs;
use crate::chain::Chain;
use crate::context::{Context, verified_job};
use crate::countersign::mark;
use crate::error::Failure;
use crate::keys;
use crate::ops::{self, Sink, crypt};
use crate::output::fields;
use crate::records::{Delivery, Verdict};

/// Downloads to a temporary file beside the target and renames it when it is known to be right.
pub async fn fetch(context: &Context, args: &FetchArgs) -> anyhow::Result<()> {
    let identity = args.identity.as_deref().map(keys::read_identity).transpose()?;
    let api = context.api()?;
    let job = find(context, &api, args.job).await?;
    let cid = result_of(&job)?;
    let target = target(args, &job);
    if let Some(path) = target.as_deref().filter(|path| path.exists() && !args.force) {
        return Err(Failure::Usage(format!("{} exists: give another -o, or --force", path.display())).into());
    }

    let dir = target.as_deref().and_then(Path::parent).filter(|dir| !dir.as_os_str().is_empty());
    let dir = match (&target, dir) {
        (Some(_), Some(dir)) => dir.to_owned(),
        (Some(_), None) => PathBuf::from("."),
        (None, _) => std::env::temp_dir(),
    };
    let mut file = temporary(&dir)?;
    let bar = context.out.bar("downloading", 0);
    let mut size = api.get_blob(cid, tokio::fs::File::from_std(file.reopen()?), u64::MAX, &bar).await?;
    bar.finish_and_clear();
    if let Some(identity) = &identity {
        let plain = temporary(&dir)?;
        let sink = Sink::over(plain.reopen()?, u64::MAX, CancellationToken::new());
        size = crypt::decrypt(identity, &[], file.reopen()?, sink)?.finish()?.size;
        file = plain;
    }
    deliver(file, target.as_deref(), args.force, identity.is_none())?;
    note_delivery(context, &job, cid)?;

    let shown = target.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
    let value = json!({
        "jobId": job.job_id, "outputCID": cid, "file": shown, "size": size, "decrypted": identity.is_some(),
    });
    if target.is_some() {
        context.out.result(&value, || {
            let what = if identity.is_some() { "decrypted to" } else { "saved as" };
            fields(&[("output", cid.to_string()), (what, format!("{shown} ({size} bytes)"))])
        })?;
    }
    watch::withhold(context, args.job, &args.signing)?;
    match job.node.filter(|_| target.is_some()) {
        Some(node) => watch::countersign(context, &args.signing, args.job, node).await,
        None => Ok(()),
    }
}

/// Remembers that the output was seen to be what it is called, if the order is known here.
fn note_delivery(context: &Context, job: &Job, cid: ContentId) -> anyhow::Result<()> {
    let (Some(node), Some(price), true) = (job.node, job.price, context.has_signer()) else { return Ok(()) };
    let Ok(deployment) = context.deployment() else { return Ok(()) };
    let records = context.records(&deployment, context.signer()?.address())?;
    let delivery = Delivery { node, price, result_hash: cid.digest() };
    mark(&records, job.job_id, Verdict::Verified, Some(delivery))
}

/// The job; where the chain can be read, its order and its result are checked against the chain.
async fn find(context: &Context, api: &Api, job_id: B256) -> anyhow::Result<Job> {
    if !context.has_chain() {
        context.out.note("The result is checked against its content id only; with --rpc-url also against the chain");
        return Ok(api.get(&format!("lit-compute/jobs/{job_id}")).await?);
    }
    let chain = context.chain().await?;
    let job = verified_job(api, job_id, &chain.deployment).await?;
    check_result(context, &chain, &job).await?;
    Ok(job)
}

/// What the API calls the result must be what was settled under the node's signature.
async fn check_result(context: &Context, chain: &Chain, job: &Job) -> anyhow::Result<()> {
    let Some(cid) = job.output_cid else { return Ok(()) };
    let Some(tx) = job.submitted_tx.or(job.closed_tx) else {
        context.out.note("The result is not settled yet: its content id is the API's word");
        return Ok(());
    };
    let receipt = chain.provider.get_transaction_receipt(tx).await?;
    let logs = receipt.iter().flat_map(|receipt| receipt.logs()).filter(|log| log.address() == chain.deployment.escrow);
    let mut settled = logs.filter_map(|log| {
        let paid = log.log_decode::<JobPaid>().ok().map(|log| (log.inner.jobId, log.inner.resultHash));
        paid.or_else(|| log.log_decode::<ResultSubmitted>().ok().map(|log| (log.inner.jobId, log.inner.resultHash)))
    });
    match settled.find(|(job_id, _)| *job_id == job.job_id) {
        Some((_, hash)) if hash == cid.digest() => Ok(()),
        Some((_, hash)) => Err(Failure::Unverified(format!(
            "the API says the result is {cid}, the chain says {}",
            ContentId::from_digest(hash)
        ))
        .into()),
        // A voucher pays for jobs without naming them. Who countersigned knows the receipt.
        None if job.rail == Some(Rail::Signed) => check_delivery(context, chain, job, cid),
        None => Err(Failure::Unverified(format!("transaction {tx} did not settle job {}", job.job_id)).into()),
    }
}

/// The result must be what the node's receipt named when the job was countersigned here.
fn check_delivery(context: &Context, chain: &Chain, job: &Job, cid: ContentId) -> anyhow::Result<()> {
    let record = if context.has_signer() {
        context.records(&chain.deployment, context.signer()?.address())?.order(job.job_id)?
    } else {
        None
    };
    match record.and_then(|record| record.delivery) {
        Some(delivery) if delivery.result_hash == cid.digest() => Ok(()),
        Some(delivery) => Err(Failure::Unverified(format!(
            "the API says the result is {cid}, the receipt that you countersigned says {}",
            ContentId::from_digest(delivery.result_hash)
        ))
        .into()),
        None => {
            context
                .out
                .note("A voucher paid for the job, which does not name the result: its content id is the API's word");
            Ok(())
        }
    }
}

fn result_of(job: &Job) -> anyhow::Result<ContentId> {
    if let Some(cid) = job.output_cid {
        return Ok(cid);
    }
    Err(match job.status {
        JobStatus::Failed | JobStatus::Expired => {
            Failure::JobFailed(format!("job {} is {} and has no result", job.job_id, job.status)).into()
        }
        JobStatus::Refunded => Failure::Refunded(format!("job {} was refunded and has no result", job.job_id)).into(),
        status => {
            anyhow::anyhow!("job {} is {status} and has no result yet: littoral watch {}", job.job_id, job.job_id)
        }
    })
}

/// Where the result goes; nothing for standard output.
fn target(args: &FetchArgs, job: &Job) -> Option<PathBuf> {
    match &args.out {
        Some(path) if path.as_os_str() == "-" => None,
        Some(path) => Some(path.clone()),
        None => {
            let extension = if job.spec.operation == ops::ENCRYPT && args.identity.is_none() { "age" } else { "out" };
            Some(PathBuf::from(format!("{}.{extension}", &job.job_id.to_string()[2..14])))
        }
    }
}

fn temporary(dir: &Path) -> anyhow::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".littoral-")
        .tempfile_in(dir)
        .with_context(|| format!("cannot write to {}", dir.display()))
}

/// Renames `file` to `target`, or copies it to standard output.
fn deliver(file: NamedTempFile, target: Option<&Path>, force: bool, is_public: bool) -> anyhow::Result<()> {
    let Some(target) = target else {
        let mut stdout = io::stdout().lock();
        io::copy(&mut file.reopen()?, &mut stdout)?;
        return Ok(stdout.flush()?);
    };
    if is_public {
        // Temporary files are private; what was decrypted stays so.
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    }
    let persisted: Result<File, _> = if force { file.persist(target) } else { file.persist_noclobber(target) };
    persisted.map(drop).map_err(|error| error.error).with_context(|| format!("cannot write {}", target.display()))
}
