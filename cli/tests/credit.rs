//! A node works on credit no further than the chain says that it can be paid.

#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::Address;
use devnet::{DEV_KEYS, DevKey};
use littoral::chain::Chain;
use littoral::node::earnings::Earnings;
use littoral::node::ledger::Ledger;
use littoral::node::verify::{self, Asked};
use market::Amount;
use market::abi::Order;
use market::deployment::Deployment;
use support::Bench;
use support::parties::sign;

const REQUESTER: DevKey = DEV_KEYS[1];
const NODE: DevKey = DEV_KEYS[2];

async fn chain(bench: &Bench) -> Chain {
    let deployment = Deployment::read(&bench.deployment.path).unwrap();
    Chain::connect(&bench.anvil.rpc_url().parse().unwrap(), deployment).await.unwrap()
}

async fn ledger(bench: &Bench, most: Option<u128>) -> Ledger {
    let chain = chain(bench).await;
    let earnings = Earnings::open(&bench.path("node"), &chain.deployment).unwrap();
    Ledger::new(earnings, chain, NODE.address(), most.map(Amount::from))
}

async fn refusal(ledger: &Ledger, bench: &Bench, order: &Order) -> String {
    ledger.promise(bench.job_id(order), order).await.err().map(|refusal| refusal.0).unwrap_or_default()
}

#[tokio::test]
async fn what_is_owed_and_under_way_counts_until_it_is_paid() {
    let bench = Bench::start().await;
    bench.register(NODE);
    bench.run(REQUESTER, &["deposit", "250"]).result();
    let ledger = ledger(&bench, None).await;
    let orders: Vec<Order> = {
        let mut orders = Vec::new();
        for nonce in 1..=4 {
            orders.push(bench.order(REQUESTER, NODE, 100, nonce).await);
        }
        orders
    };
    let first = ledger.promise(bench.job_id(&orders[0]), &orders[0]).await.unwrap();
    bench.earn(NODE, &orders[1], Some(REQUESTER), 100);
    assert!(refusal(&ledger, &bench, &orders[2]).await.contains("would owe this node 300: 200 already"));
    drop(first);
    assert_eq!(refusal(&ledger, &bench, &orders[2]).await, "", "the first came to nothing");

    // A voucher over the same job counts it once.
    bench.hold_voucher(REQUESTER.address(), NODE.address(), REQUESTER, (100, 2));
    assert_eq!(refusal(&ledger, &bench, &orders[2]).await, "");
    bench.run(NODE, &["node", "settle"]).results();
    let second = ledger.promise(bench.job_id(&orders[2]), &orders[2]).await.unwrap();
    assert!(refusal(&ledger, &bench, &orders[3]).await.contains("has 150 by the chain"), "what was paid is gone");
    drop(second);

    // What thaws is as good as gone, what is reserved is this node's.
    bench.run(REQUESTER, &["thaw", "100"]).result();
    assert!(refusal(&ledger, &bench, &orders[2]).await.contains("has 50 by the chain"));
    bench.run(REQUESTER, &["deposit", "50"]).result();
    bench.run(REQUESTER, &["reserve", &NODE.address().to_string(), "100"]).result();
    assert_eq!(refusal(&ledger, &bench, &orders[2]).await, "");
}

#[tokio::test]
async fn credit_beyond_the_reservation_ends_where_the_operator_says() {
    let bench = Bench::start().await;
    bench.register(NODE);
    bench.run(REQUESTER, &["deposit", "1000"]).result();
    let ledger = ledger(&bench, Some(150)).await;
    let (small, large) = (bench.order(REQUESTER, NODE, 150, 1).await, bench.order(REQUESTER, NODE, 151, 2).await);
    assert_eq!(refusal(&ledger, &bench, &small).await, "");
    assert!(refusal(&ledger, &bench, &large).await.contains("--max-unsettled"));
    bench.run(REQUESTER, &["reserve", &NODE.address().to_string(), "1"]).result();
    assert_eq!(refusal(&ledger, &bench, &large).await, "");
}

#[tokio::test]
async fn a_signed_order_must_be_its_requesters_uncancelled_and_not_covered() {
    let bench = Bench::start().await;
    bench.register(NODE);
    bench.run(REQUESTER, &["deposit", "1000"]).result();
    let chain = chain(&bench).await;
    let look = async |order: &Order, signer: DevKey| {
        let job_id = bench.job_id(order);
        let signature = sign(signer, job_id);
        let now = bench.now().await;
        let asked = Asked { job_id, order, signature: Some(&signature), me: NODE.address(), now, margin: 30 };
        verify::escrow(&chain, &asked).await.err().map(|refusal| refusal.0).unwrap_or_default()
    };
    let order = bench.order(REQUESTER, NODE, 100, 5).await;
    assert_eq!(look(&order, REQUESTER).await, "");
    assert!(look(&order, DEV_KEYS[4]).await.contains("not signed by its requester"));
    let wallet = Order { requester: chain.deployment.registry, ..order.clone() };
    assert!(look(&wallet, REQUESTER).await.contains("not signed"), "a contract that knows no signatures accepts none");
    let zero = Order { nonce: 0, ..order.clone() };
    assert!(look(&zero, REQUESTER).await.contains("nonce is 0"));

    bench.hold_voucher(REQUESTER.address(), NODE.address(), REQUESTER, (50, 5));
    bench.run(NODE, &["node", "settle"]).results();
    assert!(look(&order, REQUESTER).await.contains("is covered up to 5"));
    let next = bench.order(REQUESTER, NODE, 100, 6).await;
    assert_eq!(look(&next, REQUESTER).await, "");
    let file = bench.path("order.json");
    std::fs::write(&file, serde_json::to_vec(&market::order::OrderJson::from(&next)).unwrap()).unwrap();
    let job = bench.job_id(&next).to_string();
    bench.run(REQUESTER, &["cancel", &job, "--order", file.to_str().unwrap()]).result();
    assert!(look(&next, REQUESTER).await.contains("cancels it"));
    assert_eq!(next.token, Address::ZERO);
}
