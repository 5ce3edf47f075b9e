//! What becomes of orders by the chain alone: cancelled, refunded, accepted, disputed and resolved without an API.

#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{Address, U256};
use devnet::{DEV_KEYS, DevKey};
use market::abi::JobState;
use market::order::OrderJson;
use serde_json::json;
use support::Bench;

const REQUESTER: DevKey = DEV_KEYS[1];
const NODE: DevKey = DEV_KEYS[2];
const ARBITER: DevKey = DEV_KEYS[5];

#[tokio::test]
async fn an_opened_job_is_cancelled_and_refunded_with_nothing_but_the_chain() {
    let bench = Bench::start().await;
    let order = bench.order(REQUESTER, NODE, 700, 1).await;
    let job = bench.open(REQUESTER, &order).await.to_string();
    let early = bench.run(REQUESTER, &["refund", &job]);
    assert!(early.error(1)["error"].as_str().unwrap().contains("could not be refunded"), "{early:?}");
    assert!(early.stderr.contains("its deadline is"), "{early:?}");
    let stranger = bench.run(NODE, &["cancel", &job]).error(1);
    assert!(stranger["error"].as_str().unwrap().contains("not yours"), "{stranger}");

    let said = bench.run(REQUESTER, &["cancel", &job]).result();
    assert!(said["cancelAt"].as_str().unwrap().ends_with('Z'), "{said}");
    let again = bench.run(REQUESTER, &["cancel", &job]).error(1);
    assert!(again["error"].as_str().unwrap().contains("given already"), "{again}");
    bench.pass(31).await;
    let said = bench.run(REQUESTER, &["refund", &job]).result();
    assert_eq!((&said["jobId"], &said["amount"], &said["free"]), (&json!(job), &json!("700"), &json!("700")));
    let again = bench.run(REQUESTER, &["refund", &job]);
    assert!(again.code == 1 && again.stderr.contains("refunded already"), "{again:?}");

    bench.run(REQUESTER, &["thaw", "700"]).result();
    bench.pass(31).await;
    assert_eq!(bench.run(REQUESTER, &["withdraw"]).result()["amount"], "700");
}

#[tokio::test]
async fn a_signed_order_is_cancelled_from_its_file_when_the_api_is_gone() {
    let bench = Bench::start().await;
    let order = bench.order(REQUESTER, NODE, 700, 1).await;
    let job = bench.job_id(&order);
    let unknown = bench.run(REQUESTER, &["cancel", &job.to_string()]).error(1);
    assert!(unknown["error"].as_str().unwrap().contains("--order"), "{unknown}");
    let file = bench.path("order.json");
    std::fs::write(&file, serde_json::to_vec(&json!({ "order": OrderJson::from(&order) })).unwrap()).unwrap();
    let file = file.to_str().unwrap();
    let other = bench.run(REQUESTER, &["cancel", &format!("0x{}", "11".repeat(32)), "--order", file]).error(6);
    assert!(other["error"].as_str().unwrap().contains("is that of"), "{other}");
    let run = bench.run(REQUESTER, &["cancel", &job.to_string(), "--order", file]);
    assert!(run.result()["cancelAt"].is_string(), "the chain takes the notice where the API does not answer");
    assert!(run.stderr.contains("does not withdraw the order"), "{run:?}");

    // What comes after the notice is not paid.
    bench.run(REQUESTER, &["deposit", "1000"]).result();
    bench.register(NODE);
    bench.earn(NODE, &order, Some(REQUESTER), 700);
    bench.pass(31).await;
    let settled = bench.run(NODE, &["node", "settle"]).results();
    assert_eq!(settled[0]["reason"], "its requester cancelled it", "{settled:?}");
    assert_eq!(bench.state(job).await, JobState::None);
}

/// A job with a window of an hour and an arbiter, opened, its result submitted by the node.
async fn submitted(bench: &Bench, nonce: u64) -> String {
    let mut order = bench.order(REQUESTER, NODE, 1000, nonce).await;
    (order.challengeWindow, order.arbiter) = (3600, ARBITER.address());
    let job = bench.open(REQUESTER, &order).await;
    bench.earn(NODE, &order, None, 800);
    let settled = bench.run(NODE, &["node", "settle"]).results();
    assert!(
        settled.iter().any(|line| line["outcome"] == "submitted" && line["jobId"] == job.to_string()),
        "{settled:?}"
    );
    job.to_string()
}

