//! The servers that are compared, each on a core of its own.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::primitives::B256;
use anyhow::{Context, ensure};
use chrono::TimeDelta;
use devnet::{Endpoints, Launch, Market, Process, binary, paths, ports};
use littoral_api::realtime::{Tokens, Topic};
use market::{clock, db};

/// The core of the clients, Redis and this program.
pub const CLIENTS_CORE: usize = 0;
/// The core of the servers.
const SERVERS_CORE: usize = 1;
/// How long a server may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// The clock in which /proc counts CPU time, on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What every server and client needs.
pub struct Stage {
    pub job: B256,
    pub token: String,
    pub redis_url: String,
    endpoints: Endpoints,
    assigner: String,
    dir: PathBuf,
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `littoral-api serve`
    Ours,
    /// The npm package.
    SocketIo,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "littoral",
            Self::SocketIo => "socketio",
        }
    }
}

/// A running server. It is stopped when dropped.
pub struct Server {
    pub url: String,
    process: Process,
}

impl Stage {
    /// A job that may be followed.
    pub async fn prepare(market: &Market) -> anyhow::Result<Self> {
        let endpoints = market.endpoints().clone();
        let pool = db::connect(&endpoints.database_url, 1).await?;
        db::migrate(&pool).await?;
        // Whether it exists is asked when a token is made, not when it is used.
        let job = B256::repeat_byte(0x5e);
        let (holder, until) = (market.keys().requester.address(), clock::now() + TimeDelta::hours(1));
        let token = Tokens::load(&pool).await?.sign(holder, BTreeSet::from([Topic::Job(job)]), until)?;
        pool.close().await;
        Ok(Self {
            job,
            token,
            redis_url: endpoints.redis_url.clone(),
            endpoints,
            assigner: market.keys().assigner.secret(),
            dir: market.dir().to_owned(),
        })
    }
}

impl Server {
    /// Starts a server, and waits until it listens. `name` is that of its log.
    pub async fn start(stage: &Stage, kind: Kind, name: &str) -> anyhow::Result<Self> {
        let port = ports::free_port()?;
        let program = match kind {
            Kind::Ours => binary("littoral-api")?,
            Kind::SocketIo => paths::program("node", "nodejs")?,
        };
        let (program, arguments) = pinned(SERVERS_CORE, &program)?;
        let log = stage.dir.join("logs").join(format!("{name}.log"));
        let launch = Launch::new(name, program, log).args(arguments).env("REDIS_URL", &stage.redis_url);
        let at = &stage.endpoints;
        let mut process = match kind {
            Kind::Ours => launch
                .arg("serve")
                .env("BIND", format!("127.0.0.1:{port}"))
                .env("DATABASE_URL", &at.database_url)
                .env("RPC_URL", &at.rpc_url)
                .env("LITTORAL_DEPLOYMENT", &at.deployment)
                .env("BLOB_STORE", format!("file://{}", stage.dir.join("blobs").display()))
                .env("ASSIGNER_KEY", &stage.assigner)
                // All clients come from one address.
                .env("READER_RATE_LIMIT_BURST", "0"),
            Kind::SocketIo => launch.arg(home()?.join("server.mjs")).env("PORT", port.to_string()),
        }
        .spawn()?;
        process.wait_until(READY_WITHIN, async |process| ports::listens(process.pid(), port)).await?;
        Ok(Self { url: format!("http://127.0.0.1:{port}"), process })
    }

    /// What it has used, its own and the kernel's for it.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/stat", self.process.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // The second field is a name in brackets, which may hold anything; user and kernel time are the 14th and 15th.
        let fields = text.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect::<Vec<_>>());
        let ticks = |index: usize| fields.as_ref()?.get(index - 3)?.parse::<u32>().ok();
        let (user, kernel) = ticks(14).zip(ticks(15)).with_context(|| format!("{path} has no CPU time"))?;
        Ok((f64::from(user) + f64::from(kernel)) / TICKS_PER_SECOND)
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// A program on one core, where there are several: what to start, and with which arguments before its own.
pub fn pinned(core: usize, program: &Path) -> anyhow::Result<(PathBuf, Vec<OsString>)> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Ok((program.to_owned(), Vec::new()));
    }
    let arguments = vec!["-c".into(), core.to_string().into(), program.into()];
    Ok((paths::program("taskset", "util-linux")?, arguments))
}

/// Where `scripts/bench` has put the scripts and their packages.
pub fn home() -> anyhow::Result<PathBuf> {
    let home = paths::state_dir().join("bench/socketio");
    let is_there = home.join("node_modules/socket.io-client/package.json").is_file();
    ensure!(is_there, "{} has no socket.io: run scripts/bench realtime", home.display());
    Ok(home)
}
