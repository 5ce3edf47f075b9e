//! Whose signature something is, asked of a chain on which some signers are contracts.

#![allow(clippy::unwrap_used)]

mod support;

use alloy::network::TransactionBuilder;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::providers::Provider;
use alloy::rpc::types::TransactionRequest;
use alloy::signers::SignerSync;
use alloy::sol_types::SolValue;
use devnet::DEV_KEYS;
use littoral::chain::Chain;
use littoral::wallet::is_signed_by;
use market::deployment::Deployment;
use support::Bench;

/// Creates the contract `name` of `contracts/test/mocks/Wallets.sol`.
async fn create(chain: &Chain, name: &str, arguments: Vec<u8>) -> Address {
    let artifact = devnet::paths::artifacts_dir().join(format!("Wallets.sol/{name}.json"));
    let artifact: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(artifact).unwrap()).unwrap();
    let code: Bytes = artifact["bytecode"]["object"].as_str().unwrap().parse().unwrap();
    let code = [code.to_vec(), arguments].concat();
    let create = TransactionRequest::default().with_from(DEV_KEYS[0].address()).with_deploy_code(code);
    let created = chain.provider.send_transaction(create).await.unwrap().get_receipt().await.unwrap();
    created.contract_address.unwrap()
}

#[tokio::test]
async fn a_wallets_word_counts_as_it_does_in_the_contract() {
    let bench = Bench::start().await;
    let deployment = Deployment::read(&bench.deployment.path).unwrap();
    let chain = Chain::connect(&bench.anvil.rpc_url().parse().unwrap(), deployment).await.unwrap();
    let (key, digest) = (DEV_KEYS[1], B256::repeat_byte(7));
    let signature = key.signer().sign_hash_sync(&digest).unwrap().as_bytes();
    let accepts = async |signer, digest| is_signed_by(&chain, signer, digest, &signature).await.unwrap();

    assert!(accepts(key.address(), digest).await, "a key's own");
    assert!(!accepts(DEV_KEYS[2].address(), digest).await, "another key's");
    let of_key = create(&chain, "KeyWallet", key.address().abi_encode()).await;
    assert!(accepts(of_key, digest).await, "its wallet's");
    assert!(!accepts(of_key, B256::repeat_byte(8)).await, "over something else");
    let of_another = create(&chain, "KeyWallet", DEV_KEYS[2].address().abi_encode()).await;
    assert!(!accepts(of_another, digest).await, "the wallet of another key");
    // The escrow gives it 100,000 gas for itself.
    let spends = async |gas: u64| create(&chain, "SpendingWallet", U256::from(gas).abi_encode()).await;
    assert!(accepts(spends(90_000).await, digest).await, "within what the escrow gives");
    assert!(!accepts(spends(110_000).await, digest).await, "beyond it");
    for no in ["BurningWallet", "InvalidWallet", "RevertingWallet"] {
        assert!(!accepts(create(&chain, no, vec![]).await, digest).await, "{no}");
    }
}
