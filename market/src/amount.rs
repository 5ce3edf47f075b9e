//! Amounts of money: integers in a token's smallest unit.

use std::{fmt, str::FromStr};

use alloy::primitives::U256;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An amount in the token's smallest unit (wei for the native coin). In JSON a string of decimal digits and nothing else:
/// no sign, no unit, no point, no exponent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Amount(pub U256);

/// Why a text is not an [`Amount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Something other than decimal digits, such as `0.1 ETH` or `-5`.
    #[error("must be an integer in the token's smallest unit, written in decimal digits only")]
    NotDigits,
    /// More than a uint256 holds.
    #[error("is more than 2^256 - 1")]
    TooLarge,
    /// More than the contract's uint128 holds.
    #[error("is more than 2^128 - 1")]
    TooLargeForContract,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(U256::ZERO);

    /// The amount as the contracts' `uint128`.
    pub fn to_u128(self) -> Result<u128, AmountError> {
        u128::try_from(self.0).map_err(|_| AmountError::TooLargeForContract)
    }
}

impl From<u128> for Amount {
    fn from(value: u128) -> Self {
        Self(U256::from(value))
    }
}

impl From<U256> for Amount {
    fn from(value: U256) -> Self {
        Self(value)
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(AmountError::NotDigits);
        }
        U256::from_str_radix(text, 10).map(Self).map_err(|_| AmountError::TooLarge)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for Amount {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[0-9]{1,78}$"))
            .description(Some("An amount in the token's smallest unit, in decimal digits"))
            .examples(["1000000000000000"])
            .into()
    }
}

impl utoipa::ToSchema for Amount {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_digits_are_an_amount() {
        for text in ["", "0.1 ETH", "-1", "+1", "1e18", "0x10", " 1", "1_000"] {
            assert_eq!(text.parse::<Amount>(), Err(AmountError::NotDigits), "{text:?}");
        }
        let over = "115792089237316195423570985008687907853269984665640564039457584007913129639936";
        assert_eq!(over.parse::<Amount>(), Err(AmountError::TooLarge));
    }

    proptest! {
        #[test]
        fn an_amount_survives_json(words: [u64; 4]) {
            let amount = Amount(U256::from_limbs(words));
            let json = serde_json::to_string(&amount).unwrap();
            prop_assert_eq!(serde_json::from_str::<Amount>(&json).unwrap(), amount);
        }
    }
}
