//! Ids as they go over the wire, strict in what they take.

use std::{borrow::Cow, fmt, str::FromStr};

use alloy::primitives::{Address, B256, Bytes};
use market::confirmation::{Confirmation, Level};
use market::order::{AddressError, parse_address};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, schema::Schema, schema::Type},
};

/// An address with its EIP-55 checksum; all lower case is taken too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalletAddress(pub Address);

/// A 32-byte id or hash: `0x` and 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash(pub B256);

/// Bytes: `0x` and an even number of hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

/// Not a [`Hash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 0x and 64 hex digits")]
pub struct HashError;

/// Not [`HexBytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 0x and an even number of hex digits")]
pub struct HexBytesError;

impl FromStr for WalletAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_address(text).map(Self)
    }
}

impl fmt::Display for WalletAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_checksum(None))
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("0x").ok_or(HashError)?;
        if digits.len() != 64 {
            return Err(HashError);
        }
        digits.parse().map(Self).map_err(|_| HashError)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for HexBytes {
    type Err = HexBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("0x").ok_or(HexBytesError)?;
        hex::decode(digits).map(Self).map_err(|_| HexBytesError)
    }
}

impl fmt::Display for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes::copy_from_slice(&self.0).fmt(f)
    }
}

/// How deep on the chain the latest lies that it says of something, and what that is enough for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Confirmation)]
pub struct ConfirmationBody {
    /// The block that it is in.
    pub block_number: u64,
    /// Its hash; missing where the header is no longer kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_hash: Option<Hash>,
    /// Blocks on top of it.
    pub depth: u64,
    /// `pending`: too shallow to count. `confirmed`: deep enough for what it is worth. `final`: it stays.
    pub level: Level,
}

impl From<Confirmation> for ConfirmationBody {
    fn from(confirmation: Confirmation) -> Self {
        let Confirmation { block_number, block_hash, depth, level } = confirmation;
        Self { block_number, block_hash: block_hash.map(Hash), depth, level }
    }
}

macro_rules! text {
    ($name:ident, $pattern:literal, $description:literal, $example:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .pattern(Some($pattern))
                    .description(Some($description))
                    .examples([$example])
                    .into()
            }
        }
        impl ToSchema for $name {}
    };
}

text!(
    WalletAddress,
    "^0x[0-9a-fA-F]{40}$",
    "An address with its EIP-55 checksum",
    "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
);
text!(
    Hash,
    "^0x[0-9a-fA-F]{64}$",
    "32 bytes in hex",
    "0x8f1f2a4b3c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f7"
);
text!(HexBytes, "^0x([0-9a-fA-F]{2})*$", "Bytes in hex", "0x0123456789abcdef");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_in_one_form_only() {
        let id = Hash(B256::repeat_byte(0xab));
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in
            ["", "0x", "ab", &"ab".repeat(32), &format!("0x{}", "ab".repeat(31)), &format!("0x{}", "zz".repeat(32))]
        {
            assert_eq!(bad.parse::<Hash>(), Err(HashError), "{bad:?}");
        }
    }

    #[test]
    fn bytes_survive_json() {
        let bytes = HexBytes(vec![0, 1, 255]);
        let json = serde_json::to_string(&bytes).unwrap();
        assert_eq!(json, "\"0x0001ff\"");
        assert_eq!(serde_json::from_str::<HexBytes>(&json).unwrap(), bytes);
        assert!(serde_json::from_str::<HexBytes>("\"0x0\"").is_err());
    }
}
