//! Every function of both contracts, called on a real chain: the rows are what the contracts return, and whatever a reorg
//! takes back leaves what a fresh index has.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;

use alloy::primitives::{Address, U256};
use market::Amount;
use market::abi::JobState;
use market::db::chain::all_rows;
use market::fold::{EscrowState, Rows, time_of};
use support::{COIN, Chain, ETHER, Index, NODE, REQUESTER, everything};

async fn rows_of(index: &Index) -> Rows {
    all_rows(&mut index.pool.acquire().await.unwrap()).await.unwrap()
}

async fn assert_rows_are_what_the_contracts_return(chain: &Chain, rows: &Rows) {
    let escrow = chain.escrow();
    for ((owner, token), row) in &rows.accounts {
        let it = escrow.account(*owner, *token).call().await.unwrap();
        assert_eq!((row.free, row.thawing), (Amount::from(it.free), Amount::from(it.thawing)), "{owner} {token}");
        assert_eq!(row.thaw_end, (it.thawEnd != 0).then(|| time_of(it.thawEnd)));
    }
    for ((node, token), row) in &rows.earned {
        assert_eq!(row.0, escrow.earned(*node, *token).call().await.unwrap());
    }
    for ((requester, node, token), row) in &rows.channels {
        let it = escrow.channel(*requester, *node, *token).call().await.unwrap();
        assert_eq!((row.claimed.0, row.covered_nonce), (it.claimed, it.coveredNonce), "{requester} {node} {token}");
        let it = escrow.reservation(*requester, *node, *token).call().await.unwrap();
        assert_eq!((row.reserved.0, row.thawing.0), (it.reserved, it.thawing));
        assert_eq!(row.thaw_end, (it.thawEnd != 0).then(|| time_of(it.thawEnd)));
    }
    let now = time_of(chain.now().await);
    for ((requester, key, token), row) in &rows.sessions {
        let it = escrow.session(*requester, *key, *token).call().await.unwrap();
        assert_eq!(row.expires_at, time_of(it.expiry));
        assert_eq!(if row.expires_at < now { Amount::ZERO } else { row.left }, Amount::from(it.left));
    }
    for ((node, settler), allowed) in &rows.settlers {
        assert_eq!(*allowed, escrow.isSettler(*node, *settler).call().await.unwrap());
    }
    for (token, row) in &rows.fees {
        assert_eq!(row.0, escrow.fees(*token).call().await.unwrap());
    }
    assert_jobs_are_what_the_contract_returns(chain, rows).await;
    assert_nodes_are_what_the_contract_returns(chain, rows).await;
}

async fn assert_jobs_are_what_the_contract_returns(chain: &Chain, rows: &Rows) {
    for (id, row) in &rows.jobs {
        let it = chain.escrow().job(*id).call().await.unwrap();
        let state = match it.state {
            JobState::Open => EscrowState::Open,
            JobState::Submitted => EscrowState::Submitted,
            JobState::Paid => EscrowState::Paid,
            JobState::Refunded => EscrowState::Refunded,
            JobState::Disputed => EscrowState::Disputed,
            JobState::Resolved => EscrowState::Resolved,
            _ => EscrowState::None,
        };
        assert_eq!(row.state, state, "{id}");
        let (price, bond) = (row.result.map(|r| r.price), row.dispute.map(|d| d.bond).unwrap_or_default());
        let locked = match state {
            EscrowState::Open => Amount::from(row.opened.as_ref().unwrap().order.maxPrice),
            EscrowState::Submitted => price.unwrap(),
            EscrowState::Disputed => Amount(price.unwrap().0 + bond.0),
            _ => Amount::ZERO,
        };
        assert_eq!(locked, Amount::from(it.locked), "{id}");
        if state == EscrowState::Submitted {
            let result = row.result.unwrap();
            assert_eq!((result.node, result.window.unwrap().0), (it.node, time_of(it.finalizeAt)));
        }
        if matches!(state, EscrowState::None | EscrowState::Open) {
            let at = chain.escrow().cancelAt(*id).call().await.unwrap();
            assert_eq!(row.cancel_at, (at != 0).then(|| time_of(at)));
        }
    }
}

