//! When what a chain says counts: reviewed with the parameters, written into the manifest, read by the indexer.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::parameters::wei;

/// The name of the chain's own coin among the tokens.
const NATIVE: &str = "native";

/// What is final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Finality {
    /// A block with so many on top of it.
    Depth(u64),
    /// What the chain's nodes say it is.
    Tag(Tag),
}

/// The one tag there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tag {
    /// The latest block that the chain will never take back.
    Finalized,
}

/// As it is reviewed: tokens by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Confirmation {
    /// From when on payments and slashes count.
    pub finality: Finality,
    /// Whether the indexer follows reorgs below that; only where it is a depth, on chains for development.
    #[serde(default)]
    pub reorgs_below_final: bool,
    /// How deep the block of a job must be before a node is given it, by token and from the smallest price on.
    #[serde(default)]
    pub queue: BTreeMap<String, Vec<Step>>,
}

/// How deep for amounts up to one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// In the token's smallest unit.
    #[serde(deserialize_with = "wei")]
    pub up_to: u128,
    /// Blocks on top.
    pub depth: u64,
}

/// As it is written into the manifest: tokens by address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// See [`Confirmation::finality`].
    pub finality: Finality,
    /// See [`Confirmation::reorgs_below_final`].
    pub reorgs_below_final: bool,
    /// See [`Confirmation::queue`].
    pub queue: Vec<PolicyStep>,
}

/// See [`Policy::queue`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyStep {
    /// Zero for the native coin.
    pub token: Address,
    /// In its smallest unit, in decimal.
    pub up_to: String,
    /// Blocks on top.
    pub depth: u64,
}

impl Confirmation {
    /// The deepest that any job must be: what is deep enough for the largest one that does not wait for finality.
    #[must_use]
    pub fn deepest(&self) -> u64 {
        self.queue.values().flatten().map(|step| step.depth).max().unwrap_or(0)
    }

    /// With the tokens' addresses, which `tokens` has.
    ///
    /// # Errors
    /// When it names another token.
    pub fn policy(&self, tokens: &BTreeMap<String, Address>) -> anyhow::Result<Policy> {
        let mut queue = Vec::new();
        for (name, steps) in &self.queue {
            let native = (name == NATIVE).then_some(Address::ZERO);
            let token = native.or_else(|| tokens.get(name).copied());
            let token = token.with_context(|| format!("confirmation.queue: there is no token {name:?}"))?;
            queue.extend(steps.iter().map(|step| PolicyStep {
                token,
                up_to: step.up_to.to_string(),
                depth: step.depth,
            }));
        }
        Ok(Policy { finality: self.finality.clone(), reorgs_below_final: self.reorgs_below_final, queue })
    }

    pub(super) fn validate(&self, tokens: &BTreeMap<String, Address>) -> anyhow::Result<()> {
        let most = if let Finality::Depth(blocks) = self.finality { blocks } else { u64::MAX };
        ensure!(
            !self.reorgs_below_final || most != u64::MAX,
            "confirmation.reorgsBelowFinal: what the chain's nodes call finalized does not change"
        );
        for (name, steps) in &self.queue {
            let is_rising =
                steps.windows(2).all(|pair| pair[0].up_to < pair[1].up_to && pair[0].depth <= pair[1].depth);
            ensure!(is_rising, "confirmation.queue.{name}: larger amounts must come later and be as deep at least");
            ensure!(
                steps.iter().all(|step| step.depth <= most),
                "confirmation.queue.{name}: what is deeper than {most} is final"
            );
        }
        self.policy(tokens).map(|_| ())
    }
}
