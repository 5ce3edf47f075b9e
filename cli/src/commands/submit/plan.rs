//! What is ordered: checked as far as this client and the chain can.

use alloy::primitives::{Address, B256, U256};
use chrono::{DateTime, Utc};
use market::abi::{JobSpec, Order};
use market::typed_data;
use serde_json::{Map, Value, json};

use super::super::account::checked_amount;
use super::Draft;
use crate::api::Terms;
use crate::args::SubmitArgs;
use crate::chain::{Chain, Wallet, now_on_both};
use crate::context::{resolve_node, token_address, token_name};
use crate::error::Failure;
use crate::ops::{self, crypt};
use crate::records::Records;

/// Window of an order that names no node, in seconds, unless told otherwise.
const OPEN_ORDER_WINDOW: u32 = 3600;

/// The operation's parameters as they go into the spec: checked as far as we know the operation.
pub fn params_of(args: &SubmitArgs) -> anyhow::Result<String> {
    let mut params = match args.params.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => serde_json::from_str::<Map<String, Value>>(text)
            .map_err(|error| Failure::Usage(format!("--params must be a JSON object: {error}")))?,
        None => Map::new(),
    };
    let takes_recipients = matches!(args.op.as_str(), ops::ENCRYPT | ops::DECRYPT);
    if !args.to.is_empty() {
        if !takes_recipients {
            return Err(Failure::Usage(format!("--to goes with encrypt and decrypt, not with {}", args.op)).into());
        }
        params.insert("recipients".into(), json!(args.to));
    }
    let text = if params.is_empty() { String::new() } else { Value::Object(params).to_string() };
    let checked = match args.op.as_str() {
        ops::ENCRYPT => crypt::encrypt_params(&text).map(drop),
        ops::DECRYPT => crypt::decrypt_params(&text).map(drop),
        _ => Ok(()),
    };
    checked.map_err(|error| Failure::Usage(format!("{}: {error}; see --to", args.op)))?;
    Ok(text)
}

/// What is said beside the order.
pub fn terms_of(args: &SubmitArgs, now: DateTime<Utc>) -> anyhow::Result<Terms> {
    let not_before = args.not_before.map(|from| from.time(now));
    let secs = not_before.map_or(0, |from| (from - now).num_seconds());
    if u64::try_from(secs).is_ok_and(|secs| secs >= args.deadline) {
        let deadline = args.deadline;
        return Err(
            Failure::Usage(format!("--not-before must be earlier than the --deadline, {deadline} s from now")).into()
        );
    }
    let (priority, min_reputation, min_stake) = (args.priority, args.min_reputation, args.min_stake);
    Ok(Terms { priority, not_before, min_reputation, min_stake })
}

/// An order but for its `specHash` and nonce.
pub struct Template {
    order: Order,
    /// Above every nonce that the channel's redeemed vouchers cover.
    least_nonce: u64,
}

impl Template {
    /// From the command line. Refuses what the contract would refuse, and more than the deposit has for `count` jobs.
    pub async fn new(args: &SubmitArgs, wallet: &Wallet, assigner: Address, count: usize) -> anyhow::Result<Self> {
        let chain = &wallet.chain;
        let price = checked_amount(args.price)?;
        let node = match &args.node {
            Some(text) => resolve_node(chain, text).await?.0,
            None => Address::ZERO,
        };
        let challenge_window = args.window.unwrap_or(if node.is_zero() { OPEN_ORDER_WINDOW } else { 0 });
        if node.is_zero() && challenge_window == 0 {
            return Err(Failure::Usage("an order that names no node needs a --window above 0".into()).into());
        }
        let longest = chain.deployment.escrow_params.max_challenge_window;
        if challenge_window > longest {
            return Err(Failure::Usage(format!("--window must be at most {longest} s at this escrow")).into());
        }
        let order = Order {
            requester: wallet.address,
            token: token_address(&args.token, &chain.deployment)?,
            maxPrice: u128::try_from(price)?,
            node,
            assigner: if node.is_zero() { assigner } else { Address::ZERO },
            specHash: B256::ZERO,
            deadline: now_on_both(chain).await?.saturating_add(args.deadline),
            challengeWindow: challenge_window,
            arbiter: args.arbiter.unwrap_or_default(),
            maxFeeBps: args.max_fee_bps,
            nonce: 0,
        };
        let covered = if node.is_zero() {
            0
        } else {
            chain.escrow().channel(wallet.address, node, order.token).call().await?.coveredNonce
        };
        let within_reach = if args.open { free(chain, &order).await? } else { deposit(chain, &order).await? };
        check_funds(chain, &order, within_reach, count)?;
        Ok(Self { order, least_nonce: covered.saturating_add(1) })
    }

    /// Whether only the assigner's word says who is paid.
    pub fn trusts_assigner(&self) -> bool {
        self.order.node.is_zero() && self.order.arbiter.is_zero()
    }

