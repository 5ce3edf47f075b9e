//! One leader a role, and no word from the one before.

// What a test does to rows behind the leader's back is written as text.
#![allow(clippy::disallowed_methods)]

use market::clock;
use market::db::leader::{FenceError, Leadership, Role};

use crate::support::World;

#[tokio::test]
async fn of_two_sessions_one_leads_and_the_other_takes_over_when_it_ends() {
    let world = World::new().await;
    let now = clock::now();
    let first = Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().expect("nobody leads");
    assert!(Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().is_none());
    let other_role = Leadership::try_acquire(&world.pool, Role::Settler, now).await.unwrap();
    assert!(other_role.is_some(), "roles are led apart");
    let epoch = first.epoch();
    first.release().await.unwrap();
    let second = Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().expect("it was given back");
    assert_eq!(second.epoch(), epoch + 1);
    // Dropped without a word, as when a task panics: the connection closes and the lock with it.
    drop(second);
    let mut third = None;
    for _ in 0..100 {
        third = Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap();
        if third.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(third.expect("the lock went with its connection").epoch(), epoch + 2);
}

#[tokio::test]
async fn a_leader_that_lost_its_connection_is_refused_after_the_takeover() {
    let world = World::new().await;
    let now = clock::now();
    let old = Leadership::try_acquire(&world.pool, Role::Settler, now).await.unwrap().unwrap();
    let fence = old.fence();
    let mut db = world.pool.acquire().await.unwrap();
    fence.check(&mut db).await.expect("it leads");

    // Postgres ends the session that holds the lock, as a failing network would.
    let killed = sqlx::query_scalar!(
        r#"select count(pg_terminate_backend(pid)) as "killed!" from pg_locks
        where locktype = 'advisory' and granted and pid <> pg_backend_pid()
            and database = (select oid from pg_database where datname = current_database())"#
    )
    .fetch_one(&mut *db)
    .await
    .unwrap();
    assert_eq!(killed, 1);
    let mut new = None;
    for _ in 0..100 {
        new = Leadership::try_acquire(&world.pool, Role::Settler, now).await.unwrap();
        if new.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let new = new.expect("the lock is free");
    assert!(old.check().await.is_err(), "the old leader can find out");
    let refused = fence.check(&mut db).await;
    assert!(matches!(refused, Err(FenceError::Deposed { role: "settler", held }) if held == fence.epoch()));
    new.fence().check(&mut db).await.expect("the new one leads");
}

#[tokio::test]
async fn a_takeover_waits_for_a_transaction_that_checked_its_fence() {
    let world = World::new().await;
    let now = clock::now();
    let leader = Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().unwrap();
    let fence = leader.fence();
    let mut writing = world.pool.begin().await.unwrap();
    fence.check(&mut writing).await.unwrap();
    leader.release().await.unwrap();
    let pool = world.pool.clone();
    let takeover = tokio::spawn(async move { Leadership::try_acquire(&pool, Role::Indexer, now).await });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!takeover.is_finished(), "the epoch does not change under a write that relies on it");
    writing.commit().await.unwrap();
    let new = takeover.await.unwrap().unwrap().expect("it leads now");
    assert_eq!(new.epoch(), fence.epoch() + 1);
}

/// As if the leader had given no sign of life for longer than its lease, which must be long enough for it not to give one now.
async fn let_the_lease_run_out(world: &World) {
    let aged = sqlx::query("update leader_lease set renewed_at = clock_timestamp() - interval '1 day'");
    assert_eq!(aged.execute(&world.pool).await.unwrap().rows_affected(), 1);
}

const LONG: std::time::Duration = std::time::Duration::from_secs(60);

#[tokio::test]
async fn a_leader_without_a_sign_of_life_is_parted_from_the_database_with_its_transactions() {
    let (world, now) = (World::new().await, clock::now());
    let frozen_pool = market::db::connect(world.url(), 4).await.unwrap();
    let frozen = Leadership::try_acquire_for(&frozen_pool, Role::Indexer, LONG, now).await.unwrap().unwrap();
    let mut writing = frozen_pool.begin().await.unwrap();
    frozen.fence().check(&mut writing).await.unwrap();
    assert!(Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().is_none(), "its lease runs");
    let_the_lease_run_out(&world).await;

    let began = std::time::Instant::now();
    let new = Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().expect("it takes over");
    assert!(began.elapsed() < std::time::Duration::from_millis(900), "its transactions are not waited for");
    assert_eq!(new.epoch(), frozen.epoch() + 1);
    assert!(sqlx::query("select 1").execute(&mut *writing).await.is_err(), "what was under way is undone");
    assert!(frozen.check().await.is_err(), "the lock's session is gone");
    let mut db = frozen_pool.acquire().await.unwrap();
    assert!(matches!(frozen.fence().check(&mut db).await, Err(FenceError::Deposed { .. })));
    new.check().await.expect("the new one leads");
}

#[tokio::test]
async fn a_process_id_that_another_session_was_given_is_not_ended() {
    let (world, now) = (World::new().await, clock::now());
    let leader_pool = market::db::connect(world.url(), 4).await.unwrap();
    let leader = Leadership::try_acquire_for(&leader_pool, Role::Indexer, LONG, now).await.unwrap().unwrap();
    let_the_lease_run_out(&world).await;
    sqlx::query("update leader_lease set backend_start = backend_start - interval '1 second', session = 'gone'")
        .execute(&world.pool)
        .await
        .unwrap();
    assert!(Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().is_none());
    leader.check().await.expect("nobody touched its session");
}

#[tokio::test]
async fn a_leader_learns_by_itself_that_it_was_replaced() {
    let (world, now) = (World::new().await, clock::now());
    let old_pool = market::db::connect(world.url(), 4).await.unwrap();
    let lease = std::time::Duration::from_millis(600);
    let old = Leadership::try_acquire_for(&old_pool, Role::Indexer, lease, now).await.unwrap().unwrap();
    tokio::time::sleep(lease * 3).await;
    assert!(Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().is_none(), "it renews its lease");
    sqlx::query("update leader_lease set epoch = epoch + 1").execute(&world.pool).await.unwrap();
    let lost = tokio::time::timeout(lease * 3, old.lost()).await.expect("it is told");
    assert!(lost.to_string().contains("epoch 1 was overtaken"), "{lost}");
}

#[tokio::test]
async fn a_forgotten_transaction_does_not_keep_the_lead_from_passing_on() {
    let (world, now) = (World::new().await, clock::now());
    let leader = Leadership::try_acquire(&world.pool, Role::Indexer, now).await.unwrap().unwrap();
    let mut forgotten = world.pool.begin().await.unwrap();
    leader.fence().check(&mut forgotten).await.unwrap();
    let epoch = leader.epoch();
    leader.release().await.unwrap();
    let acquiring = Leadership::try_acquire(&world.pool, Role::Indexer, now);
    let new = tokio::time::timeout(std::time::Duration::from_secs(3), acquiring).await.expect("it does not hang");
    assert_eq!(new.unwrap().expect("the lock is free").epoch(), epoch + 1);
    assert!(sqlx::query("select 1").execute(&mut *forgotten).await.is_err());
}
