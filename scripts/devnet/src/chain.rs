//! What the contracts themselves say, read with the ABI that forge wrote: a second opinion, independent of the code that
//! is being shown or tested.

use alloy::contract::{ContractInstance, Interface};
use alloy::dyn_abi::DynSolValue;
use alloy::network::EthereumWallet;
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::{Filter, Log, TransactionReceipt};
use anyhow::{Context, ensure};

use crate::deployment::contracts::Artifact;
use crate::{DevKey, Manifest};

pub(crate) type Contract = ContractInstance<DynProvider>;

/// The contracts of one deployment.
#[derive(Clone, Debug)]
pub struct Chain {
    provider: DynProvider,
    rpc_url: String,
    escrow: Contract,
    registry: Contract,
    deploy_block: u64,
}

/// What an account holds of one token, in its smallest unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// In its own wallet.
    pub wallet: U256,
    /// Deposited in the escrow and free.
    pub deposited: U256,
    /// Earned in the escrow and not withdrawn.
    pub earned: U256,
    /// Staked in the registry; the native coin only.
    pub staked: U256,
}

impl Chain {
    /// Connects to the contracts of `manifest`.
    ///
    /// # Errors
    /// When forge's build output is missing or the URL is none.
    pub fn new(rpc_url: &str, manifest: &Manifest) -> anyhow::Result<Self> {
        let provider = ProviderBuilder::new().connect_http(rpc_url.parse()?).erased();
        Ok(Self {
            escrow: contract("JobEscrow", manifest.escrow, provider.clone())?,
            registry: contract("NodeRegistry", manifest.registry, provider.clone())?,
            rpc_url: rpc_url.to_owned(),
            provider,
            deploy_block: manifest.deploy_block,
        })
    }

    /// The connection itself.
    pub fn provider(&self) -> &DynProvider {
        &self.provider
    }

    /// What `owner` holds of `token`; the native coin is the zero address.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn holdings(&self, owner: Address, token: Address) -> anyhow::Result<Holdings> {
        let of = [DynSolValue::Address(owner), DynSolValue::Address(token)];
        let wallet = if token.is_zero() {
            self.provider.get_balance(owner).await?
        } else {
            let token = contract("TestToken", token, self.provider.clone())?;
            number(&token, "balanceOf", &of[..1]).await?
        };
        let staked = if token.is_zero() { number(&self.registry, "stakeOf", &of[..1]).await? } else { U256::ZERO };
        Ok(Holdings {
            wallet,
            deposited: number(&self.escrow, "account", &of).await?,
            earned: number(&self.escrow, "earned", &of).await?,
            staked,
        })
    }

    /// The stake a node needs, in wei.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn min_stake(&self) -> anyhow::Result<U256> {
        number(&self.registry, "minStake", &[]).await
    }

    /// Whether `node` is registered.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn is_registered(&self, node: Address) -> anyhow::Result<bool> {
        let values = self.registry.function("nodeIdOf", &[DynSolValue::Address(node)])?.call().await?;
        let id = values.first().and_then(DynSolValue::as_fixed_bytes).context("nodeIdOf returned no bytes")?;
        Ok(id.0.iter().any(|byte| *byte != 0))
    }

    /// Mints `amount` of the test token to `to`.
    ///
    /// # Errors
    /// When the transaction fails, as with any token but the test token.
    pub async fn mint(&self, by: DevKey, token: Address, to: Address, amount: U256) -> anyhow::Result<()> {
        let wallet = EthereumWallet::from(by.signer());
        let provider = ProviderBuilder::new().wallet(wallet).connect_http(self.rpc_url.parse()?).erased();
        let token = contract("TestToken", token, provider)?;
        let args = [DynSolValue::Address(to), DynSolValue::Uint(amount, 256)];
        let receipt = token.function("mint", &args)?.send().await?.get_receipt().await?;
        ensure!(receipt.status(), "minting test tokens reverted");
        Ok(())
    }

    /// The receipt of a mined transaction.
    ///
    /// # Errors
    /// When there is none.
    pub async fn receipt(&self, transaction: B256) -> anyhow::Result<TransactionReceipt> {
        self.provider
            .get_transaction_receipt(transaction)
            .await?
            .with_context(|| format!("the chain has no transaction {transaction}"))
    }

    /// The escrow's events of one name for one job; `jobId` is the first indexed argument of all of them.
    ///
    /// # Errors
    /// When the ABI has no such event or the chain does not answer.
    pub async fn events(&self, name: &str, job_id: B256) -> anyhow::Result<Vec<Log>> {
        let events = self.escrow.abi().event(name).and_then(|overloads| overloads.first());
        let event = events.with_context(|| format!("JobEscrow has no event {name}"))?;
        let filter = Filter::new()
            .address(*self.escrow.address())
            .from_block(self.deploy_block)
            .event_signature(keccak256(event.signature()))
            .topic1(job_id);
        Ok(self.provider.get_logs(&filter).await?)
    }
}

pub(crate) fn contract(name: &str, address: Address, provider: DynProvider) -> anyhow::Result<Contract> {
    Ok(ContractInstance::new(address, provider, Interface::new(Artifact::load(name)?.abi)))
}

/// The first value that a view function returns, which must be a number.
async fn number(contract: &Contract, function: &str, args: &[DynSolValue]) -> anyhow::Result<U256> {
    let values = contract.function(function, args)?.call().await.with_context(|| format!("calling {function}"))?;
    let (value, _) =
        values.first().and_then(DynSolValue::as_uint).with_context(|| format!("{function} returned no number"))?;
    Ok(value)
}
