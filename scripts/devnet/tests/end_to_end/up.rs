//! `up` itself, as `scripts/up` starts it once everything is built.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const WITHIN: Duration = Duration::from_secs(120);

fn up(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-devnet"));
    command.args(["up", "--dir"]).arg(dir).args(more);
    for name in ["DATABASE_URL", "REDIS_URL", "RPC_URL", "LITTORAL_DEPLOYMENT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn scratch() -> (TempDir, PathBuf) {
    let dir = devnet::paths::scratch_dir("up").unwrap();
    let state = dir.path().join("state");
    (dir, state)
}

#[tokio::test]
async fn once_pays_a_job_in_a_token_and_ends() {
    let (dir, state) = scratch();
    let file = dir.path().join("file");
    std::fs::write(&file, "some file").unwrap();
    let file = file.to_str().unwrap();
    let output =
        up(&state, &["--free-ports", "--once", "--token", "TEST", "--price", "123", file]).output().await.unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    for step in ["node registers", "requester deposits", "settler pays the node", "node withdraws"] {
        assert!(said.contains(step), "no {step:?} in\n{said}");
    }
    assert!(said.contains("decrypt to exactly the file"), "{said}");
    // The requester's table: from what was minted, twice the price is deposited and half of that is left.
    assert!(said.contains("-0.000000000000000246") && said.contains("+0.000000000000000123"), "{said}");
}

#[tokio::test]
async fn two_on_one_machine_at_once_do_not_meet() {
    let ((_one, first), (_two, second)) = (scratch(), scratch());
    // Both want the usual ports, at the same time.
    let (first, second) = tokio::join!(up(&first, &["--once"]).output(), up(&second, &["--once"]).output());
    for output in [first.unwrap(), second.unwrap()] {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn what_is_kept_is_used_by_the_next_run() {
    let (_dir, state) = scratch();
    let first = up(&state, &["--free-ports", "--keep", "--once"]).output().await.unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let manifest = std::fs::read(state.join("deployment/manifest.json")).unwrap();
    let second = up(&state, &["--free-ports", "--keep", "--once"]).output().await.unwrap();
    let said = String::from_utf8_lossy(&second.stdout);
    assert!(second.status.success(), "{said}{}", String::from_utf8_lossy(&second.stderr));
    assert!(!said.contains("node registers"), "the node is registered already:\n{said}");
    assert_eq!(std::fs::read(state.join("deployment/manifest.json")).unwrap(), manifest, "deployed once");
    // Half of each deposit is left, of the first one from the start.
    let left = said.lines().find(|line| line.contains("requester, deposit")).unwrap();
    let left: Vec<&str> = left.split(['│', '┆']).map(str::trim).collect();
    assert_eq!(left[2..5], ["0.01", "0.02", "+0.01"], "{said}");
    devnet::paths::remove_tree(&state.join("postgres"));
}

#[tokio::test]
async fn once_ends_with_the_reason_when_the_job_is_not_paid() {
    let (_dir, state) = scratch();
    let output = up(&state, &["--free-ports", "--once", "--within", "0"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("was not paid within 0 s"), "{errors}");
}

async fn line_with(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) -> String {
    let mut seen = String::new();
    while let Some(line) = tokio::time::timeout(WITHIN, lines.next_line()).await.unwrap().unwrap() {
        if line.contains(text) {
            return line;
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    panic!("no {text:?} in\n{seen}")
}

/// Process ids of the children of `parent` whose program is called `name`.
fn children(parent: u32, name: &str) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // pid (name) state parent …
            let (head, tail) = stat.rsplit_once(") ")?;
            let is_ours = tail.split(' ').nth(1)? == parent.to_string() && head.ends_with(&format!("({name}"));
            if is_ours { Pid::from_raw(pid) } else { None }
        })
        .collect()
}

async fn answers(url: &str) -> bool {
    reqwest::get(url).await.is_ok_and(|answer| answer.status().is_success())
}

async fn until(what: &str, mut happens: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !happens().await {
        assert!(started.elapsed() < WITHIN, "{what}: not within {} s", WITHIN.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn interrupt(mut child: Child) -> std::process::ExitStatus {
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    tokio::time::timeout(WITHIN, child.wait()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_process_that_dies_is_started_again_and_ctrl_c_stops_everything() {
    let (_dir, state) = scratch();
    let mut child = up(&state, &["--free-ports"]).spawn().unwrap();
    let pid = child.id().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    line_with(&mut lines, "It stays up until Ctrl-C").await;
    let api = line_with(&mut lines, "API").await;
    let api = api.split_whitespace().find(|word| word.starts_with("http")).unwrap().to_owned();
    assert!(answers(&api).await);

    let killed = children(pid, "littoral-api");
    assert_eq!(killed.len(), 2, "the API and the settler");
    for process in &killed {
        kill_process(*process, Signal::KILL).unwrap();
    }
    until("the API is back", async || answers(&api).await).await;
    until("both are back", async || children(pid, "littoral-api").len() == 2).await;
    assert!(children(pid, "littoral-api").iter().all(|process| !killed.contains(process)));

    let second = up(&state, &["--free-ports"]).output().await.unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("already running"));

    assert!(interrupt(child).await.success());
    assert!(!answers(&api).await);
    assert!(!state.join("postgres").exists(), "what the next run would not use is gone");
    assert!(state.join("logs/api.log").exists(), "what it logged is not");
}
