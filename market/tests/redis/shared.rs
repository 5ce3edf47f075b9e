//! What instances share: locks, a cache, and what they tell other applications.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use market::db::{flag::Flag, leaderboard::Leader};
use market::redis::cache::{Cache, Life};
use market::redis::lock;
use market::redis::{Client, flag, keys::Keys, leaderboard};
use redis::Value;

use crate::support::World;

const TTL: Duration = Duration::from_secs(60);
const LIFE: Life = Life { shared: Duration::from_secs(60), local: Duration::from_secs(60) };
/// Where no Redis is.
const NOWHERE: &str = "redis://127.0.0.1:9/";

#[tokio::test]
async fn one_of_many_gets_a_lock_and_only_its_owner_gives_it_back() {
    let world = World::new().await;
    let redis = &world.redis;
    let taken = futures::future::join_all((0..20).map(|_| lock::take(redis, "payout", TTL))).await;
    let held: Vec<_> = taken.into_iter().filter_map(|taken| taken.unwrap()).collect();
    assert_eq!(held.len(), 1);
    let stranger = lock::Held { owner: "another".to_owned(), ..held[0].clone() };
    assert!(!lock::release(redis, &stranger).await.unwrap());
    assert!(!lock::renew(redis, &stranger, TTL).await.unwrap());
    assert!(lock::take(redis, "payout", TTL).await.unwrap().is_none(), "it is held on");
    assert!(lock::take(redis, "other", TTL).await.unwrap().is_some());
    assert!(lock::renew(redis, &held[0], TTL).await.unwrap());
    assert!(lock::release(redis, &held[0]).await.unwrap());
    assert!(!lock::release(redis, &held[0]).await.unwrap(), "once");
}

#[tokio::test]
async fn a_lock_that_ran_out_is_lost_and_the_next_owners_fence_is_greater_even_after_a_flush() {
    let world = World::new().await;
    let redis = &world.redis;
    let first = lock::take(redis, "payout", Duration::from_millis(50)).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(120)).await;
    let second = lock::take(redis, "payout", TTL).await.unwrap().unwrap();
    assert!(second.fence > first.fence, "{second:?} {first:?}");
    assert!(!lock::renew(redis, &first, TTL).await.unwrap() && !lock::release(redis, &first).await.unwrap());
    world.command(&["FLUSHALL"]).await;
    let third = lock::take(redis, "payout", TTL).await.unwrap().unwrap();
    assert!(third.fence > second.fence, "{third:?} {second:?}");
    // A clock that goes back takes no fence back.
    world.command(&["DEL", "lock:payout"]).await;
    let ahead = (third.fence + 1_000_000_000).to_string();
    world.command(&["SET", "lock:payout:fence", &ahead]).await;
    let fourth = lock::take(redis, "payout", TTL).await.unwrap().unwrap();
    assert_eq!(fourth.fence, third.fence + 1_000_000_001);
}

/// How often it was worked out, and the value, which is that number.
async fn get(cache: &Cache, name: &str, count: &Arc<AtomicUsize>) -> usize {
    let compute = || async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, std::convert::Infallible>(count.fetch_add(1, SeqCst) + 1)
    };
    cache.get_or_compute(name, LIFE, compute).await.unwrap()
}

