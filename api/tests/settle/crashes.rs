//! A settler that dies at any moment, and the one that comes after it.

use crate::rails::EAGER;
use crate::world::{World, ended};

/// Dies at `point`, starts again, and must have paid once, on all rails. `stored` says whether the first one got as far as
/// storing signed bytes.
async fn dies_at(point: &str, stored: bool) {
    let mut world = World::start_irrevocable().await;
    world.allow_settler().await;
    let jobs = world.mixed().await;
    let mut first = world.settler().args(EAGER).env("LITTORAL_ABORT_AT", point).spawn().unwrap();
    ended(&mut first).await;
    assert!(first.output().contains("aborting"), "{}", first.log_tail());
    let signed = world.signed().await;
    assert_eq!(!signed.is_empty(), stored, "nothing is signed and not stored");

    let second = world.settler().args(EAGER).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    let attempts = world.signed().await;
    assert!(attempts.starts_with(&signed), "the stored bytes were used, not replaced: {}", second.log_tail());
    let batches = world.batches().await;
    assert_eq!(batches.len(), attempts.len(), "none was signed again");
    assert!(batches.iter().all(|(state, _)| state == "mined"), "{batches:?}");
    assert_eq!(batches.iter().map(|(_, items)| items).sum::<i64>(), 7, "five results and two vouchers, each once");
    assert_eq!(world.nonce().await, u64::try_from(batches.len()).unwrap(), "no nonce is missing");
    world.wait_final().await;
}

#[tokio::test]
async fn dying_after_planning_pays_once() {
    dies_at("plan", false).await;
}

#[tokio::test]
async fn dying_with_a_nonce_taken_pays_once() {
    dies_at("nonce", false).await;
}

#[tokio::test]
async fn dying_with_bytes_signed_and_not_stored_pays_once() {
    dies_at("sign", false).await;
}

#[tokio::test]
async fn dying_before_sending_sends_the_stored_bytes() {
    dies_at("persist", true).await;
}

#[tokio::test]
async fn dying_after_sending_pays_once() {
    dies_at("send", true).await;
}

#[tokio::test]
async fn dying_when_a_batch_is_seen_mined_pays_once() {
    dies_at("receipt", true).await;
}

#[tokio::test]
async fn dying_before_a_mined_batch_is_marked_pays_once() {
    dies_at("acknowledge", true).await;
}

#[tokio::test]
async fn dying_before_a_final_batch_is_marked_pays_once() {
    dies_at("finality", true).await;
}
