//! The node looks after its own money: it keeps the vouchers it is given, watches the chain for what could cost it a payment,
//! and settles by itself before that happens.
//!
//! One pass asks the API for vouchers and the chain for the events of new blocks; only channels on which something is owed are
//! looked at. A node to which nothing is owed asks nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use alloy::primitives::{B256, U256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::Context as _;
use market::abi::IJobEscrow::{JobCancelling, JobPaid, JobRefunded, JobResolved, ResultSubmitted};
use market::abi::JobState;
use serde_json::json;

use super::Node;
use super::earnings::{Channel, Earning, HeldVoucher};
use super::settle::facts::{self, Standing, voucher_signer};
use super::settle::{self, Tally};
use crate::api::VoucherList;
use crate::chain::{Wallet, now_on_both};

/// Between two passes, when nothing happens.
const EVERY: Duration = Duration::from_secs(15);
/// After a result was acknowledged: its requester may countersign within seconds.
const SOON: Duration = Duration::from_secs(2);
/// Every so many passes everything is read anew, in case events were undone or missed.
const REFRESH_EVERY: u32 = 40;
/// Blocks that are read again, in case they were replaced.
const OVERLAP: u64 = 12;

/// What the guard remembers from pass to pass.
#[derive(Default)]
struct Memory {
    passes: u32,
    /// The last block whose events were read.
    seen: Option<u64>,
    /// When cancellations take effect, unix seconds.
    cancelled: BTreeMap<B256, u64>,
    /// When windows end, unix seconds.
    windows: BTreeMap<B256, u64>,
    /// Jobs that were asked for by name.
    asked: HashSet<B256>,
}

/// A time by which a payment must be on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    /// Unix seconds.
    end: u64,
    /// Since when it is known, unix seconds.
    since: u64,
}

impl Limit {
    /// Whether it is time to act: `before` seconds ahead of the end, but not in the first half of the time there is.
    fn presses(self, now: u64, before: u64) -> bool {
        let lead = before.min(self.end.saturating_sub(self.since) / 2);
        now >= self.end.saturating_sub(lead)
    }
}

impl Node {
    /// Looks after the money until the node ends.
    pub(super) async fn guard(&self) {
        let mut memory = Memory::default();
        loop {
            if let Err(error) = self.pass(&mut memory).await {
                tracing::warn!(node = %self.address, error = format!("{error:#}"), "cannot look after payments; trying again");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.ledger.changed() => tokio::time::sleep(SOON).await,
            }
        }
    }

    async fn pass(&self, memory: &mut Memory) -> anyhow::Result<()> {
        let open = self.ledger.earnings.open_ones()?;
        if open.is_empty() && self.ledger.earnings.vouchers()?.is_empty() {
            return Ok(());
        }
        // The chain is looked at also when the API is gone: then most of all.
        if let Err(error) = self.fetch_vouchers().await {
            tracing::debug!(node = %self.address, error = format!("{error:#}"), "no vouchers from the API");
        }
        self.read_events(memory, &open).await?;
        let now = now_on_both(&self.chain).await?;
        if !self.limits.no_settle && self.is_pressed(memory, &open, now).await? {
            self.settle_now().await?;
            memory.asked.clear();
        }
        memory.passes += 1;
        if memory.passes.is_multiple_of(REFRESH_EVERY) {
            memory.asked.clear();
            let snapshot = settle::look(&self.chain, self.address, &self.ledger.earnings).await?;
            settle::tidy(&self.chain, self.address, &self.ledger.earnings, &snapshot).await?;
        }
        Ok(())
    }

