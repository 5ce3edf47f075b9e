//! What the contracts are deployed with on each chain: `deployments/parameters.json`, the one file to review.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use alloy::primitives::Address;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::DeployParams;
use super::confirmation::Confirmation;
use crate::paths::root;

/// Longer is a mistake in units, and nothing could mend it after deployment.
const LONGEST_SECS: u64 = 365 * 24 * 60 * 60;
/// The registry's type for the least stake.
const LARGEST_STAKE: u128 = (1 << 96) - 1;

/// One chain and what the contracts are constructed with there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChainParams {
    /// EIP-155 id.
    pub chain_id: u64,
    /// What gas is paid in.
    pub currency: String,
    /// The rules that the chain runs under, by Ethereum's name for them.
    pub hardfork: String,
    /// What the contracts are compiled for, at most the chain's hardfork.
    pub evm_version: String,
    /// Most gas one transaction may ask for (EIP-7825), where that counts all of its gas.
    pub max_transaction_gas: Option<u64>,
    /// Block explorer.
    pub explorer: Option<String>,
    /// When what the chain says counts.
    pub confirmation: Confirmation,
    /// Who may accept the contracts; zero where it is named when deploying.
    #[serde(deserialize_with = "checksummed")]
    pub owner: Address,
    #[serde(deserialize_with = "wei")]
    min_stake: u128,
    #[serde(deserialize_with = "wei")]
    bond: u128,
    unbonding_period: u64,
    thaw_period: u64,
    max_challenge_window: u32,
    arbiter_period: u64,
    #[serde(deserialize_with = "tokens")]
    /// ERC-20 tokens by name, for people; the contracts accept any.
    pub tokens: BTreeMap<String, Address>,
}

impl ChainParams {
    /// The reviewed file.
    pub fn file() -> PathBuf {
        root().join("deployments/parameters.json")
    }

    /// Reads the chain called `name` from the file at `path`, all of which must be right.
    ///
    /// # Errors
    /// With chain and field, when a value is missing or impossible.
    pub fn load(path: &Path, name: &str) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut chains = Self::parse(&text).with_context(|| path.display().to_string())?;
        let known = chains.keys().cloned().collect::<Vec<_>>().join(", ");
        chains.remove(name).with_context(|| format!("there is no chain {name:?} in {}, only {known}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<BTreeMap<String, Self>> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let chains: BTreeMap<String, Self> = serde_path_to_error::deserialize(&mut reader)?;
        let mut ids = BTreeMap::new();
        for (name, chain) in &chains {
            chain.validate().with_context(|| name.clone())?;
            if let Some(other) = ids.insert(chain.chain_id, name) {
                bail!("{name}: chainId: {} is also that of {other}", chain.chain_id);
            }
        }
        Ok(chains)
    }

    /// What the constructors are given, but for the owner.
    #[must_use]
    pub fn terms(&self) -> DeployParams {
        DeployParams {
            min_stake_wei: self.min_stake,
            unbonding_period_secs: self.unbonding_period,
            thaw_period_secs: self.thaw_period,
            bond_wei: self.bond,
            max_challenge_window_secs: self.max_challenge_window,
            arbiter_period_secs: self.arbiter_period,
        }
    }

    /// The same chain with other terms and owner, and with another id where a private chain has one.
    #[must_use]
    pub fn with(mut self, chain_id: u64, owner: Address, terms: DeployParams) -> Self {
        (self.chain_id, self.owner) = (chain_id, owner);
        (self.min_stake, self.bond) = (terms.min_stake_wei, terms.bond_wei);
        (self.unbonding_period, self.thaw_period) = (terms.unbonding_period_secs, terms.thaw_period_secs);
        (self.max_challenge_window, self.arbiter_period) = (terms.max_challenge_window_secs, terms.arbiter_period_secs);
        self
    }

    /// Whether it is a development chain, which gets a test token and whose keys everyone knows.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.chain_id == 31337
    }

    /// Who will be offered the contracts: as the file says, or `given` where that leaves it open.
    ///
    /// # Errors
    /// When both say different things, or neither anything.
    pub fn owner_or(&self, given: Option<Address>) -> anyhow::Result<Address> {
        match (self.owner, given.filter(|owner| !owner.is_zero())) {
            (Address::ZERO, Some(given)) => Ok(given),
            (Address::ZERO, None) => bail!("the parameters leave the owner open: name it with OWNER or --owner"),
            (owner, Some(given)) if given != owner => {
                bail!("the parameters name the owner {owner}; OWNER or --owner says {given}")
            }
            (owner, _) => Ok(owner),
        }
    }