#[tokio::test]
async fn a_result_is_accepted_ahead_of_time() {
    let bench = Bench::start().await;
    bench.register(NODE);
    let job = submitted(&bench, 1).await;
    let stranger = bench.run(NODE, &["accept", &job]).error(1);
    assert!(stranger["error"].as_str().unwrap().contains("not yours"), "{stranger}");
    let said = bench.run(REQUESTER, &["accept", &job]).result();
    assert_eq!((&said["price"], &said["node"]), (&json!("800"), &json!(NODE.address().to_string())));
    let again = bench.run(REQUESTER, &["accept", &job]).error(1);
    assert!(again["error"].as_str().unwrap().contains("it is paid"), "{again}");
    assert_eq!(bench.chain.holdings(NODE.address(), Address::ZERO).await.unwrap().earned, U256::from(800));
}

#[tokio::test]
async fn a_dispute_is_decided_by_the_orders_arbiter_and_nobody_else() {
    let bench = Bench::start().await;
    bench.register(NODE);
    bench.run(REQUESTER, &["deposit", "100"]).result();
    let job = submitted(&bench, 1).await;
    let said = bench.run(REQUESTER, &["dispute", &job]).result();
    assert_eq!((&said["bond"], &said["arbiter"]), (&json!("50"), &json!(ARBITER.address().to_string())));
    let again = bench.run(REQUESTER, &["dispute", &job]).error(1);
    assert!(again["error"].as_str().unwrap().contains("in dispute already"), "{again}");
    let waiting = bench.run(NODE, &["node", "settle"]).results();
    assert!(waiting[0]["reason"].as_str().unwrap().contains("in dispute"), "{waiting:?}");

    let stranger = bench.run(REQUESTER, &["resolve", &job, "--pay", "0"]).error(1);
    assert!(stranger["error"].as_str().unwrap().contains("arbiter is"), "{stranger}");
    assert_eq!(bench.run(ARBITER, &["resolve", &job, "--pay", "10001"]).error(2)["code"], "usage");
    let said = bench.run(ARBITER, &["resolve", &job, "--pay", "2500", "--slash", "100"]).result();
    assert_eq!((&said["price"], &said["bond"]), (&json!("200"), &json!("0")));
    assert_ne!(said["slashed"], "0");
    assert_eq!(bench.chain.holdings(NODE.address(), Address::ZERO).await.unwrap().earned, U256::from(200));
    let again = bench.run(ARBITER, &["resolve", &job, "--pay", "0"]).error(1);
    assert!(again["error"].as_str().unwrap().contains("not disputed"), "{again}");
}

#[tokio::test]
async fn an_order_without_an_arbiter_cannot_be_disputed() {
    let bench = Bench::start().await;
    bench.register(NODE);
    let mut order = bench.order(REQUESTER, NODE, 1000, 1).await;
    order.challengeWindow = 3600;
    let job = bench.open(REQUESTER, &order).await.to_string();
    let waiting = bench.run(REQUESTER, &["dispute", &job]).error(1);
    assert!(waiting["error"].as_str().unwrap().contains("it is open"), "{waiting}");
    bench.earn(NODE, &order, None, 1000);
    bench.run(NODE, &["node", "settle"]).results();
    let refused = bench.run(REQUESTER, &["dispute", &job]).error(1);
    assert!(refused["error"].as_str().unwrap().contains("no arbiter"), "{refused}");
    let early = bench.run(NODE, &["node", "settle"]).results();
    assert!(early[0]["reason"].as_str().unwrap().contains("window ends"), "{early:?}");
    bench.pass(3600).await;
    let done = bench.run(NODE, &["node", "settle"]).results();
    assert_eq!((&done[0]["outcome"], &done[0]["amount"]), (&json!("paid"), &json!("1000")), "{done:?}");
}
