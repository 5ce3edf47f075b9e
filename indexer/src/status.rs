//! How far the indexer is: for people and load balancers (`/health`, `/live`) and for Prometheus (`/metrics`).

mod metrics;
mod server;

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use market::clock;
use market::db::verification::{Run, Verdict};
use serde::Serialize;

use crate::follower::Progress;

pub use metrics::verified;
pub use server::serve;

/// A leader without a successful look at the chain for this long is not healthy, nor is a standby that cannot look whether it
/// is needed.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// What a healthy leader may be without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may not have had all of the chain.
    pub lag: Duration,
    /// How old the chain's latest block may be; nothing if any age will do, as where blocks come with transactions only.
    pub head_age: Option<Duration>,
}

/// What the process is doing, shared by whoever reports it.
#[derive(Debug, Clone)]
pub struct Status {
    limits: Limits,
    queue_depth: u64,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    started: Instant,
    leading: Option<Leading>,
    /// Last successful look whether the lead is free.
    alive_at: Option<Instant>,
    error: Option<String>,
}

/// What a leader knows.
#[derive(Debug)]
struct Leading {
    epoch: i64,
    since: Instant,
    succeeded_at: Option<Instant>,
    caught_up_at: Option<Instant>,
    halted: Option<String>,
    levels: Levels,
    outbox: Option<Outbox>,
    verified: Option<Run>,
    /// Timestamp of the last applied block.
    mined_at: Option<DateTime<Utc>>,
}

/// What the database says.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Latest final block.
    pub finalized: Option<u64>,
    /// Timestamp of the last applied block.
    pub mined_at: Option<DateTime<Utc>>,
    /// What waits to be projected, and since when.
    pub outbox: (i64, Option<TimeDelta>),
    /// The last verification.
    pub verified: Option<Run>,
}

/// Heights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Levels {
    /// Latest block of the chain.
    pub head: Option<u64>,
    /// Latest block that counts as final.
    #[serde(rename = "final")]
    pub finalized: Option<u64>,
    /// Last applied block.
    pub cursor: Option<u64>,
}

impl Levels {
    /// Blocks of the chain that are not indexed.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        self.head.zip(self.cursor).map(|(head, cursor)| head.saturating_sub(cursor))
    }

    /// Blocks at least `depth` deep that are not indexed.
    #[must_use]
    pub fn lag_of(&self, depth: u64) -> Option<u64> {
        self.lag().map(|lag| lag.saturating_sub(depth))
    }

    /// Final blocks that are not indexed.
    #[must_use]
    pub fn final_lag(&self) -> Option<u64> {
        self.finalized.zip(self.cursor).map(|(finalized, cursor)| finalized.saturating_sub(cursor))
    }

    /// Indexed blocks that are not final.
    #[must_use]
    pub fn unfinal(&self) -> Option<u64> {
        self.finalized.zip(self.cursor).map(|(finalized, cursor)| cursor.saturating_sub(finalized))
    }
}

/// What waits to be projected to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbox {
    /// Rows.
    pub depth: i64,
    /// Since when the oldest waits, in seconds.
    pub oldest_secs: f64,
}

/// How the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// All is well.
    Ok,
    /// It leads and is not where the chain is.
    Lagging,
    /// It has all that the chain's nodes show, which is old: they are stuck, or cut off from the others.
    Stuck,
    /// Something that it needs does not answer.
    Failing,
    /// The last verification found that the index is not what the chain says.
    Differs,
    /// It follows the chain no further before someone has looked at the reason.
    Halted,
}

/// The body of `/health`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Anything but `ok` is answered with 503.
    pub status: Word,
    /// `leader` or `standby`.
    pub role: &'static str,
    /// The leader's epoch.
    pub epoch: Option<i64>,
    /// Heights.
    #[serde(flatten)]
    pub levels: Levels,
    /// Blocks from cursor to head.
    pub lag_blocks: Option<u64>,
    /// Seconds since the index last had all of the chain.
    pub lag_secs: Option<u64>,
    /// How old the last applied block is, in seconds.
    pub head_age_secs: Option<u64>,
    /// What waits to be projected.
    pub outbox: Option<Outbox>,
    /// The last verification.
    pub verification: Option<Verified>,
    /// What is wrong, if something is.
    pub error: Option<String>,
}

/// A verification, as `/health` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// `same`, `differs` or `unknown`.
    pub verdict: Verdict,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// First block.
    pub from: u64,
    /// Last block.
    pub to: u64,
    /// What it found, if anything.
    pub detail: String,
}

impl Verified {
    /// In short.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        Self {
            verdict: run.verdict,
            at: run.finished_at,
            from: run.from_block,
            to: run.to_block,
            detail: run.detail.clone(),
        }
    }
}