    fn validate(&self) -> anyhow::Result<()> {
        let period = |field: &str, secs: u64| {
            ensure!((1..=LONGEST_SECS).contains(&secs), "{field}: {secs} s is not within 1 and {LONGEST_SECS}");
            Ok(())
        };
        ensure!(self.chain_id != 0, "chainId: must not be 0");
        self.confirmation.validate(&self.tokens)?;
        ensure!(
            (1..=LARGEST_STAKE).contains(&self.min_stake),
            "minStake: {} is not within 1 and 2^96 - 1",
            self.min_stake
        );
        ensure!((1..=self.min_stake).contains(&self.bond), "bond: {} is not within 1 and minStake", self.bond);
        period("unbondingPeriod", self.unbonding_period)?;
        period("thawPeriod", self.thaw_period)?;
        period("maxChallengeWindow", self.max_challenge_window.into())?;
        period("arbiterPeriod", self.arbiter_period)?;
        let longest = u64::from(self.max_challenge_window) + self.arbiter_period;
        ensure!(
            self.unbonding_period > longest,
            "unbondingPeriod: {} s does not exceed maxChallengeWindow and arbiterPeriod together, {longest} s",
            self.unbonding_period
        );
        Ok(())
    }
}

/// A decimal string: JSON readers round numbers beyond 2^53.
pub(super) fn wei<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
    let text = String::deserialize(from)?;
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = if is_decimal { text.parse().ok() } else { None };
    parsed.ok_or_else(|| D::Error::custom(format!("{text:?} is not an amount in wei")))
}

/// A mistyped address must not pass.
fn checksummed<'de, D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
    let text = String::deserialize(from)?;
    Address::parse_checksummed(&text, None)
        .map_err(|error| D::Error::custom(format!("{text:?} is not an address with a checksum: {error}")))
}

fn tokens<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Address>, D::Error> {
    #[derive(Deserialize)]
    struct Token(#[serde(deserialize_with = "checksummed")] Address);
    let tokens = BTreeMap::<String, Token>::deserialize(from)?;
    Ok(tokens.into_iter().map(|(name, Token(address))| (name, address)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(ChainParams::file()).unwrap()).unwrap()
    }

    #[test]
    fn the_reviewed_file_holds_every_chain_that_is_supported() {
        for (name, id) in
            [("local", 31337), ("sepolia", 11_155_111), ("ethereum", 1), ("polygon", 137), ("polygon-amoy", 80002)]
        {
            assert_eq!(ChainParams::load(&ChainParams::file(), name).unwrap().chain_id, id);
        }
        let local = ChainParams::load(&ChainParams::file(), "local").unwrap();
        assert_eq!(local.terms(), DeployParams::default(), "tests and demonstrations deploy with the same");
        let error = ChainParams::load(&ChainParams::file(), "mumbai").unwrap_err().to_string();
        assert!(error.contains("mumbai") && error.contains("polygon-amoy"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_chain_and_field() {
        use serde_json::json;
        for (field, value) in [
            ("chainId", json!(0)),
            ("chainId", json!(1)),
            ("confirmation", json!({ "finality": "safe" })),
            ("confirmation", json!({ "finality": 1, "queue": { "native": [{ "upTo": "1", "depth": 2 }] } })),
            ("confirmation", json!({ "finality": "finalized", "reorgsBelowFinal": true })),
            ("confirmation", json!({ "finality": "finalized", "queue": { "DAI": [] } })),
            (
                "confirmation",
                json!({ "finality": 9, "queue": { "USDC": [{ "upTo": "5", "depth": 2 }, { "upTo": "4", "depth": 3 }] } }),
            ),
            ("owner", json!("0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB49")),
            ("minStake", json!("0")),
            ("minStake", json!("79228162514264337593543950336")),
            ("minStake", json!(5)),
            ("bond", json!("+1")),
            ("bond", json!("10000000000000001")),
            ("unbondingPeriod", json!(172_800)),
            ("unbondingPeriod", json!(LONGEST_SECS + 1)),
            ("thawPeriod", json!(0)),
            ("thawPeriod", json!(-1)),
            ("maxChallengeWindow", json!(u64::from(u32::MAX) + 1)),
            ("arbiterPeriod", json!("1 day")),
            ("tokens", json!({"USDC": "0x1"})),
            ("bonds", json!("1")),
        ] {
            let mut changed = file();
            changed["sepolia"][field] = value.clone();
            let error = format!("{:#}", ChainParams::parse(&changed.to_string()).unwrap_err());
            assert!(error.contains("sepolia") && error.contains(field), "{field} = {value}: {error}");
        }
        let mut changed = file();
        changed["sepolia"].as_object_mut().unwrap().remove("bond");
        let error = format!("{:#}", ChainParams::parse(&changed.to_string()).unwrap_err());
        assert!(error.contains("sepolia") && error.contains("`bond`"), "{error}");
    }

    #[test]
    fn the_owner_is_named_once() {
        let (ours, theirs) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let open = ChainParams::load(&ChainParams::file(), "ethereum").unwrap();
        assert_eq!(open.owner_or(Some(ours)).unwrap(), ours);
        assert!(open.owner_or(None).unwrap_err().to_string().contains("OWNER"));
        assert!(open.owner_or(Some(Address::ZERO)).is_err());
        let named = open.clone().with(1, theirs, open.terms());
        assert_eq!(named.owner_or(None).unwrap(), theirs);
        assert_eq!(named.owner_or(Some(theirs)).unwrap(), theirs);
        assert!(named.owner_or(Some(ours)).is_err());
    }
}
