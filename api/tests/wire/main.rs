//! The API as outside applications see it: its instances as processes, real Postgres, Redis and chain, stock clients.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod balanced;
mod faults;
mod slow;
mod socket;
mod stream;
mod streams;
mod support;

use std::time::Duration;

use devnet::DEV_KEYS;
use tokio::process::Command;
use tokio::time::timeout;

use support::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_instance_is_killed_gets_what_it_missed_from_another_once_and_in_order() {
    let mut world = World::start().await;
    world.deposit(DEV_KEYS[4].address(), 1_000_000).await;
    world.stake(DEV_KEYS[5].address()).await;
    let (a, b) = (world.serve().await, world.serve().await);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/client.mjs");
    let client = Command::new("node")
        .arg(script)
        .env("API_A", &a.url)
        .env("API_B", &b.url)
        .env("PID_A", a.process.id().unwrap().to_string())
        .env("REQUESTER_KEY", DEV_KEYS[4].secret())
        .env("NODE_KEY", DEV_KEYS[5].secret())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(90), client).await.expect("the client does not end").unwrap();
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{told}");
    let seen: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();

    let events = seen["events"].as_array().unwrap();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    // What was told just before it subscribed may still have been on its way.
    let names = names.strip_prefix(&["job.signed"]).unwrap_or(&names);
    assert_eq!(names, ["job.leased", "job.requeued", "job.leased", "job.completed"], "{seen}");
    let epochs: Vec<&str> = events.iter().map(|event| event["epoch"].as_str().unwrap()).collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{seen}");
    let offsets: Vec<u64> = events.iter().map(|event| event["offset"].as_u64().unwrap()).collect();
    assert!(offsets.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen}");
    assert_eq!(seen["recovered"], serde_json::json!([false, true, false]), "{seen}");
    assert_eq!(seen["lost"], serde_json::json!([]), "{seen}");
    let command = &seen["commands"][0];
    assert_eq!(
        (&command["command"], &command["jobId"]),
        (&serde_json::json!("job.available"), &seen["jobId"]),
        "{seen}"
    );
    let refusals = seen["refusals"].as_array().unwrap();
    assert!(refusals[0].as_str().unwrap().starts_with("unauthenticated"), "{seen}");
    assert_eq!(refusals[1..], ["not_permitted", "invalid_parameter", "not_permitted"], "{seen}");
}
