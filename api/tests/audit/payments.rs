//! Payments that were due against those that the chain made.

use alloy::primitives::{Address, U256};
use alloy::signers::SignerSync;
use littoral_api::audit::LostReason;
use market::Amount;
use market::abi::{IJobEscrow, Order, Voucher};
use market::typed_data;

use crate::chain::{COIN, Chain, ETHER, NODE, REQUESTER, spec};
use crate::world::Books;

/// A chain on which [`REQUESTER`] has money and [`NODE`] a stake.
async fn prepared() -> Chain {
    let chain = Chain::start().await;
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    chain
}

async fn redeem(chain: &Chain, cumulative: u128, covered_nonce: u64) {
    let (requester, node) = (REQUESTER.address(), NODE.address());
    let voucher = Voucher { requester, node, token: COIN, cumulative, coveredNonce: covered_nonce };
    let digest = typed_data::voucher_digest(&voucher, &chain.deployment.domain());
    let signature = REQUESTER.signer().sign_hash_sync(&digest).unwrap();
    let mut vs = signature.s().to_be_bytes::<32>();
    vs[0] |= u8::from(signature.v()) << 7;
    let r = signature.r().to_be_bytes::<32>();
    let packed =
        [requester.as_slice(), &cumulative.to_be_bytes(), &covered_nonce.to_be_bytes(), &r[..], &vs[..]].concat();
    let call = IJobEscrow::redeemCall { node, token: COIN, vouchers: packed.into() };
    chain.call(NODE, chain.deployment.escrow, 0, call).await;
}

#[tokio::test]
async fn each_payment_is_made_once_or_can_still_be_made() {
    let chain = prepared().await;
    let mut orders: Vec<Order> = vec![];
    for nonce in 1..=5 {
        orders.push(chain.order(nonce, &spec("x")).await);
    }
    // 1 and 3 alone, then a voucher over 1 to 4 that counts them; 5 is still to be settled.
    chain.submit(vec![chain.signed(&orders[0], 700), chain.signed(&orders[2], 700)]).await;
    redeem(&chain, 4 * 700, 4).await;
    let books = Books::of(&chain).await;
    for order in &orders {
        books.completed(&chain, order, &spec("x"), 700).await;
    }
    let report = books.audited(&chain).await.unwrap();
    assert!(report.is_clean(), "{report}");
    let payments = report.payments;
    assert_eq!((payments.due, payments.paid, payments.pending, payments.not_asked), (5, 4, 1, 0));
    assert_eq!((payments.short, payments.overpaid), (vec![], vec![]));
}

#[tokio::test]
async fn a_payment_whose_time_has_passed_is_lost_and_one_made_on_both_rails_doubled() {
    let chain = prepared().await;
    let (twice, late) = (chain.order(1, &spec("twice")).await, chain.order(9, &spec("late")).await);
    chain.submit(vec![chain.signed(&twice, 700)]).await;
    // The voucher asks for the order's price on top of what was paid for it already.
    redeem(&chain, 1400, 1).await;
    chain.wait(3601).await;
    let books = Books::of(&chain).await;
    let twice = books.completed(&chain, &twice, &spec("twice"), 700).await;
    let late = books.completed(&chain, &late, &spec("late"), 300).await;
    let report = books.audited(&chain).await.unwrap();
    assert!(!report.is_clean() && report.differences.is_empty(), "{report}");
    let (lost, doubled) = (&report.payments.lost, &report.payments.doubled);
    assert_eq!((lost.len(), lost[0].job_id, lost[0].reason), (1, late, LostReason::Expired));
    assert_eq!((doubled.len(), &doubled[0].jobs[..], doubled[0].excess), (1, &[twice][..], Amount(U256::from(700))));
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!((&json["clean"], &json["payments"]["lost"][0]["reason"]), (&false.into(), &"expired".into()));
    assert_eq!(json["payments"]["doubled"][0]["excess"], "700");
}

#[tokio::test]
async fn an_opened_job_that_was_refunded_while_its_payment_was_due_is_lost() {
    let chain = prepared().await;
    let order = chain.order(1, &spec("open")).await;
    chain.open(&order, &spec("open")).await;
    let books = Books::of(&chain).await;
    books.completed(&chain, &order, &spec("open"), 700).await;
    let report = books.audited(&chain).await.unwrap();
    assert!(report.is_clean() && report.payments.pending == 1, "{report}");
    chain.wait(3601).await;
    let refund = IJobEscrow::refundExpiredCall { orders: vec![order] };
    chain.call(NODE, chain.deployment.escrow, 0, refund).await;
    books.index().await;
    let report = books.audited(&chain).await.unwrap();
    assert_eq!(report.payments.lost[0].reason, LostReason::Refunded, "{report}");
    assert_eq!(report.payments.lost[0].token, Address::ZERO);
}
