//! Projectors as the processes run them, with servers that fail.

use std::time::Duration;

use alloy::primitives::Address;
use market::clock;
use market::db::outbox::Source;
use market::redis::pubsub::{Signal, Subscription};
use market::redis::{Client, queue, rebuild};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::support::{World, job, node_id};

/// A projector in the background; it ends with this value.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(world: &World, source: Source) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let projector = world.projector(source);
        let task = tokio::spawn(projector.run(async {
            stopped.await.ok();
        }));
        Self { stop: Some(stop), task }
    }

    async fn stop(mut self) {
        self.stop.take();
        timeout(Duration::from_secs(5), &mut self.task).await.expect("it stops when told").unwrap();
    }
}

async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let waited = timeout(within, async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: not within {within:?}"));
}

/// The next message, as JSON with its channel.
async fn message(subscription: &mut Subscription) -> (String, Value) {
    loop {
        let signal = timeout(Duration::from_secs(5), subscription.next()).await.expect("a message");
        if let Signal::Message { channel, payload } = signal {
            return (channel, serde_json::from_str(&payload).unwrap());
        }
    }
}

async fn subscribed(redis: &Client, channels: Vec<String>) -> Subscription {
    let mut subscription = Subscription::open(redis.clone(), channels);
    let first = timeout(Duration::from_secs(5), subscription.next()).await.unwrap();
    assert_eq!(first, Signal::Resumed);
    subscription
}

#[tokio::test]
async fn a_committed_change_is_in_redis_and_told_at_once() {
    let world = World::new().await;
    let running = Running::start(&world, Source::Chain);
    let keys = world.redis.keys();
    let mut told = subscribed(&world.redis, vec![keys.channel_job(job(1)), keys.channel_global()]).await;
    // The first message may wait for the listener to be up; the second may not.
    world.open(2, Address::ZERO, 3600, 0).await;
    message(&mut told).await;
    let committed = std::time::Instant::now();
    world.open(1, Address::ZERO, 3600, 1).await;
    let (channel, text) = message(&mut told).await;
    assert!(committed.elapsed() < Duration::from_millis(500), "{:?}", committed.elapsed());
    assert_eq!(channel, keys.channel_job(job(1)));
    assert_eq!(
        text,
        json!({
            "event": "job.opened", "jobId": job(1).to_string(), "timestamp": world.at(1).timestamp_millis(),
            "status": "pending", "state": "pending", "operation": "encrypt",
            "requester": crate::support::requester().to_checksum(None),
        })
    );
    assert_eq!(message(&mut told).await.0, keys.channel_global());
    assert_eq!(world.status(job(1)).await["status"], "pending", "the state is there when the message is");
    running.stop().await;
}

#[tokio::test]
async fn a_node_is_told_of_its_order_and_of_a_job_that_a_reorg_took() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    let mut told = subscribed(&world.redis, vec![world.redis.keys().channel_node(node_id(1))]).await;
    world.open(1, crate::support::node(1), 3600, 1).await;
    world.drain(1).await;
    assert_eq!(
        message(&mut told).await.1,
        json!({ "command": "job.available", "jobId": job(1).to_string(), "operation": "encrypt" })
    );
    // Done as it should be: nothing to tell the one that did it.
    world.claim(1, 1, 2).await;
    world.drain(2).await;
    world.complete(1, 1, 3).await;
    world.drain(3).await;
    world.open(2, Address::ZERO, 3600, 3).await;
    world.claim(2, 1, 4).await;
    world.drain(4).await;
    world.unopen(2, 5).await;
    world.drain(5).await;
    assert_eq!(
        message(&mut told).await.1,
        json!({ "command": "job.revoked", "jobId": job(2).to_string(), "state": "removed" })
    );
}

#[tokio::test]
async fn a_node_is_told_of_a_job_that_a_reorg_took_while_redis_was_empty() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    for n in 1..=2 {
        world.open(n, Address::ZERO, 3600, 1).await;
        world.claim(n, 1, 2).await;
    }
    world.drain(2).await;
    let mut told = subscribed(&world.redis, vec![world.redis.keys().channel_node(node_id(1))]).await;
    world.command(&["FLUSHALL"]).await;
    world.unopen(1, 3).await;
    world.drain(3).await;
    assert_eq!(
        message(&mut told).await.1,
        json!({ "command": "job.revoked", "jobId": job(1).to_string(), "state": "removed" })
    );
    // Filled again in between: what is gone does not come back, and still its node does not know.
    world.unopen(2, 4).await;
    rebuild::rebuild(&world.pool, &world.redis, world.at(4)).await.unwrap();
    world.drain(4).await;
    assert_eq!(
        message(&mut told).await.1,
        json!({ "command": "job.revoked", "jobId": job(2).to_string(), "state": "removed" })
    );
}

