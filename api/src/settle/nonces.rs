//! Which of the account's nonces are used, and by whom.

use alloy::providers::Provider;
use market::batch::Batch;
use market::clock;
use market::db::chain::{self, BlockId};
use market::db::leader::Fence;
use market::db::settlement::{self, PendingBatch};

use super::metrics;
use super::purse::Purse;
use super::settler::{Condition, Head, RoundError, Settler};

/// What the chain's node and the indexer know of the account's transactions.
#[derive(Debug, Clone, Copy)]
pub struct Nonces {
    /// How many are mined, by whichever the node says of the two.
    pub count: u64,
    /// Where the indexer is.
    pub cursor: Option<BlockId>,
    /// A canonical block of the indexer that is deep enough, and how many are mined by then. The node was asked by the
    /// block's hash: one that is behind, or on another branch, cannot answer.
    pub settled: Option<(BlockId, u64)>,
}

impl Settler {
    pub(super) async fn nonces(&mut self) -> Result<Nonces, RoundError> {
        let sender = self.signer.address();
        let mut db = self.pool.acquire().await?;
        let cursor = chain::cursor(&mut db).await?.map(|cursor| cursor.block);
        let deep = cursor.map(|cursor| (cursor.number + 1).saturating_sub(self.options.confirmations));
        let block = match deep {
            Some(number) => chain::canonical_at_or_below(&mut db, number).await?,
            None => None,
        };
        drop(db);
        let settled = match block {
            Some(block) => self.count_at(block).await?.map(|count| (block, count)),
            None => None,
        };
        let latest = self.ask(self.provider.get_transaction_count(sender).into_future()).await?;
        let behind = settled.is_some_and(|(_, count)| latest < count);
        if behind && self.memory.begins(Condition::CountBehind) {
            tracing::warn!(
                latest,
                settled = settled.map(|(_, count)| count),
                "the node's count of our transactions is stale"
            );
        }
        if !behind {
            self.memory.ends(Condition::CountBehind);
        }
        let count = settled.map_or(latest, |(_, count)| count.max(latest));
        Ok(Nonces { count, cursor, settled })
    }

    async fn count_at(&mut self, block: BlockId) -> Result<Option<u64>, RoundError> {
        let request = self.provider.get_transaction_count(self.signer.address()).hash(block.hash);
        match self.ask(request.into_future()).await {
            Ok(count) => {
                self.memory.ends(Condition::NodeBehind);
                Ok(Some(count))
            }
            Err(RoundError::Rpc(error)) if error.is_error_resp() => {
                if self.memory.begins(Condition::NodeBehind) {
                    tracing::warn!(number = block.number, hash = %block.hash, %error, "the node does not know the indexer's block");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks for used nonces that no batch has. Whoever used them may have paid what is due here, so nothing is sent before
    /// the indexer has read the logs of the block by which they were used. Returns whether that is still awaited.
    pub(super) async fn explain(&mut self, fence: Fence, nonces: &Nonces) -> Result<bool, RoundError> {
        let sender = self.signer.address();
        let mut db = self.pool.begin().await?;
        let unexplained = settlement::unexplained(&mut db, sender, self.memory.explained, nonces.count).await?;
        let mut awaited = Vec::new();
        for (first, last) in unexplained {
            let Some((block, count)) = nonces.settled.filter(|(_, count)| *count > first) else {
                awaited.push((first, last));
                continue;
            };
            let read = (first, last.min(count - 1));
            settlement::record_foreign(&mut db, fence, sender, read, block, clock::now()).await?;
            metrics::foreign_nonces(read.1 - read.0 + 1);
            tracing::error!(
                first = read.0,
                last = read.1,
                block = block.number,
                "nonces were used by transactions of which nothing is stored: is the settler's key used elsewhere, or is the \
                 database older than the chain? The chain's logs are read up to then; going on"
            );
            if last >= count {
                awaited.push((count, last));
            }
        }
        db.commit().await?;
        if let Some((first, _)) = awaited.first() {
            metrics::quarantined(true);
            if self.memory.begins(Condition::Quarantined) {
                tracing::error!(
                    nonce = first,
                    count = nonces.count,
                    "unexplained nonce: sending nothing until the chain's logs are read"
                );
            }
            return Ok(true);
        }
        self.memory.explained = self.memory.explained.max(nonces.count);
        metrics::quarantined(false);
        if self.memory.ends(Condition::Quarantined) {
            tracing::info!(count = nonces.count, "every nonce is explained; sending again");
        }
        Ok(false)
    }

    /// Takes up again the batches that a reorg has undone: their bytes are as good as before.
    pub(super) async fn reopen(&mut self, fence: Fence, nonces: &Nonces) -> Result<(), RoundError> {
        let count = nonces.settled.map(|(_, count)| count);
        let mut db = self.pool.begin().await?;
        let reopened = settlement::reopen(&mut db, fence, self.signer.address(), count, clock::now()).await?;
        db.commit().await?;
        for batch in reopened {
            metrics::reopened();
            tracing::warn!(batch, "a reorg has undone a batch that had ended; following it again");
        }
        Ok(())
    }

    /// A reorg can undo a foreign transaction below our nonces: then nothing of ours is mined until a call that does nothing
    /// takes its nonce. Returns whether one was sent.
    pub(super) async fn fill_gap(
        &mut self,
        fence: Fence,
        pending: &[PendingBatch],
        nonces: &Nonces,
        head: Head,
        purse: &mut Purse,
    ) -> Result<bool, RoundError> {
        let own = pending.iter().filter(|batch| batch.sender == self.signer.address());
        let lowest = own.map(|batch| batch.nonce).min();
        // Both counts, or one that is behind would make a gap where there is none.
        let sure = nonces.settled.is_some_and(|(_, count)| count == nonces.count);
        if !lowest.is_some_and(|lowest| sure && lowest > nonces.count) {
            self.memory.ends(Condition::NonceGap);
            return Ok(false);
        }
        if self.memory.begins(Condition::NonceGap) {
            tracing::error!(nonce = nonces.count, "no batch has the nonce that must be mined next; filling it");
        }
        let Some(fees) = self.affordable_fees(head).await? else { return Ok(false) };
        let batch = Batch::empty();
        let gas = batch.gas();
        self.store_and_send(fence, batch, gas, fees, nonces, purse).await
    }
}
