//! Reorgs, foreign transactions, stuck transactions, an empty purse.

use alloy::network::TransactionBuilder;
use alloy::primitives::{U256, bytes};
use alloy::providers::Provider;
use alloy::providers::ext::AnvilApi;
use alloy::rpc::types::TransactionRequest;
use alloy::rpc::types::anvil::{ReorgOptions, TransactionData};
use market::abi::{IJobEscrow, INodeRegistry};
use market::fold::EscrowState;

use crate::world::{NODES, SETTLER, Terms, World};

fn foreign(nonce: u64) -> TransactionRequest {
    TransactionRequest::default()
        .with_from(SETTLER.address())
        .with_to(SETTLER.address())
        .with_nonce(nonce)
        .with_gas_limit(21_000)
        .with_max_fee_per_gas(50_000_000_000)
        .with_max_priority_fee_per_gas(20_000_000_000)
}

#[tokio::test]
async fn a_reorg_that_removes_a_mined_batch_has_it_sent_again() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 4]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().spawn().unwrap();
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    let before = world.logs::<IJobEscrow::JobPaid>().await[0].block_hash.unwrap();

    world.provider.anvil_reorg(ReorgOptions { depth: 1, tx_block_pairs: Vec::new() }).await.unwrap();
    world
        .wait("they are paid again, in another block", async |world| {
            let paid = world.logs::<IJobEscrow::JobPaid>().await;
            paid.len() == 4 && paid[0].block_hash != Some(before)
        })
        .await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.signed().await.len(), 1, "the same bytes, since their nonce is free again");
}

#[tokio::test]
async fn a_reorg_that_gives_the_nonce_to_another_transaction_has_the_payments_planned_anew() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 2]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().spawn().unwrap();
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    let block = world.provider.get_block_number().await.unwrap();
    let displacing = TransactionData::JSON(foreign(0));
    let options = ReorgOptions { depth: 1, tx_block_pairs: vec![(displacing, 0)] };
    world.provider.anvil_reorg(options).await.unwrap();
    assert_eq!(world.provider.get_block_number().await.unwrap(), block);
    world
        .wait("they are paid again, under another nonce", async |world| {
            world.logs::<IJobEscrow::JobPaid>().await.len() == 2
        })
        .await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.nonce().await, 2);
}

#[tokio::test]
async fn nonces_that_other_transactions_used_are_passed_over() {
    let mut world = World::start().await;
    for nonce in 0..3 {
        world.provider.send_transaction(foreign(nonce)).await.unwrap().get_receipt().await.unwrap();
    }
    let jobs = world.open(&[Terms::default()]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().spawn().unwrap();
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.provider.send_transaction(foreign(4)).await.unwrap().get_receipt().await.unwrap();
    let more = world.open(&[Terms::default()]).await;
    world.complete(&more).await;
    world.wait_paid(&more).await;
    world.assert_paid_once(&[jobs, more].concat()).await;
    assert_eq!(world.nonce().await, 6);
}

#[tokio::test]
async fn a_foreign_transaction_that_takes_the_nonce_of_a_sent_batch_displaces_it() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 3]).await;
    world.complete(&jobs).await;
    world.provider.anvil_set_auto_mine(false).await.unwrap();
    let settler = world.settler().spawn().unwrap();
    world.wait("the batch is sent", async |world| world.pending_transactions().await == 1).await;
    let batch = world.pending().await.remove(0);
    assert_eq!(batch.nonce, 0);

    // Same nonce, higher fees: it takes the batch's place in the node's pool.
    let other = *world.provider.send_transaction(foreign(0)).await.unwrap().tx_hash();
    world.mine(1).await;
    assert!(world.provider.get_transaction_receipt(other).await.unwrap().is_some(), "the foreign one is mined");
    world.wait("the batch is displaced", async |world| world.batches().await[0].0 == "displaced").await;
    world.provider.anvil_set_auto_mine(true).await.unwrap();
    world.mine(1).await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.batches().await, [("displaced".to_owned(), 3), ("mined".to_owned(), 3)]);
    assert!(settler.output().contains(&other.to_string()), "it names the other one: {}", settler.log_tail());
}

#[tokio::test]
async fn a_transaction_that_the_node_dropped_is_sent_again_as_it_was() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 2]).await;
    world.complete(&jobs).await;
    world.provider.anvil_set_auto_mine(false).await.unwrap();
    let _settler = world.settler().spawn().unwrap();
    world.wait("the batch is sent", async |world| world.pending_transactions().await == 1).await;
    let signed = world.signed().await;
    world.provider.anvil_drop_transaction(signed[0]).await.unwrap();
    world.wait("it is sent again", async |world| world.pending_transactions().await == 1).await;
    world.mine(1).await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    assert_eq!(world.signed().await, signed);
    world.assert_paid_once(&jobs).await;
}

