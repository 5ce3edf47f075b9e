//! Bytes as `0x…` in JSON: `#[serde(with = "market::hexbytes")]`.

use alloy::primitives::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes `bytes` as a `0x…` string.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    Bytes::copy_from_slice(bytes).serialize(serializer)
}

/// Reads a `0x…` string.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    Bytes::deserialize(deserializer).map(|bytes| bytes.to_vec())
}
