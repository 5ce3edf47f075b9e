use std::collections::BTreeSet;

use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::SolCall;
use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::abi::{self, IJobEscrow, Order};

const NOW: i64 = 1_800_000_000;

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(secs, 0).unwrap()
}

fn limits() -> Limits {
    Limits {
        max_items: 10,
        max_gas: 5_000_000,
        min_items: 10,
        max_wait: TimeDelta::seconds(2),
        voucher_wait: TimeDelta::seconds(60),
        max_age: TimeDelta::hours(1),
        urgent_within: TimeDelta::seconds(600),
        deadline_margin: TimeDelta::seconds(5),
        gas_price: 1,
        gas_is_dear: false,
        max_gas_share_bps: None,
        rates: std::collections::BTreeMap::new(),
    }
}

fn order(deadline: i64) -> Order {
    Order {
        requester: Address::repeat_byte(1),
        token: Address::ZERO,
        maxPrice: 1,
        node: Address::repeat_byte(2),
        assigner: Address::ZERO,
        specHash: B256::ZERO,
        deadline: u64::try_from(deadline).unwrap(),
        challengeWindow: 0,
        arbiter: Address::ZERO,
        maxFeeBps: 0,
        nonce: 0,
    }
}

fn result(job: u8, age: i64, left: i64) -> Candidate {
    let result = abi::Result {
        order: order(NOW + left),
        node: Address::repeat_byte(2),
        assignmentExpiry: 0,
        price: 1,
        resultHash: B256::ZERO,
        assignmentSignature: Bytes::new(),
        receiptSignature: Bytes::from(vec![0; 65]),
        orderSignature: Bytes::new(),
    };
    Candidate {
        subject: Subject::Job(B256::repeat_byte(job)),
        ready_at: at(NOW - age),
        ends_at: None,
        reverts: 0,
        call: Call::Submit(Box::new(result)),
    }
}

#[test]
fn payments_wait_for_each_other_but_not_for_long() {
    let young = plan(vec![result(1, 1, 9999), result(2, 0, 9999)], &limits(), at(NOW));
    assert_eq!(young.batches, []);
    assert_eq!(young.left_out.len(), 2);
    let old = plan(vec![result(1, 2, 9999), result(2, 0, 9999)], &limits(), at(NOW));
    assert_eq!(old.batches.len(), 1);
    assert_eq!(old.batches[0].job_ids(), [B256::repeat_byte(1), B256::repeat_byte(2)]);
}

#[test]
fn a_full_batch_and_an_urgent_item_do_not_wait() {
    let full = plan((0..11).map(|job| result(job, 0, 9999)).collect(), &limits(), at(NOW));
    assert_eq!(full.batches.iter().map(|batch| batch.items.len()).collect::<Vec<_>>(), [10]);
    assert_eq!(full.left_out, [(Subject::Job(B256::repeat_byte(10)), LeftOut::Waiting)]);
    let urgent = plan(vec![result(1, 0, 599)], &limits(), at(NOW));
    assert_eq!(urgent.batches.len(), 1);
}

#[test]
fn what_comes_too_late_is_left_out_with_the_reason() {
    let plan = plan(vec![result(1, 9, 4), result(2, 9, -1), result(3, 9, 5), result(4, 9, 0)], &limits(), at(NOW));
    assert_eq!(plan.batches[0].job_ids(), [B256::repeat_byte(3)]);
    assert_eq!(
        plan.left_out,
        [
            (Subject::Job(B256::repeat_byte(1)), LeftOut::DeadlineTooNear),
            (Subject::Job(B256::repeat_byte(2)), LeftOut::DeadlinePassed),
            (Subject::Job(B256::repeat_byte(4)), LeftOut::DeadlineTooNear),
        ]
    );
}

#[test]
fn an_assignment_that_ends_before_the_order_is_the_deadline() {
    let mut item = result(1, 9, 9999);
    let Call::Submit(result) = &mut item.call else { unreachable!() };
    result.order.node = Address::ZERO;
    result.assignmentExpiry = u64::try_from(NOW - 1).unwrap();
    assert_eq!(plan(vec![item.clone()], &limits(), at(NOW)).left_out, [(item.subject, LeftOut::DeadlinePassed)]);
}

