//! Makes Redis equal to Postgres for some entities.
//!
//! Two processes may project one job at the same time, since it changes both on the chain and in the API. That an older
//! snapshot never overwrites a newer one rests on two things. The entity's advisory lock in Postgres is held from before
//! the snapshot is read until Redis has answered, so snapshots are applied in the order in which they were read. Should a
//! command be given up on (a timeout) and still be carried out later, the version drawn under the lock tells the script
//! that it comes too late.

use std::collections::{BTreeMap, HashMap};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::client::{Client, RedisError};
use super::keys::VERSION_TTL_SECS;
use super::plan::{self, Event, JobPlan, NodePlan};
use crate::db::outbox::Entity;
use crate::db::{job_view, node_view, projection};

const JOB_LUA: &str = include_str!("lua/job.lua");
const NODE_LUA: &str = include_str!("lua/node.lua");

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

/// Reads the entities' snapshots and makes their keys equal to them. `tx` must be in a transaction of isolation READ
/// COMMITTED: it holds the entities' locks until it ends, and snapshots must be taken after they are.
pub async fn project(
    tx: &mut PgConnection,
    redis: &Client,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<(), ProjectError> {
    if changes.is_empty() {
        return Ok(());
    }
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

    let keys = redis.keys();
    let mut batch = Batch::new(redis, version);
    for (entity, events) in changes {
        match entity {
            Entity::Job(id) => batch.job(*id, &plan::job(*id, job_views.get(id), events, keys, now)),
            Entity::Node(node) => batch.node(*node, &plan::node(*node, node_views.get(node), events, keys, now)),
        }
    }
    batch.send().await?;
    Ok(())
}

/// Calls of the scripts, sent together.
struct Batch<'a> {
    redis: &'a Client,
    version: i64,
    pipe: redis::Pipeline,
    job_script: redis::Script,
    node_script: redis::Script,
}

impl<'a> Batch<'a> {
    fn new(redis: &'a Client, version: i64) -> Self {
        let (job_script, node_script) = (redis::Script::new(JOB_LUA), redis::Script::new(NODE_LUA));
        let mut pipe = redis::pipe();
        // A Redis that was restarted has forgotten them; loading them again costs less than finding that out.
        pipe.cmd("SCRIPT").arg("LOAD").arg(JOB_LUA).ignore();
        pipe.cmd("SCRIPT").arg("LOAD").arg(NODE_LUA).ignore();
        Self { redis, version, pipe, job_script, node_script }
    }

    fn job(&mut self, id: B256, plan: &JobPlan) {
        let keys = self.redis.keys();
        self.pipe
            .cmd("EVALSHA")
            .arg(self.job_script.get_hash())
            .arg(6)
            .arg(keys.version(&id.to_string()))
            .arg(keys.job_status(id))
            .arg(keys.jobs_pending())
            .arg(keys.jobs_completed())
            .arg(keys.payments_completed())
            .arg(keys.deadlines())
            .arg(self.version)
            .arg(VERSION_TTL_SECS)
            .arg(keys.prefix())
            .arg(id.to_string())
            .arg(plan::json(plan))
            .ignore();
    }

    fn node(&mut self, address: Address, plan: &NodePlan) {
        let keys = self.redis.keys();
        let address = address.to_checksum(None);
        self.pipe
            .cmd("EVALSHA")
            .arg(self.node_script.get_hash())
            .arg(4)
            .arg(keys.version(&address))
            .arg(keys.nodes_available())
            .arg(keys.nodes_heartbeats())
            .arg(keys.node_ids())
            .arg(self.version)
            .arg(VERSION_TTL_SECS)
            .arg(keys.prefix())
            .arg(address)
            .arg(plan::json(plan))
            .ignore();
    }

    async fn send(self) -> Result<(), RedisError> {
        self.pipe.exec_async(&mut self.redis.connection()).await
    }
}
