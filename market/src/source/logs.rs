//! Logs: by ranges of numbers where blocks do not change any more, by a block's hash at the head.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::Filter;
use alloy::transports::TransportResult;
use futures::{StreamExt, TryStreamExt, stream};
use metrics::counter;
use serde_json::value::RawValue;

use super::promise::is_possible;
use super::providers::Who;
use super::refusal::Allowed;
use super::wire::{self, Found, Header};
use super::{RangeSize, Source, SourceError, Stretch, off_thread};
use crate::db::chain::BlockId;
use crate::fold::{ChainEvent, DecodeError};

const METHOD: &str = "eth_getLogs";
/// Requests under way at once.
const CONCURRENCY: usize = 8;
/// So many equal answers of one endpoint count as much as those of two.
const EQUAL_ANSWERS: usize = 3;
/// How often a block whose filter promises more is asked for.
const MOST_ANSWERS: usize = 8;
/// Before it is asked for again; longer each time.
const ASK_AGAIN: Duration = Duration::from_millis(30);
/// Where endpoints are known to cut answers off without a word.
const CUTS: [usize; 5] = [1000, 2000, 10_000, 20_000, 50_000];

/// A stretch of settled blocks, and the block below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What comes before it on the chain; nothing if it starts at block 0.
    pub parent: Option<BlockId>,
    /// Its blocks with events and its last block, and all its events.
    pub stretch: Stretch,
}

impl Source {
    /// The events of the blocks after `parent` up to number `to`, each block the child of the one before, and all of them.
    pub async fn branch(&self, parent: BlockId, to: u64) -> Result<Stretch, SourceError> {
        let numbers: Vec<u64> = (parent.number + 1..=to).collect();
        let headers: Vec<Header> = self.headers(&numbers).await?.into_values().collect();
        self.linked(parent, headers).await
    }

    /// The events of `headers`, which have to follow one another and `parent`.
    pub async fn linked(&self, parent: BlockId, headers: Vec<Header>) -> Result<Stretch, SourceError> {
        let mut last = parent;
        for Header { block, .. } in &headers {
            if block.parent_hash != last.hash && last == parent {
                return Err(SourceError::Branched(parent));
            }
            if block.parent_hash != last.hash || block.id.number != last.number + 1 {
                return Err(SourceError::Inconsistent(format!(
                    "block {} ({}) is not a child of {}",
                    block.id.number, block.id.hash, last.hash
                )));
            }
            last = block.id;
        }
        let events: Vec<Vec<ChainEvent>> =
            stream::iter(&headers).map(|header| self.events_of(header)).buffered(CONCURRENCY).try_collect().await?;
        Ok(Stretch { blocks: headers.into_iter().map(|header| header.block).collect(), events: events.concat() })
    }

    /// The events of one block: of several answers the fullest where its filter promises more than there is.
    pub async fn events_of(&self, header: &Header) -> Result<Vec<ChainEvent>, SourceError> {
        let mut answers: Vec<(Who, Vec<Found>)> = Vec::new();
        let mut asked: Vec<Who> = Vec::new();
        while asked.len() < MOST_ANSWERS {
            let (found, who) = self.logs_of(header, &asked).await?;
            let kept = !self.promises.are_broken(&header.bloom, &found);
            // Of a block that they do not have, some say that it has no logs.
            if kept || self.knows(header.block.id.hash, who).await? {
                answers.push((who, found));
            }
            if kept || is_settled(&answers) {
                return self.fullest(header, answers).await;
            }
            counter!("littoral_rpc_broken_promises_total").increment(1);
            if asked.contains(&who) || self.providers.len() == 1 {
                tokio::time::sleep(ASK_AGAIN * u32::try_from(asked.len() + 1).unwrap_or(u32::MAX)).await;
            }
            asked.push(who);
        }
        Err(SourceError::Inconsistent(format!(
            "the endpoints give {} answers of which no two have the same logs of block {}",
            answers.len(),
            header.block.id.hash
        )))
    }

    /// Blames those who gave less than the fullest answer, and decodes that.
    async fn fullest(&self, header: &Header, answers: Vec<(Who, Vec<Found>)>) -> Result<Vec<ChainEvent>, SourceError> {
        let most = answers.iter().map(|(_, found)| found.len()).max().unwrap_or_default();
        let mut fullest = Vec::new();
        for (who, found) in answers {
            if found.len() < most {
                self.providers.lied(who, "logs are missing in a block whose bloom filter promises them");
            } else {
                fullest = found;
            }
        }
        let blocks = BTreeMap::from([(header.block.id.number, header.clone())]);
        self.decode(fullest, Arc::new(blocks)).await
    }

