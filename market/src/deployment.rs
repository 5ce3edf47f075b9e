//! The deployments manifest: where the contracts of one chain are. Written by `scripts/deploy`, read by every
//! process. `docs/deployment.md` tells of the keys that none of them needs.

use std::{collections::BTreeMap, fs, path::Path};

use alloy::primitives::Address;
use alloy::sol_types::Eip712Domain;
use serde::{Deserialize, Serialize};

use crate::confirmation::Policy;
use crate::{Amount, typed_data};

/// One deployment of the contracts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// The `JobEscrow`.
    pub escrow: Address,
    /// The `NodeRegistry`.
    pub registry: Address,
    /// The block that both were created in; indexing starts here.
    pub deploy_block: u64,
    /// What the escrow was constructed with.
    pub escrow_params: EscrowParams,
    /// What the registry was constructed with.
    pub registry_params: RegistryParams,
    /// When what this chain says counts.
    #[serde(default)]
    pub confirmation: Policy,
    /// Tokens by name, for people; the contracts accept any.
    #[serde(default)]
    pub tokens: BTreeMap<String, Address>,
}

/// What the escrow was constructed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EscrowParams {
    /// Seconds between `thaw` and `withdraw`.
    pub thaw_period: u64,
    /// Who was offered the power to set its fee and to pause it; the chain knows who has it now.
    pub owner: Address,
    /// Longest challenge window of an order, in seconds.
    pub max_challenge_window: u32,
    /// Seconds an arbiter has to decide a dispute.
    pub arbiter_period: u64,
}

/// What the registry was constructed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryParams {
    /// Wei a node must have staked; the chain knows what it is now.
    pub min_stake: Amount,
    /// Seconds between `startUnbond` and `finishUnbond`.
    pub unbonding_period: u64,
    /// Wei of stake at risk in one job that an arbiter may decide.
    pub bond: Amount,
    /// Who was offered the power to set the least stake and to pause registrations; the chain knows who has it now.
    pub owner: Address,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// The file cannot be read.
    #[error("cannot read the deployments manifest {path}: {source}")]
    Read {
        /// Path of the manifest.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not a manifest.
    #[error("{path} is not a deployments manifest: {source}")]
    Parse {
        /// Path of the manifest.
        path: String,
        /// What is wrong, with its place.
        source: serde_json::Error,
    },
}

impl Deployment {
    /// Reads the manifest at `path`.
    pub fn read(path: &Path) -> Result<Self, DeploymentError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| DeploymentError::Read { path: name.clone(), source })?;
        serde_json::from_str(&text).map_err(|source| DeploymentError::Parse { path: name, source })
    }

    /// The EIP-712 domain of its escrow.
    #[must_use]
    pub fn domain(&self) -> Eip712Domain {
        typed_data::domain(self.chain_id, self.escrow)
    }
}
