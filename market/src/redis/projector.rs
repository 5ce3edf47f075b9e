//! Keeps Redis equal to Postgres: drains one outbox, and does the upkeep that belongs to no outbox.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnection, PgListener, PgPool};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::apply::{self, Changes, Outcome, Place, ProjectError};
use super::client::Client;
use super::keys::COMPLETED_TTL_SECS;
use super::plan::Event;
use super::{rebuild, sweep};
use crate::clock;
use crate::db::outbox::{self, Entity, Entry, Source};
use crate::db::{job_view, projection};

/// Rows of an outbox that are applied together.
const BATCH: i64 = 128;
/// How long a row waits at most for a projector that was not notified, a flushed Redis to be noticed, and a deadline that
/// passed to be told.
const TICK: Duration = Duration::from_secs(1);

/// Projects what one outbox names. Run one in each process that writes the outbox: of several, one at a time drains.
/// Takes one connection of the pool for good, to be notified.
#[derive(Debug)]
pub struct Projector {
    pool: PgPool,
    redis: Client,
    source: Source,
}

impl Projector {
    /// A projector of `source`'s outbox.
    #[must_use]
    pub fn new(pool: PgPool, redis: Client, source: Source) -> Self {
        Self { pool, redis, source }
    }

    /// Runs until `shutdown` completes. Nothing ends it before: with Redis or Postgres down it goes on trying.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let wake = Notify::new();
        tokio::select! {
            () = shutdown => {}
            () = self.listen(&wake) => {}
            () = self.drain_forever(&wake) => {}
            () = self.upkeep_forever() => {}
        }
    }

    /// Applies all rows that are in the outbox, in their order. Does nothing if another projector is doing so. Returns how
    /// many rows it applied.
    pub async fn drain(&self, now: DateTime<Utc>) -> Result<usize, ProjectError> {
        let mut applied = 0;
        loop {
            let mut tx = self.pool.begin().await?;
            if !projection::try_take(&mut tx, projection::Duty::Drain(self.source)).await? {
                return Ok(applied);
            }
            let rows = outbox::next(&mut tx, self.source, BATCH).await?;
            if rows.is_empty() {
                // Not left to the drop, which gives the lock back some time later: a row that comes meanwhile would wait
                // for the next tick.
                tx.rollback().await?;
                return Ok(applied);
            }
            let seqs = self.apply(&mut tx, &rows, now).await?;
            outbox::remove(&mut tx, self.source, &seqs).await?;
            projection::advance(&mut tx, self.source).await?;
            tx.commit().await?;
            applied += seqs.len();
        }
    }

    /// Applies `rows` as the next batch, or those of a batch that was applied and not committed, and says which.
    async fn apply(&self, tx: &mut PgConnection, rows: &[Entry], now: DateTime<Utc>) -> Result<Vec<i64>, ProjectError> {
        let progress = projection::progress(tx, self.source).await?;
        let mut place = Place {
            generation: progress.generation,
            epoch: progress.epoch.to_string(),
            batch: Some((progress.batch + 1).to_string()),
            rows: apply::rows_text(&numbers(rows)),
            again: false,
        };
        let changes = changes_of(tx, self.source, rows, now).await?;
        match apply::project_batch(tx, &self.redis, self.source, &place, &changes, now).await? {
            Outcome::Applied => {}
            Outcome::Gap => {
                tracing::warn!(source = ?self.source, batch = progress.batch, "Redis has lost changes; filling it anew");
            }
            Outcome::Repeated(told) => {
                place.again = true;
                // Whoever applied it died before it could commit, and what happened in its rows is known. Others have come
                // since, or were earlier all the time and have become visible only now: they are the next batch.
                let known = outbox::among(tx, self.source, &told).await?;
                if !known.is_empty() {
                    place.rows = apply::rows_text(&told);
                    let silent = changes_of(tx, self.source, &known, now).await?.into_keys();
                    let silent = silent.map(|entity| (entity, Vec::new())).collect();
                    apply::project_batch(tx, &self.redis, self.source, &place, &silent, now).await?;
                    return Ok(numbers(&known));
                }
                apply::project_batch(tx, &self.redis, self.source, &place, &changes, now).await?;
            }
            Outcome::Ahead => {
                // The duty is still this process's, or the next query fails: so it is Postgres that has lost commits.
                place.generation = projection::renew_generation(tx).await?;
                tracing::error!(source = ?self.source, batch = progress.batch, "Redis is ahead of Postgres; filling it anew");
                apply::project_batch(tx, &self.redis, self.source, &place, &changes, now).await?;
            }
        }
        Ok(numbers(rows))
    }

    /// What is to be done from time to time: fills Redis if it was flushed, and applies what time changed.
    pub async fn upkeep(&self, now: DateTime<Utc>) -> Result<(), ProjectError> {
        rebuild::ensure(&self.pool, &self.redis, now).await?;
        sweep::sweep(&self.pool, &self.redis, now).await
    }

    async fn drain_forever(&self, wake: &Notify) {
        let mut outage = Outage::new("projecting to Redis", self.source);
        loop {
            outage.note(self.drain(clock::now()).await);
            tokio::select! {
                () = wake.notified() => {}
                () = sleep(TICK) => {}
            }
            if outage.lasts {
                sleep(TICK).await;
            }
        }
    }

    async fn upkeep_forever(&self) {
        let mut outage = Outage::new("upkeep of Redis", self.source);
        loop {
            outage.note(self.upkeep(clock::now()).await);
            sleep(TICK).await;
        }
    }

    async fn listen(&self, wake: &Notify) {
        loop {
            if let Err(error) = self.listen_once(wake).await {
                // Rows are found a tick later then.
                tracing::debug!(%error, source = ?self.source, "not listening to Postgres");
            }
            sleep(TICK).await;
        }
    }

    async fn listen_once(&self, wake: &Notify) -> Result<(), sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(self.source.channel()).await?;
        loop {
            listener.recv().await?;
            wake.notify_one();
        }
    }
}

