//! Signed orders: by voucher where there is one, alone where there is none, and never both.

use alloy::primitives::{Address, U256};
use alloy::providers::Provider;
use alloy::providers::ext::AnvilApi;
use market::abi::IJobEscrow;
use market::db::types::DbAddress;

use crate::rails::EAGER;
use crate::world::{MAX_PRICE, NODES, PRICE, REQUESTERS, SETTLER, Terms, World};

const PATIENT: [&str; 4] = ["--voucher-wait", "0.3", "--voucher-grace", "600"];

#[tokio::test]
async fn the_vouchers_of_a_node_are_redeemed_in_one_transaction_and_no_order_goes_alone() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let one = world.sign(REQUESTERS[1], &[Terms::default(); 3]).await;
    let two = world.sign(REQUESTERS[2], &[Terms::default(); 2]).await;
    world.countersign(&one, 0).await;
    world.countersign(&two, 0).await;
    let jobs = [one, two].concat();
    world.complete(&jobs).await;
    let settler = world.settler().args(PATIENT).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.kinds().await, ["redeem"]);
    assert_eq!(world.batches().await, [("mined".to_owned(), 2)], "{}", settler.log_tail());
    assert_eq!(world.logs::<IJobEscrow::JobPaid>().await.len(), 0);
    let mined = world.provider.get_transaction_receipt(world.signed().await[0]).await.unwrap().unwrap();
    assert!(mined.gas_used < 160_000, "packed vouchers: {}", mined.gas_used);
}

#[tokio::test]
async fn a_result_waits_for_a_voucher_and_then_goes_alone() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default(); 2]).await;
    world.complete(&jobs).await;
    let _settler = world.settler().args(["--voucher-grace", "4"]).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(world.kinds().await, [""; 0], "within the grace nothing goes out");
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    // One, or one each where the machine was so busy that the second became due when the first was on its way.
    let kinds = world.kinds().await;
    assert!(!kinds.is_empty() && kinds.len() <= 2 && kinds.iter().all(|kind| kind == "submit"), "{kinds:?}");
}

#[tokio::test]
async fn a_deadline_that_comes_near_ends_the_wait_for_a_voucher() {
    let mut world = World::start().await;
    let terms = [Terms { deadline_secs: 300, ..Terms::default() }, Terms::default()];
    let jobs = world.sign(REQUESTERS[1], &terms).await;
    world.complete(&jobs).await;
    let _settler = world.settler().args(["--urgent-within", "400"]).spawn().unwrap();
    world.wait_done(&jobs[..1]).await;
    world.assert_exactly_once(&jobs[..1]).await;
}

#[tokio::test]
async fn what_was_settled_alone_above_a_voucher_is_shown_and_paid_on_top() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default(); 3]).await;
    world.complete(&jobs[2..]).await;
    let first = world.settler().args(EAGER).spawn().unwrap();
    world.wait_done(&jobs[2..]).await;
    drop(first);
    world.countersign(&jobs[..2], 0).await;
    world.complete(&jobs[..2]).await;
    let settler = world.settler().args(PATIENT).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.kinds().await, ["submit", "redeem"], "{}", settler.log_tail());
    let input = world.provider.get_transaction_by_hash(world.signed().await[1]).await.unwrap().unwrap();
    let input = alloy::consensus::Transaction::input(&input);
    let call = <IJobEscrow::redeemSignedCall as alloy::sol_types::SolCall>::abi_decode(input).unwrap();
    assert_eq!(call.vouchers[0].settledAbove, [jobs[2].order.clone()]);
}

#[tokio::test]
async fn a_voucher_for_more_than_there_is_pays_the_rest_when_funds_come() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let requester = REQUESTERS[1].address();
    let escrow = world.escrow();
    world.mined(escrow.thaw(Address::ZERO, U256::from(1000 * MAX_PRICE)).from(requester).send()).await;
    world.provider.anvil_increase_time(800_000).await.unwrap();
    world.mined(escrow.withdraw(Address::ZERO, requester).from(requester).send()).await;
    let deposit = async |amount: u128| {
        let amount = U256::from(amount);
        world.mined(escrow.deposit(Address::ZERO, amount).value(amount).from(requester).send()).await;
    };
    deposit(PRICE + PRICE / 2).await;
    let long = Terms { deadline_secs: 2_000_000, ..Terms::default() };
    let jobs = world.sign(REQUESTERS[1], &[long; 2]).await;
    world.countersign(&jobs, 0).await;
    world.complete(&jobs).await;
    let settler = world.settler().args(PATIENT).spawn().unwrap();
    let node = NODES[0].address();
    let earned = async |world: &World| world.escrow().earned(node, Address::ZERO).call().await.unwrap();
    world.wait("what there is is paid", async |world| earned(world).await == U256::from(PRICE + PRICE / 2)).await;
    world.wait_settled().await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(world.nonce().await, 1, "nothing is sent while there is nothing to draw on: {}", settler.log_tail());
    let amount = U256::from(PRICE);
    world.mined(world.escrow().deposit(Address::ZERO, amount).value(amount).from(requester).send()).await;
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.nonce().await, 2);
}

