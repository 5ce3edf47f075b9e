//! What to settle, and how: decided from what the node holds and what the chain says, without asking either.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, U256};
use market::abi::{JobState, Order};

use crate::chain::time;
use crate::node::earnings::{Channel, Earning, HeldVoucher, total};

/// What the chain says of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobFacts {
    /// Where it stands.
    pub state: JobState,
    /// When the window, or the arbiter's time, ends; unix seconds.
    pub finalize_at: u64,
    /// Whose result is waiting, as far as the contract keeps that: zero where the order names its node.
    pub node: Address,
    /// When a cancellation takes effect; zero for none.
    pub cancel_at: u64,
}

/// What the chain says of one channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelFacts {
    /// All that it ever paid.
    pub claimed: U256,
    /// A redeemed voucher covers orders up to this nonce.
    pub covered_nonce: u64,
    /// Set aside for this node.
    pub reserved: U256,
    /// Free and thawing funds of the requester, which all nodes draw on.
    pub account: U256,
    /// What the chain paid for signed orders by themselves, of those that this node still remembers.
    pub alone: BTreeMap<B256, U256>,
    /// Why the voucher's signature does not count; nothing if it does, or if there is no voucher.
    pub voucher_flaw: Option<String>,
    /// What the voucher's session key may spend; nothing if its requester signed.
    pub session_left: Option<U256>,
}

/// A voucher to redeem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// Which.
    pub voucher: HeldVoucher,
    /// What it is worth beyond what was paid.
    pub due: U256,
    /// How much of that the requester's funds cover.
    pub payable: U256,
    /// Orders settled alone that it does not cover, by ascending job id.
    pub settled_above: Vec<Order>,
}

/// What is to happen with one result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To be settled by its order.
    Submit,
    /// Its window has ended.
    Finalize,
    /// A voucher that is about to be redeemed pays for it.
    ByVoucher,
    /// The chain has settled it, or nothing can any more.
    Closed(&'static str),
    /// Not now.
    Skip(String),
}

/// Everything that is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Vouchers to redeem, and those that are not, with the reason.
    pub redemptions: Vec<Redemption>,
    /// Vouchers that are left alone, with the reason.
    pub idle: Vec<(HeldVoucher, String)>,
    /// One for every result.
    pub steps: Vec<(B256, Step)>,
}

impl Plan {
    /// Results with this step.
    pub fn with(&self, step: &Step) -> Vec<B256> {
        self.steps.iter().filter(|(_, found)| found == step).map(|(job_id, _)| *job_id).collect()
    }
}

/// What is asked.
pub struct Asked<'a> {
    /// Results that are not known to be settled.
    pub open: &'a [Earning],
    /// Results that the chain settled and no redeemed voucher covers yet.
    pub closed: &'a [Earning],
    /// The best voucher of every channel.
    pub vouchers: &'a [HeldVoucher],
    /// What the chain says of the open results.
    pub jobs: &'a BTreeMap<B256, JobFacts>,
    /// What it says of their channels.
    pub channels: &'a BTreeMap<Channel, ChannelFacts>,
    /// This node.
    pub node: Address,
    /// Whether it has the minimum stake.
    pub is_staked: bool,
    /// Unix seconds.
    pub now: u64,
}

/// Decides. Vouchers come first: one pays for many orders at once. The rest takes the order rail.
pub fn plan(asked: &Asked<'_>) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    let mut funds = Funds::new(asked.channels);
    for voucher in asked.vouchers {
        match redemption(asked, voucher)? {
            Ok(mut redemption) => {
                redemption.payable = funds.draw(voucher.channel(), redemption.due);
                if redemption.payable.is_zero() {
                    plan.idle
                        .push((voucher.clone(), format!("{} is due, and the requester has nothing", redemption.due)));
                } else {
                    plan.redemptions.push(redemption);
                }
            }
            Err(reason) => plan.idle.push((voucher.clone(), reason)),
        }
    }
    // The contract pays an order in full or not at all: what comes first in nonces comes first in funds.
    let mut open: Vec<&Earning> = asked.open.iter().collect();
    open.sort_by_key(|earning| (earning.order.nonce, earning.job_id));
    for earning in open {
        let covered = plan
            .redemptions
            .iter()
            .find(|redemption| redemption.voucher.channel() == earning.channel())
            .map_or(0, |redemption| redemption.voucher.covered_nonce);
        plan.steps.push((earning.job_id, step(asked, earning, covered, &mut funds)));
    }
    Ok(plan)
}

