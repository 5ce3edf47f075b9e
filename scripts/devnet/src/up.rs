//! `up`: a whole marketplace on this machine, and one job through it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use anyhow::{Context, bail};
use clap::Args;
use devnet::{DevKey, Endpoints, Keys, Manifest, Market, MarketOptions, NodeOptions, Service, paths};
use tokio::signal::unix::{SignalKind, signal};

use crate::demo::{Demo, DemoOptions};

/// Brings up the marketplace and takes one job through it.
#[derive(Args, Debug)]
pub struct Up {
    /// The file that the demo's requester has encrypted; this project's README.md unless given
    file: Option<PathBuf>,

    /// Stop after the demo: exit 0 when the job was paid and its result is right
    #[arg(long)]
    once: bool,

    /// Pay in this token: a name from the deployments manifest, such as TEST, or an address
    #[arg(long)]
    token: Option<String>,

    /// Price of the job, in the token's smallest unit
    #[arg(long, default_value = "10000000000000000")]
    price: U256,

    /// Most seconds the job may take
    #[arg(long, value_name = "SECS", default_value_t = 600)]
    within: u64,

    /// Where data, logs and the manifest lie; .littoral unless given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Listen on any free ports instead of the usual ones (API 3001, chain 8545), which are used where they are free
    #[arg(long)]
    free_ports: bool,

    /// Keep chain, database and Redis across runs, instead of starting afresh
    #[arg(long)]
    keep: bool,

    /// Seconds between blocks of the private chain; without it, every transaction makes a block
    #[arg(long, value_name = "SECS")]
    block_time: Option<f64>,

    /// A program of yours that the node runs for jobs of the operation `command`
    #[arg(long, value_name = "COMMAND")]
    node_command: Option<String>,

    /// A database of yours in place of the private Postgres; implies --keep for the chain
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,

    /// A Redis of yours in place of the private one
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,

    /// In front of every Redis key
    #[arg(long, env = "REDIS_PREFIX", default_value = "")]
    redis_prefix: String,

    /// A chain of yours in place of the private one; the keys below must have funds on it
    #[arg(long, env = "RPC_URL", hide_env_values = true)]
    rpc_url: Option<String>,

    /// Contracts that are deployed already, by their manifest; only with RPC_URL
    #[arg(long, env = "LITTORAL_DEPLOYMENT", value_name = "FILE", requires = "rpc_url")]
    deployment: Option<PathBuf>,

    #[command(flatten)]
    keys: KeyArgs,
}

/// Anvil's well-known keys unless given.
#[derive(Args, Debug)]
struct KeyArgs {
    /// Deploys the contracts
    #[arg(long, env = "DEPLOYER_KEY", hide_env_values = true)]
    deployer_key: Option<DevKey>,
    /// The demo's requester
    #[arg(long, env = "REQUESTER_KEY", hide_env_values = true)]
    requester_key: Option<DevKey>,
    /// The demo's node operator
    #[arg(long, env = "NODE_KEY", hide_env_values = true)]
    node_key: Option<DevKey>,
    /// Signs assignments, needs no funds
    #[arg(long, env = "ASSIGNER_KEY", hide_env_values = true)]
    assigner_key: Option<DevKey>,
    /// Pays the gas of payment batches
    #[arg(long, env = "SETTLER_KEY", hide_env_values = true)]
    settler_key: Option<DevKey>,
}

impl KeyArgs {
    fn keys(&self) -> Keys {
        let standard = Keys::default();
        Keys {
            deployer: self.deployer_key.unwrap_or(standard.deployer),
            requester: self.requester_key.unwrap_or(standard.requester),
            node: self.node_key.unwrap_or(standard.node),
            assigner: self.assigner_key.unwrap_or(standard.assigner),
            settler: self.settler_key.unwrap_or(standard.settler),
        }
    }
}

