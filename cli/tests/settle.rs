//! A node is paid by the chain alone, with the files that it keeps.

#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{Address, U256};
use devnet::{DEV_KEYS, DevKey};
use littoral::chain::Chain;
use littoral::countersign::payee;
use market::abi::{JobState, Order};
use market::deployment::Deployment;
use serde_json::{Value, json};
use support::Bench;

const REQUESTER: DevKey = DEV_KEYS[1];
const NODE: DevKey = DEV_KEYS[2];
const SESSION: DevKey = DEV_KEYS[6];

async fn bench(deposit: &str) -> Bench {
    let bench = Bench::start().await;
    bench.register(NODE);
    bench.run(REQUESTER, &["deposit", deposit]).result();
    bench
}

async fn earned(bench: &Bench) -> U256 {
    bench.chain.holdings(NODE.address(), Address::ZERO).await.unwrap().earned
}

/// What `node settle` says of each item, without the summary.
fn settle(bench: &Bench, more: &[&str]) -> Vec<Value> {
    let args: Vec<&str> = ["node", "settle"].iter().chain(more).copied().collect();
    let mut lines = bench.run(NODE, &args).results();
    assert!(lines.pop().unwrap()["summary"].is_object());
    lines.retain(|line| line["item"].is_string());
    lines
}

fn outcome<'a>(lines: &'a [Value], item: &str) -> &'a Value {
    lines
        .iter()
        .find(|line| line["item"] == item || line["jobId"] == item)
        .unwrap_or_else(|| panic!("{item}: {lines:?}"))
}

#[tokio::test]
async fn a_requester_who_goes_silent_pays_by_the_order() {
    let bench = bench("1000").await;
    let order = bench.order(REQUESTER, NODE, 300, 1).await;
    let job = bench.earn(NODE, &order, Some(REQUESTER), 250).job_id;

    let planned = settle(&bench, &["--dry-run"]);
    let plan = outcome(&planned, &job.to_string());
    assert_eq!((&plan["outcome"], &plan["reason"]), (&json!("planned"), &json!("submitResults")));
    assert_eq!(bench.state(job).await, JobState::None, "nothing was sent");

    let done = settle(&bench, &[]);
    let done = outcome(&done, &job.to_string());
    assert_eq!((&done["outcome"], &done["amount"]), (&json!("paid"), &json!("250")));
    assert_eq!(earned(&bench).await, U256::from(250));
    for again in settle(&bench, &[]) {
        assert_eq!((&again["outcome"], &again["reason"]), (&json!("closed"), &json!("paid")));
    }
    assert_eq!(earned(&bench).await, U256::from(250), "and once only");
    let said = bench.run(NODE, &["node", "withdraw"]).result();
    assert_eq!(said["amount"], "250");
}

#[tokio::test]
async fn a_voucher_pays_for_what_it_covers_and_the_order_for_what_comes_after() {
    let bench = bench("1000").await;
    for nonce in [1, 2] {
        bench.earn(NODE, &bench.order(REQUESTER, NODE, 100, nonce).await, Some(REQUESTER), 100);
    }
    let late = bench.earn(NODE, &bench.order(REQUESTER, NODE, 70, 3).await, Some(REQUESTER), 70).job_id;
    bench.hold_voucher(REQUESTER.address(), NODE.address(), REQUESTER, (200, 2));
    let done = settle(&bench, &[]);
    let voucher = outcome(&done, "voucher");
    assert_eq!((&voucher["outcome"], &voucher["amount"]), (&json!("paid"), &json!("200")));
    assert_eq!(outcome(&done, &late.to_string())["amount"], "70");
    assert_eq!(earned(&bench).await, U256::from(270));
    let again = settle(&bench, &[]);
    assert!(outcome(&again, "voucher")["reason"].as_str().unwrap().contains("no more than was paid"), "{again:?}");
    assert_eq!(earned(&bench).await, U256::from(270));
}

#[tokio::test]
async fn an_order_settled_ahead_of_its_voucher_costs_the_node_nothing() {
    let bench = bench("1000").await;
    // Nonce 2 is settled by itself first; then a voucher comes for nonce 1.
    let ahead = bench.earn(NODE, &bench.order(REQUESTER, NODE, 60, 2).await, Some(REQUESTER), 60).job_id;
    assert_eq!(outcome(&settle(&bench, &[]), &ahead.to_string())["outcome"], "paid");
    bench.earn(NODE, &bench.order(REQUESTER, NODE, 50, 1).await, Some(REQUESTER), 50);
    bench.hold_voucher(REQUESTER.address(), NODE.address(), REQUESTER, (50, 1));
    let done = settle(&bench, &[]);
    assert_eq!(outcome(&done, "voucher")["amount"], "50", "{done:?}");
    assert_eq!(earned(&bench).await, U256::from(110));
}

