//! Whatever branches the chain takes back, the index ends as that of the final chain.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use alloy::primitives::{Address, B256, U256};
use alloy::providers::Provider;
use alloy::providers::ext::AnvilApi;
use devnet::AnvilOptions;
use littoral_indexer::follower::{FollowError, Remedy, SETTLED_DISTANCE};
use market::abi::{IJobEscrow, Order};
use market::confirmation::{Finality, Policy};
use market::db::chain::{ApplyError, HEADERS_KEPT};
use market::db::outbox::{self, Entity, Source};
use market::db::{confirmation, escrow};
use market::fold::EscrowState;
use proptest::strategy::{Strategy, ValueTree};
use support::endpoint::{Endpoint, Faults};
use support::{ASSIGNER, COIN, Chain, ETHER, Index, NODE, OTHER_REQUESTER, REQUESTER, spec};

/// A chain with a funded requester and a staked node, and an index of it.
async fn prepared() -> (Chain, Index) {
    let chain = Chain::start().await;
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 10_000).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    (chain, index)
}

async fn state_of(index: &Index, job_id: B256) -> Option<EscrowState> {
    let mut db = index.pool.acquire().await.unwrap();
    escrow::jobs(&mut db, &[job_id]).await.unwrap().remove(&job_id).map(|job| job.state)
}

/// What the outbox says last about the job.
async fn last_word(index: &Index, job_id: B256) -> Option<String> {
    let mut db = index.pool.acquire().await.unwrap();
    let entries = outbox::next(&mut db, Source::Chain, 1000).await.unwrap();
    entries.into_iter().rfind(|entry| entry.entity == Entity::Job(job_id)).map(|entry| entry.event)
}

async fn open_one(chain: &Chain, nonce: u64) -> (Order, B256) {
    let spec = spec(&nonce.to_string());
    let order = chain.order(nonce, &spec).await;
    let job_id = chain.open(&order, &spec).await;
    (order, job_id)
}

async fn removing_open_job(depth: u64, while_down: bool) {
    let (chain, mut index) = prepared().await;
    chain.mine(3).await;
    let (_, job_id) = open_one(&chain, 1).await;
    chain.mine(depth - 1).await;
    index.catch_up().await;
    assert_eq!(state_of(&index, job_id).await, Some(EscrowState::Open));

    chain.reorg(depth).await;
    if while_down {
        chain.deposit(OTHER_REQUESTER, 5).await;
        index.restart().await;
    }
    let steps = index.catch_up().await;
    assert_eq!(steps[0].step.unwrap().reorg_depth, Some(depth));
    assert_eq!(state_of(&index, job_id).await, None, "a job that was never opened has no row");
    assert_eq!(last_word(&index, job_id).await.as_deref(), Some("job.reorged"));
    index.assert_equals_a_fresh_index(&chain).await;

    chain.deposit(REQUESTER, 77).await;
    open_one(&chain, 2).await;
    index.assert_equals_a_fresh_index(&chain).await;
}

