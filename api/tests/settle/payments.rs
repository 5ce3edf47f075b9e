//! What is due is paid: in few transactions, each job once.

use std::collections::BTreeSet;

use market::abi::IJobEscrow;
use market::fold::EscrowState;

use crate::world::{ASSIGNER, MAX_PRICE, NODES, PRICE, Terms, World};

#[tokio::test]
async fn forty_payments_to_three_nodes_go_out_in_two_transactions() {
    let mut world = World::start().await;
    let terms: Vec<_> = (0..40).map(|n| Terms { node: NODES[n % 3], ..Terms::default() }).collect();
    let jobs = world.open(&terms).await;
    world.complete(&jobs).await;
    let settler = world.settler().args(["--max-batch", "20"]).spawn().unwrap();
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.batches().await, [("mined".to_owned(), 20), ("mined".to_owned(), 20)]);
    assert_eq!(world.nonce().await, 2);
    for (n, node) in NODES.iter().enumerate() {
        let jobs = u128::try_from(40usize.div_ceil(3) - usize::from(n > 0)).unwrap();
        let earned = world.escrow().earned(node.address(), alloy::primitives::Address::ZERO).call().await.unwrap();
        assert_eq!(earned, alloy::primitives::U256::from(jobs * PRICE));
    }
    assert!(settler.output().contains("gas_per_item"), "{}", settler.log_tail());
}

#[tokio::test]
async fn jobs_in_a_token_and_open_orders_are_paid_after_their_window() {
    let mut world = World::start().await;
    let token = world.token();
    let window = Terms { token, window_secs: 20, ..Terms::default() };
    let open = Terms { open: true, node: NODES[1], ..window };
    let jobs = world.open(&[Terms { token, ..Terms::default() }, window, open]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().spawn().unwrap();
    world.wait_paid(&jobs[..1]).await;
    world
        .wait("the others are challengeable", async |world| {
            world.state(&jobs[1]).await == Some(EscrowState::Submitted)
                && world.state(&jobs[2]).await == Some(EscrowState::Submitted)
        })
        .await;
    world.wait_settled().await;
    assert_eq!(world.logs::<IJobEscrow::JobPaid>().await.len(), 1, "not before the window's end");
    assert_eq!(world.nonce().await, 1);

    alloy::providers::ext::AnvilApi::anvil_increase_time(&world.provider, 25).await.unwrap();
    world.mine(1).await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.nonce().await, 2);
    let earned = world.escrow().earned(NODES[1].address(), token).call().await.unwrap();
    assert_eq!(earned, alloy::primitives::U256::from(PRICE));
    const { assert!(MAX_PRICE > PRICE) };
}

#[tokio::test]
async fn payments_on_an_idle_chain_are_finalized_by_the_clock() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms { window_secs: 3, ..Terms::default() }]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().spawn().unwrap();
    // No block but the settler's own: nobody moves the chain's time.
    world.wait_paid(&jobs).await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.logs::<IJobEscrow::Skipped>().await.len(), 0);
}

#[tokio::test]
async fn a_bad_item_harms_no_sibling_and_is_held_with_its_reason_once_the_chain_has_said_so() {
    for simulate in ["false", "true"] {
        let mut world = World::start().await;
        let jobs = world.open(&[Terms::default(); 5]).await;
        world.complete(&jobs[..2]).await;
        world.complete_as(&jobs[2], ASSIGNER.signer()).await;
        world.complete(&jobs[3..]).await;
        let settler = world.settler().args(["--simulate", simulate]).spawn().unwrap();
        let good: Vec<_> = [&jobs[..2], &jobs[3..]].concat();
        world.wait_paid(&good).await;
        if simulate == "false" {
            world.wait("the bad one is held", async |world| world.hold(&jobs[2]).await.is_some()).await;
            assert_eq!(world.hold(&jobs[2]).await.unwrap(), "BadReceiptSignature");
            assert!(settler.output().contains("on hold"), "{}", settler.log_tail());
        } else {
            // That is only what a node said: it is tried again, and costs nothing.
            let said = "the contract would skip it for good, the node says";
            world.wait("it is tried again", async |_| settler.output().matches(said).count() > 1).await;
            assert_eq!(world.hold(&jobs[2]).await, None);
        }
        world.wait_settled().await;
        world.assert_paid_once(&good).await;
        assert_eq!(world.state(&jobs[2]).await, Some(EscrowState::Open));

        // It does not go along with the next payment; without a trial it was sent once.
        let late = world.open(&[Terms::default()]).await;
        world.complete(&late).await;
        world.wait_paid(&late).await;
        world.wait_settled().await;
        let skipped = world.logs::<IJobEscrow::Skipped>().await;
        assert_eq!(skipped.len(), usize::from(simulate == "false"));
        let items = if simulate == "false" { 5 } else { 4 };
        assert_eq!(world.batches().await, [("mined".to_owned(), items), ("mined".to_owned(), 1)]);
    }
}

