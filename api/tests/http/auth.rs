use alloy::signers::local::PrivateKeySigner;
use chrono::TimeDelta;
use devnet::{Anvil, AnvilOptions};
use market::{clock, redis, user::UserId};
use reqwest::Method;
use serde_json::json;
use sqlx::Row;

use crate::support::{Api, Reply, User, Wish};

fn user_id(user: &User) -> UserId {
    UserId::of(user.address())
}

/// An API that can ask a chain whether an address is a contract, which might take any signature.
async fn with_chain() -> (Anvil, Api) {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let wish = Wish { rpc_url: Some(anvil.rpc_url().to_owned()), ..Wish::default() };
    let api = Api::with(wish).await;
    (anvil, api)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_signs_in_is_known_and_signs_out() {
    let api = Api::start().await;
    let user = api.user().await;
    let session = || async { Reply::of(api.request(Method::GET, "/lit-compute/auth/session", Some(&user))).await };
    let known = session().await.ok();
    assert_eq!(known.text("walletAddress"), user.name());
    assert_eq!(known.text("userId"), user.name());

    let shared = redis::session::read(&api.redis, &user_id(&user)).await.unwrap().unwrap();
    assert_eq!(shared.wallet_address, Some(user.address()));

    let row = sqlx::query("select encode(token_hash, 'hex') as hash from session").fetch_one(&api.pool).await.unwrap();
    assert_ne!(row.get::<String, _>("hash"), user.token, "only the token's hash is stored");

    let out = Reply::of(api.request(Method::POST, "/lit-compute/auth/logout", Some(&user))).await;
    assert_eq!(out.status, 204);
    session().await.is_problem(401, "unauthenticated", None);
    assert_eq!(redis::session::read(&api.redis, &user_id(&user)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_out_leaves_the_users_other_sessions_alone() {
    let api = Api::start().await;
    let first = api.user().await;
    let second = api.sign_in(first.signer.clone()).await;
    Reply::of(api.request(Method::POST, "/lit-compute/auth/logout", Some(&first))).await.ok();
    Reply::of(api.request(Method::GET, "/lit-compute/auth/session", Some(&second))).await.ok();
    assert!(redis::session::read(&api.redis, &user_id(&first)).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_valid_token_nothing_opens() {
    let api = Api::start().await;
    let user = api.user().await;
    for authorization in ["", "Bearer", "Bearer ", "Bearer nonsense", &format!("Basic {}", user.token)] {
        let request = api.request(Method::GET, "/lit-compute/auth/session", None);
        let reply = Reply::of(request.header("authorization", authorization)).await;
        reply.is_problem(401, "unauthenticated", None);
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
    }
    api.sql("update session set expires_at = created_at").await;
    let late = Reply::of(api.request(Method::GET, "/lit-compute/auth/session", Some(&user))).await;
    late.is_problem(401, "unauthenticated", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_opens_one_session_however_often_it_is_sent() {
    let api = Api::start().await;
    let signer = PrivateKeySigner::random();
    let message = api.message(&signer).await.to_string();
    let replies = futures::future::join_all((0..20).map(|_| api.verify(&message, &signer))).await;
    assert_eq!(replies.iter().filter(|reply| reply.status.is_success()).count(), 1);
    for refused in replies.iter().filter(|reply| !reply.status.is_success()) {
        refused.is_problem(401, "nonce_invalid", Some("message"));
    }
    api.verify(&message, &signer).await.is_problem(401, "nonce_invalid", Some("message"));
    assert_eq!(api.written().await["session"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_not_meant_for_here_and_now_opens_nothing() {
    let (_anvil, api) = with_chain().await;
    let signer = PrivateKeySigner::random();
    let now = clock::now();
    let expired = format!("\nExpiration Time: {}", (now - TimeDelta::seconds(5)).format("%Y-%m-%dT%H:%M:%SZ"));
    let early = format!("\nNot Before: {}", (now + TimeDelta::seconds(90)).format("%Y-%m-%dT%H:%M:%SZ"));

    let mut cases = Vec::new();
    for code in ["wrong_domain", "wrong_chain", "nonce_invalid"] {
        let mut message = api.message(&signer).await;
        match code {
            "wrong_domain" => message.domain = "evil.example".to_owned(),
            "wrong_chain" => message.chain_id = 1,
            _ => message.nonce = "madeUpNonce12345".to_owned(),
        }
        cases.push((message, code));
    }
    for more in [expired, early] {
        let mut message = api.message(&signer).await;
        message.more = more;
        cases.push((message, "message_expired"));
    }
    for offset in [TimeDelta::hours(1), -TimeDelta::hours(1)] {
        let mut message = api.message(&signer).await;
        message.issued_at = now + offset;
        cases.push((message, "message_expired"));
    }
    for (message, code) in cases {
        api.verify(&message.to_string(), &signer).await.is_problem(401, code, Some("message"));
    }

    let other = api.message(&PrivateKeySigner::random()).await.to_string();
    api.verify(&other, &signer).await.is_problem(401, "bad_signature", Some("signature"));
    assert_eq!(api.written().await["session"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_a_message_or_a_signature_is_named() {
    let (_anvil, api) = with_chain().await;
    let signer = PrivateKeySigner::random();
    let message = api.message(&signer).await.to_string();
    let unchecked = message.replace(&signer.address().to_checksum(None), &signer.address().to_string().to_lowercase());
    for bad in ["", "hello", &"x".repeat(10_000), unchecked.as_str()] {
        api.verify(bad, &signer).await.is_problem(422, "invalid_field", Some("message"));
    }
    for (signature, code, status) in [("nonsense", "invalid_field", 422), ("0x00", "bad_signature", 401)] {
        let body = json!({ "message": message, "signature": signature });
        let reply = Reply::of(api.request(Method::POST, "/lit-compute/auth/verify", None).json(&body)).await;
        reply.is_problem(status, code, Some("signature"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_flush_nor_an_outage_of_redis_signs_anyone_out() {
    let api = Api::start().await;
    let user = api.user().await;
    redis::session::remove(&api.redis, &user_id(&user)).await.unwrap();
    Reply::of(api.request(Method::GET, "/lit-compute/auth/session", Some(&user))).await.ok();

    let without = Api::with(Wish { redis_url: Some("redis://127.0.0.1:9/".to_owned()), ..Wish::default() }).await;
    let user = without.user().await;
    Reply::of(without.request(Method::GET, "/lit-compute/auth/session", Some(&user))).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_sessions_and_nonces_are_forgotten() {
    let api = Api::start().await;
    api.user().await;
    api.message(&PrivateKeySigner::random()).await;
    let later = clock::now() + TimeDelta::days(2);
    let swept = market::db::session::sweep(&mut api.pool.acquire().await.unwrap(), later).await.unwrap();
    assert_eq!(swept, 2);
    assert_eq!(api.written().await["session"], 0);
}
