//! A client that does not take its messages.

use std::time::{Duration, Instant};

use alloy::primitives::B256;
use littoral_api::realtime::Topic;
use market::redis::history;
use serde_json::json;

use crate::socket::Socket;
use crate::stream::Events;
use crate::support::World;

const JOB: B256 = B256::repeat_byte(0x11);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_cut_off_and_costs_no_memory_and_others_nothing() {
    // Far more than the kernel and we keep for a connection: 22 MB for each client.
    const COUNT: usize = 1500;
    const CLIENTS: usize = 4;
    let mut world = World::start().await;
    let api = world.serve().await;
    let token = world.token(&[Topic::Job(JOB)]).await;
    let mut events = Events::open(&api.url, &format!("jobs/{JOB}"), &token, None).await.unwrap();
    events.expect("subscribed").await;
    let (mut idle, connected) = (Vec::new(), Instant::now());
    for _ in 0..CLIENTS {
        let mut socket = Socket::connect(&api.url, &token).await.unwrap();
        assert_eq!(socket.ask("subscribe:job", json!(JOB)).await["ok"], true);
        idle.push(socket);
    }
    let before = rss_mb(&api.process);
    let (channel, client) = (format!("channel:job:{JOB}:updates"), world.client());
    let publish = async {
        for n in 0..COUNT {
            let text = json!({ "event": "job.event", "n": n, "filler": "x".repeat(15_000) }).to_string();
            history::publish(&client, &channel, &text).await.unwrap();
            // As fast as one who reads can follow.
            if n % 50 == 49 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let read = async {
        let (mut seen, mut lost) = (0, false);
        while seen < COUNT && !lost {
            let event = events.next().await.expect("the stream of one who reads has ended");
            lost = event.name != "job:update";
            assert!(lost || event.data["n"] == json!(seen), "{event:?} where {seen} is next");
            seen += 1;
        }
        assert!(!lost, "one who reads misses something");
    };
    tokio::join!(publish, read);
    let grown = rss_mb(&api.process).saturating_sub(before);
    assert!(grown < 80, "{grown} MB for {CLIENTS} clients that take nothing");

    // Those who take nothing are cut off, and told why if they look in time.
    let deadline = Instant::now() + Duration::from_secs(90);
    while api.metric("littoral_realtime_slow_clients_total").await < 1.0 {
        assert!(Instant::now() < deadline, "nobody is cut off");
        // Who has room for all there is, is not slow, however long it leaves it there.
        history::publish(&client, &channel, &json!({ "event": "job.more" }).to_string()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A ping that finds no room, 25 seconds after they have connected, ends a connection without a word.
    let in_time = connected.elapsed() < Duration::from_secs(20);
    let looked = idle.drain(..CLIENTS / 2).map(async |mut socket: Socket| {
        let mut last = None;
        while let Some((name, data)) = socket.next().await {
            last = Some((name, data["code"].clone()));
        }
        last
    });
    let told = futures::future::join_all(looked).await;
    assert!(!in_time || told.contains(&Some(("error".to_owned(), json!("too_slow")))), "{told:?}");
    while api.metric("littoral_realtime_sockets").await > 0.0 {
        assert!(Instant::now() < deadline, "their connections are still there");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // It can come back for the rest, as far as that is known.
    let mut again = Socket::connect(&api.url, &token).await.unwrap();
    assert_eq!(again.ask("subscribe:job", json!(JOB)).await["ok"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_ends_and_says_why() {
    const COUNT: usize = 1500;
    let mut world = World::start().await;
    let api = world.serve().await;
    let token = world.token(&[Topic::Job(JOB)]).await;
    let mut unread = Events::open(&api.url, &format!("jobs/{JOB}"), &token, None).await.unwrap();
    unread.expect("subscribed").await;
    let (channel, client) = (format!("channel:job:{JOB}:updates"), world.client());
    let publish = async |n: usize| {
        let text = json!({ "event": "job.event", "n": n, "filler": "x".repeat(15_000) }).to_string();
        history::publish(&client, &channel, &text).await.unwrap();
    };
    for n in 0..COUNT {
        publish(n).await;
    }
    let deadline = Instant::now() + Duration::from_secs(90);
    for n in COUNT.. {
        if api.metric("littoral_realtime_slow_clients_total").await >= 1.0 {
            break;
        }
        assert!(Instant::now() < deadline, "it is not cut off");
        publish(n).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (mut seen, mut last) = (0, None);
    while let Some(event) = unread.next().await {
        if event.name == "job:update" {
            assert_eq!(event.data["n"], json!(seen), "in order as far as it goes");
            seen += 1;
        }
        last = Some(event);
    }
    let last = last.unwrap();
    assert_eq!((&*last.name, &last.data["code"]), ("end", &json!("too_slow")));
    assert!(seen > 0 && seen < COUNT, "{seen}");
}

fn rss_mb(process: &tokio::process::Child) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}
