//! The script with the clients: told what to do on its input, it says what it saw on its output.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use devnet::paths;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::servers::{CLIENTS_CORE, Server, Stage, home, pinned};

/// Nothing takes longer, beside what it was asked to take.
const LIMIT: Duration = Duration::from_secs(120);

/// A script that is connected. It is killed when dropped.
pub struct Clients {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What the clients saw of one run.
#[derive(Debug, Clone, Deserialize)]
pub struct Run {
    seconds: f64,
    messages: u32,
    /// Messages that should have come.
    pub expected: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub missed: u64,
    pub repeated: u64,
    /// Clients that wanted what they had missed, and those who were told that it is not known.
    pub asked: u64,
    pub refused: u64,
}

#[derive(Deserialize)]
struct Connected {
    connected: u32,
}

impl Run {
    /// Messages that came.
    pub fn count(&self) -> f64 {
        f64::from(self.messages)
    }

    /// Messages that came in a second.
    pub fn per_second(&self) -> f64 {
        self.count() / self.seconds
    }
}

impl Clients {
    /// Connects `count` clients, spread over `servers`.
    pub async fn connect(stage: &Stage, servers: &[&Server], count: u32) -> anyhow::Result<Self> {
        let urls: Vec<&str> = servers.iter().map(|server| server.url.as_str()).collect();
        let (program, arguments) = pinned(CLIENTS_CORE, &paths::program("node", "nodejs")?)?;
        let mut process = Command::new(program)
            .args(arguments)
            .arg(home()?.join("client.mjs"))
            .env("URLS", urls.join(","))
            .env("TOKEN", &stage.token)
            .env("JOB", stage.job.to_string())
            .env("CLIENTS", count.to_string())
            .env("REDIS_URL", &stage.redis_url)
            .env("PUBLISH", market::redis::history::PUBLISH_LUA)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = process.stdin.take().context("the clients have no input")?;
        let output = process.stdout.take().context("the clients have no output")?;
        let mut clients = Self { _process: process, input, output: BufReader::new(output).lines() };
        let Connected { connected } = clients.answer(LIMIT).await?;
        anyhow::ensure!(connected == count, "{connected} of {count} clients are connected");
        Ok(clients)
    }

    /// As many messages as there can be.
    pub async fn burst(&mut self, seconds: u32) -> anyhow::Result<Run> {
        self.ask(&format!("burst {seconds}\n"), seconds).await
    }

    /// `rate` messages a second.
    pub async fn paced(&mut self, seconds: u32, rate: u32) -> anyhow::Result<Run> {
        self.ask(&format!("paced {seconds} {rate}\n"), seconds).await
    }

    async fn ask(&mut self, what: &str, seconds: u32) -> anyhow::Result<Run> {
        self.input.write_all(what.as_bytes()).await?;
        self.answer(LIMIT + Duration::from_secs(seconds.into())).await
    }

    async fn answer<T: DeserializeOwned>(&mut self, within: Duration) -> anyhow::Result<T> {
        let line = timeout(within, self.output.next_line()).await.context("the clients do not answer")??;
        let line = line.context("the clients have ended")?;
        serde_json::from_str(&line).with_context(|| format!("the clients say {line}"))
    }
}
