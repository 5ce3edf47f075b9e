//! A settler whose node, or what stands before it, drops, delays, duplicates and lies.

use std::time::Duration;

use alloy::network::TransactionBuilder;
use alloy::providers::Provider;
use alloy::providers::ext::AnvilApi;
use alloy::rpc::types::TransactionRequest;
use alloy::rpc::types::anvil::ReorgOptions;

use crate::proxy::{Faults, Proxy};
use crate::rails::EAGER;
use crate::world::{REQUESTERS, SETTLER, Terms, World};

/// A world whose settlers speak through a proxy with `faults`, and work of all kinds.
async fn behind(faults: Faults) -> (World, Proxy, Vec<crate::world::Job>) {
    let mut world = World::start().await;
    world.allow_settler().await;
    let jobs = world.mixed().await;
    let proxy = Proxy::start(world.anvil.rpc_url(), Faults::default()).await;
    world.speak_through(proxy.url());
    proxy.set(faults);
    (world, proxy, jobs)
}

/// Pays everything once in spite of `faults`, without a transaction too many.
async fn pays_in_spite_of(faults: Faults) {
    let (mut world, proxy, jobs) = behind(faults).await;
    // The chain's id and code are checked at the start.
    let mut settler = world.settler().args(EAGER).args(["--max-batch", "2", "--rpc-timeout", "1"]).spawn().unwrap();
    while !settler.output().contains("leading") {
        if !settler.is_running() {
            settler = world.settler().args(EAGER).args(["--max-batch", "2", "--rpc-timeout", "1"]).spawn().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    let again = world.mixed_again(&jobs).await;
    let all = [jobs, again].concat();
    world.wait_done(&all).await;
    world.assert_exactly_once(&all).await;
    let batches = world.batches().await;
    assert_eq!(world.nonce().await, u64::try_from(batches.len()).unwrap(), "{batches:?}\n{}", settler.log_tail());
    assert!(batches.iter().all(|(state, _)| state == "mined"), "{batches:?}\n{}", settler.log_tail());
    assert!(proxy.broken() > 0, "the proxy did its worst");
}

#[tokio::test]
async fn requests_and_answers_that_get_lost_cost_nothing() {
    pays_in_spite_of(Faults { drop_request: 5, drop_answer: 4, ..Faults::default() }).await;
}

#[tokio::test]
async fn answers_that_come_late_or_after_we_gave_up_cost_nothing() {
    let delay_by = Duration::from_millis(1500);
    pays_in_spite_of(Faults { delay: 4, delay_by, duplicate: 2, ..Faults::default() }).await;
}

#[tokio::test]
async fn an_error_after_a_transaction_was_taken_does_not_pay_twice() {
    pays_in_spite_of(Faults { error_after_send: 1, hide_transaction: 2, ..Faults::default() }).await;
}

#[tokio::test]
async fn a_stale_count_of_transactions_does_not_pay_twice() {
    let (mut world, _proxy, jobs) = behind(Faults { stale_count: 3, ..Faults::default() }).await;
    let settler = world.settler().args(EAGER).args(["--max-batch", "1"]).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    let more = world.mixed_again(&jobs).await;
    let all = [jobs, more].concat();
    world.wait_done(&all).await;
    world.assert_exactly_once(&all).await;
    let batches = world.batches().await;
    assert_eq!(world.nonce().await, u64::try_from(batches.len()).unwrap());
    assert!(batches.iter().all(|(state, _)| state == "mined"), "{batches:?}");
    assert!(settler.output().contains("stale"), "{}", settler.log_tail());
    assert!(!settler.output().contains("reorg has undone"), "{}", settler.log_tail());
}

#[tokio::test]
async fn receipts_that_are_missing_orphaned_or_wrong_are_not_believed() {
    pays_in_spite_of(Faults { hide_receipt: 3, orphan_receipt: 2, failed_receipt: 1, ..Faults::default() }).await;
}

#[tokio::test]
async fn a_receipt_that_vanishes_with_a_reorg_takes_no_payment_with_it() {
    let (mut world, _proxy, jobs) =
        behind(Faults { hide_receipt: 2, drop_answer: 6, stale_count: 1, ..Faults::default() }).await;
    world.mine(6).await;
    world.caught_up().await;
    let settler = world.settler().args(EAGER).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.provider.anvil_reorg(ReorgOptions { depth: 5, tx_block_pairs: Vec::new() }).await.unwrap();
    world.wait("it is taken up again", async |_| settler.output().contains("a reorg has undone")).await;
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
}

#[tokio::test]
async fn replacements_offer_enough_for_a_node_that_asks_ten_percent() {
    let (mut world, proxy, jobs) = behind(Faults { enforce_replacement: true, ..Faults::default() }).await;
    world.provider.anvil_set_auto_mine(false).await.unwrap();
    let settler = world.settler().args(EAGER).args(["--bump-after", "0.5"]).spawn().unwrap();
    world.wait("it is replaced twice", async |_| settler.output().matches("replaced with").count() >= 2).await;
    world.provider.anvil_set_auto_mine(true).await.unwrap();
    world.mine(1).await;
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(proxy.refused(), 0, "{}", settler.log_tail());
}

#[tokio::test]
async fn transactions_that_a_node_swallows_are_sent_again_as_they_were() {
    let (mut world, proxy, jobs) = behind(Faults { swallow: true, ..Faults::default() }).await;
    let settler = world.settler().args(EAGER).spawn().unwrap();
    world.wait("both are sent", async |_| settler.output().matches("again=false").count() >= 2).await;
    let signed = world.signed().await;
    proxy.set(Faults::default());
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert!(world.signed().await.starts_with(&signed), "{}", settler.log_tail());
    assert_eq!(world.nonce().await, u64::try_from(world.signed().await.len()).unwrap());
}

/// While `faults` last, nothing but what `while_lied_to` waits for happens; when they end, everything is paid once, and nothing was ever
/// on hold.
async fn pays_after_the_lie(faults: Faults, while_lied_to: impl AsyncFn(&World, &str) -> bool) {
    let (mut world, proxy, jobs) = behind(faults).await;
    let settler = world.settler().args(EAGER).spawn().unwrap();
    world.wait("the lie is acted upon", async |world| while_lied_to(world, &settler.output()).await).await;
    assert_eq!(world.settle(&["holds"]), "", "{}", settler.log_tail());
    assert!(proxy.broken() > 0, "the proxy lied");
    proxy.set(Faults::default());
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.settle(&["holds"]), "", "{}", settler.log_tail());
    let batches = world.batches().await;
    assert!(batches.iter().all(|(state, _)| state == "mined"), "{batches:?}\n{}", settler.log_tail());
    assert_eq!(batches.iter().map(|(_, items)| items).sum::<i64>(), 7, "each payment was in one transaction");
    assert_eq!(world.nonce().await, u64::try_from(batches.len()).unwrap(), "{batches:?}");
}

#[tokio::test]
async fn a_trial_that_calls_good_payments_bad_for_good_delays_them() {
    pays_after_the_lie(Faults { skip_in_trial: true, ..Faults::default() }, async |world, output| {
        assert_eq!(world.batches().await, []);
        // Seven items, and the first of them again.
        output.matches("the contract would skip it for good, the node says").count() > 7
    })
    .await;
}

#[tokio::test]
async fn a_header_from_the_future_lets_no_deadline_pass() {
    // Vouchers have no deadline and go out.
    pays_after_the_lie(Faults { head_off_by: 1_000_000, ..Faults::default() }, async |_, output| {
        output.matches("Expired").count() > 5
    })
    .await;
}

#[tokio::test]
async fn a_header_from_the_past_holds_nothing_up() {
    pays_in_spite_of(Faults { head_off_by: -1_000_000, ..Faults::default() }).await;
}

#[tokio::test]
async fn a_count_of_transactions_that_is_too_high_sends_nothing_until_it_is_right() {
    pays_after_the_lie(Faults { high_count: 3, ..Faults::default() }, async |world, output| {
        assert_eq!(world.batches().await, []);
        output.contains("unexplained nonce")
    })
    .await;
}

#[tokio::test]
async fn transactions_with_nonces_too_high_are_mined_once_the_count_is_right() {
    let lie = Faults { high_count: 3, high_count_by_hash: 3, ..Faults::default() };
    pays_after_the_lie(lie, async |world, _| {
        assert_eq!(world.nonce().await, 0);
        let items: i64 = world.batches().await.iter().map(|(_, items)| items).sum();
        items == 7
    })
    .await;
}

#[tokio::test]
async fn an_unexplained_nonce_stops_everything_until_the_chains_logs_are_read() {
    let mut world = World::start().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default(); 2]).await;
    world.complete(&jobs).await;
    let pid = world.indexer.pid().to_string();
    let signal = |signal: &str| {
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    // As when the key is used elsewhere, or the database is a copy from before the payment.
    let foreign = TransactionRequest::default().with_from(SETTLER.address()).with_to(SETTLER.address());
    world.provider.send_transaction(foreign).await.unwrap().get_receipt().await.unwrap();
    let settler = world.settler().args(EAGER).spawn().unwrap();
    world.wait("it is quarantined", async |_| settler.output().contains("unexplained nonce")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.batches().await, [], "{}", settler.log_tail());
    assert_eq!(world.nonce().await, 1);
    signal("-CONT");
    world.wait_done(&jobs).await;
    world.assert_exactly_once_besides(&jobs, 1).await;
    assert!(settler.output().contains("every nonce is explained"), "{}", settler.log_tail());
    assert!(world.settle(&["status"]).contains("foreign   1"));
}
