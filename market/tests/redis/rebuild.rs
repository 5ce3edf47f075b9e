//! A flushed Redis is filled again, with exactly what was in it.

use alloy::primitives::Address;
use market::db::projection;
use market::redis::Client;
use market::redis::keys::Keys;
use market::redis::{dump, rebuild};

use crate::projection::a_bit_of_everything;
use crate::support::{World, job, node_id};

#[tokio::test]
async fn after_a_flush_a_rebuild_makes_exactly_what_was_there() {
    let world = World::new().await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap(), "an empty Redis is filled");
    assert!(!rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap(), "once");
    a_bit_of_everything(&world).await;
    let before = world.dump().await;
    assert!(before.len() > 15, "{before:?}");
    world.command(&["FLUSHALL"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap());
    assert_eq!(world.dump().await, before);
}

#[tokio::test]
async fn a_redis_of_another_database_is_cleaned_and_what_others_keep_stays() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    rebuild::rebuild(&world.pool, &world.redis, world.at(20)).await.unwrap();
    let before = world.dump().await;
    for (key, value) in [("session:bob:pkp", "1"), ("rl:x:y:z:burst:1", "2"), ("idempotency:a:b", "3")] {
        world.command(&["SET", key, value]).await;
    }
    let keys = world.redis.keys();
    world.command(&["HSET", &keys.job_status(job(99)), "status", "pending"]).await;
    world.command(&["ZADD", "jobs:pending", "1", &job(99).to_string()]).await;
    world.command(&["SADD", &keys.jobs_active(node_id(77)), &job(99).to_string()]).await;
    let mut db = world.pool.acquire().await.unwrap();
    let old = projection::generation(&mut db).await.unwrap();
    let new = projection::renew_generation(&mut db).await.unwrap();
    assert_ne!(old, new);
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap());
    assert_eq!(world.dump().await, before);
    assert_eq!(rebuild::generation(&world.redis).await.unwrap(), Some(new));
    for key in ["session:bob:pkp", "rl:x:y:z:burst:1", "idempotency:a:b"] {
        assert_ne!(world.command(&["GET", key]).await, redis::Value::Nil, "{key}");
    }
}

#[tokio::test]
async fn what_others_left_under_our_names_stops_nothing() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    world.heartbeat(1, 0).await;
    rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap();
    let keys = world.redis.keys();
    for n in 1..=2 {
        world.open(n, Address::ZERO, 3600, 0).await;
        world.claim(n, 1, 1).await;
    }
    world.drain(2).await;
    let owed = keys.payments_pending(node_id(1));
    world.command(&["RPUSH", &owed, "no JSON", r#"{"jobId":"x","amount":"1","timestamp":"soon"}"#]).await;
    world.complete(1, 1, 3).await;
    world.drain(3).await;
    let last: String = redis::from_redis_value(world.command(&["LINDEX", &owed, "-1"]).await).unwrap();
    assert!(last.contains(&job(1).to_string()), "{last}");
    world.command(&["DEL", &owed]).await;
    for key in [
        owed,
        keys.job_status(job(2)),
        keys.jobs_pending(),
        keys.jobs_active(node_id(1)),
        keys.jobs_completed(),
        keys.payments_completed(),
        keys.nodes_available(),
        keys.nodes_heartbeats(),
        keys.session("0x1"),
    ] {
        world.command(&["DEL", &key]).await;
        world.command(&["SET", &key, "not ours"]).await;
    }
    world.complete(2, 1, 4).await;
    world.heartbeat(1, 4).await;
    world.drain(4).await;
    market::redis::session::write(&world.redis, "0x1", Address::ZERO, world.at(4)).await.unwrap();
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(4)).await.unwrap(), "keys of all are filled again");
    let mended = world.dump().await;
    world.command(&["FLUSHALL"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(4)).await.unwrap());
    assert_eq!(mended, world.dump().await);
}

#[tokio::test]
async fn many_payments_come_back_in_their_order() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    // Ids ascend, times descend, so the order of ids is not that of the list.
    for n in 1..=40 {
        world.open(n, Address::ZERO, 3600, 0).await;
        world.claim(n, 1, 1).await;
        world.complete(n, 1, 100 - i64::from(n)).await;
    }
    world.drain(100).await;
    let before = world.dump().await;
    world.command(&["FLUSHALL"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(100)).await.unwrap());
    assert_eq!(world.dump().await, before);
}

#[tokio::test]
async fn a_prefix_goes_in_front_of_every_key_and_two_markets_share_a_redis() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    let plain = world.dump().await;
    let tagged = Client::open(world.server.url(), Keys::new("{m}:")).unwrap();
    rebuild::rebuild(&world.pool, &tagged, world.at(20)).await.unwrap();
    let with_prefix = dump::dump(&tagged).await.unwrap();
    assert_eq!(with_prefix, plain.iter().map(|(key, value)| (format!("{{m}}:{key}"), value.clone())).collect());
    rebuild::rebuild(&world.pool, &tagged, world.at(20)).await.unwrap();
    assert_eq!(world.dump().await, plain, "cleaning one market leaves the other alone");
}