impl Status {
    /// A leader that is beyond `limits` is not healthy. Blocks at least `queue_depth` deep are deep
    /// enough for every job that is queued before it is final.
    #[must_use]
    pub fn new(limits: Limits, queue_depth: u64) -> Self {
        let inner = Inner { started: Instant::now(), leading: None, alive_at: None, error: None };
        Self { limits, queue_depth, inner: Arc::new(Mutex::new(inner)) }
    }

    /// This process leads from now on.
    pub fn leading(&self, epoch: i64) {
        self.change(|inner| {
            inner.error = None;
            inner.leading = Some(Leading {
                epoch,
                since: Instant::now(),
                succeeded_at: None,
                caught_up_at: None,
                halted: None,
                levels: Levels::default(),
                outbox: None,
                verified: None,
                mined_at: None,
            });
        });
        metrics::leading(true);
    }

    /// This process waits for its turn.
    pub fn standing_by(&self) {
        self.change(|inner| inner.leading = None);
        metrics::leading(false);
    }

    /// It saw that another process leads.
    pub fn alive(&self) {
        self.change(|inner| {
            inner.alive_at = Some(Instant::now());
            inner.error = None;
        });
    }

    /// The chain was read, and the step taken if there was one.
    pub fn progress(&self, progress: &Progress) {
        self.change(|inner| {
            inner.error = None;
            let Some(leading) = &mut inner.leading else { return };
            let now = Instant::now();
            leading.succeeded_at = Some(now);
            leading.halted = None;
            leading.levels.head = Some(progress.head);
            leading.levels.cursor = Some(progress.cursor.number);
            if progress.cursor.number >= progress.head {
                leading.caught_up_at = Some(now);
            }
        });
        metrics::progress(progress);
    }

    /// Something failed and will be tried again.
    pub fn failing(&self, error: &dyn Error) {
        self.change(|inner| inner.error = Some(error.to_string()));
        metrics::failed();
    }

    /// Something is wrong that trying again does not mend.
    pub fn halted(&self, error: &dyn Error) {
        self.change(|inner| {
            if let Some(leading) = &mut inner.leading {
                leading.halted = Some(error.to_string());
            }
        });
        metrics::failed();
    }

    /// What the database says.
    pub fn measured(&self, measured: Measured) {
        let Measured { finalized, mined_at, outbox: (depth, oldest), verified } = measured;
        let oldest_secs = oldest.and_then(|age| age.to_std().ok()).map_or(0.0, |age| age.as_secs_f64());
        self.change(|inner| {
            let Some(leading) = &mut inner.leading else { return };
            leading.levels.finalized = finalized.or(leading.levels.finalized);
            leading.outbox = Some(Outbox { depth, oldest_secs });
            leading.verified = verified.or(leading.verified.take());
            leading.mined_at = mined_at.or(leading.mined_at);
        });
    }

