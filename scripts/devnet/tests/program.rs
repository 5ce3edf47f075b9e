//! The program `littoral-devnet` itself, without a marketplace.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

fn devnet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-devnet"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn accepts(address: &str) -> bool {
    tokio::net::TcpStream::connect(address).await.is_ok()
}

#[tokio::test]
async fn with_postgres_gives_the_command_a_database_and_returns_its_exit_status() {
    let psql = devnet::paths::program("psql", "postgresql-client").unwrap();
    let script = format!("{} -XqAt -c 'select 6 * 7' \"$DATABASE_URL\"; exit 7", psql.display());
    let output =
        devnet().args(["with-postgres", "--database", "here", "--", "sh", "-c", &script]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42");
}

#[tokio::test]
async fn with_postgres_reports_a_command_that_does_not_exist() {
    let output = devnet().args(["with-postgres", "--", "/no/such/command"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/command"));
}

#[tokio::test]
async fn a_server_dies_with_a_parent_that_is_killed() {
    let script = "echo \"$LITTORAL_TEST_POSTGRES_URL\"; read until_end_of_input";
    let mut child = devnet().args(["with-postgres", "--", "sh", "-c", script]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().unwrap();
    let address = url.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned();
    assert!(accepts(&address).await);
    child.kill().await.unwrap();
    let killed = Instant::now();
    while accepts(&address).await {
        assert!(killed.elapsed() < Duration::from_secs(10), "Postgres at {address} outlived its parent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_second_up_in_the_same_clone_says_that_one_is_running() {
    let clone = tempfile::tempdir().unwrap();
    let state = clone.path().join(".littoral");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("up.lock"), "4711\n").unwrap();
    let holder = File::open(state.join("up.lock")).unwrap();
    holder.lock().unwrap();
    let file = clone.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let output = devnet().arg("up").arg(&file).env("LITTORAL_ROOT", clone.path()).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("already running") && said.contains("4711"), "{said}");
}

#[tokio::test]
async fn up_refuses_a_file_that_is_not_there() {
    let output = devnet().args(["up", "/no/such/file"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/file"));
}
