//! `accept`, `dispute` and `resolve`: what requester and arbiter do with a result that waits.

use alloy::primitives::{Address, U256};
use market::Amount;
use market::abi::IJobEscrow::{JobDisputed, JobPaid, JobRefunded, JobResolved};
use market::abi::JobState;
use serde_json::json;

use super::account::{checksum, transaction};
use super::status::state_name;
use crate::args::{OrderArg, ResolveArgs};
use crate::chain::{Chain, Mined, Wallet, time};
use crate::context::{Context, token_name};
use crate::orders::{Found, named};
use crate::output::fields;

const BPS: u128 = 10_000;
/// `JobEscrow.DISPUTE_BOND_BPS`.
const DISPUTE_BOND_BPS: u128 = 500;

/// Pays for a result ahead of time.
pub async fn accept(context: &Context, args: &OrderArg) -> anyhow::Result<()> {
    let (wallet, found, waiting) = own_waiting(context, args).await?;
    let plan = format!("Accepting the result of job {}, which pays the node {}", found.job_id, waiting.node);
    let call = wallet.chain.escrow().accept(found.order.clone()).into_transaction_request();
    let mined = wallet.send("accept", &plan, call).await?;
    report_end(context, &wallet.chain, "accept", &found, &mined)
}

/// Puts a result before the arbiter.
pub async fn dispute(context: &Context, args: &OrderArg) -> anyhow::Result<()> {
    let (wallet, found, waiting) = own_waiting(context, args).await?;
    anyhow::ensure!(!found.order.arbiter.is_zero(), "the order names no arbiter, so nobody could decide");
    anyhow::ensure!(waiting.state == JobState::Submitted, "the result is in dispute already");
    let bond = found.order.maxPrice * DISPUTE_BOND_BPS / BPS;
    let plan = format!(
        "Disputing the result of job {} before {}; locks a bond of {bond} of {}",
        found.job_id,
        found.order.arbiter,
        token_name(found.order.token, &wallet.chain.deployment)
    );
    let call = wallet.chain.escrow().dispute(found.order.clone()).into_transaction_request();
    let mined = wallet.send("dispute", &plan, call).await?;
    let disputed = mined.receipt.decoded_log::<JobDisputed>();
    let (bond, decide_by) = disputed.map_or((bond, 0), |log| (log.bond, log.decideBy));
    let more = json!({
        "jobId": found.job_id, "node": checksum(waiting.node), "token": checksum(found.order.token),
        "arbiter": checksum(found.order.arbiter), "bond": Amount::from(bond), "decideBy": time(decide_by),
    });
    context.out.result(&transaction("dispute", &mined, more), || {
        fields(&[
            ("disputed", found.job_id.to_string()),
            ("arbiter", format!("{}, until {}", found.order.arbiter, time(decide_by))),
            ("bond", bond.to_string()),
            ("transaction", format!("{} (gas {})", mined.tx_hash, mined.gas_used)),
        ])
    })
}

/// Decides a dispute.
pub async fn resolve(context: &Context, args: &ResolveArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let found = named(context, &wallet.chain, &args.order).await?;
    let arbiter = found.order.arbiter;
    anyhow::ensure!(arbiter == wallet.address, "the order's arbiter is {arbiter}, not you ({})", wallet.address);
    let state = wallet.chain.escrow().job(found.job_id).call().await?.state;
    anyhow::ensure!(state == JobState::Disputed, "job {} is {}, not disputed", found.job_id, state_name(state));
    let plan = format!(
        "Resolving job {}: {} of 10000 parts of the price to the node, {} of 10000 parts of its bond slashed",
        found.job_id, args.pay, args.slash
    );
    let call = wallet.chain.escrow().resolve(found.order.clone(), args.pay, args.slash).into_transaction_request();
    let mined = wallet.send("resolve", &plan, call).await?;
    report_end(context, &wallet.chain, "resolve", &found, &mined)
}

struct Waiting {
    state: JobState,
    node: Address,
}

/// The acting account's order, whose result must be waiting.
async fn own_waiting(context: &Context, args: &OrderArg) -> anyhow::Result<(Wallet, Found, Waiting)> {
    let wallet = context.wallet().await?;
    let found = named(context, &wallet.chain, args).await?;
    found.must_be_by(wallet.address)?;
    let job = wallet.chain.escrow().job(found.job_id).call().await?;
    anyhow::ensure!(
        matches!(job.state, JobState::Submitted | JobState::Disputed),
        "no result of job {} is waiting: it is {}",
        found.job_id,
        state_name(job.state)
    );
    let node = if found.order.node.is_zero() { job.node } else { found.order.node };
    Ok((wallet, found, Waiting { state: job.state, node }))
}

/// How the transaction ended the job.
fn report_end(context: &Context, chain: &Chain, command: &str, found: &Found, mined: &Mined) -> anyhow::Result<()> {
    let paid = mined.receipt.decoded_log::<JobPaid>().map(|log| (log.node, log.price));
    let resolved = mined.receipt.decoded_log::<JobResolved>();
    let refunded = mined.receipt.decoded_log::<JobRefunded>();
    let (node, price) = paid.or_else(|| resolved.as_ref().map(|log| (log.node, log.price))).unwrap_or_default();
    let mut more = json!({
        "jobId": found.job_id, "token": checksum(found.order.token), "node": checksum(node), "price": Amount::from(price),
    });
    if let Some(log) = &resolved {
        more["slashed"] = json!(Amount::from(log.slashed));
        more["compensation"] = json!(Amount::from(log.compensation));
        more["bond"] = json!(Amount::from(log.bond));
    }
    if let Some(log) = &refunded {
        // A voucher had paid for the job meanwhile.
        more["refunded"] = json!(Amount::from(log.amount));
    }
    context.out.result(&transaction(command, mined, more), || {
        let name = token_name(found.order.token, &chain.deployment);
        let mut rows = vec![("job", found.job_id.to_string())];
        match &refunded {
            Some(log) => rows.push(("given back", format!("{} {name}: a voucher has paid for the job", log.amount))),
            None => rows.push(("paid", format!("{price} {name} to {node}"))),
        }
        rows.extend(resolved.as_ref().filter(|log| log.slashed != U256::ZERO).map(|log| {
            ("slashed", format!("{} wei of the node's bond, {} of it to the requester", log.slashed, log.compensation))
        }));
        rows.push(("transaction", format!("{} (gas {})", mined.tx_hash, mined.gas_used)));
        fields(&rows)
    })
}