/// The voucher's redemption, or why it is left alone.
fn redemption(asked: &Asked<'_>, voucher: &HeldVoucher) -> anyhow::Result<Result<Redemption, String>> {
    let channel = voucher.channel();
    let Some(facts) = asked.channels.get(&channel) else { return Ok(Err("its channel is unknown".into())) };
    let known = asked.open.iter().chain(asked.closed).filter(|earning| earning.channel() == channel);
    let mut above: Vec<(B256, Order, U256)> = Vec::new();
    for earning in known.clone().filter(|earning| earning.order.nonce > voucher.covered_nonce) {
        if let Some(paid) = facts.alone.get(&earning.job_id) {
            above.push((earning.job_id, earning.order()?, *paid));
        }
    }
    above.sort_by_key(|(job_id, _, _)| *job_id);
    above.dedup_by_key(|(job_id, _, _)| *job_id);
    let entitled = above.iter().fold(voucher.cumulative.0, |sum, (_, _, paid)| sum.saturating_add(*paid));
    let due = entitled.saturating_sub(facts.claimed);
    if due.is_zero() {
        return Ok(Err("it is for no more than was paid".into()));
    }
    if let Some(flaw) = &facts.voucher_flaw {
        return Ok(Err(flaw.clone()));
    }
    if facts.session_left.is_some_and(|left| left < due) {
        let left = facts.session_left.unwrap_or_default();
        return Ok(Err(format!("{due} is due, and the session key that signed may spend {left}")));
    }
    // It voids what it covers, so it must be worth that.
    let voids = |earning: &&Earning| {
        earning.is_signed()
            && earning.order.nonce > facts.covered_nonce
            && earning.order.nonce <= voucher.covered_nonce
            && !facts.alone.contains_key(&earning.job_id)
            && earning.acknowledged_at.is_some()
            && asked.jobs.get(&earning.job_id).is_some_and(|job| is_owed(job, earning, asked.now))
    };
    let voided = total(asked.open.iter().filter(|e| e.channel() == channel).filter(voids));
    if voided > due {
        return Ok(Err(format!("it would void orders worth {voided} and pay {due}")));
    }
    let settled_above = above.into_iter().map(|(_, order, _)| order).collect();
    Ok(Ok(Redemption { voucher: voucher.clone(), due, payable: U256::ZERO, settled_above }))
}

/// Whether the order could still be settled by itself, or its result waits.
fn is_owed(job: &JobFacts, earning: &Earning, now: u64) -> bool {
    match job.state {
        JobState::Submitted | JobState::Disputed => true,
        JobState::None => now <= earning.order.deadline && (job.cancel_at == 0 || now < job.cancel_at),
        _ => false,
    }
}

/// What to do with one result; `covered` is up to where a voucher that is about to be redeemed pays.
fn step(asked: &Asked<'_>, earning: &Earning, covered: u64, funds: &mut Funds<'_>) -> Step {
    let Some(job) = asked.jobs.get(&earning.job_id) else { return Step::Skip("the chain was not asked".into()) };
    let order = &earning.order;
    let signed = earning.is_signed();
    let redeemed = asked.channels.get(&earning.channel()).map_or(0, |facts| facts.covered_nonce);
    if !order.node.is_zero() && order.node != asked.node {
        return Step::Skip(format!("its order names the node {}", order.node));
    }
    match job.state {
        JobState::Paid => return Step::Closed("paid"),
        JobState::Refunded => return Step::Closed("refunded"),
        JobState::Resolved => return Step::Closed("resolved"),
        JobState::Submitted | JobState::Disputed if order.node.is_zero() && job.node != asked.node => {
            // The contract keeps the node of such an order as a number that its registry gave.
            return Step::Closed("another node's result is in");
        }
        JobState::Submitted if asked.now < job.finalize_at => {
            return Step::Skip(format!("its challenge window ends {}", time(job.finalize_at)));
        }
        JobState::Disputed if asked.now < job.finalize_at => {
            return Step::Skip(format!("it is in dispute; its arbiter has until {}", time(job.finalize_at)));
        }
        JobState::Submitted | JobState::Disputed => return Step::Finalize,
        JobState::None if !signed => return Step::Skip("it is not open on the chain".into()),
        JobState::None | JobState::Open => {}
        _ => return Step::Skip("it is in a state that this version does not know".into()),
    }
    let is_signed_rail = job.state == JobState::None;
    if is_signed_rail && order.nonce <= redeemed {
        return Step::Closed("covered by a redeemed voucher");
    }
    if is_signed_rail && order.nonce <= covered {
        return Step::ByVoucher;
    }
    if asked.now > order.deadline {
        return Step::Closed("its deadline has passed");
    }
    if job.cancel_at != 0 && asked.now >= job.cancel_at {
        return Step::Closed("its requester cancelled it");
    }
    obstacle(asked, earning, is_signed_rail, funds).map_or(Step::Submit, Step::Skip)
}

