//! The wire when Redis, an instance or a client fails.

use std::time::{Duration, Instant};

use alloy::primitives::B256;
use littoral_api::realtime::Topic;
use serde_json::json;

use crate::socket::Socket;
use crate::stream::Events;
use crate::support::World;

const JOB: B256 = B256::repeat_byte(0x11);
const OTHER: B256 = B256::repeat_byte(0x22);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_while_redis_is_away() {
    let mut world = World::start().await;
    let api = world.serve().await;
    let token = world.token(&[Topic::Job(JOB), Topic::Job(OTHER)]).await;
    let mut events = Events::open(&api.url, &format!("jobs/{JOB}"), &token, None).await.unwrap();
    events.expect("subscribed").await;
    let mut socket = Socket::connect(&api.url, &token).await.unwrap();
    assert_eq!(socket.ask("subscribe:job", json!(JOB)).await["ok"], true);
    world.happen(JOB, "job.before").await;
    assert_eq!(events.expect("job:update").await.data["event"], "job.before");
    assert_eq!(socket.next().await.unwrap().1["event"], "job.before");

    // Killed, and what it had written is there again afterwards.
    world.redis().kill();
    for n in 0..5 {
        world.happen(JOB, &format!("job.during{n}")).await;
    }
    // One that comes meanwhile is taken in, and told later where it stands.
    let answer = socket.ask("subscribe:job", json!(OTHER)).await;
    assert_eq!((&answer["ok"], &answer["epoch"], &answer["recovered"]), (&json!(true), &json!(null), &json!(false)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let back = Instant::now();
    world.redis().restart().unwrap();
    for n in 0..5 {
        assert_eq!(events.expect("job:update").await.data["event"], format!("job.during{n}"));
    }
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
    let mut updates = Vec::new();
    let mut placed = false;
    while updates.len() < 5 || !placed {
        let (name, data) = socket.next().await.unwrap();
        match name.as_str() {
            "job:update" => updates.push(data["event"].clone()),
            "history:lost" => placed = data["topic"]["job"] == json!(OTHER) && data["offset"].is_u64(),
            other => panic!("{other}: {data}"),
        }
    }
    assert_eq!(updates, (0..5).map(|n| json!(format!("job.during{n}"))).collect::<Vec<_>>());

    // Flushed, history cannot be had, and that is told; what comes then is.
    world.command(&["FLUSHALL"]).await;
    world.happen(JOB, "job.after").await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(_, event)| *event != json!("job.after")) {
        let event = events.next().await.unwrap();
        seen.push((event.name, event.data["event"].clone()));
    }
    assert!(seen.len() == 1 || seen[0].0 == "history:lost", "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_is_known_everywhere_and_forgotten_when_its_instance_dies() {
    let mut world = World::start().await;
    let (mut a, b) = (world.serve().await, world.serve().await);
    let token = world.token(&[Topic::Job(JOB)]).await;
    let mut watcher = Socket::connect(&b.url, &token).await.unwrap();
    watcher.ask("subscribe:job", json!({ "jobId": JOB, "presence": true })).await;
    let mut members = std::collections::BTreeSet::new();
    // Itself, be it among those present already or as one who enters.
    while members.is_empty() {
        members.extend(presence(&mut watcher).await.1);
    }
    let mut other = Socket::connect(&a.url, &token).await.unwrap();
    other.ask("subscribe:job", json!(JOB)).await;
    let entered = loop {
        let (action, entered) = presence(&mut watcher).await;
        if action == "enter" && entered != members {
            break entered;
        }
    };
    assert_eq!(other.ask("presence:update", json!({ "jobId": JOB, "data": { "at": "home" } })).await["ok"], true);
    let (name, data) = watcher.next().await.unwrap();
    assert_eq!(
        (name.as_str(), &data["action"], &data["member"]["data"]["at"]),
        ("presence", &json!("update"), &json!("home"))
    );
    assert_eq!(data["jobId"], json!(JOB));
    let long = json!({ "jobId": JOB, "data": "x".repeat(600) });
    assert_eq!(other.ask("presence:update", long).await["error"]["code"], "invalid_parameter");

    a.process.kill().await.unwrap();
    let died = Instant::now();
    assert_eq!(presence(&mut watcher).await, ("leave".to_owned(), entered));
    assert!(died.elapsed() < Duration::from_secs(30), "{:?}", died.elapsed());

    // A flush forgets everyone for a moment only.
    world.command(&["FLUSHALL"]).await;
    while presence(&mut watcher).await.1 == members {}
    let known: Vec<String> =
        redis::from_redis_value(world.command(&["HKEYS", &format!("channel:job:{JOB}:updates:presence")]).await)
            .unwrap();
    assert_eq!(known.len(), 1, "{known:?}");

    // An instance that ends in good order tells its clients to go elsewhere, takes its members out, and ends at once.
    let mut c = world.serve().await;
    let mut third = Socket::connect(&c.url, &token).await.unwrap();
    third.ask("subscribe:job", json!(JOB)).await;
    let mut events = Events::open(&c.url, &format!("jobs/{JOB}"), &token, None).await.unwrap();
    events.expect("subscribed").await;
    while presence(&mut watcher).await.0 != "enter" {}
    presence(&mut watcher).await;
    let told = Instant::now();
    c.terminate();
    assert_eq!(third.next().await, None);
    while events.next().await.is_some() {}
    assert!(c.process.wait().await.unwrap().success());
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    assert_eq!(presence(&mut watcher).await.0, "leave");
    assert_eq!(presence(&mut watcher).await.0, "leave");
}

/// What the socket is told next about who follows: the action, and the ids.
async fn presence(socket: &mut Socket) -> (String, std::collections::BTreeSet<String>) {
    loop {
        let (name, data) = socket.next().await.expect("the connection has ended");
        if name != "presence" {
            continue;
        }
        let one = data.get("member").into_iter();
        let members = data["members"].as_array().into_iter().flatten().chain(one);
        let ids = members.map(|member| member["id"].as_str().unwrap().to_owned()).collect();
        return (data["action"].as_str().unwrap().to_owned(), ids);
    }
}
