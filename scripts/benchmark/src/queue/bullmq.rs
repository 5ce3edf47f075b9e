//! BullMQ in a process of its own: `scripts/benchmark/bullmq` is its project, `scripts/bench` installs it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use devnet::paths;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use url::Url;

/// An answer that takes longer does not come.
const LIMIT: Duration = Duration::from_secs(900);

pub struct BullMq {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// A turn.
#[derive(Debug, Deserialize)]
pub struct Done {
    pub add_per_s: f64,
    pub process_per_s: f64,
}

#[derive(Debug, Deserialize)]
struct Assigned {
    assign_p99_ms: f64,
}

impl BullMq {
    pub async fn start(redis_url: &str, dir: &Path) -> anyhow::Result<Self> {
        let home = paths::state_dir().join("bench/bullmq");
        ensure!(home.join("node_modules/bullmq").is_dir(), "{} has no BullMQ: run scripts/bench queue", home.display());
        let url: Url = redis_url.parse()?;
        let log = std::fs::File::create(dir.join("bullmq.log"))?;
        let mut process = Command::new(paths::program("node", "nodejs")?)
            .arg(home.join("bench.mjs"))
            .arg(url.host_str().context("Redis has no host")?)
            .arg(url.port().context("Redis has no port")?.to_string())
            .current_dir(&home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let input = process.stdin.take().context("no input")?;
        let output = BufReader::new(process.stdout.take().context("no output")?).lines();
        Ok(Self { process, input, output })
    }

    /// Adds jobs and works them off.
    pub async fn run(&mut self, jobs: usize, concurrency: usize) -> anyhow::Result<Done> {
        self.ask(&json!({ "command": "run", "jobs": jobs, "concurrency": concurrency })).await
    }

    /// Milliseconds within which 99 of 100 jobs are in the worker's hands.
    pub async fn assign(&mut self, held: usize, samples: usize, every: Duration) -> anyhow::Result<f64> {
        let asked = json!({ "command": "assign", "held": held, "samples": samples, "everyMs": every.as_millis() });
        Ok(self.ask::<Assigned>(&asked).await?.assign_p99_ms)
    }

    /// Ends the process.
    pub fn stop(mut self) {
        self.process.start_kill().ok();
    }

    async fn ask<T: DeserializeOwned>(&mut self, command: &Value) -> anyhow::Result<T> {
        self.input.write_all(format!("{command}\n").as_bytes()).await?;
        let answer = tokio::time::timeout(LIMIT, self.output.next_line()).await.context("BullMQ does not answer")??;
        let answer: Value = serde_json::from_str(&answer.context("BullMQ has ended; see bullmq.log")?)?;
        if let Some(error) = answer.get("error") {
            bail!("BullMQ: {error}");
        }
        Ok(serde_json::from_value(answer)?)
    }
}
