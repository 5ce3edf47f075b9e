//! Two instances on a real Redis Cluster of three masters: the queue, sessions, limits and what is published, with the node that
//! has our keys flushed, and killed and back.

use std::time::Duration;

use alloy::{
    primitives::{Address, B256},
    signers::SignerSync,
};
use chrono::TimeDelta;
use devnet::RedisCluster;
use littoral_api::{
    door::Limits,
    realtime::{Tokens, Topic},
};
use market::{
    ContentId,
    abi::Order,
    clock,
    db::outbox::Source,
    redis::{projector::Projector, queue, rebuild},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    door::{secret, token_of},
    support::{Api, Reply, User, Wish, job_id, node_id, order, spec, submission},
};

const PREFIX: &str = "{littoral}:";
/// Nodes of a cluster take some seconds to believe that one of them is back.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    cluster: RedisCluster,
    /// The number of the master that has all keys.
    owner: usize,
    first: Api,
    second: Api,
    requester: User,
    node: User,
}

impl World {
    async fn start() -> Self {
        let cluster = RedisCluster::start(false).await.unwrap();
        let wish = Wish {
            redis_url: Some(cluster.url()),
            redis_prefix: Some(PREFIX.to_owned()),
            settings: Some(|settings| settings.session_secrets = vec![secret()]),
            ..Wish::default()
        };
        let first = Api::with(wish).await;
        let second = first.beside().await;
        let owner = cluster.owner(&first.redis.keys().generation()).await.unwrap();
        for content in [b"input".as_slice(), b"output"] {
            first.blob(content).await;
        }
        let (requester, node) = (first.requester().await, first.node().await);
        Self { cluster, owner, first, second, requester, node }
    }

    /// Hands in an order at the first instance.
    async fn submit(&self, nonce: u64) -> B256 {
        let spec = spec(ContentId::of(b"input"));
        let order = Order { nonce, maxPrice: 1, ..order(self.requester.address(), &spec) };
        let mut body = submission(&order, &spec);
        body["signature"] = json!(self.requester.signer.sign_hash_sync(&job_id(&order)).unwrap().to_string());
        self.first.post(&self.requester, "/lit-compute/jobs/submit", body).await.ok().job_id()
    }

    /// Has the job done by way of the second instance.
    async fn work(&self, job: B256) {
        let lease = self.second.claim(&self.node).await.ok();
        assert_eq!(lease.job_id(), job);
        let fence = lease.int("fence");
        let beat = json!({ "leases": [{ "jobId": job, "fence": fence }] });
        let beat = self.first.post(&self.node, "/lit-compute/nodes/heartbeat", beat).await.ok();
        assert_eq!(beat.body["renewed"][0]["jobId"], job.to_string());
        let body = self.node.completion(job, fence, ContentId::of(b"output"), 1);
        self.second.post(&self.node, &format!("/lit-compute/jobs/{job}/complete"), body).await.ok();
    }

    /// What another application's cluster client is answered.
    async fn cli(&self, arguments: &[&str]) -> String {
        self.cluster.cli(arguments).await.unwrap()
    }

