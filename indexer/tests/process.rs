//! The program itself: several at once, killed, misconfigured, asked how it is.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use alloy::providers::Provider;
use devnet::{Launch, Postgres, Process, Redis, RedisOptions, TestDatabase};
use market::db;
use sqlx::PgPool;
use support::{Chain, ETHER, Index, NODE, OTHER_REQUESTER, REQUESTER, spec};

const SOON: Duration = Duration::from_secs(30);

/// What an indexer needs besides a chain.
struct Stores {
    redis: Redis,
    url: String,
    _database: TestDatabase,
    logs: tempfile::TempDir,
}

impl Stores {
    async fn start() -> Self {
        let database = TestDatabase::create().await.unwrap();
        Self {
            redis: Redis::start(RedisOptions::default()).await.unwrap(),
            url: database.url().to_owned(),
            _database: database,
            logs: devnet::paths::scratch_dir("indexer-logs").unwrap(),
        }
    }

    fn indexer(&self, name: &str, rpc_url: &str, manifest: &Path) -> Launch {
        Launch::new(name, env!("CARGO_BIN_EXE_littoral-indexer"), self.logs.path().join(name))
            .arg("run")
            .env("DATABASE_URL", &self.url)
            .env("REDIS_URL", self.redis.url())
            .env("RPC_URL", rpc_url)
            .env("LITTORAL_DEPLOYMENT", manifest)
    }

    fn indexer_of(&self, name: &str, chain: &Chain) -> Process {
        self.indexer(name, chain.anvil.rpc_url(), &chain.manifest.path).spawn().unwrap()
    }

    async fn pool(&self) -> PgPool {
        db::connect(&self.url, 2).await.unwrap()
    }
}

