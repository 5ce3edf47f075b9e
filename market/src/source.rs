//! Reading the chain. Whatever a node returns is checked against what was asked for, since endpoints are often several
//! nodes that do not agree.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::RangeInclusive;
use std::time::Duration;

use alloy::eips::BlockNumberOrTag;
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::{Filter, Log};
use alloy::transports::{TransportError, TransportResult};
use futures::{StreamExt, TryStreamExt, stream};

use crate::db::chain::{Block, BlockId};
use crate::fold::{ChainEvent, Contracts, DecodeError, RawLog, time_of};

/// An endpoint that takes longer for one answer counts as failing.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often one request is made before its failure is that of the step.
const ATTEMPTS: u32 = 3;
/// Before a request is made again; longer before the third.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Requests under way at once.
const CONCURRENCY: usize = 8;

/// The chain, as its endpoints show it.
#[derive(Debug, Clone)]
pub struct Source {
    providers: Vec<DynProvider>,
    contracts: Contracts,
}

/// A stretch of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Its blocks in order; those without events may be missing, but not the last.
    pub blocks: Vec<Block>,
    /// All events in it, in order.
    pub events: Vec<ChainEvent>,
}

/// Why the chain could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The endpoint does not answer, or with an error.
    #[error("{what}: {error}")]
    Rpc {
        /// What was asked.
        what: &'static str,
        /// The transport's or the endpoint's word.
        error: TransportError,
    },
    /// No answer in time.
    #[error("{0}: no answer within {secs} s", secs = TIMEOUT.as_secs())]
    Timeout(&'static str),
    /// The answers do not fit together: the chain is being reorganised, or the endpoint is several nodes.
    #[error("the endpoint contradicts itself: {0}")]
    Inconsistent(String),
    /// A log of our contracts is not understood. Nothing to retry.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl SourceError {
    /// Whether the endpoint refused, rather than failed, so that asking for less may help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Rpc { error, .. } if error.is_error_resp())
    }
}

impl Source {
    /// Reads the logs of `contracts` through `providers`, the preferred one first.
    ///
    /// # Panics
    ///
    /// If there is no provider.
    #[must_use]
    pub fn new(providers: Vec<DynProvider>, contracts: Contracts) -> Self {
        assert!(!providers.is_empty(), "a chain is read through at least one provider");
        Self { providers, contracts }
    }

    /// The preferred endpoint.
    #[must_use]
    pub fn provider(&self) -> &DynProvider {
        &self.providers[0]
    }

    /// The contracts.
    #[must_use]
    pub fn contracts(&self) -> &Contracts {
        &self.contracts
    }

    /// The latest block.
    pub async fn head(&self) -> Result<Block, SourceError> {
        let head = self.header(BlockNumberOrTag::Latest).await?;
        head.ok_or_else(|| SourceError::Inconsistent("there is no latest block".to_owned()))
    }

    /// The latest block that the chain will never take back.
    pub async fn finalized(&self) -> Result<Block, SourceError> {
        let block = self.header(BlockNumberOrTag::Finalized).await?;
        block.ok_or_else(|| SourceError::Inconsistent("there is no finalized block".to_owned()))
    }

    /// The block with this number, if the chain is that long.
    pub async fn block(&self, number: u64) -> Result<Option<Block>, SourceError> {
        match self.header(BlockNumberOrTag::Number(number)).await? {
            Some(block) if block.id.number != number => {
                Err(SourceError::Inconsistent(format!("block {} instead of block {number}", block.id.number)))
            }
            other => Ok(other),
        }
    }

    /// The events of the blocks after `parent` up to number `to`, each block the child of the one before, and all of them.
    pub async fn branch(&self, parent: BlockId, to: u64) -> Result<Stretch, SourceError> {
        let blocks: Vec<Block> = stream::iter(parent.number + 1..=to)
            .map(|number| self.existing_block(number))
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        let mut last = parent;
        for block in &blocks {
            if block.parent_hash != last.hash {
                return Err(SourceError::Inconsistent(format!(
                    "block {} ({}) is not a child of {}",
                    block.id.number, block.id.hash, last.hash
                )));
            }
            last = block.id;
        }
        let events: Vec<Vec<ChainEvent>> =
            stream::iter(&blocks).map(|block| self.events_of(block)).buffered(CONCURRENCY).try_collect().await?;
        Ok(Stretch { blocks, events: events.concat() })
    }