    /// What `/health` says.
    #[must_use]
    pub fn health(&self) -> Health {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(leading) = &inner.leading else {
            let stale = inner.alive_at.unwrap_or(inner.started).elapsed() > STALE_AFTER;
            return Health {
                status: if stale { Word::Failing } else { Word::Ok },
                role: "standby",
                epoch: None,
                levels: Levels::default(),
                lag_blocks: None,
                lag_secs: None,
                head_age_secs: None,
                outbox: None,
                verification: None,
                error: inner.error.clone(),
            };
        };
        let (status, error) = leading.condition(self.limits, inner.error.as_ref());
        Health {
            status,
            role: "leader",
            epoch: Some(leading.epoch),
            levels: leading.levels,
            lag_blocks: leading.levels.lag(),
            lag_secs: Some(leading.lag().as_secs()),
            head_age_secs: leading.head_age().map(|age| age.as_secs()),
            outbox: leading.outbox,
            verification: leading.verified.as_ref().map(Verified::of),
            error,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Leading {
    /// Since when the index is without something that the chain has. Nothing, if it had all at the last look, and that was
    /// not long ago.
    fn lag(&self) -> Duration {
        self.caught_up_at.unwrap_or(self.since).elapsed()
    }

    /// How old the last applied block is. A leader that lags behind has newer ones to apply, and is told to be lagging.
    fn head_age(&self) -> Option<Duration> {
        Some((clock::now() - self.mined_at?).to_std().unwrap_or_default())
    }

    fn condition(&self, limits: Limits, error: Option<&String>) -> (Word, Option<String>) {
        if let Some(reason) = &self.halted {
            return (Word::Halted, Some(reason.clone()));
        }
        if let Some(run) = self.verified.as_ref().filter(|run| run.verdict == Verdict::Differs) {
            return (Word::Differs, Some(format!("blocks {} to {}: {}", run.from_block, run.to_block, run.detail)));
        }
        if self.succeeded_at.unwrap_or(self.since).elapsed() > STALE_AFTER {
            return (Word::Failing, error.cloned());
        }
        if self.lag() > limits.lag {
            let reason = || format!("has not had all of the chain for {} s", self.lag().as_secs());
            return (Word::Lagging, Some(error.cloned().unwrap_or_else(reason)));
        }
        let has_all = self.levels.lag() == Some(0);
        if let Some(age) = self.head_age().filter(|age| has_all && limits.head_age.is_some_and(|most| *age > most)) {
            return (Word::Stuck, Some(format!("the chain's latest block is {} s old", age.as_secs())));
        }
        (Word::Ok, error.cloned())
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;
    use market::db::chain::BlockId;

    use super::*;

    fn within(lag: Duration) -> Status {
        Status::new(Limits { lag, head_age: None }, 0)
    }

    fn progress(head: u64, cursor: u64) -> Progress {
        Progress { head, cursor: BlockId { number: cursor, hash: B256::ZERO }, step: None }
    }

    #[test]
    fn a_leader_that_is_behind_for_too_long_is_lagging_until_it_has_caught_up() {
        let status = within(Duration::ZERO);
        status.leading(7);
        status.progress(&progress(10, 8));
        std::thread::sleep(Duration::from_millis(5));
        let health = status.health();
        assert_eq!((health.status, health.lag_blocks, health.epoch), (Word::Lagging, Some(2), Some(7)));
        let patient = within(Duration::from_secs(60));
        patient.leading(7);
        patient.progress(&progress(10, 8));
        assert_eq!(patient.health().status, Word::Ok);
    }

    #[test]
    fn a_halt_is_told_with_its_reason_and_ends_with_the_next_step() {
        let status = within(Duration::from_secs(60));
        status.leading(1);
        status.halted(&std::io::Error::other("a log of our own contract"));
        let health = status.health();
        assert_eq!((health.status, health.error.as_deref()), (Word::Halted, Some("a log of our own contract")));
        status.progress(&progress(10, 10));
        assert_eq!((status.health().status, status.health().error), (Word::Ok, None));
    }

    #[test]
    fn an_index_that_differs_from_the_chain_is_not_healthy() {
        let status = within(Duration::from_secs(60));
        status.leading(1);
        status.progress(&progress(10, 10));
        let at = DateTime::UNIX_EPOCH;
        let run = Run {
            started_at: at,
            finished_at: at,
            from_block: 3,
            to_block: 9,
            verdict: Verdict::Differs,
            events: 2,
            differences: 1,
            detail: "Event JobOpened".to_owned(),
        };
        let outbox = (2, Some(TimeDelta::seconds(3)));
        status.measured(Measured { finalized: Some(4), outbox, verified: Some(run), ..Measured::default() });
        let health = status.health();
        assert_eq!(health.status, Word::Differs);
        assert_eq!(health.error.as_deref(), Some("blocks 3 to 9: Event JobOpened"));
        assert_eq!((health.levels.unfinal(), health.levels.final_lag()), (Some(6), Some(0)));
        assert_eq!(health.outbox, Some(Outbox { depth: 2, oldest_secs: 3.0 }));
    }

    #[test]
    fn a_leader_whose_only_node_is_stuck_is_not_healthy() {
        let limits = Limits { lag: Duration::from_secs(60), head_age: Some(Duration::from_secs(300)) };
        let look = |limits, age, lag: u64| {
            let status = Status::new(limits, 0);
            status.leading(1);
            status.progress(&progress(10 + lag, 10));
            let mined_at = Some(clock::now() - TimeDelta::seconds(age));
            status.measured(Measured { mined_at, ..Measured::default() });
            status.health()
        };
        let stuck = look(limits, 310, 0);
        assert_eq!((stuck.status, stuck.head_age_secs.is_some_and(|age| age >= 310)), (Word::Stuck, true));
        assert!(stuck.error.unwrap().starts_with("the chain's latest block is 31"));
        assert_eq!(look(limits, 200, 0).status, Word::Ok);
        // Ahead of this machine's clock.
        assert_eq!(look(limits, -10, 0).head_age_secs, Some(0));
        assert_eq!(look(limits, 10_000, 5).status, Word::Ok, "it is catching up");
        assert_eq!(look(Limits { head_age: None, ..limits }, 10_000, 0).status, Word::Ok);
    }

    #[test]
    fn how_far_it_is_behind_depends_on_how_deep_blocks_have_to_be() {
        let levels = Levels { head: Some(100), finalized: Some(95), cursor: Some(90) };
        assert_eq!((levels.lag(), levels.lag_of(3), levels.final_lag()), (Some(10), Some(7), Some(5)));
        assert_eq!((levels.lag_of(10), levels.lag_of(64), levels.unfinal()), (Some(0), Some(0), Some(0)));
        let level = Levels { cursor: Some(100), ..levels };
        assert_eq!(
            (level.lag(), level.lag_of(0), level.final_lag(), level.unfinal()),
            (Some(0), Some(0), Some(0), Some(5))
        );
        assert_eq!((Levels::default().lag(), Levels::default().final_lag()), (None, None));
    }
}
