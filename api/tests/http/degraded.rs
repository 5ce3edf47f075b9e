//! Money while Redis hangs, which is worse than being gone.

use std::time::{Duration, Instant};

use devnet::{Redis, RedisOptions};
use littoral_api::door::Limits;
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