#[test]
fn the_data_is_the_call_that_the_contract_takes() {
    let items = vec![result(1, 9, 9999), result(2, 9, 9999)];
    let batch = Batch { kind: Kind::Submit, items };
    let call = IJobEscrow::submitResultsCall::abi_decode(&batch.calldata()).unwrap();
    assert_eq!(
        call.results.iter().collect::<Vec<_>>(),
        batch.items.iter().filter_map(|item| item.call.as_result()).collect::<Vec<_>>()
    );
    let finalize = Candidate { call: Call::Finalize(Box::new(order(NOW)), 1), ..result(1, 9, 0) };
    let batch = Batch { kind: Kind::Finalize, items: vec![finalize] };
    assert_eq!(IJobEscrow::finalizeCall::abi_decode(&batch.calldata()).unwrap().orders, [order(NOW)]);
}

#[test]
fn what_made_batches_revert_ends_up_alone() {
    let mut poison: Vec<_> = (0..8).map(|job| result(job, 9, 9999)).collect();
    for (reverts, size) in [(1, 5), (2, 2), (3, 1), (40, 1)] {
        poison.iter_mut().for_each(|item| item.reverts = reverts);
        let plan = plan(poison.clone(), &limits(), at(NOW));
        assert_eq!(plan.batches[0].items.len(), size, "after {reverts} reverts");
        assert_eq!(plan.batches.iter().map(|batch| batch.items.len()).sum::<usize>(), 8);
    }
}

fn channel(requester: u8, node: u8) -> Channel {
    Channel { requester: Address::repeat_byte(requester), node: Address::repeat_byte(node), token: Address::ZERO }
}

fn voucher(requester: u8, node: u8, age: i64) -> Candidate {
    let mut signature = vec![0x11; 65];
    signature[64] = 28;
    let channel = channel(requester, node);
    let redemption = Redemption {
        channel,
        cumulative: 0xabcd,
        covered_nonce: 7,
        signature: signature.into(),
        by_key: true,
        settled_above: Vec::new(),
        payable: 1_000_000,
    };
    let call = Call::Redeem(Box::new(redemption));
    Candidate { subject: Subject::Channel(channel), ready_at: at(NOW - age), ends_at: None, reverts: 0, call }
}

/// A result that is paid from the channel of `requester` with node 2.
fn signed(job: u8, requester: u8, left: i64) -> Candidate {
    let mut item = result(job, 9, left);
    let Call::Submit(result) = &mut item.call else { unreachable!() };
    result.order.requester = Address::repeat_byte(requester);
    result.orderSignature = Bytes::from(vec![0; 65]);
    item
}

#[test]
fn vouchers_of_one_node_share_a_call_and_keys_go_packed() {
    let mut wallet = voucher(3, 2, 99);
    let mut ahead = voucher(4, 2, 99);
    if let Call::Redeem(redemption) = &mut wallet.call {
        redemption.by_key = false;
    }
    if let Call::Redeem(redemption) = &mut ahead.call {
        redemption.settled_above = vec![order(NOW)];
    }
    let items = vec![voucher(1, 2, 99), voucher(2, 2, 98), wallet, ahead, voucher(1, 9, 97)];
    let planned = plan(items, &limits(), at(NOW)).batches;
    assert_eq!(planned.iter().map(|batch| batch.items.len()).collect::<Vec<_>>(), [2, 2, 1]);
    for batch in &planned {
        let payee = batch.payee().unwrap();
        match IJobEscrow::redeemCall::abi_decode(&batch.calldata()) {
            Ok(call) => {
                assert_eq!((call.node, call.token), payee);
                assert_eq!(call.vouchers.len(), 108 * batch.items.len());
                assert_eq!(call.vouchers[20..36], 0xabcd_u128.to_be_bytes());
                assert_eq!(call.vouchers[36..44], 7_u64.to_be_bytes());
                assert_eq!(call.vouchers[76], 0x91, "the parity is the top bit of s");
            }
            Err(_) => {
                let call = IJobEscrow::redeemSignedCall::abi_decode(&batch.calldata()).unwrap();
                assert_eq!((call.node, call.token), payee);
                assert_eq!(call.vouchers.len(), 2);
                assert_eq!(call.vouchers.iter().map(|v| v.settledAbove.len()).sum::<usize>(), 1);
            }
        }
    }
}