impl Up {
    /// Runs until the demo's end with `--once`, otherwise until Ctrl-C or SIGTERM. Stops what it started either way.
    ///
    /// # Errors
    /// With the reason, when something does not start or, with `--once`, when the demo fails.
    pub async fn run(self) -> anyhow::Result<()> {
        let file = self.file();
        if !file.is_file() {
            bail!("{} is not a file", file.display());
        }
        let dir = self.dir.clone().unwrap_or_else(paths::state_dir);
        let _lock = lock(&dir)?;
        let dir = dir.canonicalize()?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Dropping the work on a signal stops everything that it had started, in order.
        let result = tokio::select! {
            result = self.work(&dir) => result,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        if !self.once {
            println!("\nStopped. What was logged is in {}.", dir.join("logs").display());
        }
        result
    }

    fn file(&self) -> PathBuf {
        self.file.clone().unwrap_or_else(|| paths::root().join("README.md"))
    }

    async fn work(&self, dir: &Path) -> anyhow::Result<()> {
        println!("Starting Postgres, Redis and a chain; deploying the contracts …");
        let mut market = Market::start(self.market_options(dir)?).await?;
        let endpoints = market.endpoints().clone();
        let manifest = market.deployment().manifest.clone();
        write_env(dir, &endpoints, market.keys())?;
        println!("Up: API {}, chain {} ({})\n", endpoints.api_url, manifest.chain_id, endpoints.rpc_url);

        let mut demo = Demo::new(&endpoints, &manifest, market.keys(), self.demo_options(&manifest)?).await?;
        demo.register_node().await?;
        market.start_service(Service::Node).await?;
        let done = tokio::select! {
            done = demo.run() => done,
            never = market.supervise(|said| eprintln!("     {said}")) => match never {},
        };
        if let Err(error) = done {
            let error = error.context(format!("the demo failed; logs are in {}", dir.join("logs").display()));
            if self.once {
                return Err(error);
            }
            eprintln!("\n{error:#}");
        } else {
            println!("\n{}", demo.summary().await?);
        }
        if self.once {
            return Ok(());
        }
        println!("\n{}", usage(dir, &endpoints));
        match market.supervise(|said| eprintln!("{said}")).await {}
    }

    fn market_options(&self, dir: &Path) -> anyhow::Result<MarketOptions> {
        Ok(MarketOptions {
            dir: dir.to_owned(),
            database_url: self.database_url.clone(),
            redis_url: self.redis_url.clone(),
            rpc_url: self.rpc_url.clone(),
            deployment: self.deployment.as_ref().map(fs::canonicalize).transpose().context("LITTORAL_DEPLOYMENT")?,
            redis_prefix: self.redis_prefix.clone(),
            // A database that outlives this run remembers the chain it indexed.
            keep: self.keep || self.database_url.is_some(),
            usual_ports: !self.free_ports,
            deploy_by_script: true,
            block_time: self.block_time,
            params: devnet::DeployParams::default(),
            keys: self.keys.keys(),
            node: NodeOptions { command: self.node_command.clone() },
            env: Vec::new(),
        })
    }

    fn demo_options(&self, manifest: &Manifest) -> anyhow::Result<DemoOptions> {
        let (token, symbol) = match &self.token {
            None => (Address::ZERO, "ETH".to_owned()),
            Some(name) => {
                let token = match manifest.tokens.get(name) {
                    Some(address) => *address,
                    None => name.parse().with_context(|| format!("{name} is neither a known token nor an address"))?,
                };
                (token, name.clone())
            }
        };
        Ok(DemoOptions {
            file: fs::canonicalize(self.file())?,
            token,
            symbol,
            price: self.price,
            within: Duration::from_secs(self.within),
        })
    }
}

/// One `up` a clone: they would share directories.
fn lock(dir: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join("up.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            bail!(
                "`up` is already running in this clone (process {}): use it, as {} says, or stop it first",
                holder.trim(),
                dir.join("env").display()
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("locking {}", path.display())),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// What a shell needs to use the marketplace as the requester. Only for this user's eyes: it holds a key.
fn write_env(dir: &Path, at: &Endpoints, keys: Keys) -> anyhow::Result<()> {
    let mut text = String::new();
    for (key, value) in env_lines(at) {
        writeln!(text, "export {key}='{value}'")?;
    }
    writeln!(text, "export LITTORAL_KEY='{}'", keys.requester.secret())?;
    let path = dir.join("env");
    fs::remove_file(&path).ok();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

fn env_lines(at: &Endpoints) -> [(&'static str, String); 6] {
    [
        ("LITTORAL_API", at.api_url.clone()),
        ("RPC_URL", at.rpc_url.clone()),
        ("LITTORAL_DEPLOYMENT", at.deployment.display().to_string()),
        ("LITTORAL_NODE_DIR", at.node_dir.display().to_string()),
        ("DATABASE_URL", at.database_url.clone()),
        ("REDIS_URL", at.redis_url.clone()),
    ]
}

fn usage(dir: &Path, at: &Endpoints) -> String {
    let bin = devnet::binary("littoral").map_or_else(|_| "littoral".to_owned(), |path| path.display().to_string());
    let redis = &at.redis_url;
    format!(
        "It stays up until Ctrl-C. In another terminal, as the requester:\n\
         \n  . {env}\n  {bin} status\n  {bin} submit FILE --op encrypt --to age1… --price 1000000000000000\n\
         \nAPI        {api}/lit-compute/jobs/stats\
         \nRedis      redis-cli -u {redis} keys '*'\
         \nPostgres   psql \"$DATABASE_URL\"\
         \nChain      {rpc}\
         \nLogs       {logs}",
        env = dir.join("env").display(),
        api = at.api_url,
        rpc = at.rpc_url,
        logs = dir.join("logs").display(),
    )
}
