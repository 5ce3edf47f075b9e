//! The program itself, with stores of its own.

use std::path::Path;
use std::time::Duration;

use devnet::{Launch, Process, Redis, RedisOptions, TestDatabase};
use market::db;
use sqlx::PgPool;

use super::{Chain, Index};

pub const SOON: Duration = Duration::from_secs(30);

/// What an indexer needs besides a chain.
pub struct Stores {
    pub redis: Redis,
    pub url: String,
    pub _database: TestDatabase,
    pub logs: tempfile::TempDir,
}

impl Stores {
    pub async fn start() -> Self {
        let database = TestDatabase::create().await.unwrap();
        Self {
            redis: Redis::start(RedisOptions::default()).await.unwrap(),
            url: database.url().to_owned(),
            _database: database,
            logs: devnet::paths::scratch_dir("indexer-logs").unwrap(),
        }
    }

    pub fn indexer(&self, name: &str, rpc_url: &str, manifest: &Path) -> Launch {
        Launch::new(name, env!("CARGO_BIN_EXE_littoral-indexer"), self.logs.path().join(name))
            .arg("run")
            .env("DATABASE_URL", &self.url)
            .env("REDIS_URL", self.redis.url())
            .env("RPC_URL", rpc_url)
            .env("LITTORAL_DEPLOYMENT", manifest)
    }

    pub fn indexer_of(&self, name: &str, chain: &Chain) -> Process {
        self.indexer(name, chain.anvil.rpc_url(), &chain.manifest.path).spawn().unwrap()
    }

    pub async fn pool(&self) -> PgPool {
        db::connect(&self.url, 2).await.unwrap()
    }
}

/// Waits until the cursor is at the chain's head.
pub async fn caught_up(pool: &PgPool, chain: &Chain) {
    use alloy::providers::Provider;
    let head = chain.provider.get_block(alloy::eips::BlockId::latest()).await.unwrap().unwrap().header.hash;
    let mut last = None;
    for _ in 0..3000 {
        // The tables come with the first indexer.
        last = db::chain::cursor(&mut pool.acquire().await.unwrap()).await.ok().flatten();
        if last.as_ref().is_some_and(|cursor| cursor.block.hash == head) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the cursor is at {last:?}, not at {head}");
}

/// Waits until the process has ended by itself, and returns what it wrote.
pub async fn outcome(mut process: Process) -> (bool, String) {
    for _ in 0..3000 {
        if let Some(status) = process.exit_status() {
            return (status.success(), process.output());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still running: {}", process.log_tail());
}

pub async fn assert_equals_a_fresh_index(pool: &PgPool, chain: &Chain) {
    let mut fresh = Index::of(chain).await;
    fresh.catch_up().await;
    let state = db::chain::canonical_state(&mut pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(state, fresh.state().await);
}

/// A GET's status and body.
pub async fn get(bind: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(bind).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {bind}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
