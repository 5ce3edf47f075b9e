//! `scripts/deploy` as its user runs it, once everything is built, against private chains with the ids of the real ones.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use alloy::network::TransactionBuilder;
use alloy::primitives::{Address, Bytes, U256, address};
use alloy::providers::ext::AnvilApi;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use devnet::deployment::{ChainParams, Check, init_code};
use devnet::{Anvil, AnvilOptions, Chain, DEV_KEYS, DeployParams, Deployment, DevKey, Manifest, paths};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

const PAYER: DevKey = DEV_KEYS[0];
const OWNER: DevKey = DEV_KEYS[1];
const DETERMINISTIC_DEPLOYER: Address = address!("4e59b44847b379578588920cA78FbF26c0B4956C");

/// A private chain that looks like the one called `name` in the reviewed parameters.
struct Bench {
    name: &'static str,
    anvil: Anvil,
    provider: DynProvider,
    dir: TempDir,
}

struct Said {
    is_success: bool,
    output: String,
}

impl Said {
    #[track_caller]
    fn succeeds(self) -> String {
        assert!(self.is_success, "{}", self.output);
        self.output
    }

    #[track_caller]
    fn refuses(self, reason: &str) {
        assert!(!self.is_success, "{}", self.output);
        assert!(self.output.contains(reason), "no {reason:?} in {}", self.output);
    }
}

impl Bench {
    async fn start(name: &'static str, more: &[&str]) -> Self {
        let chain = ChainParams::load(&ChainParams::file(), name).unwrap();
        // Anvil does not know Amsterdam, of which the deployment needs nothing.
        let hardfork = if chain.hardfork == "amsterdam" { "osaka" } else { &chain.hardfork };
        let mut args = vec!["--hardfork".to_owned(), hardfork.to_owned(), "--enable-tx-gas-limit".to_owned()];
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let mines = chain.confirmation.deepest() > 0 && !more.contains(&"--no-mining");
        let (chain_id, block_time) = (Some(chain.chain_id), mines.then_some(0.1));
        let anvil = Anvil::start(AnvilOptions { chain_id, block_time, args, ..AnvilOptions::default() }).await.unwrap();
        let provider = ProviderBuilder::new().connect_http(anvil.rpc_url().parse().unwrap()).erased();
        Self { name, anvil, provider, dir: paths::scratch_dir("deploy").unwrap() }
    }

    fn manifest_path(&self) -> PathBuf {
        self.dir.path().join("manifest.json")
    }

    fn manifest(&self) -> Manifest {
        Deployment::load(&self.manifest_path()).unwrap().manifest
    }

    async fn deploy(&self, args: &[&str], env: &[(&str, String)]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-devnet"));
        command.args(["deploy", self.name, "--manifest"]).arg(self.manifest_path()).args(args);
        for name in ["RPC_URL", "OWNER", "DEPLOYER_KEY", "LITTORAL_DEPLOYMENT", "ETHERSCAN_API_KEY"] {
            command.env_remove(name);
        }
        command.env("RPC_URL", self.anvil.rpc_url()).envs(env.iter().map(|(name, value)| (name, value)));
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        Said { is_success: output.status.success(), output: String::from_utf8_lossy(&text).into_owned() }
    }

    /// Transactions that `key` has sent.
    async fn sent(&self, key: DevKey) -> u64 {
        self.provider.get_transaction_count(key.address()).await.unwrap()
    }
}

fn owner() -> (&'static str, String) {
    ("OWNER", OWNER.address().to_string())
}

fn key(key: DevKey) -> (&'static str, String) {
    ("DEPLOYER_KEY", key.secret())
}

