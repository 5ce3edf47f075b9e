//! The program itself: several at once, killed, misconfigured, asked how it is.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};

use alloy::primitives::Address;
use alloy::providers::Provider;
use alloy::providers::ext::AnvilApi;
use devnet::Postgres;
use market::db::chain::canonical_state;
use serde_json::json;
use support::process::{SOON, Stores, assert_equals_a_fresh_index, caught_up, get, outcome};
use support::{Chain, ETHER, NODE, OTHER_REQUESTER, REQUESTER, spec};

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
        "littoral_indexer_lag_blocks{level=\"head\"} 0",
        "littoral_indexer_healthy 1",
        "littoral_indexer_halted 0",
        "littoral_indexer_epoch 1",
        "littoral_indexer_outbox_depth",
        "littoral_indexer_reorg_depth_blocks_sum 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
}

/// The value of a metric, named with its labels.
fn metric<'a>(metrics: &'a str, name: &str) -> Option<&'a str> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// A manifest like the chain's, changed by `edit`.
fn manifest(chain: &Chain, stores: &Stores, edit: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
    let mut manifest = serde_json::to_value(&chain.deployment).unwrap();
    edit(&mut manifest);
    let path = stores.logs.path().join("manifest.json");
    std::fs::write(&path, manifest.to_string()).unwrap();
    path
}

#[tokio::test]
async fn a_reorg_below_what_is_final_halts_it_and_pages() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let path = manifest(&chain, &stores, |manifest| manifest["confirmation"] = json!({ "finality": 8 }));
    let pool = stores.pool().await;
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    chain.deposit(REQUESTER, 100).await;
    chain.mine(30).await;
    let launch = stores.indexer("halting", chain.anvil.rpc_url(), &path).env("METRICS_BIND", &bind);
    let mut indexer = launch.spawn().unwrap();
    caught_up(&pool, &chain).await;
    assert_eq!(get(&bind, "/health").await.0, 200);
    let state = async || canonical_state(&mut pool.acquire().await.unwrap()).await.unwrap();
    let before = state().await;

    chain.reorg(20).await;
    chain.deposit(REQUESTER, 100).await;
    let halted = async |_: &mut devnet::Process| get(&bind, "/health").await.1.contains("\"halted\"");
    indexer.wait_until(SOON, halted).await.unwrap();
    let (code, health) = get(&bind, "/health").await;
    assert_eq!(code, 503);
    assert!(health.contains("which was final; nothing was undone"), "{health}");
    let (_, metrics) = get(&bind, "/metrics").await;
    assert_eq!(metric(&metrics, "littoral_indexer_halted"), Some("1"));
    let count = metric(&metrics, "littoral_indexer_final_reorgs_total").unwrap();
    assert!(count.parse::<u64>().unwrap() >= 1, "{count}");
    assert_eq!(metric(&metrics, "littoral_indexer_reorgs_total"), None, "none was followed");
    assert_eq!(state().await, before);
    assert_eq!(get(&bind, "/live").await.0, 200, "it is not to be started again for that");
    assert!(indexer.is_running());
}

#[tokio::test]
async fn how_far_it_is_behind_is_told_by_level() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let policy = json!({
        "finality": 8,
        "queue": [{ "token": Address::ZERO, "upTo": "5", "depth": 1 }, { "token": Address::ZERO, "upTo": "9", "depth": 3 }],
    });
    let path = manifest(&chain, &stores, |manifest| manifest["confirmation"] = policy);
    let pool = stores.pool().await;
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    chain.mine(20).await;
    let launch = stores.indexer("levels", chain.anvil.rpc_url(), &path).env("METRICS_BIND", &bind);
    let mut indexer = launch.spawn().unwrap();
    caught_up(&pool, &chain).await;
    let metrics = async || get(&bind, "/metrics").await.1;
    let said = async |_: &mut devnet::Process| metric(&metrics().await, "littoral_indexer_unfinal_blocks") == Some("8");
    indexer.wait_until(SOON, said).await.unwrap();
    let all = metrics().await;
    for level in ["head", "queue", "final"] {
        let name = format!("littoral_indexer_lag_blocks{{level=\"{level}\"}}");
        assert_eq!(metric(&all, &name), Some("0"), "{name} in {all}");
    }
    let head = chain.provider.get_block_number().await.unwrap();
    for (name, height) in [("head", head), ("cursor", head), ("final", head - 8)] {
        let name = format!("littoral_indexer_{name}_block");
        assert_eq!(metric(&all, &name), Some(height.to_string().as_str()), "{name} in {all}");
    }
}

#[tokio::test]
async fn a_chain_that_stands_still_turns_health_red() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    let launch = stores.indexer("stuck", chain.anvil.rpc_url(), &chain.manifest.path).env("METRICS_BIND", &bind);
    let mut indexer = launch.env("MAX_HEAD_AGE_SECS", "4").spawn().unwrap();
    caught_up(&pool, &chain).await;
    let says = async |word: &str| get(&bind, "/health").await.1.contains(&format!("\"{word}\""));
    indexer.wait_until(SOON, async |_| says("stuck").await).await.unwrap();
    let (code, health) = get(&bind, "/health").await;
    assert!(code == 503 && health.contains("the chain's latest block is "), "{code} {health}");
    let (_, metrics) = get(&bind, "/metrics").await;
    assert_eq!(metric(&metrics, "littoral_indexer_healthy"), Some("0"));
    assert!(metric(&metrics, "littoral_indexer_head_age_seconds").unwrap().parse::<u64>().unwrap() >= 4);
    // A chain that goes on is followed as before.
    chain.provider.anvil_set_interval_mining(1).await.unwrap();
    indexer.wait_until(SOON, async |_| says("ok").await).await.unwrap();
}

#[tokio::test]
async fn in_production_stores_that_take_anyone_are_refused() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let start = |name: &str, environment: &str| {
        let launch = stores.indexer(name, chain.anvil.rpc_url(), &chain.manifest.path);
        launch.env("LITTORAL_ENV", environment).spawn().unwrap()
    };
    let (ok, output) = outcome(start("production", "production")).await;
    assert!(!ok && output.contains("not fit for production (LITTORAL_ENV)"), "{output}");
    assert!(output.contains("REDIS_URL: has no password"), "{output}");
    assert!(output.contains("REDIS_URL: the server takes commands from whoever has no password"), "{output}");
    let (ok, output) = outcome(start("misspelt", "Production!")).await;
    assert!(!ok && output.contains("--env") && output.contains("lower-case letters"), "{output}");
    let _staging = start("staging", "staging");
    caught_up(&stores.pool().await, &chain).await;
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
