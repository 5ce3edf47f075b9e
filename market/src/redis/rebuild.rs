//! Fills Redis from Postgres: after a flush, with another database, or because something was lost. `littoral:generation` names
//! the database that filled Redis: it goes with everything else in a flush, and is written last.
//!
//! Readers go on meanwhile. From the beginning to the end every snapshot that is applied, whoever applies it, goes to the keys
//! that readers see and to staging keys beside them. All live entities are applied once, so in the end the staging keys hold
//! them all and nothing else, and one script puts them in the place of the others. Hashes of jobs and nodes have no staging:
//! each is whole whenever it is written, and those of entities that are no more go after the swap.

use std::collections::{BTreeSet, HashSet};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnection, PgPool};

use super::apply::{self, Changes, ProjectError};
use super::client::{Client, RedisError};
use super::keys::{Owner, PAYMENTS_TTL_SECS, TURNS_KEPT_SECS, line_name};
use super::{session, sweep};
use crate::db::outbox::{Entity, Source};
use crate::db::projection::Duty;
use crate::db::{job_view, node_view, projection, queue};

/// Entities that are applied together.
const BATCH: i64 = 128;
/// Seconds after which the token of a rebuild that died is forgotten.
const TOKEN_TTL_SECS: u64 = 3600;
/// Keys looked at in one step of a scan.
const SCAN_STEP: usize = 1000;

const BEGIN: &str = include_str!("lua/begin.lua");
const SWAP: &str = include_str!("lua/swap.lua");

/// How often a rebuild begins again because Redis was flushed, before it is left to the next look.
const ATTEMPTS: u32 = 5;

