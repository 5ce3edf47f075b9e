//! The contracts on a chain, and the manifest that says where they are.

mod check;
mod confirmation;
pub(crate) mod contracts;
mod parameters;
mod plan;
mod send;
mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use alloy::network::{EthereumWallet, TransactionBuilder};
use alloy::primitives::{Address, B256, Bytes};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

pub use check::Check;
pub use confirmation::{Confirmation, Finality, Policy, Tag};
pub use contracts::{Addresses, Artifact, init_code};
pub use parameters::ChainParams;
pub use plan::{Cost, Plan, require_chain};
pub use send::{Sender, Wallet, commit, record};
pub use sources::{compiler, recompile, reproduces, sources_path, standard_json, verify};

use crate::DevKey;
use crate::chain::contract;
use contracts::{DETERMINISTIC_DEPLOYER, creation_call, test_token};

/// What the contracts are deployed with. The default suits demonstrations and tests: short periods, and windows as long as
/// the command line asks for unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeployParams {
    /// Stake a node needs to be given open orders, in wei.
    pub min_stake_wei: u128,
    /// Seconds before unbonded stake can leave.
    pub unbonding_period_secs: u64,
    /// Seconds before thawed deposits can leave.
    pub thaw_period_secs: u64,
    /// Wei of stake at risk in one job that an arbiter may decide.
    pub bond_wei: u128,
    /// Longest challenge window in seconds.
    pub max_challenge_window_secs: u32,
    /// Seconds an arbiter has. With the longest window less than the unbonding period.
    pub arbiter_period_secs: u64,
}

impl Default for DeployParams {
    fn default() -> Self {
        Self {
            min_stake_wei: 1_000_000_000_000_000_000,
            unbonding_period_secs: 14_400,
            thaw_period_secs: 30,
            bond_wei: 100_000_000_000_000_000,
            max_challenge_window_secs: 7_200,
            arbiter_period_secs: 3_600,
        }
    }
}

/// The deployments manifest, as `scripts/deploy` writes it and indexer, API and command line read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The chain's id.
    pub chain_id: u64,
    /// The `JobEscrow` contract.
    pub escrow: Address,
    /// The `NodeRegistry` contract.
    pub registry: Address,
    /// The `Deployment` contract, which created both.
    pub deployment: Address,
    /// The block they were created in.
    pub deploy_block: u64,
    /// The transaction that created them.
    pub deploy_transaction: B256,
    /// The escrow's constructor parameters.
    pub escrow_params: EscrowParams,
    /// The registry's constructor parameters.
    pub registry_params: RegistryParams,
    /// When what the chain says counts.
    pub confirmation: Policy,
    /// Known ERC-20 tokens by name.
    pub tokens: BTreeMap<String, Address>,
    /// Of the `Deployment`; its address, and so the other two, follow from it.
    pub init_code_hash: B256,
    /// What is at the addresses.
    pub code_hashes: CodeHashes,
    /// What made it.
    pub compiler: CompilerSettings,
    /// The commit it was made from, with `-dirty` where sources had been changed since; none outside of git.
    pub commit: Option<String>,
}

/// See [`Manifest::code_hashes`]: Keccak-256 of the code, immutables included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CodeHashes {
    /// Of the `Deployment`.
    pub deployment: B256,
    /// Of the `NodeRegistry`.
    pub registry: B256,
    /// Of the `JobEscrow`.
    pub escrow: B256,
}

/// See [`Manifest::compiler`]. Everything the compiler was given lies beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CompilerSettings {
    /// Of solc, with the commit.
    pub version: String,
    /// The hardfork it compiled for.
    pub evm_version: String,
    /// Whether by way of Yul.
    #[serde(rename = "viaIR")]
    pub via_ir: bool,
    /// How often the optimizer thinks that code runs.
    pub optimizer_runs: u64,
}

/// See [`Manifest::escrow_params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EscrowParams {
    /// Seconds.
    pub thaw_period: u64,
    /// Who was offered it.
    pub owner: Address,
    /// Seconds.
    pub max_challenge_window: u32,
    /// Seconds.
    pub arbiter_period: u64,
}

/// See [`Manifest::registry_params`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryParams {
    /// Wei, in decimal.
    pub min_stake: String,
    /// Seconds.
    pub unbonding_period: u64,
    /// Wei, in decimal.
    pub bond: String,
    /// Who was offered it.
    pub owner: Address,
}

impl Manifest {
    /// What the contracts were constructed with.
    ///
    /// # Errors
    /// When an amount is none.
    pub fn terms(&self) -> anyhow::Result<DeployParams> {
        Ok(DeployParams {
            min_stake_wei: self.registry_params.min_stake.parse().context("registryParams.minStake")?,
            unbonding_period_secs: self.registry_params.unbonding_period,
            thaw_period_secs: self.escrow_params.thaw_period,
            bond_wei: self.registry_params.bond.parse().context("registryParams.bond")?,
            max_challenge_window_secs: self.escrow_params.max_challenge_window,
            arbiter_period_secs: self.escrow_params.arbiter_period,
        })
    }
}

