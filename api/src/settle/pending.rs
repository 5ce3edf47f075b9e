//! Following up what was sent: seen mined, sent again, replaced, or overtaken by another transaction.

use alloy::network::TransactionResponse;
use alloy::primitives::B256;
use alloy::providers::Provider;
use alloy::rpc::types::TransactionReceipt;
use chrono::{DateTime, Utc};
use market::batch::is_permanent;
use market::clock;
use market::db::leader::Fence;
use market::db::settlement::{self, Attempt, Ending, Mined, Outcome, PendingBatch};

use super::fees::Fees;
use super::settler::{Condition, Head, RoundError, Settler};
use super::{crash, metrics, transaction};

impl Settler {
    /// Looks after one pending batch; whether it ended.
    pub(super) async fn follow(&mut self, fence: Fence, batch: &PendingBatch, head: Head) -> Result<bool, RoundError> {
        // In this order: if the nonce was used by then, one of our transactions has a receipt by now, or another one did it.
        let count = self.provider.get_transaction_count(batch.sender).await?;
        if let Some(receipt) = self.receipt(batch).await? {
            return self.acknowledge(fence, batch, &receipt, head).await;
        }
        if count > batch.nonce {
            return self.yield_nonce(fence, batch, head).await;
        }
        self.keep_alive(fence, batch, count, head).await?;
        Ok(false)
    }

    async fn receipt(&self, batch: &PendingBatch) -> Result<Option<TransactionReceipt>, RoundError> {
        for attempt in batch.attempts.iter().rev() {
            if let Some(receipt) = self.provider.get_transaction_receipt(attempt.tx_hash).await? {
                return Ok(Some(receipt));
            }
        }
        Ok(None)
    }

    /// Ends a mined batch once it is deep enough and the indexer has applied its block: what the batch did, only the
    /// indexer says.
    async fn acknowledge(
        &mut self,
        fence: Fence,
        batch: &PendingBatch,
        receipt: &TransactionReceipt,
        head: Head,
    ) -> Result<bool, RoundError> {
        let (Some(number), Some(hash)) = (receipt.block_number, receipt.block_hash) else { return Ok(false) };
        if head.number + 1 < number.saturating_add(self.options.confirmations) {
            return Ok(false);
        }
        let mut db = settlement::snapshot(&self.pool).await?;
        if !settlement::has_indexed(&mut db, number, hash).await? {
            tracing::debug!(batch = batch.id, block = number, "mined; waiting for the indexer");
            return Ok(false);
        }
        crash::at(crash::Point::Acknowledge);
        let mined = Mined { tx_hash: receipt.transaction_hash, block_number: number, gas_used: receipt.gas_used };
        let outcomes =
            if receipt.status() { settlement::outcomes(&mut db, batch, mined.tx_hash).await? } else { Vec::new() };
        let ending = if receipt.status() { Ending::Mined(mined) } else { Ending::Reverted(mined) };
        let ended = settlement::end_batch(&mut db, fence, batch, ending, &holds(&outcomes), clock::now()).await?;
        db.commit().await?;
        if ended {
            report(batch, ending, &outcomes);
        }
        Ok(true)
    }

    /// Ends a batch whose nonce another transaction used, so that its payments are planned anew. Its bytes can never be
    /// mined any more on this chain.
    async fn yield_nonce(&mut self, fence: Fence, batch: &PendingBatch, head: Head) -> Result<bool, RoundError> {
        let settled = (head.number + 1).saturating_sub(self.options.confirmations);
        if self.provider.get_transaction_count(batch.sender).number(settled).await? <= batch.nonce {
            return Ok(false);
        }
        let by = match self.provider.get_transaction_by_sender_nonce(batch.sender, batch.nonce).await {
            Ok(Some(other)) if batch.attempts.iter().any(|attempt| attempt.tx_hash == other.tx_hash()) => {
                return Ok(false); // Ours after all: its receipt will show up.
            }
            Ok(Some(other)) if other.block_number.is_some() => Some(other.tx_hash()),
            Ok(_) => return Ok(false),
            // Few nodes know this call. The count of a block that is deep enough is proof too.
            Err(error) if error.is_error_resp() => None,
            Err(error) => return Err(error.into()),
        };
        let Some(block) = self.provider.get_block_by_number(settled.into()).await? else { return Ok(false) };
        let mut db = settlement::snapshot(&self.pool).await?;
        if !settlement::has_indexed(&mut db, settled, block.header.hash).await? {
            return Ok(false);
        }
        let ending = Ending::Displaced { by };
        if settlement::end_batch(&mut db, fence, batch, ending, &[], clock::now()).await? {
            db.commit().await?;
            report(batch, ending, &[]);
        }
        Ok(true)
    }

    /// Sends the newest bytes again if the node does not know them, and replaces them if they are stuck.
    async fn keep_alive(
        &mut self,
        fence: Fence,
        batch: &PendingBatch,
        count: u64,
        head: Head,
    ) -> Result<(), RoundError> {
        let Some(newest) = batch.attempts.last() else {
            return Err(anyhow::anyhow!("batch {} has no signed transaction", batch.id).into());
        };
        if self.provider.get_transaction_by_hash(newest.tx_hash).await?.is_none() {
            self.send(batch.id, batch.nonce, newest).await?;
            // A node may refuse what offers less than the base fee, for as long as that takes: only more helps then.
            let priced_out =
                newest.max_fee_per_gas < head.base_fee && self.memory.refusals.contains_key(&newest.tx_hash);
            if !priced_out {
                return Ok(());
            }
        }
        let now = clock::now();
        let since = self.memory.sent_at.get(&newest.tx_hash).copied().unwrap_or(newest.created_at);
        // Later nonces wait for this one, whatever they offer.
        let is_next = count == batch.nonce && batch.sender == self.signer.address();
        if is_next && now - since >= self.options.bump_after {
            self.replace(fence, batch, newest, now).await?;
        }
        Ok(())
    }

