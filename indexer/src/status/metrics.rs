//! What Prometheus is told. Names follow its conventions: base units, `_total` for counters, `_timestamp_seconds` for times.

use market::db::verification::Verdict;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::{Health, Status};
use crate::follower::Progress;
use crate::{backfill, head};

/// Buckets of `littoral_indexer_reorg_depth_blocks`.
pub(super) const REORG_DEPTHS: [f64; 9] = [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 64.0, 256.0];
/// Its name.
pub(super) const REORG_DEPTH: &str = "littoral_indexer_reorg_depth_blocks";

pub(super) fn describe() {
    market::source::describe_metrics();
    backfill::describe_metrics();
    head::describe_metrics();
    describe_counter!("littoral_indexer_final_reorgs_total", "reorgs below what was final, which halt the indexer");
    describe_gauge!("littoral_indexer_leader", "1 if this process leads");
    describe_gauge!("littoral_indexer_epoch", "epoch of the lead");
    describe_gauge!("littoral_indexer_healthy", "1 if /health answers 200");
    describe_gauge!("littoral_indexer_halted", "1 if the chain is followed no further before someone has looked");
    describe_gauge!("littoral_indexer_head_block", "latest block of the chain");
    describe_gauge!("littoral_indexer_final_block", "latest block that counts as final");
    describe_gauge!("littoral_indexer_cursor_block", "last applied block");
    describe_gauge!(
        "littoral_indexer_lag_blocks",
        "blocks of the chain that are at least at this level and are not indexed"
    );
    describe_gauge!("littoral_indexer_lag_seconds", "seconds since the index last had all of the chain");
    describe_gauge!("littoral_indexer_head_age_seconds", "how old the last applied block is");
    describe_gauge!("littoral_indexer_unfinal_blocks", "indexed blocks that are not final");
    describe_gauge!("littoral_indexer_outbox_depth", "changes that wait to be projected to Redis");
    describe_gauge!("littoral_indexer_outbox_oldest_seconds", "since when the oldest of them waits");
    describe_counter!("littoral_indexer_events_applied_total", "events applied");
    describe_counter!("littoral_indexer_events_undone_total", "events undone by reorgs");
    describe_counter!("littoral_indexer_reorgs_total", "reorgs followed");
    describe_histogram!(REORG_DEPTH, "blocks undone by a reorg");
    describe_counter!("littoral_indexer_errors_total", "failures that were tried again");
    describe_counter!("littoral_indexer_verifications_total", "verifications by their result");
    describe_gauge!("littoral_indexer_verification_timestamp_seconds", "when the last verification ended");
    describe_gauge!("littoral_indexer_verification_differences", "what it found to differ");
}

pub(super) fn leading(leads: bool) {
    gauge!("littoral_indexer_leader").set(if leads { 1.0 } else { 0.0 });
}

pub(super) fn failed() {
    counter!("littoral_indexer_errors_total").increment(1);
}

pub(super) fn progress(progress: &Progress) {
    let Some(step) = progress.step else { return };
    counter!("littoral_indexer_events_applied_total").increment(u64::try_from(step.events).unwrap_or(u64::MAX));
    counter!("littoral_indexer_events_undone_total").increment(step.applied.events_undone);
    if let Some(depth) = step.reorg_depth {
        counter!("littoral_indexer_reorgs_total").increment(1);
        histogram!(REORG_DEPTH).record(approximate(depth));
    }
}

/// A verification ended.
pub fn verified(verdict: Verdict, differences: u64) {
    counter!("littoral_indexer_verifications_total", "result" => verdict.name()).increment(1);
    gauge!("littoral_indexer_verification_differences").set(approximate(differences));
}

/// Sets what is read off the clock or off the database.
pub(super) fn refresh(of: &Status) {
    let Health { status, epoch, levels, lag_secs, head_age_secs, outbox, verification, .. } = of.health();
    gauge!("littoral_indexer_healthy").set(if status == super::Word::Ok { 1.0 } else { 0.0 });
    gauge!("littoral_indexer_halted").set(if status == super::Word::Halted { 1.0 } else { 0.0 });
    let set = |name: &'static str, value: Option<u64>| {
        if let Some(value) = value {
            gauge!(name).set(approximate(value));
        }
    };
    set("littoral_indexer_epoch", epoch.and_then(|epoch| u64::try_from(epoch).ok()));
    set("littoral_indexer_head_block", levels.head);
    set("littoral_indexer_final_block", levels.finalized);
    set("littoral_indexer_cursor_block", levels.cursor);
    set("littoral_indexer_lag_seconds", lag_secs);
    set("littoral_indexer_head_age_seconds", head_age_secs);
    set("littoral_indexer_unfinal_blocks", levels.unfinal());
    let queue = levels.lag_of(of.queue_depth);
    for (level, lag) in [("head", levels.lag()), ("queue", queue), ("final", levels.final_lag())] {
        if let Some(lag) = lag {
            gauge!("littoral_indexer_lag_blocks", "level" => level).set(approximate(lag));
        }
    }
    if let Some(outbox) = outbox {
        set("littoral_indexer_outbox_depth", u64::try_from(outbox.depth).ok());
        gauge!("littoral_indexer_outbox_oldest_seconds").set(outbox.oldest_secs);
    }
    set(
        "littoral_indexer_verification_timestamp_seconds",
        verification.and_then(|run| u64::try_from(run.at.timestamp()).ok()),
    );
}

/// Gauges are floating point; beyond 2^53 nobody reads the last digit.
fn approximate(value: u64) -> f64 {
    let [high, low] = [value >> 32, value & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}
