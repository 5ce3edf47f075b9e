//! What a node works for: anyone can open a job in a token of their own making, or at no price.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use market::Amount;
use market::abi::Order;
use market::deployment::Deployment;

use super::verify::Refusal;
use crate::api::MinPrice;
use crate::args::AcceptArg;
use crate::chain::NATIVE;
use crate::context::token_named;
use crate::error::Failure;

/// The tokens that a node works for, each with the least that an order must offer, in the token's smallest unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted(BTreeMap<Address, Amount>);

impl Accepted {
    /// What the operator asked for; otherwise at least 1 of the native coin or of a token in the manifest.
    pub fn new(asked: &[AcceptArg], deployment: &Deployment) -> anyhow::Result<Self> {
        if asked.is_empty() {
            let known = deployment.tokens.values().copied();
            return Ok(Self(known.chain([NATIVE]).map(|token| (token, Amount::from(1_u128))).collect()));
        }
        let mut minimum = BTreeMap::new();
        for arg in asked {
            let token = token_named("--accept", &arg.token, deployment)?;
            if minimum.insert(token, arg.min).is_some() {
                return Err(Failure::Usage(format!("--accept names {} more than once", arg.token)).into());
            }
        }
        Ok(Self(minimum))
    }

    /// The same for the API, so that it gives this node nothing that it would only give back. An operation for which none is
    /// named is given for any price and token.
    pub fn min_prices(&self, operations: &[String]) -> Vec<MinPrice> {
        let each = |operation: &String| {
            let price = |(token, amount): (&Address, &Amount)| MinPrice {
                operation: operation.clone(),
                token: *token,
                amount: *amount,
            };
            self.0.iter().map(price).collect::<Vec<_>>()
        };
        operations.iter().flat_map(each).collect()
    }

    /// Whether the order offers enough.
    pub fn check(&self, order: &Order) -> Result<(), Refusal> {
        match self.0.get(&order.token) {
            None => Err(Refusal(format!("this node does not work for the token {}", order.token))),
            Some(min) if Amount::from(order.maxPrice) < *min => Err(Refusal(format!(
                "its maxPrice {} is below {min}, the least that this node works for in the token {}",
                order.maxPrice, order.token
            ))),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: Address = Address::with_last_byte(3);
    const OTHER: Address = Address::with_last_byte(9);

    fn accepted(asked: &[(&str, u128)]) -> anyhow::Result<Accepted> {
        let deployment = serde_json::from_value(serde_json::json!({
            "chainId": 31337, "escrow": Address::with_last_byte(1), "registry": Address::with_last_byte(2),
            "deployBlock": 0,
            "escrowParams": {"thawPeriod": 60, "owner": OTHER, "maxChallengeWindow": 3600, "arbiterPeriod": 60},
            "registryParams": {"minStake": "1", "unbondingPeriod": 7200, "bond": "1", "owner": OTHER},
            "tokens": {"TEST": TEST},
        }))
        .unwrap();
        let asked: Vec<AcceptArg> =
            asked.iter().map(|(token, min)| AcceptArg { token: (*token).into(), min: (*min).into() }).collect();
        Accepted::new(&asked, &deployment)
    }

    fn check(accepted: &Accepted, token: Address, price: u128) -> Result<(), String> {
        accepted.check(&Order { token, maxPrice: price, ..Order::default() }).map_err(|refusal| refusal.0)
    }

    #[test]
    fn unless_told_a_node_works_for_known_tokens_and_not_for_nothing() {
        let accepted = accepted(&[]).unwrap();
        for token in [NATIVE, TEST] {
            check(&accepted, token, 1).unwrap();
            assert!(check(&accepted, token, 0).unwrap_err().contains("maxPrice 0 is below 1"));
        }
        assert!(check(&accepted, OTHER, u128::MAX).unwrap_err().contains("does not work for the token"));
    }

    #[test]
    fn what_is_listed_counts_and_nothing_else() {
        let accepted = accepted(&[("TEST", 100), (&OTHER.to_string(), 0)]).unwrap();
        check(&accepted, TEST, 100).unwrap();
        check(&accepted, OTHER, 0).unwrap();
        assert!(check(&accepted, TEST, 99).unwrap_err().contains("below 100"));
        assert!(check(&accepted, NATIVE, u128::MAX).unwrap_err().contains("does not work"));
    }

    #[test]
    fn the_api_is_told_the_same_for_every_operation() {
        let prices =
            accepted(&[("TEST", 100), ("native", 0)]).unwrap().min_prices(&["encrypt".into(), "decrypt".into()]);
        let price = |operation: &str, token: Address, amount: u128| MinPrice {
            operation: operation.to_owned(),
            token,
            amount: amount.into(),
        };
        assert_eq!(
            prices,
            [
                price("encrypt", NATIVE, 0),
                price("encrypt", TEST, 100),
                price("decrypt", NATIVE, 0),
                price("decrypt", TEST, 100)
            ]
        );
    }

    #[test]
    fn an_unknown_or_repeated_token_is_refused() {
        assert!(accepted(&[("NOPE", 1)]).unwrap_err().to_string().contains("--accept \"NOPE\""));
        let twice = accepted(&[("TEST", 1), (&TEST.to_string(), 2)]).unwrap_err().to_string();
        assert!(twice.contains("more than once"), "{twice}");
    }
}
