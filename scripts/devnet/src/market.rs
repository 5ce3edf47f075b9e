//! A whole marketplace on private ports: servers, contracts, processes. `scripts/up` and the end-to-end tests share it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::services::{self, Endpoints, Keys, NodeOptions, Service};
use crate::{
    Anvil, AnvilOptions, Chain, DeployParams, Deployment, Littoral, Postgres, Process, Redis, RedisOptions, paths,
};

/// How to start a [`Market`]. The default is private, fresh and fast, for tests; `dir` must be given.
#[derive(Clone, Debug, Default)]
pub struct MarketOptions {
    /// Where data, logs, blobs and the manifest lie.
    pub dir: PathBuf,
    /// A Postgres database to use in place of a private server.
    pub database_url: Option<String>,
    /// A Redis to use in place of a private server.
    pub redis_url: Option<String>,
    /// A chain to use in place of a private one.
    pub rpc_url: Option<String>,
    /// A manifest of contracts that are already on the chain.
    pub deployment: Option<PathBuf>,
    /// In front of every Redis key.
    pub redis_prefix: String,
    /// Keep what the private servers hold in `dir` across runs; otherwise they start empty.
    pub keep: bool,
    /// Listen on the ports that people expect, where these are free; on any free ones otherwise.
    pub usual_ports: bool,
    /// Deploy with `scripts/Deploy.s.sol`, as on any chain, rather than from forge's output.
    pub deploy_by_script: bool,
    /// Seconds between blocks of the private chain; a block a transaction unless given.
    pub block_time: Option<f64>,
    /// What the contracts are deployed with.
    pub params: DeployParams,
    /// Who does what.
    pub keys: Keys,
    /// How the node works.
    pub node: NodeOptions,
    /// Further environment variables of single processes.
    pub env: Vec<(Service, &'static str, String)>,
}

/// How often a process is given another port.
const ATTEMPTS: usize = 5;

/// A running marketplace. Dropping it stops the processes, then the servers.
#[derive(Debug)]
pub struct Market {
    // In the order in which they must stop.
    services: BTreeMap<Service, Process>,
    servers: (Option<Anvil>, Option<Redis>, Option<Postgres>),
    endpoints: Endpoints,
    deployment: Deployment,
    options: MarketOptions,
}

impl Market {
    /// Starts the servers and deploys the contracts; no process of Littoral yet.
    ///
    /// # Errors
    /// When a server does not start or the deployment fails.
    pub async fn servers(options: MarketOptions) -> anyhow::Result<Self> {
        let dir = options.dir.clone();
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        if !options.keep {
            forget(&dir);
        }
        let (anvil, rpc_url) = start_chain(&options).await?;
        let deployment = match reusable(&options, &rpc_url).await? {
            Some(deployment) => deployment,
            None => {
                // A new chain makes what was indexed of the old one worthless.
                forget_stores(&dir);
                deploy(&options, &rpc_url).await?
            }
        };
        let ((postgres, database_url), (redis, redis_url)) =
            tokio::try_join!(start_postgres(&options), start_redis(&options))?;
        let endpoints = Endpoints {
            database_url,
            redis_url,
            redis_prefix: options.redis_prefix.clone(),
            rpc_url,
            deployment: deployment.path.clone(),
            api_url: format!("http://{}", services::bind_address(options.usual_ports.then_some(3001))?),
            node_dir: dir.join("node"),
            indexer_metrics: services::bind_address(options.usual_ports.then_some(9101))?,
            settler_metrics: services::bind_address(options.usual_ports.then_some(9102))?,
        };
        Ok(Self { services: BTreeMap::new(), servers: (anvil, redis, postgres), endpoints, deployment, options })
    }

    /// Starts servers, indexer, API and settler, and waits until the API answers. The node is started by
    /// [`Self::start_service`], once it is registered.
    ///
    /// # Errors
    /// When something does not come up; with the tail of its log.
    pub async fn start(options: MarketOptions) -> anyhow::Result<Self> {
        let mut market = Self::servers(options).await?;
        for service in [Service::Indexer, Service::Api, Service::Settler] {
            market.start_service(service).await?;
        }
        Ok(market)
    }