/// The address behind `label` in a plan.
fn address_in(output: &str, label: &str) -> Address {
    let line = output.lines().find(|line| line.split_whitespace().next() == Some(label)).expect(label);
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// From the dry run to the owner who accepts.
async fn is_deployed_once_and_handed_over(name: &'static str) {
    let bench = Bench::start(name, &[]).await;
    let dry = bench.deploy(&[], &[owner(), key(PAYER)]).await.succeeds();
    assert!(dry.contains("nothing was sent") && dry.contains("cost"), "{dry}");
    assert!(!bench.manifest_path().exists(), "a dry run writes nothing");
    assert_eq!(bench.sent(PAYER).await, 0, "a dry run sends nothing");

    bench.deploy(&["--broadcast"], &[owner(), key(PAYER)]).await.succeeds();
    let manifest = bench.manifest();
    assert_eq!(manifest.chain_id, bench.anvil.chain_id());
    let addresses = [manifest.deployment, manifest.registry, manifest.escrow];
    assert_eq!(addresses, ["deployment", "registry", "escrow"].map(|label| address_in(&dry, label)));
    let receipt = bench.provider.get_transaction_receipt(manifest.deploy_transaction).await.unwrap().unwrap();
    assert_eq!((receipt.from, receipt.block_number), (PAYER.address(), Some(manifest.deploy_block)));
    assert!(receipt.gas_used <= 1 << 24, "{} gas", receipt.gas_used);

    let (file, sent) = (fs::read(bench.manifest_path()).unwrap(), bench.sent(PAYER).await);
    let again = bench.deploy(&["--broadcast"], &[owner(), key(PAYER)]).await.succeeds();
    assert!(again.contains("deployed already") && again.contains("has not accepted the escrow yet"), "{again}");
    assert_eq!((fs::read(bench.manifest_path()).unwrap(), bench.sent(PAYER).await), (file, sent), "nothing changed");

    bench.deploy(&["--accept", "--broadcast"], &[key(PAYER)]).await.refuses("only");
    let how = bench.deploy(&["--accept"], &[]).await.succeeds();
    assert!(how.contains("0x79ba5097") && how.contains(&manifest.escrow.to_string()), "{how}");
    bench.deploy(&["--accept", "--broadcast"], &[key(OWNER)]).await.succeeds();
    assert_eq!(bench.sent(OWNER).await, 2);
    let check = bench.deploy(&["--check"], &[]).await.succeeds();
    assert!(check.contains("0 differ") && !check.contains("not accepted"), "{check}");
}

#[tokio::test]
async fn on_sepolia_it_is_deployed_once_and_handed_over() {
    is_deployed_once_and_handed_over("sepolia").await;
}

#[tokio::test]
async fn on_ethereum_it_is_deployed_once_and_handed_over() {
    is_deployed_once_and_handed_over("ethereum").await;
}

#[tokio::test]
async fn on_polygon_it_is_deployed_once_and_handed_over() {
    is_deployed_once_and_handed_over("polygon").await;
}

#[tokio::test]
async fn on_a_private_chain_it_is_deployed_once_and_handed_over() {
    is_deployed_once_and_handed_over("local").await;
}

#[tokio::test]
async fn a_private_chain_needs_nothing_but_its_name() {
    let bench = Bench::start("local", &[]).await;
    bench.deploy(&["--broadcast"], &[]).await.succeeds();
    let manifest = bench.manifest();
    assert_eq!(manifest.escrow_params.owner, PAYER.address());
    let chain = Chain::new(bench.anvil.rpc_url(), &manifest).unwrap();
    assert_eq!(chain.min_stake().await.unwrap(), U256::from(DeployParams::default().min_stake_wei));
    assert!(!bench.provider.get_code_at(manifest.tokens["TEST"]).await.unwrap().is_empty());
    let check = bench.deploy(&["--check"], &[]).await.succeeds();
    assert!(!check.contains("not accepted"), "{check}");

    // A chain that was started afresh.
    let fresh = Bench { dir: bench.dir, ..Bench::start("local", &[]).await };
    fresh.deploy(&["--check"], &[]).await.refuses("there is no manifest");
    fresh.deploy(&["--broadcast"], &[]).await.succeeds();
    assert_eq!(fresh.manifest().escrow, manifest.escrow, "code and parameters decide the addresses");
}

#[tokio::test]
async fn what_cannot_go_well_is_refused_before_anything_is_sent() {
    let bench = Bench::start("sepolia", &[]).await;
    let other = Bench { name: "ethereum", ..Bench::start("polygon", &[]).await };
    let all = [owner(), key(PAYER)];
    other.deploy(&["--broadcast"], &all).await.refuses("the RPC serves chain 137, not 1");
    other.deploy(&["--check"], &[]).await.refuses("the RPC serves chain 137, not 1");
    bench.deploy(&["--broadcast"], &[key(PAYER)]).await.refuses("OWNER");
    bench.deploy(&[], &[("OWNER", Address::ZERO.to_string())]).await.refuses("OWNER");
    bench.deploy(&["--broadcast"], &[owner()]).await.refuses("who pays?");
    bench.deploy(&["--broadcast", "--", "--ledger"], &[owner()]).await.refuses("--sender");
    bench.deploy(&["--sender", &OWNER.address().to_string()], &all).await.refuses("DEPLOYER_KEY is that of");
    bench.deploy(&["--check"], &[]).await.refuses("there is no manifest");
    bench.deploy(&["--accept"], &[]).await.refuses("there is no manifest");
    bench.deploy(&[], &[owner(), ("RPC_URL", "http://127.0.0.1:1".to_owned())]).await.refuses("does not answer");

    bench.provider.anvil_set_balance(PAYER.address(), U256::from(1)).await.unwrap();
    bench.deploy(&["--broadcast"], &all).await.refuses("are needed");
    let sender = PAYER.address().to_string();
    bench.deploy(&["--sender", &sender], &[owner()]).await.refuses("are needed");
    bench.provider.anvil_set_balance(PAYER.address(), U256::from(10_u128.pow(20))).await.unwrap();

    let wrong = bench.dir.path().join("parameters.json");
    let text = fs::read_to_string(ChainParams::file()).unwrap();
    fs::write(&wrong, text.replace("\"bond\": \"1000000000000000\"", "\"bond\": \"-1\"")).unwrap();
    bench.deploy(&["--parameters", wrong.to_str().unwrap()], &all).await.refuses("sepolia.bond");
    fs::write(&wrong, text.replace("\"evmVersion\": \"cancun\"", "\"evmVersion\": \"paris\"")).unwrap();
    bench.deploy(&["--parameters", wrong.to_str().unwrap()], &all).await.refuses("compiled for cancun");
    let tight = "\"chainId\": 11155111, \"maxTransactionGas\": 1000000";
    fs::write(&wrong, text.replace("\"chainId\": 11155111", tight)).unwrap();
    bench.deploy(&["--parameters", wrong.to_str().unwrap()], &all).await.refuses("more than a transaction may ask");

    let held = Bench::start("sepolia", &["--no-mining"]).await;
    let waiting = TransactionRequest::default().with_from(PAYER.address()).with_to(OWNER.address());
    let _pending = held.provider.send_transaction(waiting).await.unwrap();
    held.deploy(&["--broadcast"], &all).await.refuses("not mined yet");

    bench.provider.anvil_set_code(DETERMINISTIC_DEPLOYER, Bytes::new()).await.unwrap();
    bench.deploy(&["--broadcast"], &all).await.refuses("deterministic deployer");
    assert_eq!((bench.sent(PAYER).await, other.sent(PAYER).await), (0, 0));
    assert!(!bench.manifest_path().exists());
}

#[tokio::test]
async fn a_run_that_was_interrupted_is_taken_up_where_it_ended() {
    let bench = Bench::start("sepolia", &[]).await;
    let chain = ChainParams::load(&ChainParams::file(), "sepolia").unwrap();
    // All that came of it, sent by anybody: the contracts.
    let input = [&[0; 32][..], &init_code(OWNER.address(), chain.terms()).unwrap()].concat();
    let create = TransactionRequest::default().with_from(DEV_KEYS[5].address()).with_to(DETERMINISTIC_DEPLOYER);
    let sent = bench.provider.send_transaction(create.with_input(input)).await.unwrap();
    let receipt = sent.get_receipt().await.unwrap();

    let dry = bench.deploy(&[], &[owner()]).await.succeeds();
    assert!(dry.contains("deployed already") && !bench.manifest_path().exists(), "{dry}");
    bench.deploy(&["--broadcast"], &[owner()]).await.succeeds();
    let manifest = bench.manifest();
    assert_eq!(manifest.deploy_transaction, receipt.transaction_hash);
    assert_eq!(Some(manifest.deploy_block), receipt.block_number);
    assert_eq!(manifest.registry, address_in(&dry, "registry"));

    // A manifest of contracts that its chain lost is not written over.
    bench.provider.anvil_set_code(manifest.deployment, Bytes::new()).await.unwrap();
    bench.deploy(&["--broadcast"], &[owner(), key(PAYER)]).await.refuses("move that file away");
    assert_eq!(bench.manifest(), manifest);
}

#[tokio::test]
async fn a_wallet_of_forges_signs() {
    let bench = Bench::start("local", &[]).await;
    let (keys, password) = (bench.dir.path().join("keys"), bench.dir.path().join("password"));
    fs::create_dir(&keys).unwrap();
    fs::write(&password, "secret").unwrap();
    let import = Command::new(paths::foundry("cast").unwrap())
        .args(["wallet", "import", "payer", "--unsafe-password", "secret", "--private-key", &DEV_KEYS[4].secret()])
        .arg("--keystore-dir")
        .arg(&keys)
        .output()
        .await
        .unwrap();
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    let (keystore, sender) = (keys.join("payer"), DEV_KEYS[4].address().to_string());
    let (keystore, password) = (keystore.to_str().unwrap(), password.to_str().unwrap());
    let wallet = ["--broadcast", "--sender", &sender, "--", "--keystore", keystore, "--password-file", password];
    bench.deploy(&wallet, &[owner()]).await.succeeds();
    let receipt = bench.provider.get_transaction_receipt(bench.manifest().deploy_transaction).await.unwrap().unwrap();
    assert_eq!(receipt.from, DEV_KEYS[4].address());
}

/// `value` at the end of `path` in a copy of `manifest`.
fn changed(manifest: &Manifest, path: &str, value: Value) -> Manifest {
    let mut json = serde_json::to_value(manifest).unwrap();
    *json.pointer_mut(path).unwrap() = value;
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn a_manifest_that_was_tampered_with_is_found_out() {
    let bench = Bench::start("local", &[]).await;
    let terms = DeployParams::default();
    let (url, path) = (bench.anvil.rpc_url(), bench.manifest_path());
    let manifest = Deployment::deploy_fast(url, PAYER, &path, terms).await.unwrap().manifest;
    let chain = ChainParams::load(&ChainParams::file(), "local").unwrap();
    let check = async |manifest: &Manifest, chain: &ChainParams| {
        Check::run(&bench.provider, manifest, chain).await.unwrap().differences.join("\n")
    };
    assert_eq!(check(&manifest, &chain).await, "");
    let (other, hash) = (json!(Address::repeat_byte(7)), json!(format!("0x{}", "07".repeat(32))));
    for (field, value, named) in [
        ("/chainId", json!(1), "chainId"),
        ("/escrow", other.clone(), "escrow"),
        ("/registry", other.clone(), "registry"),
        ("/deployment", other.clone(), "deployment"),
        ("/deployBlock", json!(0), "block"),
        ("/deployTransaction", hash.clone(), "block"),
        ("/escrowParams/thawPeriod", json!(29), "thawPeriod"),
        ("/escrowParams/owner", other.clone(), "escrow.owner"),
        ("/escrowParams/maxChallengeWindow", json!(1), "maxChallengeWindow"),
        ("/escrowParams/arbiterPeriod", json!(1), "arbiterPeriod"),
        ("/registryParams/minStake", json!("1"), "minStake"),
        ("/registryParams/unbondingPeriod", json!(1), "unbondingPeriod"),
        ("/registryParams/bond", json!("1"), "bond"),
        ("/registryParams/owner", other, "registry.owner"),
        ("/confirmation/finality", json!("finalized"), "confirmation"),
        ("/initCodeHash", hash.clone(), "initCodeHash"),
        ("/codeHashes/deployment", hash.clone(), "deployment"),
        ("/codeHashes/registry", hash.clone(), "registry"),
        ("/codeHashes/escrow", hash, "escrow"),
    ] {
        let found = check(&changed(&manifest, field, value), &chain).await;
        assert!(found.contains(named), "{field}: {found:?}");
    }
    let shorter = chain.clone().with(31337, Address::ZERO, DeployParams { thaw_period_secs: 29, ..terms });
    assert!(check(&manifest, &shorter).await.contains("escrow.thawPeriod() is 30, in the parameters 29"));
    let owned = chain.clone().with(31337, OWNER.address(), terms);
    assert!(check(&manifest, &owned).await.contains("registryParams.owner"));

    let tampered = serde_json::to_string(&changed(&manifest, "/registryParams/bond", json!("1"))).unwrap();
    fs::write(&path, tampered).unwrap();
    bench.deploy(&["--check"], &[]).await.refuses("registry.bond()");
}

#[tokio::test]
async fn what_changed_on_the_chain_is_found_out() {
    let bench = Bench::start("local", &[]).await;
    bench.deploy(&["--broadcast"], &[]).await.succeeds();
    let manifest = bench.manifest();
    let recompiled = bench.deploy(&["--check", "--recompile"], &[]).await.succeeds();
    assert!(recompiled.contains("0 differ"), "{recompiled}");

    let code = bench.provider.get_code_at(manifest.escrow).await.unwrap();
    let mut other = code.to_vec();
    other[100] ^= 1;
    bench.provider.anvil_set_code(manifest.escrow, other.into()).await.unwrap();
    let found = bench.deploy(&["--check", "--recompile"], &[]).await;
    assert!(found.output.contains("makes of JobEscrow"), "{}", found.output);
    found.refuses("the hash of the code at");
    bench.provider.anvil_set_code(manifest.escrow, code).await.unwrap();

    // transferOwnership(OWNER), by the owner.
    let input = [&[0xf2, 0xfd, 0xe3, 0x8b][..], OWNER.address().into_word().as_slice()].concat();
    let give = TransactionRequest::default().with_from(PAYER.address()).with_to(manifest.registry).with_input(input);
    bench.provider.send_transaction(give).await.unwrap().get_receipt().await.unwrap();
    bench.deploy(&["--check"], &[]).await.refuses("registry.pendingOwner()");
}
