//! Two indexers, of which the leader dies, freezes or is cut off: the other one leads within five seconds, and the first changes
//! nothing when it comes back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use devnet::{Postgres, Process};
use market::db;
use market::db::leader::{Role, holder};
use sqlx::PgPool;
use support::process::{SOON, Stores, assert_equals_a_fresh_index, caught_up};
use support::{Chain, OTHER_REQUESTER, REQUESTER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// In which a standby is to lead.
const LIMIT: Duration = Duration::from_secs(5);

fn signal(process: &Process, signal: &str) {
    let pid = process.pid().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

/// The epoch that moved the cursor last.
async fn epoch(pool: &PgPool) -> i64 {
    let mut db = pool.acquire().await.unwrap();
    db::chain::cursor(&mut db).await.unwrap().map_or(0, |cursor| cursor.epoch)
}

/// Waits until a leader after `before` leads, then until it has moved the cursor. How long the first took since `since`.
async fn taken_over(what: &str, pool: &PgPool, before: i64, since: Instant) -> Duration {
    let mut took = None;
    while since.elapsed() < Duration::from_secs(60) {
        // Postgres itself may be gone for a while.
        if let Ok(mut db) = pool.acquire().await
            && let Ok(Some(leader)) = holder(&mut db, Role::Indexer).await
            && leader.epoch > before
        {
            let took = *took.get_or_insert_with(|| since.elapsed());
            if let Ok(Some(cursor)) = db::chain::cursor(&mut db).await
                && cursor.epoch > before
            {
                println!("{what}: taken over after {took:?}, a block applied after {:?}", since.elapsed());
                return took;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: nobody took over from epoch {before}");
}

/// Two indexers, the leader first; both know of each other.
async fn pair(stores: &Stores, chain: &Chain, pool: &PgPool) -> [Process; 2] {
    let first = stores.indexer_of("first", chain);
    caught_up(pool, chain).await;
    let mut second = stores.indexer_of("second", chain);
    second.wait_until(SOON, async |process| process.output().contains("standing by")).await.unwrap();
    [first, second]
}

#[tokio::test]
async fn a_leader_that_is_killed_is_replaced() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let [mut leader, _standby] = pair(&stores, &chain, &pool).await;
    let before = epoch(&pool).await;
    let since = Instant::now();
    leader.kill();
    chain.deposit(REQUESTER, 100).await;
    let took = taken_over("killed", &pool, before, since).await;
    assert!(took < LIMIT, "{took:?}");
    assert_equals_a_fresh_index(&pool, &chain).await;
}

#[tokio::test]
async fn a_leader_that_is_frozen_is_replaced_and_changes_nothing_when_it_thaws() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let mut indexers = pair(&stores, &chain, &pool).await;
    for round in 0..4 {
        let (leader, standby) = (round % 2, 1 - round % 2);
        let before = epoch(&pool).await;
        // In the midst of work.
        let working = async {
            for _ in 0..20 {
                chain.deposit(OTHER_REQUESTER, 5).await;
            }
        };
        let freezing = async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            signal(&indexers[leader], "-STOP");
            Instant::now()
        };
        let ((), since) = tokio::join!(working, freezing);
        chain.deposit(REQUESTER, 100).await;
        let took = taken_over("frozen", &pool, before, since).await;
        assert!(took < LIMIT, "{took:?}");
        caught_up(&pool, &chain).await;
        let after = epoch(&pool).await;

        let stepped_back = |process: &Process| process.output().matches("back to standby").count();
        let had = stepped_back(&indexers[leader]);
        signal(&indexers[leader], "-CONT");
        indexers[leader].wait_until(SOON, async |process| stepped_back(process) > had).await.unwrap();
        chain.reorg(2).await;
        chain.deposit(REQUESTER, 1).await;
        caught_up(&pool, &chain).await;
        assert_eq!(epoch(&pool).await, after, "the other one still leads");
        assert!(indexers[standby].is_running() && indexers[leader].is_running());
    }
    assert_equals_a_fresh_index(&pool, &chain).await;
    for mut indexer in indexers {
        assert!(indexer.stop(), "ends when asked to");
        let log = indexer.output();
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
}

#[tokio::test]
async fn a_leader_that_is_cut_off_from_postgres_is_replaced_and_comes_back_as_standby() {
    let (chain, mut stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let wire = Wire::to(&stores.url).await;
    let direct = std::mem::replace(&mut stores.url, wire.url.clone());
    let mut leader = stores.indexer_of("cut-off", &chain);
    caught_up(&pool, &chain).await;
    stores.url = direct;
    let mut standby = stores.indexer_of("near", &chain);
    standby.wait_until(SOON, async |process| process.output().contains("standing by")).await.unwrap();

    let before = epoch(&pool).await;
    let since = Instant::now();
    wire.cut(true);
    chain.deposit(REQUESTER, 100).await;
    let took = taken_over("cut off", &pool, before, since).await;
    assert!(took < LIMIT, "{took:?}");
    leader.wait_until(SOON, async |process| process.output().contains("back to standby")).await.unwrap();
    wire.cut(false);
    leader.wait_until(SOON, async |process| process.output().contains("standing by")).await.unwrap();
    chain.deposit(REQUESTER, 100).await;
    caught_up(&pool, &chain).await;
    assert_eq!(epoch(&pool).await, before + 1);
    assert_equals_a_fresh_index(&pool, &chain).await;
}

#[tokio::test]
async fn after_a_restart_of_postgres_there_is_a_leader_at_once() {
    let (chain, mut stores) = (Chain::start().await, Stores::start().await);
    let dir = devnet::paths::scratch_dir("takeover-postgres").unwrap();
    let port = devnet::ports::free_port().unwrap();
    let mut postgres = Postgres::start(dir.path(), Some(port)).await.unwrap();
    stores.url = postgres.create_database("restarting").await.unwrap().to_string();
    let pool = stores.pool().await;
    let _indexers = pair(&stores, &chain, &pool).await;
    let before = epoch(&pool).await;
    postgres.process().kill();
    drop(postgres);
    chain.deposit(REQUESTER, 100).await;
    // Long enough for pauses to have become as long as they get.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _postgres = Postgres::start(dir.path(), Some(port)).await.unwrap();
    let took = taken_over("restart of Postgres", &pool, before, Instant::now()).await;
    assert!(took < LIMIT, "{took:?}");
    caught_up(&pool, &chain).await;
    assert_equals_a_fresh_index(&pool, &chain).await;
}

/// A network between a process and Postgres that can stop carrying anything without closing a connection.
struct Wire {
    url: String,
    is_cut: Arc<watch::Sender<bool>>,
}

impl Wire {
    async fn to(database_url: &str) -> Self {
        let mut url: url::Url = database_url.parse().unwrap();
        let target = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let is_cut = Arc::new(watch::Sender::new(false));
        let state = Arc::clone(&is_cut);
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&target).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(carry(near_in, far_out, state.subscribe()));
                tokio::spawn(carry(far_in, near_out, state.subscribe()));
            }
        });
        Self { url: url.to_string(), is_cut }
    }

    fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut is_cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if is_cut.wait_for(|is_cut| !is_cut).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
