//! What the index says is what the contracts say.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::sol_types::{SolCall, SolValue};
use littoral_indexer::follower::Remedy;
use market::abi::{IERC20, IJobEscrow, INodeRegistry, JobState, Order};
use market::db::{escrow, registry};
use market::fold::{EscrowState, time_of};
use market::{Amount, clock};
use support::{ASSIGNER, COIN, Chain, ETHER, Index, NODE, REQUESTER, spec};

/// Asserts that accounts, earnings, stakes and jobs in the index are what the contracts return.
async fn assert_agrees(chain: &Chain, index: &mut Index, orders: &[Order]) {
    index.catch_up().await;
    let mut db = index.pool.acquire().await.unwrap();
    let requester = REQUESTER.address();

    let account = chain.escrow().account(requester, COIN).call().await.unwrap();
    let row =
        escrow::accounts(&mut db, &[(requester, COIN)]).await.unwrap().remove(&(requester, COIN)).unwrap_or_default();
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
        let state = match job.state {
            JobState::Open => Some(EscrowState::Open),
            JobState::Submitted => Some(EscrowState::Submitted),
            JobState::Paid => Some(EscrowState::Paid),
            JobState::Refunded => Some(EscrowState::Refunded),
            _ => None,
        };
        assert_eq!(row.as_ref().map(|row| row.state), state);
        let Some(row) = row else { continue };
        assert_eq!(row.opened.unwrap().order, *order);
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
    chain
        .call(
            NODE,
            escrow,
            7,
            IJobEscrow::depositForCall { account: REQUESTER.address(), token: COIN, amount: U256::from(7) },
        )
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
    chain.wait(chain.deployment.registry_params.unbonding_period + 1).await;
    chain.call(NODE, registry, 0, INodeRegistry::finishUnbondCall {}).await;
    assert_agrees(&chain, &mut index, &orders).await;
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn tokens_are_kept_apart_from_the_native_coin() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    let (escrow, token) = (chain.deployment.escrow, chain.deployment.tokens["TEST"]);
    let mint =
        [&keccak256("mint(address,uint256)")[..4], &(REQUESTER.address(), U256::from(500)).abi_encode()].concat();
    chain.send(REQUESTER, token, 0, mint.into()).await;
    let approve = IERC20::approveCall { spender: escrow, amount: U256::MAX };
    chain.call(REQUESTER, token, 0, approve).await;
    chain.call(REQUESTER, escrow, 0, IJobEscrow::depositCall { token, amount: U256::from(500) }).await;
    chain.deposit(REQUESTER, 70).await;
    let spec = spec("token");
    let mut order = chain.order(1, &spec).await;
    (order.token, order.maxPrice) = (token, 400);
    chain.open(&order, &spec).await;
    chain.submit(vec![chain.result(&order, 300)]).await;
    assert_agrees(&chain, &mut index, &[order]).await;

    let mut db = index.pool.acquire().await.unwrap();
    let (requester, node) = (REQUESTER.address(), NODE.address());
    let accounts = escrow::accounts(&mut db, &[(requester, token), (requester, COIN)]).await.unwrap();
    assert_eq!(accounts[&(requester, token)].free, Amount::from(200));
    assert_eq!(accounts[&(requester, COIN)].free, Amount::from(70));
    let earned = escrow::earned(&mut db, &[(node, token), (node, COIN)]).await.unwrap();
    assert_eq!(earned, [((node, token), Amount::from(300))].into());
}

/// `openJob` with a spec of any bytes: `string` and `bytes` are encoded alike.
fn open_job_with(order: &Order, texts: [&[u8]; 3]) -> (Order, Bytes) {
    let type_hash = keccak256("JobSpec(string inputCID,string operation,string params)");
    let [a, b, c] = texts.map(keccak256);
    let order = Order { specHash: keccak256([type_hash.0, a.0, b.0, c.0].concat()), ..order.clone() };
    let [a, b, c] = texts.map(Bytes::copy_from_slice);
    let arguments = (order.clone(), (a, b, c)).abi_encode_params();
    let call = [&IJobEscrow::openJobCall::SELECTOR[..], &arguments].concat();
    (order, call.into())
}

#[tokio::test]
async fn strings_that_are_no_text_do_not_stop_it() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    chain.deposit(REQUESTER, 100_000).await;
    let escrow_address = chain.deployment.escrow;
    let (good, long) = ("caf\u{e9} \u{FFFD} \u{1F980}".as_bytes(), vec![b'x'; 20_000]);
    let cases: [(&[u8], bool); 6] = [
        (good, true),
        (b"", true),
        (&long, true),
        (b"nul\0nul", false),
        (b"\xff\xfe", false),
        (b"cut \xf0\x9f", false),
    ];
    let mut orders = vec![];
    for (nonce, (text, valid)) in (0..).zip(cases) {
        for place in 0..3 {
            let mut texts = [&b"bafk"[..], b"encrypt", b"{}"];
            texts[place] = text;
            let base = chain.order(nonce * 3 + u64::try_from(place).unwrap(), &spec("")).await;
            let (order, call) = open_job_with(&base, texts);
            chain.send(REQUESTER, escrow_address, 0, call).await;
            orders.push((order, valid, texts[place].to_vec(), place));
        }
    }
    // A node's strings are told, not signed for: what cannot be stored is replaced.
    let operations = [Bytes::from_static(b"en\0crypt"), Bytes::from_static(b"\xff")].to_vec();
    let (key, payout) = (Bytes::from(vec![1; 32]), NODE.address());
    let arguments =
        (B256::repeat_byte(5), key, payout, 1_u32, operations, Bytes::from_static(b"\0")).abi_encode_params();
    let call = [&INodeRegistry::registerCall::SELECTOR[..], &arguments].concat();
    chain.send(NODE, chain.deployment.registry, 0, call.into()).await;

    index.catch_up().await;
    let mut db = index.pool.acquire().await.unwrap();
    for (order, valid, text, place) in &orders {
        let id = chain.job_id(order);
        let job = escrow::jobs(&mut db, &[id]).await.unwrap().remove(&id).unwrap().opened.unwrap();
        assert_eq!(job.spec_valid, *valid, "{text:?}");
        assert_eq!(job.order, *order);
        let stored = [&job.spec.inputCID, &job.spec.operation, &job.spec.params][*place];
        assert_eq!(stored.as_bytes() == text, *valid, "{stored:?}");
    }
    let node = registry::nodes(&mut db, &[NODE.address()]).await.unwrap().remove(&NODE.address()).unwrap();
    assert_eq!(node.operations, ["en\u{FFFD}crypt", "\u{FFFD}"]);
    assert_eq!(node.uri, "\u{FFFD}");
    drop(db);

    // Such jobs are paid and undone like others.
    let bad: Vec<_> = orders.iter().filter(|(_, valid, ..)| !valid).map(|(order, ..)| order.clone()).collect();
    chain.submit(bad.iter().map(|order| chain.result(order, 1)).collect()).await;
    index.catch_up().await;
    chain.reorg(3).await;
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn a_leader_that_was_replaced_writes_nothing() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    let mut deposed = index.replace().await;
    chain.deposit(REQUESTER, 5).await;
    let before = index.state().await;
    let error = deposed.advance(clock::now()).await.unwrap_err();
    assert!(error.to_string().contains("no longer leading"), "{error}");
    assert_eq!(error.remedy(), Remedy::StandBy);
    assert_eq!(index.state().await, before);
    index.assert_equals_a_fresh_index(&chain).await;
    let error = deposed.advance(clock::now()).await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::StandBy, "{error}");
}
