//! A settler that dies at any moment, and the one that comes after it.

use market::abi::IJobEscrow;

use crate::world::{Terms, World, ended};

/// Dies at `point`, starts again, and must have paid once.
async fn dies_at(point: &str) {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 3]).await;
    world.complete(&jobs).await;
    let mut first = world.settler().env("LITTORAL_ABORT_AT", point).spawn().unwrap();
    ended(&mut first).await;
    assert!(first.output().contains("aborting"), "{}", first.log_tail());
    let signed = world.signed().await;
    assert_eq!(signed.len(), usize::from(point != "plan"), "nothing is signed and not stored");

    let second = world.settler().spawn().unwrap();
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.batches().await, [("mined".to_owned(), 3)], "{}", second.log_tail());
    assert_eq!(world.nonce().await, 1);
    let mined = world.logs::<IJobEscrow::JobPaid>().await[0].transaction_hash.unwrap();
    assert_eq!(world.signed().await, [mined]);
    if point != "plan" {
        assert_eq!(signed, [mined], "the same bytes were mined");
    }
}

#[tokio::test]
async fn dying_after_planning_pays_once() {
    dies_at("plan").await;
}

#[tokio::test]
async fn dying_before_sending_sends_the_stored_bytes() {
    dies_at("persist").await;
}

#[tokio::test]
async fn dying_after_sending_pays_once() {
    dies_at("send").await;
}

#[tokio::test]
async fn dying_before_the_mined_batch_is_marked_pays_once() {
    dies_at("acknowledge").await;
}
