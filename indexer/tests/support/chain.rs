//! A chain with the contracts on it, and things to do there.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, TxHash, U256};
use alloy::providers::ext::AnvilApi;
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::anvil::ReorgOptions;
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use alloy::signers::SignerSync;
use alloy::sol_types::SolCall;
use devnet::{Anvil, AnvilOptions, DEV_KEYS, DeployParams, DevKey};
use market::abi::{IJobEscrow, INodeRegistry, JobSpec, Order, Result as WorkResult};
use market::deployment::Deployment;
use market::fold::Contracts;
use market::source::Source;
use market::{rpc, typed_data};

pub const REQUESTER: DevKey = DEV_KEYS[1];
pub const NODE: DevKey = DEV_KEYS[2];
pub const ASSIGNER: DevKey = DEV_KEYS[3];
pub const SETTLER: DevKey = DEV_KEYS[4];
pub const OTHER_REQUESTER: DevKey = DEV_KEYS[5];
/// The native coin.
pub const COIN: Address = Address::ZERO;
/// A coin in wei.
pub const ETHER: u128 = 1_000_000_000_000_000_000;

/// A private chain with fresh contracts.
pub struct Chain {
    pub anvil: Anvil,
    pub provider: DynProvider,
    pub manifest: devnet::Deployment,
    pub deployment: Deployment,
    /// What indexes read through.
    readers: Vec<DynProvider>,
    _dir: tempfile::TempDir,
}

impl Chain {
    pub async fn start() -> Self {
        Self::start_with(AnvilOptions::default()).await
    }

