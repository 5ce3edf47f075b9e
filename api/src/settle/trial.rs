//! Trying a batch before it is signed: what would be skipped is left out for a while, what would revert is halved. A trial is one
//! node's word: it can delay a payment, and nothing else.

use alloy::eips::BlockId;
use alloy::providers::Provider;
use alloy::rpc::types::simulate::{SimBlock, SimulatePayload};
use alloy::rpc::types::{BlockOverrides, Log, TransactionRequest};
use alloy::sol_types::SolEvent;
use alloy::transports::TransportError;
use chrono::TimeDelta;
use market::abi::{IJobEscrow, SkipReason};
use market::batch::{Batch, Channel, Subject, is_permanent};
use market::clock;

use super::put_off::Why;
use super::settler::{Head, RoundError, Settler};

/// Percent of what a batch takes in a trial that it gets as its gas limit: what contract wallets take may change meanwhile.
const GAS_MARGIN_PERCENT: u64 = 125;
/// JSON-RPC's code for a method that the node does not have.
const METHOD_NOT_FOUND: i64 = -32601;

/// What came of trying a batch before it is signed.
pub(super) enum Trial {
    Ready { batch: Batch, gas_limit: u64 },
    Split(Batch, Batch),
    Empty,
}

/// What the node says of a batch.
struct Run {
    skipped: Vec<(Subject, SkipReason)>,
    /// Nothing if it would revert.
    gas: Option<u64>,
}

impl Settler {
    /// Has the node run the batch.
    pub(super) async fn try_out(&mut self, mut batch: Batch, head: Head) -> Result<Trial, RoundError> {
        let mut run = None;
        if self.options.simulate {
            run = self.simulate(&batch, head).await?;
            if let Some(run) = &run {
                self.leave_out(&mut batch, &run.skipped);
            }
        }
        if batch.items.is_empty() {
            return Ok(Trial::Empty);
        }
        let gas = match run {
            Some(run) => run.gas,
            None => self.estimate(&batch).await?,
        };
        if gas.is_none() {
            tracing::warn!(kind = batch.kind.name(), items = batch.items.len(), "a batch would revert");
        }
        // What it takes now is too low where an item would be skipped now and not when it is mined.
        let with_margin = |gas: u64| gas.saturating_mul(GAS_MARGIN_PERCENT) / 100;
        let gas_limit = gas.map_or(u64::MAX, with_margin).max(batch.gas());
        if gas_limit <= self.max_gas(head) {
            return Ok(Trial::Ready { batch, gas_limit });
        }
        if let [item] = batch.items.as_slice() {
            let until = self.put_off(item, Why::Fails);
            tracing::error!(
                subject = %item.subject, %until,
                "cannot be sent even alone: it would revert or take too much gas; trying again later"
            );
        }
        Ok(batch.split().map_or(Trial::Empty, |(one, other)| Trial::Split(one, other)))
    }

    fn request(&self, batch: &Batch) -> TransactionRequest {
        TransactionRequest::default().from(self.signer.address()).to(self.escrow).input(batch.calldata().into())
    }

    /// What the batch takes; nothing if it would revert.
    async fn estimate(&self, batch: &Batch) -> Result<Option<u64>, RoundError> {
        let request = self.provider.estimate_gas(self.request(batch)).block(BlockId::pending());
        match self.ask(request.into_future()).await {
            Ok(gas) => Ok(Some(gas)),
            Err(RoundError::Rpc(error)) if does_not_go_through(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What would become of the batch if it were mined next. Nothing if the node cannot tell.
    async fn simulate(&mut self, batch: &Batch, head: Head) -> Result<Option<Run>, RoundError> {
        let next = (head.time + TimeDelta::seconds(1)).max(clock::now()).timestamp();
        let block = SimBlock::default()
            .with_block_overrides(BlockOverrides { time: u64::try_from(next).ok(), ..BlockOverrides::default() })
            .call(self.request(batch));
        let payload = SimulatePayload::default().extend(block);
        match self.ask(self.provider.simulate(&payload).into_future()).await {
            Ok(blocks) => {
                let Some(call) = blocks.first().and_then(|block| block.calls.first()) else { return Ok(None) };
                let own = call.logs.iter().filter(|log| log.address() == self.escrow);
                let gas = call.max_used_gas.unwrap_or_default().max(call.gas_used);
                Ok(Some(Run { skipped: own.filter_map(skip).collect(), gas: call.status.then_some(gas) }))
            }
            Err(RoundError::Rpc(error)) if error.error_code() == Some(METHOD_NOT_FOUND) => {
                tracing::warn!(%error, "the node does not simulate; sending batches untried from now on");
                self.options.simulate = false;
                Ok(None)
            }
            // A skipped item costs gas and nothing else: no reason to keep the others waiting.
            Err(RoundError::Rpc(error)) if error.is_error_resp() => {
                tracing::warn!(%error, items = batch.items.len(), "the node could not simulate a batch; sending it untried");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts off what the contract would skip, by the node's word: it may be wrong, so that the item is tried again whatever the
    /// reason.
    fn leave_out(&mut self, batch: &mut Batch, skipped: &[(Subject, SkipReason)]) {
        let reason_of =
            |subject: Subject| skipped.iter().find(|(other, _)| *other == subject).map(|(_, reason)| *reason);
        let (out, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut batch.items).into_iter().partition(|item| reason_of(item.subject).is_some());
        batch.items = kept;
        for item in out {
            let (subject, reason) = (item.subject, reason_of(item.subject));
            let until = self.put_off(&item, Why::Skipped);
            if reason.is_some_and(is_permanent) {
                tracing::error!(%subject, ?reason, %until, "the contract would skip it for good, the node says; trying again later");
            } else {
                tracing::warn!(%subject, ?reason, %until, "the contract would skip it now, the node says; trying again later");
            }
        }
    }
}

/// What a log says was skipped, if it says so.
fn skip(log: &Log) -> Option<(Subject, SkipReason)> {
    if let Ok(event) = IJobEscrow::Skipped::decode_log(&log.inner) {
        return Some((Subject::Job(event.jobId), event.reason));
    }
    let event = IJobEscrow::VoucherSkipped::decode_log(&log.inner).ok()?;
    let channel = Channel { requester: event.requester, node: event.node, token: event.token };
    Some((Subject::Channel(channel), event.reason))
}

/// Whether the node says that the transaction itself fails, rather than that it cannot answer.
fn does_not_go_through(error: &TransportError) -> bool {
    error.as_error_resp().is_some_and(|answer| {
        answer.code == 3 || answer.message.contains("revert") || answer.message.contains("gas required exceeds")
    })
}
