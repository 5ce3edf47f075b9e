//! The program itself: how it starts, and how it ends.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use devnet::{Anvil, AnvilOptions, DEV_KEYS, DeployParams, Deployment, Redis, RedisOptions, TestDatabase, ports};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// `littoral-api serve` with all that it needs.
fn serve(dir: &Path, database: &TestDatabase, deployment: &Path, rpc_url: &str, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-api"));
    command
        .arg("serve")
        .env("BIND", format!("127.0.0.1:{port}"))
        .env("DATABASE_URL", database.url())
        .env("REDIS_URL", "redis://127.0.0.1:9/")
        .env("RPC_URL", rpc_url)
        .env("LITTORAL_DEPLOYMENT", deployment)
        .env("BLOB_STORE", format!("file://{}", dir.join("blobs").display()))
        .env("ASSIGNER_KEY", DEV_KEYS[3].secret())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn wait_until_live(url: &str) {
    for _ in 0..1200 {
        if reqwest::get(format!("{url}/health/live")).await.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{url} does not answer");
}

async fn end_of(child: Child) -> Output {
    timeout(Duration::from_secs(30), child.wait_with_output()).await.expect("it does not end").unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_what_up_deploys_and_ends_cleanly_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let manifest = dir.path().join("deployment.json");
    let deployed = Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default());
    let deployed = deployed.await.unwrap().manifest;
    let database = TestDatabase::create().await.unwrap();
    let port = ports::free_port().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let child = serve(dir.path(), &database, &manifest, anvil.rpc_url(), port).spawn().unwrap();
    wait_until_live(&url).await;
    let chain: serde_json::Value =
        reqwest::get(format!("{url}/lit-compute/chain")).await.unwrap().json().await.unwrap();
    assert_eq!(chain["escrow"], deployed.escrow.to_checksum(None));

    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let output = end_of(child).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("stopped"), "{}", text(&output));
    assert!(!text(&output).contains(&DEV_KEYS[3].secret()[2..]), "the key is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_refuses_a_chain_that_its_manifest_does_not_mean() {
    let dir = tempfile::tempdir().unwrap();
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let manifest = dir.path().join("deployment.json");
    Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default()).await.unwrap();
    let other = Anvil::start(AnvilOptions { chain_id: Some(99), ..AnvilOptions::default() }).await.unwrap();
    let database = TestDatabase::create().await.unwrap();
    let port = ports::free_port().unwrap();
    let output = end_of(serve(dir.path(), &database, &manifest, other.rpc_url(), port).spawn().unwrap()).await;
    assert!(!output.status.success());
    let expected = "the RPC serves chain 99, the deployments manifest is for chain 31337";
    assert!(text(&output).contains(expected), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_refuses_to_hand_out_jobs_whose_results_it_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let database = TestDatabase::create().await.unwrap();
    let mut command = serve(dir.path(), &database, &dir.path().join("none.json"), "http://127.0.0.1:9", 0);
    let output = end_of(command.env("DEADLINE_MARGIN_SECS", "29").spawn().unwrap()).await;
    assert!(!output.status.success());
    let expected = "--deadline-margin-secs (DEADLINE_MARGIN_SECS) is 29, less than --settle-margin-secs";
    assert!(text(&output).contains(expected), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_production_it_refuses_what_everyone_could_use_and_says_all_of_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let database = TestDatabase::create().await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut command = serve(dir.path(), &database, &dir.path().join("none.json"), "http://127.0.0.1:9", 0);
    command.env("LITTORAL_ENV", "production").env("REDIS_URL", redis.url()).env("TRUSTED_PROXIES", "0.0.0.0/0");
    let output = end_of(command.env("CORS_ORIGINS", "http://app.example").spawn().unwrap()).await;
    assert!(!output.status.success());
    for expected in [
        "REDIS_URL: has no password",
        "REDIS_URL: the server takes commands from whoever has no password",
        "ASSIGNER_KEY: is the key of 0x90F79bf6EB2c4f870365E785982E1f101E93b906, which everyone knows",
        "SIGNIN_DOMAIN: is not given",
        "CORS_ORIGINS: http://app.example is not encrypted",
        "TRUSTED_PROXIES: 0.0.0.0/0 is everyone",
    ] {
        assert!(text(&output).contains(expected), "{expected}: {}", text(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_redis_does_not_ask_for_is_no_password() {
    let open = Redis::start(RedisOptions::default()).await.unwrap();
    let closed = RedisOptions { password: Some("correct-horse-battery".to_owned()), ..RedisOptions::default() };
    let closed = Redis::start(closed).await.unwrap();
    let pretended = open.url().replace("redis://", "redis://:correct-horse-battery@");
    assert!(market::redis::client::takes_anyone(&pretended).await.unwrap());
    assert!(!market::redis::client::takes_anyone(closed.url()).await.unwrap());
    assert!(market::redis::client::takes_anyone("redis://127.0.0.1:9/").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_what_it_logs_whatever_goes_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let manifest = dir.path().join("deployment.json");
    Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default()).await.unwrap();
    let database = TestDatabase::create().await.unwrap();
    let secret = "hunter2-hunter2-hunter2-hunter2-0123456789";
    let redis = format!("redis://:{secret}@127.0.0.1:9/");
    let with_password = database.url().replacen("postgres@", &format!("postgres:{secret}@"), 1);
    let nowhere = format!("postgres://u:{secret}@127.0.0.1:9/none");
    for database_url in [with_password, nowhere, format!("{secret}://nonsense")] {
        let port = ports::free_port().unwrap();
        let mut command = serve(dir.path(), &database, &manifest, anvil.rpc_url(), port);
        command.env("DATABASE_URL", &database_url).env("REDIS_URL", &redis).env("SESSION_SECRET", secret);
        // A pipe that no one reads would stop it.
        let file = |name| std::fs::File::create(dir.path().join(name)).unwrap();
        let (out, err) = (file("out"), file("err"));
        let child = command.env("RUST_LOG", "debug").stdout(out).stderr(err).spawn().unwrap();
        if timeout(Duration::from_secs(20), wait_until_live(&format!("http://127.0.0.1:{port}"))).await.is_ok() {
            let client = reqwest::Client::new();
            let url = format!("http://127.0.0.1:{port}/lit-compute/auth/session?token={secret}");
            client.get(url).bearer_auth(secret).header("idempotency-key", secret).send().await.unwrap();
        }
        if let Some(id) = child.id() {
            kill_process(Pid::from_raw(id.try_into().unwrap()).unwrap(), Signal::TERM).ok();
        }
        end_of(child).await;
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let said = format!("{}{}", read("out"), read("err"));
        assert!(!said.is_empty() && !said.contains("hunter2"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_for_sessions_are_made_by_who_has_the_secret() {
    let token = async |secret: &str, user: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-api"));
        command.args(["session-token", "--user-id", user]).env("SESSION_SECRET", secret).output().await.unwrap()
    };
    let made = token("a secret that applications share 0123456789", "user_123").await;
    assert!(made.status.success(), "{made:?}");
    assert_eq!(String::from_utf8(made.stdout).unwrap().trim().split('.').count(), 3);
    for (secret, user) in [("hunter2", "user_123"), ("hunter2 that applications share 0123456789", "a:b")] {
        let refused = token(secret, user).await;
        assert!(!refused.status.success() && !text(&refused).contains("hunter2"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_none_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let database = TestDatabase::create().await.unwrap();
    let mut command = serve(dir.path(), &database, &dir.path().join("none.json"), "http://127.0.0.1:9", 0);
    let output = end_of(command.env("ASSIGNER_KEY", format!("0x{}hunter2", "ab".repeat(29))).spawn().unwrap()).await;
    assert!(!output.status.success() && text(&output).contains("ASSIGNER_KEY"), "{}", text(&output));
    assert!(!text(&output).contains("hunter2") && !text(&output).contains("abab"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_it_ends_it_says_that_it_is_not_ready_and_serves_on_until_balancers_have_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let manifest = dir.path().join("deployment.json");
    Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default()).await.unwrap();
    let database = TestDatabase::create().await.unwrap();
    let port = ports::free_port().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let mut command = serve(dir.path(), &database, &manifest, anvil.rpc_url(), port);
    let child = command.env("DRAIN_SECS", "60").spawn().unwrap();
    wait_until_live(&url).await;
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    let drains = async || {
        let ready: serde_json::Value = reqwest::get(format!("{url}/health/ready")).await.unwrap().json().await.unwrap();
        ready["checks"].as_array().unwrap().iter().any(|check| check["name"] == "process")
    };
    assert!(!drains().await);
    kill_process(pid, Signal::TERM).unwrap();
    for _ in 0..200 {
        if drains().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(drains().await, "it goes on serving, and says that it ends");
    // Who is impatient says so twice.
    kill_process(pid, Signal::TERM).unwrap();
    assert!(end_of(child).await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_store_of_contents_it_says_so_and_does_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let manifest = dir.path().join("deployment.json");
    Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default()).await.unwrap();
    let (database, redis) =
        (TestDatabase::create().await.unwrap(), Redis::start(RedisOptions::default()).await.unwrap());
    let secret = "a secret that applications share 0123456789";
    let token = Command::new(env!("CARGO_BIN_EXE_littoral-api"))
        .args(["session-token", "--user-id", "user_123"])
        .env("SESSION_SECRET", secret)
        .output();
    let token = String::from_utf8(token.await.unwrap().stdout).unwrap().trim().to_owned();
    let session = Command::new("redis-cli")
        .args(["-u", redis.url(), "HSET", "session:user_123", "walletAddress"])
        .arg(DEV_KEYS[1].address().to_string())
        .output();
    assert!(session.await.unwrap().status.success());

    let port = ports::free_port().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let mut command = serve(dir.path(), &database, &manifest, anvil.rpc_url(), port);
    command.env("REDIS_URL", redis.url()).env("SESSION_SECRET", secret).stderr(Stdio::null());
    command.env("BLOB_STORE", "s3://bucket/contents").env("AWS_ENDPOINT", "http://127.0.0.1:9");
    command.env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
    let child = command.env("AWS_ACCESS_KEY_ID", "id").env("AWS_SECRET_ACCESS_KEY", "key").spawn().unwrap();
    wait_until_live(&url).await;
    let client = reqwest::Client::new();
    let started = std::time::Instant::now();
    let put = client.put(format!("{url}/lit-compute/blobs")).bearer_auth(&token).body("bytes").send().await.unwrap();
    assert_eq!(put.status(), 503);
    assert!(put.headers().contains_key("retry-after") && started.elapsed() < Duration::from_secs(40));
    let session = client.get(format!("{url}/lit-compute/auth/session")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(session.status(), 200, "the rest goes on");
    let ready: serde_json::Value = reqwest::get(format!("{url}/health/ready")).await.unwrap().json().await.unwrap();
    let store = ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "store").unwrap();
    assert_eq!((&ready["status"], &store["ok"]), (&serde_json::json!("unready"), &serde_json::json!(false)));
    drop(child);
}
