//! A real Anvil with as many events of our contracts as are asked for.

use std::fs;
use std::path::Path;

use alloy::dyn_abi::{DynSolValue, JsonAbiExt};
use alloy::json_abi::JsonAbi;
use alloy::primitives::{Address, B256, Bytes, U256, hex};
use alloy::rpc::types::TransactionReceipt;
use alloy::sol_types::{SolCall, SolValue};
use anyhow::{Context, ensure};
use devnet::deployment::Artifact;
use devnet::{Anvil, AnvilOptions, DEV_KEYS, DeployParams, Deployment};
use market::abi::IJobEscrow;
use serde_json::{Value, json};

use super::rpc::Rpc;

/// Requesters and nodes. No two of these numbers and of the periods in `Traffic.sol` have a divisor in common, so that every
/// kind of job comes to everybody.
const REQUESTERS: u64 = 997;
const NODES: u64 = 53;
/// How many of them a transaction can make.
const ACTORS: u64 = 20;
/// What a job is in events, in thousandths: see `Traffic.sol`.
const EVENTS_PER_1000_JOBS: u64 = 2690;
/// Gas of a transaction: the most that Anvil's rules allow is 2^24.
const GAS: u64 = 16_000_000;
/// Blocks without events at the end, so that nothing is left for how Ponder follows the head.
pub const EMPTY_BLOCKS: u64 = 40;
/// Fee on jobs that allow one, in basis points.
const FEE_BPS: u16 = 50;

/// How events lie in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Density {
    /// About 1,000 events a block.
    Dense,
    /// About 30 events a block.
    Sparse,
}

impl Density {
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Sparse => "sparse",
        }
    }

    /// Transactions a block, and jobs a transaction.
    fn traffic(self) -> (u64, u64) {
        match self {
            Self::Dense => (12, 31),
            Self::Sparse => (2, 6),
        }
    }
}

/// The node, the contracts, and who uses them.
pub struct Chain {
    /// Go last: everything else asks the node, and the node asks its origin.
    _anvil: Anvil,
    _origin: Anvil,
    pub rpc: Rpc,
    /// Of the node's process.
    pub pid: u32,
    pub rpc_url: String,
    pub deployment: Deployment,
    traffic: Address,
    abi: JsonAbi,
    sender: Address,
    nonce: u64,
    next_job: u64,
}

/// Has what the node calls finalized count as that, as on public chains; by default a local chain's blocks can be taken back. Jobs of
/// any price are queued at once all the same: how long that takes is measured, not how long the chain takes to be final.
fn final_by_tag(deployment: &Deployment) -> anyhow::Result<()> {
    let mut text: Value = serde_json::from_slice(&fs::read(&deployment.path)?)?;
    let tokens = deployment.manifest.tokens.values().copied();
    let queue: Vec<Value> = std::iter::once(Address::ZERO)
        .chain(tokens)
        .map(|token| json!({ "token": token, "upTo": u128::MAX.to_string(), "depth": 0 }))
        .collect();
    text["confirmation"] = json!({ "finality": "finalized", "reorgsBelowFinal": false, "queue": queue });
    Ok(fs::write(&deployment.path, serde_json::to_vec_pretty(&text)?)?)
}

impl Chain {
    /// Starts Anvil, deploys, and mines until there are about `events` events, then a few blocks without.
    pub async fn generate(dir: &Path, density: Density, events: u64) -> anyhow::Result<Self> {
        // A fork, of a chain that has nothing but its first block: with each block that it mines, Anvil hashes the whole state there is,
        // unless it is a fork. Thousands of blocks would take from minutes to hours.
        let origin = Anvil::start(AnvilOptions::default()).await?;
        // Past states are not asked for and would be written to disk. All but the last two blocks are final, as nearly all of a
        // chain is that is indexed from its beginning.
        let own =
            ["--gas-limit", "4000000000", "--prune-history", "--no-request-size-limit", "--slots-in-an-epoch", "1"];
        let fork = ["--fork-url", origin.rpc_url(), "--no-storage-caching"];
        let options = AnvilOptions {
            log: Some(dir.join("anvil.log")),
            args: own.into_iter().chain(fork).map(str::to_owned).collect(),
            ..AnvilOptions::default()
        };
        let mut anvil = Anvil::start(options).await?;
        let pid = anvil.process().pid();
        let params = DeployParams { thaw_period_secs: 1, ..DeployParams::default() };
        let url = anvil.rpc_url().to_owned();
        let deployment = Deployment::deploy_fast(&url, DEV_KEYS[0], &dir.join("manifest.json"), params).await?;
        final_by_tag(&deployment)?;
        let artifact = Artifact::load("Traffic")?;
        let mut chain = Self {
            _anvil: anvil,
            _origin: origin,
            rpc: Rpc::new(&url),
            pid,
            rpc_url: url,
            deployment,
            traffic: Address::ZERO,
            abi: artifact.abi,
            sender: DEV_KEYS[0].address(),
            nonce: 0,
            next_job: 0,
        };
        chain.prepare(&artifact.bytecode.object).await?;
        let (transactions, jobs) = density.traffic();
        for _ in 0..(events * 1000).div_ceil(EVENTS_PER_1000_JOBS * transactions * jobs) {
            chain.send_traffic(density).await?;
            chain.mine().await?;
        }
        chain.rpc.tell("anvil_mine", json!([EMPTY_BLOCKS])).await?;
        Ok(chain)
    }