#[tokio::test]
async fn a_node_that_lost_its_stake_is_paid_once_it_has_it_back() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms { window_secs: 1, ..Terms::default() }]).await;
    let registry = market::abi::INodeRegistry::new(world.deployment.manifest.registry, world.provider.clone());
    let (one, node) = (alloy::primitives::U256::ONE, NODES[0].address());
    registry.startUnbond(one).from(node).send().await.unwrap().get_receipt().await.unwrap();
    world.complete(&jobs).await;
    let _settler = world.settler().args(["--simulate", "false"]).spawn().unwrap();
    world.wait("it was skipped", async |world| world.logs::<IJobEscrow::Skipped>().await.len() == 1).await;
    world.wait_settled().await;
    assert_eq!(world.hold(&jobs[0]).await, None, "this can be mended");
    registry.stake(node).value(one).from(node).send().await.unwrap().get_receipt().await.unwrap();
    world.wait_paid(&jobs).await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.logs::<IJobEscrow::Skipped>().await.len(), 1, "it is not sent in a loop meanwhile");
}

#[tokio::test]
async fn a_payment_whose_deadline_has_passed_is_held_and_costs_no_gas() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms { deadline_secs: 100, ..Terms::default() }, Terms::default()]).await;
    world.complete(&jobs).await;
    alloy::providers::ext::AnvilApi::anvil_increase_time(&world.provider, 200).await.unwrap();
    world.mine(1).await;
    let _settler = world.settler().spawn().unwrap();
    world.wait_paid(&jobs[1..]).await;
    world.wait("the late one is held", async |world| world.hold(&jobs[0]).await.is_some()).await;
    assert_eq!(world.hold(&jobs[0]).await.unwrap(), "Expired");
    assert_eq!(world.logs::<IJobEscrow::Skipped>().await.len(), 0);
}

#[tokio::test]
async fn two_settlers_at_once_pay_once_and_the_standby_takes_over() {
    let mut world = World::start().await;
    let mut settlers = [world.settler().spawn().unwrap(), world.settler().spawn().unwrap()];
    let jobs = world.open(&[Terms::default(); 12]).await;
    world.complete(&jobs[..6]).await;
    world.wait_paid(&jobs[..6]).await;
    let leads = |settler: &devnet::Process| settler.output().contains("leading");
    let leader = usize::from(!leads(&settlers[0]));
    assert!(leads(&settlers[leader]) && !leads(&settlers[1 - leader]));

    settlers[leader].kill();
    world.complete(&jobs[6..]).await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert!(leads(&settlers[1 - leader]));
    let hashes: BTreeSet<_> =
        world.logs::<IJobEscrow::JobPaid>().await.iter().map(|log| log.transaction_hash).collect();
    assert_eq!(u64::try_from(hashes.len()).unwrap(), world.nonce().await, "no transaction went out in vain");
}

#[tokio::test]
async fn a_frozen_leader_that_wakes_up_deposed_sends_nothing_of_its_own() {
    let mut world = World::start().await;
    let frozen = world.settler().spawn().unwrap();
    let jobs = world.open(&[Terms::default(); 6]).await;
    world.complete(&jobs[..2]).await;
    world.wait_paid(&jobs[..2]).await;
    world.wait_settled().await;
    signal(&frozen, "-STOP");
    // What a network that parts it from Postgres does to its lock.
    world.end_settlers_lock().await;
    let successor = world.settler().spawn().unwrap();
    world.wait("the successor leads", async |_| successor.output().contains("leading")).await;
    world.complete(&jobs[2..4]).await;
    world.wait_paid(&jobs[..4]).await;
    signal(&frozen, "-CONT");
    world.wait("the other one notices", async |_| frozen.output().contains("lost the lead")).await;
    world.complete(&jobs[4..]).await;
    world.wait_paid(&jobs).await;
    world.wait_settled().await;
    world.assert_paid_once(&jobs).await;
    assert_eq!(world.batches().await.len(), 3, "{}", frozen.log_tail());
    assert_eq!(world.nonce().await, 3);
}

fn signal(process: &devnet::Process, signal: &str) {
    let pid = process.pid().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[tokio::test]
async fn what_was_signed_can_be_neither_changed_nor_removed() {
    let mut world = World::start().await;
    let jobs = world.open(&[Terms::default()]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().spawn().unwrap();
    world.wait_paid(&jobs).await;
    let signed = world.signed().await;
    let refused = [
        sqlx::query!("update settlement_attempt set raw_tx = 'other'").execute(&world.pool).await,
        sqlx::query!("update settlement_attempt set max_fee_per_gas = 0 where false").execute(&world.pool).await,
        sqlx::query!("delete from settlement_attempt").execute(&world.pool).await,
        sqlx::query!("truncate settlement_attempt").execute(&world.pool).await,
        sqlx::query!("truncate settlement_batch cascade").execute(&world.pool).await,
    ];
    for refused in refused {
        let why = refused.unwrap_err().to_string();
        assert!(why.contains("settlement_attempt is append-only"), "{why}");
    }
    assert_eq!(world.signed().await, signed);
    assert_eq!(signed.len(), 1);
}
