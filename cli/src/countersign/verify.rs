//! Checking one job before a voucher counts it.

use std::collections::BTreeSet;

use alloy::primitives::{Address, B256, U256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::{Context as _, bail, ensure};
use indicatif::ProgressBar;
use market::abi::IJobEscrow::{ChannelUpdated, JobPaid, JobResolved};
use market::{ContentId, typed_data};

use super::payee::payee;
use crate::api::{Api, Job, NextJob};
use crate::chain::Chain;
use crate::context::verified_job;
use crate::records::{CountedJob, Delivery, OrderRecord, Records, Verdict};
use crate::wallet::is_signed_by;

/// Requester, node and token.
pub type Parties = (Address, Address, Address);

/// What a voucher may count for the job, after checking that the order is the requester's own and signed by them, that the
/// node signed the receipt, that the chain pays no other node, and that the output is what the receipt names.
pub async fn job(
    api: &Api,
    chain: &Chain,
    records: &Records,
    parties: Parties,
    next: &NextJob,
) -> anyhow::Result<CountedJob> {
    let (_, node, _) = parties;
    let mut record = own_order(api, chain, records, parties, next).await?;
    let order = record.order.to_order()?;
    ensure!(order.nonce == next.nonce, "its nonce is {}, not {}", order.nonce, next.nonce);
    let price = next.price.to_u128()?;
    ensure!(price <= order.maxPrice, "it asks {price}, more than the order's {}", order.maxPrice);
    let digest = typed_data::receipt_digest(next.job_id, price, next.result_hash, &chain.domain());
    let is_nodes = is_signed_by(chain, node, digest, &next.receipt_signature).await?;
    ensure!(is_nodes, "its receipt is not signed by the node {node}");
    // Whoever assigns an open order can have two nodes do it: no voucher for one of them counts what the other is paid alone.
    if let Some(other) = payee(chain, next.job_id).await?.filter(|payee| *payee != node) {
        bail!("the chain pays the node {other} for it");
    }

    let delivery = Delivery { node, price: next.price, result_hash: next.result_hash };
    let counted = CountedJob { job_id: next.job_id, nonce: order.nonce, price: next.price };
    match record.verdict {
        Some(Verdict::Withheld) => bail!("you withheld it: `littoral voucher sign --accept {}`", next.job_id),
        Some(Verdict::Accepted) if record.delivery.is_none() || record.delivery.as_ref() == Some(&delivery) => {}
        Some(Verdict::Verified) if record.delivery.as_ref() == Some(&delivery) => return Ok(counted),
        _ => {
            fetch(api, next.result_hash).await?;
            record.verdict = Some(Verdict::Verified);
        }
    }
    record.delivery = Some(delivery);
    records.keep(&record)?;
    Ok(counted)
}

/// The order, which must be the requester's, for this channel, and signed.
async fn own_order(
    api: &Api,
    chain: &Chain,
    records: &Records,
    (requester, node, token): Parties,
    next: &NextJob,
) -> anyhow::Result<OrderRecord> {
    let record = match records.order(next.job_id)? {
        Some(record) => record,
        // Signed on another machine: what counts is the signature.
        None => from_api(verified_job(api, next.job_id, &chain.deployment).await?),
    };
    let order = record.order.to_order()?;
    ensure!(typed_data::job_id(&order, &chain.domain()) == next.job_id, "its order is that of another job");
    ensure!(order.requester == requester, "its requester is {}", order.requester);
    ensure!(order.token == token, "it is paid in {}", order.token);
    ensure!(order.node == node || order.node.is_zero(), "its order names the node {}", order.node);
    let Some(signature) = &record.signature else { bail!("you never signed its order") };
    match typed_data::recover(signature, next.job_id) {
        Ok(signer) if signer == requester => Ok(record),
        _ => bail!("the signature of its order is not yours"),
    }
}

fn from_api(job: Job) -> OrderRecord {
    OrderRecord {
        job_id: job.job_id,
        order: job.order,
        spec: job.spec,
        signature: job.signature,
        created_at: job.created_at.unwrap_or_else(market::clock::now),
        delivery: None,
        verdict: None,
    }
}

/// Fetches the output and makes sure that it is what it is called; keeps nothing of it.
async fn fetch(api: &Api, result_hash: B256) -> anyhow::Result<()> {
    let file = tempfile::tempfile().context("cannot make a temporary file")?;
    let cid = ContentId::from_digest(result_hash);
    api.get_blob(cid, tokio::fs::File::from_std(file), u64::MAX, &ProgressBar::hidden()).await?;
    Ok(())
}

/// Notes what is thought of a job's result, if the order is known here.
pub fn mark(records: &Records, job_id: B256, verdict: Verdict, delivery: Option<Delivery>) -> anyhow::Result<()> {
    let Some(mut record) = records.order(job_id)? else { return Ok(()) };
    // What the user said stands until the user says something else.
    let is_users_word = matches!(record.verdict, Some(Verdict::Withheld | Verdict::Accepted));
    if verdict == Verdict::Verified && is_users_word {
        return Ok(());
    }
    record.verdict = Some(verdict);
    record.delivery = delivery.or(record.delivery);
    records.keep(&record)
}

/// What the channel paid for signed orders by themselves, but for those known to have a nonce up to `covered_nonce`.
pub async fn paid_alone(
    chain: &Chain,
    records: &Records,
    (requester, node, token): Parties,
    covered_nonce: u64,
) -> anyhow::Result<U256> {
    let filter = |signature: B256| {
        Filter::new()
            .address(chain.deployment.escrow)
            .event_signature(signature)
            .topic2(requester.into_word())
            .topic3(node.into_word())
            .from_block(chain.deployment.deploy_block)
    };
    let cannot = "cannot read the channel's payments from the chain";
    let mut signed = BTreeSet::new();
    for log in chain.provider.get_logs(&filter(ChannelUpdated::SIGNATURE_HASH)).await.context(cannot)? {
        let event = log.log_decode::<ChannelUpdated>()?.inner.data;
        if event.token == token {
            signed.insert(event.jobId);
        }
    }
    let mut sum = U256::ZERO;
    for signature in [JobPaid::SIGNATURE_HASH, JobResolved::SIGNATURE_HASH] {
        for log in chain.provider.get_logs(&filter(signature)).await.context(cannot)? {
            let (job_id, price) = match log.log_decode::<JobPaid>() {
                Ok(log) => (log.inner.jobId, log.inner.price),
                Err(_) => {
                    let event = log.log_decode::<JobResolved>()?.inner.data;
                    (event.jobId, event.price)
                }
            };
            let is_covered = records.order(job_id)?.is_some_and(|record| record.order.nonce <= covered_nonce);
            if signed.contains(&job_id) && !is_covered {
                sum = sum.saturating_add(U256::from(price));
            }
        }
    }
    Ok(sum)
}
