//! What still works, and what is refused at once, while something that the API needs hangs or is gone.

use std::time::{Duration, Instant};

use devnet::{Postgres, Redis, RedisOptions};
use littoral_api::door::Limits;
use market::breaker::Broken;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Api, Reply, User, Wish, eventually, order, spec, submission};

/// No request may take longer, whatever Redis does.
const PATIENCE: Duration = Duration::from_secs(10);

async fn timed(request: reqwest::RequestBuilder) -> Reply {
    let started = Instant::now();
    let reply = Reply::of(request).await;
    assert!(started.elapsed() < PATIENCE, "{:?} {reply:?}", started.elapsed());
    assert!(!reply.status.is_server_error(), "{reply:?}");
    reply
}

async fn submit(api: &Api, user: &User, key: &str, body: &Value) -> Reply {
    let request = api.request(Method::POST, "/lit-compute/jobs/submit", Some(user));
    timed(request.header("idempotency-key", key).json(body)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_hangs_money_moves_on_limits_hold_and_no_one_waits_long() {
    let mut redis = Redis::start(RedisOptions::default()).await.unwrap();
    let wish = Wish {
        redis_url: Some(redis.url().to_owned()),
        settings: Some(|settings| settings.limits = Limits::default()),
        ..Wish::default()
    };
    let api = Api::with(wish).await;
    let (requester, node) = (api.requester().await, api.node().await);
    let spec = spec(api.blob(b"input").await);
    let output = api.blob(b"output").await;
    let body = || submission(&order(requester.address(), &spec), &spec);
    let (first, second) = (body(), body());
    submit(&api, &requester, "before", &first).await.ok();

    redis.process().signal(Signal::STOP).unwrap();
    assert_eq!(submit(&api, &requester, "before", &first).await.ok().headers["idempotent-replayed"], "true");
    submit(&api, &requester, "during", &second).await.ok();
    submit(&api, &requester, "during", &first).await.is_problem(422, "idempotency_mismatch", Some("Idempotency-Key"));
    let job = api.open_job().await;
    let lease = timed(api.request(Method::POST, "/lit-compute/jobs/claim", Some(&node)).json(&json!({}))).await.ok();
    assert_eq!(lease.job_id(), job);
    let path = format!("/lit-compute/jobs/{job}/complete");
    let done = node.completion(job, lease.int("fence"), output, 10);
    timed(api.request(Method::POST, &path, Some(&node)).json(&done)).await.ok();
    let many = (0..150).map(|_| timed(api.request(Method::POST, "/lit-compute/jobs/submit", Some(&requester))));
    let refused = futures::future::join_all(many).await.iter().filter(|reply| reply.status == 429).count();
    assert!(refused >= 30, "{refused} of 150 in a moment were refused");

    redis.process().signal(Signal::CONT).unwrap();
    let back = Instant::now();
    eventually(async || (api.get("/").await.ok().text("redis") == "connected").then_some(())).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    let jobs: i64 = sqlx::query_scalar("select count(*) from job_submission").fetch_one(&api.pool).await.unwrap();
    let paid: i64 = sqlx::query_scalar("select count(*) from payment_due").fetch_one(&api.pool).await.unwrap();
    assert_eq!((jobs, paid), (2, 1), "nothing lost, nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_redis_keeps_waiting_has_it_left_alone() {
    let mut redis = Redis::start(RedisOptions::default()).await.unwrap();
    let api = Api::with(Wish { redis_url: Some(redis.url().to_owned()), ..Wish::default() }).await;
    let node = api.node().await;
    redis.process().signal(Signal::STOP).unwrap();
    // Whoever asks for Redis now is told that it did not answer a moment ago, without its being asked.
    let left_alone = async || loop {
        let asked = api.redis.within(Duration::from_secs(1), std::future::ready(Ok(()))).await;
        if matches!(asked, Err(Broken::Open)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let claims = async || {
        // One in 16 does not ask Redis anyway.
        for _ in 0..20 {
            assert_eq!(api.claim(&node).await.status, 204);
        }
    };
    tokio::select! {
        () = left_alone() => {}
        () = claims() => panic!("20 claims waited for Redis"),
    }
    redis.process().signal(Signal::CONT).unwrap();
}

/// Asks until a refusal says that what is gone was not asked again; all of them say when to try again.
async fn refused_at_once(ask: impl AsyncFn() -> Reply) -> usize {
    let mut at_once = 0;
    for _ in 0..6 {
        let reply = ask().await;
        reply.is_problem(503, "unavailable", None);
        assert_eq!(reply.headers["retry-after"], "1");
        at_once += usize::from(reply.text("detail").contains("a moment ago"));
    }
    at_once
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_is_gone_calls_are_refused_at_once_and_then_it_heals() {
    let mut postgres = Postgres::temporary().await.unwrap();
    let url = postgres.create_database("degraded").await.unwrap().to_string();
    let api = Api::with(Wish { database_url: Some(url), ..Wish::default() }).await;
    let (requester, _node) = (api.requester().await, api.node().await);
    let spec = spec(api.blob(b"input").await);
    let body = submission(&order(requester.address(), &spec), &spec);

    assert!(postgres.process().stop());
    let read = refused_at_once(async || api.get("/lit-compute/jobs").await).await;
    assert!(read > 0, "every call waited for Postgres");
    let submit = async || api.post(&requester, "/lit-compute/jobs/submit", body.clone()).await;
    submit().await.is_problem(503, "unavailable", None);
    assert_eq!(api.get("/health/live").await.status, 200);
    assert_eq!(api.get("/health/ready").await.status, 503);
    let metrics = api.client.get(format!("{}/metrics", api.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("littoral_breaker_open{dependency=\"postgres\"} 1"), "{metrics}");

    postgres.process().restart().unwrap();
    eventually(async || (api.get("/lit-compute/jobs").await.status == 200).then_some(())).await;
    submit().await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_of_contents_is_gone_all_else_goes_on_and_then_it_heals() {
    let api = Api::start().await;
    let (requester, _node) = (api.requester().await, api.node().await);
    let spec = spec(api.blob(b"input").await);
    let uploads = api.blobs.path().join("uploads");
    std::fs::remove_dir_all(&uploads).unwrap();
    std::fs::write(&uploads, "no directory").unwrap();
    let at_once = refused_at_once(async || api.put_blob(&requester, "output").await).await;
    assert!(at_once > 0, "every content was tried to be stored");
    let body = submission(&order(requester.address(), &spec), &spec);
    api.post(&requester, "/lit-compute/jobs/submit", body).await.ok();
    std::fs::remove_file(&uploads).unwrap();
    std::fs::create_dir(&uploads).unwrap();
    eventually(async || (api.put_blob(&requester, "output").await.status == 201).then_some(())).await;
}
