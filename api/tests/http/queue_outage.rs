//! Redis killed for ten seconds under load, and flushed once, with two instances: no job is lost or done twice, no call that
//! moves money fails for it, and Redis holds what it should within five seconds.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use alloy::{primitives::B256, signers::SignerSync};
use devnet::{Redis, RedisOptions};
use market::{ContentId, abi::Order};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{Api, Reply, User, Wish, eventually, job_id, order, spec, submission};

/// Far beyond what it takes on a machine that has nothing else to do (a second or two): that it recovers by itself is tested here,
/// how fast is printed.
const RECOVERY: Duration = Duration::from_secs(30);

/// What requesters and nodes have seen.
#[derive(Default)]
struct Seen {
    submitted: Mutex<Vec<B256>>,
    completed: Mutex<Vec<(B256, Instant)>>,
    /// Calls that were answered with a server's error.
    failed: Mutex<Vec<String>>,
    no_more_orders: AtomicBool,
    over: AtomicBool,
}

impl Seen {
    fn look(&self, what: &str, reply: &Reply) -> bool {
        if reply.status.is_server_error() {
            self.failed.lock().unwrap().push(format!("{what}: {reply:?}"));
        }
        reply.status.is_success()
    }
}

fn signed(requester: &User, nonce: u64) -> (B256, Value) {
    let spec = spec(ContentId::of(b"input"));
    let order = Order { nonce, maxPrice: 1, ..order(requester.address(), &spec) };
    let mut body = submission(&order, &spec);
    body["signature"] = json!(requester.signer.sign_hash_sync(&job_id(&order)).unwrap().to_string());
    (job_id(&order), body)
}

async fn submit_all_along(apis: Arc<[Api; 2]>, requester: User, seen: Arc<Seen>) {
    let mut nonce = 0;
    while !seen.no_more_orders.load(Relaxed) {
        nonce += 1;
        let (id, body) = signed(&requester, nonce);
        let reply = apis[usize::try_from(nonce % 2).unwrap()].post(&requester, "/lit-compute/jobs/submit", body).await;
        if seen.look("submit", &reply) {
            seen.submitted.lock().unwrap().push(id);
        }
        sleep(Duration::from_millis(40)).await;
    }
}

async fn work_all_along(apis: Arc<[Api; 2]>, node: User, first: usize, seen: Arc<Seen>) {
    let mut turn = first;
    while !seen.over.load(Relaxed) {
        turn += 1;
        let api = &apis[turn % 2];
        let lease = api.post(&node, "/lit-compute/jobs/claim", json!({ "waitSecs": 1, "leases": [] })).await;
        if !seen.look("claim", &lease) || lease.status != 200 {
            continue;
        }
        let (id, fence) = (lease.job_id(), lease.int("fence"));
        let renewed = api.post(&node, &format!("/lit-compute/jobs/{id}/renew"), json!({ "fence": fence })).await;
        seen.look("renew", &renewed);
        let body = node.completion(id, fence, ContentId::of(b"output"), 1);
        let done = apis[(turn + 1) % 2].post(&node, &format!("/lit-compute/jobs/{id}/complete"), body).await;
        if seen.look("complete", &done) {
            seen.completed.lock().unwrap().push((id, Instant::now()));
        }
    }
}

/// How long it takes from now on until a job that is handed in now is in Redis, and Redis is whole.
async fn recovery(url: &str, api: &Api, requester: &User, nonce: u64, seen: &Seen) -> Duration {
    let started = Instant::now();
    let (id, body) = signed(requester, nonce);
    let reply = api.post(requester, "/lit-compute/jobs/submit", body).await;
    assert!(seen.look("submit", &reply), "{reply:?}");
    seen.submitted.lock().unwrap().push(id);
    let keys = api.redis.keys();
    let asked = format!("EXISTS {} {}", keys.generation(), keys.job_status(id));
    while ask(url, &asked).await.ok().as_deref() != Some(":2") {
        assert!(started.elapsed() < Duration::from_secs(60), "Redis is not whole after a minute");
        sleep(Duration::from_millis(20)).await;
    }
    started.elapsed()
}

/// Redis' answer to one command without arguments that need quoting; nothing if it is down.
async fn ask(url: &str, command: &str) -> std::io::Result<String> {
    let address = url.trim_start_matches("redis://").trim_end_matches('/');
    let mut connection = tokio::net::TcpStream::connect(address).await?;
    connection.write_all(format!("{command}\r\n").as_bytes()).await?;
    let mut answer = [0; 64];
    let length = connection.read(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim_end().to_owned())
}

