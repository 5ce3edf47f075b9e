//! Headers: one by one at the head, by batches below it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::B256;
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::client::BatchRequest;
use alloy::transports::TransportResult;
use futures::{StreamExt, TryStreamExt, future, stream};
use serde_json::value::RawValue;

use super::providers::Who;
use super::wire::{self, Header};
use super::{Source, SourceError, off_thread};
use crate::db::chain::{Block, BlockId};

const METHOD: &str = "eth_getBlockByNumber";
/// Headers in one JSON-RPC batch; providers allow 100 and more.
const BATCH: usize = 100;
/// Requests under way at once.
const CONCURRENCY: usize = 4;

impl Source {
    /// The latest block.
    pub async fn head(&self) -> Result<Header, SourceError> {
        let (head, who) = self.header_at(BlockNumberOrTag::Latest, &[]).await?;
        let head = head.ok_or_else(|| SourceError::Inconsistent("there is no latest block".to_owned()))?;
        self.providers.has_shown(who, head.block.id.number);
        self.look_at_others(who);
        Ok(head)
    }

    /// The block with this number, if the chain is that long.
    pub async fn block(&self, number: u64) -> Result<Option<Block>, SourceError> {
        Ok(self.header(number).await?.map(|header| header.block))
    }

    /// The header of the block with this number, if the chain is that long.
    pub async fn header(&self, number: u64) -> Result<Option<Header>, SourceError> {
        Ok(self.header_at(BlockNumberOrTag::Number(number), &[]).await?.0)
    }

    /// What one endpoint says of `at`, by whoever answers, rather one that is none of `others_than`.
    pub(super) async fn header_at(
        &self,
        at: BlockNumberOrTag,
        others_than: &[Who],
    ) -> Result<(Option<Header>, Who), SourceError> {
        let (raw, who) = self.providers.ask(METHOD, others_than, |provider| single(provider, at)).await?;
        Ok((self.read_header(raw, at, who)?, who))
    }

    /// What each endpoint says of the block with this number, if it says anything. Waits for those that rest.
    pub(super) async fn header_by_all(&self, number: u64) -> Vec<(Who, Option<BlockId>)> {
        self.header_by(number, 0..self.providers.len()).await
    }

    /// As [`Self::header_by_all`], of those that do not rest.
    pub(super) async fn header_by_awake(&self, number: u64) -> Vec<(Who, Option<BlockId>)> {
        self.header_by(number, (0..self.providers.len()).filter(|who| !self.providers.rests(*who))).await
    }