    async fn replace(
        &mut self,
        fence: Fence,
        batch: &PendingBatch,
        newest: &Attempt,
        now: DateTime<Utc>,
    ) -> Result<(), RoundError> {
        let current =
            Fees { max_fee_per_gas: newest.max_fee_per_gas, max_priority_fee_per_gas: newest.max_priority_fee_per_gas };
        let Some(fees) = current.bumped(self.suggested_fees().await?, self.options.caps) else {
            if self.memory.begins(Condition::BumpAboveCap(batch.id)) {
                tracing::error!(
                    batch = batch.id,
                    nonce = batch.nonce,
                    tx = %newest.tx_hash,
                    max_fee_per_gas = current.max_fee_per_gas,
                    "stuck, and its fees cannot be raised within the caps; waiting"
                );
            }
            return Ok(());
        };
        let attempt = transaction::sign_again(&self.signer, newest, fees, now)?;
        let mut db = self.pool.begin().await?;
        settlement::append_attempt(&mut db, fence, batch.id, &attempt).await?;
        db.commit().await?;
        metrics::fee_bumped();
        tracing::warn!(
            batch = batch.id,
            nonce = batch.nonce,
            replaced = %newest.tx_hash,
            tx = %attempt.tx_hash,
            max_fee_per_gas = attempt.max_fee_per_gas,
            max_priority_fee_per_gas = attempt.max_priority_fee_per_gas,
            "stuck; replaced with higher fees"
        );
        self.send(batch.id, batch.nonce, &attempt).await
    }

    /// Sends stored bytes. The node's refusal is no error: the bytes stay, and the next rounds see what became of them.
    pub(super) async fn send(&mut self, batch: i64, nonce: u64, attempt: &Attempt) -> Result<(), RoundError> {
        let tx = attempt.tx_hash;
        match self.provider.send_raw_transaction(&attempt.raw_tx).await {
            Ok(_) => {
                metrics::sent();
                self.memory.refusals.remove(&tx);
                let again = self.memory.sent_at.insert(tx, clock::now()).is_some();
                tracing::info!(batch, nonce, %tx, again, "sent");
                Ok(())
            }
            Err(error) if error.is_error_resp() => {
                let reason = error.to_string();
                if self.memory.refusals.insert(tx, reason.clone()).as_ref() != Some(&reason) {
                    tracing::warn!(batch, nonce, %tx, reason, "the node refuses the transaction; trying on");
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What is not worth trying again.
fn holds(outcomes: &[Outcome]) -> Vec<(B256, String)> {
    outcomes
        .iter()
        .filter(|outcome| outcome.unsettled)
        .filter_map(|outcome| Some((outcome.job_id, outcome.skipped.filter(|reason| is_permanent(*reason))?)))
        .map(|(job_id, reason)| (job_id, format!("{reason:?}")))
        .collect()
}

fn report(batch: &PendingBatch, ending: Ending, outcomes: &[Outcome]) {
    let (id, nonce, items) = (batch.id, batch.nonce, batch.job_ids.len());
    match ending {
        Ending::Mined(mined) => {
            metrics::batch(batch.kind, "mined");
            metrics::gas_used(batch.kind, mined.gas_used);
            let gas_per_item = mined.gas_used / u64::try_from(items).unwrap_or(u64::MAX).max(1);
            let settled = outcomes.iter().filter(|outcome| !outcome.unsettled).count();
            tracing::info!(
                batch = id, kind = batch.kind.name(), nonce, tx = %mined.tx_hash, block = mined.block_number, items,
                settled, gas_used = mined.gas_used, gas_per_item, "mined"
            );
            outcomes.iter().for_each(|outcome| report_item(batch, outcome));
        }
        Ending::Reverted(mined) => {
            metrics::batch(batch.kind, "reverted");
            metrics::gas_used(batch.kind, mined.gas_used);
            tracing::error!(
                batch = id, kind = batch.kind.name(), nonce, tx = %mined.tx_hash, block = mined.block_number, items,
                gas_used = mined.gas_used, "reverted as a whole; its payments are sent again in smaller batches"
            );
        }
        Ending::Displaced { by } => {
            metrics::batch(batch.kind, "displaced");
            tracing::error!(
                batch = id,
                kind = batch.kind.name(),
                nonce,
                by = by.map(|hash| hash.to_string()),
                items,
                "another transaction has used the nonce: is the settler's key used elsewhere? Its payments are sent again"
            );
        }
    }
}

fn report_item(batch: &PendingBatch, outcome: &Outcome) {
    let (job, reason) = (outcome.job_id, outcome.skipped);
    match (outcome.unsettled, reason) {
        (false, _) => metrics::item(batch.kind, "settled"),
        (true, Some(reason)) if is_permanent(reason) => {
            metrics::item(batch.kind, "held");
            tracing::error!(batch = batch.id, %job, ?reason, "skipped for good; the payment is on hold");
        }
        (true, Some(reason)) => {
            metrics::item(batch.kind, "skipped");
            tracing::warn!(batch = batch.id, %job, ?reason, "skipped; the payment will be sent again");
        }
        (true, None) => {
            metrics::item(batch.kind, "skipped");
            tracing::error!(batch = batch.id, %job, "the contract has no word on this item; it will be sent again");
        }
    }
}
