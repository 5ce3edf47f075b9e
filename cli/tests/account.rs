//! A requester's money, on a real chain: in, out, and what is refused.

#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{Address, U256};
use devnet::DEV_KEYS;
use serde_json::json;
use support::{Bench, Run};

#[tokio::test]
async fn the_native_coin_goes_in_thaws_and_comes_out() {
    let bench = Bench::start().await;
    let requester = DEV_KEYS[1];
    let said = bench.run(requester, &["deposit", "1000"]).result();
    assert_eq!(said["command"], "deposit");
    assert_eq!((&said["amount"], &said["free"]), (&json!("1000"), &json!("1000")));
    assert!(said["txHash"].as_str().unwrap().starts_with("0x") && said["gasUsed"].as_u64().unwrap() > 21_000);

    let said = bench.run(requester, &["thaw", "400"]).result();
    assert_eq!((&said["free"], &said["thawing"]), (&json!("600"), &json!("400")));
    assert!(said["thawEnd"].as_str().unwrap().ends_with('Z'));
    let early = bench.run(requester, &["withdraw"]).error(1);
    assert_eq!(early["code"], "contract_refuses");
    assert!(early["error"].as_str().unwrap().contains("thaw until"), "{early}");

    bench.pass(31).await;
    let to = Address::repeat_byte(0x77);
    let said = bench.run(requester, &["withdraw", "--to", &to.to_string()]).result();
    assert_eq!((&said["amount"], &said["thawing"]), (&json!("400"), &json!("0")));
    assert_eq!(bench.chain.holdings(to, Address::ZERO).await.unwrap().wallet, U256::from(400));

    let balance = bench.run(requester, &["balance", "--token", "native"]).result();
    assert_eq!(balance["address"], requester.address().to_string());
    assert_eq!(balance["balances"][0]["free"], "600");
    assert_eq!(balance["balances"][0]["thawEnd"], json!(null));
    let again = bench.run(requester, &["withdraw"]).error(1);
    assert!(again["error"].as_str().unwrap().contains("nothing is thawing"), "{again}");
}

#[tokio::test]
async fn a_token_is_approved_exactly_and_only_when_it_must_be() {
    let bench = Bench::start().await;
    let requester = DEV_KEYS[1];
    let token = bench.deployment.manifest.tokens["TEST"];
    bench.chain.mint(DEV_KEYS[0], token, requester.address(), U256::from(500)).await.unwrap();

    let said = bench.run(requester, &["deposit", "300", "--token", "TEST"]).results();
    let commands: Vec<&str> = said.iter().map(|line| line["command"].as_str().unwrap()).collect();
    assert_eq!(commands, ["approve", "deposit"]);
    assert_eq!(said[0]["amount"], "300");
    assert_eq!((&said[1]["token"], &said[1]["free"]), (&json!(token.to_string()), &json!("300")));

    let too_much = bench.run(requester, &["deposit", "201", "--token", &token.to_string()]).error(1);
    assert!(too_much["error"].as_str().unwrap().contains("has 200 of TEST"), "{too_much}");
    let said = bench.run(requester, &["deposit", "200", "--token", &token.to_string().to_lowercase()]).results();
    assert_eq!(said.len(), 2, "the first approval was used up: {said:?}");
    assert_eq!(bench.chain.holdings(requester.address(), token).await.unwrap().deposited, U256::from(500));
    let all = bench.run(requester, &["balance"]).result();
    let names: Vec<&str> =
        all["balances"].as_array().unwrap().iter().map(|balance| balance["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["native", "TEST"]);
}

#[tokio::test]
async fn nothing_is_sent_to_another_chain_or_to_addresses_without_the_contracts() {
    let bench = Bench::start().await;
    let requester = DEV_KEYS[1];
    let before = bench.chain.holdings(requester.address(), Address::ZERO).await.unwrap().wallet;
    let manifest = std::fs::read_to_string(&bench.deployment.path).unwrap();
    for (name, text, code) in [
        ("chain", manifest.replace("31337", "11155111"), "wrong_chain"),
        (
            "code",
            manifest
                .replace(&format!("{:?}", bench.deployment.manifest.escrow), &format!("{:?}", Address::repeat_byte(5))),
            "no_contract",
        ),
    ] {
        assert_ne!(text, manifest, "{name}");
        let path = bench.path(&format!("{name}.json"));
        std::fs::write(&path, text).unwrap();
        let run = Run::of(bench.command(requester, &["deposit", "1000"]).env("LITTORAL_DEPLOYMENT", &path));
        assert_eq!(run.error(6)["code"], code);
    }
    let unreachable = Run::of(bench.command(requester, &["deposit", "1"]).env("RPC_URL", "http://127.0.0.1:1"));
    assert_eq!(unreachable.error(1)["code"], "rpc_unreachable");
    let after = bench.chain.holdings(requester.address(), Address::ZERO).await.unwrap().wallet;
    assert_eq!(before, after, "not even gas was spent");
}

#[tokio::test]
async fn amounts_that_are_not_there_or_not_amounts_are_refused() {
    let bench = Bench::start().await;
    let requester = DEV_KEYS[1];
    for bad in ["0.1 ETH", "1e18", "-5", "0x10", "340282366920938463463374607431768211456", "0"] {
        let error = bench.run(requester, &["deposit", "--", bad]).error(2);
        assert_eq!(error["code"], "usage", "{bad}");
    }
    let error = bench.run(requester, &["deposit", "340282366920938463463374607431768211455"]).error(1);
    assert!(error["error"].as_str().unwrap().contains("your wallet has"), "{error}");
    let error = bench.run(requester, &["thaw", "1"]).error(1);
    assert_eq!(error["code"], "contract_refuses");
    assert!(error["error"].as_str().unwrap().contains("has 0, 1 are needed"), "{error}");
    assert_eq!(bench.run(requester, &["deposit", "1", "--token", "0x12"]).error(2)["code"], "usage");
    let run = Run::of(bench.command(requester, &["deposit", "1"]).env_remove("LITTORAL_KEY"));
    assert!(run.error(2)["error"].as_str().unwrap().contains("LITTORAL_KEY"));
}
