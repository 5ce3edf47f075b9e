//! Holds one stretch of the index after another against the chain, at a gentle pace, for as long as this process leads.

use std::time::Duration;

use market::clock;
use market::db::leader::{Fence, FenceError};
use market::db::verification::{self, Run, Verdict};
use market::db::{audit, indexing};
use market::verify::{self, Report, Verifier, VerifyError};
use sqlx::postgres::PgPool;

use crate::status;

/// Requests to the chain under way at once.
pub const CONCURRENCY: usize = 2;
/// Most blocks of a stretch.
const BLOCKS: u64 = 10_000;
/// Most stored events of a stretch, unless one block has more.
const EVENTS: u64 = 20_000;
/// Most rows of which the contracts are asked.
const ROWS: usize = 500;
/// How long to wait for a reorg to pass.
const PATIENCE: Duration = Duration::from_secs(30);
/// Before the first verification of an index.
const FIRST: Duration = Duration::from_secs(60);
/// Before another look whether there is something to verify, and after a failure of the database.
const AGAIN: Duration = Duration::from_secs(5);
/// Differences that a run's `detail` names.
const NAMED: usize = 3;

/// Verifies a stretch every `interval`.
#[derive(Debug)]
pub struct Verifying {
    /// Where the index is.
    pub pool: PgPool,
    /// With few requests at once: it is to disturb nobody.
    pub verifier: Verifier,
    /// From the end of one verification to the next; zero for none.
    pub interval: Duration,
    /// Where it begins anew once it has come to the final block.
    pub deploy_block: u64,
}

impl Verifying {
    /// Goes on until it is dropped.
    pub async fn run(&self, fence: Fence) {
        if self.interval.is_zero() {
            return;
        }
        tokio::time::sleep(self.interval.min(FIRST)).await;
        loop {
            let pause = match self.turn(fence).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::debug!(%error, "cannot verify now");
                    AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Verifies the next stretch if it is time, and returns how long to wait.
    async fn turn(&self, fence: Fence) -> Result<Duration, FenceError> {
        let mut db = self.pool.acquire().await?;
        let last = verification::last(&mut db).await?;
        if let Some(run) = &last {
            let age = (clock::now() - run.finished_at).to_std().unwrap_or(Duration::ZERO);
            if age < self.interval {
                return Ok(self.interval - age);
            }
        }
        let Some(standing) = indexing::standing(&mut db).await? else { return Ok(AGAIN) };
        let last_block = standing.finalized.unwrap_or(0).min(standing.cursor.number);
        let from = first_block(last.as_ref(), self.deploy_block, last_block);
        if from > last_block {
            return Ok(AGAIN);
        }
        let to = audit::stretch_end(&mut db, from, last_block.min(from + BLOCKS - 1), EVENTS).await?;
        drop(db);

        let started_at = clock::now();
        let outcome =
            verify::patiently(&self.pool, PATIENCE, async |db| self.verifier.stretch(db, (from, to), ROWS).await).await;
        let mut run = Run {
            started_at,
            finished_at: clock::now(),
            from_block: from,
            to_block: to,
            verdict: Verdict::Unknown,
            events: 0,
            differences: 0,
            detail: String::new(),
        };
        describe(&mut run, &outcome);
        status::verified(run.verdict, run.differences);
        let mut tx = self.pool.begin().await?;
        verification::record(&mut tx, fence, &run).await?;
        tx.commit().await?;
        Ok(self.interval)
    }
}

/// After the last stretch that was as it should be; one that was not is looked at again until it is. From the deployment on
/// once all is done.
fn first_block(last: Option<&Run>, deploy_block: u64, last_block: u64) -> u64 {
    match last {
        Some(run) if run.verdict == Verdict::Same && run.to_block < last_block => run.to_block + 1,
        Some(run) if run.verdict == Verdict::Differs && run.from_block <= last_block => run.from_block,
        _ => deploy_block,
    }
}

fn describe(run: &mut Run, outcome: &Result<Report, VerifyError>) {
    let (from, to) = (run.from_block, run.to_block);
    match outcome {
        Ok(report) => {
            run.events = u64::try_from(report.checked.events).unwrap_or(u64::MAX);
            run.differences = u64::try_from(report.differences.len() + report.more).unwrap_or(u64::MAX);
            let named: Vec<String> = report.differences.iter().take(NAMED).map(ToString::to_string).collect();
            run.detail = named.join("; ");
            if report.is_clean() {
                run.verdict = Verdict::Same;
                tracing::info!(from, to, events = run.events, "verified: the index is what the chain says");
            } else {
                run.verdict = Verdict::Differs;
                let (differences, detail) = (run.differences, &run.detail);
                tracing::error!(from, to, differences, detail, "verified: the index is not what the chain says");
            }
        }
        Err(error) => {
            run.detail = error.to_string();
            tracing::warn!(from, to, %error, "a verification came to no verdict");
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn run(from_block: u64, to_block: u64, verdict: Verdict) -> Run {
        let at = DateTime::UNIX_EPOCH;
        Run {
            started_at: at,
            finished_at: at,
            from_block,
            to_block,
            verdict,
            events: 0,
            differences: 0,
            detail: String::new(),
        }
    }

    #[test]
    fn stretches_follow_one_another_and_begin_anew_at_the_end() {
        assert_eq!(first_block(None, 5, 100), 5);
        assert_eq!(first_block(Some(&run(5, 40, Verdict::Same)), 5, 100), 41);
        assert_eq!(first_block(Some(&run(41, 100, Verdict::Same)), 5, 100), 5);
    }

    #[test]
    fn a_stretch_that_differs_is_looked_at_again() {
        assert_eq!(first_block(Some(&run(41, 60, Verdict::Differs)), 5, 100), 41);
        // Taken back since.
        assert_eq!(first_block(Some(&run(41, 60, Verdict::Differs)), 5, 30), 5);
    }
}
