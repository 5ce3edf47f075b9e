//! A private development chain.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use alloy::primitives::{Address, B256, b256};
use alloy::providers::{Provider, ProviderBuilder};
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context;
use tempfile::TempDir;

use crate::paths::{foundry, scratch_dir};
use crate::ports::{is_free, listens};
use crate::process::{Launch, Process};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// How to start an [`Anvil`]; the default mines a block as soon as a transaction arrives.
#[derive(Clone, Debug, Default)]
pub struct AnvilOptions {
    /// Seconds between blocks; a block for every transaction unless given.
    pub block_time: Option<f64>,
    /// A file from which the chain's state is loaded when it exists, and to which it is written at the end and every
    /// ten seconds; nothing is kept unless given.
    pub state: Option<PathBuf>,
    /// 31337 unless given.
    pub chain_id: Option<u64>,
    /// The port to take if it is free; any free one otherwise. On the port asked for, the node logs nothing but errors.
    pub port: Option<u16>,
    /// Where the log lies; a directory that vanishes with the node unless given.
    pub log: Option<PathBuf>,
    /// Further arguments.
    pub args: Vec<String>,
}

/// A running node on 127.0.0.1. Dropping it stops it.
#[derive(Debug)]
pub struct Anvil {
    process: Process,
    rpc_url: String,
    chain_id: u64,
    _scratch: Option<TempDir>,
}

impl Anvil {
    /// Starts a node and waits until it answers.
    ///
    /// # Errors
    /// When Foundry is not installed or the node does not come up; with its log's tail.
    pub async fn start(options: AnvilOptions) -> anyhow::Result<Self> {
        let scratch = if options.log.is_none() { Some(scratch_dir("anvil")?) } else { None };
        let log = options.log.clone().or_else(|| scratch.as_ref().map(|dir| dir.path().join("anvil.log")));
        let log = log.context("no log file for anvil")?;
        // Anvil itself finds a free port where the preferred one is taken, or gets taken before it is there.
        let mut port = options.port.filter(|port| is_free(*port));
        let (process, rpc_url) = loop {
            let mut process = launch(&options, port, &log)?.spawn()?;
            match wait_until_it_listens(&mut process, port).await {
                Ok(url) => break (process, url),
                Err(_) if port.is_some() => port = None,
                Err(error) => return Err(error),
            }
        };
        let chain_id = ProviderBuilder::new().connect_http(rpc_url.parse()?).get_chain_id().await?;
        Ok(Self { process, rpc_url, chain_id, _scratch: scratch })
    }

    /// `http://127.0.0.1:…`
    pub fn rpc_url(&self) -> &str {
        &self.rpc_url
    }

    /// The chain's id.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The node's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The ten development accounts, each with 10,000 coins.
    pub fn keys(&self) -> [DevKey; 10] {
        DEV_KEYS
    }
}

/// Where the Anvil at `rpc_url` also talks WebSocket: it does both on one port.
pub fn ws_url(rpc_url: &str) -> String {
    rpc_url.replacen("http", "ws", 1)
}

/// Waits until the node answers; returns its URL.
async fn wait_until_it_listens(process: &mut Process, port: Option<u16>) -> anyhow::Result<String> {
    let address = match port {
        Some(port) => {
            process.wait_until(READY_WITHIN, async |process| listens(process.pid(), port)).await?;
            format!("127.0.0.1:{port}")
        }
        None => {
            process.wait_until(READY_WITHIN, async |process| listening_on(&process.output()).is_some()).await?;
            listening_on(&process.output()).context("anvil does not say where it listens")?.to_owned()
        }
    };
    let url = format!("http://{address}");
    let provider = ProviderBuilder::new().connect_http(url.parse()?);
    process.wait_until(READY_WITHIN, async |_| provider.get_chain_id().await.is_ok()).await?;
    Ok(url)
}

fn launch(options: &AnvilOptions, port: Option<u16>, log: &Path) -> anyhow::Result<Launch> {
    // Port 0: the node binds what is free and says what it got, so there is no race for it. It says so only when not
    // quiet, and then it also logs every request, which a node with a given port must not do for days.
    let mut launch = Launch::new("anvil", foundry("anvil")?, log)
        .args(["--host", "127.0.0.1", "--port", &port.unwrap_or(0).to_string()])
        .args(&options.args);
    if port.is_some() {
        launch = launch.arg("--quiet");
    }
    if let Some(block_time) = options.block_time {
        launch = launch.args(["--block-time", &block_time.to_string()]);
    }
    if let Some(state) = &options.state {
        launch = launch.arg("--state").arg(state).args(["--state-interval", "10"]);
    }
    if let Some(chain_id) = options.chain_id {
        launch = launch.args(["--chain-id", &chain_id.to_string()]);
    }
    Ok(launch)
}

fn listening_on(output: &str) -> Option<&str> {
    output.lines().find_map(|line| line.strip_prefix("Listening on ")).map(str::trim)
}

/// A private key for development. The ten of [`DEV_KEYS`] are known to everyone: they must never hold anything of value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DevKey(B256);

impl FromStr for DevKey {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let bytes: B256 = text.trim().parse().context("a private key is 32 bytes in hexadecimal")?;
        PrivateKeySigner::from_bytes(&bytes).context("not a private key")?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for DevKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevKey({})", self.address())
    }
}

impl DevKey {
    /// The private key as `0x…`.
    pub fn secret(&self) -> String {
        self.0.to_string()
    }

    /// A signer with the key.
    pub fn signer(&self) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&self.0).expect("checked when it was parsed, and the well-known ones are valid")
    }

    /// The key's account.
    pub fn address(&self) -> Address {
        self.signer().address()
    }
}

/// The keys of the ten accounts that Anvil funds, of the mnemonic `test test test test test test test test test test test
/// junk`.
pub const DEV_KEYS: [DevKey; 10] = [
    DevKey(b256!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")),
    DevKey(b256!("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d")),
    DevKey(b256!("5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a")),
    DevKey(b256!("7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6")),
    DevKey(b256!("47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a")),
    DevKey(b256!("8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba")),
    DevKey(b256!("92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e")),
    DevKey(b256!("4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356")),
    DevKey(b256!("dbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97")),
    DevKey(b256!("2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6")),
];