#[test]
fn a_channel_is_never_paid_by_voucher_and_order_at_once() {
    let calm = plan(vec![signed(1, 1, 9999), voucher(1, 2, 99), signed(2, 3, 9999)], &limits(), at(NOW));
    assert_eq!(calm.left_out, [(Subject::Job(B256::repeat_byte(1)), LeftOut::Waiting)]);
    assert_eq!(calm.batches.len(), 2);
    let late = plan(vec![signed(1, 1, 99), voucher(1, 2, 99)], &limits(), at(NOW));
    assert_eq!(late.left_out, [(Subject::Channel(channel(1, 2)), LeftOut::Waiting)], "the order's time runs out");
    let mut pressed = voucher(1, 2, 0);
    pressed.ends_at = Some(at(NOW + 10));
    let both = plan(vec![signed(1, 1, 99), pressed], &limits(), at(NOW));
    assert_eq!(both.left_out, [(Subject::Job(B256::repeat_byte(1)), LeftOut::Waiting)]);
}

#[test]
fn vouchers_wait_for_better_ones_unless_the_funds_may_leave() {
    assert_eq!(plan(vec![voucher(1, 2, 59)], &limits(), at(NOW)).batches, []);
    assert_eq!(plan(vec![voucher(1, 2, 60)], &limits(), at(NOW)).batches.len(), 1);
    let thawing = Candidate { ends_at: Some(at(NOW + 599)), ..voucher(1, 2, 0) };
    assert_eq!(plan(vec![thawing], &limits(), at(NOW)).batches.len(), 1);
}

#[test]
fn what_gas_would_eat_waits_until_it_is_old_or_full() {
    // A voucher over 1,000,000 takes some 48,000 gas alone.
    let limits = Limits { max_gas_share_bps: Some(500), gas_price: 1, ..limits() };
    assert_eq!(plan(vec![voucher(1, 2, 99)], &limits, at(NOW)).batches.len(), 1, "48,000 of 1,000,000 is under 5 %");
    let dear = Limits { gas_price: 2, ..limits.clone() };
    assert_eq!(plan(vec![voucher(1, 2, 99)], &dear, at(NOW)).batches, []);
    assert_eq!(plan(vec![voucher(1, 2, 99), voucher(3, 2, 0)], &dear, at(NOW)).batches, [], "two take 6.6 %");
    assert_eq!(plan((1..11).map(|n| voucher(n, 2, 0)).collect(), &dear, at(NOW)).batches.len(), 1, "a full batch goes");
    assert_eq!(plan(vec![voucher(1, 2, 3600)], &dear, at(NOW)).batches.len(), 1, "an old one goes");
}

#[test]
fn what_a_token_is_worth_decides_only_where_it_is_known() {
    let token = Address::repeat_byte(0x70);
    let mut item = voucher(1, 2, 99);
    let Call::Redeem(redemption) = &mut item.call else { unreachable!() };
    redemption.channel.token = token;
    let limits = Limits { max_gas_share_bps: Some(1), gas_price: 1000, ..limits() };
    assert_eq!(limits.worth(&item.call), None);
    assert_eq!(plan(vec![item.clone()], &limits, at(NOW)).batches.len(), 1);
    let known = Limits { rates: [(token, Rate { wei: 3, units: 2 })].into(), ..limits };
    assert_eq!(known.worth(&item.call), Some(U256::from(1_500_000)));
    assert_eq!(plan(vec![item], &known, at(NOW)).batches, []);
}

