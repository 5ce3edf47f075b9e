//! Planning what is due, and sending it: first stored, then sent.

use std::collections::{HashMap, VecDeque};

use alloy::primitives::{Address, U256};
use alloy::sol_types::SolStruct;
use chrono::{DateTime, TimeDelta, Utc};
use market::abi::{SkipReason, Voucher};
use market::batch::{self, Batch, Call, Candidate, LeftOut, Limits, Subject, TRANSACTION_GAS_CAP};
use market::db::chain_view;
use market::db::leader::Fence;
use market::db::settlement;
use market::{clock, typed_data};

use super::fees::Fees;
use super::nonces::Nonces;
use super::purse::Purse;
use super::put_off::Why;
use super::settler::{Head, RoundError, Settler};
use super::transaction::Unsigned;
use super::trial::Trial;
use super::{crash, metrics, transaction};

/// How far the chain's clock may be behind ours before a window that has ended by ours has ended by the chain's.
const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(2);
/// Most signatures whose signer is remembered.
const REMEMBERED_SIGNERS: usize = 100_000;

/// What is put on hold: what it is about, a voucher's amount, and why.
pub(super) type NewHold = (Subject, Option<u128>, SkipReason);

/// The chain's clock by the blocks that the indexer has applied. A header that it has not is no more than a node's word.
#[derive(Debug, Clone, Copy)]
struct ChainTime {
    /// The latest block's; ours on a chain that is idle, whose next block will not be as old.
    now: DateTime<Utc>,
    /// A final block's: what has passed by it has passed for good.
    last: Option<DateTime<Utc>>,
}

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
        let (candidates, chain_time) = self.candidates().await?;
        metrics::queues(candidates.len(), pending, self.memory.put_off.len(clock::now()));
        let mut room = self.options.max_pending.saturating_sub(pending);
        if candidates.is_empty() {
            return Ok(());
        }
        let fees = self.affordable_fees(head).await?;
        let by_subject: HashMap<_, _> = candidates.iter().map(|item| (item.subject, item.clone())).collect();
        let limits = self.limits(head, fees).await?;
        let plan = batch::plan(candidates, &limits, clock::now().max(chain_time.now));
        self.set_aside(fence, &plan.left_out, &by_subject, chain_time).await?;
        let Some(fees) = fees else { return Ok(()) };
        let mut queue = VecDeque::from(plan.batches);
        while room > 0 {
            let Some(planned) = queue.pop_front() else { break };
            match self.try_out(planned, head).await? {
                Trial::Ready { batch, gas_limit } => {
                    batch.items.iter().for_each(|item| self.memory.put_off.sent(item));
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
    async fn candidates(&mut self) -> Result<(Vec<Candidate>, ChainTime), RoundError> {
        let now = clock::now();
        let most = self.options.max_items.saturating_mul(self.options.max_pending).saturating_mul(2);
        // What was set aside is due all the same, and the oldest: it must not fill the page in front of what can be sent.
        let most = most.saturating_add(self.memory.put_off.len(now));
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let (sender, filter, backoff) = (self.signer.address(), &self.options.filter, self.options.backoff);
        let put_off = self.memory.put_off.vouchers(now);
        let mut db = settlement::snapshot(&self.pool).await?;
        let indexed = chain_view::indexed(&mut db).await?.map_or(DateTime::UNIX_EPOCH, |block| block.mined_at);
        let chain_time = ChainTime { now: indexed.max(now - CLOCK_SKEW), last: chain_view::final_time(&mut db).await? };
        let mut candidates = settlement::due_results(&mut db, sender, filter, backoff, &put_off, now, limit).await?;
        candidates.extend(settlement::finalizable(&mut db, filter, backoff, chain_time.now, now, limit).await?);
        let redeemable = settlement::redeemable(&mut db, sender, filter, backoff, now, limit).await?;
        db.commit().await?;
        candidates.retain(|item| self.is_as_signed(item, now));
        for (mut item, signer) in redeemable {
            if self.memory.put_off.has(&item, now) {
                continue;
            }
            self.note_form(&mut item, signer);
            candidates.push(item);
        }
        Ok((candidates, chain_time))
    }

    fn is_as_signed(&mut self, item: &Candidate, now: DateTime<Utc>) -> bool {
        if self.memory.put_off.has(item, now) {
            return false;
        }
        let id = item.call.order().map(|order| Subject::Job(typed_data::job_id(order, &self.domain)));
        let matches = id == Some(item.subject);
        if !matches {
            self.put_off(item, Why::OtherOrder);
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

    /// Says why planned items were left out, and puts on hold what can never be sent any more.
    async fn set_aside(
        &mut self,
        fence: Fence,
        left_out: &[(Subject, LeftOut)],
        candidates: &HashMap<Subject, Candidate>,
        chain_time: ChainTime,
    ) -> Result<(), RoundError> {
        let mut holds = Vec::new();
        for (subject, reason) in left_out {
            let Some(item) = candidates.get(subject) else { continue };
            match reason {
                LeftOut::Waiting | LeftOut::Duplicate => {}
                LeftOut::DeadlinePassed => match chain_time.last.and_then(|last| expired(item, last)) {
                    Some(reason) => holds.push((*subject, None, reason)),
                    None => {
                        self.put_off(item, Why::Deadline);
                    }
                },
                LeftOut::DeadlineTooNear => {
                    self.put_off(item, Why::Deadline);
                    tracing::warn!(%subject, "too near to its deadline to be mined in time");
                }
                LeftOut::TooLarge => {
                    let until = self.put_off(item, Why::TooLarge);
                    tracing::error!(%subject, %until, "too large for a transaction; trying again later");
                }
            }
        }
        self.hold(fence, &holds).await
    }

    /// Puts `item` off for a while that grows. Returns until when.
    pub(super) fn put_off(&mut self, item: &Candidate, why: Why) -> DateTime<Utc> {
        metrics::put_off(item.call.kind(), why.name());
        self.memory.put_off.put(item, clock::now())
    }

    async fn hold(&mut self, fence: Fence, holds: &[NewHold]) -> Result<(), RoundError> {
        if holds.is_empty() {
            return Ok(());
        }
        let mut db = self.pool.begin().await?;
        store_holds(&mut db, fence, holds, clock::now()).await?;
        db.commit().await?;
        for (subject, _, reason) in holds {
            tracing::error!(%subject, ?reason, "its time has passed by a final block; the payment is on hold");
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
