//! Following up what was sent and is not seen mined: sent again, replaced, or overtaken by another transaction.

use alloy::network::TransactionResponse;
use alloy::primitives::U256;
use alloy::providers::Provider;
use alloy::rpc::types::TransactionReceipt;
use chrono::{DateTime, TimeDelta, Utc};
use market::clock;
use market::db::chain::BlockId;
use market::db::leader::Fence;
use market::db::settlement::{self, Attempt, Ending, Mined, PendingBatch};

use super::fees::Fees;
use super::nonces::Nonces;
use super::purse::Purse;
use super::refusal::Refusal;
use super::settler::{Condition, Head, RoundError, Settler};
use super::{crash, ending, metrics, transaction};

/// How long after it was sent, or looked for, the node is asked whether it still has a transaction.
const LOOK_AFTER: TimeDelta = TimeDelta::seconds(3);

impl Settler {
    /// Looks after one pending batch of which the canonical chain has no events; whether it ended.
    pub(super) async fn follow(
        &mut self,
        fence: Fence,
        batch: &PendingBatch,
        nonces: &Nonces,
        quarantined: bool,
        head: Head,
        purse: &mut Purse,
    ) -> Result<bool, RoundError> {
        if let Some((block, _)) = nonces.settled.filter(|(_, count)| *count > batch.nonce) {
            return self.overtaken(fence, batch, block).await;
        }
        // If the nonce is used by a later block, the indexer is about to tell by what.
        if nonces.count <= batch.nonce && !quarantined {
            self.keep_alive(fence, batch, nonces.count, head, purse).await?;
        }
        Ok(false)
    }

    /// The nonce was used by `block`, which the indexer has, without an event of this batch: it reverted as a whole, or
    /// another transaction took its place. In doubt the batch stays pending.
    async fn overtaken(&mut self, fence: Fence, batch: &PendingBatch, block: BlockId) -> Result<bool, RoundError> {
        let ending = match self.receipt(batch).await? {
            Some(receipt) => self.ending_by_receipt(batch, &receipt),
            None => self.displacement(batch, block).await?,
        };
        let Some(ending) = ending else { return Ok(false) };
        let at = match ending {
            Ending::Mined(mined) | Ending::Reverted(mined) => mined.block,
            Ending::Displaced { block, .. } => block,
        };
        let hashes: Vec<_> = batch.attempts.iter().map(|attempt| attempt.tx_hash).collect();
        let mut db = settlement::snapshot(&self.pool).await?;
        let stands = settlement::is_canonical(&mut db, block).await?
            && settlement::is_canonical(&mut db, at).await?
            && settlement::sightings(&mut db, &hashes).await?.is_empty();
        if !stands {
            return Ok(false);
        }
        let ended = settlement::end_batch(&mut db, fence, batch, ending, clock::now()).await?;
        db.commit().await?;
        if ended {
            ending::report(batch, ending, &[]);
        }
        Ok(true)
    }

    async fn receipt(&self, batch: &PendingBatch) -> Result<Option<TransactionReceipt>, RoundError> {
        for attempt in batch.attempts.iter().rev() {
            if let Some(receipt) =
                self.ask(self.provider.get_transaction_receipt(attempt.tx_hash).into_future()).await?
            {
                return Ok(Some(receipt));
            }
        }
        Ok(None)
    }

    fn ending_by_receipt(&mut self, batch: &PendingBatch, receipt: &TransactionReceipt) -> Option<Ending> {
        let block = BlockId { number: receipt.block_number?, hash: receipt.block_hash? };
        let gas = Some((receipt.gas_used, receipt.effective_gas_price));
        let mined = Mined { tx_hash: receipt.transaction_hash, block, gas };
        match receipt.status() {
            false => Some(Ending::Reverted(mined)),
            true if batch.items() == 0 => Some(Ending::Mined(mined)),
            // Every item makes the contract say something.
            true => {
                if self.memory.begins(Condition::ReceiptContradicted(batch.id)) {
                    tracing::error!(
                        batch = batch.id, nonce = batch.nonce, tx = %mined.tx_hash, block = block.number,
                        "the node shows a receipt of which the canonical chain has no logs; not believing it"
                    );
                }
                None
            }
        }
    }

    async fn displacement(&mut self, batch: &PendingBatch, block: BlockId) -> Result<Option<Ending>, RoundError> {
        let request = self.provider.get_transaction_by_sender_nonce(batch.sender, batch.nonce);
        match self.ask(request).await {
            // Ours after all: its receipt will show up.
            Ok(Some(other)) if batch.attempts.iter().any(|attempt| attempt.tx_hash == other.tx_hash()) => Ok(None),
            Ok(Some(other)) if other.block_number.is_some() => {
                Ok(Some(Ending::Displaced { by: Some(other.tx_hash()), block }))
            }
            Ok(_) => Ok(None),
            // Few nodes know this call. The count at a block that is deep enough is proof too.
            Err(RoundError::Rpc(error)) if error.is_error_resp() => Ok(Some(Ending::Displaced { by: None, block })),
            Err(error) => Err(error),
        }
    }

