//! Planning what is due, and sending it: first stored, then sent.

use std::collections::{HashMap, VecDeque};

use alloy::primitives::{Address, U256};
use alloy::sol_types::SolStruct;
use chrono::{DateTime, TimeDelta, Utc};
use market::abi::{SkipReason, Voucher};
use market::batch::{self, Batch, Call, Candidate, LeftOut, Limits, Subject, TRANSACTION_GAS_CAP};
use market::db::leader::Fence;
use market::db::settlement;
use market::{clock, typed_data};

use super::fees::Fees;
use super::nonces::Nonces;
use super::purse::Purse;
use super::settler::{Head, RoundError, Settler};
use super::transaction::Unsigned;
use super::trial::Trial;
use super::{crash, metrics, transaction};

/// Before an item is tried again that never got into a transaction.
pub(super) const RETRY: TimeDelta = TimeDelta::seconds(10);
/// How far the chain's clock may be behind ours before a window that has ended by ours has ended by the chain's.
const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(2);
/// Most signatures whose signer is remembered.
const REMEMBERED_SIGNERS: usize = 100_000;

/// What is put on hold: what it is about, a voucher's amount, and why.
pub(super) type NewHold = (Subject, Option<u128>, SkipReason);

impl Settler {
    /// Sends what is due, as long as fewer than the allowed number of batches are on their way.
    pub(super) async fn dispatch_due(
        &mut self,
        fence: Fence,
        head: Head,
        nonces: &Nonces,
        pending: usize,
        purse: &mut Purse,
    ) -> Result<(), RoundError> {
        let candidates = self.candidates(head).await?;
        metrics::queues(candidates.len(), pending);
        let mut room = self.options.max_pending.saturating_sub(pending);
        if candidates.is_empty() {
            return Ok(());
        }
        let fees = self.affordable_fees(head).await?;
        let by_subject: HashMap<_, _> = candidates.iter().map(|item| (item.subject, item.clone())).collect();
        let limits = self.limits(head, fees).await?;
        let plan = batch::plan(candidates, &limits, clock::now().max(head.time));
        self.set_aside(fence, &plan.left_out, &by_subject, head).await?;
        let Some(fees) = fees else { return Ok(()) };
        let mut queue = VecDeque::from(plan.batches);
        while room > 0 {
            let Some(planned) = queue.pop_front() else { break };
            match self.try_out(fence, planned, head).await? {
                Trial::Ready { batch, gas_limit } => {
                    if !self.store_and_send(fence, batch, gas_limit, fees, nonces, purse).await? {
                        break;
                    }
                    room -= 1;
                }
                Trial::Split(first, second) => {
                    queue.push_front(second);
                    queue.push_front(first);
                }
                Trial::Empty => {}
            }
        }
        Ok(())
    }

    /// What could be sent: due, finalizable, redeemable, and what the rows say is what was signed.
    async fn candidates(&mut self, head: Head) -> Result<Vec<Candidate>, RoundError> {
        let now = clock::now();
        // An idle chain's latest block may be old; the block that will hold the transaction will not be.
        let chain_time = head.time.max(now - CLOCK_SKEW);
        let most = self.options.max_items.saturating_mul(self.options.max_pending).saturating_mul(2);
        // What was set aside is due all the same, and the oldest: it must not fill the page in front of what can be sent.
        let most = most.saturating_add(self.memory.not_before.len());
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let (sender, filter, backoff) = (self.signer.address(), &self.options.filter, self.options.backoff);
        let mut db = settlement::snapshot(&self.pool).await?;
        let mut candidates = settlement::due_results(&mut db, sender, filter, backoff, now, limit).await?;
        candidates.extend(settlement::finalizable(&mut db, filter, backoff, chain_time, now, limit).await?);
        let redeemable = settlement::redeemable(&mut db, sender, filter, backoff, now, limit).await?;
        db.commit().await?;
        candidates.retain(|item| self.is_as_signed(item, now));
        for (mut item, signer) in redeemable {
            if self.memory.not_before.contains_key(&item.subject) {
                continue;
            }
            self.note_form(&mut item, signer);
            candidates.push(item);
        }
        Ok(candidates)
    }

    fn is_as_signed(&mut self, item: &Candidate, now: DateTime<Utc>) -> bool {
        if self.memory.not_before.contains_key(&item.subject) {
            return false;
        }
        let id = item.call.order().map(|order| Subject::Job(typed_data::job_id(order, &self.domain)));
        let matches = id == Some(item.subject);
        if !matches {
            self.memory.not_before.insert(item.subject, now + TimeDelta::hours(1));
            tracing::error!(subject = %item.subject, "the stored order does not hash to the job's id");
        }
        matches
    }

    /// Finds out whether a voucher's signature is a key's, once: recovering a key takes a while.
    fn note_form(&mut self, item: &mut Candidate, signer: Address) {
        let Call::Redeem(redemption) = &mut item.call else { return };
        if self.memory.by_key.len() > REMEMBERED_SIGNERS {
            self.memory.by_key.clear();
        }
        let channel = redemption.channel;
        let domain = &self.domain;
        redemption.by_key = *self.memory.by_key.entry((channel, redemption.cumulative)).or_insert_with(|| {
            let voucher = Voucher {
                requester: channel.requester,
                node: channel.node,
                token: channel.token,
                cumulative: redemption.cumulative,
                coveredNonce: redemption.covered_nonce,
            };
            typed_data::recover(&redemption.signature, voucher.eip712_signing_hash(domain)) == Ok(signer)
        });
    }

    pub(super) fn max_gas(&self, head: Head) -> u64 {
        (head.gas_limit / 100 * self.options.block_share).min(TRANSACTION_GAS_CAP)
    }

