//! Contracts that sign in.

use alloy::{
    primitives::{Address, Bytes},
    providers::ext::AnvilApi,
    signers::local::PrivateKeySigner,
};
use devnet::{Anvil, AnvilOptions};
use reqwest::Method;
use serde_json::json;

use crate::support::{Api, Reply, Wish};

/// Takes every signature: returns the magic value, whatever it is asked.
const ACCEPTS: &str = "0x631626ba7e60e01b60005260206000f3";
/// Takes none: returns zero.
const REFUSES: &str = "0x600060005260206000f3";
/// Reverts.
const REVERTS: &str = "0x60006000fd";
/// Never ends by itself.
const BURNS: &str = "0x5b600056";
/// Returns more than a megabyte, beginning with the magic value.
const FLOODS: &str = "0x631626ba7e60e01b600052622000006000f3";
/// Returns the magic value with dirt behind it.
const DIRTY: &str = "0x631626ba7e60e01b60011760005260206000f3";

async fn sign_in(api: &Api, wallet: Address, signature: &str) -> Reply {
    let mut message = api.message(&PrivateKeySigner::random()).await;
    message.address = wallet;
    let body = json!({ "message": message.to_string(), "signature": signature });
    Reply::of(api.request(Method::POST, "/lit-compute/auth/verify", None).json(&body)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_wallet_signs_in_with_what_it_takes_for_its_signature() {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let rpc = market::rpc::provider(&anvil.rpc_url().parse().unwrap());
    let api = Api::with(Wish { rpc_url: Some(anvil.rpc_url().to_owned()), ..Wish::default() }).await;
    for (code, taken) in
        [(ACCEPTS, true), (REFUSES, false), (REVERTS, false), (BURNS, false), (FLOODS, false), (DIRTY, false)]
    {
        let wallet = Address::from(rand::random::<[u8; 20]>());
        rpc.anvil_set_code(wallet, code.parse::<Bytes>().unwrap()).await.unwrap();
        for signature in ["0x", "0x1234", &format!("0x{}", "11".repeat(65)), &format!("0x{}", "22".repeat(200))] {
            let reply = sign_in(&api, wallet, signature).await;
            if taken {
                assert_eq!(reply.ok().text("walletAddress"), wallet.to_checksum(None));
            } else {
                reply.is_problem(401, "bad_signature", Some("signature"));
            }
        }
    }
    // An account without code takes nothing but its key's signature.
    sign_in(&api, Address::repeat_byte(7), "0x1234").await.is_problem(401, "bad_signature", Some("signature"));
    let long = format!("0x{}", "11".repeat(5000));
    sign_in(&api, Address::repeat_byte(7), &long).await.is_problem(422, "invalid_field", Some("signature"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_chain_keys_sign_in_and_contracts_are_told_to_wait() {
    let api = Api::start().await;
    api.user().await;
    let reply = sign_in(&api, Address::repeat_byte(7), "0x1234").await;
    reply.is_problem(503, "unavailable", None);
    assert!(reply.headers.contains_key("retry-after"));
}
