use std::collections::BTreeSet;

use alloy::primitives::{Address, Bytes};
use proptest::prelude::*;

use super::*;

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
        urgent_within: TimeDelta::seconds(600),
        deadline_margin: TimeDelta::seconds(5),
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
        job_id: B256::repeat_byte(job),
        ready_at: at(NOW - age),
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
    assert_eq!(full.left_out, [(B256::repeat_byte(10), LeftOut::Waiting)]);
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
            (B256::repeat_byte(1), LeftOut::DeadlineTooNear),
            (B256::repeat_byte(2), LeftOut::DeadlinePassed),
            (B256::repeat_byte(4), LeftOut::DeadlineTooNear),
        ]
    );
}

#[test]
fn an_assignment_that_ends_before_the_order_is_the_deadline() {
    let mut item = result(1, 9, 9999);
    let Call::Submit(result) = &mut item.call else { unreachable!() };
    result.order.node = Address::ZERO;
    result.assignmentExpiry = u64::try_from(NOW - 1).unwrap();
    assert_eq!(plan(vec![item.clone()], &limits(), at(NOW)).left_out, [(item.job_id, LeftOut::DeadlinePassed)]);
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
    let finalize = Candidate { call: Call::Finalize(Box::new(order(NOW))), ..result(1, 9, 0) };
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

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let candidate = (any::<u8>(), 0i64..5, -3i64..2000, 0u32..3, any::<bool>(), 0usize..3000).prop_map(
        |(job, age, left, reverts, finalize, signature)| {
            let mut item = Candidate { reverts, ..result(job, age, left) };
            if let Call::Submit(result) = &mut item.call {
                result.receiptSignature = Bytes::from(vec![0; signature]);
            }
            if finalize {
                item.call = Call::Finalize(Box::new(item.call.order().clone()));
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
        let inside: Vec<_> = planned.batches.iter().flat_map(|batch| batch.items.iter().map(|item| (batch.kind, item.job_id))).collect();
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
        for (job_id, reason) in &planned.left_out {
            if *reason == LeftOut::Waiting {
                let waits = |item: &&Candidate| item.job_id == *job_id && now - item.ready_at < limits.max_wait;
                prop_assert!(candidates.iter().any(|item| waits(&item)));
            }
        }
    }

    #[test]
    fn whatever_is_old_enough_is_planned(mut candidates in candidates()) {
        let mut seen = BTreeSet::new();
        candidates.retain(|item| seen.insert(item.job_id));
        let now = at(NOW);
        let planned = plan(candidates.clone(), &limits(), now);
        let inside: BTreeSet<_> = planned.batches.iter().flat_map(Batch::job_ids).collect();
        for item in candidates {
            if now - item.ready_at >= limits().max_wait && item.seconds_left(now).is_none_or(|left| left >= 5) {
                prop_assert!(inside.contains(&item.job_id));
            }
        }
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(mut candidates in candidates(), seed: u64) {
        // Equal jobs aside: which of two candidates for one job is taken is the caller's business.
        let mut seen = BTreeSet::new();
        candidates.retain(|item| seen.insert(item.job_id));
        let first = plan(candidates.clone(), &limits(), at(NOW));
        let turn = usize::try_from(seed % 97).unwrap() % candidates.len().max(1);
        candidates.rotate_left(turn);
        candidates.reverse();
        prop_assert_eq!(first.batches, plan(candidates, &limits(), at(NOW)).batches);
    }
}
