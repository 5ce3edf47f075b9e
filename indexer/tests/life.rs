//! What the index says is what the contracts say.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use alloy::primitives::{Address, U256};
use market::Amount;
use market::abi::{IJobEscrow, INodeRegistry};
use market::db::{escrow, registry};
use market::fold::{EscrowState, time_of};
use support::{ASSIGNER, COIN, Chain, ETHER, Index, NODE, REQUESTER, spec};

/// Asserts that accounts, earnings, stakes and jobs in the index are what the contracts return.
async fn assert_agrees(chain: &Chain, index: &mut Index, orders: &[market::abi::Order]) {
    index.catch_up().await;
    let mut db = index.pool.acquire().await.unwrap();
    let requester = REQUESTER.address();

    let account = chain.escrow().account(requester, COIN).call().await.unwrap();
    let row = escrow::accounts(&mut db, &[(requester, COIN)]).await.unwrap().remove(&(requester, COIN)).unwrap_or_default();
    assert_eq!((row.free, row.thawing), (Amount::from(account.free), Amount::from(account.thawing)));
    assert_eq!(row.thaw_end, (account.thawEnd != 0).then(|| time_of(account.thawEnd)));

    let earned = chain.escrow().earned(NODE.address(), COIN).call().await.unwrap();
    let row = escrow::earned(&mut db, &[(NODE.address(), COIN)]).await.unwrap();
    assert_eq!(row.get(&(NODE.address(), COIN)).copied().unwrap_or_default(), Amount(earned));

    let stake = chain.registry().stakeOf(NODE.address()).call().await.unwrap();
    if let Some(row) = registry::nodes(&mut db, &[NODE.address()]).await.unwrap().remove(&NODE.address()) {
        assert_eq!((row.stake, row.unbonding), (Amount::from(stake.stake), Amount::from(stake.unbonding)));
        assert_eq!(row.unbond_end, (stake.unbondEnd != 0).then(|| time_of(stake.unbondEnd)));
        assert_eq!(row.node_id, chain.registry().nodeIdOf(NODE.address()).call().await.unwrap());
        assert_eq!(row.payout, chain.registry().payoutOf(NODE.address()).call().await.unwrap());
    } else {
        assert_eq!(stake.stake, 0, "no row, so not registered");
    }

    for order in orders {
        let job = chain.escrow().job(chain.job_id(order)).call().await.unwrap();
        let row = escrow::jobs(&mut db, &[chain.job_id(order)]).await.unwrap().remove(&chain.job_id(order));
        use market::abi::JobState;
        let state = match job.state {
            JobState::Open => Some(EscrowState::Open),
            JobState::Submitted => Some(EscrowState::Submitted),
            JobState::Paid => Some(EscrowState::Paid),
            JobState::Refunded => Some(EscrowState::Refunded),
            _ => None,
        };
        assert_eq!(row.as_ref().map(|row| row.state), state);
        let Some(row) = row else { continue };
        assert_eq!(row.order, *order);
        if row.state == EscrowState::Submitted {
            let result = row.result.unwrap();
            assert_eq!(result.node, job.node);
            assert_eq!(result.price, Amount::from(job.locked));
            assert_eq!(result.window.unwrap().0, time_of(job.finalizeAt));
        }
    }
}

#[tokio::test]
async fn every_kind_of_event_leaves_the_rows_that_the_contracts_return() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    let (escrow, registry) = (chain.deployment.escrow, chain.deployment.registry);
    assert_agrees(&chain, &mut index, &[]).await;

    chain.register(NODE, ETHER).await;
    chain.call(REQUESTER, registry, 5, INodeRegistry::stakeCall { node: NODE.address() }).await;
    assert_agrees(&chain, &mut index, &[]).await;
    let update = INodeRegistry::updateCall {
        publicKey: vec![8; 32].into(),
        payout: Address::repeat_byte(9),
        capacity: u32::MAX,
        operations: vec!["encrypt".to_owned()],
        uri: String::new(),
    };
    chain.call(NODE, registry, 0, update).await;
    assert_agrees(&chain, &mut index, &[]).await;

    chain.deposit(REQUESTER, 10_000).await;
    chain.call(NODE, escrow, 7, IJobEscrow::depositForCall {
        account: REQUESTER.address(),
        token: COIN,
        amount: U256::from(7),
    })
    .await;
    assert_agrees(&chain, &mut index, &[]).await;

    // Paid at once; paid after a window; refunded.
    let (one, two, three) = (spec("one"), spec("two"), spec("three"));
    let named = chain.order(1, &one).await;
    let mut open = chain.order(2, &two).await;
    (open.node, open.assigner, open.challengeWindow) = (Address::ZERO, ASSIGNER.address(), 60);
    let late = chain.order(u64::MAX, &three).await;
    chain.open(&named, &one).await;
    chain.open(&open, &two).await;
    chain.open(&late, &three).await;
    let orders = [named.clone(), open.clone(), late.clone()];
    assert_agrees(&chain, &mut index, &orders).await;

    // The second item is skipped, and so is what comes twice.
    chain.submit(vec![chain.result(&named, 900), chain.result(&named, 900), chain.result(&open, 1000)]).await;
    assert_agrees(&chain, &mut index, &orders).await;
    chain.finalize(vec![open.clone()]).await;
    chain.wait(61).await;
    chain.finalize(vec![open.clone()]).await;
    assert_agrees(&chain, &mut index, &orders).await;
    chain.wait(3600).await;
    chain.call(ASSIGNER, escrow, 0, IJobEscrow::refundExpiredCall { orders: vec![late.clone()] }).await;
    assert_agrees(&chain, &mut index, &orders).await;

    chain.call(REQUESTER, escrow, 0, IJobEscrow::thawCall { token: COIN, amount: U256::from(3000) }).await;
    chain.call(REQUESTER, escrow, 0, IJobEscrow::thawCall { token: COIN, amount: U256::from(1) }).await;
    assert_agrees(&chain, &mut index, &orders).await;
    chain.wait(31).await;
    chain.call(REQUESTER, escrow, 0, IJobEscrow::withdrawCall { token: COIN, to: REQUESTER.address() }).await;
    chain.call(NODE, escrow, 0, IJobEscrow::withdrawEarnedCall { token: COIN, to: NODE.address() }).await;
    assert_agrees(&chain, &mut index, &orders).await;

    chain.call(NODE, registry, 0, INodeRegistry::startUnbondCall { amount: U256::from(ETHER / 2) }).await;
    assert_agrees(&chain, &mut index, &orders).await;
    chain.wait(61).await;
    chain.call(NODE, registry, 0, INodeRegistry::finishUnbondCall {}).await;
    assert_agrees(&chain, &mut index, &orders).await;
    index.assert_equals_a_fresh_index(&chain).await;
}
