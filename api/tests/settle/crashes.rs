//! A settler that dies at any moment, and the one that comes after it.

use alloy::primitives::B256;

use crate::proxy::{Faults, Held, Proxy};
use crate::rails::EAGER;
use crate::world::{Job, World, ended};

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
    recovers(world, &jobs, &signed).await;
}

/// Dies by `kill -9` while a transaction is on its way: it has left the settler, and no answer has come.
async fn dies_while_sending(held: Held) {
    let mut world = World::start_irrevocable().await;
    world.allow_settler().await;
    let jobs = world.mixed().await;
    let faults = Faults { hold_send: Some(held), ..Faults::default() };
    let proxy = Proxy::start(world.anvil.rpc_url(), faults).await;
    let direct = world.anvil.rpc_url().to_owned();
    world.speak_through(proxy.url());
    let mut first = world.settler().args(EAGER).spawn().unwrap();
    world.wait("a transaction is on its way", async |_| proxy.held() > 0).await;
    first.kill();
    let signed = world.signed().await;
    assert_eq!(signed.len(), 1, "it was waiting for the answer: {}", first.log_tail());
    assert_eq!(world.nonce().await, u64::from(held == Held::AfterNode));
    world.speak_through(direct);
    recovers(world, &jobs, &signed).await;
}

/// The next settler pays everything once, with the bytes that are stored.
async fn recovers(mut world: World, jobs: &[Job], signed: &[B256]) {
    let second = world.settler().args(EAGER).spawn().unwrap();
    world.wait_done(jobs).await;
    world.assert_exactly_once(jobs).await;
    let attempts = world.signed().await;
    assert!(attempts.starts_with(signed), "the stored bytes were used, not replaced: {}", second.log_tail());
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
async fn dying_while_the_call_that_sends_is_under_way_pays_once() {
    dies_at("send", true).await;
}

#[tokio::test]
async fn dying_with_a_transaction_on_its_way_that_never_arrives_pays_once() {
    dies_while_sending(Held::BeforeNode).await;
}

#[tokio::test]
async fn dying_with_a_transaction_taken_and_the_answer_on_its_way_pays_once() {
    dies_while_sending(Held::AfterNode).await;
}

#[tokio::test]
async fn dying_when_the_node_has_acknowledged_a_transaction_pays_once() {
    dies_at("acknowledge", true).await;
}

#[tokio::test]
async fn dying_when_a_batch_is_seen_mined_pays_once() {
    dies_at("receipt", true).await;
}

#[tokio::test]
async fn dying_before_a_mined_batch_is_marked_pays_once() {
    dies_at("ending", true).await;
}

#[tokio::test]
async fn dying_before_a_final_batch_is_marked_pays_once() {
    dies_at("finality", true).await;
}