    /// What bounds a batch on the chain as it is.
    async fn limits(&mut self, head: Head, fees: Option<Fees>) -> Result<Limits, RoundError> {
        let gas_is_dear = self.gas_is_dear(head).await?;
        let priority = fees.map_or(0, |fees| fees.max_priority_fee_per_gas);
        let options = &self.options;
        Ok(Limits {
            max_items: options.max_items,
            max_gas: self.max_gas(head),
            min_items: options.max_items,
            max_wait: options.max_wait,
            voucher_wait: options.voucher_wait,
            max_age: options.max_age,
            urgent_within: options.urgent_within,
            deadline_margin: options.deadline_margin,
            gas_price: head.base_fee.saturating_add(priority),
            gas_is_dear,
            max_gas_share_bps: options.max_gas_share_bps,
            rates: options.rates.clone(),
        })
    }

    /// Says why planned items were left out, once, and puts on hold what can never be sent any more.
    async fn set_aside(
        &mut self,
        fence: Fence,
        left_out: &[(Subject, LeftOut)],
        candidates: &HashMap<Subject, Candidate>,
        head: Head,
    ) -> Result<(), RoundError> {
        let mut holds = Vec::new();
        for (subject, reason) in left_out {
            match reason {
                LeftOut::Waiting | LeftOut::Duplicate => {}
                // Only the chain's own clock is final.
                LeftOut::DeadlinePassed => match candidates.get(subject).and_then(|item| expired(item, head.time)) {
                    Some(reason) => holds.push((*subject, None, reason)),
                    None => {
                        self.memory.not_before.insert(*subject, clock::now() + RETRY);
                    }
                },
                LeftOut::DeadlineTooNear => {
                    self.memory.not_before.insert(*subject, clock::now() + RETRY);
                    tracing::warn!(%subject, "too near to its deadline to be mined in time");
                }
                LeftOut::TooLarge => {
                    self.memory.not_before.insert(*subject, clock::now() + TimeDelta::hours(1));
                    tracing::error!(%subject, "too large for a transaction");
                }
            }
        }
        self.hold(fence, &holds).await
    }

    pub(super) async fn hold(&mut self, fence: Fence, holds: &[NewHold]) -> Result<(), RoundError> {
        if holds.is_empty() {
            return Ok(());
        }
        let mut db = self.pool.begin().await?;
        store_holds(&mut db, fence, holds, clock::now()).await?;
        db.commit().await?;
        for (subject, _, reason) in holds {
            tracing::error!(%subject, ?reason, "the contract would skip it for good; the payment is on hold");
        }
        Ok(())
    }

    /// Stores the batch under the next nonce, commits, and only then sends it. False if the account cannot pay for it.
    pub(super) async fn store_and_send(
        &mut self,
        fence: Fence,
        batch: Batch,
        gas_limit: u64,
        fees: Fees,
        nonces: &Nonces,
        purse: &mut Purse,
    ) -> Result<bool, RoundError> {
        if !self.pay(purse, gas_limit, fees, U256::ZERO) {
            return Ok(false);
        }
        crash::at(crash::Point::Plan);
        let (sender, now) = (self.signer.address(), clock::now());
        let mut db = self.pool.begin().await?;
        let nonce = settlement::next_nonce(&mut db, fence, sender, nonces.count).await?;
        crash::at(crash::Point::Nonce);
        let call = Unsigned { chain_id: self.chain_id, to: self.escrow, input: batch.calldata(), gas_limit };
        let attempt = transaction::sign(&self.signer, call, nonce, fees, now)?;
        crash::at(crash::Point::Sign);
        let id = settlement::insert_batch(&mut db, fence, &batch, (sender, nonce), &attempt, now).await?;
        db.commit().await?;
        crash::at(crash::Point::Persist);
        metrics::batch(batch.kind, "planned");
        tracing::info!(
            batch = id,
            kind = batch.kind.name(),
            nonce,
            tx = %attempt.tx_hash,
            items = batch.items.len(),
            gas_limit,
            max_fee_per_gas = attempt.max_fee_per_gas,
            "stored"
        );
        self.send(id, nonce, &attempt).await?;
        crash::at(crash::Point::Send);
        Ok(true)
    }
}

/// Writes holds of both rails.
pub(super) async fn store_holds(
    db: &mut sqlx::PgConnection,
    fence: Fence,
    holds: &[NewHold],
    now: DateTime<Utc>,
) -> Result<(), RoundError> {
    let (mut jobs, mut vouchers) = (Vec::new(), Vec::new());
    for (subject, cumulative, reason) in holds {
        match (subject, cumulative) {
            (Subject::Job(id), _) => jobs.push((*id, format!("{reason:?}"))),
            (Subject::Channel(channel), Some(cumulative)) => {
                vouchers.push((*channel, *cumulative, format!("{reason:?}")));
            }
            (Subject::Channel(_), None) => {}
        }
    }
    settlement::hold(db, fence, &jobs, now).await?;
    Ok(settlement::hold_vouchers(db, fence, &vouchers, now).await?)
}

/// Why the contract would skip a result after `chain_time`.
fn expired(item: &Candidate, chain_time: DateTime<Utc>) -> Option<SkipReason> {
    let has_passed = |deadline: u64| i64::try_from(deadline).is_ok_and(|deadline| deadline < chain_time.timestamp());
    match item.deadline() {
        Some(_) if item.call.order().is_some_and(|order| has_passed(order.deadline)) => Some(SkipReason::Expired),
        Some(deadline) if has_passed(deadline) => Some(SkipReason::AssignmentExpired),
        _ => None,
    }
}
