//! Requesters that are contracts (ERC-1271): what they sign is paid on the chain like what keys sign.

use alloy::network::TransactionBuilder;
use alloy::primitives::{Address, Bytes, U256};
use alloy::providers::Provider;
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::{SolCall, SolValue};
use devnet::DevKey;
use market::abi::IJobEscrow;

use crate::rails::EAGER;
use crate::world::{NODES, PRICE, REQUESTERS, Terms, World};

impl World {
    /// A contract that takes for its own what `key` signs, with a deposit.
    async fn key_wallet(&self, key: DevKey) -> Address {
        let artifact =
            std::fs::read_to_string(devnet::paths::artifacts_dir().join("Wallets.sol/KeyWallet.json")).unwrap();
        let artifact: serde_json::Value = serde_json::from_str(&artifact).unwrap();
        let code: Bytes = artifact["bytecode"]["object"].as_str().unwrap().parse().unwrap();
        let code = [code.to_vec(), key.address().abi_encode()].concat();
        let create = TransactionRequest::default().with_from(key.address()).with_deploy_code(code);
        let created = self.provider.send_transaction(create).await.unwrap().get_receipt().await.unwrap();
        let wallet = created.contract_address.unwrap();
        let (amount, escrow) = (U256::from(10 * PRICE), self.escrow());
        let deposit = escrow.depositFor(wallet, Address::ZERO, amount).value(amount).from(key.address());
        self.mined(deposit.send()).await;
        wallet
    }
}

#[tokio::test]
async fn a_contract_wallets_orders_and_its_voucher_are_paid_on_the_chain() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let key = REQUESTERS[1];
    let wallet = world.key_wallet(key).await;
    world.caught_up().await;
    let alone = world.sign_for(wallet, key, &[Terms::default(); 2]).await;
    let covered = world.sign_for(wallet, key, &[Terms { node: NODES[1], ..Terms::default() }; 2]).await;
    let last = &covered[1].order;
    world.voucher_for(wallet, last, (2 * PRICE, last.nonce), key).await;
    let jobs = [alone.clone(), covered].concat();
    world.complete(&jobs).await;
    let settler = world.settler().args(EAGER).spawn().unwrap();
    world.wait_done(&jobs).await;
    world.assert_exactly_once(&jobs).await;
    world.wait_settled().await;

    let paid_alone: Vec<_> = world.logs::<IJobEscrow::JobPaid>().await.iter().map(|log| log.inner.jobId).collect();
    assert_eq!(paid_alone.len(), 2, "{}", settler.log_tail());
    assert!(alone.iter().all(|job| paid_alone.contains(&job.id)), "the orders without a voucher went alone");
    let mut redeemed = 0;
    for hash in world.signed().await {
        let sent = world.provider.get_transaction_by_hash(hash).await.unwrap().unwrap();
        let input = alloy::consensus::Transaction::input(&sent).clone();
        if let Ok(call) = IJobEscrow::redeemSignedCall::abi_decode(&input) {
            redeemed += call.vouchers.len();
            assert_eq!(call.vouchers[0].requester, wallet);
        }
    }
    assert_eq!(redeemed, 1, "the voucher is a wallet's, which takes the long form");
    assert_eq!(world.settle(&["holds"]), "");
}

#[tokio::test]
async fn what_a_contract_wallet_does_not_take_for_its_own_is_not_paid_and_harms_no_other() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let wallet = world.key_wallet(REQUESTERS[1]).await;
    world.caught_up().await;
    let bad = world.sign_for(wallet, REQUESTERS[2], &[Terms::default()]).await;
    let good = world.sign_for(wallet, REQUESTERS[1], &[Terms::default()]).await;
    world.complete(&[bad.clone(), good.clone()].concat()).await;
    let settler = world.settler().args(EAGER).args(["--simulate", "false"]).spawn().unwrap();
    world.wait_done(&good).await;
    world.wait("the bad one is held", async |world| world.hold(&bad[0]).await.is_some()).await;
    assert_eq!(world.hold(&bad[0]).await.unwrap(), "BadOrderSignature", "{}", settler.log_tail());
    world.assert_exactly_once(&good).await;
}