async fn removing_a_settlement(depth: u64, while_down: bool) {
    let (chain, mut index) = prepared().await;
    let (order, job_id) = open_one(&chain, 1).await;
    chain.mine(3).await;
    chain.submit(vec![chain.result(&order, 600)]).await;
    chain.mine(depth - 1).await;
    index.catch_up().await;
    assert_eq!(state_of(&index, job_id).await, Some(EscrowState::Paid));

    chain.reorg(depth).await;
    if while_down {
        chain.mine(2).await;
        index.restart().await;
    }
    let steps = index.catch_up().await;
    assert_eq!(steps[0].step.unwrap().reorg_depth, Some(depth));
    assert_eq!(state_of(&index, job_id).await, Some(EscrowState::Open));
    index.assert_equals_a_fresh_index(&chain).await;

    // Settled again, at another price and in a batch with others.
    let (other, other_id) = open_one(&chain, 2).await;
    chain.submit(vec![chain.result(&order, 500), chain.result(&other, 1000)]).await;
    index.catch_up().await;
    for id in [job_id, other_id] {
        assert_eq!(state_of(&index, id).await, Some(EscrowState::Paid));
        assert_eq!(last_word(&index, id).await.as_deref(), Some("job.paid"));
    }
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn a_reorg_of_one_block_removes_a_job() {
    removing_open_job(1, false).await;
}

#[tokio::test]
async fn a_reorg_of_five_blocks_removes_a_job() {
    removing_open_job(5, false).await;
}

#[tokio::test]
async fn a_reorg_during_downtime_removes_a_job() {
    removing_open_job(1, true).await;
    removing_open_job(5, true).await;
}

#[tokio::test]
async fn a_reorg_of_one_block_removes_a_settlement() {
    removing_a_settlement(1, false).await;
}

#[tokio::test]
async fn a_reorg_of_five_blocks_removes_a_settlement() {
    removing_a_settlement(5, false).await;
}

#[tokio::test]
async fn a_reorg_during_downtime_removes_a_settlement() {
    removing_a_settlement(1, true).await;
    removing_a_settlement(5, true).await;
}

#[tokio::test]
async fn a_reorg_may_take_back_the_node_and_all_money() {
    let (chain, mut index) = prepared().await;
    let head = chain.provider.get_block_number().await.unwrap();
    // All but the blocks that deploy the contracts.
    chain.reorg(head - chain.deployment.deploy_block - 3).await;
    index.assert_equals_a_fresh_index(&chain).await;
    let folded =
        |line: &&String| !["chain_event", "chain_block", "chain_cursor"].iter().any(|table| line.contains(table));
    assert_eq!(index.state().await.iter().find(folded), None, "nothing but what the owners did at deployment is left");
}

#[tokio::test]
async fn a_branch_that_comes_back_counts_again() {
    let (chain, mut index) = prepared().await;
    let (_, job_id) = open_one(&chain, 1).await;
    index.catch_up().await;
    let before = index.state().await;
    let branch = chain.provider.anvil_dump_state().await.unwrap();
    chain.reorg(1).await;
    index.catch_up().await;
    assert_eq!(state_of(&index, job_id).await, None);
    // Anvil has no way back to a block that it reorganised away, but it can be given the blocks again.
    chain.provider.anvil_load_state(branch).await.unwrap();
    index.catch_up().await;
    assert_eq!(state_of(&index, job_id).await, Some(EscrowState::Open));
    assert_eq!(index.state().await, before);
}

#[tokio::test]
async fn a_node_that_lags_behind_is_no_reorg_but_another_branch_is() {
    let (chain, mut index) = prepared().await;
    chain.mine(2).await;
    let snapshot = chain.provider.anvil_snapshot().await.unwrap();
    let (_, job_id) = open_one(&chain, 1).await;
    chain.mine(4).await;
    index.catch_up().await;
    let before = index.state().await;
    let cursor = index.follower.cursor();

    assert!(chain.provider.anvil_revert(snapshot).await.unwrap());
    let progress = index.advance().await.unwrap();
    assert_eq!((progress.step, progress.cursor), (None, cursor), "behind, and on the same branch");
    assert_eq!(index.state().await, before);

    // Still shorter than what was indexed, but not part of it.
    chain.deposit(OTHER_REQUESTER, 5).await;
    index.catch_up().await;
    assert_eq!(state_of(&index, job_id).await, None);
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn old_headers_are_forgotten_and_reorgs_deeper_than_what_is_kept_refused() {
    let (chain, mut index) = prepared().await;
    let (order, job_id) = open_one(&chain, 1).await;
    chain.mine(10).await;
    // One by one, so that there are headers to be forgotten.
    for _ in 0..12 {
        chain.mine(SETTLED_DISTANCE).await;
        index.catch_up().await;
    }
    chain.submit(vec![chain.result(&order, 10)]).await;
    chain.mine(HEADERS_KEPT - 20).await;
    index.catch_up().await;
    let blocks = chain.provider.get_block_number().await.unwrap();
    let kept = headers(&index).await;
    assert!(kept < 3 * HEADERS_KEPT && kept < blocks, "{kept} headers of {blocks} blocks are kept");

    chain.reorg(HEADERS_KEPT - 10).await;
    chain.deposit(OTHER_REQUESTER, 5).await;
    index.catch_up().await;
    assert_eq!(state_of(&index, job_id).await, Some(EscrowState::Open));
    index.assert_equals_a_fresh_index(&chain).await;

    let before = index.state().await;
    chain.reorg(2 * HEADERS_KEPT).await;
    let refused = index.advance().await.unwrap_err();
    assert!(matches!(refused, FollowError::Apply(ApplyError::TooDeep { .. })), "{refused}");
    assert_eq!(refused.remedy(), Remedy::Stop);
    assert_eq!(index.state().await, before, "nothing is taken back");
}

/// A chain on which blocks are final with eight on top, with money moved in many of them.
async fn with_finality() -> Chain {
    let mut chain = Chain::start().await;
    chain.deployment.confirmation = Policy::new(Finality::Depth(8), false, vec![]).unwrap();
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 10_000).await;
    for nonce in 1..6 {
        open_one(&chain, nonce).await;
        chain.mine(7).await;
    }
    chain
}

async fn final_block(index: &Index) -> Option<u64> {
    let mut db = index.pool.acquire().await.unwrap();
    confirmation::standing(&mut db).await.unwrap().unwrap().final_block
}

#[tokio::test]
async fn a_reorg_below_what_is_final_is_not_followed_and_undoes_nothing() {
    let chain = with_finality().await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    let (before, cursor, finalized) = (index.state().await, index.follower.cursor(), final_block(&index).await);
    assert_eq!(finalized, Some(cursor.number - 8));

    chain.reorg(20).await;
    // However often it looks, on whatever the chain does then, and after a restart.
    for round in 0..4 {
        let error = index.advance().await.unwrap_err();
        let FollowError::FinalReorged { ancestor, finalized: was } = &error else { panic!("{error}") };
        // Of blocks that were read by ranges, those without events are not kept.
        assert!(was.number == cursor.number - 8 && *ancestor <= cursor.number - 20, "{error}");
        assert_eq!(error.remedy(), Remedy::Stop);
        match round {
            0 => {}
            1 => chain.mine(40).await,
            _ => index.restart().await,
        }
    }
    assert_eq!(index.state().await, before, "nothing is taken back, and nothing is applied");
    assert_eq!((index.follower.cursor(), final_block(&index).await), (cursor, finalized));

    // One that leaves what is final alone is followed.
    let chain = with_finality().await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    chain.reorg(8).await;
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn of_two_endpoints_one_that_reorgs_what_is_final_stops_nothing() {
    let mut chain = with_finality().await;
    let endpoints = Endpoint::two_before(&mut chain).await;
    for wrong in [0, 1] {
        let mut index = Index::of(&chain).await;
        index.catch_up().await;
        let head = chain.provider.get_block_number().await.unwrap();
        endpoints[wrong].set(Faults { forked_at: head - 20, ..Faults::default() });
        chain.deposit(REQUESTER, 5).await;
        let mut tries = 0;
        while index.follower.cursor().number <= head {
            if let Err(error) = index.advance().await {
                assert_eq!(error.remedy(), Remedy::Retry, "{error}");
            }
            tries += 1;
            assert!(tries < 20, "it goes on with the endpoint that still has what is final");
        }
        endpoints[wrong].set(Faults::default());
        index.assert_equals_a_fresh_index(&chain).await;
    }
}

/// Canonical headers from the cursor down.
async fn headers(index: &Index) -> u64 {
    let mut db = index.pool.acquire().await.unwrap();
    let mut number = index.follower.cursor().number;
    let mut count = 0;
    while let Some(block) = market::db::chain::canonical_at_or_below(&mut db, number).await.unwrap() {
        count += 1;
        let Some(below) = block.number.checked_sub(1) else { break };
        number = below;
    }
    count
}

#[tokio::test]
async fn settled_blocks_are_read_by_range_with_the_same_outcome() {
    let (chain, mut one_by_one) = prepared().await;
    chain.deposit(REQUESTER, 100_000).await;
    for nonce in 0..20 {
        let (order, _) = open_one(&chain, nonce).await;
        chain.mine(nonce).await;
        if nonce % 2 == 0 {
            chain.submit(vec![chain.result(&order, 1)]).await;
        }
        one_by_one.catch_up().await;
    }
    chain.mine(SETTLED_DISTANCE).await;
    one_by_one.catch_up().await;
    for range in [1, 7, 2000] {
        let mut ranged = Index::with_range(&chain, range).await;
        let steps = ranged.catch_up().await;
        assert_eq!(ranged.state().await, one_by_one.state().await, "range {range}");
        assert!(steps[0].step.unwrap().is_backfill);
        let longest = steps.iter().map(|step| step.cursor.number - step.step.unwrap().from.number).max().unwrap();
        // On a slow machine few ranges are there within the second after which what is there is applied.
        assert!(longest > 7, "short ranges come into the database together, {longest} blocks at once");
        // A reorg below what was read by range.
        chain.reorg(SETTLED_DISTANCE + 30).await;
        ranged.assert_equals_a_fresh_index(&chain).await;
        one_by_one.catch_up().await;
    }
}

#[tokio::test]
async fn another_chain_with_the_same_id_is_refused() {
    let (_chain, index) = prepared().await;
    // Two chains that begin in the same second are the same chain as far as they go.
    let begun = vec!["--timestamp".to_owned(), "1700000000".to_owned()];
    let other = Chain::start_with(AnvilOptions { args: begun, ..AnvilOptions::default() }).await;
    other.mine(30).await;
    let mut strayed = index.pointed_at(&other).await.unwrap();
    let error = strayed.advance().await.unwrap_err();
    assert!(matches!(error, FollowError::AnotherChain { number: 0, .. }), "{error}");
    assert_eq!(error.remedy(), Remedy::Stop);
}

#[tokio::test]
async fn another_deployment_is_refused() {
    let (mut chain, index) = prepared().await;
    chain.deployment.escrow = Address::repeat_byte(1);
    let error = index.pointed_at(&chain).await.unwrap_err();
    assert!(matches!(error, FollowError::WrongDeployment { .. }), "{error}");
    assert_eq!(error.remedy(), Remedy::Stop);
    assert!(error.to_string().contains(&Address::repeat_byte(1).to_string()), "{error}");
}

/// Something that happens on the chain or to the indexer.
#[derive(Debug, Clone)]
enum Incident {
    Deposit(u16),
    Open(u8),
    Submit(proptest::sample::Index),
    Wait,
    Thaw,
    Mine(u8),
    Reorg(u8),
    CatchUp,
    Restart,
}

fn incidents() -> impl Strategy<Value = Vec<Incident>> {
    use proptest::prelude::*;
    let incident = prop_oneof![
        2 => (1u16..).prop_map(Incident::Deposit),
        4 => (0u8..3).prop_map(Incident::Open),
        4 => any::<proptest::sample::Index>().prop_map(Incident::Submit),
        1 => Just(Incident::Wait),
        1 => Just(Incident::Thaw),
        2 => (1u8..5).prop_map(Incident::Mine),
        4 => (1u8..12).prop_map(Incident::Reorg),
        5 => Just(Incident::CatchUp),
        1 => Just(Incident::Restart),
    ];
    proptest::collection::vec(incident, 60)
}

/// Whatever happens. Deterministic, so that a failure can be looked into.
#[tokio::test]
async fn any_sequence_of_jobs_and_reorgs_ends_as_a_fresh_index() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..4 {
        let incidents = incidents().new_tree(&mut runner).unwrap().current();
        let (chain, mut index) = prepared().await;
        chain.mine(12).await;
        let mut orders: Vec<Order> = vec![];
        for (nonce, incident) in incidents.iter().enumerate() {
            happen(&chain, &mut index, &mut orders, u64::try_from(nonce).unwrap(), incident).await;
        }
        index.assert_equals_a_fresh_index(&chain).await;
    }
}

async fn happen(chain: &Chain, index: &mut Index, orders: &mut Vec<Order>, nonce: u64, incident: &Incident) {
    let escrow = chain.deployment.escrow;
    match incident {
        Incident::Deposit(amount) => chain.deposit(REQUESTER, u128::from(*amount)).await,
        Incident::Open(kind) => {
            let spec = spec(&nonce.to_string());
            let mut order = chain.order(nonce, &spec).await;
            order.maxPrice = 10;
            match kind {
                0 => {}
                1 => (order.node, order.assigner, order.challengeWindow) = (Address::ZERO, ASSIGNER.address(), 60),
                _ => order.deadline = chain.now().await + 30,
            }
            let free = chain.escrow().account(REQUESTER.address(), COIN).call().await.unwrap().free;
            if free >= 10 {
                chain.open(&order, &spec).await;
                orders.push(order);
            }
        }
        // Everything is tried on one order; what does not apply is skipped by the contract, which is an event too.
        Incident::Submit(which) if !orders.is_empty() => {
            let order = which.get(orders).clone();
            chain.submit(vec![chain.result(&order, 7)]).await;
            chain.finalize(vec![order.clone()]).await;
            chain.call(ASSIGNER, escrow, 0, IJobEscrow::refundExpiredCall { orders: vec![order] }).await;
        }
        Incident::Submit(_) => {}
        Incident::Wait => chain.wait(61).await,
        Incident::Thaw => {
            let free = chain.escrow().account(REQUESTER.address(), COIN).call().await.unwrap().free;
            if free > 100 {
                chain.call(REQUESTER, escrow, 0, IJobEscrow::thawCall { token: COIN, amount: U256::from(9) }).await;
            }
        }
        Incident::Mine(blocks) => chain.mine(u64::from(*blocks)).await,
        Incident::Reorg(depth) => chain.reorg(u64::from(*depth)).await,
        Incident::CatchUp => drop(index.catch_up().await),
        Incident::Restart => index.restart().await,
    }
}
