//! The program itself: how it starts, and how it ends.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use devnet::{Anvil, AnvilOptions, DEV_KEYS, DeployParams, Deployment, TestDatabase, ports};
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
    for _ in 0..200 {
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
