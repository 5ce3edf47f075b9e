//! What the command line says of itself, and how it fails without a chain or an API.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Run, littoral, mode};

const COMMANDS: [&str; 27] = [
    "deposit",
    "thaw",
    "withdraw",
    "balance",
    "account",
    "reserve",
    "thaw-reservation",
    "release",
    "submit",
    "open",
    "watch",
    "fetch",
    "cancel",
    "redrive",
    "refund",
    "accept",
    "dispute",
    "resolve",
    "voucher",
    "session",
    "status",
    "jobs",
    "stats",
    "leaderboard",
    "features",
    "keygen",
    "node",
];
const NODE_COMMANDS: [&str; 9] =
    ["register", "update", "stake", "unbond", "run", "settle", "withdraw", "settler", "status"];

#[test]
fn every_command_explains_itself() {
    let top = Run::of(&mut littoral(&["--help"]));
    assert_eq!(top.code, 0);
    assert!(top.stdout.contains("Exit codes: 0 done"), "{}", top.stdout);
    for command in COMMANDS {
        assert!(top.stdout.contains(&format!("\n  {command}")), "{command} is missing from the list");
        let help = Run::of(&mut littoral(&[command, "--help"]));
        assert!(help.code == 0 && help.stdout.contains("--json"), "{help:?}");
    }
    let node = Run::of(&mut littoral(&["node", "--help"]));
    for command in NODE_COMMANDS {
        assert!(node.stdout.contains(&format!("\n  {command}")), "{command} is missing from the list");
        let help = Run::of(&mut littoral(&["node", command, "--help"]));
        assert!(help.code == 0 && help.stdout.contains("Usage: littoral node"), "{help:?}");
    }
    assert!(Run::of(&mut littoral(&["--version"])).stdout.starts_with("littoral "));
}

#[test]
fn a_wrong_command_line_exits_2_in_text_and_in_json() {
    for args in [
        &[][..],
        &["nonsense"],
        &["deposit"],
        &["deposit", "1.5"],
        &["watch", "0x12"],
        &["submit", "file"],
        &["refund"],
        &["redrive"],
        &["redrive", "0x12"],
        &["leaderboard", "--limit", "0"],
        &["submit", "file", "--price", "1", "--not-before", "tomorrow"],
        &["submit", "file", "--price", "1", "--min-reputation", "101"],
        &["submit", "file", "--price", "1", "--min-stake", "1.5"],
        &["submit", "file", "--price", "1", "--priority", "1001"],
        &["withdraw", "--to", "0x12"],
        &["withdraw", "--to", "0xF39Fd6e51aad88F6F4ce6aB8827279cffFb92266"],
        &["node", "register", "--capacity", "0", "--ops", "encrypt"],
        &["node", "unbond"],
        &["jobs", "--status", "happy"],
    ] {
        let run = Run::of(&mut littoral(args));
        assert!(run.code == 2 && run.stdout.is_empty() && !run.stderr.is_empty(), "{args:?}: {run:?}");
        let error = Run::of(littoral(args).arg("--json")).error(2);
        assert_eq!(error["code"], "usage", "{args:?}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let key = ["LITTORAL_KEY", "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"];
    let dir = tempfile::tempdir().unwrap();
    let run =
        |args: &[&str]| Run::of(littoral(args).arg("--json").env(key[0], key[1]).current_dir(dir.path())).error(2);
    let error = run(&["deposit", "1"]);
    assert!(error["error"].as_str().unwrap().contains("--rpc-url"), "{error}");
    let error = run(&["redrive", &format!("0x{}", "11".repeat(32))]);
    assert!(error["error"].as_str().unwrap().contains("--deployment"), "{error}");
    let error = run(&["deposit", "1", "--rpc-url", "http://127.0.0.1:1"]);
    assert!(error["error"].as_str().unwrap().contains("--deployment"), "{error}");
}

#[test]
fn an_api_that_is_down_is_an_error_or_waited_for() {
    let job = format!("0x{}", "11".repeat(32));
    let down = ["--json", "--api", "http://127.0.0.1:1"];
    let error = Run::of(littoral(&down).args(["status", &job])).error(1);
    assert_eq!(error["code"], "api_unreachable");
    for command in [&["fetch", &job][..], &["stats"], &["leaderboard"], &["features"]] {
        let error = Run::of(littoral(&down).args(command)).error(1);
        assert_eq!(error["code"], "api_unreachable", "{command:?}");
    }
    let status = Run::of(littoral(&down).arg("status"));
    assert_eq!(status.code, 1);
    let value: serde_json::Value = serde_json::from_str(status.stdout.trim()).unwrap();
    assert_eq!(value["api"]["ok"], false);
    let run = Run::of(littoral(&down).args(["watch", &job, "--timeout", "1"]));
    assert_eq!(run.error(5)["code"], "timeout");
    assert!(run.stderr.lines().next().unwrap().contains("still trying"), "{run:?}");
}

#[test]
fn keygen_writes_a_private_file_once() {
    let dir = tempfile::tempdir().unwrap();
    let run = || Run::of(littoral(&["keygen", "--json"]).current_dir(dir.path()));
    let said = run().result();
    let path = dir.path().join("key.txt");
    assert_eq!((said["file"].as_str(), mode(&path)), (Some("key.txt"), 0o600));
    assert!(said["publicKey"].as_str().unwrap().starts_with("age1"));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(said["publicKey"].as_str().unwrap()) && text.contains("AGE-SECRET-KEY-1"));
    assert!(!run().error(1)["error"].as_str().unwrap().contains("AGE-SECRET"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "the first key is still there");
}