async fn assert_nodes_are_what_the_contract_returns(chain: &Chain, rows: &Rows) {
    let (escrow, registry) = (chain.escrow(), chain.registry());
    for (node, row) in &rows.nodes {
        let it = registry.stakeOf(*node).call().await.unwrap();
        assert_eq!((row.stake, row.unbonding), (Amount::from(it.stake), Amount::from(it.unbonding)));
        assert_eq!(row.unbond_end, (it.unbonding != 0).then(|| time_of(it.unbondEnd)));
        let it = registry.recordOf(*node).call().await.unwrap();
        let record = (row.record.bonds, row.record.paid, row.record.disputed, row.record.lost);
        assert_eq!(record, (it.bonds, it.paid, it.disputed, it.lost));
        assert_eq!(row.node_id, registry.nodeIdOf(*node).call().await.unwrap());
        assert_eq!(row.payout, registry.payoutOf(*node).call().await.unwrap());
    }
    let parameters = rows.parameters.unwrap_or_default();
    assert_eq!(parameters.fee_bps, escrow.feeBps().call().await.unwrap());
    assert_eq!(parameters.escrow_paused, escrow.paused().call().await.unwrap());
    assert_eq!(parameters.registry_paused, registry.paused().call().await.unwrap());
    let min_stake = match parameters.min_stake {
        Some((amount, since)) if since <= time_of(chain.now().await) => amount,
        _ => parameters.min_stake_before.unwrap_or(chain.deployment.registry_params.min_stake),
    };
    assert_eq!(min_stake, Amount::from(registry.minStake().call().await.unwrap()));
}

/// The kinds of event in the index.
async fn kinds(index: &Index) -> BTreeSet<String> {
    let lines = index.state().await;
    let events = lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter_map(|event| event["kind"].as_str().map(str::to_owned)).collect()
}

/// What the ledger says.
async fn balance(index: &Index, account: &str) -> Vec<(Address, alloy::primitives::I256)> {
    let mut db = index.pool.acquire().await.unwrap();
    let balances = market::db::ledger::balances(&mut db).await.unwrap();
    balances.into_iter().filter(|row| row.account.name() == account).map(|row| (row.token, row.amount)).collect()
}

#[tokio::test]
async fn all_that_can_happen_is_indexed_and_undone() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    everything::happen(&chain).await;
    index.catch_up().await;
    let all = kinds(&index).await;
    assert_eq!(all.len(), 32, "every kind of event was emitted: {all:?}");
    let rows = rows_of(&index).await;
    assert_rows_are_what_the_contracts_return(&chain, &rows).await;
    let states: BTreeSet<&str> = rows.jobs.values().map(|job| job.state.name()).collect();
    assert_eq!(states.len(), 6, "jobs in all states but disputed are left: {states:?}");
    assert_eq!(balance(&index, "suspense").await, []);
    assert_eq!(balance(&index, "transit").await, []);
    index.assert_equals_a_fresh_index(&chain).await;

    // One after the other, so that what one left is undone by the next; and the market goes on after each.
    for depth in [1, 5, 40] {
        chain.reorg(depth).await;
        index.assert_equals_a_fresh_index(&chain).await;
        assert_rows_are_what_the_contracts_return(&chain, &rows_of(&index).await).await;
        chain.deposit(REQUESTER, 500).await;
        index.assert_equals_a_fresh_index(&chain).await;
    }
    let head = index.follower.cursor().number;
    chain.reorg(head - chain.deployment.deploy_block - 3).await;
    index.assert_equals_a_fresh_index(&chain).await;
    assert_eq!(balance(&index, "world").await, [], "all money went back to where it came from");
}

/// Again after everything was taken back: the same events in other blocks are other events.
#[tokio::test]
async fn what_is_done_again_after_a_reorg_counts_once() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    chain.mine(10).await;
    for _ in 0..3 {
        chain.register(NODE, ETHER).await;
        chain.deposit(REQUESTER, 900).await;
        index.catch_up().await;
        assert_eq!(balance(&index, "free").await, [(COIN, 900.try_into().unwrap())]);
        let owed = U256::from(ETHER + 900);
        let world = balance(&index, "world").await;
        assert_eq!(world, [(COIN, -alloy::primitives::I256::from_raw(owed))]);
        chain.reorg(2).await;
        index.catch_up().await;
        assert_eq!(balance(&index, "world").await, []);
    }
}
