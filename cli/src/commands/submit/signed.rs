//! Orders signed against the deposit.

use std::time::Instant;

use alloy::primitives::{B256, Bytes};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use market::order::{OrderJson, SpecJson};

use super::opened::{INDEXED_POLL, INDEXED_WITHIN};
use super::{Draft, Submission, describe, plan, report};
use crate::api::{ApiError, BulkItem, BulkRequest, BulkSubmitted, Problem, SubmitRequest, Submitted, Terms};
use crate::chain::Chain;
use crate::error::Failure;
use crate::records::{OrderRecord, Records};

/// Orders in one request. The API takes a thousand; fewer at once show progress, and each request is one transaction there.
const BULK: usize = 200;
/// How often a request is repeated whose answer did not come. The same order again changes nothing.
const TRIES: u32 = 5;

/// A draft under its requester's signature.
struct SignedDraft {
    draft: Draft,
    signature: Bytes,
}

/// Signs, keeps and hands in each; returns the jobs.
pub async fn submit(
    submission: &Submission<'_>,
    chain: &Chain,
    records: &Records,
    signer: &PrivateKeySigner,
    drafts: Vec<Draft>,
) -> anyhow::Result<Vec<B256>> {
    let Submission { context, .. } = submission;
    if let Some(first) = drafts.first() {
        let each = if drafts.len() == 1 { "an order" } else { "an order for each file" };
        let about = describe(&first.order, &first.spec.operation, &chain.deployment);
        context.out.note(&format!("Signing {each} against your deposit: {about}"));
    }
    let mut signed = Vec::new();
    for draft in drafts {
        let signature: Bytes = signer.sign_hash_sync(&draft.job_id)?.as_bytes().into();
        // Before anyone has the signature: what it may cost must be known here, to be cancelled at need.
        records.keep(&record(&draft, &signature))?;
        signed.push(SignedDraft { draft, signature });
    }
    if let [one] = signed.as_slice() {
        let submitted = hand_in(submission, chain, one).await?;
        report(context, &one.draft, "signed", None, Some(submitted.status.name()))?;
        return Ok(vec![one.draft.job_id]);
    }
    let bar = context.out.count("submitting", u64::try_from(signed.len())?);
    let mut jobs = Vec::new();
    let mut refused = 0;
    for chunk in signed.chunks(BULK) {
        for (one, item) in chunk.iter().zip(hand_in_bulk(submission, chain, chunk).await?) {
            bar.inc(1);
            match item {
                Ok(status) => {
                    jobs.push(one.draft.job_id);
                    bar.suspend(|| report(context, &one.draft, "signed", None, Some(&status)))?;
                }
                Err(reason) => {
                    refused += 1;
                    let file = &one.draft.spec.inputCID;
                    bar.suspend(|| {
                        context.out.note(&format!("The API refuses job {} ({file}): {reason}", one.draft.job_id))
                    });
                }
            }
        }
    }
    bar.finish_and_clear();
    anyhow::ensure!(refused == 0, "{refused} of the {} jobs were refused", signed.len());
    Ok(jobs)
}

fn record(draft: &Draft, signature: &Bytes) -> OrderRecord {
    OrderRecord {
        job_id: draft.job_id,
        order: OrderJson::from(&draft.order),
        spec: SpecJson::from(&draft.spec),
        signature: Some(signature.clone()),
        created_at: market::clock::now(),
        delivery: None,
        verdict: None,
    }
}

fn request(one: &SignedDraft, terms: &Terms) -> SubmitRequest {
    SubmitRequest {
        order: OrderJson::from(&one.draft.order),
        spec: SpecJson::from(&one.draft.spec),
        terms: terms.clone(),
        signature: Some(one.signature.clone()),
    }
}

