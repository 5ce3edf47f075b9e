//! Sessions that other applications wrote.

use alloy::{primitives::Address, signers::local::PrivateKeySigner};
use devnet::{Redis, RedisOptions};
use reqwest::Method;
use serde_json::json;

use super::{secret, sharing, token_of};
use crate::support::{Api, MIN_STAKE, Reply, User, Wish, eventually, order, spec, submission};
use market::user::UserId;

async fn session(api: &Api, token: &str) -> Reply {
    Reply::of(api.request(Method::GET, "/lit-compute/auth/session", None).bearer_auth(token)).await
}

/// An API on a Redis of its own, with the names of keys as they are for everyone.
async fn api_on(redis: &Redis) -> Api {
    Api::with(Wish {
        redis_url: Some(redis.url().to_owned()),
        redis_prefix: Some(String::new()),
        settings: Some(|settings| settings.session_secrets = vec![secret()]),
        ..Wish::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_written_with_redis_cli_signs_its_user_in_and_its_end_signs_out() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let api = api_on(&redis).await;
    let wallet = PrivateKeySigner::random();
    let address = wallet.address().to_checksum(None);
    let token = token_of("user_123");
    session(&api, &token).await.is_problem(401, "unauthenticated", None);

    api.redis_cli(&["HSET", "session:user_123", "walletAddress", &address, "nftTier", "gold"]).await;
    let known = session(&api, &token).await.ok();
    assert_eq!((known.text("userId"), known.text("walletAddress")), ("user_123".to_owned(), address));
    assert_eq!((known.text("nftTier"), &known.body["createdAt"]), ("gold".to_owned(), &json!(null)));

    // It is a session like any other: it lives a day from its last use, and may do what its wallet may.
    eventually(async || {
        (api.redis_cli(&["TTL", "session:user_123"]).await.parse::<i64>().unwrap() > 86_000).then_some(())
    })
    .await;
    assert!(api.redis_cli(&["HGET", "session:user_123", "lastActivity"]).await.parse::<i64>().is_ok());
    let user = User { token: token.clone(), signer: wallet };
    api.deposit(user.address(), 1_000_000).await;
    api.stake(Address::repeat_byte(0x0d), MIN_STAKE).await;
    let input = api.blob(b"input").await;
    let spec = spec(input);
    let own = submission(&order(user.address(), &spec), &spec);
    api.post(&user, "/lit-compute/jobs/submit", own).await.ok();
    let others = submission(&order(Address::repeat_byte(0xaa), &spec), &spec);
    api.post(&user, "/lit-compute/jobs/submit", others).await.is_problem(
        403,
        "wallet_mismatch",
        Some("order.requester"),
    );

    api.redis_cli(&["DEL", "session:user_123"]).await;
    session(&api, &token).await.is_problem(401, "unauthenticated", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_in_here_is_found_by_others_and_who_signs_out_is_gone_for_all() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let api = api_on(&redis).await;
    let user = api.user().await;
    let key = format!("session:{}", user.name());
    assert_eq!(api.redis_cli(&["HGET", &key, "walletAddress"]).await, user.name());
    // Another application signs the same user's requests.
    let shared = token_of(&user.name());
    assert_eq!(session(&api, &shared).await.ok().text("walletAddress"), user.name());
    let out = Reply::of(api.request(Method::POST, "/lit-compute/auth/logout", None).bearer_auth(&shared)).await;
    assert_eq!(out.status, 204);
    assert_eq!(api.redis_cli(&["EXISTS", &key]).await, "0");
    session(&api, &shared).await.is_problem(401, "unauthenticated", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_the_users_name_nor_a_forged_token_is_a_credential() {
    let api = sharing().await;
    let wallet = Address::repeat_byte(0x11);
    let user: UserId = "user_123".parse().unwrap();
    market::redis::session::write(&api.redis, &user, wallet, market::clock::now()).await.unwrap();
    session(&api, &token_of("user_123")).await.ok();
    let good = token_of("user_123");
    let (signed, _) = good.rsplit_once('.').unwrap();
    let (_, body) = signed.split_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIn0";
    let wallet = wallet.to_checksum(None);
    for token in [
        "user_123",
        &wallet,
        "session:user_123",
        &format!("{signed}."),
        signed,
        &format!("{none}.{body}."),
        &format!("{none}.{body}.{}", good.rsplit_once('.').unwrap().1),
        &good.replace('.', ". "),
        &"a.b.c".repeat(2000),
    ] {
        session(&api, token).await.is_problem(401, "unauthenticated", None);
    }
    // Without a secret no token of that kind opens anything, however it is signed.
    let closed = Api::start().await;
    market::redis::session::write(&closed.redis, &user, Address::repeat_byte(1), market::clock::now()).await.unwrap();
    session(&closed, &good).await.is_problem(401, "unauthenticated", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_names_no_wallet_or_another_user_opens_nothing() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let api = api_on(&redis).await;
    let good = Address::repeat_byte(0x22).to_checksum(None);
    let zero = Address::ZERO.to_checksum(None);
    for fields in [
        vec!["nftTier", "gold"],
        vec!["walletAddress", "0x1234..."],
        vec!["walletAddress", &zero],
        vec!["walletAddress", &good, "userId", "someone_else"],
    ] {
        let mut command = vec!["HSET", "session:u1"];
        command.extend(fields);
        api.redis_cli(&command).await;
        session(&api, &token_of("u1")).await.is_problem(401, "unauthenticated", None);
        api.redis_cli(&["DEL", "session:u1"]).await;
    }
    // A key of another type is no session, and no failure of the server's.
    api.redis_cli(&["SET", "session:u1", "hello"]).await;
    assert!(matches!(session(&api, &token_of("u1")).await.status.as_u16(), 401 | 503));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_shared_sessions_open_nothing_and_own_ones_go_on() {
    let api = Api::with(Wish {
        redis_url: Some("redis://127.0.0.1:9/".to_owned()),
        settings: Some(|settings| settings.session_secrets = vec![secret()]),
        ..Wish::default()
    })
    .await;
    let own = api.user().await;
    session(&api, &own.token).await.ok();
    let refused = session(&api, &token_of("user_123")).await;
    refused.is_problem(503, "unavailable", None);
    assert!(refused.headers.contains_key("retry-after"));
    let out = Reply::of(api.request(Method::POST, "/lit-compute/auth/logout", Some(&own))).await;
    assert_eq!(out.status, 204);
}
