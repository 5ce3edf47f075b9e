//! Jobs of all kinds, opened on the chain, from the deposit to the withdrawal.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use devnet::Service;
use rand::RngCore;
use rustix::process::Signal;

use crate::stage::{PRICE, Stage};

/// The id under which the node appears off-chain.
async fn node_id(stage: &Stage) -> String {
    let node = stage.get(&format!("/lit-compute/nodes/{}/status", stage.node())).await.unwrap();
    node["nodeId"].as_str().unwrap().to_owned()
}

/// The public keys are there, under their exact names, and say what Postgres and the chain say.
async fn assert_redis_tells(stage: &Stage, job: B256) {
    let (job, node) = (job.to_string(), node_id(stage).await);
    let status = format!("job:{job}:status");
    stage.redis_until(&["hget", &status, "status"], |answer| answer == "completed").await;
    assert_eq!(stage.redis(&["type", &status]).await, "hash");
    assert_eq!(stage.redis(&["hget", &status, "nodeId"]).await, node);
    assert!(stage.redis(&["hget", &status, "outputCID"]).await.starts_with("bafkrei"));
    for time in ["startedAt", "completedAt"] {
        assert!(!stage.redis(&["hget", &status, time]).await.is_empty(), "{time} is missing");
    }
    stage.redis_until(&["zscore", "jobs:completed", &job], |answer| !answer.is_empty()).await;
    assert_eq!(stage.redis(&["zscore", "jobs:pending", &job]).await, "");
    assert_eq!(stage.redis(&["sismember", &format!("jobs:active:{node}"), &job]).await, "0");
    assert_eq!(stage.redis(&["sismember", "nodes:available", &node]).await, "1");
    assert_eq!(stage.redis(&["hget", &format!("nodes:{node}:status"), "nodeId"]).await, node);
    let ttl: i64 = stage.redis(&["ttl", &format!("nodes:{node}:status")]).await.parse().unwrap();
    assert!((1..=300).contains(&ttl), "a node's status lives five minutes, not {ttl} s");
    // Paid: pending no more.
    let pending = format!("payments:pending:{node}");
    stage.redis_until(&["lrange", &pending, "0", "-1"], |answer| !answer.contains(&job)).await;
    stage.redis_until(&["zrange", "payments:completed", "0", "-1"], |answer| answer.contains(&job)).await;
}

#[tokio::test]
async fn files_of_all_sizes_are_encrypted_paid_and_told_of_in_redis() {
    let stage = Stage::new().await;
    let (requester, node) = (stage.market.keys().requester.address(), stage.node());
    let before = stage.chain.holdings(requester, Address::ZERO).await.unwrap();
    let to = node.to_string();

    let readme = std::fs::read(devnet::paths::root().join("README.md")).unwrap();
    let mut large = vec![0; 25 << 20];
    rand::rng().fill_bytes(&mut large);
    let mut last = B256::ZERO;
    for content in [readme.as_slice(), b"", &large] {
        last = stage.encrypt(content, &["--open", "--node", &to]).await;
        stage.assert_paid_once(last).await;
    }
    assert_redis_tells(&stage, last).await;

    let after = stage.chain.holdings(requester, Address::ZERO).await.unwrap();
    let earned = U256::from(PRICE) * U256::from(3);
    assert_eq!(before.deposited - after.deposited, earned, "the requester paid exactly three prices");
    let at_node = stage.chain.holdings(node, Address::ZERO).await.unwrap();
    assert_eq!(at_node.earned, earned, "the node has all of it");
    let withdrawal = stage.operator.run(["node", "withdraw"]).await.unwrap();
    let [hash] = withdrawal.transactions()[..] else { panic!("{withdrawal:?}") };
    let receipt = stage.chain.receipt(hash).await.unwrap();
    let gas = U256::from(receipt.gas_used) * U256::from(receipt.effective_gas_price);
    let withdrawn = stage.chain.holdings(node, Address::ZERO).await.unwrap();
    assert_eq!(withdrawn.earned, U256::ZERO);
    assert_eq!(withdrawn.wallet, at_node.wallet + earned - gas);
}

#[tokio::test]
async fn jobs_are_paid_in_tokens_and_open_orders_after_their_window() {
    let stage = Stage::new().await;
    let keys = stage.market.keys();
    let (requester, node) = (keys.requester.address(), stage.node());
    let token = stage.market.deployment().manifest.tokens["TEST"];
    let (token_text, to) = (token.to_string(), node.to_string());
    let amount = U256::from(PRICE) * U256::from(5);

    stage.chain.mint(keys.deployer, token, requester, amount).await.unwrap();
    stage.requester.run(["deposit", &amount.to_string(), "--token", &token_text]).await.unwrap();
    let job = stage.encrypt(b"paid in a token", &["--open", "--node", &to, "--token", &token_text]).await;
    stage.assert_paid_once(job).await;
    let left = stage.chain.holdings(requester, token).await.unwrap();
    assert_eq!((left.wallet, left.deposited), (U256::ZERO, amount - U256::from(PRICE)));
    assert_eq!(stage.chain.holdings(node, token).await.unwrap().earned, U256::from(PRICE));
    stage.operator.run(["node", "withdraw", "--token", &token_text]).await.unwrap();
    let withdrawn = stage.chain.holdings(node, token).await.unwrap();
    assert_eq!((withdrawn.wallet, withdrawn.earned), (U256::from(PRICE), U256::ZERO));

    // No node named: the assigner binds the order to the node that claims it, and a window is required.
    let open = stage.encrypt(b"for whoever comes first", &["--open", "--window", "2"]).await;
    stage.assert_paid_once(open).await;
    let submitted = stage.chain.events("ResultSubmitted", open).await.unwrap();
    assert_eq!(submitted.len(), 1, "the result was on the chain before it was paid");
    let paid = &stage.chain.events("JobPaid", open).await.unwrap()[0];
    let window = paid.block_timestamp.unwrap() - submitted[0].block_timestamp.unwrap();
    assert!(window >= 2, "paid {window} s after the result, before the window's end");
    assert_eq!(stage.chain.holdings(node, Address::ZERO).await.unwrap().earned, U256::from(PRICE));
}

#[tokio::test]
async fn a_job_submitted_right_after_its_deposit_waits_until_that_is_indexed() {
    let mut stage = Stage::new().await;
    let known = stage.known_jobs().await;
    let price = (U256::from(PRICE) * U256::from(1000)).to_string();
    // An order for a node whose stake is not indexed yet is refused for that.
    stage.node_is_known().await;
    stage.market.process(Service::Indexer).unwrap().signal(Signal::STOP).unwrap();
    stage.requester.run(["deposit", &price]).await.unwrap();
    let (file, node) = (stage.file("input", b"in a hurry"), stage.node().to_string());
    let args =
        ["submit", file.to_str().unwrap(), "--no-voucher", "--op", "command", "--price", &price, "--node", &node];
    let args = args.map(str::to_owned);
    let requester = stage.requester.clone();
    let submission = tokio::spawn(async move { requester.run(args).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    if submission.is_finished() {
        panic!("it is not refused for what the API cannot know yet: {:?}", submission.await);
    }
    assert_eq!(stage.known_jobs().await, known, "nor announced");
    stage.market.process(Service::Indexer).unwrap().signal(Signal::CONT).unwrap();
    let job = submission.await.unwrap().unwrap().text("jobId").unwrap().parse().unwrap();
    stage.assert_paid_once(job).await;
}