/// Why the contract would skip the result, or why it is not shown to it.
fn obstacle(asked: &Asked<'_>, earning: &Earning, is_signed_rail: bool, funds: &mut Funds<'_>) -> Option<String> {
    let order = &earning.order;
    if earning.acknowledged_at.is_none() {
        return Some("its output is not known to have arrived; `node run` sends it again".into());
    }
    match (&earning.assignment, order.node.is_zero()) {
        (None, true) => return Some("there is no assignment for it".into()),
        (Some(assigned), true) if assigned.expiry < asked.now => {
            return Some(format!("its assignment expired {}", time(assigned.expiry)));
        }
        _ => {}
    }
    if order.challenge_window != 0 && !asked.is_staked {
        return Some("this node's stake is below the minimum".into());
    }
    if !is_signed_rail {
        return None;
    }
    let has = funds.within_reach(earning.channel());
    if has < earning.price.0 {
        return Some(format!("its requester has {has}, less than its price {}", earning.price));
    }
    funds.draw(earning.channel(), earning.price.0);
    None
}

/// What requesters have, less what the plan draws already.
struct Funds<'a> {
    channels: &'a BTreeMap<Channel, ChannelFacts>,
    drawn: BTreeMap<Channel, U256>,
}

impl<'a> Funds<'a> {
    fn new(channels: &'a BTreeMap<Channel, ChannelFacts>) -> Self {
        Self { channels, drawn: BTreeMap::new() }
    }

    /// Reservation and account. A channel is one requester and one token, as an account is.
    fn within_reach(&self, channel: Channel) -> U256 {
        let facts = self.channels.get(&channel);
        let all = facts.map_or(U256::ZERO, |facts| facts.reserved.saturating_add(facts.account));
        all.saturating_sub(self.drawn.get(&channel).copied().unwrap_or_default())
    }

    /// As much of `amount` as there is.
    fn draw(&mut self, channel: Channel, amount: U256) -> U256 {
        let drawn = amount.min(self.within_reach(channel));
        *self.drawn.entry(channel).or_default() += drawn;
        drawn
    }
}

/// What is owed on a channel in the token's smallest unit: what its voucher is worth beyond what was `claimed`, and signed
/// orders above its nonce and `covered_nonce`, the chain's. `is_settled` says of a result that it was paid by itself, or that
/// its money is locked while it waits.
pub fn owed(
    (claimed, covered_nonce): (U256, u64),
    voucher: Option<&HeldVoucher>,
    earnings: &[Earning],
    is_settled: impl Fn(B256) -> bool,
) -> U256 {
    let (cumulative, covered) = voucher.map_or((U256::ZERO, 0), |held| (held.cumulative.0, held.covered_nonce));
    let (settled, rest): (Vec<&Earning>, Vec<&Earning>) =
        earnings.iter().filter(|earning| earning.is_signed()).partition(|earning| is_settled(earning.job_id));
    let above = total(settled.into_iter().filter(|earning| earning.order.nonce > covered));
    let by_voucher = cumulative.saturating_add(above).saturating_sub(claimed);
    let covered = covered.max(covered_nonce);
    by_voucher.saturating_add(total(rest.into_iter().filter(|earning| earning.order.nonce > covered)))
}

#[cfg(test)]
mod tests;
