//! A private Redis server; [`crate::RedisCluster`] makes a cluster of some.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use std::io::Write;
use tempfile::TempDir;
use tokio::process::Command;
use url::Url;

use crate::paths::{program, scratch_dir};
use crate::ports::{free_port, free_port_or};
use crate::process::{Launch, Process};

const READY_WITHIN: Duration = Duration::from_secs(20);
const ATTEMPTS: usize = 10;

/// How to start a [`Redis`]; the default is what tests want.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Where data and log lie; a directory that vanishes with the server unless given.
    pub dir: Option<PathBuf>,
    /// The port to take if it is free; any free one otherwise.
    pub port: Option<u16>,
    /// Whether writes are kept across restarts, by an append-only file.
    pub persistent: bool,
    /// A password for the default user.
    pub password: Option<String>,
    /// Whether it is to be a node of a cluster, as yet without slots.
    pub cluster: bool,
}

/// A running server on 127.0.0.1. Dropping it shuts it down.
#[derive(Debug)]
pub struct Redis {
    // Declared first, so that the server has ended when its directory is removed.
    process: Process,
    url: Url,
    bus: Option<u16>,
    _scratch: Option<TempDir>,
}

impl Redis {
    /// Starts a server.
    ///
    /// # Errors
    /// When Redis is not installed or the server does not come up; with its log's tail.
    pub async fn start(options: RedisOptions) -> anyhow::Result<Self> {
        let scratch = if options.dir.is_none() { Some(scratch_dir("redis")?) } else { None };
        let dir = match (&options.dir, &scratch) {
            (Some(dir), _) => dir.clone(),
            (None, Some(scratch)) => scratch.path().to_owned(),
            (None, None) => anyhow::bail!("no directory for Redis"),
        };
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let port = free_port_or(options.port)?;
            let bus = if options.cluster { Some(free_port()?) } else { None };
            let config = write_config(&dir, port, bus, &options)?;
            let launch = Launch::new("redis-server", program("redis-server", "redis-server")?, dir.join("redis.log"));
            let mut process = launch.arg(config).spawn()?;
            // Its own log says so only after it has bound the port; another server there is not mistaken for ours.
            let ready = async |process: &mut Process| process.output().contains("Ready to accept connections");
            match process.wait_until(READY_WITHIN, ready).await {
                Ok(()) => {
                    let url = url(port, options.password.as_deref())?;
                    return Ok(Self { process, url, bus, _scratch: scratch });
                }
                Err(error) if process.output().contains("in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("Redis was not started")))
    }

    /// `redis://…`, with the password if there is one.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.url.port().unwrap_or_default()
    }

    /// The port on which the nodes of a cluster speak with it, if it is one.
    pub fn bus_port(&self) -> Option<u16> {
        self.bus
    }

    /// What it answers to a command of another application's, which follows a cluster's redirections.
    ///
    /// # Errors
    /// When `redis-cli` is not installed, the server does not answer or refuses the command.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let cli = program("redis-cli", "redis-tools")?;
        let mut command = Command::new(cli);
        command.args(["-e", "-c", "--no-auth-warning", "-u", self.url()]).args(arguments);
        let output = command.kill_on_drop(true).output().await.context("starting redis-cli")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (said, told) = (text(&output.stdout), text(&output.stderr));
        anyhow::ensure!(output.status.success(), "{}: {said} {told}", arguments.join(" "));
        Ok(said)
    }

    /// The server's process, to kill and restart it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn url(port: u16, password: Option<&str>) -> anyhow::Result<Url> {
    let mut url = Url::parse(&format!("redis://127.0.0.1:{port}/"))?;
    if let Some(password) = password {
        url.set_password(Some(password)).map_err(|()| anyhow::anyhow!("the password does not fit a URL"))?;
    }
    Ok(url)
}

/// A file rather than arguments: `ps` shows arguments to everyone.
fn write_config(dir: &std::path::Path, port: u16, bus: Option<u16>, options: &RedisOptions) -> anyhow::Result<PathBuf> {
    let path = dir.join("redis.conf");
    let append_only = if options.persistent { "yes" } else { "no" };
    let password = options.password.as_ref().map(|password| format!("requirepass \"{password}\"\n"));
    // Slots without a master are no reason for the others to refuse; who is late is not taken for dead on a busy machine.
    let cluster = bus.map(|bus| {
        format!(
            "cluster-enabled yes\ncluster-port {bus}\ncluster-config-file nodes.conf\ncluster-node-timeout 5000\n\
             cluster-require-full-coverage no\n"
        )
    });
    let text = format!(
        "bind 127.0.0.1\nport {port}\ndir \"{}\"\nsave \"\"\nappendonly {append_only}\ndaemonize no\n{}{}",
        dir.display(),
        password.unwrap_or_default(),
        cluster.unwrap_or_default()
    );
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(path)
}