    /// Starts one process, or starts it again after it ended, and waits until it listens; the node, which does not, is
    /// merely started. Where its port was taken in the meantime, a process that starts for the first time gets another.
    ///
    /// # Errors
    /// When it does not start; with the tail of its log.
    pub async fn start_service(&mut self, service: Service) -> anyhow::Result<()> {
        if let Some(process) = self.services.get_mut(&service) {
            process.restart()?;
            return services::wait_ready(process, service, &self.endpoints).await;
        }
        for _ in 0..ATTEMPTS {
            let mut process = services::launch(service, &self.endpoints, &self.options)?.spawn()?;
            match services::wait_ready(&mut process, service, &self.endpoints).await {
                Ok(()) => {
                    self.services.insert(service, process);
                    return Ok(());
                }
                Err(_) if process.output().contains("in use") => self.endpoints.move_service(service)?,
                Err(error) => return Err(error),
            }
        }
        anyhow::bail!("the {} found no free port", service.name())
    }

    /// A process that was started.
    ///
    /// # Errors
    /// When it was not.
    pub fn process(&mut self, service: Service) -> anyhow::Result<&mut Process> {
        self.services.get_mut(&service).with_context(|| format!("the {} was not started", service.name()))
    }

    /// `kill -9`s a process.
    ///
    /// # Errors
    /// When it was not started.
    pub fn kill(&mut self, service: Service) -> anyhow::Result<()> {
        self.process(service)?.kill();
        Ok(())
    }

    /// Where everything is.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The contracts.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// Who does what.
    pub fn keys(&self) -> Keys {
        self.options.keys
    }

    /// Where data, logs and blobs lie.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// The command line as the requester uses it.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn requester(&self) -> anyhow::Result<Littoral> {
        Littoral::new(&self.endpoints, self.options.keys.requester)
    }