    /// What someone says are the logs of a block, checked against its header.
    async fn logs_of(&self, header: &Header, others_than: &[Who]) -> Result<(Vec<Found>, Who), SourceError> {
        let id = header.block.id;
        let mut avoided = others_than.to_vec();
        loop {
            let (found, who) = self.logs(&self.filter().at_block_hash(id.hash), &avoided).await?;
            match found.iter().find(|log| log.block != id || !is_possible(&header.bloom, log)) {
                None => return Ok((found, who)),
                Some(strange) => {
                    let what = format!("a log that block {} cannot have: {strange:?}", id.hash);
                    let error = self.wrong(who, what);
                    if avoided.contains(&who) || self.providers.len() == 1 {
                        return Err(error);
                    }
                    avoided.push(who);
                }
            }
        }
    }

    /// The events of blocks that are not expected to change, by ranges of numbers.
    pub async fn range(&self, numbers: RangeInclusive<u64>) -> Result<Stretch, SourceError> {
        // The hash of the last block commits to all before it. If it is the same before and after, the logs in between are
        // of one chain.
        let end = *numbers.end();
        let anchor = self.block(end).await?;
        let anchor = anchor.ok_or_else(|| SourceError::Inconsistent(format!("block {end} is gone")))?;
        Ok(self.section(numbers, anchor.id, end).await?.stretch)
    }

    /// As [`Self::range`], from block `from` on and up to `to`, or less far where the endpoint refuses as much at once.
    pub async fn next_range(&self, from: u64, to: u64, size: &mut RangeSize) -> Result<Stretch, SourceError> {
        loop {
            let numbers = size.next(from, to);
            match self.range(numbers.clone()).await {
                Ok(stretch) => {
                    size.answered(&numbers, stretch.events.len());
                    return Ok(stretch);
                }
                Err(error) => shrink(size, &numbers, error)?,
            }
        }
    }

    /// Blocks below `anchor`, which has to be on the chain when their logs have been read, as it was before. Those above
    /// number `all_above` are given also where they have no events.
    pub(super) async fn section(
        &self,
        numbers: RangeInclusive<u64>,
        anchor: BlockId,
        all_above: u64,
    ) -> Result<Section, SourceError> {
        let (from, to) = (*numbers.start(), *numbers.end());
        let filter = self.filter().from_block(from).to_block(to);
        let (mut found, mut who) = self.logs(&filter, &[]).await?;
        if found.is_empty() && self.providers.len() > 1 {
            (found, who) = self.second_opinion(&filter, to, who).await?;
        }
        if found.iter().any(|log| !numbers.contains(&log.block.number)) {
            return Err(self.wrong(who, format!("logs from outside {from} to {to}, which was asked for")));
        }
        self.is_whole(&found, &numbers, who).await?;
        let mut wanted: Vec<u64> = found.iter().map(|log| log.block.number).collect();
        wanted.extend([from.saturating_sub(1), to, anchor.number]);
        wanted.extend(from.max(all_above.saturating_add(1))..=to);
        wanted.sort_unstable();
        wanted.dedup();
        let headers = Arc::new(self.headers(&wanted).await?);
        let id = |number: u64| headers.get(&number).map(|header| header.block.id);
        if id(anchor.number) != Some(anchor) {
            return Err(SourceError::Inconsistent(format!("block {} was replaced meanwhile", anchor.number)));
        }
        if let Some(strange) = found.iter().find(|log| {
            headers.get(&log.block.number).is_none_or(|at| at.block.id != log.block || !is_possible(&at.bloom, log))
        }) {
            return Err(self.wrong(who, format!("a log that its block on the chain cannot have: {strange:?}")));
        }
        self.keeps_promises(&found, numbers.clone(), &headers, who).await?;
        let parent = from.checked_sub(1).and_then(id);
        let with_events = |number: &u64| found.binary_search_by_key(number, |log| log.block.number).is_ok();
        let kept =
            |number: &u64| *number == to || (numbers.contains(number) && (*number > all_above || with_events(number)));
        let blocks = headers.iter().filter(|(number, _)| kept(number)).map(|(_, at)| at.block.clone()).collect();
        let events = self.decode(found, headers.clone()).await?;
        Ok(Section { parent, stretch: Stretch { blocks, events } })
    }

