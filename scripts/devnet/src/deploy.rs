//! `deploy`: the contracts on one chain, as `scripts/deploy` starts it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alloy::primitives::Address;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use anyhow::{Context, bail, ensure};
use clap::Args;
use devnet::deployment::{self, ChainParams, Check, Plan, Sender, Wallet};
use devnet::{DEV_KEYS, Deployment, DevKey, paths};

/// Deploys the contracts to one chain, or checks those that are there. A dry run unless --broadcast is given.
#[derive(Args, Debug)]
pub struct Deploy {
    /// A chain of deployments/parameters.json: local, sepolia, ethereum, polygon or polygon-amoy
    chain: String,

    /// Send transactions and write the manifest
    #[arg(long)]
    broadcast: bool,

    /// Only compare the chain with manifest and parameters; exits 1 naming whatever differs
    #[arg(long, conflicts_with_all = ["broadcast", "accept"])]
    check: bool,

    /// Compile the sources beside the manifest again and compare that with the chain, too
    #[arg(long)]
    recompile: bool,

    /// Accept the contracts as the owner named when they were deployed
    #[arg(long)]
    accept: bool,

    /// Have Sourcify verify the sources, and Etherscan if ETHERSCAN_API_KEY is set
    #[arg(long)]
    verify: bool,

    /// JSON-RPC endpoint of the chain; http://127.0.0.1:8545 for local
    #[arg(long, env = "RPC_URL", hide_env_values = true)]
    rpc_url: Option<String>,

    /// Who is offered the contracts, where the parameters leave it open
    #[arg(long, env = "OWNER", value_name = "ADDRESS")]
    owner: Option<Address>,

    /// Key that pays for the deployment; better an account of forge's, see below. Only from the environment
    #[arg(skip)]
    key: Option<DevKey>,

    /// The account that pays, where forge's options say how it signs
    #[arg(long, value_name = "ADDRESS")]
    sender: Option<Address>,

    /// Where a deployment that this machine did not make is searched from
    #[arg(long, value_name = "NUMBER")]
    from_block: Option<u64>,

    /// The reviewed parameters
    #[arg(long, value_name = "FILE")]
    parameters: Option<PathBuf>,

    /// The manifest; deployments/CHAINID.json unless given
    #[arg(long, env = "LITTORAL_DEPLOYMENT", value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// How forge signs: --account NAME, --keystore FILE, --ledger, --trezor …; else DEPLOYER_KEY is the key
    #[arg(last = true, value_name = "FORGE OPTIONS")]
    wallet: Vec<OsString>,
}

impl Deploy {
    /// Does what was asked for; fails where the chain is not as it should be.
    ///
    /// # Errors
    /// With the reason, when something is refused or goes wrong.
    pub async fn run(mut self) -> anyhow::Result<ExitCode> {
        self.key = match std::env::var("DEPLOYER_KEY") {
            Ok(key) => Some(key.parse().context("DEPLOYER_KEY")?),
            Err(_) => None,
        };
        let file = self.parameters.clone().unwrap_or_else(ChainParams::file);
        let chain = ChainParams::load(&file, &self.chain)?;
        let standard = || paths::root().join(format!("deployments/{}.json", chain.chain_id));
        let path = self.manifest.clone().unwrap_or_else(standard);
        let provider = ProviderBuilder::new().connect_http(self.rpc_url(&chain)?.parse().context("RPC_URL")?).erased();
        deployment::require_chain(&provider, &chain).await?;
        let known = known(&provider, &chain, &path).await?;
        let missing = || format!("there is no manifest {} of contracts on this chain", path.display());
        if self.check {
            return self.conclude(&provider, &chain, &known.with_context(missing)?).await;
        }
        if self.accept {
            return self.accept(&provider, &chain, known.with_context(missing)?).await;
        }
        match known {
            Some(known) => {
                println!("deployed already, as {} says", known.path.display());
                self.conclude(&provider, &chain, &known).await
            }
            None => self.deploy(&provider, &chain, &path).await,
        }
    }

    async fn deploy(&self, provider: &DynProvider, chain: &ChainParams, path: &Path) -> anyhow::Result<ExitCode> {
        let wallet = self.wallet(chain)?;
        let sender = wallet.as_ref().map(Wallet::sender).or(self.sender);
        let owner = chain.owner_or(self.owner.or(sender.filter(|_| chain.is_local())))?;
        let sources = deployment::standard_json()?;
        let plan = Plan::make(provider, chain.clone(), owner, sender).await?;
        println!("{plan}");
        warn(provider, chain).await?;
        if let Some(sender) = sender {
            plan.require_funds(provider, sender).await?;
        }
        let sources_path = deployment::sources_path(path);
        if !self.broadcast {
            let files = format!("{} and {}", path.display(), sources_path.display());
            println!("\nDry run: nothing was sent. With --broadcast this would write {files}");
            return Ok(ExitCode::SUCCESS);
        }
        if !chain.is_local() {
            println!("\nCompiling again what explorers will be given");
            deployment::reproduces(&sources)?;
        }
        let from_block = match (self.from_block, plan.is_deployed) {
            (Some(block), _) => block,
            (None, true) => 0,
            (None, false) => provider.get_block_number().await?,
        };
        match wallet {
            Some(wallet) => self.sender(chain, wallet)?.deploy(chain, owner)?,
            None if plan.is_deployed => {}
            None => bail!(
                "who pays? Give --sender ADDRESS -- --account NAME, or another of forge's wallets, or DEPLOYER_KEY"
            ),
        }
        println!("\nWaiting for {} blocks on top of it", chain.confirmation.deepest());
        let manifest = deployment::record(provider, chain, owner, from_block).await?;
        let deployed = Deployment { manifest, path: path.to_owned() };
        deployment::write_json(&sources_path, &sources)?;
        deployed.save()?;
        println!("Wrote {} and {}", path.display(), sources_path.display());
        self.conclude(provider, chain, &deployed).await
    }