#[tokio::test]
async fn two_sources_at_once_never_leave_an_older_state() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    let running: Vec<_> =
        [Source::Chain, Source::Work, Source::Work].map(|source| Running::start(&world, source)).into();
    let jobs = 1..=12_u8;
    for n in jobs.clone() {
        world.open(n, Address::ZERO, 3600, 0).await;
    }
    // Chain and API change the same jobs at the same time, over and over.
    let chain = async {
        for round in 0..10 {
            for n in jobs.clone() {
                world.paid(n, 1, round).await;
                world.unpaid(n, round).await;
            }
        }
        for n in jobs.clone().filter(|n| n % 2 == 0) {
            world.paid(n, 1, 50).await;
        }
    };
    let work = async {
        for round in 0..10 {
            for n in jobs.clone() {
                world.claim(n, 1, round).await;
                world.fail(n, Some(0), round).await;
            }
        }
    };
    tokio::join!(chain, work);
    let settled = async || {
        let mut db = world.pool.acquire().await.unwrap();
        let mut left = 0;
        for source in [Source::Chain, Source::Work] {
            left += market::db::outbox::depth(&mut db, source).await.unwrap().0;
        }
        left == 0
    };
    until("the outboxes are empty", Duration::from_secs(20), settled).await;
    for running in running {
        running.stop().await;
    }
    for n in jobs {
        let expected = if n % 2 == 0 { "paid" } else { "pending" };
        assert_eq!(world.status(job(n)).await["state"], expected, "job {n}");
    }
    let live = world.dump().await;
    market::redis::rebuild::rebuild(&world.pool, &world.redis, clock::now()).await.unwrap();
    assert_eq!(live, world.dump().await, "and it is what Postgres says");
}

#[tokio::test]
async fn a_flush_in_mid_run_heals_within_two_seconds() {
    let world = World::new().await;
    let running = [Source::Chain, Source::Work].map(|source| Running::start(&world, source));
    for n in 1..=5 {
        world.open(n, Address::ZERO, 3600, 0).await;
    }
    let full = async || queue::depth(&world.redis).await.is_ok_and(|depth| depth == 5);
    until("the jobs are queued", Duration::from_secs(5), full).await;
    let filled = async || market::redis::rebuild::generation(&world.redis).await.unwrap().is_some();
    until("Redis is filled", Duration::from_secs(5), filled).await;
    let before = world.dump().await;
    world.command(&["FLUSHALL"]).await;
    until("the jobs are queued again", Duration::from_secs(2), full).await;
    until("Redis is filled again", Duration::from_secs(2), filled).await;
    assert_eq!(world.dump().await, before);
    for running in running {
        running.stop().await;
    }
}

#[tokio::test]
async fn with_redis_down_everything_goes_on_and_heals_when_it_is_back() {
    let mut world = World::new().await;
    world.server.process().kill();
    let started = std::time::Instant::now();
    assert!(world.redis.ping().await.is_err());
    let operations = ["encrypt".to_owned()];
    let suggested = queue::suggest(&world.redis, Address::ZERO, &operations, Address::ZERO, 1, clock::now()).await;
    assert!(suggested.is_err());
    assert!(started.elapsed() < Duration::from_secs(4), "a command fails soon: {:?}", started.elapsed());

    let running = Running::start(&world, Source::Chain);
    let mut listening = Subscription::open(world.redis.clone(), vec![world.redis.keys().channel_global()]);
    world.open(1, Address::ZERO, 3600, 0).await;
    sleep(Duration::from_millis(1500)).await;
    assert!(!running.task.is_finished());

    world.server.process().restart().unwrap();
    let queued = async || queue::depth(&world.redis).await.is_ok_and(|depth| depth == 1);
    until("the job is queued", Duration::from_secs(10), queued).await;
    let resumed = timeout(Duration::from_secs(5), listening.next()).await.unwrap();
    assert_eq!(resumed, Signal::Resumed, "subscriptions come back by themselves");

    // Down and up again, with all that was in it lost.
    world.server.process().kill();
    world.open(2, Address::ZERO, 3600, 0).await;
    sleep(Duration::from_millis(300)).await;
    world.server.process().restart().unwrap();
    let queued = async || queue::depth(&world.redis).await.is_ok_and(|depth| depth == 2);
    until("both jobs are queued", Duration::from_secs(10), queued).await;
    let signal = timeout(Duration::from_secs(5), async { while listening.next().await != Signal::Resumed {} });
    signal.await.expect("the subscription is back again");
    running.stop().await;
}

#[tokio::test]
async fn with_redis_frozen_a_command_fails_soon_and_works_when_it_thaws() {
    let mut world = World::new().await;
    world.redis.ping().await.unwrap();
    let pid = world.server.process().pid().to_string();
    let signal = async |name: &str| {
        let sent = tokio::process::Command::new("kill").args([name, &pid]).status().await.unwrap();
        assert!(sent.success());
    };
    signal("-STOP").await;
    let started = std::time::Instant::now();
    assert!(queue::depth(&world.redis).await.is_err());
    assert!(started.elapsed() < market::redis::client::LONGEST_WAIT, "{:?}", started.elapsed());
    signal("-CONT").await;
    let answers = async || world.redis.ping().await.is_ok();
    until("it answers again", Duration::from_secs(5), answers).await;
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_an_error_where_tls_is_asked_for() {
    let world = World::new().await;
    let url = world.server.url().replace("redis://", "rediss://");
    let secure = Client::open(&url, market::redis::keys::Keys::default()).unwrap();
    assert!(secure.ping().await.is_err());
    assert!(Client::open("http://127.0.0.1/", market::redis::keys::Keys::default()).is_err());
}
