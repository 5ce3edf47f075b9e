//! Postgres and Redis of one run, and their troubles.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use chrono::{DateTime, TimeDelta, Utc};
use devnet::{Postgres, Redis, TestDatabase};
use market::db;
use market::db::node_profile::{self, Profile};
use market::db::outbox::{self, Entity, Source};
use market::db::queue::{self, Line, Waiting};
use market::db::types::DbHash;
use market::fold::{model, time_of};
use market::job::Work;
use market::redis::client::Client;
use market::redis::dump::dump;
use serde_json::Value;
use sqlx::PgPool;

/// How long a node has a job; no time passes.
const LEASE: TimeDelta = TimeDelta::minutes(10);
/// High half of the key of the advisory locks of leaders.
const LOCKS: i64 = 0x6c69_7474;

/// Writes what the API would: that the model's nodes are there.
pub async fn introduce_nodes(pool: &PgPool) {
    let mut db = pool.acquire().await.unwrap();
    let profile = Profile { max_concurrent_jobs: 3, operations: vec!["encrypt".to_owned()] };
    for n in 0..3 {
        node_profile::save(&mut db, model::node(n), &[1; 32], &profile, time_of(model::START + 400)).await.unwrap();
    }
}

/// A database with the tables, to be copied.
pub async fn template() -> TestDatabase {
    let template = TestDatabase::create().await.unwrap();
    let pool = db::connect(template.url(), 1).await.unwrap();
    db::migrate(&pool).await.unwrap();
    introduce_nodes(&pool).await;
    pool.close().await;
    template
}

/// Databases of one worker, which are emptied rather than made anew: that takes less.
pub struct Databases<'a> {
    template: &'a TestDatabase,
    pair: Option<(TestDatabase, TestDatabase)>,
    uses: u32,
}

impl<'a> Databases<'a> {
    pub fn new(template: &'a TestDatabase) -> Self {
        Self { template, pair: None, uses: 0 }
    }

    /// The databases of the run and of the index that it is compared with, both without rows of the chain.
    pub async fn get(&mut self) -> (&TestDatabase, &TestDatabase) {
        self.uses += 1;
        // Not for ever: what is deleted goes on taking room.
        if self.uses > 20 {
            (self.pair, self.uses) = (None, 1);
        }
        if let Some(pair) = &self.pair {
            for database in [&pair.0, &pair.1] {
                empty(database).await;
            }
        } else {
            self.pair = Some((self.template.duplicate().await.unwrap(), self.template.duplicate().await.unwrap()));
        }
        let pair = self.pair.as_ref().unwrap();
        (&pair.0, &pair.1)
    }
}