    pub async fn start_with(options: AnvilOptions) -> Self {
        let anvil = Anvil::start(options).await.unwrap();
        let dir = devnet::paths::scratch_dir("indexer-test").unwrap();
        let path = dir.path().join("manifest.json");
        let manifest = devnet::Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &path, DeployParams::default())
            .await
            .unwrap();
        let deployment = Deployment::read(&path).unwrap();
        let provider = rpc::provider(&anvil.rpc_url().parse().unwrap());
        Self { anvil, readers: vec![provider.clone()], provider, manifest, deployment, _dir: dir }
    }

    /// Has indexes read through `readers`, the first of which is preferred.
    pub fn read_through(&mut self, readers: Vec<DynProvider>) {
        self.readers = readers;
    }

    pub fn escrow(&self) -> IJobEscrow::IJobEscrowInstance<DynProvider> {
        IJobEscrow::new(self.deployment.escrow, self.provider.clone())
    }

    pub fn registry(&self) -> INodeRegistry::INodeRegistryInstance<DynProvider> {
        INodeRegistry::new(self.deployment.registry, self.provider.clone())
    }

    pub fn source(&self) -> Source {
        Source::new(self.readers.clone(), Contracts::from(&self.deployment))
    }

    /// Sends a call as one of the accounts that Anvil signs for, and sees it mined and successful.
    pub async fn call(&self, from: DevKey, to: Address, value: u128, call: impl SolCall) -> TransactionReceipt {
        self.send(from, to, value, call.abi_encode().into()).await
    }

    pub async fn send(&self, from: DevKey, to: Address, value: u128, data: Bytes) -> TransactionReceipt {
        let request =
            TransactionRequest::default().from(from.address()).to(to).value(U256::from(value)).input(data.into());
        let hash: TxHash = *self.provider.send_transaction(request).await.unwrap().tx_hash();
        for _ in 0..2000 {
            if let Some(receipt) = self.provider.get_transaction_receipt(hash).await.unwrap() {
                assert!(receipt.status(), "transaction {hash} reverted");
                return receipt;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("transaction {hash} is not mined");
    }

    pub async fn deposit(&self, who: DevKey, amount: u128) {
        let call = IJobEscrow::depositCall { token: COIN, amount: U256::from(amount) };
        self.call(who, self.deployment.escrow, amount, call).await;
    }

    pub async fn register(&self, who: DevKey, stake: u128) {
        let call = INodeRegistry::registerCall {
            nodeId: B256::left_padding_from(who.address().as_slice()),
            publicKey: vec![7; 32].into(),
            payout: who.address(),
            capacity: 4,
            operations: vec!["encrypt".to_owned(), "command".to_owned()],
            uri: "https://node.example".to_owned(),
        };
        self.call(who, self.deployment.registry, stake, call).await;
    }

    /// An order for [`NODE`] that is paid at once, due in an hour of the chain's time.
    pub async fn order(&self, nonce: u64, spec: &JobSpec) -> Order {
        Order {
            requester: REQUESTER.address(),
            token: COIN,
            maxPrice: 1000,
            node: NODE.address(),
            assigner: Address::ZERO,
            specHash: typed_data::spec_hash(spec),
            deadline: self.now().await + 3600,
            challengeWindow: 0,
            arbiter: Address::ZERO,
            maxFeeBps: 0,
            nonce,
        }
    }

    pub async fn open(&self, order: &Order, spec: &JobSpec) -> B256 {
        let call = IJobEscrow::openJobCall { order: order.clone(), spec: spec.clone() };
        self.call(REQUESTER, self.deployment.escrow, 0, call).await;
        self.job_id(order)
    }

    pub fn job_id(&self, order: &Order) -> B256 {
        typed_data::job_id(order, &self.deployment.domain())
    }

    /// What [`NODE`] and, for open orders, [`ASSIGNER`] sign.
    pub fn result(&self, order: &Order, price: u128) -> WorkResult {
        let (job_id, domain) = (self.job_id(order), self.deployment.domain());
        let sign = |key: DevKey, digest| Bytes::from(key.signer().sign_hash_sync(&digest).unwrap().as_bytes().to_vec());
        let result_hash = B256::repeat_byte(0xee);
        let assignment = typed_data::assignment_digest(job_id, NODE.address(), order.deadline, &domain);
        WorkResult {
            order: order.clone(),
            node: NODE.address(),
            assignmentExpiry: order.deadline,
            price,
            resultHash: result_hash,
            assignmentSignature: if order.node.is_zero() { sign(ASSIGNER, assignment) } else { Bytes::new() },
            receiptSignature: sign(NODE, typed_data::receipt_digest(job_id, price, result_hash, &domain)),
            orderSignature: Bytes::new(),
        }
    }

    /// As [`Self::result`], for an order that its requester signed and did not open.
    pub fn signed(&self, order: &Order, price: u128) -> WorkResult {
        let requester = DEV_KEYS.into_iter().find(|key| key.address() == order.requester).unwrap();
        let signature = requester.signer().sign_hash_sync(&self.job_id(order)).unwrap();
        WorkResult { orderSignature: Bytes::from(signature.as_bytes().to_vec()), ..self.result(order, price) }
    }

    pub async fn submit(&self, results: Vec<WorkResult>) {
        self.call(SETTLER, self.deployment.escrow, 0, IJobEscrow::submitResultsCall { results }).await;
    }

    pub async fn finalize(&self, orders: Vec<Order>) {
        self.call(SETTLER, self.deployment.escrow, 0, IJobEscrow::finalizeCall { orders }).await;
    }

    /// The latest block's timestamp.
    pub async fn now(&self) -> u64 {
        self.provider.get_block(alloy::eips::BlockId::latest()).await.unwrap().unwrap().header.timestamp
    }

    /// Lets time pass, and mines a block afterwards.
    pub async fn wait(&self, secs: u64) {
        self.provider.anvil_increase_time(secs).await.unwrap();
        self.mine(1).await;
    }

    pub async fn mine(&self, blocks: u64) {
        self.provider.anvil_mine(Some(blocks), None).await.unwrap();
    }

    /// Replaces the last `depth` blocks by empty ones.
    pub async fn reorg(&self, depth: u64) {
        let before = self.provider.get_block_number().await.unwrap();
        self.provider.anvil_reorg(ReorgOptions { depth, tx_block_pairs: vec![] }).await.unwrap();
        assert_eq!(self.provider.get_block_number().await.unwrap(), before, "anvil replaces blocks one by one");
    }
}

/// A spec that differs by `tag`.
pub fn spec(tag: &str) -> JobSpec {
    JobSpec { inputCID: format!("bafk{tag}"), operation: "encrypt".to_owned(), params: r#"{"to":"age1x"}"#.to_owned() }
}