#[test]
fn dear_gas_is_waited_out_as_long_as_nothing_presses() {
    let limits = Limits { gas_is_dear: true, ..limits() };
    assert_eq!(plan((0..20).map(|job| result(job, 99, 9999)).collect(), &limits, at(NOW)).batches, []);
    let urgent = plan(vec![result(1, 0, 9999), result(2, 0, 599)], &limits, at(NOW));
    assert_eq!(urgent.batches[0].items.len(), 2, "the others go along");
}

#[test]
fn what_presses_goes_first() {
    let planned = plan(vec![voucher(1, 3, 3600), signed(1, 1, 99)], &limits(), at(NOW)).batches;
    assert_eq!(planned.iter().map(|batch| batch.kind).collect::<Vec<_>>(), [Kind::Submit, Kind::Redeem]);
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let candidate = (any::<u8>(), 0i64..5, -3i64..2000, 0u32..3, any::<bool>(), 0usize..3000).prop_map(
        |(job, age, left, reverts, finalize, signature)| {
            let mut item = Candidate { reverts, ..result(job, age, left) };
            if let Call::Submit(result) = &mut item.call {
                result.receiptSignature = Bytes::from(vec![0; signature]);
            }
            if finalize {
                item.call = Call::Finalize(Box::new(item.call.order().unwrap().clone()), 1);
            }
            item
        },
    );
    proptest::collection::vec(candidate, 0..120)
}

proptest! {
    #[test]
    fn every_candidate_is_planned_once_or_left_out(candidates in candidates(), max_items in 1usize..40, max_gas in 400_000u64..3_000_000) {
        let limits = Limits { max_items, max_gas, ..limits() };
        let now = at(NOW);
        let planned = plan(candidates.clone(), &limits, now);
        let inside: Vec<_> = planned.batches.iter().flat_map(|batch| batch.items.iter().map(|item| (batch.kind, item.subject))).collect();
        prop_assert_eq!(inside.iter().collect::<BTreeSet<_>>().len(), inside.len());
        prop_assert_eq!(inside.len() + planned.left_out.len(), candidates.len());
        for batch in &planned.batches {
            prop_assert!(!batch.items.is_empty());
            prop_assert!(batch.items.len() <= max_items);
            prop_assert!(batch.gas() <= max_gas);
            prop_assert!(batch.calldata().len() <= MAX_CALLDATA_BYTES + 1000);
            for item in &batch.items {
                prop_assert_eq!(item.call.kind(), batch.kind);
                prop_assert!(item.seconds_left(now).is_none_or(|left| left >= 5));
            }
        }
        for (subject, reason) in &planned.left_out {
            if *reason == LeftOut::Waiting {
                let waits = |item: &&Candidate| item.subject == *subject && now - item.ready_at < limits.max_wait;
                prop_assert!(candidates.iter().any(|item| waits(&item)));
            }
        }
    }

    #[test]
    fn whatever_is_old_enough_is_planned(mut candidates in candidates()) {
        let mut seen = BTreeSet::new();
        candidates.retain(|item| seen.insert(item.subject));
        let now = at(NOW);
        let planned = plan(candidates.clone(), &limits(), now);
        let inside: BTreeSet<_> = planned.batches.iter().flat_map(Batch::subjects).collect();
        for item in candidates {
            if now - item.ready_at >= limits().max_wait && item.seconds_left(now).is_none_or(|left| left >= 5) {
                prop_assert!(inside.contains(&item.subject));
            }
        }
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(mut candidates in candidates(), seed: u64) {
        // Equal jobs aside: which of two candidates for one job is taken is the caller's business.
        let mut seen = BTreeSet::new();
        candidates.retain(|item| seen.insert(item.subject));
        let first = plan(candidates.clone(), &limits(), at(NOW));
        let turn = usize::try_from(seed % 97).unwrap() % candidates.len().max(1);
        candidates.rotate_left(turn);
        candidates.reverse();
        prop_assert_eq!(first.batches, plan(candidates, &limits(), at(NOW)).batches);
    }
}