    /// Until `arguments` are answered with `expected`.
    async fn told(&self, arguments: &[&str], expected: &str) {
        let started = Instant::now();
        loop {
            let said = self.cluster.cli(arguments).await;
            if said.as_deref().is_ok_and(|said| said == expected) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{arguments:?}: {said:?} for {expected}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What is told of `job` by the second instance.
    async fn follow(&self, job: B256) -> reqwest::Response {
        let until = clock::now() + TimeDelta::hours(1);
        let tokens = Tokens::load(&self.first.pool).await.unwrap();
        let token = tokens.sign(self.requester.address(), [Topic::Job(job)].into(), until).unwrap();
        let path = format!("/lit-compute/jobs/{job}/events?token={token}");
        let mut events = self.second.request(Method::GET, &path, None).send().await.unwrap();
        assert_eq!(events.status(), 200);
        heard(&mut events, "subscribed").await;
        events
    }

    fn job(job: B256) -> String {
        format!("{PREFIX}job:{job}:status")
    }
}

/// Reads on until `word` was told.
async fn heard(events: &mut reqwest::Response, word: &str) {
    let mut told = String::new();
    while !told.contains(word) {
        let chunk = timeout(PATIENCE, events.chunk()).await.expect("nothing comes").unwrap().expect("the stream ended");
        told.push_str(&String::from_utf8_lossy(&chunk));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_runs_on_a_cluster_and_heals_when_the_node_with_our_keys_is_flushed_or_killed() {
    let mut world = World::start().await;
    world.told(&["EXISTS", "{littoral}:littoral:generation"], "1").await;

    // The queue, and what one instance tells clients of the other.
    let job = world.submit(1).await;
    world.told(&["ZCARD", "{littoral}:jobs:pending"], "1").await;
    let operations = ["encrypt".to_owned()];
    let redis = &world.first.redis;
    let suggested = queue::suggest(redis, world.node.address(), &operations, Address::ZERO, 8, clock::now()).await;
    assert_eq!(suggested.unwrap(), [job]);
    let mut events = world.follow(job).await;
    world.work(job).await;
    heard(&mut events, "job.completed").await;
    world.told(&["HGET", &World::job(job), "status"], "completed").await;
    world.told(&["ZCARD", "{littoral}:jobs:completed"], "1").await;
    world.told(&["SISMEMBER", "{littoral}:nodes:available", &node_id(world.node.address()).to_string()], "1").await;

    // A session that another application wrote.
    let wallet = Address::repeat_byte(0x77).to_checksum(None);
    world.cli(&["HSET", "{littoral}:session:user_123", "walletAddress", &wallet]).await;
    let request = world.first.request(Method::GET, "/lit-compute/auth/session", None);
    let session = Reply::of(request.bearer_auth(token_of("user_123"))).await.ok();
    assert_eq!(session.text("walletAddress"), wallet);

    // A flush: what Postgres knows is put back, and so it is by a rebuild.
    let before = without_times(rebuilt(&world.first).await);
    world.cluster.master(world.owner).cli(&["FLUSHALL"]).await.unwrap();
    world.told(&["EXISTS", "{littoral}:littoral:generation"], "1").await;
    world.told(&["HGET", &World::job(job), "status"], "completed").await;
    world.told(&["EXISTS", &format!("{PREFIX}session:{}", world.requester.name())], "1").await;
    assert_eq!(without_times(rebuilt(&world.second).await), before);

    // Killed: jobs and money go on from Postgres. Back, and empty: all of it is put back.
    world.cluster.master(world.owner).process().kill();
    let during = world.submit(2).await;
    assert_eq!(world.first.get("/").await.ok().text("redis"), "disconnected");
    world.work(during).await;
    world.cluster.master(world.owner).process().restart().unwrap();
    world.told(&["HGET", &World::job(during), "status"], "completed").await;
    world.told(&["ZCARD", "{littoral}:jobs:completed"], "2").await;
    assert_eq!(world.first.get("/").await.ok().text("redis"), "connected");
    let after = world.submit(3).await;
    let mut events = world.follow(after).await;
    world.work(after).await;
    heard(&mut events, "job.completed").await;
    let paid: i64 = sqlx::query_scalar("select count(*) from payment_due").fetch_one(&world.first.pool).await.unwrap();
    assert_eq!(paid, 3, "nothing lost, nothing twice");
}

/// What Redis holds of Postgres once it was filled anew.
async fn rebuilt(api: &Api) -> std::collections::BTreeMap<String, Value> {
    // What the chain says is projected by the indexer, which is not here.
    let indexer = Projector::new(api.pool.clone(), api.redis.clone(), Source::Chain);
    let started = Instant::now();
    // Another instance may be at it.
    while !(indexer.drain(clock::now()).await.is_ok()
        && rebuild::rebuild(&api.pool, &api.redis, clock::now()).await.is_ok_and(|done| done))
    {
        assert!(started.elapsed() < PATIENCE, "it is not filled");
        sleep(Duration::from_millis(100)).await;
    }
    market::redis::dump::dump(&api.redis).await.unwrap()
}

/// Without when keys expire: some live from when they were written.
fn without_times(mut dump: std::collections::BTreeMap<String, Value>) -> std::collections::BTreeMap<String, Value> {
    for value in dump.values_mut() {
        value.as_object_mut().unwrap().remove("expiresAt");
    }
    assert!(dump.keys().all(|key| key.starts_with(PREFIX)), "{dump:?}");
    dump
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_counted_in_the_cluster_and_hold_while_its_node_is_gone() {
    let mut cluster = RedisCluster::start(false).await.unwrap();
    let api = Api::with(Wish {
        redis_url: Some(cluster.url()),
        redis_prefix: Some(PREFIX.to_owned()),
        settings: Some(|settings| settings.limits = Limits::default()),
        ..Wish::default()
    })
    .await;
    let owner = cluster.owner(&api.redis.keys().generation()).await.unwrap();
    let user = api.user().await;
    let refused = async || {
        let all =
            futures::future::join_all((0..150).map(|_| api.post(&user, "/lit-compute/jobs/submit", json!({})))).await;
        assert!(all.iter().all(|reply| matches!(reply.status.as_u16(), 422 | 429)), "{all:?}");
        all.iter().filter(|reply| reply.status == 429).count()
    };
    assert!(refused().await >= 40);
    let counted = cluster.master(owner).cli(&["KEYS", "{littoral}:rl:*:write:*:sustained:*"]).await.unwrap();
    assert!(counted.contains(&user.name()), "{counted}");
    for other in [(owner + 1) % 3, (owner + 2) % 3] {
        assert_eq!(cluster.master(other).cli(&["DBSIZE"]).await.unwrap(), "0", "all keys are in one slot");
    }
    cluster.master(owner).process().kill();
    assert!(refused().await > 0, "each instance counts alone");
}
