//! Forge's build output, and the addresses that follow from it.

use std::collections::BTreeMap;
use std::fs;

use alloy::json_abi::JsonAbi;
use alloy::primitives::{Address, B256, Bytes, address, b256, keccak256};
use alloy::sol_types::SolValue;
use anyhow::Context;
use serde::Deserialize;

use super::DeployParams;
use crate::paths::artifacts_dir;

/// The deployer that exists at this address on every chain (EIP-7997): 32 bytes of salt and init code are its calldata.
pub const DETERMINISTIC_DEPLOYER: Address = address!("4e59b44847b379578588920cA78FbF26c0B4956C");
/// Hash of that deployer's code.
pub const DETERMINISTIC_DEPLOYER_HASH: B256 = b256!("2fa86add0aed31f33a762c9d88e807c475bd51d0f52bd0955754b2608f7e4989");
/// As in `scripts/Deploy.s.sol`.
const SALT: B256 = B256::ZERO;
/// Longest init code (EIP-3860).
pub const MAX_INIT_CODE: usize = 49_152;

/// What forge wrote about one contract.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// Its interface.
    pub abi: JsonAbi,
    /// What creates it.
    pub bytecode: Code,
    /// What it was compiled from, and how.
    pub metadata: Metadata,
}

/// Bytecode of an [`Artifact`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Code {
    /// The bytes.
    pub object: Bytes,
    /// Where immutables are.
    #[serde(default)]
    pub immutable_references: BTreeMap<String, Vec<Place>>,
}

/// A stretch of bytes.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Place {
    /// Of its first byte.
    pub start: usize,
    /// In bytes.
    pub length: usize,
}

/// The compiler's metadata.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// Which compiler.
    pub compiler: Compiler,
    /// Settings as the compiler was given them, and the contract's own name.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// Every file that went in.
    pub sources: BTreeMap<String, Source>,
}

/// See [`Metadata::compiler`].
#[derive(Debug, Deserialize)]
pub struct Compiler {
    /// With the commit.
    pub version: String,
}

/// See [`Metadata::sources`].
#[derive(Debug, Deserialize)]
pub struct Source {
    /// Of the file's text.
    pub keccak256: B256,
}

impl Artifact {
    /// Reads what forge wrote about `contract`.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn load(contract: &str) -> anyhow::Result<Self> {
        let path = artifacts_dir().join(format!("{contract}.sol/{contract}.json"));
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{} is missing: run `node_modules/.bin/forge build`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }
}

/// Where the three contracts of a deployment are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The `Deployment`, which created the other two.
    pub deployment: Address,
    /// The `NodeRegistry`.
    pub registry: Address,
    /// The `JobEscrow`.
    pub escrow: Address,
}

impl Addresses {
    /// Those that a `Deployment` with this init code hash has and gives.
    #[must_use]
    pub fn of(init_code_hash: B256) -> Self {
        let deployment = DETERMINISTIC_DEPLOYER.create2(SALT, init_code_hash);
        Self { deployment, registry: deployment.create(1), escrow: deployment.create(2) }
    }
}

/// Init code of a `Deployment`: the compiled contract and its constructor's arguments.
///
/// # Errors
/// When it has not been built.
pub fn init_code(owner: Address, terms: DeployParams) -> anyhow::Result<Bytes> {
    Ok([&Artifact::load("Deployment")?.bytecode.object[..], &deployment_args(owner, terms)].concat().into())
}

/// `Deployment.Parameters`, encoded.
pub(super) fn deployment_args(owner: Address, terms: DeployParams) -> Vec<u8> {
    let (unbonding, thaw) = (terms.unbonding_period_secs, terms.thaw_period_secs);
    let (window, arbiter) = (terms.max_challenge_window_secs, terms.arbiter_period_secs);
    (owner, terms.min_stake_wei, terms.bond_wei, unbonding, thaw, window, arbiter).abi_encode_params()
}

/// The constructor's arguments of each contract, encoded as verifiers want them.
pub(super) fn constructor_args(
    owner: Address,
    terms: DeployParams,
    at: Addresses,
) -> [(&'static str, Address, Vec<u8>); 3] {
    let (unbonding, thaw) = (terms.unbonding_period_secs, terms.thaw_period_secs);
    let (window, arbiter) = (terms.max_challenge_window_secs, terms.arbiter_period_secs);
    let registry = (terms.min_stake_wei, unbonding, terms.bond_wei, at.escrow, at.deployment).abi_encode_params();
    let escrow = (at.registry, thaw, at.deployment, window, arbiter).abi_encode_params();
    [
        ("Deployment", at.deployment, deployment_args(owner, terms)),
        ("NodeRegistry", at.registry, registry),
        ("JobEscrow", at.escrow, escrow),
    ]
}

/// What the deterministic deployer is sent to create a contract.
#[must_use]
pub fn creation_call(init_code: &[u8]) -> Bytes {
    [SALT.as_slice(), init_code].concat().into()
}

/// Where the test token of development chains is.
///
/// # Errors
/// When it has not been built.
pub(super) fn test_token() -> anyhow::Result<(Bytes, Address)> {
    let code = Artifact::load("TestToken")?.bytecode.object;
    let address = DETERMINISTIC_DEPLOYER.create2(SALT, keccak256(&code));
    Ok((code, address))
}
