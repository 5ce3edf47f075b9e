//! Requesters with deposits, and nodes that let the settler redeem their vouchers.

use std::time::Duration;

use alloy::network::{EthereumWallet, TransactionBuilder};
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::providers::ext::AnvilApi;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use anyhow::{Context, ensure};
use devnet::Market;
use market::abi::{IJobEscrow, INodeRegistry};
use market::db;
use sqlx::PgPool;

/// How long the indexer may take to see that they are ready.
const INDEXED_WITHIN: Duration = Duration::from_secs(60);
/// What every requester deposits, in wei: enough for any number of jobs.
const DEPOSIT: u128 = 1_000_000_000_000_000_000;
/// What every account has besides, for gas, in wei.
const FUNDS: u128 = 10_000_000_000_000_000_000;

/// Who takes part.
pub struct People {
    /// Who pays.
    pub requesters: Vec<PrivateKeySigner>,
    /// Who did the work.
    pub nodes: Vec<PrivateKeySigner>,
    /// EIP-712 domain of the escrow.
    pub domain: alloy::sol_types::Eip712Domain,
    /// The block in which the last of them was ready.
    pub prepared_at: u64,
}

impl People {
    /// Waits until the indexer has seen that they are ready.
    pub async fn indexed(&self, pool: &PgPool) -> anyhow::Result<()> {
        let reached = async {
            loop {
                let cursor = db::chain::cursor(&mut *pool.acquire().await?).await?;
                if cursor.is_some_and(|cursor| cursor.block.number >= self.prepared_at) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let late = || format!("the indexer has not reached block {} within a minute", self.prepared_at);
        tokio::time::timeout(INDEXED_WITHIN, reached).await.with_context(late)?
    }
}

/// Funds `requesters` with deposits, and has `nodes` let the settler redeem.
pub async fn prepare(market: &Market, requesters: usize, nodes: usize) -> anyhow::Result<People> {
    let deployment = market::deployment::Deployment::read(&market.deployment().path)?;
    let requesters = signers("requester", requesters)?;
    let nodes = signers("node", nodes)?;
    let mut wallet = EthereumWallet::default();
    for signer in requesters.iter().chain(&nodes) {
        wallet.register_signer(signer.clone());
    }
    let url = market.endpoints().rpc_url.parse()?;
    let provider = ProviderBuilder::new().wallet(wallet).connect_http(url).erased();
    let settler = market.keys().settler.address();
    let deposit = IJobEscrow::depositCall { token: Address::ZERO, amount: U256::from(DEPOSIT) }.abi_encode();
    let allow = IJobEscrow::setSettlerCall { settler, allowed: true }.abi_encode();
    let mut calls = Vec::new();
    for signer in &requesters {
        calls.push((signer.address(), DEPOSIT, deposit.clone()));
    }
    for signer in &nodes {
        calls.push((signer.address(), 0, allow.clone()));
    }
    let prepared_at = send_all(&provider, deployment.escrow, calls).await?;
    Ok(People { requesters, nodes, domain: deployment.domain(), prepared_at })
}

impl People {
    /// Has another account stake, as a node that does `operation`.
    pub async fn with_node(mut self, market: &Market, operation: &str) -> anyhow::Result<Self> {
        let deployment = market::deployment::Deployment::read(&market.deployment().path)?;
        let node = signers("worker", 1)?.pop().context("there is no key")?;
        let register = INodeRegistry::registerCall {
            nodeId: keccak256(node.address()),
            publicKey: vec![7; 32].into(),
            payout: node.address(),
            capacity: 1,
            operations: vec![operation.to_owned()],
            uri: String::new(),
        };
        let url = market.endpoints().rpc_url.parse()?;
        let provider = ProviderBuilder::new().wallet(EthereumWallet::from(node.clone())).connect_http(url).erased();
        let stake = deployment.registry_params.min_stake.0.to::<u128>();
        let calls = vec![(node.address(), stake, register.abi_encode())];
        self.prepared_at = send_all(&provider, deployment.registry, calls).await?;
        Ok(self)
    }
}

fn signers(role: &str, count: usize) -> anyhow::Result<Vec<PrivateKeySigner>> {
    let key = |n: usize| keccak256(format!("littoral bench {role} {n}"));
    (0..count).map(|n| PrivateKeySigner::from_bytes(&key(n)).context("a hash that is no key")).collect()
}

/// Sends all calls to `to` and waits for them; the highest block they were mined in.
async fn send_all(provider: &DynProvider, to: Address, calls: Vec<(Address, u128, Vec<u8>)>) -> anyhow::Result<u64> {
    let mut pending = Vec::with_capacity(calls.len());
    for (from, value, data) in calls {
        provider.anvil_set_balance(from, U256::from(FUNDS)).await?;
        let request =
            TransactionRequest::default().with_from(from).with_to(to).with_value(U256::from(value)).with_input(data);
        pending.push(provider.send_transaction(request).await?);
    }
    let mut highest = 0;
    for transaction in pending {
        let hash: B256 = *transaction.tx_hash();
        let receipt = transaction.get_receipt().await?;
        ensure!(receipt.status(), "{hash} reverted");
        highest = highest.max(receipt.block_number.context("a receipt without a block")?);
    }
    Ok(highest)
}