    /// The latest block's number.
    pub async fn head(&self) -> anyhow::Result<u64> {
        let head: String = self.rpc.call("eth_blockNumber", json!([])).await?;
        Ok(u64::from_str_radix(head.trim_start_matches("0x"), 16)?)
    }

    /// The jobs that the next traffic of this density will open.
    pub async fn opened_next(&self, density: Density) -> anyhow::Result<Vec<B256>> {
        let (transactions, jobs) = density.traffic();
        let input = hex::encode_prefixed(self.encode("opened", &[self.next_job, transactions * jobs])?);
        let answer: Bytes = self.rpc.call("eth_call", json!([{"to": self.traffic, "input": input}, "latest"])).await?;
        Ok(Vec::<B256>::abi_decode(&answer)?)
    }

    /// Hands the node the transactions of its next block.
    pub async fn send_traffic(&mut self, density: Density) -> anyhow::Result<()> {
        let (transactions, jobs) = density.traffic();
        let mut requests = Vec::new();
        for _ in 0..transactions {
            let input = self.encode("play", &[self.next_job, jobs])?;
            requests.push(self.request(Some(self.traffic), &input));
            self.next_job += jobs;
        }
        self.rpc.batch("eth_sendTransaction", requests).await
    }

    /// Mines what was handed in.
    pub async fn mine(&self) -> anyhow::Result<()> {
        self.rpc.tell("evm_mine", json!([])).await
    }

    async fn prepare(&mut self, code: &Bytes) -> anyhow::Result<()> {
        let nonce: String = self.rpc.call("eth_getTransactionCount", json!([self.sender, "latest"])).await?;
        self.nonce = u64::from_str_radix(nonce.trim_start_matches("0x"), 16)?;
        // A second a block, however many are mined in one: windows and notices end, deadlines do not.
        self.rpc.tell("anvil_setBlockTimestampInterval", json!([1])).await?;
        let manifest = &self.deployment.manifest;
        let (escrow, token) = (manifest.escrow, manifest.tokens.values().next().copied());
        let token = token.context("the manifest has no test token")?;
        let call = IJobEscrow::setFeeBpsCall { feeBps: FEE_BPS }.abi_encode();
        self.settled(Some(escrow), &call).await?;
        let receipt = self.settled(None, &[&code[..], &(escrow, token).abi_encode_params()].concat()).await?;
        self.traffic = receipt.contract_address.context("the traffic was not deployed")?;
        let plenty = U256::from(1_u64) << 100;
        self.rpc.tell("anvil_setBalance", json!([self.traffic, plenty])).await?;
        for (function, count) in [("addRequesters", REQUESTERS), ("addNodes", NODES)] {
            for begin in (0..count).step_by(usize::try_from(ACTORS)?) {
                let input = self.encode(function, &[ACTORS.min(count - begin)])?;
                self.settled(Some(self.traffic), &input).await?;
            }
        }
        self.rpc.tell("evm_setAutomine", json!([false])).await
    }

    /// Sends one transaction and waits until it is mined.
    async fn settled(&mut self, to: Option<Address>, input: &[u8]) -> anyhow::Result<TransactionReceipt> {
        let request = self.request(to, input);
        let hash: Value = self.rpc.call("eth_sendTransaction", request).await?;
        for _ in 0..500 {
            let receipt = self.rpc.call::<TransactionReceipt>("eth_getTransactionReceipt", json!([hash])).await;
            if let Ok(receipt) = receipt {
                ensure!(receipt.status(), "{hash} reverted");
                return Ok(receipt);
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        None.with_context(|| format!("{hash} is not mined"))
    }

    fn encode(&self, function: &str, args: &[u64]) -> anyhow::Result<Vec<u8>> {
        let function = self.abi.function(function).and_then(|overloads| overloads.first());
        let args: Vec<DynSolValue> = args.iter().map(|arg| DynSolValue::Uint(U256::from(*arg), 256)).collect();
        Ok(function.context("Traffic.sol has no such function")?.abi_encode_input(&args)?)
    }

    fn request(&mut self, to: Option<Address>, input: &[u8]) -> Value {
        let nonce = self.nonce;
        self.nonce += 1;
        json!([{
            "from": self.sender,
            "to": to,
            "input": hex::encode_prefixed(input),
            "gas": format!("{GAS:#x}"),
            "nonce": format!("{nonce:#x}"),
        }])
    }
}
