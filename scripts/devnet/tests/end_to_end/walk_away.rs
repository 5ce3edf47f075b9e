//! The owner has paused and renounced both contracts, and API, settler and indexer are gone for good: everyone gets what is theirs by `littoral` and the chain alone.

use std::time::Duration;

use alloy::network::EthereumWallet;
use alloy::primitives::{Address, B256, U256};
use alloy::providers::ProviderBuilder;
use alloy::providers::ext::AnvilApi;
use devnet::Service;

use crate::stage::{PRICE, Pace, Stage};

alloy::sol! {
    /// What the owner of either contract can do to it.
    #[sol(rpc)]
    interface IOwned {
        function owner() external view returns (address);
        function paused() external view returns (bool);
        function setPaused(bool paused) external;
        function renounceOwnership() external;
    }
}

impl Stage {
    /// The owner pauses both contracts and gives them up: nobody can ever unpause them.
    async fn owner_leaves(&self) {
        let wallet = EthereumWallet::from(self.market.keys().deployer.signer());
        let url = self.market.endpoints().rpc_url.parse().unwrap();
        let provider = ProviderBuilder::new().wallet(wallet).connect_http(url);
        let manifest = &self.market.deployment().manifest;
        for contract in [manifest.escrow, manifest.registry] {
            let contract = IOwned::new(contract, &provider);
            assert!(contract.setPaused(true).send().await.unwrap().get_receipt().await.unwrap().status());
            assert!(contract.renounceOwnership().send().await.unwrap().get_receipt().await.unwrap().status());
            assert!(contract.paused().call().await.unwrap());
            assert_eq!(contract.owner().call().await.unwrap(), Address::ZERO);
        }
    }

    /// Lets time pass on the chain.
    async fn pass(&self, secs: u64) {
        self.chain.provider().anvil_increase_time(secs).await.unwrap();
        self.chain.provider().anvil_mine(Some(1), None).await.unwrap();
    }

    /// What the escrow holds of the native coin, for everybody together.
    async fn held(&self) -> U256 {
        let escrow = self.market.deployment().manifest.escrow;
        self.chain.holdings(escrow, Address::ZERO).await.unwrap().wallet
    }
}

#[tokio::test]
async fn nodes_are_paid_requesters_refunded_and_both_withdraw() {
    let mut stage = Stage::at(Pace::Vouchers).await;
    let keys = stage.market.keys();
    let (requester, node) = (keys.requester.address(), stage.node());
    let price = U256::from(PRICE);
    // The settler has gone first: nothing of this is paid while there is an API.
    stage.market.kill(Service::Settler).unwrap();
    let covered = stage.submit("command", b"delivered and countersigned", &["--wait"]).await;
    let silent = stage.submit("command", b"delivered, and the requester went silent", &[]).await;
    stage.reaches(silent, "completed").await;
    let opened = stage.submit("command", b"opened and delivered", &["--open", "--window", "60"]).await;
    stage.reaches(opened, "completed").await;
    // The node learns of the voucher before everything ends.
    let vouchers = stage.market.endpoints().node_dir.join("earnings");
    assert!(has_voucher(&vouchers).await, "the node keeps the voucher");
    stage.market.kill(Service::Node).unwrap();
    let lost = stage.submit("command", b"opened, and nobody does it", &["--open", "--deadline", "100"]).await;
    let cancelled = stage.submit("command", b"signed, and taken back", &[]).await;
    // First the owner, who stops what can be stopped, then everybody else.
    stage.owner_leaves().await;
    for service in [Service::Api, Service::Indexer] {
        stage.market.kill(service).unwrap();
    }

    // The node, with its files and the chain.
    let planned = stage.operator.run(["node", "settle", "--dry-run"]).await.unwrap();
    assert_eq!(planned.result().unwrap()["summary"]["settled"], 3, "{planned:?}");
    stage.operator.run(["node", "settle"]).await.unwrap();
    let earned = async |stage: &Stage| stage.chain.holdings(node, Address::ZERO).await.unwrap().earned;
    assert_eq!(earned(&stage).await, price * U256::from(2), "the voucher and the order; the window still runs");
    stage.pass(61).await;
    stage.operator.run(["node", "settle"]).await.unwrap();
    assert_eq!(earned(&stage).await, price * U256::from(3));
    for _ in 0..2 {
        stage.operator.run(["node", "settle"]).await.unwrap();
    }
    assert_eq!(earned(&stage).await, price * U256::from(3), "once each, however often it is asked");
    assert!(stage.chain.events("JobPaid", covered).await.unwrap().is_empty(), "the voucher paid for it");
    for job in [silent, opened] {
        assert_eq!(stage.chain.events("JobPaid", job).await.unwrap().len(), 1);
    }
    stage.operator.run(["node", "withdraw"]).await.unwrap();
    assert_eq!(earned(&stage).await, U256::ZERO);

    // The requester, with theirs.
    let said = stage.requester.run(["cancel", &cancelled.to_string()]).await.unwrap();
    assert!(said.text("cancelAt").is_ok(), "{said:?}");
    stage.pass(100).await;
    refund(&stage, lost, price).await;
    let left = stage.chain.holdings(requester, Address::ZERO).await.unwrap().deposited;
    assert_eq!(left, price * U256::from(97), "of a hundred prices, three were earned");
    stage.requester.run(["thaw", &left.to_string()]).await.unwrap();
    stage.pass(31).await;
    let said = stage.requester.run(["withdraw"]).await.unwrap();
    assert_eq!(said.text("amount").unwrap(), left.to_string());
    assert_eq!(stage.held().await, U256::ZERO, "the escrow owes nobody anything");

    // The stake too.
    let stake = stage.chain.holdings(node, Address::ZERO).await.unwrap().staked;
    stage.operator.run(["node", "unbond", &stake.to_string()]).await.unwrap();
    stage.pass(stage.market.deployment().manifest.registry_params.unbonding_period + 1).await;
    stage.operator.run(["node", "unbond", "--finish"]).await.unwrap();
    assert_eq!(stage.chain.holdings(node, Address::ZERO).await.unwrap().staked, U256::ZERO);
}

async fn refund(stage: &Stage, job: B256, price: U256) {
    let said = stage.requester.run(["refund", &job.to_string()]).await.unwrap();
    assert_eq!(said.text("amount").unwrap(), price.to_string());
    assert_eq!(stage.chain.events("JobRefunded", job).await.unwrap().len(), 1);
}

/// Waits until the node keeps a voucher for some escrow.
async fn has_voucher(earnings: &std::path::Path) -> bool {
    for _ in 0..600 {
        for escrow in std::fs::read_dir(earnings).into_iter().flatten().flatten() {
            let files = std::fs::read_dir(escrow.path().join("vouchers")).into_iter().flatten().flatten();
            if files.into_iter().any(|file| file.path().extension().is_some_and(|extension| extension == "json")) {
                return true;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}
