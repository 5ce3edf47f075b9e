//! The same call under the same key, however it is sent.

use alloy::primitives::{Address, B256};
use market::{clock, db::idempotency as db};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Api, MIN_STAKE, Reply, User, order, spec, submission};

const SUBMIT: &str = "/lit-compute/jobs/submit";

async fn submit(api: &Api, user: &User, key: &str, body: &Value) -> Reply {
    Reply::of(api.request(Method::POST, SUBMIT, Some(user)).header("idempotency-key", key).json(body)).await
}

/// An order that `user` may announce, different each time, and a node that could do it.
async fn announcement(api: &Api, user: &User) -> Value {
    api.stake(Address::repeat_byte(0x0d), MIN_STAKE).await;
    let spec = spec(api.blob(b"input").await);
    submission(&order(user.address(), &spec), &spec)
}

async fn submissions(api: &Api) -> i64 {
    sqlx::query_scalar("select count(*) from job_submission").fetch_one(&api.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_answered_the_same_again_and_another_under_its_key_is_refused() {
    let api = Api::start().await;
    let user = api.requester().await;
    let (body, other) = (announcement(&api, &user).await, announcement(&api, &user).await);
    let first = submit(&api, &user, "order-1", &body).await.ok();
    assert!(!first.headers.contains_key("idempotent-replayed"));
    let again = submit(&api, &user, "\"order-1\"", &body).await.ok();
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!((again.status, again.body), (first.status, first.body.clone()));
    submit(&api, &user, "order-1", &other).await.is_problem(422, "idempotency_mismatch", Some("Idempotency-Key"));
    assert_eq!(submissions(&api).await, 1);

    let key = format!("{}idempotency:submit:{}:order-1", api.redis.keys().prefix(), user.name());
    let told: Value = serde_json::from_str(&api.redis_cli(&["GET", &key]).await).unwrap();
    assert_eq!((&told["status"], &told["body"]), (&json!(200), &first.body));
    // Whatever becomes of Redis.
    assert_eq!(api.redis_cli(&["DEL", &key]).await, "1");
    submit(&api, &user, "order-1", &other).await.is_problem(422, "idempotency_mismatch", Some("Idempotency-Key"));
    assert_eq!(submit(&api, &user, "order-1", &body).await.ok().headers["idempotent-replayed"], "true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_happens() {
    let api = Api::start().await;
    let user = api.requester().await;
    let body = announcement(&api, &user).await;
    let replies = futures::future::join_all((0..20).map(|_| submit(&api, &user, "k", &body))).await;
    let fresh = |reply: &&Reply| reply.status == 200 && !reply.headers.contains_key("idempotent-replayed");
    assert_eq!(replies.iter().filter(fresh).count(), 1);
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        reply.is_problem(409, "idempotency_in_flight", Some("Idempotency-Key"));
        assert_eq!(reply.headers["retry-after"], "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_its_users_own() {
    let api = Api::start().await;
    let (one, other) = (api.requester().await, api.requester().await);
    let (ones, others) = (announcement(&api, &one).await, announcement(&api, &other).await);
    let first = submit(&api, &one, "k", &ones).await.ok();
    let second = submit(&api, &other, "k", &others).await.ok();
    assert_ne!(first.body, second.body);
    // What another was answered is not told, whatever the body.
    let peek = submit(&api, &other, "k", &ones).await;
    peek.is_problem(422, "idempotency_mismatch", Some("Idempotency-Key"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_can_be_tried_again_and_odd_keys_are_named() {
    let api = Api::start().await;
    let user = api.user().await;
    let body = announcement(&api, &user).await;
    submit(&api, &user, "k", &body).await.is_problem(402, "price_above_deposit", Some("order.maxPrice"));
    api.deposit(user.address(), 1_000_000).await;
    submit(&api, &user, "k", &body).await.ok();
    for bad in ["", "a b", "a:b", "*", &"x".repeat(200)] {
        submit(&api, &user, bad, &body).await.is_problem(422, "invalid_parameter", Some("Idempotency-Key"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_process_died_can_be_made_again_but_no_other_under_its_key() {
    let api = Api::start().await;
    let user = api.requester().await;
    let (body, other) = (announcement(&api, &user).await, announcement(&api, &user).await);
    submit(&api, &user, "k", &body).await.ok();
    // As a process leaves it that dies after the call has happened.
    api.sql("update idempotency set status = null, body = null").await;
    submit(&api, &user, "k", &body).await.is_problem(409, "idempotency_in_flight", Some("Idempotency-Key"));
    api.sql("update idempotency set locked_until = now() - interval '1 second'").await;
    submit(&api, &user, "k", &other).await.is_problem(422, "idempotency_mismatch", Some("Idempotency-Key"));
    submit(&api, &user, "k", &body).await.ok();
    assert_eq!(submissions(&api).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lost_the_key_cannot_say_how_the_call_ended_and_a_day_later_it_is_free() {
    let api = Api::start().await;
    let now = clock::now();
    let call = db::Call {
        user_id: "u".parse().unwrap(),
        operation: "submit",
        key: "k".to_owned(),
        request_hash: B256::repeat_byte(1),
    };
    let mut connection = api.pool.acquire().await.unwrap();
    let (soon, later) = (now + chrono::TimeDelta::seconds(1), now + chrono::TimeDelta::days(1));
    let db::Begun::Ours(slow) = db::begin(&mut connection, &call, now, soon, later).await.unwrap() else {
        panic!("the key is not free")
    };
    let db::Begun::Ours(next) = db::begin(&mut connection, &call, soon, later, later).await.unwrap() else {
        panic!("the key is held for ever")
    };
    let answer = |status| db::Answer { status, body: b"{}".to_vec() };
    assert!(!db::finish(&mut connection, &call, slow, &answer(201)).await.unwrap());
    db::release(&mut connection, &call, slow).await.unwrap();
    assert!(db::finish(&mut connection, &call, next, &answer(200)).await.unwrap());
    let found = db::begin(&mut connection, &call, soon, later, later).await.unwrap();
    assert_eq!(found, db::Begun::Answered(answer(200)));
    let other = db::Call { request_hash: B256::repeat_byte(2), ..call };
    assert_eq!(db::begin(&mut connection, &other, soon, later, later).await.unwrap(), db::Begun::Mismatch);
    assert!(matches!(db::begin(&mut connection, &other, later, later, later).await.unwrap(), db::Begun::Ours(_)));
    assert_eq!(db::sweep(&mut connection, later).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_leaves_no_call_half_done() {
    let api = Api::start().await;
    let user = api.requester().await;
    let body = announcement(&api, &user).await;
    // The call waits for this lock when its client leaves.
    let mut lock = api.pool.begin().await.unwrap();
    sqlx::query("lock table job_submission in access exclusive mode").execute(&mut *lock).await.unwrap();
    let hasty = api.request(Method::POST, SUBMIT, Some(&user)).header("idempotency-key", "k").json(&body);
    hasty.timeout(std::time::Duration::from_secs(3)).send().await.unwrap_err();
    submit(&api, &user, "k", &body).await.is_problem(409, "idempotency_in_flight", Some("Idempotency-Key"));
    lock.commit().await.unwrap();
    let replayed = crate::support::eventually(async || {
        let reply = submit(&api, &user, "k", &body).await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert_eq!(replayed.headers["idempotent-replayed"], "true");
    assert_eq!(submissions(&api).await, 1);
}