/// Fills Redis if it was not filled from this database or has lost something since, unless another process is doing so.
/// Returns whether it did.
pub async fn ensure(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<bool, ProjectError> {
    let mut db = pool.acquire().await?;
    let wanted = projection::generation(&mut db).await?;
    // Postgres is asked first: Redis is never behind what Postgres has committed.
    let mut lost = false;
    for source in [Source::Chain, Source::Work] {
        let batch = projection::progress(&mut db, source).await?.batch;
        lost |= applied(redis, source).await?.is_none_or(|applied| applied < batch);
    }
    drop(db);
    let is_ours = generation(redis).await? == Some(wanted);
    if is_ours && !lost {
        return Ok(false);
    }
    if is_ours {
        tracing::warn!("Redis has lost changes; filling it anew");
    }
    fill_all(pool, redis, now, is_ours).await
}

/// Makes all keys again that are made from Postgres, whatever they hold. Projectors and readers may go on meanwhile. Returns
/// false if another process is at it, or if Redis was flushed meanwhile.
pub async fn rebuild(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<bool, ProjectError> {
    fill_all(pool, redis, now, true).await
}

/// `anew`: even if Redis was filled from this database.
async fn fill_all(pool: &PgPool, redis: &Client, now: DateTime<Utc>, anew: bool) -> Result<bool, ProjectError> {
    // Held to the end, so that one process at a time fills Redis.
    let mut duty = pool.begin().await?;
    if !projection::try_take(&mut duty, Duty::Rebuild).await? {
        return Ok(false);
    }
    let wanted = projection::generation(&mut duty).await?;
    // Another process may have filled it between the caller's look and the lock.
    if !anew && generation(redis).await?.as_ref() == Some(&wanted) {
        return Ok(false);
    }
    let mut finished = false;
    for attempt in 1..=ATTEMPTS {
        finished = fill_once(pool, redis, &mut duty, &wanted, now).await?;
        if finished {
            break;
        }
        metrics::counter!("littoral_redis_rebuilds_interrupted_total").increment(1);
        tracing::warn!(generation = %wanted, attempt, "Redis was flushed while it was filled; beginning again");
    }
    duty.commit().await?;
    Ok(finished)
}

/// One attempt, which ends with the batch in which it finds that Redis was flushed: what it has filled so far is lost then, and
/// readers have nothing. Returns whether it came to its end.
async fn fill_once(
    pool: &PgPool,
    redis: &Client,
    duty: &mut PgConnection,
    wanted: &str,
    now: DateTime<Utc>,
) -> Result<bool, ProjectError> {
    let mut batches = Vec::new();
    for source in [Source::Chain, Source::Work] {
        batches.push(projection::progress(duty, source).await?.batch);
    }
    let is_ours = generation(redis).await?.as_deref() == Some(wanted);
    tracing::info!(generation = wanted, "filling Redis from Postgres");
    let filling = Filling { pool, redis, token: begin(redis, !is_ours).await?, now };
    let filled = async {
        let nodes = filling.nodes().await?;
        let jobs = filling.jobs().await?;
        let sessions = filling.sessions().await?;
        fill_turns(pool, redis, now).await?;
        Ok((nodes, jobs, sessions))
    };
    let (nodes, jobs, sessions) = match filled.await {
        Ok(filled) => filled,
        Err(Stopped::Flushed) => return Ok(false),
        Err(Stopped::Failed(error)) => return Err(error),
    };
    let left = leftovers(redis, &jobs).await?;
    if !swap(redis, &filling.token, wanted, &batches, &left.owners).await? {
        return Ok(false);
    }
    forget(pool, redis, left, now).await?;
    metrics::counter!("littoral_redis_rebuilds_total").increment(1);
    tracing::info!(generation = wanted, jobs = jobs.len(), nodes, sessions, "Redis is filled");
    Ok(true)
}

/// Why an attempt does not go on.
enum Stopped {
    /// What it had filled is gone.
    Flushed,
    /// Postgres or Redis failed.
    Failed(ProjectError),
}

impl<E: Into<ProjectError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Begins to keep staging keys. Versions of another database's snapshots would keep this one's out.
async fn begin(redis: &Client, is_foreign: bool) -> Result<String, RedisError> {
    let token = format!("{:032x}", rand::random::<u128>());
    if is_foreign {
        let versions: Vec<String> = scan(redis).await?.into_iter().filter(|key| redis.keys().is_version(key)).collect();
        for found in versions.chunks(SCAN_STEP) {
            redis::cmd("UNLINK").arg(found).exec_async(&mut redis.connection()).await?;
        }
    }
    redis::Script::new(BEGIN)
        .key(redis.keys().rebuilding())
        .key(redis.keys().applied(Source::Chain.name()))
        .key(redis.keys().applied(Source::Work.name()))
        .arg(&token)
        .arg(TOKEN_TTL_SECS)
        .arg(redis.keys().prefix())
        .arg(i32::from(is_foreign))
        .invoke_async::<()>(&mut redis.connection())
        .await?;
    Ok(token)
}

/// Puts the staging keys in their place and names the database, unless a flush came meanwhile.
async fn swap(
    redis: &Client,
    token: &str,
    generation: &str,
    batches: &[i64],
    owners: &BTreeSet<B256>,
) -> Result<bool, RedisError> {
    let script = redis::Script::new(SWAP);
    let mut call = script.key(redis.keys().rebuilding());
    call.key(redis.keys().generation())
        .key(redis.keys().applied(Source::Chain.name()))
        .key(redis.keys().applied(Source::Work.name()))
        .arg(token)
        .arg(generation)
        .arg(redis.keys().prefix())
        .arg(batches);
    for owner in owners {
        call.arg(owner.to_string());
    }
    call.invoke_async(&mut redis.connection()).await
}

/// The name of the database that filled Redis, if one did.
pub async fn generation(redis: &Client) -> Result<Option<String>, RedisError> {
    redis::cmd("GET").arg(redis.keys().generation()).query_async(&mut redis.connection()).await
}

/// The latest batch of `source` that Redis knows to have been applied.
async fn applied(redis: &Client, source: Source) -> Result<Option<i64>, RedisError> {
    let key = redis.keys().applied(source.name());
    redis::cmd("HGET").arg(key).arg("batch").query_async(&mut redis.connection()).await
}

/// What Redis has besides what was just applied.
struct Leftovers {
    /// Jobs with a hash.
    jobs: Vec<B256>,
    /// Node ids with a hash.
    nodes: Vec<B256>,
    /// Node ids with keys that staging keys will take the place of.
    owners: BTreeSet<B256>,
}

async fn leftovers(redis: &Client, applied: &HashSet<B256>) -> Result<Leftovers, RedisError> {
    let mut left = Leftovers { jobs: Vec::new(), nodes: Vec::new(), owners: BTreeSet::new() };
    for key in scan(redis).await? {
        match redis.keys().owner_of(&key) {
            Some(Owner::Job(id)) if !applied.contains(&id) => left.jobs.push(id),
            Some(Owner::Node(id)) => left.nodes.push(id),
            Some(Owner::Collection(id)) => {
                left.owners.insert(id);
            }
            _ => {}
        }
    }
    Ok(left)
}

/// Removes what of `left` is no more. A job may have come while the others were applied, so each is looked at.
async fn forget(pool: &PgPool, redis: &Client, left: Leftovers, now: DateTime<Utc>) -> Result<(), ProjectError> {
    for some in left.jobs.chunks(SCAN_STEP / 8) {
        fill(pool, redis, some.iter().copied().map(Entity::Job), now).await?;
    }
    for some in left.nodes.chunks(SCAN_STEP) {
        let known = node_view::addresses_of(&mut *pool.acquire().await?, some).await?;
        let unknown: Vec<B256> =
            some.iter().filter(|id| known.iter().all(|(_, known)| known != *id)).copied().collect();
        sweep::forget_nodes(redis, &unknown).await?;
    }
    Ok(())
}

/// All keys that are made from Postgres, each once.
pub(super) async fn scan(redis: &Client) -> Result<Vec<String>, RedisError> {
    let mut connection = redis.connection();
    let (pattern, mut cursor, mut found) = (redis.keys().pattern(), 0_u64, Vec::new());
    loop {
        let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(&pattern)
            .arg("COUNT")
            .arg(SCAN_STEP)
            .query_async(&mut connection)
            .await?;
        // Keys of others need not be text; ours are.
        let ours = keys.into_iter().filter_map(|key| String::from_utf8(key).ok());
        found.extend(ours.filter(|key| redis.keys().is_projected(key)));
        cursor = next;
        if cursor == 0 {
            found.sort_unstable();
            found.dedup();
            return Ok(found);
        }
    }
}

async fn fill(
    pool: &PgPool,
    redis: &Client,
    entities: impl Iterator<Item = Entity>,
    now: DateTime<Utc>,
) -> Result<(), ProjectError> {
    let changes: Changes = entities.map(|entity| (entity, Vec::new())).collect();
    let mut tx = pool.begin().await?;
    apply::project(&mut tx, redis, &changes, now).await?;
    tx.commit().await?;
    Ok(())
}

/// Whose turn it was is only a hint, and needs no staging.
async fn fill_turns(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<(), ProjectError> {
    let since = now - TimeDelta::seconds(TURNS_KEPT_SECS.cast_signed());
    let turns = queue::turns(&mut *pool.acquire().await?, since).await?;
    for some in turns.chunks(SCAN_STEP) {
        let mut add = redis::cmd("ZADD");
        add.arg(redis.keys().turns()).arg("GT");
        for (line, at) in some {
            let name = line_name(&line.operation, line.order_node, line.requester);
            add.arg(at.timestamp_millis()).arg(name);
        }
        add.exec_async(&mut redis.connection()).await?;
    }
    Ok(())
}

/// An attempt to fill Redis.
struct Filling<'a> {
    pool: &'a PgPool,
    redis: &'a Client,
    token: String,
    now: DateTime<Utc>,
}

impl Filling<'_> {
    /// That Redis still has what was filled so far. The attempt's token lives on, however long all of it takes.
    async fn go_on(&self) -> Result<(), Stopped> {
        let mut look = redis::cmd("GETEX");
        look.arg(self.redis.keys().rebuilding()).arg("EX").arg(TOKEN_TTL_SECS);
        let token: Option<String> = look.query_async(&mut self.redis.connection()).await?;
        if token.as_ref() == Some(&self.token) { Ok(()) } else { Err(Stopped::Flushed) }
    }

    async fn fill(&self, entities: impl Iterator<Item = Entity>) -> Result<(), Stopped> {
        fill(self.pool, self.redis, entities, self.now).await?;
        self.go_on().await
    }

    /// Returns how many there are.
    async fn nodes(&self) -> Result<usize, Stopped> {
        let (mut after, mut count) = (Address::ZERO, 0);
        loop {
            let nodes = node_view::list(&mut *self.pool.acquire().await?, after, BATCH).await?;
            let Some(last) = nodes.last() else { return Ok(count) };
            after = last.node;
            count += nodes.len();
            self.fill(nodes.iter().map(|view| Entity::Node(view.node))).await?;
        }
    }

    /// Returns which jobs it filled.
    async fn jobs(&self) -> Result<HashSet<B256>, Stopped> {
        let mut filled = HashSet::new();
        // Those whose payment is due come first, in the order of their lists: each is then appended at the end of its list.
        let mut after = None;
        loop {
            let due = job_view::due_ids(&mut *self.pool.acquire().await?, after, BATCH).await?;
            let Some(last) = due.last() else { break };
            after = Some(*last);
            self.fill(due.iter().map(|(_, id)| Entity::Job(*id))).await?;
            filled.extend(due.iter().map(|(_, id)| *id));
        }
        let since = self.now - TimeDelta::seconds(PAYMENTS_TTL_SECS.cast_signed());
        let mut after = B256::ZERO;
        loop {
            let jobs = job_view::live_ids(&mut *self.pool.acquire().await?, after, since, BATCH).await?;
            let Some(last) = jobs.last() else { return Ok(filled) };
            after = *last;
            let new: Vec<B256> = jobs.into_iter().filter(|id| filled.insert(*id)).collect();
            self.fill(new.into_iter().map(Entity::Job)).await?;
        }
    }

    /// Returns how many there are.
    async fn sessions(&self) -> Result<usize, Stopped> {
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let mut db = self.pool.acquire().await?;
            let sessions = projection::live_sessions(&mut db, &after, BATCH, self.now).await?;
            drop(db);
            let Some(last) = sessions.last() else { return Ok(count) };
            after.clone_from(&last.user_id);
            count += sessions.len();
            for live in &sessions {
                session::restore(self.redis, live).await?;
            }
            self.go_on().await?;
        }
    }
}