    /// Sends the newest bytes again if the node does not know them, and replaces them if they are stuck.
    async fn keep_alive(
        &mut self,
        fence: Fence,
        batch: &PendingBatch,
        count: u64,
        head: Head,
        purse: &mut Purse,
    ) -> Result<(), RoundError> {
        let Some(newest) = batch.attempts.last() else {
            return Err(anyhow::anyhow!("batch {} has no signed transaction", batch.id).into());
        };
        let now = clock::now();
        let looked =
            [&self.memory.sent_at, &self.memory.looked_at].iter().filter_map(|at| at.get(&newest.tx_hash)).max();
        if looked.is_none_or(|at| now - *at >= LOOK_AFTER) {
            self.memory.looked_at.insert(newest.tx_hash, now);
            let known = self.ask(self.provider.get_transaction_by_hash(newest.tx_hash).into_future()).await?.is_some();
            if !known {
                self.send(batch.id, batch.nonce, newest).await?;
            }
        }
        let refusal = self.memory.refusals.get(&newest.tx_hash).map(|(refusal, _)| *refusal);
        // One that a node dropped or never took has not been waiting in vain, unless only more would make the node take it.
        if refusal.is_some_and(|refusal| !refusal.asks_for_more()) {
            return Ok(());
        }
        let since = self.memory.sent_at.get(&newest.tx_hash).copied().unwrap_or(newest.created_at);
        // Later nonces wait for this one, whatever they offer.
        let is_next = count == batch.nonce && batch.sender == self.signer.address();
        if is_next && now - since >= self.options.bump_after {
            self.replace(fence, batch, newest, head, purse, now).await?;
        }
        Ok(())
    }

    async fn replace(
        &mut self,
        fence: Fence,
        batch: &PendingBatch,
        newest: &Attempt,
        head: Head,
        purse: &mut Purse,
        now: DateTime<Utc>,
    ) -> Result<(), RoundError> {
        let current =
            Fees { max_fee_per_gas: newest.max_fee_per_gas, max_priority_fee_per_gas: newest.max_priority_fee_per_gas };
        let Some(fees) = current.bumped(self.suggested_fees(head).await?, self.options.caps) else {
            if self.memory.begins(Condition::BumpAboveCap(batch.id)) {
                metrics::stuck();
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
        let promised = U256::from(newest.gas_limit) * U256::from(newest.max_fee_per_gas);
        if !self.pay(purse, newest.gas_limit, fees, promised) {
            return Ok(());
        }
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

    /// Sends stored bytes. The node's refusal, or its silence, is no error: the bytes stay, and the next rounds see what
    /// became of them.
    pub(super) async fn send(&mut self, batch: i64, nonce: u64, attempt: &Attempt) -> Result<(), RoundError> {
        let tx = attempt.tx_hash;
        let sent = self.ask(crash::sending(self.provider.send_raw_transaction(&attempt.raw_tx))).await;
        let refusal = match &sent {
            Ok(_) => None,
            Err(RoundError::Rpc(error)) => match Refusal::of(error) {
                Some(Refusal::Known) => None,
                Some(refusal) => Some((refusal, error.to_string())),
                None => return self.unknown(batch, nonce, attempt, &error.to_string()),
            },
            Err(error) => return self.unknown(batch, nonce, attempt, &error.to_string()),
        };
        match refusal {
            None => {
                crash::at(crash::Point::Acknowledge);
                metrics::sent();
                self.memory.refusals.remove(&tx);
                let again = self.memory.sent_at.insert(tx, clock::now()).is_some();
                tracing::info!(batch, nonce, %tx, again, "sent");
            }
            Some((refusal, reason)) => {
                metrics::refused();
                if self.memory.refusals.insert(tx, (refusal, reason.clone())).is_none_or(|(_, before)| before != reason)
                {
                    tracing::warn!(batch, nonce, %tx, ?refusal, reason, "the node refuses the transaction; trying on");
                }
            }
        }
        Ok(())
    }

    /// Nobody knows whether the node took it: the next rounds look.
    fn unknown(&mut self, batch: i64, nonce: u64, attempt: &Attempt, reason: &str) -> Result<(), RoundError> {
        metrics::sent();
        self.memory.looked_at.insert(attempt.tx_hash, clock::now());
        tracing::warn!(batch, nonce, tx = %attempt.tx_hash, reason, "no answer to a transaction; it may have been sent");
        Ok(())
    }
}
