use market::fold::{JobResult, Resolution, time_of};

use super::*;

const NOW: u64 = 1_800_000_000;
const NODE: Address = Address::repeat_byte(2);
const REQUESTER: Address = Address::repeat_byte(1);
const COIN: Address = Address::ZERO;

fn id(n: u8) -> B256 {
    B256::repeat_byte(n)
}

/// A payment of 10 for a signed order with nonce `n`, or for an opened one, whose deadline is not over.
fn due(n: u8, rail: Rail) -> Due {
    let deadline = time_of(NOW + 60);
    let order = DueOrder { requester: REQUESTER, rail, nonce: n.into(), deadline, has_voucher: false };
    Due { job_id: id(n), node: NODE, token: COIN, amount: Amount::from(10), order: Some(order), hold: None }
}

fn after_deadline(mut due: Due) -> Due {
    due.order.as_mut().unwrap().deadline = time_of(NOW - 1);
    due
}

/// A job as the chain tells of one that was not opened.
fn job(state: EscrowState, price: u128) -> EscrowJob {
    let result = JobResult { node: NODE, price: price.into(), token: COIN, result_hash: B256::ZERO, window: None };
    EscrowJob {
        requester: REQUESTER,
        opened: None,
        state,
        cancel_at: None,
        result: Some(result),
        dispute: None,
        resolution: None,
        closed_when: None,
    }
}

fn rows(jobs: impl IntoIterator<Item = (u8, EscrowJob)>, claimed: u128, covered_nonce: u64) -> Rows {
    let mut rows = Rows::default();
    rows.jobs.extend(jobs.into_iter().map(|(n, job)| (id(n), job)));
    let channel = EscrowChannel { claimed: claimed.into(), covered_nonce, ..EscrowChannel::default() };
    rows.channels.insert((REQUESTER, NODE, COIN), channel);
    rows
}

fn examined(dues: &[Due], rows: &Rows) -> Payments {
    examine(dues, rows, time_of(NOW))
}

#[test]
fn what_vouchers_and_orders_paid_once_each_is_clean() {
    let dues: Vec<Due> = (1..=5).map(|n| due(n, Rail::Signed)).collect();
    // 2 alone and covered by a voucher that counts it, 4 alone above the voucher, 5 not yet.
    let rows = rows([(2, job(EscrowState::Paid, 10)), (4, job(EscrowState::Paid, 10))], 40, 3);
    let payments = examined(&dues, &rows);
    assert!(payments.is_clean(), "{payments}");
    assert_eq!((payments.due, payments.paid, payments.pending, payments.not_asked), (5, 4, 1, 0));
    assert_eq!((payments.short, payments.overpaid), (vec![], vec![]));
}

#[test]
fn an_order_that_a_voucher_pays_again_is_doubled() {
    let dues = [due(1, Rail::Signed), due(2, Rail::Signed)];
    let paid_alone = [(2, job(EscrowState::Paid, 10))];
    let payments = examined(&dues, &rows(paid_alone, 30, 2));
    assert!(!payments.is_clean());
    let doubled = &payments.doubled[0];
    assert_eq!((doubled.excess, &doubled.jobs[..]), (Amount::from(10), &[id(2)][..]));
    assert!(payments.to_string().contains("Doubled"), "{payments}");
}

#[test]
fn more_than_was_due_is_a_tip_where_no_order_was_settled_alone() {
    let payments = examined(&[due(1, Rail::Signed)], &rows([], 13, 1));
    assert!(payments.is_clean());
    assert_eq!((payments.paid, payments.overpaid[0].excess), (1, Amount::from(3)));
}

#[test]
fn a_voucher_that_found_too_little_leaves_the_channel_short_and_nothing_lost() {
    let dues = [after_deadline(due(1, Rail::Signed)), after_deadline(due(2, Rail::Signed))];
    let payments = examined(&dues, &rows([], 15, 2));
    assert!(payments.is_clean());
    assert_eq!((payments.paid, payments.pending, payments.short[0].missing), (1, 1, Amount::from(5)));
}

#[test]
fn an_order_whose_time_is_over_is_lost_unless_there_is_a_voucher_or_a_result_waits() {
    let mut with_voucher = after_deadline(due(2, Rail::Signed));
    with_voucher.order.as_mut().unwrap().has_voucher = true;
    let mut held = after_deadline(due(1, Rail::Signed));
    held.hold = Some("InsufficientFunds".to_owned());
    let waiting = after_deadline(due(3, Rail::Signed));
    let payments = examined(&[held, with_voucher, waiting], &rows([(3, job(EscrowState::Submitted, 10))], 0, 0));
    assert_eq!((payments.pending, payments.lost.len()), (2, 1));
    let lost = &payments.lost[0];
    assert_eq!(
        (lost.job_id, lost.reason, lost.hold.as_deref()),
        (id(1), LostReason::Expired, Some("InsufficientFunds"))
    );
}

#[test]
fn what_was_refunded_cancelled_or_taken_back_is_lost_with_its_reason() {
    let mut cancelled = job(EscrowState::None, 10);
    cancelled.cancel_at = Some(time_of(NOW));
    let mut unknown = due(3, Rail::Opened);
    unknown.order = None;
    let dues = [due(1, Rail::Opened), due(2, Rail::Signed), unknown];
    let rows = rows([(1, job(EscrowState::Refunded, 10)), (2, cancelled)], 0, 0);
    let reasons: Vec<LostReason> = examined(&dues, &rows).lost.iter().map(|lost| lost.reason).collect();
    assert_eq!(reasons, [LostReason::Refunded, LostReason::Cancelled, LostReason::NoOrder]);
}

#[test]
fn another_price_or_node_than_was_due_is_told_but_not_what_an_arbiter_decided() {
    let mut resolved = job(EscrowState::Resolved, 10);
    resolved.resolution = Some(Resolution { paid: Amount::from(4), slashed: Amount::ZERO, compensation: Amount::ZERO });
    let dues = [due(1, Rail::Signed), due(2, Rail::Signed)];
    let rows = rows([(1, job(EscrowState::Paid, 9)), (2, resolved), (7, job(EscrowState::Paid, 1))], 14, 0);
    let payments = examined(&dues, &rows);
    assert_eq!((payments.paid, payments.not_asked, payments.unexpected.len()), (1, 1, 1));
    assert_eq!(payments.unexpected[0].paid, (NODE, Amount::from(9)));
    assert_eq!(payments.overpaid, []);
}
