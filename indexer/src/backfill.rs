//! Reading up to what is final, and telling how that goes: at the start this takes long.

use std::time::{Duration, Instant};

use market::db::chain::BlockId;
use market::source::{Backfill, Source, SourceError, Stretch};
use metrics::{describe_gauge, gauge};

/// How often progress is told.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// A stretch of final blocks on its way into the database.
#[derive(Debug)]
pub(crate) struct Backfilling {
    reading: Backfill,
    meter: Meter,
}

impl Backfilling {
    /// From the block after `cursor` up to `to`; above number `all_above` with the headers of all blocks.
    pub fn begin(source: &Source, cursor: BlockId, to: BlockId, all_above: u64, max_range: u64) -> Self {
        tracing::info!(from = cursor.number + 1, to = to.number, "reading final blocks");
        let reading = source.backfill(cursor, to, all_above, max_range);
        Self { reading, meter: Meter::new(cursor.number, to.number, Instant::now()) }
    }

    /// What comes next, or nothing after the end.
    pub async fn next(&mut self) -> Option<Result<Stretch, SourceError>> {
        self.reading.next().await
    }

    /// So many events up to block `cursor` are in the database.
    pub fn applied(&mut self, cursor: u64, events: usize) {
        self.meter.applied(cursor, u64::try_from(events).unwrap_or(u64::MAX), Instant::now());
    }
}

/// Tells Prometheus what the metrics mean.
pub fn describe_metrics() {
    describe_gauge!("littoral_indexer_backfill_blocks_left", "final blocks that are not indexed yet");
    describe_gauge!("littoral_indexer_backfill_events_per_second", "how fast final blocks are indexed");
    describe_gauge!("littoral_indexer_backfill_seconds_left", "until final blocks are indexed, at the present rate");
}

/// How fast it goes.
#[derive(Debug)]
struct Meter {
    to: u64,
    /// When it was told last, and what had been done by then.
    told_at: Instant,
    told_block: u64,
    events: u64,
}

/// Of the time since it was told last.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    blocks_per_s: f64,
    events_per_s: f64,
    secs_left: f64,
}

impl Meter {
    fn new(from: u64, to: u64, now: Instant) -> Self {
        Self { to, told_at: now, told_block: from, events: 0 }
    }

    fn applied(&mut self, cursor: u64, events: u64, now: Instant) {
        self.events += events;
        let left = self.to.saturating_sub(cursor);
        gauge!("littoral_indexer_backfill_blocks_left").set(approximate(left));
        if now.duration_since(self.told_at) < TELL_INTERVAL && left > 0 {
            return;
        }
        let rate = self.rate(cursor, now);
        gauge!("littoral_indexer_backfill_events_per_second").set(rate.events_per_s);
        gauge!("littoral_indexer_backfill_seconds_left").set(rate.secs_left);
        let (to, events) = (self.to, self.events);
        let (blocks_per_s, events_per_s) = (rate.blocks_per_s.round(), rate.events_per_s.round());
        let secs_left = rate.secs_left.round();
        tracing::info!(cursor, to, events, blocks_per_s, events_per_s, secs_left, "indexed final blocks");
        (self.told_at, self.told_block, self.events) = (now, cursor, 0);
    }

    fn rate(&self, cursor: u64, now: Instant) -> Rate {
        let secs = now.duration_since(self.told_at).as_secs_f64().max(1e-6);
        let blocks_per_s = approximate(cursor.saturating_sub(self.told_block)) / secs;
        let left = approximate(self.to.saturating_sub(cursor));
        let secs_left = if left > 0.0 { left / blocks_per_s.max(1e-6) } else { 0.0 };
        Rate { blocks_per_s, events_per_s: approximate(self.events) / secs, secs_left }
    }
}

/// Rates and gauges are floating point; beyond 2^32 nobody needs them.
fn approximate(value: u64) -> f64 {
    f64::from(u32::try_from(value).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_time_since_it_was_told() {
        let start = Instant::now();
        let mut meter = Meter::new(100, 1100, start);
        meter.events = 5000;
        let rate = meter.rate(600, start + Duration::from_secs(5));
        assert_eq!(rate, Rate { blocks_per_s: 100.0, events_per_s: 1000.0, secs_left: 5.0 });
        meter.applied(600, 0, start + TELL_INTERVAL);
        assert_eq!((meter.told_block, meter.events), (600, 0));
        meter.applied(700, 10, start + TELL_INTERVAL);
        assert_eq!((meter.told_block, meter.events), (600, 10), "it is not told at once again");
        meter.applied(1100, 10, start + TELL_INTERVAL);
        assert_eq!(meter.told_block, 1100, "the end is told");
        assert_eq!(meter.rate(1100, start + 2 * TELL_INTERVAL).secs_left, 0.0);
    }
}
