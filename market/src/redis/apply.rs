//! Makes Redis equal to Postgres for some entities.
//!
//! Two processes may project one job at the same time, since it changes both on the chain and in the API. That an older
//! snapshot never overwrites a newer one rests on two things. The entity's advisory lock in Postgres is held from before
//! the snapshot is read until Redis has answered, so snapshots are applied in the order in which they were read. Should a
//! command be given up on (a timeout) and still be carried out later, the version drawn under the lock tells the script
//! that it comes too late.
//!
//! What comes from an outbox comes in numbered batches, each applied and published in one script. It refuses a batch that was
//! applied before, one of an earlier leader, and one from a database that has lost its latest commits; one that does not follow
//! the last tells that Redis has lost something, and has it filled anew.

use std::collections::{BTreeMap, HashMap};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgConnection;

use super::client::{Client, RedisError};
use super::keys::VERSION_TTL_SECS;
use super::plan::{self, Event};
use crate::db::job_view::JobView;
use crate::db::outbox::{Entity, Source};
use crate::db::{job_view, node_view, projection, work};
use crate::job::JobStatus;

/// One script for all entities, so that a batch is applied in one step, with what it publishes.
const BATCH_LUA: &str = concat!(
    include_str!("lua/publish.lua"),
    "\nlocal function job(KEYS, ARGV)\n",
    include_str!("lua/job.lua"),
    "\nend\nlocal function node(KEYS, ARGV)\n",
    include_str!("lua/node.lua"),
    "\nend\n",
    include_str!("lua/batch.lua"),
);

/// Why entities could not be projected.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// Postgres failed.
    #[error("Postgres: {0}")]
    Sql(#[from] sqlx::Error),
    /// Redis failed.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
}

/// Entities with what happened to each, to be published. Without an event an entity is projected in silence.
pub type Changes = BTreeMap<Entity, Vec<Event>>;

/// A batch's place among those of its outbox. Numbers are texts, since Lua would write large ones with an exponent.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Place {
    /// The database.
    pub generation: String,
    /// The indexer's, where it is the chain's outbox.
    pub epoch: String,
    /// Number of the batch: one more than that of the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// The rows in it, as [`rows_text`] writes them.
    pub rows: String,
    /// It is known to have been applied before, and not committed.
    pub again: bool,
}

/// The numbers of a batch's rows as one text.
pub(super) fn rows_text(rows: &[i64]) -> String {
    rows.iter().map(i64::to_string).collect::<Vec<_>>().join(" ")
}

fn rows_of(text: &str) -> Vec<i64> {
    text.split(' ').filter_map(|row| row.parse().ok()).collect()
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is applied.
    Applied,
    /// So it is, but Redis has lost what came before and is to be filled anew.
    Gap,
    /// It was applied before, with these rows.
    Repeated(Vec<i64>),
    /// Redis has seen later ones of this very database.
    Ahead,
}

/// Reads the entities' snapshots and makes their keys equal to them. `tx` must be in a transaction of isolation READ
/// COMMITTED: it holds the entities' locks until it ends, and snapshots must be taken after they are.
pub async fn project(
    tx: &mut PgConnection,
    redis: &Client,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<(), ProjectError> {
    if !changes.is_empty() {
        project_batch(tx, redis, Source::Work, &Place::default(), changes, now).await?;
    }
    Ok(())
}

/// As [`project`], of a batch of the outbox `source`.
pub(super) async fn project_batch(
    tx: &mut PgConnection,
    redis: &Client,
    source: Source,
    place: &Place,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<Outcome, ProjectError> {
    let entities: Vec<Entity> = changes.keys().copied().collect();
    let version = projection::lock(tx, &entities).await?;
    let jobs: Vec<B256> =
        entities.iter().filter_map(|e| if let Entity::Job(id) = e { Some(*id) } else { None }).collect();
    let nodes: Vec<Address> =
        entities.iter().filter_map(|e| if let Entity::Node(node) = e { Some(*node) } else { None }).collect();
    let job_views: HashMap<B256, _> =
        job_view::by_ids(tx, &jobs).await?.into_iter().map(|view| (view.job_id, view)).collect();
    let node_views: HashMap<Address, _> =
        node_view::by_addresses(tx, &nodes).await?.into_iter().map(|view| (view.node, view)).collect();

    // What somebody has a lease of and does not hold: taken off the chain, or closed there.
    let lost: Vec<B256> = jobs
        .iter()
        .filter(|id| {
            job_views.get(*id).is_none_or(|view| view.lease.is_some() && view.status(now) != JobStatus::Active)
        })
        .copied()
        .collect();
    let leases = if lost.is_empty() { HashMap::new() } else { work::leases(tx, &lost).await? };

    let mut entities = Vec::with_capacity(changes.len());
    for (entity, events) in changes {
        entities.push(match entity {
            Entity::Job(id) => {
                let mut plan = plan::job(*id, job_views.get(id), events, redis.keys(), now);
                plan.leased = leases.get(id).copied();
                ("job", id.to_string(), plan::json(&plan))
            }
            Entity::Node(node) => {
                let plan = plan::node(*node, node_views.get(node), events, redis.keys(), now);
                ("node", node.to_checksum(None), plan::json(&plan))
            }
        });
    }
    Ok(send(redis, source, place, version, &entities).await?)
}

/// Applies snapshots of jobs as [`project`] does, with no database behind them: `version` says which are later. For measuring what
/// Redis has to do.
pub async fn show(redis: &Client, version: i64, jobs: &[JobView], now: DateTime<Utc>) -> Result<(), RedisError> {
    let entities: Vec<_> = jobs
        .iter()
        .map(|view| {
            let plan = plan::job(view.job_id, Some(view), &[], redis.keys(), now);
            ("job", view.job_id.to_string(), plan::json(&plan))
        })
        .collect();
    send(redis, Source::Work, &Place::default(), version, &entities).await.map(|_| ())
}

/// Carries out plans: kind, id and plan of each entity.
async fn send(
    redis: &Client,
    source: Source,
    place: &Place,
    version: i64,
    entities: &[(&str, String, String)],
) -> Result<Outcome, RedisError> {
    let keys = redis.keys();
    let script = redis::Script::new(BATCH_LUA);
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(3).arg(keys.applied(source.name())).arg(keys.generation()).arg(keys.rebuilding());
    call.arg(plan::json(place)).arg(keys.prefix()).arg(version).arg(VERSION_TTL_SECS);
    for (kind, id, plan) in entities {
        call.arg(*kind).arg(id).arg(plan);
    }
    let mut pipe = redis::pipe();
    // A Redis that was restarted has forgotten it; loading it again costs less than finding that out.
    pipe.cmd("SCRIPT").arg("LOAD").arg(BATCH_LUA).ignore().add_command(call);
    let ((answer, rows),): ((String, String),) = pipe.query_async(&mut redis.connection()).await?;
    Ok(match answer.as_str() {
        "gap" => Outcome::Gap,
        "ahead" => Outcome::Ahead,
        "repeated" => Outcome::Repeated(rows_of(&rows)),
        _ => Outcome::Applied,
    })
}