    /// The events of blocks so far below the head that they are not expected to change, by ranges of numbers.
    pub async fn range(&self, numbers: RangeInclusive<u64>) -> Result<Stretch, SourceError> {
        // The hash of the last block commits to all before it. If it is the same before and after, the logs in between are
        // of one chain.
        let tip = self.existing_block(*numbers.end()).await?;
        let filter = self.filter().from_block(*numbers.start()).to_block(*numbers.end());
        let logs = ask("eth_getLogs", || self.provider().get_logs(&filter)).await?;
        let mut wanted: Vec<u64> = logs.iter().filter_map(|log| log.block_number).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut blocks: BTreeMap<u64, Block> = stream::iter(wanted)
            .map(|number| async move { Ok::<_, SourceError>((number, self.existing_block(number).await?)) })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        if self.existing_block(*numbers.end()).await?.id != tip.id {
            return Err(SourceError::Inconsistent(format!("block {} was replaced meanwhile", tip.id.number)));
        }
        let mut events = logs.iter().map(|log| self.event(log, &blocks)).collect::<Result<Vec<_>, _>>()?;
        events.sort_by_key(|event| (event.log.block_number, event.log.log_index));
        blocks.insert(tip.id.number, tip);
        if blocks.keys().any(|number| !numbers.contains(number)) {
            return Err(SourceError::Inconsistent("logs from outside the range that was asked for".to_owned()));
        }
        Ok(Stretch { blocks: blocks.into_values().collect(), events })
    }

    /// As [`Self::range`], from block `from` on and up to `to`, or less far where the endpoint refuses as much at once.
    pub async fn next_range(&self, from: u64, to: u64, size: &mut RangeSize) -> Result<Stretch, SourceError> {
        loop {
            let to = to.min(from.saturating_add(size.now - 1));
            match self.range(from..=to).await {
                Ok(stretch) => {
                    size.grow();
                    return Ok(stretch);
                }
                Err(error) if error.is_refusal() && size.shrink() => {
                    tracing::debug!(%error, range = size.now, "asking for fewer blocks at once");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The events of one block.
    pub async fn events_of(&self, block: &Block) -> Result<Vec<ChainEvent>, SourceError> {
        let filter = self.filter().at_block_hash(block.id.hash);
        let logs = ask("eth_getLogs", || self.provider().get_logs(&filter)).await?;
        let blocks = BTreeMap::from([(block.id.number, block.clone())]);
        let mut events = logs.iter().map(|log| self.event(log, &blocks)).collect::<Result<Vec<_>, _>>()?;
        events.sort_by_key(|event| event.log.log_index);
        Ok(events)
    }

    fn filter(&self) -> Filter {
        Filter::new().address(vec![self.contracts.escrow, self.contracts.registry])
    }

    async fn existing_block(&self, number: u64) -> Result<Block, SourceError> {
        let block = self.block(number).await?;
        block.ok_or_else(|| SourceError::Inconsistent(format!("block {number} is gone")))
    }

    async fn header(&self, at: BlockNumberOrTag) -> Result<Option<Block>, SourceError> {
        let block = ask("eth_getBlockByNumber", || async { self.provider().get_block_by_number(at).await }).await?;
        Ok(block.map(|block| Block {
            id: BlockId { number: block.header.number, hash: block.header.hash },
            parent_hash: block.header.parent_hash,
            mined_at: time_of(block.header.timestamp),
        }))
    }

    /// Reads a log of one of `blocks`.
    fn event(&self, log: &Log, blocks: &BTreeMap<u64, Block>) -> Result<ChainEvent, SourceError> {
        let strange = |what: &str| SourceError::Inconsistent(format!("{what}: {log:?}"));
        let (Some(number), Some(hash), Some(tx_hash), Some(log_index), false) =
            (log.block_number, log.block_hash, log.transaction_hash, log.log_index, log.removed)
        else {
            return Err(strange("a log that is not of a mined block"));
        };
        let block = blocks.get(&number).filter(|block| block.id.hash == hash);
        let block = block.ok_or_else(|| strange("a log of another block than was asked for"))?;
        let raw = RawLog {
            block_number: number,
            block_hash: hash,
            mined_at: block.mined_at,
            tx_hash,
            log_index,
            contract: log.address(),
            topics: log.topics().to_vec(),
            data: log.data().data.clone(),
        };
        Ok(ChainEvent::decode(raw, &self.contracts)?)
    }
}

/// How many blocks one query of logs spans: half as many when the endpoint refuses, slowly more when it does not.
#[derive(Debug, Clone, Copy)]
pub struct RangeSize {
    now: u64,
    max: u64,
}

impl RangeSize {
    /// As long as `max` blocks, which must not be zero.
    #[must_use]
    pub fn up_to(max: u64) -> Self {
        Self { now: max, max }
    }

    /// False if it cannot be less.
    fn shrink(&mut self) -> bool {
        let before = self.now;
        self.now = (self.now / 2).max(1);
        self.now < before
    }

    fn grow(&mut self) {
        self.now = self.now.saturating_add(self.now / 8 + 1).min(self.max);
    }
}

/// Asks up to three times. What the endpoint itself refuses is not asked again.
pub async fn ask<T, A>(what: &'static str, request: impl Fn() -> A) -> Result<T, SourceError>
where
    A: Future<Output = TransportResult<T>>,
{
    let mut attempt = 1;
    loop {
        let error = match tokio::time::timeout(TIMEOUT, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => SourceError::Rpc { what, error },
            Err(_) => SourceError::Timeout(what),
        };
        if attempt == ATTEMPTS || error.is_refusal() {
            return Err(error);
        }
        tracing::debug!(%error, attempt, "asking again");
        tokio::time::sleep(RETRY_PAUSE * attempt).await;
        attempt += 1;
    }
}
