//! Sending: `scripts/Deploy.s.sol` through forge, whose wallets sign, and finding what came of it.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

use alloy::primitives::{Address, B256, keccak256};
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::Filter;
use anyhow::{Context, bail, ensure};

use super::contracts::{Addresses, init_code, test_token};
use super::parameters::ChainParams;
use super::plan::GAS_MARGIN;
use super::sources::compiler;
use super::{CodeHashes, EscrowParams, Manifest, RegistryParams};
use crate::DevKey;
use crate::paths::{foundry, root};

/// Who signs.
#[derive(Clone, Debug)]
pub enum Wallet {
    /// A key that we have, given to forge in its environment.
    Key(DevKey),
    /// Forge's own options, such as `--account NAME` or `--ledger`, and the account they stand for.
    Forge {
        /// Passed on.
        args: Vec<OsString>,
        /// `--sender`.
        sender: Address,
    },
}

impl Wallet {
    /// Its account.
    #[must_use]
    pub fn sender(&self) -> Address {
        match self {
            Self::Key(key) => key.address(),
            Self::Forge { sender, .. } => *sender,
        }
    }
}

/// How to run forge.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Of the chain.
    pub rpc_url: String,
    /// Who signs.
    pub wallet: Wallet,
    /// Show what forge says, and let it ask for passwords, instead of keeping it for an error.
    pub is_shown: bool,
}

impl Sender {
    /// Creates what is missing of a deployment.
    ///
    /// # Errors
    /// When forge fails; with its output unless that was shown.
    pub fn deploy(&self, chain: &ChainParams, owner: Address) -> anyhow::Result<()> {
        let terms = chain.terms();
        let mut forge = self.forge()?;
        forge
            .env("OWNER", owner.to_string())
            .env("MIN_STAKE", terms.min_stake_wei.to_string())
            .env("BOND", terms.bond_wei.to_string())
            .env("UNBONDING_PERIOD", terms.unbonding_period_secs.to_string())
            .env("THAW_PERIOD", terms.thaw_period_secs.to_string())
            .env("MAX_CHALLENGE_WINDOW", terms.max_challenge_window_secs.to_string())
            .env("ARBITER_PERIOD", terms.arbiter_period_secs.to_string())
            .env("WITH_TEST_TOKEN", chain.is_local().to_string());
        self.run(forge)
    }

    /// Accepts the ownership of both contracts.
    ///
    /// # Errors
    /// As [`Self::deploy`].
    pub fn accept(&self, manifest: &Manifest) -> anyhow::Result<()> {
        let mut forge = self.forge()?;
        forge.args(["--sig", "accept(address,address)"]);
        forge.args([manifest.registry.to_string(), manifest.escrow.to_string()]);
        self.run(forge)
    }

    fn forge(&self) -> anyhow::Result<Command> {
        let mut forge = Command::new(foundry("forge")?);
        // The chain's own estimates are used: forge's simulation may know other prices of gas than the chain.
        forge
            .args(["script", "scripts/Deploy.s.sol", "--broadcast", "--slow", "--skip-simulation"])
            .args(["--gas-estimate-multiplier", &GAS_MARGIN.to_string()])
            .env("FOUNDRY_ETH_RPC_URL", &self.rpc_url)
            .env_remove("DEPLOYER_KEY")
            .current_dir(root());
        match &self.wallet {
            Wallet::Key(key) => forge.env("DEPLOYER_KEY", key.secret()),
            Wallet::Forge { args, sender } => forge.args(args).args(["--sender", &sender.to_string()]),
        };
        Ok(forge)
    }

    fn run(&self, mut forge: Command) -> anyhow::Result<()> {
        if self.is_shown {
            let status = forge.status().context("running forge")?;
            ensure!(status.success(), "forge script scripts/Deploy.s.sol failed ({status})");
            return Ok(());
        }
        let output = forge.stdin(Stdio::null()).output().context("running forge")?;
        if !output.status.success() {
            bail!(
                "forge script scripts/Deploy.s.sol failed ({}):\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

/// Waits until the deployment is as deep as the largest job must be that does not wait for finality, and describes it.
///
/// # Errors
/// When it is not on the chain at or after `from_block`, or the chain does not answer.
pub async fn record(
    provider: &DynProvider,
    chain: &ChainParams,
    owner: Address,
    from_block: u64,
) -> anyhow::Result<Manifest> {
    let code = init_code(owner, chain.terms())?;
    let addresses = Addresses::of(keccak256(&code));
    let (deploy_transaction, deploy_block) = loop {
        let (transaction, block) = find(provider, addresses.registry, from_block).await?;
        if provider.get_block_number().await? >= block + chain.confirmation.deepest() {
            break (transaction, block);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let terms = chain.terms();
    let mut tokens = chain.tokens.clone();
    if chain.is_local() {
        tokens.insert("TEST".to_owned(), test_token()?.1);
    }
    Ok(Manifest {
        chain_id: chain.chain_id,
        escrow: addresses.escrow,
        registry: addresses.registry,
        deployment: addresses.deployment,
        deploy_block,
        deploy_transaction,
        escrow_params: EscrowParams {
            thaw_period: terms.thaw_period_secs,
            owner,
            max_challenge_window: terms.max_challenge_window_secs,
            arbiter_period: terms.arbiter_period_secs,
        },
        registry_params: RegistryParams {
            min_stake: terms.min_stake_wei.to_string(),
            unbonding_period: terms.unbonding_period_secs,
            bond: terms.bond_wei.to_string(),
            owner,
        },
        confirmation: chain.confirmation.policy(&tokens)?,
        tokens,
        init_code_hash: keccak256(&code),
        code_hashes: CodeHashes {
            deployment: code_hash(provider, addresses.deployment).await?,
            registry: code_hash(provider, addresses.registry).await?,
            escrow: code_hash(provider, addresses.escrow).await?,
        },
        compiler: compiler()?,
        commit: commit(),
    })
}

/// The transaction and the block in which the registry was created: its first event is that of its first owner.
async fn find(provider: &DynProvider, registry: Address, from_block: u64) -> anyhow::Result<(B256, u64)> {
    let event = keccak256("OwnershipTransferred(address,address)");
    let filter = Filter::new().address(registry).event_signature(event).from_block(from_block);
    let logs = provider.get_logs(&filter).await.with_context(|| {
        format!("searching for the deployment from block {from_block}; --from-block NUMBER searches less")
    })?;
    let log = logs.first().with_context(|| format!("{registry} was not deployed at or after block {from_block}"))?;
    log.transaction_hash.zip(log.block_number).context("the deployment is not mined yet")
}

async fn code_hash(provider: &DynProvider, address: Address) -> anyhow::Result<B256> {
    let code = provider.get_code_at(address).await?;
    ensure!(!code.is_empty(), "there is no code at {address}");
    Ok(keccak256(code))
}

/// The commit that is checked out, marked where what decides the contracts' code was changed since; none outside of git.
#[must_use]
pub fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root()).args(args).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--", "contracts/src", "foundry.toml", "package-lock.json"])?;
    Some(if changed.is_empty() { head } else { format!("{head}-dirty") })
}
