//! When what the chain says counts. Pure; the manifest has it, and `docs/indexer.md` tells what follows from it.
//!
//! Whatever is on the chain is shown at once, as pending. A job is put to work once its block is as deep as its value asks;
//! a payment and a slash count once their block is final.

use std::collections::BTreeMap;
use std::fmt;

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Amount;

/// What is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// What the chain's nodes call `finalized`.
    Tag,
    /// A block with so many on top of it.
    Depth(u64),
}

/// Neither `finalized` nor a number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("finality: must be \"finalized\" or a number of blocks")]
pub struct NotFinality;

/// In JSON a number, or the text `finalized`.
impl Serialize for Finality {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Tag => serializer.serialize_str("finalized"),
            Self::Depth(blocks) => serializer.serialize_u64(*blocks),
        }
    }
}

impl<'de> Deserialize<'de> for Finality {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Word {
            Blocks(u64),
            Text(String),
        }
        match Word::deserialize(deserializer).map_err(|_| de::Error::custom(NotFinality))? {
            Word::Blocks(blocks) => Ok(Self::Depth(blocks)),
            Word::Text(text) if text == "finalized" => Ok(Self::Tag),
            Word::Text(_) => Err(de::Error::custom(NotFinality)),
        }
    }
}

/// How deep a block must be for amounts up to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// Zero for the native coin.
    pub token: Address,
    /// Largest amount that it holds for, in the token's smallest unit.
    pub up_to: Amount,
    /// Blocks on top of the one in question.
    pub depth: u64,
}

/// The confirmation policy of one chain. The default is the strictest: nothing counts before the chain's nodes call it
/// finalized, and a reorg below that is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Written")]
pub struct Policy {
    finality: Finality,
    reorgs_below_final: bool,
    queue: Vec<Step>,
}

/// As it is written in the manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    finality: Finality,
    #[serde(default)]
    reorgs_below_final: bool,
    #[serde(default)]
    queue: Vec<Step>,
}

/// Why a policy makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A larger amount is to be as safe as a smaller one.
    #[error("queue: of {token}, amounts up to {up_to} come after larger ones or are to be less deep than smaller ones")]
    Falling {
        /// Whose steps.
        token: Address,
        /// The step in question.
        up_to: Amount,
    },
    /// What is final is deep enough for everything.
    #[error("queue: a depth of {depth} is beyond finality, {finality}")]
    BeyondFinality {
        /// The step's.
        depth: u64,
        /// The chain's.
        finality: u64,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Self { finality: Finality::Tag, reorgs_below_final: false, queue: Vec::new() }
    }
}

impl TryFrom<Written> for Policy {
    type Error = PolicyError;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Self::new(written.finality, written.reorgs_below_final, written.queue)
    }
}

impl Policy {
    /// A policy whose `queue` has the steps of each token from the smallest amount on.
    pub fn new(finality: Finality, reorgs_below_final: bool, queue: Vec<Step>) -> Result<Self, PolicyError> {
        let mut last: BTreeMap<Address, Step> = BTreeMap::new();
        for step in &queue {
            if last
                .insert(step.token, *step)
                .is_some_and(|before| before.up_to >= step.up_to || before.depth > step.depth)
            {
                return Err(PolicyError::Falling { token: step.token, up_to: step.up_to });
            }
            if let Finality::Depth(finality) = finality
                && step.depth > finality
            {
                return Err(PolicyError::BeyondFinality { depth: step.depth, finality });
            }
        }
        Ok(Self { finality, reorgs_below_final, queue })
    }

    /// That of private development chains: everything is final at once, and whatever reorg there is gets followed all the
    /// same.
    #[must_use]
    pub fn local() -> Self {
        Self { finality: Finality::Depth(0), reorgs_below_final: true, queue: Vec::new() }
    }

    /// What is final.
    #[must_use]
    pub fn finality(&self) -> Finality {
        self.finality
    }

    /// Whether a reorg below what is final is followed, which only a chain that nobody trusts may ask for.
    #[must_use]
    pub fn follows_reorgs_below_final(&self) -> bool {
        self.reorgs_below_final
    }

    /// How deep a job must be to be queued, by token and from the smallest amount on. What is worth more than the last step
    /// says, or is in a token without steps, waits until it is final; what is final is always deep enough.
    #[must_use]
    pub fn queue(&self) -> &[Step] {
        &self.queue
    }
}

/// How sure it is that something on the chain stays there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It may be undone, and does not count yet.
    Pending,
    /// Deep enough for what it is worth.
    Confirmed,
    /// The chain will not take it back.
    Final,
}

/// How deep something lies on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confirmation {
    /// The block that it is in.
    pub block_number: u64,
    /// Its hash, if the header is kept.
    pub block_hash: Option<B256>,
    /// Blocks applied on top.
    pub depth: u64,
    /// What that is enough for.
    pub level: Level,
}

impl fmt::Display for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Pending => "pending",
            Level::Confirmed => "confirmed",
            Level::Final => "final",
        };
        write!(f, "{level}, in block {} with {} on top", self.block_number, self.depth)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TOKEN: Address = Address::repeat_byte(7);

    fn step(up_to: u128, depth: u64) -> Step {
        Step { token: TOKEN, up_to: up_to.into(), depth }
    }

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        let policy = Policy::new(Finality::Tag, false, vec![step(5, 1), step(9, 1), step(20, 3)]).unwrap();
        let text = serde_json::to_value(&policy).unwrap();
        assert_eq!(text["finality"], "finalized");
        assert_eq!(text["queue"][2], json!({ "token": TOKEN, "upTo": "20", "depth": 3 }));
        assert_eq!(serde_json::from_value::<Policy>(text).unwrap(), policy);
        let short: Policy = serde_json::from_value(json!({ "finality": 8 })).unwrap();
        assert_eq!(short, Policy::new(Finality::Depth(8), false, Vec::new()).unwrap());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_field() {
        let falling = |steps: Vec<Step>| Policy::new(Finality::Tag, false, steps).is_err();
        assert!(falling(vec![step(5, 2), step(9, 1)]) && falling(vec![step(5, 1), step(5, 2)]));
        let other = Step { token: Address::ZERO, ..step(1, 0) };
        assert!(!falling(vec![step(5, 2), other, step(9, 2)]), "each token has steps of its own");
        for (text, named) in [
            (json!({ "finality": "safe" }), "finality"),
            (json!({ "finality": -1 }), "finality"),
            (json!({}), "finality"),
            (json!({ "finality": 3, "queue": [step(1, 4)] }), "queue"),
            (json!({ "finality": 3, "queues": [] }), "queues"),
            (json!({ "finality": 3, "queue": [{ "token": TOKEN, "upTo": "0.1", "depth": 1 }] }), "decimal"),
        ] {
            let error = serde_json::from_value::<Policy>(text.clone()).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
