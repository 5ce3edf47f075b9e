//! Littoral's own processes, as their operators start them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::process::{Launch, Process};
use crate::{DevKey, MarketOptions, ports, ws_url};

const READY_WITHIN: Duration = Duration::from_secs(60);

/// The processes that make a marketplace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// `littoral-indexer run`
    Indexer,
    /// `littoral-api serve`
    Api,
    /// `littoral-api settle`
    Settler,
    /// `littoral node run`
    Node,
}

impl Service {
    /// All of them, in the order in which they are started.
    pub const ALL: [Self; 4] = [Self::Indexer, Self::Api, Self::Settler, Self::Node];

    /// A word for messages and log files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Indexer => "indexer",
            Self::Api => "api",
            Self::Settler => "settler",
            Self::Node => "node",
        }
    }
}

/// Where everything that the processes need is.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// `DATABASE_URL`
    pub database_url: String,
    /// `REDIS_URL`
    pub redis_url: String,
    /// `REDIS_PREFIX`
    pub redis_prefix: String,
    /// `RPC_URL`
    pub rpc_url: String,
    /// `LITTORAL_DEPLOYMENT`
    pub deployment: PathBuf,
    /// `LITTORAL_API`: where the API listens, `http://127.0.0.1:…`
    pub api_url: String,
    /// `LITTORAL_NODE_DIR`: where the node keeps its encryption key and its work.
    pub node_dir: PathBuf,
    /// `METRICS_BIND` of the indexer.
    pub indexer_metrics: String,
    /// `METRICS_BIND` of the settler.
    pub settler_metrics: String,
}

impl Endpoints {
    /// The port that a process listens on, if it does.
    pub(crate) fn port_of(&self, service: Service) -> Option<u16> {
        let address = match service {
            Service::Indexer => &self.indexer_metrics,
            Service::Api => &self.api_url,
            Service::Settler => &self.settler_metrics,
            Service::Node => return None,
        };
        address.rsplit(':').next()?.parse().ok()
    }

    /// Gives a process another port.
    pub(crate) fn move_service(&mut self, service: Service) -> anyhow::Result<()> {
        let address = bind_address(None)?;
        match service {
            Service::Indexer => self.indexer_metrics = address,
            Service::Api => self.api_url = format!("http://{address}"),
            Service::Settler => self.settler_metrics = address,
            Service::Node => {}
        }
        Ok(())
    }
}

/// Who does what on the chain.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// Deploys the contracts, and mints test tokens.
    pub deployer: DevKey,
    /// Pays for the demo's job.
    pub requester: DevKey,
    /// The operator of the node.
    pub node: DevKey,
    /// Signs assignments; sends nothing.
    pub assigner: DevKey,
    /// Pays the gas of payment batches.
    pub settler: DevKey,
}

impl Default for Keys {
    fn default() -> Self {
        let [deployer, requester, node, assigner, settler, ..] = crate::DEV_KEYS;
        Self { deployer, requester, node, assigner, settler }
    }
}

/// How the node works.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// The operator's own program for jobs of the operation `command`.
    pub command: Option<String>,
}

/// Where the workspace's binaries are: beside this program, or beside the directory of the running test.
///
/// # Errors
/// When this program's own path is unknown.
pub fn bin_dir() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program's own path")?;
    let dir = own.parent().context("this program has no directory")?;
    let above_deps = if dir.ends_with("deps") { dir.parent() } else { None };
    Ok(above_deps.unwrap_or(dir).to_owned())
}

/// One of the workspace's binaries.
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = bin_dir()?.join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo build --workspace`", path.display());
    }
    Ok(path)
}

/// How to start `service`. Secrets travel in the environment, which `ps` does not show to other users.
pub(crate) fn launch(service: Service, at: &Endpoints, options: &MarketOptions) -> anyhow::Result<Launch> {
    let (keys, dir) = (&options.keys, &options.dir);
    let program = match service {
        Service::Indexer => "littoral-indexer",
        Service::Api | Service::Settler => "littoral-api",
        Service::Node => "littoral",
    };
    let log = dir.join("logs").join(format!("{}.log", service.name()));
    let launch = Launch::new(service.name(), binary(program)?, log)
        .env("RPC_URL", &at.rpc_url)
        .env("LITTORAL_DEPLOYMENT", &at.deployment)
        .current_dir(dir);
    let stores = |launch: Launch| {
        launch
            .env("DATABASE_URL", &at.database_url)
            .env("REDIS_URL", &at.redis_url)
            .env("REDIS_PREFIX", &at.redis_prefix)
    };
    let launch = match service {
        Service::Indexer => {
            let launch = stores(launch).arg("run").env("METRICS_BIND", &at.indexer_metrics);
            // Of a chain that someone else runs it is not known whether there is one.
            if options.rpc_url.is_none() { launch.env("RPC_WS_URL", ws_url(&at.rpc_url)) } else { launch }
        }
        Service::Api => stores(launch)
            .arg("serve")
            .env("BIND", at.api_url.trim_start_matches("http://"))
            .env("BLOB_STORE", format!("file://{}", dir.join("blobs").display()))
            .env("ASSIGNER_KEY", keys.assigner.secret())
            .env("SETTLER_ADDRESS", keys.settler.address().to_string()),
        Service::Settler => stores(launch)
            .arg("settle")
            .env("METRICS_BIND", &at.settler_metrics)
            .env("SETTLER_KEY", keys.settler.secret()),
        Service::Node => {
            let launch = launch.args(["node", "run"]).envs(actor_env(at, keys.node));
            match &options.node.command {
                Some(command) => launch.args(["--command", command]),
                None => launch,
            }
        }
    };
    let own = options.env.iter().filter(|(of, _, _)| *of == service);
    Ok(launch.envs(own.map(|(_, key, value)| (key, value))))
}

/// What `littoral` reads from the environment when it acts for the holder of `key`.
pub fn actor_env(at: &Endpoints, key: DevKey) -> [(&'static str, String); 6] {
    [
        ("LITTORAL_API", at.api_url.clone()),
        ("RPC_URL", at.rpc_url.clone()),
        ("LITTORAL_DEPLOYMENT", at.deployment.display().to_string()),
        ("LITTORAL_KEY", key.secret()),
        ("LITTORAL_NODE_DIR", at.node_dir.display().to_string()),
        // Keeps what belongs to different accounts apart by itself.
        ("LITTORAL_DATA_DIR", at.node_dir.with_file_name("accounts").display().to_string()),
    ]
}

/// An address on 127.0.0.1 for a server to bind.
pub(crate) fn bind_address(preferred: Option<u16>) -> anyhow::Result<String> {
    Ok(format!("127.0.0.1:{}", ports::free_port_or(preferred)?))
}

/// Waits until the process itself listens where it should, and the API also answers.
pub(crate) async fn wait_ready(process: &mut Process, service: Service, at: &Endpoints) -> anyhow::Result<()> {
    if let Some(port) = at.port_of(service) {
        process.wait_until(READY_WITHIN, async |process| ports::listens(process.pid(), port)).await?;
    }
    if service == Service::Api {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        let url = format!("{}/", at.api_url);
        let answers = async |_: &mut Process| client.get(&url).send().await.is_ok_and(|got| got.status().is_success());
        process.wait_until(READY_WITHIN, answers).await.with_context(|| format!("waiting for {url}"))?;
    }
    Ok(())
}