/// Waits until the cursor is at the chain's head.
async fn caught_up(pool: &PgPool, chain: &Chain) {
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
async fn outcome(mut process: Process) -> (bool, String) {
    for _ in 0..3000 {
        if let Some(status) = process.exit_status() {
            return (status.success(), process.output());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still running: {}", process.log_tail());
}

async fn assert_equals_a_fresh_index(pool: &PgPool, chain: &Chain) {
    let mut fresh = Index::of(chain).await;
    fresh.catch_up().await;
    let state = db::chain::canonical_state(&mut pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(state, fresh.state().await);
}

#[tokio::test]
async fn two_at_once_that_are_killed_in_turn_write_what_one_would() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let mut indexers = [stores.indexer_of("one", &chain), stores.indexer_of("two", &chain)];
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    for nonce in 0..12_u64 {
        let spec = spec(&nonce.to_string());
        let order = chain.order(nonce, &spec).await;
        chain.open(&order, &spec).await;
        if nonce % 3 == 0 {
            chain.reorg(nonce % 4 + 1).await;
        }
        // Whoever leads dies while there is work under way.
        let victim = &mut indexers[usize::try_from(nonce % 2).unwrap()];
        victim.kill();
        chain.deposit(OTHER_REQUESTER, 5).await;
        victim.restart().unwrap();
        if nonce % 4 == 3 {
            caught_up(&pool, &chain).await;
        }
    }
    caught_up(&pool, &chain).await;
    assert_equals_a_fresh_index(&pool, &chain).await;
    for mut indexer in indexers {
        let log = indexer.output();
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
        assert!(indexer.stop(), "ends when asked to");
        assert!(indexer.exit_status().unwrap().success(), "{}", indexer.log_tail());
    }
}

#[tokio::test]
async fn it_outlives_a_crash_of_postgres() {
    let (chain, mut stores) = (Chain::start().await, Stores::start().await);
    let dir = devnet::paths::scratch_dir("indexer-postgres").unwrap();
    let port = devnet::ports::free_port().unwrap();
    let mut postgres = Postgres::start(dir.path(), Some(port)).await.unwrap();
    stores.url = postgres.create_database("crashing").await.unwrap().to_string();
    let pool = stores.pool().await;
    let mut indexer = stores.indexer_of("lasting", &chain);
    chain.deposit(REQUESTER, 100).await;
    caught_up(&pool, &chain).await;

    postgres.process().kill();
    drop(postgres);
    chain.deposit(REQUESTER, 100).await;
    indexer.wait_until(SOON, async |process| process.output().contains("back to standby")).await.unwrap();
    let _postgres = Postgres::start(dir.path(), Some(port)).await.unwrap();
    caught_up(&pool, &chain).await;
    assert_equals_a_fresh_index(&pool, &chain).await;
    assert!(indexer.is_running());
}

#[tokio::test]
async fn it_waits_for_a_chain_that_is_not_up_yet_and_ends_when_told_to() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    let nobody = format!("http://127.0.0.1:{}", devnet::ports::free_port().unwrap());
    let launch = stores.indexer("waiting", &nobody, &chain.manifest.path).env("METRICS_BIND", &bind);
    let mut indexer = launch.spawn().unwrap();
    indexer.wait_until(SOON, async |process| process.output().contains("cannot reach the chain yet")).await.unwrap();
    let (code, health) = get(&bind, "/health").await;
    assert_eq!((code, health.contains("standby")), (200, true), "{health}");
    assert!(health.contains("eth_") || health.contains("error sending request"), "says what fails: {health}");
    assert!(indexer.stop());
    assert!(indexer.exit_status().unwrap().success(), "{}", indexer.log_tail());
}

#[tokio::test]
async fn health_and_metrics_say_how_far_it_is() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    // What the owners did at deployment, and the deposit.
    let before = chain.source().range(1..=chain.provider.get_block_number().await.unwrap()).await.unwrap();
    let events = before.events.len() + 1;
    chain.deposit(REQUESTER, 5).await;
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    let launch = stores.indexer("measured", chain.anvil.rpc_url(), &chain.manifest.path).env("METRICS_BIND", &bind);
    let _indexer = launch.spawn().unwrap();
    caught_up(&pool, &chain).await;
    chain.reorg(1).await;
    caught_up(&pool, &chain).await;
    chain.mine(1).await;
    caught_up(&pool, &chain).await;
    let (code, health) = get(&bind, "/health").await;
    let health: serde_json::Value = serde_json::from_str(&health).unwrap();
    assert_eq!((code, &health["status"], &health["role"]), (200, &"ok".into(), &"leader".into()));
    let (_, metrics) = get(&bind, "/metrics").await;
    for line in [
        "littoral_indexer_leader 1",
        &format!("littoral_indexer_events_applied_total {events}"),
        "littoral_indexer_events_undone_total 1",
        "littoral_indexer_reorgs_total 1",
        "littoral_indexer_lag_blocks 0",
        "littoral_indexer_outbox_depth",
        "littoral_indexer_reorg_depth_blocks_sum 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
}

async fn get(bind: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(bind).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {bind}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn what_is_configured_wrongly_is_named() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let rpc_url = chain.anvil.rpc_url();
    let start = async |name: &str, edit: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = serde_json::to_value(&chain.deployment).unwrap();
        edit(&mut manifest);
        let path = stores.logs.path().join(format!("{name}.json"));
        std::fs::write(&path, manifest.to_string()).unwrap();
        outcome(stores.indexer(name, rpc_url, &path).spawn().unwrap()).await
    };

    let (ok, output) = start("chain", &|manifest| manifest["chainId"] = 1.into()).await;
    assert!(!ok && output.contains("serves chain 31337, the deployments manifest is for chain 1"), "{output}");
    let nowhere = "0x0101010101010101010101010101010101010101";
    let (ok, output) = start("contract", &|manifest| manifest["escrow"] = nowhere.into()).await;
    assert!(!ok && output.contains("no contract at 0x0101"), "{output}");
    let (ok, output) = start("field", &|manifest| manifest["registry"] = 5.into()).await;
    assert!(!ok && output.contains("is not a deployments manifest"), "{output}");
    let missing = stores.indexer("missing", rpc_url, Path::new("/nonexistent.json")).spawn().unwrap();
    let (ok, output) = outcome(missing).await;
    assert!(!ok && output.contains("cannot read the deployments manifest /nonexistent.json"), "{output}");

    // Once indexed, the database belongs to this deployment.
    let pool = stores.pool().await;
    let indexer = stores.indexer_of("right", &chain);
    caught_up(&pool, &chain).await;
    drop(indexer);
    let escrow = chain.deployment.escrow.to_string();
    let (ok, output) = start("database", &|manifest| manifest["escrow"] = nowhere.into()).await;
    assert!(!ok && output.contains(&escrow) && output.contains("use another database"), "{output}");
    let (ok, output) = start("late", &|manifest| manifest["chainId"] = 5.into()).await;
    assert!(!ok && output.contains("mirrors chain 31337") && output.contains("manifest is for chain 5"), "{output}");
}
