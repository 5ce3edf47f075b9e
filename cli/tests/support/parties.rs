//! What requesters and nodes sign, made with the same vocabulary and without the command line.

use alloy::network::EthereumWallet;
use alloy::primitives::{Address, B256, Bytes};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::signers::SignerSync;
use devnet::DevKey;
use littoral::node::earnings::{Earning, Earnings, HeldVoucher};
use market::ContentId;
use market::abi::IJobEscrow::IJobEscrowInstance;
use market::abi::{JobSpec, JobState, Order, Voucher};
use market::typed_data;

use super::Bench;

pub const ETHER: &str = "1000000000000000000";
/// Later than any of these tests ends, and within what the escrow allows.
pub const DEADLINE_SECS: u64 = 86_400;

impl Bench {
    pub fn domain(&self) -> alloy::sol_types::Eip712Domain {
        typed_data::domain(self.deployment.manifest.chain_id, self.deployment.manifest.escrow)
    }

    fn provider(&self, key: DevKey) -> DynProvider {
        let wallet = EthereumWallet::from(key.signer());
        ProviderBuilder::new().wallet(wallet).connect_http(self.anvil.rpc_url().parse().unwrap()).erased()
    }

    /// The escrow, as `key` calls it.
    pub fn escrow(&self, key: DevKey) -> IJobEscrowInstance<DynProvider> {
        IJobEscrowInstance::new(self.deployment.manifest.escrow, self.provider(key))
    }

    pub async fn now(&self) -> u64 {
        let block = self.chain.provider().get_block(alloy::eips::BlockId::latest()).await.unwrap();
        block.unwrap().header.timestamp
    }

    /// An order of `requester` for `node` in the native coin.
    pub async fn order(&self, requester: DevKey, node: DevKey, price: u128, nonce: u64) -> Order {
        Order {
            requester: requester.address(),
            maxPrice: price,
            node: node.address(),
            specHash: typed_data::spec_hash(&spec()),
            deadline: self.now().await + DEADLINE_SECS,
            nonce,
            ..Order::default()
        }
    }

    pub fn job_id(&self, order: &Order) -> B256 {
        typed_data::job_id(order, &self.domain())
    }

    /// Opens the order on the chain, with its price from the requester's wallet.
    pub async fn open(&self, requester: DevKey, order: &Order) -> B256 {
        let escrow = self.escrow(requester);
        let call = escrow.openJob(order.clone(), spec());
        let call = call.value(alloy::primitives::U256::from(order.maxPrice));
        assert!(call.send().await.unwrap().get_receipt().await.unwrap().status());
        self.job_id(order)
    }

    /// A result of `node` on the order, as the node keeps it; with the requester's signature where there is one.
    pub fn earn(&self, node: DevKey, order: &Order, signed_by: Option<DevKey>, price: u128) -> Earning {
        let job_id = self.job_id(order);
        let output_cid = ContentId::of(job_id.as_slice());
        let receipt = typed_data::receipt_digest(job_id, price, output_cid.digest(), &self.domain());
        let now = market::clock::now();
        let earning = Earning {
            job_id,
            order: order.into(),
            spec: (&spec()).into(),
            order_signature: signed_by.map(|key| sign(key, job_id)),
            assignment: None,
            price: price.into(),
            result_hash: output_cid.digest(),
            output_cid,
            receipt_signature: sign(node, receipt),
            signed_at: now,
            acknowledged_at: Some(now),
        };
        self.earnings().keep(&earning).unwrap();
        earning
    }

    /// What the node keeps.
    pub fn earnings(&self) -> Earnings {
        let deployment = market::deployment::Deployment::read(&self.deployment.path).unwrap();
        Earnings::open(&self.path("node"), &deployment).unwrap()
    }

    /// A voucher in the native coin by `signer`, as the node keeps it.
    pub fn hold_voucher(&self, requester: Address, node: Address, signer: DevKey, (sum, nonce): (u128, u64)) {
        let voucher = Voucher { requester, node, token: Address::ZERO, cumulative: sum, coveredNonce: nonce };
        let held = HeldVoucher {
            requester,
            token: Address::ZERO,
            cumulative: sum.into(),
            covered_nonce: nonce,
            signature: sign(signer, typed_data::voucher_digest(&voucher, &self.domain())),
        };
        assert!(self.earnings().keep_voucher(&held).unwrap());
    }

    pub async fn state(&self, job_id: B256) -> JobState {
        let escrow = IJobEscrowInstance::new(self.deployment.manifest.escrow, self.chain.provider().clone());
        escrow.job(job_id).call().await.unwrap().state
    }

    /// Registers and stakes `node`, without a settler.
    pub fn register(&self, node: DevKey) {
        let args = ["node", "register", "--capacity", "4", "--ops", "encrypt", "--stake", ETHER, "--settler", "none"];
        self.run(node, &args).result();
    }
}

pub fn spec() -> JobSpec {
    JobSpec { inputCID: ContentId::of(b"input").to_string(), operation: "encrypt".into(), params: String::new() }
}

pub fn sign(key: DevKey, digest: B256) -> Bytes {
    key.signer().sign_hash_sync(&digest).unwrap().as_bytes().into()
}