#[tokio::test]
async fn a_stuck_transaction_is_replaced_with_higher_fees_within_the_cap() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 2]).await;
    world.complete(&jobs).await;
    world.provider.anvil_set_auto_mine(false).await.unwrap();
    let settler = world.settler().args(["--bump-after", "1", "--max-fee-per-gas", "4000000000"]).spawn().unwrap();
    world.wait("it cannot be raised further", async |_| settler.output().contains("cannot be raised")).await;
    let attempts = world.pending().await.remove(0).attempts;
    assert!(attempts.len() > 1, "it was replaced: {}", settler.log_tail());
    for pair in attempts.windows(2) {
        assert!(pair[1].max_fee_per_gas * 100 >= pair[0].max_fee_per_gas * 113);
        assert!(pair[1].max_priority_fee_per_gas * 100 >= pair[0].max_priority_fee_per_gas * 113);
        assert!(pair[1].max_fee_per_gas <= 4_000_000_000);
    }
    world.mine(1).await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    let mined = world.logs::<IJobEscrow::JobPaid>().await[0].transaction_hash;
    assert_eq!(mined, attempts.last().map(|attempt| attempt.tx_hash));
}

#[tokio::test]
async fn an_empty_account_is_reported_and_nothing_is_lost() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 2]).await;
    world.complete(&jobs).await;
    let full = world.provider.get_balance(SETTLER.address()).await.unwrap();
    world.provider.anvil_set_balance(SETTLER.address(), U256::ZERO).await.unwrap();
    let settler = world.settler().spawn().unwrap();
    world.wait("it complains", async |_| settler.output().contains("cannot pay for gas")).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(settler.output().matches("cannot pay for gas").count(), 1, "it complains once");
    assert_eq!(world.batches().await, []);
    assert_eq!(world.state(&jobs[0]).await, Some(EscrowState::Open));
    world.provider.anvil_set_balance(SETTLER.address(), full).await.unwrap();
    world.wait_paid(&jobs).await;
    world.assert_paid_once(&jobs).await;
}

#[tokio::test]
async fn a_payment_waits_for_as_many_confirmations_as_asked() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default()]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().args(["--confirmations", "4"]).spawn().unwrap();
    world.wait_paid(&jobs).await;
    world.mine(2).await;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert_eq!(world.pending().await.len(), 1, "three blocks are not four");
    world.mine(1).await;
    world.wait_settled().await;
    assert_eq!(world.batches().await, [("mined".to_owned(), 1)]);
}

#[tokio::test]
async fn a_batch_that_reverts_as_a_whole_is_sent_again_in_halves() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default(); 4]).await;
    world.complete(&jobs).await;
    let escrow = world.deployment.manifest.escrow;
    let code = world.provider.get_code_at(escrow).await.unwrap();
    world.provider.anvil_set_auto_mine(false).await.unwrap();
    let settler = world.settler().args(["--max-batch", "4"]).spawn().unwrap();
    world.wait("the batch is sent", async |world| world.pending_transactions().await == 1).await;

    // PUSH0 PUSH0 REVERT: what was fine when it was tried is not when it is mined.
    world.provider.anvil_set_code(escrow, bytes!("5f5ffd")).await.unwrap();
    world.mine(1).await;
    world.wait("it is seen to have reverted", async |world| world.batches().await[0].0 == "reverted").await;
    assert!(settler.output().contains("reverted as a whole"), "{}", settler.log_tail());
    world.provider.anvil_set_code(escrow, code).await.unwrap();
    world.provider.anvil_set_auto_mine(true).await.unwrap();
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    let expected = [("reverted", 4), ("mined", 2), ("mined", 2)].map(|(state, items)| (state.to_owned(), items));
    assert_eq!(world.batches().await, expected);
}

#[tokio::test]
async fn payments_that_cannot_be_sent_do_not_keep_later_ones_waiting() {
    let mut world = World::start().await;
    let unstaked = Terms { node: NODES[1], window_secs: 60, ..Terms::default() };
    let stuck = world.open(&[unstaked; 3]).await;
    world.complete(&stuck).await;
    let later = world.open(&[Terms::default()]).await;
    world.complete(&later).await;
    let registry = INodeRegistry::new(world.deployment.manifest.registry, world.provider.clone());
    let unbond = registry.startUnbond(U256::from(1)).from(NODES[1].address());
    assert!(unbond.send().await.unwrap().get_receipt().await.unwrap().status());

    // A page of two payments at a time, which the three that came first fill.
    let settler = world.settler().args(["--max-batch", "1", "--max-pending", "1"]).spawn().unwrap();
    world.wait_paid(&later).await;
    assert!(settler.output().contains("NotStaked"), "{}", settler.log_tail());
    for job in &stuck {
        assert_eq!(world.state(job).await, Some(EscrowState::Open));
        assert_eq!(world.hold(job).await, None, "its node may stake again");
    }
}

#[tokio::test]
async fn a_batch_that_a_node_refuses_since_gas_became_dearer_is_replaced() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default()]).await;
    world.complete(&jobs).await;
    world.provider.anvil_set_auto_mine(false).await.unwrap();
    let settler = world.settler().args(["--bump-after", "5"]).spawn().unwrap();
    world.wait("the batch is sent", async |world| world.pending_transactions().await == 1).await;
    let first = world.signed().await;
    world.provider.anvil_drop_transaction(first[0]).await.unwrap();
    world.provider.anvil_set_next_block_base_fee_per_gas(50_000_000_000).await.unwrap();
    world.mine(1).await;
    world.wait("it is replaced", async |world| world.signed().await.len() > 1).await;
    assert!(settler.output().contains("the node refuses"), "{}", settler.log_tail());
    world.provider.anvil_set_auto_mine(true).await.unwrap();
    world.mine(1).await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
}