fn numbers(rows: &[Entry]) -> Vec<i64> {
    rows.iter().map(|row| row.seq).collect()
}

/// What can befall a node on the chain without another id coming or going.
const ID_STAYS: [&str; 4] = ["node.staked", "node.unbonding", "node.unbonded", "node.slashed"];

/// What `rows` name.
async fn changes_of(
    tx: &mut PgConnection,
    source: Source,
    rows: &[Entry],
    now: DateTime<Utc>,
) -> Result<Changes, ProjectError> {
    let mut changes = Changes::new();
    let mut nodes = BTreeSet::new();
    for row in rows {
        let event = Event { name: row.event.clone(), at: row.created_at };
        changes.entry(row.entity).or_default().push(event);
        if let Entity::Node(node) = row.entity
            && !ID_STAYS.contains(&row.event.as_str())
        {
            nodes.insert(node);
        }
    }
    if source == Source::Chain && !nodes.is_empty() {
        // A node that appears on the chain or vanishes from it takes the keys that bear its id along: payments that are due, and
        // the hashes of jobs, which stay for a while after these are closed.
        let nodes: Vec<_> = nodes.into_iter().collect();
        let closed_since = now - TimeDelta::seconds(COMPLETED_TTL_SECS.cast_signed());
        for job in job_view::ids_of_nodes(tx, &nodes, closed_since).await? {
            changes.entry(Entity::Job(job)).or_default();
        }
    }
    Ok(changes)
}

/// Tells of a failure when it begins and when it ends, not each time that it is met again.
struct Outage {
    what: &'static str,
    source: Source,
    lasts: bool,
}

impl Outage {
    fn new(what: &'static str, source: Source) -> Self {
        Self { what, source, lasts: false }
    }

    fn note<T>(&mut self, result: Result<T, ProjectError>) {
        match result {
            Err(error) if !self.lasts => {
                self.lasts = true;
                tracing::warn!(%error, source = ?self.source, "{} fails; going on trying", self.what);
            }
            Ok(_) if self.lasts => {
                self.lasts = false;
                tracing::info!(source = ?self.source, "{} works again", self.what);
            }
            _ => {}
        }
    }
}
