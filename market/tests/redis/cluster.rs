//! On a real cluster: the node that has our slot is found again when another takes its place, and followed when the slot moves.

use std::time::Duration;

use alloy::primitives::Address;
use devnet::RedisCluster;
use market::clock;
use market::redis::keys::Keys;
use market::redis::pubsub::{Signal, Subscription};
use market::redis::{Client, cluster, history, lock, session};
use market::user::UserId;
use tokio::time::{Instant, sleep, timeout};

use crate::support::job;

const PREFIX: &str = "{market}:";

async fn next(subscription: &mut Subscription) -> Signal {
    timeout(Duration::from_secs(60), subscription.next()).await.expect("nothing comes")
}

/// The text of the next message, whatever else is signalled before.
async fn message(subscription: &mut Subscription) -> String {
    loop {
        if let Signal::Message { payload, .. } = next(subscription).await {
            return payload;
        }
    }
}

/// Until `check` says yes.
async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !check().await {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} does not come about");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn sign_in(redis: &Client, user: &UserId) -> bool {
    session::write(redis, user, Address::repeat_byte(7), clock::now()).await.is_ok()
}

#[tokio::test]
async fn a_replica_that_takes_the_place_of_our_node_is_found_and_gets_scripts_and_subscriptions() {
    let mut servers = RedisCluster::start(false).await.unwrap();
    let keys = Keys::new(PREFIX);
    let redis = Client::open(&servers.url(), keys.clone()).unwrap();
    let user: UserId = "user_123".parse().unwrap();
    let owner = servers.owner(&keys.generation()).await.unwrap();
    let replica = servers.start_replica(owner).await.unwrap();

    redis.ping().await.unwrap();
    assert!(sign_in(&redis, &user).await);
    let held = servers.cli(&["HGET", "{market}:session:user_123", "walletAddress"]).await.unwrap();
    assert_eq!(held, Address::repeat_byte(7).to_checksum(None));
    let channel = keys.channel_job(job(1));
    let mut subscription = Subscription::open(redis.clone(), vec![channel.clone()]);
    assert_eq!(next(&mut subscription).await, Signal::Resumed);
    let start = history::watch(&redis, &channel, None).await.unwrap().head;
    history::publish(&redis, &channel, r#"{"event":"first"}"#).await.unwrap();
    assert!(message(&mut subscription).await.contains("first"));
    for number in 0..3 {
        let text = format!("told to node {number}");
        servers.master(number).cli(&["PUBLISH", &channel, &text]).await.unwrap();
        assert_eq!(message(&mut subscription).await, text, "whichever node another application tells");
    }
    let held = servers.master(owner).cli(&["DBSIZE"]).await.unwrap();
    until("a copy", async || replica.cli(&["DBSIZE"]).await.unwrap() == held).await;

    servers.master(owner).process().kill();
    replica.cli(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await.unwrap();
    // The URL does not name the replica.
    until("an answer", async || redis.ping().await.is_ok()).await;
    assert!(session::read(&redis, &user).await.unwrap().is_some(), "what it has copied");
    assert!(sign_in(&redis, &user).await, "a script that it has not loaded");
    while next(&mut subscription).await != Signal::Resumed {}
    history::publish(&redis, &channel, r#"{"event":"second"}"#).await.unwrap();
    assert!(message(&mut subscription).await.contains("second"));
    let missed = history::watch(&redis, &channel, Some(&start)).await.unwrap().missed.unwrap();
    assert_eq!(missed.len(), 2, "the history goes on: {missed:?}");

    // The old one comes back as a copy of the new one, and nothing is sent to it for long.
    servers.master(owner).process().restart().unwrap();
    let node = servers.master(owner);
    until("a copy", async || node.cli(&["ROLE"]).await.is_ok_and(|role| role.starts_with("slave"))).await;
    until("an answer", async || sign_in(&redis, &user).await).await;
}

#[tokio::test]
async fn a_slot_that_moves_is_away_meanwhile_and_followed_then() {
    let mut servers = RedisCluster::start(false).await.unwrap();
    let keys = Keys::new(PREFIX);
    let redis = Client::open(&servers.url(), keys.clone()).unwrap();
    let user: UserId = "user_123".parse().unwrap();
    assert!(sign_in(&redis, &user).await);
    let from = servers.owner(&keys.generation()).await.unwrap();
    let to = (from + 1) % 3;
    let slot = servers.cli(&["CLUSTER", "KEYSLOT", PREFIX]).await.unwrap();
    let (source, target) = (
        servers.master(from).cli(&["CLUSTER", "MYID"]).await.unwrap(),
        servers.master(to).cli(&["CLUSTER", "MYID"]).await.unwrap(),
    );

    let set = async |servers: &mut RedisCluster, number: usize, how: &[&str]| {
        let command = [&["CLUSTER", "SETSLOT", slot.as_str()], how].concat();
        servers.master(number).cli(&command).await.unwrap();
    };
    set(&mut servers, to, &["IMPORTING", &source]).await;
    set(&mut servers, from, &["MIGRATING", &target]).await;
    let port = servers.master(to).port().to_string();
    let key = "{market}:session:user_123";
    servers.master(from).cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]).await.unwrap();
    let error = session::read(&redis, &user).await.unwrap_err();
    assert!(error.is_io_error() && error.to_string().contains("Ask"), "{error}");
    assert!(redis.ping().await.is_err(), "it does not count as being there");

    for number in [to, from, 3 - to - from] {
        set(&mut servers, number, &["NODE", &target]).await;
    }
    until("an answer", async || redis.ping().await.is_ok()).await;
    assert!(session::read(&redis, &user).await.unwrap().is_some());
    // A transaction, a pipeline and a script, at a node that has seen none.
    assert!(lock::take(&redis, "name", Duration::from_secs(5)).await.unwrap().is_some());
    market::redis::leaderboard::tell(&redis, &[]).await.unwrap();
}

#[tokio::test]
async fn commands_that_meet_a_node_without_our_slot_are_sent_on() {
    let mut servers = RedisCluster::start(false).await.unwrap();
    let keys = Keys::new(PREFIX);
    let owner = servers.owner(&keys.generation()).await.unwrap();
    let other = servers.master((owner + 1) % 3).port();
    // One node is enough to find the others, and takes a nearer one's place when that is gone.
    let one = Client::open(&format!("redis+cluster://127.0.0.1:9,127.0.0.1:{other}/"), keys).unwrap();
    let user: UserId = "user_123".parse().unwrap();
    assert!(sign_in(&one, &user).await);
    market::redis::leaderboard::tell(&one, &[]).await.unwrap();
    servers.master(owner).process().kill();
    let error = session::read(&one, &user).await.unwrap_err();
    assert!(error.is_io_error() || error.is_timeout(), "{error}");
    servers.master(owner).process().restart().unwrap();
    until("an answer", async || sign_in(&one, &user).await).await;
    assert!(cluster::is_cluster(&servers.url()));
    assert!(market::redis::client::takes_anyone(&servers.url()).await.unwrap(), "it has no password");
}