/// Deletes all that an indexer wrote. A ledger does not let itself be emptied; its triggers are not asked.
async fn empty(database: &TestDatabase) {
    let pool = db::connect(database.url(), 1).await.unwrap();
    // What is left of processes that were killed.
    terminate(&pool, false, 1.0).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    sqlx::query!(
        "do $$
         declare
             name text;
         begin
             set local session_replication_role = replica;
             for name in select tablename from pg_tables where schemaname = 'public' and tablename not in
                 ('_sqlx_migrations', 'redis_generation', 'projection_progress', 'node_profile')
             loop
                 execute format('delete from %I', name);
             end loop;
         end $$"
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    db::projection::renew_generation(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    pool.close().await;
}

/// A server that crashes now and then.
pub struct OwnPostgres {
    server: Option<Postgres>,
    port: u16,
    url: String,
    dir: tempfile::TempDir,
}

impl OwnPostgres {
    pub async fn start() -> Self {
        let dir = devnet::paths::scratch_dir("sim-postgres").unwrap();
        let port = devnet::ports::free_port().unwrap();
        let server = Postgres::start(dir.path(), Some(port)).await.unwrap();
        let url = server.create_database("sim").await.unwrap().to_string();
        let pool = db::connect(&url, 1).await.unwrap();
        db::migrate(&pool).await.unwrap();
        introduce_nodes(&pool).await;
        pool.close().await;
        Self { server: Some(server), port, url, dir }
    }

    async fn crash(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.process().kill();
        }
        self.server = Some(Postgres::start(self.dir.path(), Some(self.port)).await.unwrap());
    }
}

/// Where the rows of a run are.
pub enum Database {
    Shared(String),
    Own(Box<OwnPostgres>),
}

impl Database {
    pub fn url(&self) -> &str {
        match self {
            Self::Shared(url) => url,
            Self::Own(server) => &server.url,
        }
    }

    /// Crashes the server and starts it again, if it serves this run alone.
    pub async fn crash(&mut self) -> bool {
        match self {
            Self::Shared(_) => false,
            Self::Own(server) => {
                server.crash().await;
                true
            }
        }
    }
}

/// Ends connections to the database other than this one: those of leaders' locks, or of all about the share `part`. How many.
pub async fn terminate(pool: &PgPool, locks_only: bool, part: f64) -> Result<i64, sqlx::Error> {
    let mut db = pool.acquire().await?;
    sqlx::query_scalar!(
        r#"select count(pg_terminate_backend(a.pid)) as "count!"
           from pg_stat_activity a
           where a.datname = current_database() and a.pid <> pg_backend_pid() and random() < $1
             and (not $2 or exists (
                 select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory' and l.classid::bigint = $3
             ))"#,
        part,
        locks_only,
        LOCKS
    )
    .fetch_one(&mut *db)
    .await
}

/// Gives up to `most` open jobs that nobody ever had to `node`, as the API does. How many.
pub async fn lease(pool: &PgPool, node: Address, most: i64, now: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let (mut tx, expires_at) = (pool.begin().await?, now + LEASE);
    let jobs = sqlx::query_scalar!(
        r#"select e.job_id as "job_id: DbHash" from escrow_job e
           where e.state = 'open' and not exists (select from job_work w where w.job_id = e.job_id)
           order by e.job_id limit $1"#,
        most
    )
    .fetch_all(&mut *tx)
    .await?;
    let line = Line { operation: "encrypt".to_owned(), order_node: Address::ZERO, requester: Address::ZERO };
    let leases = jobs.iter().map(|DbHash(job_id)| {
        let work = Work::default();
        let after = work.claim(node, now, LEASE).unwrap();
        (Waiting { job_id: *job_id, work, line: line.clone() }, after)
    });
    let leases: Vec<(Waiting, Work)> = leases.collect();
    if !leases.is_empty() {
        queue::lease(&mut tx, node, &leases, expires_at, now).await?;
    }
    for DbHash(job_id) in jobs {
        outbox::append(&mut tx, Source::Work, Entity::Job(job_id), "job.claimed", now).await?;
    }
    tx.commit().await?;
    Ok(u64::try_from(leases.len()).unwrap())
}

/// Has the nodes of another database hold the same leases. How many are of jobs that are not on the chain.
pub async fn copy_leases(from: &PgPool, to: &PgPool) -> Result<u64, sqlx::Error> {
    let work = sqlx::query_scalar!(r#"select coalesce(jsonb_agg(to_jsonb(w)), '[]') as "work!" from job_work w"#)
        .fetch_one(from)
        .await?;
    sqlx::query!("insert into job_work select * from jsonb_populate_recordset(null::job_work, $1)", work)
        .execute(to)
        .await?;
    let lost = sqlx::query_scalar!(
        r#"select count(*) as "lost!" from job_work w
           where w.state = 'leased' and not exists (select from job_order o where o.job_id = w.job_id)"#
    )
    .fetch_one(to)
    .await?;
    Ok(u64::try_from(lost).unwrap())
}

/// Runs one Redis command.
pub async fn command(redis: &Redis, words: &[&str]) -> Result<(), redis::RedisError> {
    let mut connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
    redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut connection).await
}

/// All keys that are made from Postgres.
pub async fn keys(redis: &Client) -> Result<BTreeMap<String, Value>, redis::RedisError> {
    let mut keys = dump(redis).await?;
    keys.remove(&redis.keys().generation());
    Ok(keys)
}