    /// What another endpoint than `who`, who has none, says are the logs up to block `to`. That there are none is believed only of
    /// two that have that block, and the same: one that is behind has nothing to say of what it has not seen. Whoever else
    /// there is is asked, lately wrong or not: it is not believed if it is alone.
    async fn second_opinion(&self, filter: &Filter, to: u64, who: Who) -> Result<(Vec<Found>, Who), SourceError> {
        let mut last = None;
        for other in self.providers.others(who) {
            match self.agrees_on_none(filter, to, who, other).await {
                Ok(found) => return Ok((found, other)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| SourceError::Inconsistent("there is no other endpoint".to_owned())))
    }

    async fn agrees_on_none(&self, filter: &Filter, to: u64, who: Who, other: Who) -> Result<Vec<Found>, SourceError> {
        let raw = self.providers.ask_one(other, METHOD, &|provider| logs_raw(provider, filter)).await?;
        let found = self.read_logs(raw, other).await?;
        if !found.is_empty() {
            self.providers.lied(who, "no logs in a range where another endpoint has some");
            return Ok(found);
        }
        let (one, two) = tokio::try_join!(self.header_of(to, who), self.header_of(to, other))?;
        if one.is_none() || one != two {
            let what = format!("not two endpoints have block {to} and say that there are no logs before it");
            return Err(SourceError::Inconsistent(what));
        }
        Ok(found)
    }

    /// An error if a block whose header was read has logs that the answer lacks: an endpoint that is behind, or is several
    /// nodes, answers a range as far as it has come and says nothing of the rest.
    async fn keeps_promises(
        &self,
        found: &[Found],
        numbers: RangeInclusive<u64>,
        headers: &BTreeMap<u64, Header>,
        who: Who,
    ) -> Result<(), SourceError> {
        for (number, header) in headers.range(numbers) {
            let begin = found.partition_point(|log| log.block.number < *number);
            let end = found.partition_point(|log| log.block.number <= *number);
            let logs = &found[begin..end];
            // A bloom filter may promise what there is not; the block's own logs tell.
            if self.promises.are_broken(&header.bloom, logs) && self.events_of(header).await?.len() != logs.len() {
                return Err(self.wrong(who, format!("not all logs of block {number} in a range")));
            }
        }
        Ok(())
    }

    /// An error if the answer seems to have been cut off: it is as long as one that is, and its last block has more logs, or
    /// blocks after it have.
    async fn is_whole(&self, found: &[Found], numbers: &RangeInclusive<u64>, who: Who) -> Result<(), SourceError> {
        let Some(last) = found.last().map(|log| log.block.number) else { return Ok(()) };
        if !CUTS.contains(&found.len()) || numbers.start() == numbers.end() {
            return Ok(());
        }
        let (rest, _) = self.logs(&self.filter().from_block(last).to_block(*numbers.end()), &[]).await?;
        let had = found.iter().rev().take_while(|log| log.block.number == last).count();
        if rest.len() == had {
            return Ok(());
        }
        self.providers.contradicted(who);
        let whole = last.checked_sub(1).filter(|end| end >= numbers.start());
        let range = whole.map(|end| *numbers.start()..=end);
        let provider = self.providers.name(who).to_owned();
        Err(SourceError::CutOff { provider, logs: found.len(), allowed: Allowed { range, blocks: None } })
    }

    fn filter(&self) -> Filter {
        Filter::new().address(vec![self.contracts.escrow, self.contracts.registry])
    }

    /// The logs that `filter` finds, in the chain's order.
    async fn logs(&self, filter: &Filter, others_than: &[Who]) -> Result<(Vec<Found>, Who), SourceError> {
        let (raw, who) = self.providers.ask(METHOD, others_than, |provider| logs_raw(provider, filter)).await?;
        Ok((self.read_logs(raw, who).await?, who))
    }

    async fn read_logs(&self, raw: Box<RawValue>, who: Who) -> Result<Vec<Found>, SourceError> {
        let found = off_thread(move || wire::logs(&raw)).await?;
        found.map_err(|what| self.wrong(who, what))
    }

    /// Reads logs whose blocks are all in `headers`.
    async fn decode(
        &self,
        found: Vec<Found>,
        headers: Arc<BTreeMap<u64, Header>>,
    ) -> Result<Vec<ChainEvent>, SourceError> {
        let contracts = self.contracts.clone();
        let decode = move || -> Result<Vec<ChainEvent>, DecodeError> {
            let times = |log: &Found| headers.get(&log.block.number).map(|header| header.block.mined_at);
            let dated = found.into_iter().filter_map(|log| times(&log).map(|mined_at| log.mined_at(mined_at)));
            dated.map(|log| ChainEvent::decode(log, &contracts)).collect()
        };
        Ok(off_thread(decode).await??)
    }
}

async fn logs_raw(provider: DynProvider, filter: &Filter) -> TransportResult<Box<RawValue>> {
    provider.raw_request(METHOD.into(), (filter,)).await
}

/// Whether the fullest of the answers is that of two endpoints, or came often enough.
fn is_settled(answers: &[(Who, Vec<Found>)]) -> bool {
    let Some((_, fullest)) = answers.iter().max_by_key(|(_, found)| found.len()) else { return false };
    let whose: Vec<Who> = answers.iter().filter(|(_, found)| found == fullest).map(|(who, _)| *who).collect();
    whose.len() >= EQUAL_ANSWERS || whose.iter().any(|who| *who != whose[0])
}

/// Makes `size` less after `error`, or gives it back if that does not help.
pub(super) fn shrink(size: &mut RangeSize, asked: &RangeInclusive<u64>, error: SourceError) -> Result<(), SourceError> {
    let allowed = match &error {
        SourceError::TooMuch { allowed, .. } | SourceError::CutOff { allowed, .. } => allowed.clone(),
        // It may be the size that takes so long.
        SourceError::Timeout { what: METHOD, .. } => Allowed::default(),
        _ => return Err(error),
    };
    if !size.refused(asked, &allowed) {
        return Err(error);
    }
    tracing::debug!(%error, from = asked.start(), to = asked.end(), "asking for fewer blocks at once");
    Ok(())
}
