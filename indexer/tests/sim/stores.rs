//! Postgres and Redis of one run, and their troubles.

use std::collections::BTreeMap;

use devnet::{Postgres, Redis, TestDatabase};
use market::db;
use market::db::node_profile::{self, Profile};
use market::fold::{model, time_of};
use market::redis::client::Client;
use market::redis::dump::dump;
use market::redis::keys::Keys;
use serde_json::Value;
use sqlx::PgPool;

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
    Shared(TestDatabase),
    Own(Box<OwnPostgres>),
}

impl Database {
    pub fn url(&self) -> &str {
        match self {
            Self::Shared(database) => database.url(),
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

/// Runs one Redis command.
pub async fn command(redis: &Redis, words: &[&str]) -> Result<(), redis::RedisError> {
    let mut connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
    redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut connection).await
}

/// All keys that are made from Postgres.
pub async fn keys(redis: &Redis) -> Result<BTreeMap<String, Value>, redis::RedisError> {
    let client = Client::open(redis.url(), Keys::default())?;
    let mut keys = dump(&client).await?;
    keys.remove(&client.keys().generation());
    Ok(keys)
}
