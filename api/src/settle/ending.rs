//! How a batch that was mined ended. Only what the indexer has seen on the canonical chain counts.

use alloy::providers::Provider;
use market::batch::is_permanent;
use market::clock;
use market::db::leader::Fence;
use market::db::settlement::{self, Ending, Mined, Outcome, PendingBatch, Sighting};

use super::dispatch::{NewHold, store_holds};
use super::nonces::Nonces;
use super::settler::{RoundError, Settler};
use super::{crash, metrics};

impl Settler {
    /// Ends a batch that the indexer has seen mined, once it is deep enough; whether it ended.
    pub(super) async fn acknowledge(
        &mut self,
        fence: Fence,
        batch: &PendingBatch,
        sighting: Sighting,
        nonces: &Nonces,
    ) -> Result<bool, RoundError> {
        let deep = sighting.block.number.saturating_add(self.options.confirmations);
        if nonces.cursor.is_none_or(|cursor| cursor.number + 1 < deep) {
            return Ok(false);
        }
        let gas = self.gas_of(sighting).await;
        crash::at(crash::Point::Receipt);
        let mut db = settlement::snapshot(&self.pool).await?;
        // The chain may have moved on since.
        if !settlement::sightings(&mut db, &[sighting.tx_hash]).await?.contains(&sighting) {
            return Ok(false);
        }
        let ending = Ending::Mined(Mined { tx_hash: sighting.tx_hash, block: sighting.block, gas });
        let outcomes = settlement::outcomes(&mut db, batch, sighting.tx_hash).await?;
        let now = clock::now();
        let ended = settlement::end_batch(&mut db, fence, batch, ending, now).await?;
        if ended {
            store_holds(&mut db, fence, &holds(&outcomes), now).await?;
        }
        crash::at(crash::Point::Ending);
        db.commit().await?;
        if ended {
            report(batch, ending, &outcomes);
        }
        Ok(true)
    }

    /// What the transaction took and wei a unit, if the node has a receipt of that very block. Nothing depends on it but
    /// statistics and the budget.
    async fn gas_of(&self, sighting: Sighting) -> Option<(u64, u128)> {
        let receipt = self.ask(self.provider.get_transaction_receipt(sighting.tx_hash).into_future()).await.ok()??;
        (receipt.block_hash == Some(sighting.block.hash)).then_some((receipt.gas_used, receipt.effective_gas_price))
    }
}

/// What is not worth trying again.
fn holds(outcomes: &[Outcome]) -> Vec<NewHold> {
    outcomes
        .iter()
        .filter(|outcome| outcome.unsettled)
        .filter_map(|outcome| {
            let reason = outcome.skipped.filter(|reason| is_permanent(*reason))?;
            Some((outcome.subject, outcome.cumulative, reason))
        })
        .collect()
}

pub(super) fn report(batch: &PendingBatch, ending: Ending, outcomes: &[Outcome]) {
    let (id, nonce, items) = (batch.id, batch.nonce, batch.items());
    match ending {
        Ending::Mined(mined) => {
            metrics::batch(batch.kind, "mined");
            let gas_used = mined.gas.map_or(0, |(used, _)| used);
            metrics::gas_used(batch.kind, gas_used);
            let gas_per_item = gas_used / u64::try_from(items).unwrap_or(u64::MAX).max(1);
            let settled = outcomes.iter().filter(|outcome| !outcome.unsettled).count();
            tracing::info!(
                batch = id, kind = batch.kind.name(), nonce, tx = %mined.tx_hash, block = mined.block.number, items,
                settled, gas_used, gas_per_item, "mined"
            );
            outcomes.iter().for_each(|outcome| report_item(batch, outcome));
        }
        Ending::Reverted(mined) => {
            metrics::batch(batch.kind, "reverted");
            let gas_used = mined.gas.map_or(0, |(used, _)| used);
            metrics::gas_used(batch.kind, gas_used);
            tracing::error!(
                batch = id, kind = batch.kind.name(), nonce, tx = %mined.tx_hash, block = mined.block.number, items,
                gas_used, "reverted as a whole; its payments are sent again in smaller batches"
            );
        }
        Ending::Displaced { by, block } => {
            metrics::batch(batch.kind, "displaced");
            tracing::error!(
                batch = id,
                kind = batch.kind.name(),
                nonce,
                by = by.map(|hash| hash.to_string()),
                block = block.number,
                items,
                "another transaction has used the nonce: is the settler's key used elsewhere? Its payments are sent again"
            );
        }
    }
}

fn report_item(batch: &PendingBatch, outcome: &Outcome) {
    let (subject, reason) = (outcome.subject, outcome.skipped);
    match (outcome.unsettled, reason) {
        (false, _) => metrics::item(batch.kind, "settled"),
        (true, Some(reason)) if is_permanent(reason) => {
            metrics::item(batch.kind, "held");
            tracing::error!(batch = batch.id, %subject, ?reason, "skipped for good; the payment is on hold");
        }
        (true, Some(reason)) => {
            metrics::item(batch.kind, "skipped");
            tracing::warn!(batch = batch.id, %subject, ?reason, "skipped; the payment will be sent again");
        }
        (true, None) => {
            metrics::item(batch.kind, "skipped");
            tracing::error!(batch = batch.id, %subject, "the contract has no word on this item; it will be sent again");
        }
    }
}
