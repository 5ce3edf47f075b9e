//! How many requests are taken, of whom, and what those are told that made too many.

use littoral_api::door::Limits;
use market::{
    clock,
    limit::Policy,
    redis::limit::{Counter, take},
};
use reqwest::Method;
use serde_json::json;

use crate::support::{Api, Reply, User, Wish};

fn strict(settings: &mut littoral_api::app::Settings) {
    settings.limits = Limits::default();
}

fn strict_behind_a_proxy(settings: &mut littoral_api::app::Settings) {
    settings.limits = Limits::default();
    settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
}

async fn submit(api: &Api, user: &User) -> Reply {
    api.post(user, "/lit-compute/jobs/submit", json!({})).await
}

/// How many of `count` requests at once were let through to their handlers.
fn let_in(replies: &[Reply]) -> usize {
    replies.iter().filter(|reply| reply.status != 429).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_eleventh_request_in_a_second_is_refused_with_all_that_it_needs_to_know() {
    let api = Api::with_settings(strict).await;
    let (user, other) = (api.user().await, api.user().await);
    let first = submit(&api, &user).await;
    first.is_problem(422, "invalid_field", Some("order"));
    let policy = "\"burst\";q=10;w=1, \"sustained\";q=100;w=60";
    assert_eq!(first.headers["ratelimit-policy"], policy);
    let left = first.headers["ratelimit"].to_str().unwrap();
    assert!(left.starts_with("\"burst\";r=9;t=1, \"sustained\";r=99;t="), "{left}");

    // However slow the machine is, a hundred in a minute are the most.
    let replies = futures::future::join_all((0..150).map(|_| submit(&api, &user))).await;
    let refused = replies.iter().find(|reply| reply.status == 429).expect("all are let through");
    refused.is_problem(429, "rate_limited", None);
    assert_eq!(refused.headers["ratelimit-policy"], policy);
    assert!(refused.headers["ratelimit"].to_str().unwrap().contains("r=0;"), "{refused:?}");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert!(let_in(&replies) <= 110);
    submit(&api, &other).await.is_problem(422, "invalid_field", Some("order"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_count_together_and_each_alone_when_redis_is_gone() {
    let api = Api::start().await;
    let policy = Policy::per_second_and_minute(10, 100);
    let now = u64::try_from(clock::now().timestamp_millis()).unwrap();
    let counter = Counter { environment: "test", scope: "write", who: "user_123" };
    let admitted = futures::future::join_all((0..40).map(|_| take(&api.redis, counter, &policy, now))).await;
    assert_eq!(admitted.into_iter().filter(|verdict| verdict.as_ref().unwrap().admitted).count(), 10);
    let second = now / 1000;
    for (tier, start) in [("burst", second), ("sustained", second - second % 60)] {
        let key = format!("{}rl:test:write:user_123:{tier}:{start}", api.redis.keys().prefix());
        assert_eq!(api.redis_cli(&["GET", &key]).await, "10", "{key}");
    }

    let alone = Api::with(Wish {
        redis_url: Some("redis://127.0.0.1:9/".to_owned()),
        settings: Some(strict),
        ..Wish::default()
    })
    .await;
    let user = alone.user().await;
    let replies = futures::future::join_all((0..150).map(|_| submit(&alone, &user))).await;
    assert!(replies.iter().any(|reply| reply.status == 429), "limits hold without Redis");
    assert!(replies.iter().all(|reply| matches!(reply.status.as_u16(), 422 | 429)), "and nothing fails for want of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_of_its_address_counts_only_behind_a_trusted_proxy() {
    let guess = async |api: &Api, forwarded: String| {
        let request = api.request(Method::POST, "/lit-compute/auth/verify", None).json(&json!({}));
        Reply::of(request.header("x-forwarded-for", forwarded)).await
    };
    let direct = Api::with_settings(strict).await;
    let replies = futures::future::join_all((0..120).map(|n| guess(&direct, format!("198.51.100.{n}")))).await;
    assert!(let_in(&replies) <= 110, "another address each time is the same client");

    let behind = Api::with_settings(strict_behind_a_proxy).await;
    let replies = futures::future::join_all((0..120).map(|n| guess(&behind, format!("203.0.113.{n}")))).await;
    assert_eq!(let_in(&replies), 120, "clients of a proxy have each their own");
    let replies =
        futures::future::join_all((0..120).map(|n| guess(&behind, format!("198.51.100.{n}, 192.0.2.1")))).await;
    assert!(let_in(&replies) <= 110, "what stands before the proxy's word is made up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_open_nothing_count_against_the_address() {
    let api = Api::with_settings(strict).await;
    let tries = (0..120).map(|n| {
        let request = api.request(Method::POST, "/lit-compute/auth/logout", None).bearer_auth(format!("{n:064x}"));
        Reply::of(request)
    });
    let replies = futures::future::join_all(tries).await;
    assert!(let_in(&replies) <= 110, "whoever guesses tokens is stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_at_work_have_limits_of_their_own_and_health_has_none() {
    let api = Api::with_settings(strict).await;
    let node = api.node().await;
    let beats = (0..60).map(|_| api.post(&node, "/lit-compute/nodes/heartbeat", json!({ "leases": [] })));
    let replies = futures::future::join_all(beats).await;
    assert!(replies.iter().all(|reply| reply.status == 200), "{:?}", replies.iter().find(|reply| reply.status != 200));
    assert!(replies[0].headers["ratelimit-policy"].to_str().unwrap().contains("q=3000;w=60"));
    for _ in 0..150 {
        let live = api.get("/health/live").await;
        assert!(live.status == 200 && !live.headers.contains_key("ratelimit"));
    }
}
