//! Reading a long stretch of settled blocks: several requests under way, delivered in order, ahead of whoever takes them.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::logs::{Section, shrink};
use super::{RangeSize, Source, SourceError, Stretch};
use crate::db::chain::BlockId;

/// Events that are given at once, or up to twice as many: enough to make a transaction worth its commit.
const BATCH: usize = 30_000;
/// Events that are there are given after this time even if they are few.
const PATIENCE: Duration = Duration::from_secs(1);
/// Ranges that are read at once or wait for those before them. With the batch that waits to be taken and the one that is
/// being put together, this bounds what is held in memory.
const RANGES: usize = 4;

/// A stretch of settled blocks that is being read. Reading ends when this is dropped.
#[derive(Debug)]
pub struct Backfill {
    batches: mpsc::Receiver<Result<Stretch, SourceError>>,
    _reader: AbortOnDropHandle<()>,
}

impl Backfill {
    /// The next blocks and events. Nothing after the last, or after an error: then it is to be begun again.
    pub async fn next(&mut self) -> Option<Result<Stretch, SourceError>> {
        self.batches.recv().await
    }
}

impl Source {
    /// Begins to read what comes after `cursor` up to `to`, which two endpoints agree on. Above number `all_above` blocks are
    /// given also where they have no events. Queries span `max_range` blocks at most.
    #[must_use]
    pub fn backfill(&self, cursor: BlockId, to: BlockId, all_above: u64, max_range: u64) -> Backfill {
        let (sender, batches) = mpsc::channel(1);
        let reading =
            Reading { source: self.clone(), to, all_above, size: Arc::new(Mutex::new(RangeSize::up_to(max_range))) };
        let reader = tokio::spawn(async move {
            let sections = reading.sections(cursor.number + 1);
            let sent = Box::pin(deliver(sections, cursor, &sender)).await;
            if let Err(error) = sent {
                // Nobody receives it who has dropped the backfill.
                sender.send(Err(error)).await.ok();
            }
        });
        Backfill { batches, _reader: AbortOnDropHandle::new(reader) }
    }
}

#[derive(Clone)]
struct Reading {
    source: Source,
    to: BlockId,
    all_above: u64,
    size: Arc<Mutex<RangeSize>>,
}

impl Reading {
    /// All sections in order. Those ahead are read while one is waited for or worked on.
    fn sections(self, from: u64) -> impl Stream<Item = Result<Vec<Section>, SourceError>> {
        let reading = self.clone();
        let ranges = stream::unfold(from, move |from| {
            let range = (from <= self.to.number).then(|| self.with_size(|size| size.next(from, self.to.number)));
            std::future::ready(range.map(|range| (range.clone(), range.end() + 1)))
        });
        ranges
            .map(move |range| {
                let reading = reading.clone();
                AbortOnDropHandle::new(tokio::spawn(async move { reading.read(range).await }))
            })
            .buffered(RANGES)
            .map(|read| read.unwrap_or_else(|error| Err(SourceError::Reader(error.to_string()))))
    }

    /// One range, in as many parts as the endpoints want.
    async fn read(self, range: RangeInclusive<u64>) -> Result<Vec<Section>, SourceError> {
        let (mut from, to) = (*range.start(), *range.end());
        let mut sections = Vec::new();
        let mut asked = range;
        loop {
            match self.source.section(asked.clone(), self.to, self.all_above).await {
                Ok(section) => {
                    self.with_size(|size| size.answered(&asked, section.stretch.events.len()));
                    sections.push(section);
                    if *asked.end() >= to {
                        return Ok(sections);
                    }
                    from = asked.end() + 1;
                }
                Err(error) => self.with_size(|size| shrink(size, &asked, error))?,
            }
            asked = self.with_size(|size| size.next(from, to));
        }
    }

    fn with_size<T>(&self, work: impl FnOnce(&mut RangeSize) -> T) -> T {
        work(&mut self.size.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Links the sections, merges them to batches, and sends these.
async fn deliver(
    sections: impl Stream<Item = Result<Vec<Section>, SourceError>>,
    cursor: BlockId,
    sender: &mpsc::Sender<Result<Stretch, SourceError>>,
) -> Result<(), SourceError> {
    let mut sections = std::pin::pin!(sections);
    let mut tip = cursor;
    let mut batch = Stretch { blocks: Vec::new(), events: Vec::new() };
    let mut begun = Instant::now();
    loop {
        let read = if batch.blocks.is_empty() {
            sections.next().await
        } else {
            match tokio::time::timeout_at(begun + PATIENCE, sections.next()).await {
                Ok(read) => read,
                Err(_) => {
                    send(&mut batch, sender).await;
                    continue;
                }
            }
        };
        let Some(read) = read else { break };
        if batch.blocks.is_empty() {
            begun = Instant::now();
        }
        for section in read? {
            if section.parent != Some(tip) {
                return Err(SourceError::Branched(tip));
            }
            batch.blocks.extend(section.stretch.blocks);
            batch.events.extend(section.stretch.events);
            tip = batch.blocks.last().map_or(tip, |block| block.id);
        }
        if batch.events.len() >= BATCH {
            send(&mut batch, sender).await;
        }
    }
    if !batch.blocks.is_empty() {
        send(&mut batch, sender).await;
    }
    Ok(())
}

async fn send(batch: &mut Stretch, sender: &mpsc::Sender<Result<Stretch, SourceError>>) {
    let full = std::mem::replace(batch, Stretch { blocks: Vec::new(), events: Vec::new() });
    // If nobody takes it any more, this task is about to end.
    sender.send(Ok(full)).await.ok();
}
