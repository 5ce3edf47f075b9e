//! Sessions, shared with other applications.

use alloy::primitives::Address;
use market::db::types::{DbAddress, DbHash};
use market::redis::session::{self, Part};
use market::redis::{Client, keys::SESSION_TTL_SECS, rebuild};
use market::user::UserId;
use redis::Value;

use crate::support::{World, hash};

const USER: &str = "user_123";

fn user() -> UserId {
    USER.parse().unwrap()
}

fn wallet() -> Address {
    Address::repeat_byte(0x77)
}

async fn lives_until(world: &World, key: &str) -> i64 {
    match world.command(&["PEXPIRETIME", key]).await {
        Value::Int(at) => at,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_keeps_what_other_applications_wrote_into_it() {
    let world = World::new().await;
    let redis: &Client = &world.redis;
    assert_eq!(session::read(redis, &user()).await.unwrap(), None);
    assert!(!session::touch(redis, &user(), world.at(0)).await.unwrap(), "touching makes no session");
    assert_eq!(session::read(redis, &user()).await.unwrap(), None);

    world.command(&["HSET", "session:user_123", "nftTier", "gold", "pkpPublicKey", "0x04ab"]).await;
    session::write(redis, &user(), wallet(), world.at(0)).await.unwrap();
    session::write_part(redis, &user(), Part::SessionSigs, "sigs", world.at(0)).await.unwrap();
    let read = session::read(redis, &user()).await.unwrap().unwrap();
    assert_eq!(read.wallet_address, Some(wallet()));
    assert_eq!((read.nft_tier.as_deref(), read.pkp_public_key.as_deref()), (Some("gold"), Some("0x04ab")));
    assert_eq!(read.last_activity, Some(world.at(0)));
    assert_eq!(session::read_part(redis, &user(), Part::SessionSigs).await.unwrap().as_deref(), Some("sigs"));
    assert_eq!(session::read_part(redis, &user(), Part::Pkp).await.unwrap(), None);

    assert!(session::touch(redis, &user(), world.at(60)).await.unwrap());
    let end = world.at(60 + SESSION_TTL_SECS.cast_signed()).timestamp_millis();
    for key in ["session:user_123", "session:user_123:sessionSigs"] {
        assert_eq!(lives_until(&world, key).await, end, "{key}");
    }
    assert_eq!(session::read(redis, &user()).await.unwrap().unwrap().last_activity, Some(world.at(60)));

    session::remove(redis, &user()).await.unwrap();
    assert_eq!(session::read(redis, &user()).await.unwrap(), None);
    assert_eq!(session::read_part(redis, &user(), Part::SessionSigs).await.unwrap(), None);
}

#[tokio::test]
async fn a_session_that_another_application_wrote_badly_is_read_as_far_as_it_goes() {
    let world = World::new().await;
    world.command(&["HSET", "session:user_123", "walletAddress", "nonsense", "lastActivity", "yesterday"]).await;
    let read = session::read(&world.redis, &user()).await.unwrap().unwrap();
    assert_eq!((read.wallet_address, read.last_activity), (None, None));
}

#[tokio::test]
async fn sessions_that_have_not_expired_come_back_after_a_flush() {
    let world = World::new().await;
    for (n, user, ends) in [(1, "gone", -10), (2, USER, 100), (3, USER, 200)] {
        sqlx::query!(
            "insert into session (token_hash, user_id, wallet, created_at, expires_at) values ($1, $2, $3, $4, $5)",
            DbHash(hash(0x70, n)) as _,
            user,
            DbAddress(wallet()) as _,
            world.at(ends - 1000),
            world.at(ends)
        )
        .execute(&world.pool)
        .await
        .unwrap();
    }
    assert!(rebuild::rebuild(&world.pool, &world.redis, world.at(0)).await.unwrap());
    let read = session::read(&world.redis, &user()).await.unwrap().unwrap();
    assert_eq!((read.wallet_address, read.last_activity), (Some(wallet()), Some(world.at(-800))));
    assert_eq!(lives_until(&world, "session:user_123").await, world.at(200).timestamp_millis());
    assert_eq!(session::read(&world.redis, &"gone".parse().unwrap()).await.unwrap(), None);
}
