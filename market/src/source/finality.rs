//! Which block the chain will not take back. Where there are two endpoints or more, two have to agree on its hash.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::B256;
use metrics::counter;

use super::providers::Who;
use super::wire::Header;
use super::{Source, SourceError};
use crate::confirmation::Finality;
use crate::db::chain::{Block, BlockId};

/// How often the endpoints that are not preferred are asked for their latest block.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Endpoints that have to agree, where there are as many.
const QUORUM: usize = 2;

impl Source {
    /// The latest block that the chain's nodes call finalized.
    pub async fn finalized(&self) -> Result<Block, SourceError> {
        let (header, _) = self.header_at(BlockNumberOrTag::Finalized, &[]).await?;
        let header = header.ok_or_else(|| SourceError::Inconsistent("there is no finalized block".to_owned()))?;
        Ok(header.block)
    }

    /// The block with this number, if the chain is that long, to begin on: nothing that comes later shows that its hash was wrong,
    /// so its child has to name it too, or without one it has to be said twice.
    pub async fn anchor(&self, number: u64) -> Result<Option<Block>, SourceError> {
        let Some(anchor) = self.block(number).await? else { return Ok(None) };
        let is_sure = match self.block(number + 1).await? {
            Some(child) => child.parent_hash == anchor.id.hash,
            None => self.block(number).await?.is_some_and(|again| again.id == anchor.id),
        };
        let unsure = || SourceError::Inconsistent(format!("block {number} is not the parent of the next one"));
        if is_sure { Ok(Some(anchor)) } else { Err(unsure()) }
    }

    /// The latest final block of the chain whose latest block is `head`. Nothing if no block is, or if the endpoints do not
    /// agree on it: then it is asked again later.
    pub async fn final_block(&self, head: &Header, finality: Finality) -> Result<Option<BlockId>, SourceError> {
        let candidate = match finality {
            Finality::Tag => self.header_at(BlockNumberOrTag::Finalized, &[]).await?.0.map(|header| header.block.id),
            Finality::Depth(0) => Some(head.block.id),
            Finality::Depth(depth) => match head.block.id.number.checked_sub(depth) {
                Some(number) => self.block(number).await?.map(|block| block.id),
                None => None,
            },
        };
        let Some(candidate) = candidate else { return Ok(None) };
        Ok(self.is_agreed(candidate).await.then_some(candidate))
    }

    /// Whether two endpoints have this block, or the only one does. One that rests is not waited for, as the head would wait too.
    pub(super) async fn is_agreed(&self, block: BlockId) -> bool {
        if self.providers.len() < QUORUM {
            return true;
        }
        let mut said: BTreeMap<B256, Vec<Who>> = BTreeMap::new();
        for (who, id) in self.header_by_awake(block.number).await {
            if let Some(id) = id {
                said.entry(id.hash).or_default().push(who);
            }
        }
        let agree = said.get(&block.hash).map_or(0, Vec::len);
        if said.len() > 1 {
            counter!("littoral_rpc_disagreements_total").increment(1);
            tracing::warn!(number = block.number, hash = %block.hash, agree, said = said.len(),
                "the endpoints do not agree on a block that is to be final");
            // Of two, nobody knows which is wrong.
            if agree >= QUORUM {
                let wrong = said.iter().filter(|(hash, whose)| **hash != block.hash && whose.len() < agree);
                for who in wrong.flat_map(|(_, whose)| whose) {
                    self.providers.lied(*who, "another block than all others where the chain is final");
                }
            }
        }
        agree >= QUORUM
    }

    /// Whether the endpoints that answer all say, and say again, that `block` is not on the chain but another is. If any still
    /// has it, those that said otherwise were wrong.
    pub async fn is_gone(&self, block: BlockId) -> Result<bool, SourceError> {
        let said = self.header_by_all(block.number).await;
        if said.is_empty() {
            return Err(SourceError::Inconsistent(format!("nobody says whether block {} is gone", block.number)));
        }
        let has = |id: &Option<BlockId>| *id == Some(block);
        if said.iter().any(|(_, id)| has(id)) {
            for (who, _) in said.iter().filter(|(_, id)| id.is_some() && !has(id)) {
                self.providers.lied(*who, "another block where the chain is final");
            }
            return Ok(false);
        }
        if self.header_by_all(block.number).await != said {
            return Err(SourceError::Inconsistent(format!("block {} is another each time", block.number)));
        }
        Ok(said.iter().any(|(_, id)| id.is_some()))
    }

    /// Has the other endpoints asked for their latest block, now and then and without waiting for it.
    pub(super) fn look_at_others(&self, preferred: Who) {
        if self.providers.len() < 2 {
            return;
        }
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        if looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return;
        }
        *looked_at = Some(Instant::now());
        for who in (0..self.providers.len()).filter(|who| *who != preferred) {
            let source = self.clone();
            tokio::spawn(async move { source.look_at(who).await });
        }
    }
}