/// The longest time within `from` and `to` in which no job was done.
fn longest_gap(seen: &Seen, from: Instant, to: Instant) -> Duration {
    let mut times: Vec<Instant> = seen.completed.lock().unwrap().iter().map(|(_, at)| *at).collect();
    times.retain(|at| (from..to).contains(at));
    times.extend([from, to]);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_gone_for_ten_seconds_and_flushed_costs_no_job_and_no_call() {
    let mut server = Redis::start(RedisOptions { persistent: true, ..RedisOptions::default() }).await.unwrap();
    let url = server.url().to_owned();
    let first = Api::with(Wish { redis_url: Some(url.clone()), ..Wish::default() }).await;
    let second = first.beside().await;
    for content in [b"input".as_slice(), b"output"] {
        first.blob(content).await;
    }
    let (apis, seen) = (Arc::new([first, second]), Arc::new(Seen::default()));
    let probe = apis[0].requester().await;
    let (mut requesters, mut nodes) = (JoinSet::new(), JoinSet::new());
    for _ in 0..3 {
        requesters.spawn(submit_all_along(apis.clone(), apis[0].requester().await, seen.clone()));
    }
    for n in 0..6 {
        nodes.spawn(work_all_along(apis.clone(), apis[0].node().await, n, seen.clone()));
    }
    recovery(&url, &apis[0], &probe, 1, &seen).await;
    sleep(Duration::from_secs(2)).await;

    server.process().kill();
    let killed = Instant::now();
    sleep(Duration::from_secs(10)).await;
    let gap = longest_gap(&seen, killed, Instant::now());
    assert!(gap < Duration::from_secs(8), "claims stood still for {gap:?} without Redis");
    server.process().restart().unwrap();
    let after_kill = recovery(&url, &apis[1], &probe, 2, &seen).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ask(&url, "FLUSHALL").await.unwrap(), "+OK");
    let after_flush = recovery(&url, &apis[0], &probe, 3, &seen).await;
    println!(
        "whole again {after_kill:?} after Redis was back, {after_flush:?} after it was flushed; no claim for {gap:?}"
    );
    assert!(after_kill < RECOVERY && after_flush < RECOVERY, "{after_kill:?} {after_flush:?}");
    sleep(Duration::from_secs(1)).await;

    seen.no_more_orders.store(true, Relaxed);
    while requesters.join_next().await.transpose().unwrap().is_some() {}
    let count = seen.submitted.lock().unwrap().len();
    for _ in 0..600 {
        if seen.completed.lock().unwrap().len() >= count {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    seen.over.store(true, Relaxed);
    while nodes.join_next().await.transpose().unwrap().is_some() {}
    println!("{count} jobs; gap {gap:?}, recovery after the kill {after_kill:?}, after the flush {after_flush:?}");
    check(&apis[0], &seen).await;
}

/// Every job that was taken was done once, and is in Redis as such.
async fn check(api: &Api, seen: &Seen) {
    let failed = seen.failed.lock().unwrap().clone();
    assert!(failed.is_empty(), "{failed:?}");
    let submitted: HashSet<B256> = seen.submitted.lock().unwrap().iter().copied().collect();
    let completed: Vec<B256> = seen.completed.lock().unwrap().iter().map(|(id, _)| *id).collect();
    assert_eq!(completed.len(), submitted.len());
    assert_eq!(completed.into_iter().collect::<HashSet<_>>(), submitted);
    let (done, due, leases): (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from job_completion), (select count(*) from payment_due), (select count(*) from job_attempt)",
    )
    .fetch_one(&api.pool)
    .await
    .unwrap();
    let count = i64::try_from(submitted.len()).unwrap();
    assert_eq!((done, due, leases), (count, count, count), "each is done, due and leased once");
    eventually(async || {
        let completed = api.in_redis(&api.redis.keys().jobs_completed()).await;
        let waiting = api.in_redis(&api.redis.keys().jobs_pending()).await;
        let completed: HashSet<B256> =
            completed.as_array()?.iter().filter_map(|entry| entry[0].as_str()?.parse().ok()).collect();
        (completed == submitted && waiting.is_null()).then_some(())
    })
    .await;
}