#[tokio::test]
async fn a_voucher_that_only_its_node_may_redeem_is_left_to_it_until_time_presses() {
    let mut world = World::start().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default(); 2]).await;
    world.countersign(&jobs, 0).await;
    world.complete(&jobs).await;
    let settler = world.settler().args(EAGER).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(world.kinds().await, [""; 0], "{}", settler.log_tail());
    drop(settler);
    let settler = world.settler().args(EAGER).args(["--urgent-within", "4000"]).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.kinds().await, ["submit"], "{}", settler.log_tail());
}

#[tokio::test]
async fn funds_that_are_about_to_leave_end_every_wait() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default(); 2]).await;
    world.countersign(&jobs[..1], 0).await;
    world.complete(&jobs).await;
    let settler = world.settler().args(["--voucher-wait", "3600", "--urgent-within", "9000000"]).spawn().unwrap();
    // Within that time the orders' deadlines press; the voucher goes because of the thaw alone.
    world.wait("the order goes alone", async |world| world.nonce().await == 1).await;
    world.wait_settled().await;
    let free = U256::from(MAX_PRICE);
    world.mined(world.escrow().thaw(Address::ZERO, free).from(REQUESTERS[1].address()).send()).await;
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.kinds().await, ["submit", "redeem"], "{}", settler.log_tail());
}

#[tokio::test]
async fn a_session_key_pays_within_its_cap_and_no_order_goes_alone_meanwhile() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default(); 2]).await;
    let (key, requester) = (REQUESTERS[2], REQUESTERS[1].address());
    let authorize = async |world: &World, cap: u128| {
        let escrow = world.escrow();
        let call = escrow.authorizeSession(key.address(), Address::ZERO, cap, 4_000_000_000);
        world.mined(call.from(requester).send()).await;
    };
    authorize(&world, PRICE).await;
    world.caught_up().await;
    world.voucher(&jobs[0].order, 2 * PRICE, jobs[1].order.nonce, key).await;
    world.complete(&jobs).await;
    let settler = world.settler().args(PATIENT).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(world.kinds().await, [""; 0], "more is due than the key may spend: {}", settler.log_tail());
    authorize(&world, 2 * PRICE).await;
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.kinds().await, ["redeem"]);
}

#[tokio::test]
async fn a_voucher_with_a_bad_signature_is_held_listed_and_released() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let bad = world.sign(REQUESTERS[1], &[Terms::default()]).await;
    let good = world.sign(REQUESTERS[2], &[Terms::default()]).await;
    world.voucher(&bad[0].order, PRICE, bad[0].order.nonce, REQUESTERS[1]).await;
    sqlx::query!(
        "update voucher set signature = set_byte(signature, 9, get_byte(signature, 9) # 1) where requester = $1",
        DbAddress(REQUESTERS[1].address()) as _
    )
    .execute(&world.pool)
    .await
    .unwrap();
    world.countersign(&good, 0).await;
    world.complete(&[bad.clone(), good.clone()].concat()).await;
    let settler = world.settler().args(PATIENT).args(["--simulate", "false"]).spawn().unwrap();
    world.wait_done(&good).await;
    world.wait("the bad one is held", async |_| settler.output().contains("on hold")).await;
    world.assert_exactly_once(&good).await;
    let requester = REQUESTERS[1].address().to_string();
    let holds = world.settle(&["holds"]);
    assert!(holds.contains(&requester) && holds.contains("BadVoucherSignature"), "{holds}");
    assert!(world.settle(&["status"]).contains("on hold   1"), "{}", world.settle(&["status"]));

    // Held for good; a better one of the channel is tried.
    world.wait_settled().await;
    let sent = world.nonce().await;
    let node = NODES[0].address().to_string();
    assert!(world.settle(&["release", "--requester", &requester, "--node", &node]).contains("released"));
    assert_eq!(world.settle(&["holds"]), "");
    world.wait("it is tried again", async |world| world.nonce().await > sent).await;
    let more = world.sign(REQUESTERS[1], &[Terms::default()]).await;
    world.countersign(&[bad.clone(), more.clone()].concat(), 0).await;
    world.complete(&more).await;
    let all = [bad, good, more].concat();
    world.wait_done(&all).await;
    world.assert_exactly_once(&all).await;
}

#[tokio::test]
async fn a_budget_for_gas_is_never_exceeded() {
    let mut world = World::start().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default()]).await;
    world.complete(&jobs).await;
    for limit in ["--gas-budget", "--max-tx-cost"] {
        let settler = world.settler().args(EAGER).args([limit, "1000000"]).spawn().unwrap();
        world.wait("it complains", async |_| settler.output().contains("over the budget")).await;
        assert_eq!(world.signed().await, [alloy::primitives::B256::ZERO; 0]);
    }
    let ether = "1000000000000000000";
    let _settler = world.settler().args(EAGER).args(["--gas-budget", ether, "--max-tx-cost", ether]).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_ne!(SETTLER.address(), Address::ZERO);
}

#[tokio::test]
async fn payments_wait_for_gas_to_get_cheaper_unless_they_press() {
    let mut world = World::start().await;
    let jobs = world.sign(REQUESTERS[1], &[Terms::default(), Terms { deadline_secs: 100, ..Terms::default() }]).await;
    world.complete(&jobs[..1]).await;
    let settler = world.settler().args(EAGER).args(["--target-fee", "1"]).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(world.kinds().await, [""; 0], "{}", settler.log_tail());
    world.complete(&jobs[1..]).await;
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    assert_eq!(world.batches().await, [("mined".to_owned(), 2)], "what waited went along");
}
