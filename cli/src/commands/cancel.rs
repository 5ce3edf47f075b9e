//! `cancel`: an order is taken back, by the API as long as no node has had it, otherwise by the chain.

use alloy::primitives::B256;
use market::abi::IJobEscrow::JobCancelling;
use market::abi::JobState;
use serde_json::{Value, json};

use super::account::transaction;
use super::status::state_name;
use crate::args::CancelArgs;
use crate::chain::{Wallet, time};
use crate::context::Context;
use crate::orders::{Found, named};
use crate::output::fields;

/// Withdraws a signed order that no node has had, or gives notice on the chain.
pub async fn cancel(context: &Context, args: &CancelArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let found = named(context, &wallet.chain, &args.order).await?;
    found.must_be_by(wallet.address)?;
    let state = wallet.chain.escrow().job(found.job_id).call().await?.state;
    anyhow::ensure!(
        matches!(state, JobState::None | JobState::Open),
        "job {} is {}, too late to cancel it",
        found.job_id,
        state_name(state)
    );
    if state == JobState::None && !args.on_chain {
        match withdraw(context, &wallet, found.job_id).await {
            Ok(()) => return report_withdrawn(context, found.job_id),
            // Whatever the API says or does not say, the chain takes the notice.
            Err(error) => context.out.note(&format!("The API does not withdraw the order ({error:#}); the chain will")),
        }
    }
    give_notice(context, &wallet, &found).await
}

async fn withdraw(context: &Context, wallet: &Wallet, job_id: B256) -> anyhow::Result<()> {
    let (api, _) = context.market(&wallet.chain.deployment).await?;
    let _: Value = api.post(&format!("lit-compute/jobs/{job_id}/cancel"), &json!({})).await?;
    Ok(())
}

fn report_withdrawn(context: &Context, job_id: B256) -> anyhow::Result<()> {
    let value = json!({ "command": "cancel", "jobId": job_id, "txHash": null, "cancelAt": null });
    context.out.result(&value, || format!("withdrew job {job_id}: no node had it"))
}

async fn give_notice(context: &Context, wallet: &Wallet, found: &Found) -> anyhow::Result<()> {
    let escrow = wallet.chain.escrow();
    let given = escrow.cancelAt(found.job_id).call().await?;
    anyhow::ensure!(given == 0, "notice was given already: no result settles from {} on", time(given));
    let plan = format!(
        "Cancelling job {}: no result settles {} s after this",
        found.job_id, wallet.chain.deployment.escrow_params.thaw_period
    );
    let call = escrow.cancelJob(found.order.clone()).into_transaction_request();
    let mined = wallet.send("cancelJob", &plan, call).await?;
    let cancel_at = mined.receipt.decoded_log::<JobCancelling>().map(|log| time(log.cancelAt));
    let more = json!({ "jobId": found.job_id, "cancelAt": cancel_at });
    context.out.result(&transaction("cancel", &mined, more), || {
        let mut rows = vec![("job", found.job_id.to_string())];
        rows.extend(cancel_at.clone().map(|at| ("cancelled from", at)));
        rows.push(("transaction", format!("{} (gas {})", mined.tx_hash, mined.gas_used)));
        fields(&rows)
    })
}