/// Deployed contracts and the file that describes them.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// What the file says.
    pub manifest: Manifest,
    /// The file, for `LITTORAL_DEPLOYMENT`.
    pub path: PathBuf,
}

impl Deployment {
    /// Deploys with `scripts/Deploy.s.sol`, as on any chain, and accepts the contracts as their owner.
    ///
    /// # Errors
    /// With forge's output when the script fails.
    pub async fn deploy(
        rpc_url: &str,
        key: DevKey,
        manifest_path: &Path,
        params: DeployParams,
    ) -> anyhow::Result<Self> {
        let provider = ProviderBuilder::new().connect_http(rpc_url.parse()?).erased();
        let chain = private_chain(&provider, key, params).await?;
        let from_block = provider.get_block_number().await?;
        let sender = Sender { rpc_url: rpc_url.to_owned(), wallet: Wallet::Key(key), is_shown: false };
        let (terms, owner) = (chain.clone(), chain.owner);
        tokio::task::spawn_blocking(move || sender.deploy(&terms, owner)).await??;
        Self::record(&provider, &chain, from_block, manifest_path).await
    }

    /// Deploys the same contracts to the same addresses from forge's build output without starting forge, in a fraction
    /// of the time, for tests. Needs a `forge build` before.
    ///
    /// # Errors
    /// When the build output is missing or a transaction fails.
    pub async fn deploy_fast(
        rpc_url: &str,
        key: DevKey,
        manifest_path: &Path,
        params: DeployParams,
    ) -> anyhow::Result<Self> {
        let wallet = EthereumWallet::from(key.signer());
        let provider = ProviderBuilder::new().wallet(wallet).connect_http(rpc_url.parse()?).erased();
        let chain = private_chain(&provider, key, params).await?;
        let from_block = provider.get_block_number().await?;
        create(&provider, "Deployment", &init_code(chain.owner, params)?).await?;
        if chain.is_local() {
            create(&provider, "TestToken", &test_token()?.0).await?;
        }
        let deployment = Self::record(&provider, &chain, from_block, manifest_path).await?;
        let Manifest { registry, escrow, .. } = deployment.manifest;
        for (name, address) in [("NodeRegistry", registry), ("JobEscrow", escrow)] {
            let accepted = contract(name, address, provider.clone())?.function("acceptOwnership", &[])?.send().await?;
            ensure!(accepted.get_receipt().await?.status(), "{} cannot accept the {name}", key.address());
        }
        Ok(deployment)
    }

    /// Describes a deployment that is on the chain in a file at `manifest_path`.
    async fn record(
        provider: &DynProvider,
        chain: &ChainParams,
        from_block: u64,
        manifest_path: &Path,
    ) -> anyhow::Result<Self> {
        let manifest = record(provider, chain, chain.owner, from_block).await?;
        let deployment = Self { manifest, path: manifest_path.to_owned() };
        deployment.save()?;
        Ok(deployment)
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        write_json(&self.path, &self.manifest)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When there is no such file or it is not a manifest.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let manifest = serde_json::from_str(&text).with_context(|| format!("{} is no manifest", path.display()))?;
        Ok(Self { manifest, path: path.to_owned() })
    }

    /// Whether the chain is the manifest's and has code at its addresses.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn is_live(&self, rpc_url: &str) -> anyhow::Result<bool> {
        let provider = ProviderBuilder::new().connect_http(rpc_url.parse()?);
        if provider.get_chain_id().await? != self.manifest.chain_id {
            return Ok(false);
        }
        for address in [self.manifest.escrow, self.manifest.registry] {
            if provider.get_code_at(address).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A private chain on which the holder of `key` owns the contracts.
async fn private_chain(provider: &DynProvider, key: DevKey, terms: DeployParams) -> anyhow::Result<ChainParams> {
    let local = ChainParams::load(&ChainParams::file(), "local")?;
    Ok(local.with(provider.get_chain_id().await?, key.address(), terms))
}

/// Writes a file of JSON whole or not at all, with the folders it is in.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    let write = || {
        let file = tempfile::NamedTempFile::new_in(parent)?;
        fs::write(file.path(), text)?;
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(path)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Has the deterministic deployer create one contract and waits until it is mined.
async fn create(provider: &DynProvider, contract: &str, init_code: &Bytes) -> anyhow::Result<()> {
    let call = creation_call(init_code);
    let transaction = TransactionRequest::default().with_to(DETERMINISTIC_DEPLOYER).with_input(call);
    let receipt = provider
        .send_transaction(transaction)
        .await
        .with_context(|| format!("deploying {contract}"))?
        .get_receipt()
        .await
        .with_context(|| format!("waiting for the deployment of {contract}"))?;
    ensure!(receipt.status(), "the deployment of {contract} reverted in {}", receipt.transaction_hash);
    Ok(())
}
