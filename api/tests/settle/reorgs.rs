//! Reorgs over the settlement, of results and vouchers mixed.

use alloy::network::TransactionBuilder;
use alloy::providers::Provider;
use alloy::providers::ext::AnvilApi;
use alloy::rpc::types::TransactionRequest;
use alloy::rpc::types::anvil::ReorgOptions;

use crate::rails::EAGER;
use crate::world::{SETTLER, World};

/// Undoes `depth` blocks, the settlement's among them, once everything is paid and again once it is paid anew.
async fn reorg_of(depth: u64) {
    let mut world = World::start().await;
    world.allow_settler().await;
    let jobs = world.mixed().await;
    // Only the settlement is to be undone, not what was deposited and opened for it.
    world.mine(depth).await;
    world.caught_up().await;
    let settler = world.settler().args(EAGER).spawn().unwrap();
    world.wait_done(&jobs).await;
    let signed = world.signed().await;
    for _ in 0..2 {
        world.mine(depth.saturating_sub(5)).await;
        world.caught_up().await;
        let undone = || settler.output().matches("a reorg has undone").count();
        let before = undone();
        world.provider.anvil_reorg(ReorgOptions { depth, tx_block_pairs: Vec::new() }).await.unwrap();
        world.wait("the batches are taken up again", async |_| undone() > before).await;
        world.wait_done(&jobs).await;
        world.assert_exactly_once(&jobs).await;
    }
    assert_eq!(world.signed().await, signed, "the same bytes: {}", settler.log_tail());
    assert_eq!(world.nonce().await, u64::try_from(signed.len()).unwrap());
}

#[tokio::test]
async fn a_reorg_of_one_block_over_the_settlement_pays_once() {
    reorg_of(1).await;
}

#[tokio::test]
async fn a_reorg_of_five_blocks_over_the_settlement_pays_once() {
    reorg_of(5).await;
}

#[tokio::test]
async fn a_reorg_of_forty_blocks_over_the_settlement_pays_once() {
    reorg_of(40).await;
}

#[tokio::test]
async fn a_nonce_that_a_reorg_takes_from_a_foreign_transaction_is_filled() {
    let mut world = World::start().await;
    world.mine(3).await;
    let foreign = TransactionRequest::default().with_from(SETTLER.address()).with_to(SETTLER.address());
    world.provider.send_transaction(foreign).await.unwrap().get_receipt().await.unwrap();
    let before = world.block().await;
    let jobs = world.sign(crate::world::REQUESTERS[1], &[crate::world::Terms::default(); 2]).await;
    world.complete(&jobs).await;
    let settler = world.settler().args(EAGER).spawn().unwrap();
    world.wait_done(&jobs).await;
    assert!(settler.output().contains("of which nothing is stored"), "{}", settler.log_tail());
    // The foreign one, and one or two batches: what matters here is that none is added to them but the filler.
    let used = world.nonce().await;
    assert!((2..=3).contains(&used), "{used}: {}", settler.log_tail());
    let depth = world.block().await - before + 1;
    world.provider.anvil_reorg(ReorgOptions { depth, tx_block_pairs: Vec::new() }).await.unwrap();
    world.wait("the gap is seen", async |_| settler.output().contains("filling it")).await;
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.nonce().await, used, "{}", settler.log_tail());
    let kinds = world.kinds().await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "finalize").count(), 1, "{kinds:?}");
}
