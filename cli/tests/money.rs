//! What requesters set aside, promise by session keys, and deposit with permits, on a real chain.

#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{Address, U256};
use devnet::DEV_KEYS;
use serde_json::json;
use support::{Bench, Run, mode};

#[tokio::test]
async fn a_reservation_is_made_thawed_and_released() {
    let bench = Bench::start().await;
    let (requester, node) = (DEV_KEYS[1], DEV_KEYS[2]);
    bench.register(node);
    let to = node.address().to_string();
    let missing = bench.run(requester, &["reserve", &to, "5"]).error(1);
    assert!(missing["error"].as_str().unwrap().contains("only 0 of native is free"), "{missing}");
    bench.run(requester, &["deposit", "1000"]).result();
    let said = bench.run(requester, &["reserve", &to, "400"]).result();
    assert_eq!((&said["reserved"], &said["free"], &said["node"]), (&json!("400"), &json!("600"), &json!(to)));

    let said = bench.run(requester, &["thaw-reservation", &to, "150"]).result();
    assert_eq!((&said["reserved"], &said["thawing"]), (&json!("400"), &json!("150")));
    assert!(said["thawEnd"].as_str().unwrap().ends_with('Z'));
    let early = bench.run(requester, &["release", &to]).error(1);
    assert!(early["error"].as_str().unwrap().contains("thaw until"), "{early}");
    bench.pass(31).await;
    let said = bench.run(requester, &["release", &to]).result();
    assert_eq!((&said["amount"], &said["reserved"], &said["free"]), (&json!("150"), &json!("250"), &json!("750")));
    let again = bench.run(requester, &["release", &to]).error(1);
    assert!(again["error"].as_str().unwrap().contains("nothing reserved"), "{again}");

    let account = bench.run(requester, &["account"]).result();
    let native = &account["accounts"][0];
    assert_eq!((&native["free"], &native["reserved"], &native["thawing"]), (&json!("750"), &json!("250"), &json!("0")));
    assert_eq!(native["promised"], json!(null), "no API answers here");
    let channel = &account["channels"][0];
    assert_eq!((&channel["node"], &channel["reserved"], &channel["claimed"]), (&json!(to), &json!("250"), &json!("0")));
    let unknown = bench.run(requester, &["reserve", &requester.address().to_string(), "5"]).error(2);
    assert!(unknown["error"].as_str().unwrap().contains("no node"), "{unknown}");
}

#[tokio::test]
async fn a_token_with_permits_is_deposited_in_one_transaction() {
    let bench = Bench::start().await;
    let requester = DEV_KEYS[1];
    let token = bench.deployment.manifest.tokens["TEST"];
    bench.chain.mint(DEV_KEYS[0], token, requester.address(), U256::from(500)).await.unwrap();
    let said = bench.run(requester, &["deposit", "300", "--token", "TEST", "--permit"]).result();
    assert_eq!((&said["command"], &said["free"]), (&json!("deposit"), &json!("300")));
    let said = bench.run(requester, &["deposit", "200", "--token", "TEST", "--permit"]).result();
    assert_eq!(said["free"], "500");
    assert_eq!(bench.run(requester, &["deposit", "5", "--permit"]).error(2)["code"], "usage");
    bench.chain.mint(DEV_KEYS[0], token, requester.address(), U256::from(10)).await.unwrap();
    let native = bench.run(requester, &["deposit", "5", "--token", "native", "--permit"]).error(2);
    assert!(native["error"].as_str().unwrap().contains("ERC-20"), "{native}");
}

#[tokio::test]
async fn a_session_key_is_made_encrypted_authorized_and_revoked() {
    let bench = Bench::start().await;
    let requester = DEV_KEYS[1];
    let missing = bench.run(requester, &["session", "create"]).error(2);
    assert!(missing["error"].as_str().unwrap().contains("LITTORAL_PASSPHRASE"), "{missing}");
    let mut create = bench.command(requester, &["session", "create"]);
    let made = Run::of(create.env("LITTORAL_PASSPHRASE", "correct horse")).result();
    let (key, file) = (made["key"].as_str().unwrap(), made["file"].as_str().unwrap());
    assert_eq!(made["encrypted"], true);
    assert_eq!(mode(std::path::Path::new(file)), 0o600);
    assert!(std::fs::read(file).unwrap().starts_with(b"age-encryption.org/"));
    let plain = bench.run(requester, &["session", "create", "--no-passphrase"]).result();
    let plain = std::fs::read_to_string(plain["file"].as_str().unwrap()).unwrap();
    assert!(plain.trim().parse::<alloy::signers::local::PrivateKeySigner>().is_ok());

    let said = bench.run(requester, &["session", "authorize", key, "--cap", "700", "--expires-in", "1000"]).result();
    assert_eq!((&said["left"], &said["key"]), (&json!("700"), &json!(key)));
    let cut = bench.run(requester, &["session", "authorize", key, "--cap", "600"]).error(1);
    assert!(cut["error"].as_str().unwrap().contains("can be extended but not cut"), "{cut}");
    let listed = bench.run(requester, &["session", "list"]).result();
    let sessions = listed["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2, "{listed}");
    let one = sessions.iter().find(|session| session["key"] == key).unwrap();
    assert_eq!((&one["left"], &one["stored"]), (&json!("700"), &json!(true)));

    bench.run(requester, &["session", "revoke", key]).result();
    bench.pass(31).await;
    let listed = bench.run(requester, &["session", "list", "--token", "native"]).result();
    let one = listed["sessions"].as_array().unwrap().iter().find(|session| session["key"] == key).unwrap().clone();
    assert_eq!(one["left"], "0", "its time has passed");
}

#[tokio::test]
async fn a_nodes_settlers_are_allowed_listed_and_denied() {
    let bench = Bench::start().await;
    let node = DEV_KEYS[2];
    bench.register(node);
    assert_eq!(bench.run(node, &["node", "settler", "list"]).result()["settlers"], json!([]));
    let settler = Address::repeat_byte(0x5e).to_string();
    let said = bench.run(node, &["node", "settler", "allow", &settler]).result();
    assert_eq!((&said["settler"], &said["allowed"]), (&json!(settler), &json!(true)));
    let again = bench.run(node, &["node", "settler", "allow", &settler]).result();
    assert_eq!(again["txHash"], json!(null), "nothing is sent for what is so already");
    assert_eq!(bench.run(node, &["node", "settler", "list"]).result()["settlers"], json!([settler]));
    bench.run(node, &["node", "settler", "deny", &settler]).result();
    assert_eq!(bench.run(node, &["node", "settler", "list"]).result()["settlers"], json!([]));
    assert_eq!(bench.run(node, &["node", "settler", "allow", "none"]).error(2)["code"], "usage");
    assert_eq!(bench.run(node, &["node", "settler", "allow", "nobody"]).error(2)["code"], "usage");
}
