//! Planning what is due, and sending it: first stored, then sent.

use std::collections::{HashMap, VecDeque};

use alloy::eips::BlockId;
use alloy::primitives::{B256, U256};
use alloy::providers::Provider;
use alloy::rpc::types::simulate::{SimBlock, SimulatePayload};
use alloy::rpc::types::{BlockOverrides, TransactionRequest};
use alloy::sol_types::SolEvent;
use alloy::transports::TransportError;
use chrono::{DateTime, TimeDelta, Utc};
use market::abi::{IJobEscrow, SkipReason};
use market::batch::{self, Batch, Candidate, LeftOut};
use market::db::leader::Fence;
use market::db::settlement::{self, Backoff};
use market::{clock, typed_data};

use super::fees::Fees;
use super::settler::{Condition, Head, RoundError, Settler};
use super::transaction::Unsigned;
use super::{crash, metrics, transaction};

/// After a batch that did not settle an item.
const BACKOFF: Backoff = Backoff { first: TimeDelta::seconds(5), longest: TimeDelta::hours(1) };
/// Before an item is tried again that never got into a transaction.
const RETRY: TimeDelta = TimeDelta::seconds(10);
/// How far the chain's clock may be behind ours before a window that has ended by ours has ended by the chain's.
const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(2);
/// Percent of the node's estimate that a batch gets as its gas limit: what contract wallets take may change meanwhile.
const GAS_MARGIN_PERCENT: u64 = 125;

/// JSON-RPC's code for a method that the node does not have.
const METHOD_NOT_FOUND: i64 = -32601;

/// What came of trying a batch before it is signed.
enum Trial {
    Ready { batch: Batch, gas_limit: u64 },
    Split(Batch, Batch),
    Empty,
}

