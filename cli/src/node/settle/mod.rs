//! Settling by the chain alone: the node redeems its vouchers and submits its results itself, with nothing but its own files
//! and an endpoint of the chain. Whatever else settles for it at the same time, the contract pays everything once.

pub mod facts;
mod plan;
mod send;

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use serde_json::json;

pub use plan::{Plan, Redemption, Step, owed};
pub use send::{Outcome, Tally, execute};

use super::earnings::{Channel, Earning, Earnings, HeldVoucher};
use crate::args::SettleArgs;
use crate::chain::{Chain, now_on_both};
use crate::context::{Context, token_name};
use crate::output::fields;
use plan::Asked;

/// What the node holds, and what the chain says of it, at one moment.
pub struct Snapshot {
    /// Results that are not known to be settled.
    pub open: Vec<Earning>,
    /// What is to be done.
    pub plan: Plan,
    /// Unix seconds.
    now: u64,
}

impl Snapshot {
    /// Whether the chain paid for the result by itself: then a voucher may have to show it.
    fn is_paid(&self, job_id: B256) -> bool {
        let paid = |(id, step): &(B256, Step)| *id == job_id && matches!(step, Step::Closed("paid" | "resolved"));
        self.plan.steps.iter().any(paid)
    }
}

/// How long a result that nothing can settle any more is kept, in case its end is undone.
const KEPT_SECS: u64 = 86_400;

/// Reads everything and decides. Sends nothing.
pub async fn look(chain: &Chain, node: Address, earnings: &Earnings) -> anyhow::Result<Snapshot> {
    let (open, closed, vouchers) = (earnings.open_ones()?, earnings.closed_ones()?, earnings.vouchers()?);
    let now = now_on_both(chain).await?;
    let jobs = facts::jobs(chain, ids_of(&open)).await?;
    let mut of: BTreeMap<Channel, (Option<&HeldVoucher>, Vec<&Earning>)> = BTreeMap::new();
    for voucher in &vouchers {
        of.entry(voucher.channel()).or_default().0 = Some(voucher);
    }
    for earning in open.iter().chain(&closed) {
        of.entry(earning.channel()).or_default().1.push(earning);
    }
    let mut channels = BTreeMap::new();
    for (channel, (voucher, known)) in of {
        channels.insert(channel, facts::channel(chain, node, channel, voucher, &known, now).await?);
    }
    let is_staked = chain.registry().isStaked(node).call().await?;
    let plan = plan::plan(&Asked {
        open: &open,
        closed: &closed,
        vouchers: &vouchers,
        jobs: &jobs,
        channels: &channels,
        node,
        is_staked,
        now,
    })?;
    Ok(Snapshot { open, plan, now })
}

fn ids_of(earnings: &[Earning]) -> Vec<B256> {
    earnings.iter().map(|earning| earning.job_id).collect()
}

/// Puts away what the chain has ended for good, and forgets what a redeemed voucher covers or nothing can settle any more.
pub async fn tidy(chain: &Chain, node: Address, earnings: &Earnings, snapshot: &Snapshot) -> anyhow::Result<()> {
    let is_closed = |(job_id, step): &(B256, Step)| matches!(step, Step::Closed(_)).then_some(*job_id);
    let ended: Vec<B256> = snapshot.plan.steps.iter().filter_map(is_closed).collect();
    if !ended.is_empty() {
        for job_id in facts::ended_for_good(chain, &ended).await? {
            earnings.close(job_id)?;
        }
    }
    let mut covered: BTreeMap<Channel, u64> = BTreeMap::new();
    let closed = earnings.closed_ones()?;
    for earning in &closed {
        // A job that was opened has its own money: no voucher covers it.
        if !earning.is_signed() || is_covered(chain, node, earning, &mut covered).await? {
            earnings.forget(earning.job_id)?;
        }
    }
    let is_ended = |earning: &&Earning| ended.contains(&earning.job_id);
    for earning in snapshot.open.iter().filter(is_ended) {
        let is_over = earning.order.deadline.saturating_add(KEPT_SECS) < snapshot.now;
        let is_covered = earning.is_signed() && is_covered(chain, node, earning, &mut covered).await?;
        if is_covered || (is_over && !snapshot.is_paid(earning.job_id)) {
            earnings.close(earning.job_id)?;
            earnings.forget(earning.job_id)?;
        }
    }
    Ok(())
}

async fn is_covered(
    chain: &Chain,
    node: Address,
    earning: &Earning,
    known: &mut BTreeMap<Channel, u64>,
) -> anyhow::Result<bool> {
    let channel = earning.channel();
    let covered = match known.get(&channel) {
        Some(covered) => *covered,
        None => facts::covered_for_good(chain, node, channel).await?,
    };
    known.insert(channel, covered);
    Ok(earning.order.nonce <= covered)
}

/// `node settle`
pub async fn settle(context: &Context, args: &SettleArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let earnings = Earnings::open(&args.dir.path()?, &wallet.chain.deployment)?;
    let snapshot = look(&wallet.chain, wallet.address, &earnings).await?;
    let mut tally = Tally::default();
    if args.dry_run {
        for outcome in send::planned(&snapshot) {
            tally.add(&outcome);
            report(context, &wallet.chain, &outcome)?;
        }
    } else {
        let mut failure = None;
        let reported = execute(&wallet, &snapshot, usize::from(args.batch), |outcome| {
            tally.add(&outcome);
            if let Err(error) = report(context, &wallet.chain, &outcome) {
                failure.get_or_insert(error);
            }
        });
        reported.await?;
        failure.map_or(Ok(()), Err)?;
        if let Err(error) = tidy(&wallet.chain, wallet.address, &earnings, &snapshot).await {
            // Some chains know no finalized block yet; what is kept longer does no harm.
            tracing::debug!(error = format!("{error:#}"), "nothing was put away");
        }
    }
    let value = json!({ "command": "settle", "dryRun": args.dry_run, "summary": tally });
    context.out.result(&value, || {
        let done = if args.dry_run { "would settle" } else { "settled" };
        fields(&[
            (done, tally.settled.to_string()),
            ("waiting in a window", tally.submitted.to_string()),
            ("settled before", tally.closed.to_string()),
            ("skipped", tally.skipped.to_string()),
        ])
    })
}

fn report(context: &Context, chain: &Chain, outcome: &Outcome) -> anyhow::Result<()> {
    context.out.result(&outcome.to_json(), || outcome.describe(|token| token_name(token, &chain.deployment)))
}
