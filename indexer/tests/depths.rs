//! Reorgs of a real chain, one block deep, five and forty, whenever they come: while the index is at the head, while it goes
//! over from ranges to single blocks, and while it is down. Work on jobs that are gone with them is revoked.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;

use alloy::primitives::{Address, B256};
use alloy::providers::Provider;
use chrono::TimeDelta;
use futures::StreamExt;
use littoral_indexer::follower::SETTLED_DISTANCE;
use market::abi::Order;
use market::clock;
use market::db::queue::{self, Line, Waiting};
use market::db::{escrow, work};
use market::fold::EscrowState;
use market::job::Work;
use serde_json::Value;
use support::mirror::{Mirror, fresh_keys};
use support::{Chain, ETHER, Index, NODE, OTHER_REQUESTER, REQUESTER, spec};

/// When a reorg comes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    Head,
    Handoff,
    Restart,
}

async fn is_open(index: &Index, job_id: B256) -> bool {
    let mut db = index.pool.acquire().await.unwrap();
    let job = escrow::jobs(&mut db, &[job_id]).await.unwrap().remove(&job_id);
    job.is_some_and(|job| job.state == EscrowState::Open)
}

/// Gives the job to [`NODE`], as the API does.
async fn claim(index: &Index, job_id: B256) {
    let (mut tx, now) = (index.pool.begin().await.unwrap(), clock::now());
    let before: Work = work::lock(&mut tx, job_id).await.unwrap().unwrap_or_default();
    let expires_at = now + TimeDelta::minutes(10);
    let after = before.claim(NODE.address(), now, TimeDelta::minutes(10)).unwrap();
    let line = Line { operation: "test".to_owned(), order_node: Address::ZERO, requester: Address::ZERO };
    let leases = [(Waiting { job_id, work: before, line }, after)];
    queue::lease(&mut tx, NODE.address(), &leases, expires_at, now).await.unwrap();
    tx.commit().await.unwrap();
}

async fn held(index: &Index) -> BTreeSet<B256> {
    let mut db = index.pool.acquire().await.unwrap();
    let held = work::held(&mut db, NODE.address(), clock::now()).await.unwrap();
    held.into_iter().map(|held| held.job_id).collect()
}

/// Follows the chain to block `to`, or somewhat beyond where a step leads there.
async fn follow_to(index: &mut Index, to: u64) {
    while index.follower.cursor().number < to {
        assert!(index.advance().await.unwrap().step.is_some(), "block {to} is there");
    }
}

async fn open(chain: &Chain, nonce: &mut u64) -> (B256, Order) {
    *nonce += 1;
    let spec = spec(&nonce.to_string());
    let order = chain.order(*nonce, &spec).await;
    (chain.open(&order, &spec).await, order)
}

/// Opens jobs in the last `depth` blocks of the chain, and has others opened and paid before.
async fn fill(chain: &Chain, depth: u64, nonce: &mut u64) -> Vec<B256> {
    let (_, paid) = open(chain, nonce).await;
    open(chain, nonce).await;
    chain.submit(vec![chain.result(&paid, 5)]).await;
    let mut jobs = vec![open(chain, nonce).await.0];
    if depth > 1 {
        chain.mine(depth - 2).await;
        jobs.push(open(chain, nonce).await.0);
    }
    jobs
}

async fn reorg(chain: &Chain, depth: u64, moment: Moment, nonce: &mut u64) {
    let mut index = Index::with_range(chain, 16).await;
    let mirror = Mirror::of(&index).await;
    let keys = mirror.client.keys();
    let node_id = B256::left_padding_from(NODE.address().as_slice());
    let client = redis::Client::open(mirror.redis.url()).unwrap();
    let mut commands = client.get_async_pubsub().await.unwrap();
    commands.subscribe(keys.channel_node(node_id)).await.unwrap();

    let jobs = fill(chain, depth, nonce).await;
    let head = chain.provider.get_block_number().await.unwrap();
    if moment == Moment::Handoff {
        // By ranges as far as these go, and then into what is about to be replaced.
        follow_to(&mut index, head - SETTLED_DISTANCE).await;
        follow_to(&mut index, head - depth / 2).await;
    } else {
        index.catch_up().await;
    }
    let mut claimed = BTreeSet::new();
    for job in &jobs {
        if is_open(&index, *job).await {
            claim(&index, *job).await;
            claimed.insert(*job);
        }
    }
    assert_eq!(held(&index).await, claimed, "{depth} {moment:?}");
    assert!(!claimed.is_empty(), "{depth} {moment:?}");
    // As the API does when the outbox of its own is drained.
    mirror.project(&index, &claimed).await;
    let active = keys.jobs_active(node_id);
    assert!(mirror.keys(&index).await.contains_key(&active));

    chain.reorg(depth).await;
    if moment == Moment::Restart {
        chain.deposit(OTHER_REQUESTER, 5).await;
        index.restart().await;
    }
    index.assert_equals_a_fresh_index(chain).await;
    assert_eq!(held(&index).await, BTreeSet::new(), "what is gone from the chain is nobody's work");
    let now = mirror.keys(&index).await;
    assert_eq!(now, fresh_keys(chain).await, "{depth} {moment:?}");
    assert!(!now.contains_key(&active));
    let mut revoked = BTreeSet::new();
    let mut messages = commands.on_message();
    while revoked.len() < claimed.len() {
        let message = tokio::time::timeout(std::time::Duration::from_secs(20), messages.next()).await.unwrap().unwrap();
        let message: Value = serde_json::from_str(&message.get_payload::<String>().unwrap()).unwrap();
        if message["command"] == "job.revoked" {
            revoked.insert(message["jobId"].as_str().unwrap().parse().unwrap());
        }
    }
    assert_eq!(revoked, claimed, "{depth} {moment:?}");
}

async fn at_depth(depth: u64) {
    let chain = Chain::start().await;
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    chain.mine(2 * SETTLED_DISTANCE).await;
    let mut nonce = 0;
    for moment in [Moment::Head, Moment::Handoff, Moment::Restart] {
        reorg(&chain, depth, moment, &mut nonce).await;
    }
}

#[tokio::test]
async fn one_block_is_replaced_at_the_head_at_the_handoff_and_at_a_restart() {
    at_depth(1).await;
}

#[tokio::test]
async fn five_blocks_are_replaced_at_the_head_at_the_handoff_and_at_a_restart() {
    at_depth(5).await;
}

#[tokio::test]
async fn forty_blocks_are_replaced_at_the_head_at_the_handoff_and_at_a_restart() {
    at_depth(40).await;
}
