//! A private chain with the contracts on it, and `littoral` run against it as people run it.

// Each test binary uses its own part of this, and Clippy excuses test functions only.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use alloy::providers::ProviderBuilder;
use alloy::providers::ext::AnvilApi;
use devnet::{Anvil, AnvilOptions, Chain, DEV_KEYS, DeployParams, Deployment, DevKey};
use serde_json::Value;
use tempfile::TempDir;

/// `littoral` without any configuration of this machine's.
pub fn littoral(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral"));
    command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
}

/// What a run of `littoral` said and how it ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// The objects on standard output, after making sure that it succeeded.
    pub fn results(&self) -> Vec<Value> {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The only object on standard output.
    pub fn result(&self) -> Value {
        let results = self.results();
        assert_eq!(results.len(), 1, "{self:?}");
        results[0].clone()
    }

    /// The error object, after making sure that it failed with `code`.
    pub fn error(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        let lines: Vec<Value> = self.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let error = lines.last().unwrap();
        assert!(error["error"].is_string() && error["code"].is_string(), "{self:?}");
        error.clone()
    }
}

/// A chain with the contracts on it.
pub struct Bench {
    pub anvil: Anvil,
    pub deployment: Deployment,
    pub chain: Chain,
    pub dir: TempDir,
}

impl Bench {
    pub async fn start() -> Self {
        let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("deployment.json");
        let deployment =
            Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default()).await.unwrap();
        let chain = Chain::new(anvil.rpc_url(), &deployment.manifest).unwrap();
        Self { anvil, deployment, chain, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `littoral --json …` for the holder of `key`, as a command that can still be changed.
    pub fn command(&self, key: DevKey, args: &[&str]) -> Command {
        let mut command = littoral(&["--json"]);
        command
            .args(args)
            .env("RPC_URL", self.anvil.rpc_url())
            .env("LITTORAL_DEPLOYMENT", &self.deployment.path)
            .env("LITTORAL_KEY", key.secret())
            .env("LITTORAL_NODE_DIR", self.path("node"))
            .env("LITTORAL_DATA_DIR", self.path("data"))
            // Nothing listens there: these commands need the chain only.
            .env("LITTORAL_API", "http://127.0.0.1:1");
        command
    }

    pub fn run(&self, key: DevKey, args: &[&str]) -> Run {
        Run::of(&mut self.command(key, args))
    }

    /// Lets time pass on the chain.
    pub async fn pass(&self, secs: u64) {
        let provider = ProviderBuilder::new().connect_http(self.anvil.rpc_url().parse().unwrap());
        provider.anvil_increase_time(secs).await.unwrap();
        provider.anvil_mine(Some(1), None).await.unwrap();
    }
}

/// What parties sign, and what they send without `littoral`.
pub mod parties;

/// Permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
