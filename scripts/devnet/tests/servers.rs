//! The servers themselves: they come up, are private, and are gone afterwards.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use alloy::providers::{Provider, ProviderBuilder};
use devnet::{
    Anvil, AnvilOptions, DEV_KEYS, DeployParams, Deployment, Manifest, Postgres, Redis, RedisOptions, TestDatabase,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Runs one statement with `psql`; the row's text, or what `psql` complains about.
async fn psql(url: &str, statement: &str) -> Result<String, String> {
    let psql = devnet::paths::program("psql", "postgresql-client").unwrap();
    let output = tokio::process::Command::new(psql)
        .args(["-XqAt", "-w", "-v", "ON_ERROR_STOP=1", "-c", statement, url])
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Sends one inline command over a bare connection; the whole answer, if it comes in one piece.
async fn redis_says(url: &str, commands: &str) -> String {
    let address = url.trim_start_matches("redis://").rsplit('@').next().unwrap().trim_end_matches('/').to_owned();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{commands}\r\nQUIT\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn postgres_keeps_its_data_across_restarts_and_wants_its_password() {
    let dir = devnet::paths::scratch_dir("pg-durable").unwrap();
    let first = Postgres::start(dir.path(), None).await.unwrap();
    let url = first.create_database("kept").await.unwrap();
    psql(url.as_str(), "create table t (x int)").await.unwrap();
    psql(url.as_str(), "insert into t values (42)").await.unwrap();
    assert!(first.create_database("kept").await.is_err(), "a database is created once");
    let mut without = url.clone();
    without.set_password(None).unwrap();
    assert!(psql(without.as_str(), "select 1").await.is_err(), "no entry without the password");
    drop(first);
    assert!(psql(url.as_str(), "select 1").await.is_err(), "dropping it shuts it down");

    let second = Postgres::start(dir.path(), None).await.unwrap();
    let mut url = second.url().clone();
    url.set_path("kept");
    assert_eq!(psql(url.as_str(), "select x from t").await.unwrap(), "42");
}

#[tokio::test]
async fn postgres_recovers_from_a_kill_and_leaves_a_port_in_use_alone() {
    let dir = devnet::paths::scratch_dir("pg-killed").unwrap();
    let mut killed = Postgres::start(dir.path(), None).await.unwrap();
    killed.process().kill();
    drop(killed);
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = holder.local_addr().unwrap().port();
    let again = Postgres::start(dir.path(), Some(taken)).await.unwrap();
    assert_ne!(again.url().port(), Some(taken));
    assert_eq!(psql(again.url().as_str(), "select 1").await.unwrap(), "1");
}

#[tokio::test]
async fn postgres_runs_where_its_own_user_may_not_enter() {
    // Ours alone, as in a clone under /root.
    let private = || tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap();
    let dir = private();
    let server = Postgres::start(dir.path(), None).await.unwrap();
    let url = server.create_database("kept").await.unwrap();
    drop(server);
    let again = Postgres::start(dir.path(), None).await.unwrap();
    assert_eq!(psql(again.database_url("kept").as_str(), "select 1").await.unwrap(), "1");
    assert_eq!(url.password(), again.url().password());
    drop(again);
    // Without its directory, nobody needs the data that lie elsewhere for it: the next such server removes them.
    let data = dir.path().join("data").canonicalize().unwrap();
    let lies_elsewhere = !data.starts_with(dir.path());
    drop(dir);
    let next = private();
    drop(Postgres::start(next.path(), None).await.unwrap());
    assert!(!data.exists(), "{} is left behind", data.display());
    assert_eq!(lies_elsewhere, rustix::process::geteuid().is_root());
    devnet::paths::remove_tree(next.path());
}

#[tokio::test]
async fn test_databases_are_separate_and_dropped() {
    let (one, two) = tokio::try_join!(TestDatabase::create(), TestDatabase::create()).unwrap();
    psql(one.url(), "create table only_here (x int)").await.unwrap();
    assert!(psql(two.url(), "select * from only_here").await.is_err());
    let gone = one.url().to_owned();
    drop(one);
    assert!(psql(&gone, "select 1").await.unwrap_err().contains("does not exist"));
    assert_eq!(psql(two.url(), "select 1").await.unwrap(), "1");
}

#[tokio::test]
async fn redis_servers_are_private_and_password_protected_when_asked() {
    let open = Redis::start(RedisOptions::default()).await.unwrap();
    let options = RedisOptions { password: Some("s3cret".to_owned()), ..RedisOptions::default() };
    let closed = Redis::start(options).await.unwrap();
    assert_ne!(open.url(), closed.url());
    assert!(redis_says(open.url(), "SET k 1\r\nGET k").await.contains("$1\r\n1"));
    assert!(redis_says(closed.url(), "GET k").await.contains("NOAUTH"));
    assert!(redis_says(closed.url(), "AUTH s3cret\r\nGET k").await.contains("$-1"), "the other's key is not here");
}

#[tokio::test]
async fn a_persistent_redis_keeps_its_keys_and_leaves_a_port_in_use_alone() {
    let dir = devnet::paths::scratch_dir("redis-kept").unwrap();
    let options = RedisOptions { dir: Some(dir.path().to_owned()), persistent: true, ..RedisOptions::default() };
    let first = Redis::start(options.clone()).await.unwrap();
    assert!(redis_says(first.url(), "SET kept yes").await.contains("+OK"));
    drop(first);
    let second = Redis::start(options.clone()).await.unwrap();
    assert!(redis_says(second.url(), "GET kept").await.contains("yes"));

    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = holder.local_addr().unwrap().port();
    let third = Redis::start(RedisOptions { port: Some(taken), ..RedisOptions::default() }).await.unwrap();
    assert!(!third.url().contains(&format!(":{taken}/")));
}

#[tokio::test]
async fn anvil_funds_the_development_keys_and_keeps_its_state_when_asked() {
    let dir = devnet::paths::scratch_dir("anvil-kept").unwrap();
    let options = AnvilOptions { state: Some(dir.path().join("chain.json")), ..AnvilOptions::default() };
    let first = Anvil::start(options.clone()).await.unwrap();
    assert_eq!(first.chain_id(), 31337);
    let manifest = dir.path().join("manifest.json");
    let deployment =
        Deployment::deploy_fast(first.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default()).await.unwrap();
    let provider = ProviderBuilder::new().connect_http(first.rpc_url().parse().unwrap());
    for key in first.keys() {
        assert!(!provider.get_balance(key.address()).await.unwrap().is_zero(), "{} is funded", key.address());
    }
    drop(first);
    let second = Anvil::start(options).await.unwrap();
    assert!(deployment.is_live(second.rpc_url()).await.unwrap(), "the contracts are still there");
    let fresh = Anvil::start(AnvilOptions { chain_id: Some(1234), ..AnvilOptions::default() }).await.unwrap();
    assert_eq!(fresh.chain_id(), 1234);
    assert!(!deployment.is_live(fresh.rpc_url()).await.unwrap(), "another chain is not mistaken for it");
}

#[tokio::test]
async fn anvil_takes_the_port_asked_for_unless_it_is_in_use() {
    let port = devnet::ports::free_port().unwrap();
    let options = AnvilOptions { port: Some(port), ..AnvilOptions::default() };
    let first = Anvil::start(options.clone()).await.unwrap();
    assert_eq!(first.rpc_url(), format!("http://127.0.0.1:{port}"));
    let second = Anvil::start(AnvilOptions { chain_id: Some(99), ..options }).await.unwrap();
    assert_ne!(second.rpc_url(), first.rpc_url());
    assert_eq!((first.chain_id(), second.chain_id()), (31337, 99));
}

#[tokio::test]
async fn anvil_mines_at_the_pace_asked_for() {
    let anvil = Anvil::start(AnvilOptions { block_time: Some(0.1), ..AnvilOptions::default() }).await.unwrap();
    let provider = ProviderBuilder::new().connect_http(anvil.rpc_url().parse().unwrap());
    let before = provider.get_block_number().await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mined = provider.get_block_number().await.unwrap() - before;
    assert!((3..=20).contains(&mined), "{mined} blocks in 600 ms");
}

#[tokio::test]
async fn the_deploy_script_and_the_fast_path_agree() {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let other = Anvil::start(AnvilOptions::default()).await.unwrap();
    let dir = devnet::paths::scratch_dir("deploy").unwrap();
    let params = DeployParams {
        min_stake_wei: 7,
        unbonding_period_secs: 11,
        thaw_period_secs: 13,
        bond_wei: 5,
        max_challenge_window_secs: 6,
        arbiter_period_secs: 4,
    };
    let (slow, fast) = (dir.path().join("by-script/manifest.json"), dir.path().join("fast.json"));
    let scripted = Deployment::deploy(anvil.rpc_url(), DEV_KEYS[0], &slow, params).await.unwrap();
    let fast = Deployment::deploy_fast(other.rpc_url(), DEV_KEYS[0], &fast, params).await.unwrap();
    // Addresses follow from code and parameters. The transactions ask for different gas.
    let deploy_transaction = scripted.manifest.deploy_transaction;
    assert_eq!(scripted.manifest, Manifest { deploy_transaction, ..fast.manifest.clone() });
    assert_eq!(fast.manifest.registry_params.min_stake, "7");
    assert_eq!(Deployment::load(&fast.path).unwrap().manifest, fast.manifest);
    assert!(scripted.is_live(anvil.rpc_url()).await.unwrap());
    let here = ProviderBuilder::new().connect_http(anvil.rpc_url().parse().unwrap());
    let there = ProviderBuilder::new().connect_http(other.rpc_url().parse().unwrap());
    for address in [scripted.manifest.escrow, scripted.manifest.registry, scripted.manifest.tokens["TEST"]] {
        assert_eq!(here.get_code_at(address).await.unwrap(), there.get_code_at(address).await.unwrap());
    }
}