    /// Keeps what vouchers the API has for this node, after checking each.
    async fn fetch_vouchers(&self) -> anyhow::Result<()> {
        let path = format!("lit-compute/nodes/{}/vouchers", self.address.to_checksum(None));
        let list: VoucherList = self.api.get_signed_in(&path).await?;
        let now = now_on_both(&self.chain).await?;
        for body in list.vouchers.into_iter().filter(|body| body.node == self.address) {
            let held = HeldVoucher {
                requester: body.requester,
                token: body.token,
                cumulative: body.cumulative,
                covered_nonce: body.covered_nonce,
                signature: body.signature,
            };
            if self.ledger.earnings.voucher(held.channel())?.is_some_and(|known| !held.improves_on(&known)) {
                continue;
            }
            match voucher_signer(&self.chain, self.address, &held, now).await? {
                Standing::Flawed(reason) => {
                    tracing::warn!(requester = %held.requester, reason, "the API shows a voucher that is worth nothing");
                }
                _ if self.ledger.earnings.keep_voucher(&held)? => {
                    let about = json!({
                        "requester": held.requester.to_checksum(None), "token": held.token.to_checksum(None),
                        "cumulative": held.cumulative, "coveredNonce": held.covered_nonce.to_string(),
                    });
                    self.event("voucher", about);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Learns what the chain did with the results: by name the first time, by its events from then on.
    async fn read_events(&self, memory: &mut Memory, open: &[Earning]) -> anyhow::Result<()> {
        let ids: HashSet<B256> = open.iter().map(|earning| earning.job_id).collect();
        self.ledger.keep_only(&ids);
        memory.cancelled.retain(|job_id, _| ids.contains(job_id));
        memory.windows.retain(|job_id, _| ids.contains(job_id));
        memory.asked.retain(|job_id| ids.contains(job_id));

        let head = self.chain.provider.get_block_number().await.context("cannot read the chain")?;
        if let Some(seen) = memory.seen {
            self.read_new_blocks(memory, &ids, seen.saturating_sub(OVERLAP), head).await?;
        }
        memory.seen = Some(head);
        let unknown: Vec<B256> = ids.iter().filter(|job_id| !memory.asked.contains(*job_id)).copied().collect();
        for (job_id, job) in facts::jobs(&self.chain, unknown).await? {
            self.ledger.set_settled(job_id, !matches!(job.state, JobState::None | JobState::Open));
            if job.cancel_at != 0 {
                memory.cancelled.insert(job_id, job.cancel_at);
            }
            if matches!(job.state, JobState::Submitted | JobState::Disputed) {
                memory.windows.insert(job_id, job.finalize_at);
            }
            memory.asked.insert(job_id);
        }
        Ok(())
    }

    async fn read_new_blocks(
        &self,
        memory: &mut Memory,
        ids: &HashSet<B256>,
        from: u64,
        to: u64,
    ) -> anyhow::Result<()> {
        let kinds = [
            JobPaid::SIGNATURE_HASH,
            JobRefunded::SIGNATURE_HASH,
            JobResolved::SIGNATURE_HASH,
            ResultSubmitted::SIGNATURE_HASH,
            JobCancelling::SIGNATURE_HASH,
        ];
        let filter = Filter::new()
            .address(self.chain.deployment.escrow)
            .event_signature(kinds.to_vec())
            .from_block(from)
            .to_block(to);
        for log in self.chain.provider.get_logs(&filter).await.context("cannot read events from the chain")? {
            // The job's id is the first indexed argument of all of them.
            let (Some(kind), Some(job_id)) = (log.topics().first(), log.topics().get(1)) else { continue };
            if !ids.contains(job_id) {
                continue;
            }
            match *kind {
                JobCancelling::SIGNATURE_HASH => {
                    memory.cancelled.insert(*job_id, log.log_decode::<JobCancelling>()?.inner.cancelAt);
                }
                ResultSubmitted::SIGNATURE_HASH => {
                    memory.windows.insert(*job_id, log.log_decode::<ResultSubmitted>()?.inner.finalizeAt);
                    self.ledger.set_settled(*job_id, true);
                }
                _ => {
                    memory.windows.remove(job_id);
                    self.ledger.set_settled(*job_id, true);
                }
            }
        }
        Ok(())
    }

    /// Whether something would be lost, or lie idle for too long, if the node waited for others.
    async fn is_pressed(&self, memory: &Memory, open: &[Earning], now: u64) -> anyhow::Result<bool> {
        let before = self.limits.settle_before;
        if memory.windows.values().any(|end| now >= end.saturating_add(before)) {
            return Ok(true);
        }
        let mut channels: BTreeSet<Channel> = BTreeSet::new();
        for earning in
            open.iter().filter(|earning| earning.acknowledged_at.is_some() && !self.ledger.is_settled(earning.job_id))
        {
            let held = self.ledger.earnings.voucher(earning.channel())?;
            channels.insert(earning.channel());
            // A voucher has no deadline.
            if earning.is_signed() && held.is_some_and(|held| earning.order.nonce <= held.covered_nonce) {
                continue;
            }
            let cancel_at = memory.cancelled.get(&earning.job_id).copied();
            // What has passed cannot be saved any more.
            if now > earning.order.deadline || cancel_at.is_some_and(|end| now >= end) {
                continue;
            }
            if self.limits_of(earning, cancel_at).any(|limit| limit.presses(now, before)) {
                return Ok(true);
            }
        }
        channels.extend(self.ledger.earnings.vouchers()?.iter().map(HeldVoucher::channel));
        for channel in channels {
            if self.is_channel_pressed(channel, now).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn limits_of(&self, earning: &Earning, cancel_at: Option<u64>) -> impl Iterator<Item = Limit> {
        let signed_at = u64::try_from(earning.signed_at.timestamp()).unwrap_or(0);
        let notice = self.chain.deployment.escrow_params.thaw_period;
        let cancelled = cancel_at.map(|end| Limit { end, since: end.saturating_sub(notice) });
        let assigned = earning.assignment.as_ref().map(|assigned| Limit { end: assigned.expiry, since: signed_at });
        let deadline = Limit { end: earning.order.deadline, since: signed_at };
        [Some(deadline), cancelled, assigned].into_iter().flatten()
    }

    /// Whether what is owed on the channel is about to be out of reach: its requester takes funds back, or the key that
    /// signed its voucher expires.
    async fn is_channel_pressed(&self, channel: Channel, now: u64) -> anyhow::Result<bool> {
        let Channel { requester, token } = channel;
        let owed = self.ledger.owed(channel).await?;
        if owed.is_zero() {
            return Ok(false);
        }
        let (escrow, before) = (self.chain.escrow(), self.limits.settle_before);
        let notice = self.chain.deployment.escrow_params.thaw_period;
        let ends = |end: u64| Limit { end, since: end.saturating_sub(notice) }.presses(now, before);
        let account = escrow.account(requester, token).call().await?;
        let reservation = escrow.reservation(requester, self.address, token).call().await?;
        let stays = U256::from(account.free).saturating_add(reservation.reserved.saturating_sub(reservation.thawing));
        let goes = (account.thawing != 0 && ends(account.thawEnd))
            || (!reservation.thawing.is_zero() && ends(reservation.thawEnd));
        if goes && stays < owed {
            return Ok(true);
        }
        let Some(held) = self.ledger.earnings.voucher(channel)? else { return Ok(false) };
        let digest = market::typed_data::voucher_digest(&held.to_voucher(self.address)?, &self.chain.domain());
        match market::typed_data::recover(&held.signature, digest) {
            Ok(signer) if signer != requester => {
                let expiry = escrow.session(requester, signer, token).call().await?.expiry;
                Ok((now..=now.saturating_add(before)).contains(&expiry))
            }
            _ => Ok(false),
        }
    }

    /// Settles everything that can be.
    async fn settle_now(&self) -> anyhow::Result<()> {
        let snapshot = settle::look(&self.chain, self.address, &self.ledger.earnings).await?;
        // A wallet of its own each time: the operator's own commands take nonces too.
        let wallet = Wallet::new(self.chain.clone(), &self.rpc_url, self.signer.clone(), self.out);
        let mut tally = Tally::default();
        settle::execute(&wallet, &snapshot, SETTLE_BATCH, |outcome| {
            tally.add(&outcome);
            tracing::info!(node = %self.address, outcome = %outcome.to_json(), "settled by itself");
        })
        .await?;
        if tally.settled + tally.submitted > 0 {
            self.event("settled", json!({ "summary": tally }));
        }
        Ok(())
    }
}

/// Items in a transaction of the node's own.
const SETTLE_BATCH: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_presses_late_enough_to_leave_others_half_of_the_time() {
        let hour = Limit { end: 3_600, since: 0 };
        assert!(!hour.presses(2_999, 600) && hour.presses(3_000, 600));
        let short = Limit { end: 60, since: 0 };
        assert!(!short.presses(29, 600) && short.presses(30, 600));
        assert!(short.presses(1_000, 600), "also when it has passed");
        assert!(!Limit { end: 100, since: 100 }.presses(99, 600));
    }
}
