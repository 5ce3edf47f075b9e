//! `refund`: the money of expired and cancelled jobs goes back to their requesters.

use alloy::primitives::B256;
use market::Amount;
use market::abi::IJobEscrow::{JobRefunded, Skipped};
use market::abi::{JobState, Order};
use serde_json::json;

use super::account::{checksum, transaction};
use crate::args::RefundArgs;
use crate::chain::{Chain, Mined, time};
use crate::context::{Context, token_name};
use crate::orders::find;

/// Refunds what can be refunded in one transaction; fails if any job could not be.
pub async fn refund(context: &Context, args: &RefundArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let mut refundable: Vec<(B256, Order)> = Vec::new();
    let mut refused = 0;
    for job_id in &args.jobs {
        if refundable.iter().any(|(seen, _)| seen == job_id) {
            continue;
        }
        let order = find(context, chain, *job_id).await?.order;
        match obstacle(chain, *job_id, &order).await? {
            None => refundable.push((*job_id, order)),
            Some(obstacle) => {
                refused += 1;
                context.out.note(&format!("job {job_id} cannot be refunded: {obstacle}"));
            }
        }
    }
    if !refundable.is_empty() {
        let orders: Vec<Order> = refundable.iter().map(|(_, order)| order.clone()).collect();
        let plan = format!("Refunding {} job(s) to their requesters", orders.len());
        let call = chain.escrow().refundExpired(orders).into_transaction_request();
        let mined = wallet.send("refundExpired", &plan, call).await?;
        for (job_id, order) in &refundable {
            refused += usize::from(!report(context, chain, *job_id, order, &mined)?);
        }
    }
    anyhow::ensure!(refused == 0, "{refused} of the jobs could not be refunded");
    Ok(())
}

/// Why the escrow would skip the job.
async fn obstacle(chain: &Chain, job_id: B256, order: &Order) -> anyhow::Result<Option<String>> {
    let state = chain.escrow().job(job_id).call().await?.state;
    if state != JobState::Open {
        let state = match state {
            JobState::None => {
                "not open, and nothing is locked for it: to take back a signed order, see `littoral cancel`"
            }
            JobState::Submitted => "waiting for its challenge window to end",
            JobState::Paid => "paid",
            JobState::Refunded => "refunded already",
            JobState::Disputed => "in dispute",
            JobState::Resolved => "resolved by its arbiter",
            _ => "in an unknown state",
        };
        return Ok(Some(format!("it is {state}")));
    }
    // The chain's clock decides; where blocks come only with transactions, the latest one may be old.
    let here = u64::try_from(market::clock::now().timestamp()).unwrap_or(0);
    let now = here.max(chain.block_time().await?);
    let cancel_at = chain.escrow().cancelAt(job_id).call().await?;
    if now > order.deadline || (cancel_at != 0 && now >= cancel_at) {
        return Ok(None);
    }
    let is_cancelled = cancel_at != 0 && cancel_at <= order.deadline;
    Ok(Some(if is_cancelled {
        format!("its cancellation takes effect {}", time(cancel_at))
    } else {
        format!("its deadline is {}", time(order.deadline))
    }))
}

/// Whether the transaction refunded the job.
fn report(context: &Context, chain: &Chain, job_id: B256, order: &Order, mined: &Mined) -> anyhow::Result<bool> {
    let logs = || mined.receipt.logs().iter().filter(|log| log.address() == chain.deployment.escrow);
    let refunded = logs().filter_map(|log| log.log_decode::<JobRefunded>().ok()).find(|log| log.inner.jobId == job_id);
    let Some(refunded) = refunded else {
        let skipped = logs().filter_map(|log| log.log_decode::<Skipped>().ok()).find(|log| log.inner.jobId == job_id);
        let reason = skipped.map_or_else(|| "without a reason".to_owned(), |log| format!("{:?}", log.inner.reason));
        context.out.note(&format!("job {job_id} was skipped in {}: {reason}", mined.tx_hash));
        return Ok(false);
    };
    let amount = Amount::from(refunded.inner.amount);
    let more = json!({
        "jobId": job_id, "requester": checksum(order.requester), "token": checksum(order.token), "amount": amount,
        "free": Amount::from(refunded.inner.free),
    });
    context.out.result(&transaction("refund", mined, more), || {
        format!("refunded {amount} {} of job {job_id} in {}", token_name(order.token, &chain.deployment), mined.tx_hash)
    })?;
    Ok(true)
}