#[tokio::test]
async fn a_session_key_signs_within_its_cap_and_the_order_pays_beyond() {
    let bench = bench("1000").await;
    let key = SESSION.address().to_string();
    bench.run(REQUESTER, &["session", "authorize", &key, "--cap", "100", "--expires-in", "10000"]).result();
    bench.earn(NODE, &bench.order(REQUESTER, NODE, 90, 1).await, Some(REQUESTER), 90);
    bench.hold_voucher(REQUESTER.address(), NODE.address(), SESSION, (90, 1));
    assert_eq!(outcome(&settle(&bench, &[]), "voucher")["amount"], "90");

    bench.earn(NODE, &bench.order(REQUESTER, NODE, 90, 2).await, Some(REQUESTER), 90);
    bench.hold_voucher(REQUESTER.address(), NODE.address(), SESSION, (180, 2));
    let done = settle(&bench, &[]);
    assert!(outcome(&done, "voucher")["reason"].as_str().unwrap().contains("may spend 10"), "{done:?}");
    assert_eq!(earned(&bench).await, U256::from(180), "the order pays");
}

#[tokio::test]
async fn a_voucher_that_is_worth_less_than_it_voids_is_not_redeemed() {
    let bench = bench("1000").await;
    bench.earn(NODE, &bench.order(REQUESTER, NODE, 90, 1).await, Some(REQUESTER), 90);
    bench.hold_voucher(REQUESTER.address(), NODE.address(), REQUESTER, (1, 9));
    let done = settle(&bench, &[]);
    assert!(outcome(&done, "voucher")["reason"].as_str().unwrap().contains("void orders worth 90"), "{done:?}");
    assert_eq!(earned(&bench).await, U256::from(90));

    bench.earn(NODE, &bench.order(REQUESTER, NODE, 90, 20).await, Some(REQUESTER), 90);
    bench.hold_voucher(REQUESTER.address(), NODE.address(), DEV_KEYS[7], (5000, 20));
    let done = settle(&bench, &[]);
    assert!(outcome(&done, "voucher")["reason"].as_str().unwrap().contains("neither by its requester"), "{done:?}");
    assert_eq!(earned(&bench).await, U256::from(180));
}

#[tokio::test]
async fn what_cannot_be_paid_says_why_and_what_can_is_paid_beside_it() {
    let bench = bench("100").await;
    let poor = bench.earn(NODE, &bench.order(REQUESTER, NODE, 500, 1).await, Some(REQUESTER), 500).job_id;
    let rich = bench.earn(NODE, &bench.order(REQUESTER, NODE, 100, 2).await, Some(REQUESTER), 100).job_id;
    let mut unseen = bench.earn(NODE, &bench.order(REQUESTER, NODE, 10, 3).await, Some(REQUESTER), 10);
    unseen.acknowledged_at = None;
    bench.earnings().keep(&unseen).unwrap();
    let done = settle(&bench, &["--batch", "1"]);
    assert!(outcome(&done, &poor.to_string())["reason"].as_str().unwrap().contains("less than its price"), "{done:?}");
    assert!(
        outcome(&done, &unseen.job_id.to_string())["reason"].as_str().unwrap().contains("not known to have arrived")
    );
    assert_eq!(outcome(&done, &rich.to_string())["outcome"], "paid");
    let nobody = bench.run(DEV_KEYS[8], &["node", "settle"]).results();
    assert_eq!(nobody.last().unwrap()["summary"]["settled"], 0, "another node's files are of no use: {nobody:?}");
}

#[tokio::test]
async fn whom_the_chain_pays_is_known_from_the_result_on() {
    let bench = bench("1000").await;
    let deployment = Deployment::read(&bench.deployment.path).unwrap();
    let chain = Chain::connect(&bench.anvil.rpc_url().parse().unwrap(), deployment).await.unwrap();
    let order = Order { challengeWindow: 60, ..bench.order(REQUESTER, NODE, 300, 1).await };
    let job = bench.earn(NODE, &order, Some(REQUESTER), 250).job_id;
    assert_eq!(payee(&chain, job).await.unwrap(), None, "nothing is on the chain");

    settle(&bench, &[]);
    assert_eq!(bench.state(job).await, JobState::Submitted);
    assert_eq!(payee(&chain, job).await.unwrap(), Some(NODE.address()), "while its window is open");
    bench.pass(61).await;
    settle(&bench, &[]);
    assert_eq!(bench.state(job).await, JobState::Paid);
    assert_eq!(payee(&chain, job).await.unwrap(), Some(NODE.address()), "once it is paid");

    let order = bench.order(REQUESTER, NODE, 300, 2).await;
    let opened = bench.open(REQUESTER, &order).await;
    let refused = payee(&chain, opened).await.unwrap_err();
    assert!(refused.to_string().contains("opened on the chain"), "{refused}");
}