#[tokio::test]
async fn a_value_is_worked_out_once_for_all_and_again_when_one_instance_says_so() {
    let world = World::new().await;
    let caches = [Cache::new(world.redis.clone()), Cache::new(world.redis.clone())];
    let followers: Vec<_> =
        caches.iter().cloned().map(|cache| tokio::spawn(async move { cache.follow().await })).collect();
    let count = Arc::new(AtomicUsize::new(0));
    let many = (0..50).map(|_| get(&caches[0], "profile", &count));
    assert!(futures::future::join_all(many).await.into_iter().all(|value| value == 1));
    assert_eq!(get(&caches[1], "profile", &count).await, 1, "another instance has it from Redis");
    assert_eq!(world.command(&["GET", "cache:profile"]).await, Value::BulkString(b"1".to_vec()));

    caches[0].invalidate("profile").await.unwrap();
    assert_eq!(get(&caches[0], "profile", &count).await, 2);
    let mut other = 0;
    for _ in 0..100 {
        other = get(&caches[1], "profile", &count).await;
        if other == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(other, 2, "the other instance has heard of it");
    for follower in followers {
        follower.abort();
    }
}

#[tokio::test]
async fn what_is_invalidated_while_it_is_worked_out_is_not_kept() {
    let world = World::new().await;
    let cache = Cache::new(world.redis.clone());
    let other = Cache::new(world.redis.clone());
    let old = cache.get_or_compute("profile", LIFE, || async {
        other.invalidate("profile").await.unwrap();
        Ok::<_, std::convert::Infallible>("old".to_owned())
    });
    assert_eq!(old.await.unwrap(), "old");
    assert_eq!(world.command(&["EXISTS", "cache:profile"]).await, Value::Int(0));
    let new = cache.get_or_compute("profile", LIFE, || async { Ok::<_, std::convert::Infallible>("new".to_owned()) });
    assert_eq!(new.await.unwrap(), "new");
}

#[tokio::test]
async fn what_others_put_in_its_place_is_worked_out_anew_and_a_failure_is_not_kept() {
    let world = World::new().await;
    let cache = Cache::new(world.redis.clone());
    for nonsense in ["", "{", "\"text\"", "[1]"] {
        world.command(&["SET", "cache:number", nonsense]).await;
        let fresh = Cache::new(world.redis.clone());
        let number = fresh.get_or_compute("number", LIFE, || async { Ok::<_, std::convert::Infallible>(7_u64) });
        assert_eq!(number.await.unwrap(), 7, "{nonsense:?}");
    }
    let failed = cache.get_or_compute("other", LIFE, || async { Err::<u64, _>("no") }).await;
    assert_eq!(failed, Err("no"));
    assert_eq!(cache.get_or_compute("other", LIFE, || async { Ok::<_, &str>(1_u64) }).await, Ok(1));
}

#[tokio::test]
async fn without_redis_each_process_caches_alone() {
    let redis = Client::open(NOWHERE, Keys::default()).unwrap();
    let cache = Cache::new(redis.clone());
    let count = Arc::new(AtomicUsize::new(0));
    for _ in 0..5 {
        assert_eq!(get(&cache, "profile", &count).await, 1);
    }
    assert!(cache.invalidate("profile").await.is_err());
    assert_eq!(get(&cache, "profile", &count).await, 2, "it has forgotten all the same");
    assert!(lock::take(&redis, "payout", TTL).await.is_err());
}

#[tokio::test]
async fn other_applications_see_who_leads_and_what_is_on() {
    let world = World::new().await;
    let leader = |n: u8, jobs| Leader {
        node: Address::repeat_byte(n),
        node_id: B256::repeat_byte(n),
        completed_jobs: jobs,
        last_completed_at: world.at(0),
    };
    leaderboard::tell(&world.redis, &[leader(1, 5), leader(2, 3)]).await.unwrap();
    leaderboard::tell(&world.redis, &[leader(2, 9), leader(3, 1)]).await.unwrap();
    let text = |value: Value| match value {
        Value::Array(all) => all
            .into_iter()
            .map(|one| match one {
                Value::BulkString(bytes) => String::from_utf8(bytes).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let ranked = text(world.command(&["ZREVRANGE", "leaderboard:nodes", "0", "-1"]).await);
    assert_eq!(ranked, [B256::repeat_byte(2).to_string(), B256::repeat_byte(3).to_string()]);
    leaderboard::tell(&world.redis, &[]).await.unwrap();
    assert_eq!(world.command(&["EXISTS", "leaderboard:nodes"]).await, Value::Int(0));

    let switch = |name: &str, enabled| Flag { name: name.to_owned(), enabled, updated_at: world.at(0) };
    flag::tell(&world.redis, &[switch("submissions", false), switch("enable_live_streaming", true)]).await.unwrap();
    let seen = text(world.command(&["MGET", "feature:submissions", "feature:enable_live_streaming"]).await);
    assert_eq!(seen, ["false", "true"]);
}
