//! The command line `littoral`, driven as people drive it, with `--json`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::DevKey;
use crate::services::{Endpoints, actor_env, binary};

/// `littoral` for the holder of one key.
#[derive(Clone, Debug)]
pub struct Littoral {
    program: PathBuf,
    env: Vec<(&'static str, String)>,
}

/// What one run of the command line said.
#[derive(Clone, Debug)]
pub struct Said {
    /// The objects it printed, in order.
    pub lines: Vec<Value>,
    /// How long it ran.
    pub took: Duration,
}

impl Littoral {
    /// Acts for the holder of `key`.
    ///
    /// # Errors
    /// When the program has not been built.
    pub fn new(at: &Endpoints, key: DevKey) -> anyhow::Result<Self> {
        Ok(Self { program: binary("littoral")?, env: actor_env(at, key).to_vec() })
    }

    /// Runs one command to its end.
    ///
    /// # Errors
    /// When it fails; with what it wrote to standard error.
    pub async fn run<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> anyhow::Result<Said> {
        self.stream(args, |_| ()).await
    }

    /// Runs one command to its end and hands on each object as it is printed.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn stream<S: AsRef<str>>(
        &self,
        args: impl IntoIterator<Item = S>,
        mut each: impl FnMut(&Value),
    ) -> anyhow::Result<Said> {
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let shown = args.join(" ");
        let started = Instant::now();
        let mut child = Command::new(&self.program)
            .arg("--json")
            .args(&args)
            .envs(self.env.iter().map(|(key, value)| (*key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let mut errors = child.stderr.take().context("no standard error")?;
        let errors = tokio::spawn(async move {
            let mut text = Vec::new();
            errors.read_to_end(&mut text).await.ok();
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        let mut output = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let mut lines = Vec::new();
        while let Some(line) = output.next_line().await? {
            let value: Value = serde_json::from_str(&line)
                .with_context(|| format!("`littoral --json {shown}` printed what is not JSON: {line}"))?;
            each(&value);
            lines.push(value);
        }
        let status = child.wait().await?;
        if !status.success() {
            let said = lines.last().map(Value::to_string).unwrap_or_default();
            bail!("`littoral {shown}` failed ({status}): {} {said}", errors.await.unwrap_or_default());
        }
        Ok(Said { lines, took: started.elapsed() })
    }
}

impl Said {
    /// The last object: the command's result.
    ///
    /// # Errors
    /// When it printed none.
    pub fn result(&self) -> anyhow::Result<&Value> {
        self.lines.last().context("the command printed nothing")
    }

    /// A text field of the last object that has it.
    ///
    /// # Errors
    /// When none has.
    pub fn text(&self, field: &str) -> anyhow::Result<&str> {
        self.lines
            .iter()
            .rev()
            .find_map(|line| line[field].as_str())
            .with_context(|| format!("the command said nothing of `{field}`: {:?}", self.lines))
    }

    /// The transactions it sent.
    pub fn transactions(&self) -> Vec<B256> {
        let mut hashes: Vec<B256> =
            self.lines.iter().filter_map(|line| line["txHash"].as_str()?.parse().ok()).collect();
        hashes.dedup();
        hashes
    }
}