    async fn accept(&self, provider: &DynProvider, chain: &ChainParams, known: Deployment) -> anyhow::Result<ExitCode> {
        let (owner, escrow, registry) =
            (known.manifest.escrow_params.owner, known.manifest.escrow, known.manifest.registry);
        if !self.broadcast {
            println!("{owner} accepts both contracts by these calls, which --broadcast sends if it is that account:");
            println!("  to {registry}, data 0x79ba5097\n  to {escrow}, data 0x79ba5097");
            return Ok(ExitCode::SUCCESS);
        }
        let wallet =
            self.wallet(chain)?.context("who accepts? Give --sender and a wallet of forge's, or DEPLOYER_KEY")?;
        let sender = wallet.sender();
        ensure!(sender == owner, "only {owner} can accept the contracts, not {sender}");
        self.sender(chain, wallet)?.accept(&known.manifest)?;
        self.conclude(provider, chain, &known).await
    }

    /// Checks, and has the sources verified if asked.
    async fn conclude(
        &self,
        provider: &DynProvider,
        chain: &ChainParams,
        known: &Deployment,
    ) -> anyhow::Result<ExitCode> {
        let mut check = Check::run(provider, &known.manifest, chain).await?;
        if self.recompile {
            check.differences.extend(deployment::recompile(provider, &known.manifest, &known.path).await?);
        }
        println!("{check}");
        if !check.differences.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        if self.verify {
            deployment::verify(&known.manifest, chain)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn rpc_url(&self, chain: &ChainParams) -> anyhow::Result<&str> {
        match &self.rpc_url {
            Some(url) => Ok(url),
            None if chain.is_local() => Ok("http://127.0.0.1:8545"),
            None => bail!("which RPC? Give RPC_URL or --rpc-url"),
        }
    }

    /// Who signs, if anyone.
    fn wallet(&self, chain: &ChainParams) -> anyhow::Result<Option<Wallet>> {
        if !self.wallet.is_empty() {
            let sender = self.sender.context("name the account of forge's wallet with --sender ADDRESS")?;
            return Ok(Some(Wallet::Forge { args: self.wallet.clone(), sender }));
        }
        let key = self.key.or(chain.is_local().then_some(DEV_KEYS[0]));
        if let (Some(key), Some(sender)) = (key, self.sender) {
            ensure!(key.address() == sender, "DEPLOYER_KEY is that of {}, not of {sender}", key.address());
        }
        Ok(key.map(Wallet::Key))
    }

    fn sender(&self, chain: &ChainParams, wallet: Wallet) -> anyhow::Result<Sender> {
        Ok(Sender { rpc_url: self.rpc_url(chain)?.to_owned(), wallet, is_shown: true })
    }
}

/// The deployment that the file at `path` describes, if it is on the chain. A private chain may have been started afresh
/// since; on any other, that is a mistake.
async fn known(provider: &DynProvider, chain: &ChainParams, path: &Path) -> anyhow::Result<Option<Deployment>> {
    if !path.is_file() {
        return Ok(None);
    }
    let known = Deployment::load(path)?;
    let manifest = &known.manifest;
    ensure!(
        manifest.chain_id == chain.chain_id,
        "{} is for chain {}, not {}",
        path.display(),
        manifest.chain_id,
        chain.chain_id
    );
    if provider.get_code_at(manifest.deployment).await?.is_empty() {
        ensure!(
            chain.is_local(),
            "the chain has nothing at {}, where {} says the contracts were deployed: move that file away",
            manifest.deployment,
            path.display()
        );
        return Ok(None);
    }
    Ok(Some(known))
}

async fn warn(provider: &DynProvider, chain: &ChainParams) -> anyhow::Result<()> {
    for (name, token) in &chain.tokens {
        if provider.get_code_at(*token).await?.is_empty() {
            println!("warning: there is no token at {token}, the parameters' {name}");
        }
    }
    let made_for = deployment::compiler()?.evm_version;
    ensure!(
        made_for == chain.evm_version,
        "the contracts were compiled for {made_for}, the parameters say {}",
        chain.evm_version
    );
    match deployment::commit() {
        None => println!("warning: this is no git checkout: the manifest will name no commit"),
        Some(commit) if commit.ends_with("-dirty") => {
            println!("warning: the contracts' sources are not those of the commit: the manifest will say {commit}");
        }
        Some(_) => {}
    }
    Ok(())
}