async fn hand_in(submission: &Submission<'_>, chain: &Chain, one: &SignedDraft) -> anyhow::Result<Submitted> {
    let Submission { context, api, terms } = submission;
    let body = request(one, terms);
    let key = one.draft.job_id.to_string();
    let mut patience = Patience::new();
    let submitted: Submitted = loop {
        match api.post_once("lit-compute/jobs/submit", &body, &key).await {
            Ok(submitted) => break submitted,
            Err(error) => patience.wait_or_fail(context, chain, one, error).await?,
        }
    };
    if submitted.job_id != one.draft.job_id {
        let ours = one.draft.job_id;
        return Err(Failure::Unverified(format!("the API calls job {ours} {}", submitted.job_id)).into());
    }
    Ok(submitted)
}

/// What became of each, in their order.
async fn hand_in_bulk(
    submission: &Submission<'_>,
    chain: &Chain,
    chunk: &[SignedDraft],
) -> anyhow::Result<Vec<Result<String, String>>> {
    let Submission { context, api, terms } = submission;
    let body = BulkRequest { jobs: chunk.iter().map(|one| request(one, terms)).collect() };
    let mut patience = Patience::new();
    loop {
        let answer: Result<BulkSubmitted, ApiError> = api.post("lit-compute/jobs/submit/bulk", &body).await;
        let Some(first) = chunk.first() else { return Ok(Vec::new()) };
        match answer {
            Ok(answer) => {
                let items = answer.in_order(chunk.len());
                let short =
                    items.iter().flatten().filter_map(|item| item.problem.as_ref()).find(|problem| is_short(problem));
                if let Some(short) = short
                    && patience.is_indexer_behind(chain, first, short).await?
                {
                    // What was taken is taken; the same again changes nothing.
                    patience.pause_for_indexer(context).await;
                    continue;
                }
                return Ok(items.into_iter().map(|item| verdict(item.as_ref())).collect());
            }
            Err(error) => patience.wait_or_fail(context, chain, first, error).await?,
        }
    }
}

fn verdict(item: Option<&BulkItem>) -> Result<String, String> {
    match item {
        None => Err("the API says nothing of it".to_owned()),
        Some(item) => match (&item.status, &item.problem) {
            (Some(status), None) => Ok(status.name().to_owned()),
            (_, Some(problem)) => Err(problem.text()),
            (None, None) => Err("no reason given".to_owned()),
        },
    }
}

fn is_short(problem: &Problem) -> bool {
    problem.code.as_deref() == Some("insufficient_deposit")
}

/// How long something that passes is waited for.
struct Patience {
    started: Instant,
    tries: u32,
    is_noted: bool,
}

impl Patience {
    fn new() -> Self {
        Self { started: Instant::now(), tries: 0, is_noted: false }
    }

    async fn wait_or_fail(
        &mut self,
        context: &crate::context::Context,
        chain: &Chain,
        one: &SignedDraft,
        error: ApiError,
    ) -> anyhow::Result<()> {
        if let Some(short) = error.problem().filter(|problem| is_short(problem))
            && self.is_indexer_behind(chain, one, short).await?
        {
            self.pause_for_indexer(context).await;
            return Ok(());
        }
        if error.is_transient() && self.tries < TRIES {
            self.tries += 1;
            context.out.note(&format!("{error}; trying again"));
            tokio::time::sleep(crate::node::pause_after(self.tries)).await;
            return Ok(());
        }
        Err(error.into())
    }

    /// Whether the API counts with less than the chain has: the indexer has not come to the deposit's block.
    async fn is_indexer_behind(&self, chain: &Chain, one: &SignedDraft, short: &Problem) -> anyhow::Result<bool> {
        if self.started.elapsed() >= INDEXED_WITHIN {
            return Ok(false);
        }
        let free = plan::free(chain, &one.draft.order).await?;
        Ok(short.figure("free").is_some_and(|theirs| theirs.0 < free))
    }

    async fn pause_for_indexer(&mut self, context: &crate::context::Context) {
        if !std::mem::replace(&mut self.is_noted, true) {
            context.out.note("The API has not seen your deposit yet; waiting for it");
        }
        tokio::time::sleep(INDEXED_POLL).await;
    }
}
