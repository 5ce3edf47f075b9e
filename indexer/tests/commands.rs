//! What an operator asks of the program: verify, replay, rebuild-redis, status; and what it finds out by itself.

// Tampering is written as text: a macro for each statement would say nothing more.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Stdio;
use std::time::Duration;

use devnet::AnvilOptions;
use serde_json::Value;
use sqlx::PgPool;
use support::process::{SOON, Stores, assert_equals_a_fresh_index, caught_up, get};
use support::{Chain, ETHER, NODE, OTHER_REQUESTER, REQUESTER, spec};

/// Runs a command to its end: exit code, and what it wrote to both outputs.
async fn command(stores: &Stores, rpc_url: &str, chain: &Chain, args: &[&str]) -> (i32, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_littoral-indexer"))
        .args(args)
        .env("DATABASE_URL", &stores.url)
        .env("REDIS_URL", stores.redis.url())
        .env("RPC_URL", rpc_url)
        .env("LITTORAL_DEPLOYMENT", &chain.manifest.path)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

async fn of(stores: &Stores, chain: &Chain, args: &[&str]) -> (i32, String) {
    command(stores, chain.anvil.rpc_url(), chain, args).await
}

async fn change(pool: &PgPool, statement: &'static str) {
    assert!(sqlx::query(statement).execute(pool).await.unwrap().rows_affected() > 0, "{statement}");
}

/// Something of most kinds, jobs that ended among it, and a reorg.
async fn live(chain: &Chain) {
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    for nonce in 0..4 {
        let spec = spec(&nonce.to_string());
        let order = chain.order(nonce, &spec).await;
        chain.open(&order, &spec).await;
        if nonce % 2 == 0 {
            chain.submit(vec![chain.result(&order, 700)]).await;
        }
    }
    chain.mine(3).await;
    chain.reorg(2).await;
    chain.deposit(OTHER_REQUESTER, 5).await;
}

#[tokio::test]
async fn what_was_tampered_with_is_found_and_mended_by_replaying() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    live(&chain).await;
    let mut indexer = stores.indexer_of("honest", &chain);
    caught_up(&pool, &chain).await;
    let (code, told) = of(&stores, &chain, &["verify"]).await;
    assert!(code == 0 && told.contains("nothing differs"), "{told}");
    let (code, told) = of(&stores, &chain, &["verify", "--from", "3", "--to", "5", "--json"]).await;
    assert!(code == 0 && told.contains(r#""clean":true"#) && told.contains(r#""calls":0"#), "{told}");

    assert!(indexer.stop());
    for (statement, word) in [
        ("update chain_event set data = data || '\\x00' where kind = 'Deposited'", "Event Deposited"),
        ("update escrow_account set free = free + 1", "Row escrow_account"),
        ("update escrow_job set price = price + 1 where state = 'paid'", "Row escrow_job"),
        ("delete from chain_event where kind = 'JobOpened'", "Event JobOpened"),
        (
            "insert into escrow_job (job_id, requester, state, closed_block, closed_tx, closed_at, node, price, paid_token, result_hash)
             select sha256(job_id), requester, state, closed_block, closed_tx, closed_at, node, price, paid_token, result_hash
             from escrow_job where state = 'paid' limit 1",
            "Row escrow_job",
        ),
    ] {
        change(&pool, statement).await;
        let (code, told) = of(&stores, &chain, &["verify"]).await;
        assert!(code == 1 && told.contains(word), "after {statement}: {told}");
        let (code, told) = of(&stores, &chain, &["replay", "--from", "1"]).await;
        assert!(code == 1 && told.contains("--yes"), "asks first: {told}");
        let (code, told) = of(&stores, &chain, &["replay", "--from", "1", "--yes"]).await;
        assert!(code == 0 && told.contains("read again up to block"), "{told}");
        let (code, told) = of(&stores, &chain, &["verify"]).await;
        assert!(code == 0, "after replaying {statement}: {told}");
    }
    assert_equals_a_fresh_index(&pool, &chain).await;
    let (code, told) = of(&stores, &chain, &["rebuild-redis"]).await;
    assert!(code == 0 && told.contains("Redis is filled"), "{told}");
    let (code, told) = of(&stores, &chain, &["replay", "--from", "99999", "--yes"]).await;
    assert!(code == 1 && told.contains("--from 99999 is beyond the last indexed block"), "{told}");
    let (code, told) = of(&stores, &chain, &["verify", "--from", "9", "--to", "3"]).await;
    assert!(code == 2 && told.contains("--from 9 is beyond --to 3"), "{told}");
    let (code, told) = command(&stores, "http://127.0.0.1:1", &chain, &["verify"]).await;
    assert!(code == 2, "without a chain nothing can be told: {told}");
}

#[tokio::test]
async fn a_replay_refuses_while_an_indexer_leads_and_takes_its_lead_if_told_to() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    live(&chain).await;
    let mut indexer = stores.indexer_of("leading", &chain);
    caught_up(&pool, &chain).await;
    let from = (chain.deployment.deploy_block + 2).to_string();
    let (code, told) = of(&stores, &chain, &["replay", "--from", &from, "--yes"]).await;
    assert!(code == 1 && told.contains("a process leads as indexer") && told.contains("--take-lead"), "{told}");
    let (code, told) = of(&stores, &chain, &["replay", "--from", &from, "--yes", "--take-lead"]).await;
    assert_eq!(code, 0, "{told}");
    // The one that had the lead goes on.
    chain.deposit(REQUESTER, 1).await;
    caught_up(&pool, &chain).await;
    assert_equals_a_fresh_index(&pool, &chain).await;
    let (code, told) = of(&stores, &chain, &["verify"]).await;
    assert_eq!(code, 0, "{told}");
    assert!(indexer.is_running() && !indexer.output().contains("ERROR"), "{}", indexer.log_tail());
}

#[tokio::test]
async fn status_tells_what_the_database_knows() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let (code, told) = of(&stores, &chain, &["status"]).await;
    assert!(code == 1 && told.contains("is this the indexer's database (--database-url)?"), "{told}");
    let mut indexer = stores.indexer_of("told", &chain);
    chain.deposit(REQUESTER, 100).await;
    caught_up(&pool, &chain).await;
    chain.reorg(1).await;
    caught_up(&pool, &chain).await;
    let cursor = market::db::chain::cursor(&mut pool.acquire().await.unwrap()).await.unwrap().unwrap();
    let args = ["status", "--json", "--redis-url", stores.redis.url(), "--rpc-url", chain.anvil.rpc_url()];
    let (code, told) = of(&stores, &chain, &args).await;
    assert_eq!(code, 0, "{told}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["index"]["cursor"]["number"], cursor.block.number);
    assert_eq!((&told["head"], &told["lag"]["head"]), (&cursor.block.number.into(), &0.into()));
    assert_eq!((&told["leader"]["leads"], &told["leader"]["epoch"]), (&true.into(), &1.into()));
    assert!(told["leader"]["renewedSecsAgo"].as_f64().unwrap() < 3.0, "{told}");
    assert_eq!(told["reorgs"][0]["eventsUndone"], 1);
    assert_eq!(told["redis"]["current"], true, "{told}");
    assert!(indexer.stop());
    // Without chain and Redis.
    let (code, told) = of(&stores, &chain, &["status"]).await;
    assert!(code == 0 && told.contains(&format!("block {}", cursor.block.number)), "{told}");
    assert!(told.contains("leader        none; the last was epoch 1") && told.contains("reorg"), "{told}");
}

/// `/health`, as long as it takes until `accept` likes it.
async fn health(bind: &str, accept: impl Fn(&Value) -> bool) -> (u16, Value) {
    let mut last = (0, Value::Null);
    for _ in 0..600 {
        let (code, body) = get(bind, "/health").await;
        last = (code, serde_json::from_str(&body).unwrap());
        if accept(&last.1) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("health stays {last:?}");
}

#[tokio::test]
async fn a_leader_finds_out_by_itself_that_the_index_is_not_what_the_chain_says() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    live(&chain).await;
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    let launch = stores.indexer("verifying", chain.anvil.rpc_url(), &chain.manifest.path);
    let _indexer = launch.env("METRICS_BIND", &bind).env("VERIFY_INTERVAL", "1").spawn().unwrap();
    caught_up(&pool, &chain).await;
    let (code, _) = health(&bind, |health| health["verification"]["verdict"] == "same").await;
    assert_eq!(code, 200);
    change(&pool, "update escrow_account set free = free + 1").await;
    let (code, told) = health(&bind, |health| health["status"] == "differs").await;
    assert!(code == 503 && told["error"].as_str().unwrap().contains("account("), "{told}");
    let (_, metrics) = get(&bind, "/metrics").await;
    assert!(metrics.contains(r#"littoral_indexer_verifications_total{result="differs"}"#), "{metrics}");
    assert!(metrics.contains("littoral_indexer_verification_timestamp_seconds 1"), "{metrics}");
    change(&pool, "update escrow_account set free = free - 1").await;
    let (code, _) = health(&bind, |health| health["status"] == "ok").await;
    assert_eq!(code, 200, "once it is mended");
    assert_eq!(get(&bind, "/live").await, (200, "ok".to_owned()));
}

#[tokio::test]
async fn an_indexer_that_halts_stays_up_and_says_why_until_the_reason_is_gone() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    // Not of the same second, or their first blocks would be the same and this a mere reorg.
    let genesis = AnvilOptions { args: vec!["--timestamp".into(), "1700000000".into()], ..AnvilOptions::default() };
    let other = Chain::start_with(genesis).await;
    let pool = stores.pool().await;
    live(&chain).await;
    let mut before = stores.indexer_of("before", &chain);
    caught_up(&pool, &chain).await;
    assert!(before.stop());
    let state = market::db::chain::canonical_state(&mut pool.acquire().await.unwrap()).await.unwrap();

    // Another chain with the same contracts at the same addresses, as when a development chain was reset.
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    let launch = stores.indexer("halted", other.anvil.rpc_url(), &chain.manifest.path).env("METRICS_BIND", &bind);
    let mut indexer = launch.spawn().unwrap();
    indexer.wait_until(SOON, async |process| process.output().contains("halted")).await.unwrap();
    let (code, told) = health(&bind, |health| health["status"] == "halted").await;
    assert!(code == 503 && !told["error"].as_str().unwrap().is_empty(), "{told}");
    let (_, metrics) = get(&bind, "/metrics").await;
    assert!(metrics.contains("littoral_indexer_halted 1"), "{metrics}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(indexer.is_running());
    assert_eq!(indexer.output().matches("ERROR").count(), 1, "told once: {}", indexer.output());
    let after = market::db::chain::canonical_state(&mut pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(after, state, "nothing was touched");
    assert!(indexer.stop());
}
