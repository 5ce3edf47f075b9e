//! What a deposit is bound by: promised once, and free again when what was promised is paid or void.

use std::collections::BTreeMap;

use alloy::primitives::{Address, keccak256};
use chrono::{DateTime, TimeDelta, Utc};
use littoral_api::background::close_settled;
use market::{
    ContentId,
    abi::{Order, Voucher},
    clock, db,
    fold::{EscrowAccount, EscrowChannel, EscrowJob, EscrowState, JobResult, Moment},
};

use crate::{
    signed::{SUBMIT, market, signed_by},
    support::{eventually, job_id, order},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_is_promised_once_to_the_last_unit() {
    let m = market().await;
    let first = m.order(1, 600_000);
    m.submit(&first).await.ok();
    let short = m.submit(&m.order(2, 400_001)).await;
    short.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    let figures = ["free", "reserved", "promised", "available", "required"].map(|name| short.text(name));
    assert_eq!(figures, ["1000000", "0", "600000", "400000", "400001"]);
    assert_eq!((short.text("token"), short.int("chainId")), (Address::ZERO.to_string(), 31337));
    m.submit(&m.order(3, 400_000)).await.ok();
    let short = m.submit(&m.order(4, 1)).await;
    short.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    assert_eq!(short.text("available"), "0");
    // Another token is another deposit.
    let token = Order { token: Address::repeat_byte(0x70), ..m.order(5, 1) };
    m.submit(&token).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    // What was kept is answered whatever there is by now.
    m.api.deposit(m.requester.address(), 0).await;
    assert_eq!(m.submit(&first).await.ok().text("status"), "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_orders_at_once_for_the_same_money_one_is_taken() {
    let m = market().await;
    for round in 0..5_u64 {
        m.api.deposit(m.requester.address(), 1_000_000 * (u128::from(round) + 1)).await;
        let (one, other) = (m.order(2 * round + 1, 1_000_000), m.order(2 * round + 2, 1_000_000));
        let (first, second) = tokio::join!(m.submit(&one), m.submit(&other));
        let taken = [&first, &second].iter().filter(|reply| reply.status.is_success()).count();
        assert_eq!(taken, 1, "{first:?} {second:?}");
        let refused = if first.status.is_success() { second } else { first };
        refused.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_thaws_counts_no_more_and_a_reservation_for_its_node_only() {
    let m = market().await;
    let account =
        EscrowAccount { free: 100.into(), thawing: 900.into(), thaw_end: Some(clock::now() + TimeDelta::hours(1)) };
    let key = (m.requester.address(), Address::ZERO);
    let accounts = BTreeMap::from([(key, account)]);
    db::escrow::save_accounts(&mut m.api.pool.acquire().await.unwrap(), &accounts).await.unwrap();
    m.submit(&m.order(1, 101)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    m.channel(50, 20, 0).await;
    m.submit(&m.order(2, 101)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    let node = m.node.address();
    let short = m.submit(&m.order_for(node, 1, 131)).await;
    short.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    assert_eq!((short.text("reserved"), short.text("required")), ("30".to_owned(), "101".to_owned()));
    m.submit(&m.order_for(node, 2, 130)).await.ok();
    m.submit(&m.order(3, 1)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_is_opened_after_it_was_signed_counts_once() {
    let m = market().await;
    let order = m.order(1, 600_000);
    m.submit(&order).await.ok();
    // openJob locked its price.
    m.api.open(&order, &m.spec).await;
    m.api.deposit(m.requester.address(), 400_000).await;
    m.submit(&m.order(2, 400_000)).await.ok();
    m.submit(&m.order(3, 1)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    let job = m.api.get(&format!("/lit-compute/jobs/{}", job_id(&order))).await.ok();
    assert_eq!((job.text("rail"), job.text("status")), ("opened".to_owned(), "pending".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_completed_binds_its_price_and_what_lapsed_nothing() {
    let m = market().await;
    m.submit(&m.order(1, 1_000_000)).await.ok();
    m.work(300_000).await;
    m.submit(&m.order(2, 700_001)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    let lapsing = m.order(3, 700_000);
    m.submit(&lapsing).await.ok();
    m.submit(&m.order(4, 1)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    m.api.sql("update signed_order set deadline = now() - interval '1 minute'").await;
    m.submit(&m.order(5, 700_001)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    m.submit(&m.order(6, 700_000)).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_redeemed_voucher_found_too_little_for_stays_promised() {
    let m = market().await;
    let done = m.submit(&m.order_for(m.node.address(), 1, 500)).await.ok().job_id();
    assert_eq!(m.work(500).await, done);
    let (requester, node) = (m.requester.address(), m.node.address());
    let voucher = Voucher { requester, node, token: Address::ZERO, cumulative: 500, coveredNonce: 1 };
    let mut db = m.api.pool.acquire().await.unwrap();
    db::voucher::insert(&mut db, &voucher, requester, &[1; 65], clock::now()).await.unwrap();
    // The requester had 200 when it was redeemed, and has paid 1,000 in since.
    let channel = EscrowChannel { claimed: 200.into(), covered_nonce: 1, ..EscrowChannel::default() };
    let key = (requester, node, Address::ZERO);
    db::escrow::save_channels(&mut db, &BTreeMap::from([(key, channel)])).await.unwrap();
    m.api.deposit(requester, 1_000).await;
    let short = m.submit(&m.order(2, 701)).await;
    short.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    assert_eq!((short.text("promised"), short.text("available")), ("300".to_owned(), "700".to_owned()));
    m.submit(&m.order(3, 700)).await.ok();
    let account = m.api.get(&format!("/lit-compute/accounts/{}", m.requester.name())).await.ok();
    assert_eq!(account.body["accounts"][0]["promised"], "1000");
    assert_eq!(m.status(done).await, "settling");
    // Redeemed again, it is paid and binds nothing.
    let paid = EscrowChannel { claimed: 500.into(), ..channel };
    db::escrow::save_channels(&mut db, &BTreeMap::from([(key, paid)])).await.unwrap();
    m.api.deposit(requester, 700).await;
    m.submit(&m.order(4, 1)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    let account = m.api.get(&format!("/lit-compute/accounts/{}", m.requester.name())).await.ok();
    assert_eq!(account.body["accounts"][0]["promised"], "700");
    assert_eq!(m.status(done).await, "paid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_without_money_behind_it_is_passed_over_until_there_is() {
    let m = market().await;
    let mut poor = Vec::new();
    for nonce in 1..=3 {
        poor.push(m.submit(&m.order(nonce, 300_000)).await.ok().job_id());
    }
    let rich = m.api.requester().await;
    let order = Order { nonce: 1, ..order(rich.address(), &m.spec) };
    let funded = m.api.post(&rich, SUBMIT, signed_by(&rich.signer, &order, &m.spec)).await.ok().job_id();
    m.api.deposit(m.requester.address(), 899_999).await;
    assert_eq!(m.api.claim(&m.node).await.ok().job_id(), funded);
    assert_eq!(m.api.claim(&m.node).await.status, 204);
    assert_eq!(m.status(poor[0]).await, "pending");
    let opened = m.api.open_job().await;
    assert_eq!(m.api.claim(&m.node).await.ok().job_id(), opened);
    m.api.deposit(m.requester.address(), 900_000).await;
    let lease = eventually(async || Some(m.api.claim(&m.node).await).filter(|reply| reply.status == 200)).await;
    assert_eq!(lease.job_id(), poor[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_and_payments_are_closed_once_the_chain_cannot_take_it_back() {
    let m = market().await;
    m.submit(&m.order(1, 1_000)).await.ok();
    let paid = m.work(900).await;
    let (lapsed, recent) = (m.order(2, 1_000), m.order(3, 1_000));
    m.submit(&lapsed).await.ok();
    m.submit(&recent).await.ok();
    let set = "update signed_order set deadline = now() - make_interval(mins => $2) where job_id = $1";
    for (order, minutes) in [(&lapsed, 61), (&recent, 59)] {
        let statement = sqlx::query(set).bind(job_id(order).to_vec()).bind(minutes);
        statement.execute(&m.api.pool).await.unwrap();
    }
    let when = Moment { block: 100, tx: keccak256("paid"), at: clock::now() };
    let result = JobResult {
        node: m.node.address(),
        price: 900.into(),
        token: Address::ZERO,
        result_hash: ContentId::of(b"output").digest(),
        window: None,
    };
    let job = EscrowJob {
        requester: m.requester.address(),
        opened: None,
        state: EscrowState::Paid,
        cancel_at: None,
        result: Some(result),
        dispute: None,
        resolution: None,
        closed_when: Some(when),
    };
    m.api.save_job(paid, job).await;
    let due = || async {
        let due: Option<DateTime<Utc>> =
            sqlx::query_scalar("select closed_at from payment_due").fetch_one(&m.api.pool).await.unwrap();
        due.is_some()
    };
    m.indexed(163).await;
    close_settled(m.api.app.clone()).await.unwrap();
    assert_eq!((due().await, m.is_closed(paid).await), (false, false), "63 blocks on top of it may still go");
    assert_eq!((m.is_closed(job_id(&lapsed)).await, m.is_closed(job_id(&recent)).await), (true, false));
    m.indexed(164).await;
    close_settled(m.api.app.clone()).await.unwrap();
    assert_eq!((due().await, m.is_closed(paid).await), (true, true));
    assert!(!m.is_closed(job_id(&recent)).await);
    assert_eq!(m.status(paid).await, "paid");
    assert_eq!(m.status(job_id(&lapsed)).await, "expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_that_was_redeemed_closes_what_it_paid_in_full() {
    let m = market().await;
    m.submit(&m.order(1, 1_000)).await.ok();
    let paid = m.work(900).await;
    let voucher = Voucher {
        requester: m.requester.address(),
        node: m.node.address(),
        token: Address::ZERO,
        cumulative: 900,
        coveredNonce: 1,
    };
    let mut db = m.api.pool.acquire().await.unwrap();
    db::voucher::insert(&mut db, &voucher, m.requester.address(), &[1; 65], clock::now()).await.unwrap();
    m.channel(0, 0, 1).await;
    m.indexed(1_000).await;
    let open = async || -> i64 {
        let count = sqlx::query_scalar("select count(*) from payment_due where closed_at is null");
        count.fetch_one(&m.api.pool).await.unwrap()
    };
    // The requester had too little at first; the rest came with a second redemption.
    for (number, claimed, left) in [(100_i64, "500", 1), (200, "900", 0)] {
        let hash = keccak256(number.to_be_bytes()).to_vec();
        for statement in [
            "insert into chain_block (hash, number, parent_hash, mined_at, canonical) values ($1, $2, $1, now(), true)",
            "insert into chain_event (block_hash, log_index, block_number, tx_hash, contract, kind, topics, data, canonical)
             values ($1, 0, $2, $1, substr($1, 1, 20), 'Redeemed', '', '', true)",
        ] {
            sqlx::query(statement).bind(&hash).bind(number).execute(&m.api.pool).await.unwrap();
        }
        let redemption = sqlx::query(
            "insert into chain_redemption (block_hash, log_index, position, block_number, requester, node, token, claimed,
                 covered_nonce)
             values ($1, 0, 0, $2, $3, $4, $5, $6::numeric, 1)",
        );
        let redemption = redemption.bind(&hash).bind(number).bind(voucher.requester.to_vec());
        let redemption = redemption.bind(voucher.node.to_vec()).bind(Address::ZERO.to_vec()).bind(claimed);
        redemption.execute(&m.api.pool).await.unwrap();
        close_settled(m.api.app.clone()).await.unwrap();
        assert_eq!((open().await, m.is_closed(paid).await), (left, true), "{claimed}");
    }
}
