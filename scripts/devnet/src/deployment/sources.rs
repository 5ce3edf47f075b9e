//! What lets anybody verify the contracts: the compiler's whole input, and that compiling it gives what is deployed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alloy::primitives::{Address, Bytes, hex, keccak256};
use alloy::providers::{DynProvider, Provider};
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::contracts::{Addresses, Artifact, Code, constructor_args, deployment_args};
use super::parameters::ChainParams;
use super::{CompilerSettings, Manifest};
use crate::paths::{foundry, root};

/// The compiler's input lies beside the manifest.
#[must_use]
pub fn sources_path(manifest: &Path) -> PathBuf {
    manifest.with_extension("sources.json")
}

/// The compiler and its settings, as a manifest has them.
///
/// # Errors
/// When the contracts have not been built.
pub fn compiler() -> anyhow::Result<CompilerSettings> {
    let metadata = Artifact::load("Deployment")?.metadata;
    Ok(CompilerSettings {
        version: metadata.compiler.version,
        evm_version: text(&metadata.settings, "evmVersion"),
        via_ir: metadata.settings.get("viaIR").and_then(Value::as_bool).unwrap_or(false),
        optimizer_runs: metadata
            .settings
            .get("optimizer")
            .and_then(|optimizer| optimizer["runs"].as_u64())
            .unwrap_or(0),
    })
}

fn text(settings: &Map<String, Value>, key: &str) -> String {
    settings.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The standard JSON from which the compiler makes all three contracts, put together from what forge built.
///
/// # Errors
/// When a file has changed since forge built it.
pub fn standard_json() -> anyhow::Result<Value> {
    let metadata = Artifact::load("Deployment")?.metadata;
    let mut sources = Map::new();
    for (name, source) in metadata.sources {
        let content = fs::read_to_string(root().join(&name)).with_context(|| format!("reading {name}"))?;
        ensure!(keccak256(&content) == source.keccak256, "{name} has changed since it was built: run forge build");
        sources.insert(name, json!({ "content": content }));
    }
    let mut settings = metadata.settings;
    settings.remove("compilationTarget");
    let wanted = ["evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences"];
    settings.insert("outputSelection".to_owned(), json!({ "*": { "*": wanted } }));
    Ok(json!({ "language": "Solidity", "sources": sources, "settings": settings }))
}

/// Makes sure that compiling `input` gives what would be deployed.
///
/// # Errors
/// When it gives anything else.
pub fn reproduces(input: &Value) -> anyhow::Result<()> {
    let output = compile(&serde_json::to_vec(input)?)?;
    let made = compiled(&output["contracts"]["contracts/src/Deployment.sol"]["Deployment"]["evm"]["bytecode"])?;
    let built = Artifact::load("Deployment")?.bytecode;
    ensure!(made.object == built.object, "the sources compile to other code than forge built: nobody could verify it");
    Ok(())
}

/// Compiles the input beside the manifest again and returns how what is deployed differs from it.
///
/// # Errors
/// When there is no such input, it does not compile, or the chain does not answer.
pub async fn recompile(provider: &DynProvider, manifest: &Manifest, path: &Path) -> anyhow::Result<Vec<String>> {
    let path = sources_path(path);
    let input = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let output = compile(&input)?;
    let mut differences = Vec::new();
    let contracts =
        [("Deployment", manifest.deployment), ("NodeRegistry", manifest.registry), ("JobEscrow", manifest.escrow)];
    for (name, address) in contracts {
        let evm = &output["contracts"][format!("contracts/src/{name}.sol")][name]["evm"];
        let code = compiled(&evm["deployedBytecode"]).with_context(|| format!("{} makes no {name}", path.display()))?;
        if name == "Deployment" {
            let created = compiled(&evm["bytecode"])?;
            let init_code =
                [&created.object[..], &deployment_args(manifest.escrow_params.owner, manifest.terms()?)].concat();
            if keccak256(&init_code) != manifest.init_code_hash {
                differences.push(format!("{} and the parameters give another initCodeHash", path.display()));
            }
        }
        if masked(&provider.get_code_at(address).await?, &code) != masked(&code.object, &code) {
            differences.push(format!("the code at {address} is not what {} makes of {name}", path.display()));
        }
    }
    Ok(differences)
}

/// `code` with zeros where `like` has immutables.
fn masked(code: &Bytes, like: &Code) -> Vec<u8> {
    let mut masked = code.to_vec();
    for place in like.immutable_references.values().flatten() {
        if let Some(stretch) = masked.get_mut(place.start..place.start + place.length) {
            stretch.fill(0);
        }
    }
    masked
}

/// The compiler writes bytecode without a prefix.
fn compiled(code: &Value) -> anyhow::Result<Code> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Compiled {
        object: String,
        #[serde(default)]
        immutable_references: std::collections::BTreeMap<String, Vec<super::contracts::Place>>,
    }
    let Compiled { object, immutable_references } = Compiled::deserialize(code)?;
    Ok(Code { object: hex::decode(object)?.into(), immutable_references })
}

fn compile(input: &[u8]) -> anyhow::Result<Value> {
    use std::io::Write;
    let solc = root().join("scripts/lib/solc");
    let mut child = Command::new(&solc)
        .arg("--standard-json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", solc.display()))?;
    child.stdin.take().context("no standard input")?.write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{} failed ({})", solc.display(), output.status);
    let output: Value = serde_json::from_slice(&output.stdout)?;
    let errors: Vec<&str> = output["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|error| error["severity"] == "error")
        .filter_map(|error| error["formattedMessage"].as_str())
        .collect();
    if !errors.is_empty() {
        bail!("the sources do not compile:\n{}", errors.join("\n"));
    }
    Ok(output)
}

/// Has the explorers verify the three contracts: Sourcify, and Etherscan where `ETHERSCAN_API_KEY` is set.
///
/// # Errors
/// When one refuses.
pub fn verify(manifest: &Manifest, chain: &ChainParams) -> anyhow::Result<()> {
    let at = Addresses { deployment: manifest.deployment, registry: manifest.registry, escrow: manifest.escrow };
    let mut verifiers = vec!["sourcify"];
    if std::env::var_os("ETHERSCAN_API_KEY").is_some() {
        verifiers.push("etherscan");
    }
    for verifier in verifiers {
        for (name, address, args) in constructor_args(manifest.escrow_params.owner, manifest.terms()?, at) {
            let args = verification(verifier, name, address, &args, manifest, chain);
            println!("forge {}", args.join(" "));
            let status = Command::new(foundry("forge")?).args(&args).current_dir(root()).status()?;
            ensure!(status.success(), "{verifier} did not verify {name} at {address} ({status})");
        }
    }
    Ok(())
}

fn verification(
    verifier: &str,
    name: &str,
    address: Address,
    args: &[u8],
    manifest: &Manifest,
    chain: &ChainParams,
) -> Vec<String> {
    let mut command: Vec<String> = ["verify-contract", "--watch", "--verifier", verifier].map(str::to_owned).into();
    command.extend(["--chain".to_owned(), chain.chain_id.to_string()]);
    command.extend(["--compiler-version".to_owned(), manifest.compiler.version.clone()]);
    command.extend(["--constructor-args".to_owned(), hex::encode_prefixed(args)]);
    command.extend([address.to_string(), format!("contracts/src/{name}.sol:{name}")]);
    command
}
