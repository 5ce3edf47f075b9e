//! Jobs on signed orders: paid by vouchers, by the order when the requester goes silent, or not at all when taken back.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use devnet::Service;
use serde_json::{Value, json};

use crate::stage::{PRICE, Pace, Stage};

async fn earned(stage: &Stage) -> U256 {
    stage.chain.holdings(stage.node(), Address::ZERO).await.unwrap().earned
}

fn prices(count: u64) -> U256 {
    U256::from(PRICE) * U256::from(count)
}

async fn vouchers(stage: &Stage, more: &[&str]) -> Vec<Value> {
    let args: Vec<&str> = ["voucher", "list"].iter().chain(more).copied().collect();
    stage.requester.run(args).await.unwrap().lines
}

/// Waits until `happens`.
async fn until(what: &str, mut happens: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !happens().await {
        assert!(started.elapsed() < Duration::from_secs(120), "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_signed_job_is_delivered_countersigned_and_paid_by_the_voucher() {
    let stage = Stage::at(Pace::Vouchers).await;
    let requester = stage.market.keys().requester.address();
    let before = stage.chain.holdings(requester, Address::ZERO).await.unwrap();
    let to = stage.node().to_string();
    let first = stage.encrypt(b"signed and countersigned", &["--node", &to]).await;
    stage.assert_paid_by_voucher(first).await;
    let second = stage.encrypt(b"for whoever comes first", &[]).await;
    stage.assert_paid_by_voucher(second).await;

    assert_eq!(earned(&stage).await, prices(2));
    let after = stage.chain.holdings(requester, Address::ZERO).await.unwrap();
    assert_eq!(before.deposited - after.deposited, prices(2));
    assert_eq!(before.wallet, after.wallet, "the requester sent nothing to the chain");
    let listed = vouchers(&stage, &["--all"]).await;
    let counted: Vec<usize> = listed.iter().map(|voucher| voucher["jobs"].as_array().unwrap().len()).collect();
    assert_eq!(counted, [1, 1], "{listed:?}");
    assert_eq!(listed[1]["cumulative"], prices(2).to_string());
    assert_eq!(listed[1]["redeemed"], true);
    stage.operator.run(["node", "withdraw"]).await.unwrap();
    assert_eq!(earned(&stage).await, U256::ZERO);
}

#[tokio::test]
async fn vouchers_pay_in_tokens_too() {
    let stage = Stage::at(Pace::Vouchers).await;
    let keys = stage.market.keys();
    let token = stage.market.deployment().manifest.tokens["TEST"];
    stage.chain.mint(keys.deployer, token, keys.requester.address(), prices(2)).await.unwrap();
    let (all, to) = (prices(2).to_string(), stage.node().to_string());
    stage.requester.run(["deposit", &all, "--token", "TEST", "--permit"]).await.unwrap();
    let job = stage.encrypt(b"paid in a token", &["--node", &to, "--token", "TEST"]).await;
    stage.assert_paid_by_voucher(job).await;
    assert_eq!(stage.chain.holdings(stage.node(), token).await.unwrap().earned, prices(1));
    stage.operator.run(["node", "withdraw", "--token", "TEST"]).await.unwrap();
    assert_eq!(stage.chain.holdings(stage.node(), token).await.unwrap().wallet, prices(1));
}

#[tokio::test]
async fn a_session_key_countersigns_many_jobs_with_few_vouchers() {
    let stage = Stage::at(Pace::Vouchers).await;
    let made = stage.requester.run(["session", "create", "--no-passphrase"]).await.unwrap();
    let key = made.text("key").unwrap().to_owned();
    let cap = prices(20).to_string();
    stage.requester.run(["session", "authorize", &key, "--cap", &cap, "--expires-in", "86400"]).await.unwrap();

    let files: Vec<String> = (0..6)
        .map(|i| stage.file(&format!("input-{i}"), format!("job {i}").as_bytes()).to_str().unwrap().to_owned())
        .collect();
    let (price, node) = (PRICE.to_string(), stage.node().to_string());
    let mut args = vec!["submit", "--op", "command", "--price", &price, "--node", &node, "--wait", "--session", &key];
    args.extend(files.iter().map(String::as_str));
    let said = stage.requester.run(args).await.unwrap();
    let submitted = said.lines.iter().filter(|line| line["command"] == "submit");
    let jobs: Vec<B256> = submitted.map(|line| line["jobId"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(jobs.len(), 6, "{said:?}");
    assert!(said.lines.iter().filter(|line| line["command"] == "submit").all(|line| line["rail"] == "signed"));
    // The last one may have been delivered while a voucher for those before it was under way.
    stage.requester.run(["voucher", "sign", "--session", &key]).await.unwrap();
    for job in jobs {
        stage.assert_paid_by_voucher(job).await;
    }
    assert_eq!(earned(&stage).await, prices(6));
    let listed = vouchers(&stage, &["--all"]).await;
    assert!(listed.iter().all(|voucher| voucher["signer"] == key), "{listed:?}");
    let sessions = stage.requester.run(["session", "list"]).await.unwrap();
    assert_eq!(sessions.result().unwrap()["sessions"][0]["left"], prices(14).to_string());
}

#[tokio::test]
async fn a_requester_who_goes_silent_pays_by_the_order() {
    let stage = Stage::at(Pace::Orders).await;
    let job = stage.submit("command", b"and never seen again", &[]).await;
    stage.assert_paid_once(job).await;
    assert_eq!(earned(&stage).await, prices(1));
    // The order was paid for by itself; a voucher that covers it promises no more.
    let next = stage.submit("command", b"back again", &["--wait"]).await;
    stage.reaches(next, "paid").await;
    assert_eq!(earned(&stage).await, prices(2));
    let listed = vouchers(&stage, &[]).await;
    assert_eq!(listed[0]["cumulative"], prices(2).to_string(), "all that the channel ever paid or is to pay");
}

#[tokio::test]
async fn a_job_for_which_no_voucher_is_wanted_gets_none_until_its_user_says_so() {
    let stage = Stage::at(Pace::Vouchers).await;
    let job = stage.submit("command", b"not now", &[]).await;
    stage.reaches(job, "completed").await;
    let out = stage.file("unused", b"");
    let id = job.to_string();
    let fetch = ["fetch", &id, "--force", "--no-voucher", "-o", out.to_str().unwrap()];
    stage.requester.run(fetch).await.unwrap();
    stage.requester.run(["voucher", "sign"]).await.unwrap();
    assert!(vouchers(&stage, &[]).await.is_empty(), "what is withheld is not countersigned by itself");
    let said = stage.requester.run(["voucher", "sign", "--accept", &id]).await.unwrap();
    assert_eq!(said.result().unwrap()["cumulative"], PRICE.to_string());
    stage.assert_paid_by_voucher(job).await;
}

#[tokio::test]
async fn a_signed_order_that_no_node_has_is_withdrawn_at_once() {
    let mut stage = Stage::at(Pace::Vouchers).await;
    stage.market.kill(Service::Node).unwrap();
    let job = stage.submit("command", b"never mind", &[]).await;
    let account = stage.requester.run(["account"]).await.unwrap();
    assert_eq!(account.result().unwrap()["accounts"][0]["promised"], PRICE.to_string());
    let said = stage.requester.run(["cancel", &job.to_string()]).await.unwrap();
    assert_eq!(said.result().unwrap()["txHash"], Value::Null, "nothing is sent to the chain");
    let account = stage.requester.run(["account"]).await.unwrap();
    assert_eq!(account.result().unwrap()["accounts"][0]["promised"], "0");
    let watched = stage.requester.run(["watch", &job.to_string()]).await.unwrap_err().to_string();
    assert!(watched.contains("was cancelled"), "{watched}");
}

#[tokio::test]
async fn more_than_the_deposit_has_is_refused_with_the_figures() {
    let mut stage = Stage::at(Pace::Vouchers).await;
    stage.market.kill(Service::Node).unwrap();
    // The deposit has a hundred prices.
    let (price, node) = (prices(60).to_string(), stage.node().to_string());
    let file = stage.file("input", b"dear");
    let args = ["submit", file.to_str().unwrap(), "--op", "command", "--price", &price, "--node", &node];
    stage.requester.run(args).await.unwrap();
    let refused = stage.requester.run(args).await.unwrap_err().to_string();
    assert!(refused.contains("insufficient_deposit"), "{refused}");
}

#[tokio::test]
async fn what_is_thawing_backs_no_order_from_when_the_indexer_has_seen_it() {
    let mut stage = Stage::at(Pace::Vouchers).await;
    stage.market.kill(Service::Node).unwrap();
    let node = stage.node().to_string();
    let file = stage.file("input", b"half of it is leaving");
    let submit = async |stage: &Stage, price: &str| {
        let args = ["submit", file.to_str().unwrap(), "--op", "command", "--price", price, "--node", &node];
        stage.requester.run(args).await.map_err(|error| format!("{error:#}"))
    };
    // Of a hundred prices, ten are promised and sixty thaw.
    submit(&stage, &prices(10).to_string()).await.unwrap();
    stage.requester.run(["thaw", &prices(60).to_string()]).await.unwrap();
    let account = format!("/lit-compute/accounts/{}", stage.market.keys().requester.address());
    until("the indexer has seen it", async || {
        let said = stage.get(&account).await.unwrap_or_default();
        said["balances"][0]["thawing"] == prices(60).to_string()
    })
    .await;
    let refused = submit(&stage, &prices(31).to_string()).await.unwrap_err();
    let figures = [prices(31), prices(40), prices(30), prices(10)].map(|figure| figure.to_string());
    for word in ["insufficient_deposit", "402"].iter().copied().chain(figures.iter().map(String::as_str)) {
        assert!(refused.contains(word), "no {word} in {refused}");
    }
    submit(&stage, &prices(30).to_string()).await.unwrap();
}

#[tokio::test]
async fn a_node_settles_by_itself_when_its_requester_takes_the_money_back() {
    let mut stage = Stage::at(Pace::Vouchers).await;
    let job = stage.submit("command", b"and the money back, please", &[]).await;
    stage.reaches(job, "completed").await;
    stage.market.kill(Service::Settler).unwrap();
    let requester = stage.market.keys().requester.address();
    let all = stage.chain.holdings(requester, Address::ZERO).await.unwrap().deposited.to_string();
    stage.requester.run(["thaw", &all]).await.unwrap();
    until("the node is paid before the thaw has ended", async || earned(&stage).await == prices(1)).await;
    assert_eq!(stage.chain.events("JobPaid", job).await.unwrap().len(), 1);
}

/// Around the moment at which the node signs the receipt: before, between receipt and journal, and after.
#[tokio::test]
async fn a_node_killed_around_its_receipt_is_paid_once_for_what_it_delivers() {
    let mut stage = Stage::at(Pace::Orders).await;
    let mut jobs = Vec::new();
    // The work takes a second.
    for millis in [960, 1000, 1020, 1040, 1060, 1090, 1130, 1200] {
        let job = stage.submit("command", format!("killed after {millis} ms").as_bytes(), &[]).await;
        stage.reaches(job, "active").await;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        stage.market.kill(Service::Node).unwrap();
        stage.market.start_service(Service::Node).await.unwrap();
        jobs.push(job);
    }
    for job in &jobs {
        stage.assert_paid_once(*job).await;
    }
    assert_eq!(earned(&stage).await, prices(8));
    let settled = stage.operator.run(["node", "settle"]).await.unwrap();
    assert_eq!(settled.result().unwrap()["summary"]["settled"], json!(0), "{settled:?}");
    assert_eq!(earned(&stage).await, prices(8), "and nothing is left to be paid");
}