impl Settler {
    /// Sends what is due, as long as fewer than the allowed number of batches are on their way.
    pub(super) async fn dispatch_due(&mut self, fence: Fence, head: Head, pending: usize) -> Result<(), RoundError> {
        let candidates = self.candidates(head).await?;
        metrics::queues(candidates.len(), pending);
        let deadlines: HashMap<_, _> = candidates.iter().map(|item| (item.job_id, item.clone())).collect();
        let plan = batch::plan(candidates, &self.limits(head), clock::now().max(head.time));
        self.set_aside(fence, &plan.left_out, &deadlines, head).await?;
        let mut room = self.options.max_pending.saturating_sub(pending);
        if plan.batches.is_empty() || room == 0 {
            return Ok(());
        }
        let Some(fees) = self.affordable_fees(head).await? else { return Ok(()) };
        let mut queue = VecDeque::from(plan.batches);
        while let Some(planned) = queue.pop_front().filter(|_| room > 0) {
            match self.try_out(fence, planned, head).await? {
                Trial::Ready { batch, gas_limit } => {
                    if !self.store_and_send(fence, batch, gas_limit, fees).await? {
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

    /// What could be sent: due, finalizable, and what the rows say is what was signed.
    async fn candidates(&mut self, head: Head) -> Result<Vec<Candidate>, RoundError> {
        let now = clock::now();
        // An idle chain's latest block may be old; the block that will hold the transaction will not be.
        let chain_time = head.time.max(now - CLOCK_SKEW);
        let most = self.options.max_items.saturating_mul(self.options.max_pending).saturating_mul(2);
        // What was set aside is due all the same, and the oldest: it must not fill the page in front of what can be sent.
        let most = most.saturating_add(self.memory.not_before.len());
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let mut db = settlement::snapshot(&self.pool).await?;
        let mut candidates = settlement::due_results(&mut db, BACKOFF, now, limit).await?;
        candidates.extend(settlement::finalizable(&mut db, BACKOFF, chain_time, now, limit).await?);
        db.commit().await?;
        candidates.retain(|item| {
            !self.memory.not_before.contains_key(&item.job_id) && {
                let matches = typed_data::job_id(item.call.order(), &self.domain) == item.job_id;
                if !matches {
                    self.memory.not_before.insert(item.job_id, now + TimeDelta::hours(1));
                    tracing::error!(job = %item.job_id, "the order in escrow_job does not hash to the job's id");
                }
                matches
            }
        });
        Ok(candidates)
    }

    /// Says why planned items were left out, once, and puts on hold what can never be sent any more.
    async fn set_aside(
        &mut self,
        fence: Fence,
        left_out: &[(B256, LeftOut)],
        candidates: &HashMap<B256, Candidate>,
        head: Head,
    ) -> Result<(), RoundError> {
        let mut holds = Vec::new();
        for (job, reason) in left_out {
            match reason {
                LeftOut::Waiting | LeftOut::Duplicate => {}
                // Only the chain's own clock is final.
                LeftOut::DeadlinePassed => match candidates.get(job).and_then(|item| expired(item, head.time)) {
                    Some(reason) => holds.push((*job, reason)),
                    None => {
                        self.memory.not_before.insert(*job, clock::now() + RETRY);
                    }
                },
                LeftOut::DeadlineTooNear => {
                    self.memory.not_before.insert(*job, clock::now() + RETRY);
                    tracing::warn!(%job, "too near to its deadline to be mined in time");
                }
                LeftOut::TooLarge => {
                    self.memory.not_before.insert(*job, clock::now() + TimeDelta::hours(1));
                    tracing::error!(%job, "too large for a transaction");
                }
            }
        }
        self.hold(fence, &holds).await
    }

    async fn hold(&mut self, fence: Fence, holds: &[(B256, SkipReason)]) -> Result<(), RoundError> {
        if holds.is_empty() {
            return Ok(());
        }
        let named: Vec<_> = holds.iter().map(|(job, reason)| (*job, format!("{reason:?}"))).collect();
        let mut db = self.pool.begin().await?;
        settlement::hold(&mut db, fence, &named, clock::now()).await?;
        db.commit().await?;
        for (job, reason) in holds {
            tracing::error!(%job, ?reason, "the contract would skip it for good; the payment is on hold");
        }
        Ok(())
    }

    /// Fees for new transactions; nothing while the chain asks for more than the caps allow.
    async fn affordable_fees(&mut self, head: Head) -> Result<Option<Fees>, RoundError> {
        let caps = self.options.caps;
        if head.base_fee >= caps.max_fee_per_gas {
            if self.memory.begins(Condition::FeesAboveCap) {
                tracing::error!(
                    base_fee = head.base_fee,
                    cap = caps.max_fee_per_gas,
                    "gas costs more than allowed; waiting"
                );
            }
            return Ok(None);
        }
        if self.memory.ends(Condition::FeesAboveCap) {
            tracing::info!(base_fee = head.base_fee, "gas is affordable again");
        }
        Ok(Some(self.suggested_fees().await?.capped(caps)))
    }

    /// Has the node run the batch: leaves out what would be skipped, halves what does not go through.
    async fn try_out(&mut self, fence: Fence, mut batch: Batch, head: Head) -> Result<Trial, RoundError> {
        if self.options.simulate {
            let skipped = self.simulate(&batch, head).await?;
            self.leave_out(fence, &mut batch, &skipped).await?;
        }
        if batch.items.is_empty() {
            return Ok(Trial::Empty);
        }
        let max_gas = self.limits(head).max_gas;
        let estimate = match self.provider.estimate_gas(self.request(&batch)).block(BlockId::pending()).await {
            Ok(estimate) => estimate.saturating_mul(GAS_MARGIN_PERCENT) / 100,
            Err(error) if does_not_go_through(&error) => {
                tracing::warn!(kind = batch.kind.name(), items = batch.items.len(), %error, "a batch would revert");
                u64::MAX
            }
            Err(error) => return Err(error.into()),
        };
        // The estimate alone is too low where an item would be skipped now and not when it is mined.
        let gas_limit = estimate.max(batch.gas());
        if gas_limit <= max_gas {
            return Ok(Trial::Ready { batch, gas_limit });
        }
        let first = batch.items.first().map(|item| item.job_id);
        if let Some((one, other)) = batch.split() {
            return Ok(Trial::Split(one, other));
        }
        if let Some(job) = first {
            self.memory.not_before.insert(job, clock::now() + RETRY * 6);
            tracing::error!(%job, "cannot be sent even alone: it would revert or take too much gas; trying again later");
        }
        Ok(Trial::Empty)
    }

    fn request(&self, batch: &Batch) -> TransactionRequest {
        TransactionRequest::default().from(self.signer.address()).to(self.escrow).input(batch.calldata().into())
    }

    /// What the contract would skip if the batch were mined next. Nothing if the node cannot tell.
    async fn simulate(&mut self, batch: &Batch, head: Head) -> Result<Vec<(B256, SkipReason)>, RoundError> {
        let next = (head.time + TimeDelta::seconds(1)).max(clock::now()).timestamp();
        let block = SimBlock::default()
            .with_block_overrides(BlockOverrides { time: u64::try_from(next).ok(), ..BlockOverrides::default() })
            .call(self.request(batch));
        match self.provider.simulate(&SimulatePayload::default().extend(block)).await {
            Ok(blocks) => Ok(blocks
                .iter()
                .flat_map(|block| block.calls.iter().flat_map(|call| &call.logs))
                .filter(|log| log.address() == self.escrow)
                .filter_map(|log| IJobEscrow::Skipped::decode_log(&log.inner).ok())
                .map(|event| (event.jobId, event.reason))
                .collect()),
            Err(error) if error.error_code() == Some(METHOD_NOT_FOUND) => {
                tracing::warn!(%error, "the node does not simulate; sending batches untried from now on");
                self.options.simulate = false;
                Ok(Vec::new())
            }
            // A skipped item costs gas and nothing else: no reason to keep the others waiting.
            Err(error) if error.is_error_resp() => {
                tracing::warn!(%error, items = batch.items.len(), "the node could not simulate a batch; sending it untried");
                Ok(Vec::new())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn leave_out(
        &mut self,
        fence: Fence,
        batch: &mut Batch,
        skipped: &[(B256, SkipReason)],
    ) -> Result<(), RoundError> {
        batch.items.retain(|item| !skipped.iter().any(|(job, _)| *job == item.job_id));
        let (held, later): (Vec<_>, Vec<_>) =
            skipped.iter().copied().partition(|(_, reason)| batch::is_permanent(*reason));
        for (job, reason) in later {
            self.memory.not_before.insert(job, clock::now() + RETRY);
            tracing::warn!(%job, ?reason, "the contract would skip it now; trying again later");
        }
        self.hold(fence, &held).await
    }

    /// Stores the batch under the next nonce, commits, and only then sends it. False if the account cannot pay for it.
    async fn store_and_send(
        &mut self,
        fence: Fence,
        batch: Batch,
        gas_limit: u64,
        fees: Fees,
    ) -> Result<bool, RoundError> {
        if !self.can_pay(gas_limit, fees).await? {
            return Ok(false);
        }
        crash::at(crash::Point::Plan);
        let (sender, now) = (self.signer.address(), clock::now());
        let count = self.provider.get_transaction_count(sender).await?;
        let mut db = self.pool.begin().await?;
        let nonce = settlement::next_nonce(&mut db, fence, sender, count).await?;
        let call = Unsigned { chain_id: self.chain_id, to: self.escrow, input: batch.calldata(), gas_limit };
        let attempt = transaction::sign(&self.signer, call, nonce, fees, now)?;
        let job_ids = batch.job_ids();
        let id = settlement::insert_batch(&mut db, fence, batch.kind, (sender, nonce), &job_ids, &attempt, now).await?;
        db.commit().await?;
        crash::at(crash::Point::Persist);
        metrics::batch(batch.kind, "planned");
        tracing::info!(
            batch = id,
            kind = batch.kind.name(),
            nonce,
            tx = %attempt.tx_hash,
            items = job_ids.len(),
            gas_limit,
            max_fee_per_gas = attempt.max_fee_per_gas,
            "stored"
        );
        self.send(id, nonce, &attempt).await?;
        crash::at(crash::Point::Send);
        Ok(true)
    }

    async fn can_pay(&mut self, gas_limit: u64, fees: Fees) -> Result<bool, RoundError> {
        let sender = self.signer.address();
        let balance = self.provider.get_balance(sender).await?;
        let needed = U256::from(gas_limit) * U256::from(fees.max_fee_per_gas);
        let too_low = balance < needed;
        metrics::balance(f64::from(balance), too_low);
        if too_low && self.memory.begins(Condition::Underfunded) {
            tracing::error!(
                %sender, balance_wei = %balance, needed_wei = %needed,
                "the settler's account cannot pay for gas: send coins to it; payments wait until then"
            );
        }
        if !too_low && self.memory.ends(Condition::Underfunded) {
            tracing::info!(%sender, balance_wei = %balance, "the settler's account can pay for gas again");
        }
        Ok(!too_low)
    }
}

/// Why the contract would skip a result after `chain_time`.
fn expired(item: &Candidate, chain_time: DateTime<Utc>) -> Option<SkipReason> {
    let has_passed = |deadline: u64| i64::try_from(deadline).is_ok_and(|deadline| deadline < chain_time.timestamp());
    match item.deadline() {
        Some(_) if has_passed(item.call.order().deadline) => Some(SkipReason::Expired),
        Some(deadline) if has_passed(deadline) => Some(SkipReason::AssignmentExpired),
        _ => None,
    }
}

/// Whether the node says that the transaction itself fails, rather than that it cannot answer.
fn does_not_go_through(error: &TransportError) -> bool {
    error.as_error_resp().is_some_and(|answer| {
        answer.code == 3 || answer.message.contains("revert") || answer.message.contains("gas required exceeds")
    })
}
