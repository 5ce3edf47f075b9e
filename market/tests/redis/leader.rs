//! One leader a role, and no word from the one before.

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
    let mut old = Leadership::try_acquire(&world.pool, Role::Settler, now).await.unwrap().unwrap();
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
