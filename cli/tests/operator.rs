//! An operator's registration and stake, on a real chain.

#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{Address, U256};
use devnet::{DEV_KEYS, DeployParams};
use serde_json::json;
use support::{Bench, Run, mode};

const ETHER: &str = "1000000000000000000";

#[tokio::test]
async fn a_node_registers_with_a_private_key_of_its_own_and_stakes() {
    let bench = Bench::start().await;
    let node = DEV_KEYS[2];
    let register = ["node", "register", "--capacity", "4", "--ops", "encrypt,decrypt", "--uri", "https://node.example"];
    let said = bench.run(node, &register).result();
    let identity = bench.path("node/identity.txt");
    assert_eq!(said["identity"], identity.to_str().unwrap());
    assert_eq!(mode(&identity), 0o600);
    let recipient = said["recipient"].as_str().unwrap();
    assert!(std::fs::read_to_string(&identity).unwrap().contains(recipient));
    assert_eq!(said["operations"], json!(["encrypt", "decrypt"]));

    let status = bench.run(node, &["node", "status"]).result();
    assert_eq!(status["nodeId"], said["nodeId"]);
    assert_eq!((&status["recipient"], &status["capacity"]), (&json!(recipient), &json!(4)));
    assert_eq!((&status["isStaked"], &status["stake"]), (&json!(false), &json!("0")));
    assert_eq!(status["api"], json!(null), "no API answers here");

    let staked = bench.run(node, &["node", "stake", ETHER]).result();
    assert_eq!((&staked["command"], &staked["stake"]), (&json!("stake"), &json!(ETHER)));
    let by_id = bench.run(DEV_KEYS[1], &["node", "status", said["nodeId"].as_str().unwrap()]).result();
    assert_eq!((&by_id["node"], &by_id["isStaked"]), (&json!(node.address().to_string()), &json!(true)));

    let again = bench.run(node, &register).error(1);
    assert!(again["error"].as_str().unwrap().contains("registered already"), "{again}");
}

#[tokio::test]
async fn stake_comes_out_after_unbonding_and_goes_to_the_payout_address() {
    let bench = Bench::start().await;
    let node = DEV_KEYS[2];
    let payout = Address::repeat_byte(0x99);
    let payout_text = payout.to_string();
    let args = ["node", "register", "--capacity", "1", "--ops", "encrypt", "--stake", ETHER, "--payout", &payout_text];
    assert_eq!(bench.run(node, &args).result()["stake"], ETHER);

    let said = bench.run(node, &["node", "unbond", "300"]).result();
    assert_eq!((&said["command"], &said["unbonding"]), (&json!("startUnbond"), &json!("300")));
    let early = bench.run(node, &["node", "unbond", "--finish"]).error(1);
    assert!(early["error"].as_str().unwrap().contains("unbonds until"), "{early}");
    bench.pass(DeployParams::default().unbonding_period_secs + 1).await;
    let said = bench.run(node, &["node", "unbond", "--finish"]).result();
    assert_eq!((&said["amount"], &said["to"], &said["unbonding"]), (&json!("300"), &json!(payout_text), &json!("0")));
    assert_eq!(bench.chain.holdings(payout, Address::ZERO).await.unwrap().wallet, U256::from(300));
    let nothing = bench.run(node, &["node", "unbond", "--finish"]).error(1);
    assert!(nothing["error"].as_str().unwrap().contains("no stake is unbonding"), "{nothing}");
    let nothing = bench.run(node, &["node", "withdraw"]).error(1);
    assert!(nothing["error"].as_str().unwrap().contains("has earned no native"), "{nothing}");
}

#[tokio::test]
async fn an_update_changes_what_is_given_and_keeps_the_rest() {
    let bench = Bench::start().await;
    let node = DEV_KEYS[2];
    let id = format!("0x{}", "ab".repeat(32));
    let register = [
        "node",
        "register",
        "--capacity",
        "4",
        "--ops",
        "encrypt,command",
        "--uri",
        "https://a.example",
        "--node-id",
        &id,
    ];
    assert_eq!(bench.run(node, &register).result()["nodeId"], id);
    bench.run(node, &["node", "update", "--capacity", "9"]).result();
    let status = bench.run(node, &["node", "status"]).result();
    assert_eq!((&status["capacity"], &status["operations"]), (&json!(9), &json!(["encrypt", "command"])));
    assert_eq!((&status["uri"], &status["nodeId"]), (&json!("https://a.example"), &json!(id)));

    let taken = ["node", "register", "--capacity", "1", "--ops", "encrypt", "--node-id", &id];
    let error = Run::of(bench.command(DEV_KEYS[3], &taken).env("LITTORAL_NODE_DIR", bench.path("other"))).error(1);
    assert!(error["error"].as_str().unwrap().contains("is taken"), "{error}");
}

#[tokio::test]
async fn a_node_that_is_not_registered_or_has_another_key_does_not_run() {
    let bench = Bench::start().await;
    let node = DEV_KEYS[2];
    for command in [&["node", "run"][..], &["node", "stake", "5"], &["node", "unbond", "5"], &["node", "update"]] {
        let error = bench.run(node, command).error(1);
        assert!(error["error"].as_str().unwrap().contains("not registered"), "{command:?}: {error}");
    }
    bench.run(node, &["node", "register", "--capacity", "1", "--ops", "encrypt"]).result();
    let missing = Run::of(bench.command(node, &["node", "run"]).env("LITTORAL_NODE_DIR", bench.path("empty"))).error(1);
    assert!(missing["error"].as_str().unwrap().contains("identity.txt"), "{missing}");

    let other = bench.path("other");
    std::fs::create_dir(&other).unwrap();
    let out = other.join("identity.txt");
    bench.run(node, &["keygen", "-o", out.to_str().unwrap()]).result();
    let error = Run::of(bench.command(node, &["node", "run"]).env("LITTORAL_NODE_DIR", &other)).error(1);
    assert!(error["error"].as_str().unwrap().contains("not the key that is registered"), "{error}");
    let error = bench.run(node, &["node", "run", "--ops", "command"]).error(2);
    assert!(error["error"].as_str().unwrap().contains("--command"), "{error}");
}