    async fn header_by(&self, number: u64, whose: impl Iterator<Item = Who>) -> Vec<(Who, Option<BlockId>)> {
        let asked = whose.map(|who| async move { Some((who, self.header_of(number, who).await.ok()?)) });
        future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// What `who` says of the block with this number, asked once.
    pub(super) async fn header_of(&self, number: u64, who: Who) -> Result<Option<BlockId>, SourceError> {
        let at = BlockNumberOrTag::Number(number);
        let raw = self.providers.ask_one(who, METHOD, &|provider| single(provider, at)).await?;
        Ok(self.read_header(raw, at, who)?.map(|header| header.block.id))
    }

    /// Whether `who` has the block with this hash.
    pub(super) async fn knows(&self, hash: B256, who: Who) -> Result<bool, SourceError> {
        let method = "eth_getBlockByHash";
        let ask = |provider: DynProvider| async move {
            provider.raw_request::<_, Option<Box<RawValue>>>(method.into(), (hash, false)).await
        };
        Ok(self.providers.ask_one(who, method, &ask).await?.is_some())
    }

    /// The headers of the blocks with these numbers, which the chain has to have.
    pub(super) async fn headers(&self, numbers: &[u64]) -> Result<BTreeMap<u64, Header>, SourceError> {
        let chunks: Vec<Vec<u64>> = numbers.chunks(BATCH).map(<[u64]>::to_vec).collect();
        let batches: Vec<Vec<Header>> =
            stream::iter(chunks).map(|numbers| self.some_headers(numbers)).buffered(CONCURRENCY).try_collect().await?;
        Ok(batches.into_iter().flatten().map(|header| (header.block.id.number, header)).collect())
    }

    /// Notes the latest block that `who` has.
    pub(super) async fn look_at(&self, who: Who) {
        let at = BlockNumberOrTag::Latest;
        // What fails is counted, and the endpoint is worse for it.
        let Ok(raw) = self.providers.ask_one(who, METHOD, &|provider| single(provider, at)).await else { return };
        if let Ok(Some(head)) = self.read_header(raw, at, who) {
            self.providers.has_shown(who, head.block.id.number);
        }
    }

    async fn some_headers(&self, numbers: Vec<u64>) -> Result<Vec<Header>, SourceError> {
        if numbers.len() > 1 && self.batches.load(Relaxed) {
            let asked = self
                .providers
                .ask("eth_getBlockByNumber (batch)", &[], |provider| batch(provider, numbers.clone()))
                .await;
            match asked {
                Ok((raw, who)) => return self.read_headers(raw, &numbers, who).await,
                Err(error) => {
                    // Not every endpoint takes batches. If this one is down, the next request tells.
                    tracing::debug!(%error, "asking for headers one by one");
                }
            }
            let headers = self.single_headers(&numbers).await?;
            self.batches.store(false, Relaxed);
            return Ok(headers);
        }
        self.single_headers(&numbers).await
    }

    async fn single_headers(&self, numbers: &[u64]) -> Result<Vec<Header>, SourceError> {
        stream::iter(numbers.iter().copied())
            .map(|number| async move {
                let header = self.header(number).await?;
                header.ok_or_else(|| SourceError::Inconsistent(format!("block {number} is gone")))
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await
    }

    async fn read_headers(
        &self,
        raw: Vec<Option<Box<RawValue>>>,
        numbers: &[u64],
        who: Who,
    ) -> Result<Vec<Header>, SourceError> {
        let read = move || raw.iter().map(|raw| raw.as_deref().map(wire::header).transpose()).collect::<Vec<_>>();
        let mut headers = Vec::with_capacity(numbers.len());
        for (read, number) in off_thread(read).await?.into_iter().zip(numbers) {
            let header = read.map_err(|what| self.wrong(who, what))?;
            let header = header.ok_or_else(|| SourceError::Inconsistent(format!("block {number} is gone")))?;
            headers.push(self.numbered(header, *number, who)?);
        }
        Ok(headers)
    }

    fn read_header(
        &self,
        raw: Option<Box<RawValue>>,
        at: BlockNumberOrTag,
        who: Who,
    ) -> Result<Option<Header>, SourceError> {
        let Some(raw) = raw else { return Ok(None) };
        let header = wire::header(&raw).map_err(|what| self.wrong(who, what))?;
        match at {
            BlockNumberOrTag::Number(number) => self.numbered(header, number, who).map(Some),
            _ => Ok(Some(header)),
        }
    }

    fn numbered(&self, header: Header, number: u64, who: Who) -> Result<Header, SourceError> {
        match header.block.id.number {
            actual if actual == number => Ok(header),
            actual => Err(self.wrong(who, format!("block {actual} instead of block {number}"))),
        }
    }
}

async fn single(provider: DynProvider, at: BlockNumberOrTag) -> TransportResult<Option<Box<RawValue>>> {
    provider.raw_request(METHOD.into(), (at, false)).await
}

async fn batch(provider: DynProvider, numbers: Vec<u64>) -> TransportResult<Vec<Option<Box<RawValue>>>> {
    let mut batch = BatchRequest::new(provider.client());
    let mut answers = Vec::with_capacity(numbers.len());
    for number in numbers {
        answers.push(batch.add_call(METHOD, &(BlockNumberOrTag::Number(number), false))?);
    }
    batch.send().await?;
    future::try_join_all(answers).await
}
