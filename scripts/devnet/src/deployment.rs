//! The contracts on a chain, and the manifest that says where they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use alloy::network::{EthereumWallet, TransactionBuilder};
use alloy::primitives::{Address, Bytes};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolValue;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::DevKey;
use crate::paths::{artifacts_dir, foundry, root};

/// What the contracts are deployed with. The default suits demonstrations and tests: short periods, and windows as long as
/// the command line asks for unless told otherwise.
#[derive(Clone, Copy, Debug)]
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

/// The deployments manifest, as `scripts/Deploy.s.sol` writes it and indexer, API and command line read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The chain's id.
    pub chain_id: u64,
    /// The `JobEscrow` contract.
    pub escrow: Address,
    /// The `NodeRegistry` contract.
    pub registry: Address,
    /// No event of the contracts lies before this block.
    pub deploy_block: u64,
    /// The escrow's constructor parameters.
    pub escrow_params: EscrowParams,
    /// The registry's constructor parameters.
    pub registry_params: RegistryParams,
    /// Known ERC-20 tokens by name.
    pub tokens: BTreeMap<String, Address>,
}

/// See [`Manifest::escrow_params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EscrowParams {
    /// Seconds.
    pub thaw_period: u64,
    /// The first owner.
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
    /// The first owner.
    pub owner: Address,
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
    /// Deploys with `scripts/Deploy.s.sol`, as on any chain. `manifest_path` must lie under `.littoral`, the only place
    /// where Foundry's configuration lets scripts write.
    ///
    /// # Errors
    /// With forge's output when the script fails.
    pub async fn deploy(
        rpc_url: &str,
        key: DevKey,
        manifest_path: &Path,
        params: DeployParams,
    ) -> anyhow::Result<Self> {
        create_parent(manifest_path)?;
        let output = Command::new(foundry("forge")?)
            .args(["script", "scripts/Deploy.s.sol", "--broadcast", "--slow", "--rpc-url", rpc_url])
            .args(["--private-key", &key.secret()])
            .env("LITTORAL_DEPLOYMENT", manifest_path)
            .env("MIN_STAKE", params.min_stake_wei.to_string())
            .env("UNBONDING_PERIOD", params.unbonding_period_secs.to_string())
            .env("THAW_PERIOD", params.thaw_period_secs.to_string())
            .env("BOND", params.bond_wei.to_string())
            .env("MAX_CHALLENGE_WINDOW", params.max_challenge_window_secs.to_string())
            .env("ARBITER_PERIOD", params.arbiter_period_secs.to_string())
            .env("OWNER", key.address().to_string())
            .current_dir(root())
            .kill_on_drop(true)
            .output()
            .await
            .context("running forge")?;
        if !output.status.success() {
            bail!(
                "forge script scripts/Deploy.s.sol failed ({}):\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let deployment = Self::load(manifest_path)?;
        ensure!(deployment.is_live(rpc_url).await?, "forge reported success, but there is no code at the addresses");
        Ok(deployment)
    }

    /// Deploys the same contracts from forge's build output without starting forge, in a fraction of the time, for
    /// tests. Needs a `forge build` before.
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
        let deploy_block = provider.get_block_number().await?;
        let owner = key.address();
        // Each contract names the other.
        let escrow = owner.create(provider.get_transaction_count(owner).await? + 1);
        let registry_args =
            (params.min_stake_wei, params.unbonding_period_secs, params.bond_wei, escrow, owner).abi_encode_params();
        let registry = create(&provider, "NodeRegistry", &registry_args).await?;
        let (max_window, arbiter_period) = (params.max_challenge_window_secs, params.arbiter_period_secs);
        let escrow_args = (registry, params.thaw_period_secs, owner, max_window, arbiter_period).abi_encode_params();
        let created = create(&provider, "JobEscrow", &escrow_args).await?;
        ensure!(
            created == escrow,
            "{owner} sent something else meanwhile: the escrow is at {created}, not at {escrow}"
        );
        let token = create(&provider, "TestToken", &[]).await?;
        let manifest = Manifest {
            chain_id: provider.get_chain_id().await?,
            escrow,
            registry,
            deploy_block,
            escrow_params: EscrowParams {
                thaw_period: params.thaw_period_secs,
                owner,
                max_challenge_window: params.max_challenge_window_secs,
                arbiter_period: params.arbiter_period_secs,
            },
            registry_params: RegistryParams {
                min_stake: params.min_stake_wei.to_string(),
                unbonding_period: params.unbonding_period_secs,
                bond: params.bond_wei.to_string(),
                owner,
            },
            tokens: BTreeMap::from([("TEST".to_owned(), token)]),
        };
        create_parent(manifest_path)?;
        fs::write(manifest_path, serde_json::to_vec_pretty(&manifest)?)
            .with_context(|| format!("writing {}", manifest_path.display()))?;
        Ok(Self { manifest, path: manifest_path.to_owned() })
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

fn create_parent(path: &Path) -> anyhow::Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display())),
        None => Ok(()),
    }
}

/// Deploys one contract and waits until it is mined.
async fn create(provider: &DynProvider, contract: &str, args: &[u8]) -> anyhow::Result<Address> {
    let mut code = creation_code(contract)?.to_vec();
    code.extend_from_slice(args);
    let transaction = TransactionRequest::default().with_deploy_code(code);
    let receipt = provider
        .send_transaction(transaction)
        .await
        .with_context(|| format!("deploying {contract}"))?
        .get_receipt()
        .await
        .with_context(|| format!("waiting for the deployment of {contract}"))?;
    ensure!(receipt.status(), "the deployment of {contract} reverted in {}", receipt.transaction_hash);
    receipt.contract_address.with_context(|| format!("the deployment of {contract} has no address"))
}

fn creation_code(contract: &str) -> anyhow::Result<Bytes> {
    #[derive(Deserialize)]
    struct Artifact {
        bytecode: Bytecode,
    }
    #[derive(Deserialize)]
    struct Bytecode {
        object: Bytes,
    }
    let path = artifacts_dir().join(format!("{contract}.sol/{contract}.json"));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{} is missing: run `node_modules/.bin/forge build`", path.display()))?;
    let artifact: Artifact = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    Ok(artifact.bytecode.object)
}
