//! Reorgs of a real chain, one block deep, five and forty, whenever they come: while the index is at the head, when it has just
//! gone over from ranges to single blocks, and while it is down. Work on jobs that are gone with them is revoked. And reorgs of
//! blocks that are being read by ranges.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use alloy::providers::Provider;
use chrono::TimeDelta;
use futures::StreamExt;
use littoral_indexer::follower::{Progress, Remedy, SETTLED_DISTANCE};
use market::abi::Order;
use market::clock;
use market::confirmation::{Finality, Policy, Step};
use market::db::queue::{self, Line, Waiting};
use market::db::{escrow, work};
use market::fold::EscrowState;
use market::job::Work;
use serde_json::Value;
use support::endpoint::{Endpoint, Faults};
use support::mirror::{Mirror, fresh_keys};
use support::{COIN, Chain, ETHER, Index, NODE, OTHER_REQUESTER, REQUESTER, spec};

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

async fn open(chain: &Chain, nonce: &mut u64) -> (B256, Order) {
    *nonce += 1;
    let spec = spec(&nonce.to_string());
    let order = chain.order(*nonce, &spec).await;
    (chain.open(&order, &spec).await, order)
}

/// Has jobs opened and paid, and then opens one in a block that is to be replaced.
async fn fill(chain: &Chain, nonce: &mut u64) -> B256 {
    let (_, paid) = open(chain, nonce).await;
    open(chain, nonce).await;
    chain.submit(vec![chain.result(&paid, 5)]).await;
    open(chain, nonce).await.0
}

/// Mines what is left of the last `depth` blocks of the chain, of which the first is there; a job is opened in the last.
async fn fill_up(chain: &Chain, depth: u64, nonce: &mut u64) -> Option<B256> {
    let left = depth.checked_sub(2)?;
    chain.mine(left).await;
    Some(open(chain, nonce).await.0)
}

async fn reorg(chain: &Chain, depth: u64, moment: Moment, nonce: &mut u64) {
    let mut index = Index::with_range(chain, 16).await;
    let mirror = Mirror::of(&index).await;
    let keys = mirror.client.keys();
    let node_id = B256::left_padding_from(NODE.address().as_slice());
    let client = redis::Client::open(mirror.redis.url()).unwrap();
    let mut commands = client.get_async_pubsub().await.unwrap();
    commands.subscribe(keys.channel_node(node_id)).await.unwrap();

    let mut jobs = vec![fill(chain, nonce).await];
    if moment == Moment::Handoff {
        // By ranges as far as blocks are final, and then, linked, into what is about to be replaced, of which not all is there.
        let steps = index.catch_up().await;
        let by_range = |step: &&Progress| step.step.unwrap().is_backfill;
        let (ranges, linked) =
            (steps.iter().filter(by_range).count(), steps.iter().filter(|step| !by_range(step)).count());
        assert!(ranges > 0 && linked > 0, "{depth}: {ranges} steps by range, {linked} of linked blocks");
        jobs.extend(fill_up(chain, depth, nonce).await);
        let (head, cursor) = (chain.provider.get_block_number().await.unwrap(), index.follower.cursor().number);
        assert!(
            cursor > head - depth && (cursor < head || depth == 1),
            "{cursor} is in the last {depth} of {head} blocks"
        );
    } else {
        jobs.extend(fill_up(chain, depth, nonce).await);
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

/// A chain on which blocks are final with 64 on top, and jobs are queued at once.
async fn funded() -> Chain {
    let mut chain = Chain::start().await;
    let at_once = Step { token: COIN, up_to: u128::MAX.into(), depth: 0 };
    chain.deployment.confirmation = Policy::new(Finality::Depth(SETTLED_DISTANCE), false, vec![at_once]).unwrap();
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    chain
}

async fn at_depth(depth: u64) {
    let chain = funded().await;
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

/// Blocks that are read by ranges are final, unless nobody trusts the chain: then any of them may be replaced while they are read.
#[tokio::test]
async fn blocks_are_replaced_while_they_are_read_by_ranges() {
    let mut chain = Chain::start().await;
    assert!(chain.deployment.confirmation.follows_reorgs_below_final());
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    let mut nonce = 0;
    for _ in 0..30 {
        open(&chain, &mut nonce).await;
        chain.mine(5).await;
    }
    let endpoint = Endpoint::before(&mut chain).await;
    for depth in [1, 5, 40, 120] {
        endpoint.set(Faults { delay: Duration::from_millis(50), ..Faults::default() });
        let mut index = Index::with_range(&chain, 4).await;
        let first = loop {
            // On a slow machine nothing may have come yet.
            if let Some(step) = index.advance().await.unwrap().step {
                break step;
            }
        };
        let (head, cursor) = (chain.provider.get_block_number().await.unwrap(), index.follower.cursor().number);
        assert!(first.is_backfill && cursor < head, "{cursor} of {head} blocks, {first:?}");
        chain.reorg(depth).await;
        chain.deposit(OTHER_REQUESTER, 5).await;
        endpoint.set(Faults::default());
        loop {
            match index.advance().await {
                Ok(progress) if progress.step.is_none() && progress.cursor.number > head => break,
                Ok(_) => {}
                Err(error) => assert_eq!(error.remedy(), Remedy::Retry, "{error}"),
            }
        }
        index.assert_equals_a_fresh_index(&chain).await;
        // For the next ones there are as many blocks with jobs again.
        for _ in 0..depth.div_ceil(6) {
            open(&chain, &mut nonce).await;
            chain.mine(5).await;
        }
    }
}