    /// The jobs, one for each spec, with nonces in a row.
    pub async fn drafts(self, chain: &Chain, records: &Records, specs: Vec<JobSpec>) -> anyhow::Result<Vec<Draft>> {
        let mut nonce = records.take_nonces(u64::try_from(specs.len())?, self.least_nonce)?;
        let domain = chain.domain();
        let mut drafts = Vec::new();
        for spec in specs {
            let order = Order { specHash: typed_data::spec_hash(&spec), nonce, ..self.order.clone() };
            nonce = nonce.saturating_add(1);
            drafts.push(Draft { job_id: typed_data::job_id(&order, &domain), order, spec });
        }
        if let Some(first) = drafts.first() {
            identify(chain, first).await?;
        }
        Ok(drafts)
    }
}

/// Free funds of the order's requester.
pub async fn free(chain: &Chain, order: &Order) -> anyhow::Result<U256> {
    Ok(U256::from(chain.escrow().account(order.requester, order.token).call().await?.free))
}

/// Free funds of the order's requester, and what they have reserved for its node.
pub async fn deposit(chain: &Chain, order: &Order) -> anyhow::Result<U256> {
    let free = free(chain, order).await?;
    if order.node.is_zero() {
        return Ok(free);
    }
    let channel = chain.escrow().reservation(order.requester, order.node, order.token).call().await?;
    Ok(free.saturating_add(channel.reserved))
}

/// Refuses `count` orders that the funds do not cover.
pub fn check_funds(chain: &Chain, order: &Order, has: U256, count: usize) -> anyhow::Result<()> {
    let needed = U256::from(order.maxPrice).saturating_mul(U256::from(count));
    let times = if count == 1 { String::new() } else { format!(" for {count} jobs") };
    anyhow::ensure!(
        has >= needed,
        "the price is {needed}{times}, but only {has} of {} is free in your account: see `littoral deposit`",
        token_name(order.token, &chain.deployment)
    );
    Ok(())
}

/// Makes sure that the contract computes the same id: it does for all orders or for none.
async fn identify(chain: &Chain, draft: &Draft) -> anyhow::Result<()> {
    let theirs = chain.escrow().jobIdOf(draft.order.clone()).call().await?;
    if draft.job_id != theirs {
        return Err(
            Failure::Unverified(format!("the order's digest is {}, the escrow says {theirs}", draft.job_id)).into()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(more: &[&str]) -> anyhow::Result<SubmitArgs> {
        let args = ["littoral", "submit", "file", "--price", "1"].iter().chain(more);
        match Cli::try_parse_from(args)?.command {
            Command::Submit(args) => Ok(args),
            other => anyhow::bail!("{other:?}"),
        }
    }

    fn params(more: &[&str]) -> anyhow::Result<String> {
        params_of(&args(more)?)
    }

    #[test]
    fn what_is_said_beside_the_order_goes_along_as_the_api_names_it() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let terms = |more: &[&str]| Ok::<_, anyhow::Error>(serde_json::to_value(terms_of(&args(more)?, now)?)?);
        assert_eq!(terms(&[]).unwrap(), json!({}));
        let all = ["--priority", "7", "--not-before", "60", "--min-reputation", "80", "--min-stake", "5000"];
        assert_eq!(
            terms(&all).unwrap(),
            json!({ "priority": 7, "notBefore": "2027-01-15T08:01:00Z", "minReputation": 80, "minStake": "5000" })
        );
        assert_eq!(
            terms(&["--not-before", "2027-01-15T10:00:00+01:00", "--deadline", "7200"]).unwrap(),
            json!({ "notBefore": "2027-01-15T09:00:00Z" })
        );
        for (bad, named) in [
            (&["--not-before", "tomorrow"][..], "--not-before"),
            (&["--not-before", "3600"], "--deadline"),
            (&["--not-before", "2027-01-15T10:00:00Z"], "--deadline"),
            (&["--min-reputation", "101"], "--min-reputation"),
            (&["--min-stake", "1.5"], "--min-stake"),
            (&["--priority", "1001"], "--priority"),
        ] {
            let error = terms(bad).unwrap_err().to_string();
            assert!(error.contains(named), "{bad:?}: {error}");
        }
    }

    #[test]
    fn recipients_become_params_and_mistakes_are_found_before_anything_is_sent() {
        let key = age::x25519::Identity::generate().to_public().to_string();
        assert_eq!(params(&["--to", &key]).unwrap(), format!(r#"{{"recipients":["{key}"]}}"#));
        assert_eq!(params(&["--op", "decrypt"]).unwrap(), "");
        assert_eq!(params(&["--op", "command", "--params", r#"{ "a": 1 }"#]).unwrap(), r#"{"a":1}"#);
        for bad in [
            &["--op", "encrypt"][..],
            &["--to", "age1nonsense"],
            &["--to", &key, "--params", "{}"],
            &["--op", "command", "--to", &key],
            &["--op", "command", "--params", "[1]"],
            &["--op", "encrypt", "--params", r#"{"recipient":"x"}"#],
        ] {
            assert!(params(bad).is_err(), "{bad:?}");
        }
    }
}