    /// The command line as the node's operator uses it.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn operator(&self) -> anyhow::Result<Littoral> {
        Littoral::new(&self.endpoints, self.options.keys.node)
    }

    /// What the contracts say.
    ///
    /// # Errors
    /// When forge's build output is missing.
    pub fn chain(&self) -> anyhow::Result<Chain> {
        Chain::new(&self.endpoints.rpc_url, &self.deployment.manifest)
    }

    /// Restarts every process that ends, after a pause that doubles from half a second to half a minute as long as it
    /// keeps ending within a minute. Tells `report` about each end. Never returns.
    pub async fn supervise(&mut self, mut report: impl FnMut(&str)) -> Infallible {
        let mut watch: BTreeMap<Service, Watched> = BTreeMap::new();
        loop {
            let all: Vec<Service> = self.services.keys().copied().collect();
            for service in all {
                let watched = watch.entry(service).or_default();
                if let Some(process) = self.services.get_mut(&service) {
                    watched.look_after(process, &mut report);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Stops the processes in the order node, settler, API, indexer.
    pub fn stop_services(&mut self) {
        while let Some((_, mut process)) = self.services.pop_last() {
            process.stop();
        }
    }
}

impl Drop for Market {
    fn drop(&mut self) {
        self.stop_services();
        self.servers = (None, None, None);
        if !self.options.keep {
            // The next run starts afresh anyway, and these may lie outside of `dir`.
            paths::remove_tree(&self.options.dir.join("postgres"));
        }
    }
}

/// The restarts of one process.
struct Watched {
    started: Instant,
    pause: Duration,
    restart_at: Option<Instant>,
}

impl Default for Watched {
    fn default() -> Self {
        Self { started: Instant::now(), pause: Duration::from_millis(500), restart_at: None }
    }
}

impl Watched {
    fn look_after(&mut self, process: &mut Process, report: &mut impl FnMut(&str)) {
        let now = Instant::now();
        match (process.exit_status(), self.restart_at) {
            (None, _) => {}
            (Some(status), None) => {
                if now - self.started > Duration::from_secs(60) {
                    self.pause = Duration::from_millis(500);
                }
                let (name, log) = (process.name(), process.log_path().display());
                let pause = self.pause.as_secs_f32();
                report(&format!("{name} ended ({status}); starting it again in {pause} s, see {log}"));
                self.restart_at = Some(now + self.pause);
            }
            (Some(_), Some(at)) if at > now => {}
            (Some(_), Some(_)) => {
                self.pause = (self.pause * 2).min(Duration::from_secs(30));
                self.restart_at = None;
                self.started = now;
                if let Err(error) = process.restart() {
                    report(&format!("{error:#}"));
                }
            }
        }
    }
}

/// Removes what an earlier run left in the servers' own directories.
fn forget(dir: &Path) {
    forget_stores(dir);
    for name in ["chain", "deployment", "logs", "node"] {
        fs::remove_dir_all(dir.join(name)).ok();
    }
}

fn forget_stores(dir: &Path) {
    paths::remove_tree(&dir.join("postgres"));
    for name in ["redis", "blobs"] {
        fs::remove_dir_all(dir.join(name)).ok();
    }
}

async fn start_chain(options: &MarketOptions) -> anyhow::Result<(Option<Anvil>, String)> {
    if let Some(url) = &options.rpc_url {
        return Ok((None, url.clone()));
    }
    let chain = options.dir.join("chain");
    fs::create_dir_all(&chain)?;
    let anvil = Anvil::start(AnvilOptions {
        block_time: options.block_time,
        state: options.keep.then(|| chain.join("state.json")),
        port: options.usual_ports.then_some(8545),
        log: Some(options.dir.join("logs/anvil.log")),
        ..AnvilOptions::default()
    })
    .await?;
    let url = anvil.rpc_url().to_owned();
    Ok((Some(anvil), url))
}

async fn start_postgres(options: &MarketOptions) -> anyhow::Result<(Option<Postgres>, String)> {
    if let Some(url) = &options.database_url {
        return Ok((None, url.clone()));
    }
    let dir = options.dir.join("postgres");
    let is_new = !dir.exists();
    let server = Postgres::start(&dir, options.usual_ports.then_some(15432)).await?;
    let url = if is_new { server.create_database("littoral").await? } else { server.database_url("littoral") };
    Ok((Some(server), url.to_string()))
}

async fn start_redis(options: &MarketOptions) -> anyhow::Result<(Option<Redis>, String)> {
    if let Some(url) = &options.redis_url {
        return Ok((None, url.clone()));
    }
    let server = Redis::start(RedisOptions {
        dir: Some(options.dir.join("redis")),
        port: options.usual_ports.then_some(16379),
        persistent: options.keep,
        ..RedisOptions::default()
    })
    .await?;
    let url = server.url().to_owned();
    Ok((Some(server), url))
}

fn manifest_path(options: &MarketOptions) -> PathBuf {
    options.deployment.clone().unwrap_or_else(|| options.dir.join("deployment/manifest.json"))
}

/// The contracts of an earlier run, when they are still on the chain.
async fn reusable(options: &MarketOptions, rpc_url: &str) -> anyhow::Result<Option<Deployment>> {
    let path = manifest_path(options);
    if !path.is_file() {
        return Ok(None);
    }
    let deployment = Deployment::load(&path)?;
    let live = deployment.is_live(rpc_url).await.with_context(|| format!("asking the chain at {rpc_url}"))?;
    if !live && options.deployment.is_some() {
        anyhow::bail!("the contracts named in {} are not on the chain at {rpc_url}", path.display());
    }
    Ok(live.then_some(deployment))
}

async fn deploy(options: &MarketOptions, rpc_url: &str) -> anyhow::Result<Deployment> {
    let path = manifest_path(options);
    let deployer = options.keys.deployer;
    if options.deploy_by_script {
        Deployment::deploy(rpc_url, deployer, &path, options.params).await
    } else {
        Deployment::deploy_fast(rpc_url, deployer, &path, options.params).await
    }
}
