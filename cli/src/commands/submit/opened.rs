//! Orders opened on the chain.

use std::time::{Duration, Instant};

use alloy::primitives::B256;
use market::abi::{JobSpec, JobState};
use market::db::order::Rail;
use market::order::{OrderJson, SpecJson};

use super::{Draft, Submission, describe, plan, report};
use crate::api::{Api, SubmitRequest, Submitted, Terms};
use crate::chain::{Mined, Wallet, now_on_both};
use crate::context::{Context, verified_job};
use crate::error::Failure;
use crate::records::{OrderRecord, Records};

/// How long the API may take to hear of a deposit that is on the chain.
pub const INDEXED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks whether it has.
pub const INDEXED_POLL: Duration = Duration::from_millis(250);

/// Announces and opens each; returns the jobs.
pub async fn submit(
    submission: &Submission<'_>,
    wallet: &Wallet,
    records: &Records,
    drafts: Vec<Draft>,
) -> anyhow::Result<Vec<B256>> {
    let Submission { context, api, terms } = submission;
    let mut jobs = Vec::new();
    for draft in drafts {
        let job_id = draft.job_id;
        announce(context, api, &draft, terms).await?;
        records.keep(&record(&draft))?;
        context.out.note(&format!("Announced job {job_id}; if this is interrupted: littoral open {job_id}"));
        let mined = send_open(context, wallet, &draft).await?;
        report(context, &draft, "opened", Some(&mined), None)?;
        jobs.push(job_id);
    }
    Ok(jobs)
}

fn record(draft: &Draft) -> OrderRecord {
    OrderRecord {
        job_id: draft.job_id,
        order: OrderJson::from(&draft.order),
        spec: SpecJson::from(&draft.spec),
        signature: None,
        created_at: market::clock::now(),
        delivery: None,
        verdict: None,
    }
}

/// Opens an announced job.
pub async fn open(context: &Context, job_id: B256) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let records = context.records(&chain.deployment, wallet.address)?;
    let draft = match records.order(job_id)? {
        Some(record) if record.signature.is_some() => {
            anyhow::bail!("job {job_id} is signed and paid from your deposit: it need not be opened")
        }
        Some(record) => Draft { job_id, order: record.order.to_order()?, spec: JobSpec::from(&record.spec) },
        None => {
            let (api, _) = context.market(&chain.deployment).await?;
            let job = verified_job(&api, job_id, &chain.deployment).await?;
            anyhow::ensure!(
                job.rail != Some(Rail::Signed),
                "job {job_id} is signed and paid from the deposit: it need not be opened"
            );
            Draft { job_id, order: job.order.to_order()?, spec: JobSpec::from(&job.spec) }
        }
    };
    let requester = draft.order.requester;
    anyhow::ensure!(requester == wallet.address, "the job is {requester}'s, not yours ({})", wallet.address);
    let state = chain.escrow().job(job_id).call().await?.state;
    if state != JobState::None {
        context.out.note(&format!("Job {job_id} was opened already; nothing is sent"));
        return report(context, &draft, "opened", None, None);
    }
    let now = now_on_both(chain).await?;
    anyhow::ensure!(draft.order.deadline > now, "the order's deadline has passed: submit the file again");
    plan::check_funds(chain, &draft.order, plan::free(chain, &draft.order).await?, 1)?;
    records.keep(&record(&draft))?;
    let mined = send_open(context, &wallet, &draft).await?;
    report(context, &draft, "opened", Some(&mined), None)
}

/// Tells the API of the order. The chain has just said that the money is there (`check_funds`); that the API does not know
/// it yet means that the indexer has not come to the deposit's block.
async fn announce(context: &Context, api: &Api, draft: &Draft, terms: &Terms) -> anyhow::Result<()> {
    let Draft { job_id, order, spec } = draft;
    let (order, spec) = (OrderJson::from(order), SpecJson::from(spec));
    let body = SubmitRequest { order, spec, terms: terms.clone(), signature: None };
    let started = Instant::now();
    let mut is_noted = false;
    let submitted: Submitted = loop {
        match api.post_once("lit-compute/jobs/submit", &body, &job_id.to_string()).await {
            Err(error)
                if matches!(error.code(), "price_above_deposit" | "insufficient_deposit")
                    && started.elapsed() < INDEXED_WITHIN =>
            {
                if !std::mem::replace(&mut is_noted, true) {
                    context.out.note("The API has not seen your deposit yet; waiting for it");
                }
                tokio::time::sleep(INDEXED_POLL).await;
            }
            answer => break answer?,
        }
    };
    if submitted.job_id != *job_id {
        return Err(Failure::Unverified(format!("the API calls job {job_id} {}", submitted.job_id)).into());
    }
    Ok(())
}

async fn send_open(context: &Context, wallet: &Wallet, draft: &Draft) -> anyhow::Result<Mined> {
    let chain = &wallet.chain;
    let Draft { job_id, order, spec } = draft;
    let plan = format!("Opening job {job_id}: locks {}", describe(order, &spec.operation, &chain.deployment));
    let call = chain.escrow().openJob(order.clone(), spec.clone()).into_transaction_request();
    let sent = wallet.send("openJob", &plan, call).await;
    if sent.is_err() {
        context
            .out
            .note(&format!("Job {job_id} is announced but not known to be open; try again: littoral open {job_id}"));
    }
    let mined = sent?;
    let opened = mined.receipt.decoded_log::<market::abi::IJobEscrow::JobOpened>();
    if opened.is_none_or(|log| log.jobId != *job_id) {
        return Err(Failure::Unverified(format!("transaction {} did not open job {job_id}", mined.tx_hash)).into());
    }
    Ok(mined)
}
