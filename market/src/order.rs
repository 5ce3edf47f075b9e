//! Orders and specs as JSON: the field names and widths of `IJobEscrow.Order` and `IJobEscrow.JobSpec`, as a wallet signs
//! them. Used over HTTP and in `job_submission`.

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Amount;
use crate::abi::{JobSpec, Order};

/// An [`Order`] in JSON: amounts and the nonce as decimal strings, the deadline in unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = Order)]
pub struct OrderJson {
    /// Who pays.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    #[schema(value_type = String, example = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8")]
    pub requester: Address,
    /// ERC-20 contract, or zero for the chain's native coin.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    #[schema(value_type = String, example = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8")]
    pub token: Address,
    /// Most the job may cost, in the token's smallest unit.
    #[serde(deserialize_with = "uint128")]
    #[schema(example = "1000000000000000")]
    pub max_price: Amount,
    /// The only node that may be paid, or zero.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    #[schema(value_type = String, example = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8")]
    pub node: Address,
    /// Who may bind an open order to a node.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    #[schema(value_type = String, example = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8")]
    pub assigner: Address,
    /// EIP-712 hash of the spec.
    #[schema(value_type = String, example = "0x6c5a8c6eb4bba71d1b8d4a0a5e9a1e5a0f7a6a3a1c9c3d9a4d7f0b2f3e4d5c6b")]
    pub spec_hash: B256,
    /// Unix seconds up to and including which a result counts.
    pub deadline: u64,
    /// Seconds between a result and its payment.
    pub challenge_window: u32,
    /// Who decides a dispute; zero for none.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    #[schema(value_type = String, example = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8")]
    pub arbiter: Address,
    /// Most of the price that may be taken as a fee, in basis points.
    pub max_fee_bps: u16,
    /// Makes otherwise equal orders distinct. A decimal string, since JavaScript's numbers would round it.
    #[serde(serialize_with = "decimal", deserialize_with = "uint64")]
    #[schema(value_type = String, example = "7")]
    pub nonce: u64,
}

/// A [`JobSpec`] in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = JobSpec)]
pub struct SpecJson {
    /// CIDv1 of the input.
    #[serde(rename = "inputCID")]
    #[schema(example = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")]
    pub input_cid: String,
    /// Name of the operation, such as `encrypt`.
    #[schema(example = "encrypt")]
    pub operation: String,
    /// The operation's parameters: the text of a JSON object, or empty for none.
    pub params: String,
}

impl From<&Order> for OrderJson {
    fn from(order: &Order) -> Self {
        Self {
            requester: order.requester,
            token: order.token,
            max_price: order.maxPrice.into(),
            node: order.node,
            assigner: order.assigner,
            spec_hash: order.specHash,
            deadline: order.deadline,
            challenge_window: order.challengeWindow,
            arbiter: order.arbiter,
            max_fee_bps: order.maxFeeBps,
            nonce: order.nonce,
        }
    }
}

impl OrderJson {
    /// The order as the contract takes it. Errors if `max_price` exceeds the contract's uint128, which no value that was
    /// read from JSON does.
    pub fn to_order(&self) -> Result<Order, crate::amount::AmountError> {
        Ok(Order {
            requester: self.requester,
            token: self.token,
            maxPrice: self.max_price.to_u128()?,
            node: self.node,
            assigner: self.assigner,
            specHash: self.spec_hash,
            deadline: self.deadline,
            challengeWindow: self.challenge_window,
            arbiter: self.arbiter,
            maxFeeBps: self.max_fee_bps,
            nonce: self.nonce,
        })
    }
}

impl From<&JobSpec> for SpecJson {
    fn from(spec: &JobSpec) -> Self {
        Self { input_cid: spec.inputCID.clone(), operation: spec.operation.clone(), params: spec.params.clone() }
    }
}

impl From<&SpecJson> for JobSpec {
    fn from(spec: &SpecJson) -> Self {
        Self { inputCID: spec.input_cid.clone(), operation: spec.operation.clone(), params: spec.params.clone() }
    }
}

/// An [`Order`] as [`OrderJson`], for `#[serde(with = …)]`.
pub mod order_json {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::OrderJson;
    use crate::abi::Order;

    /// Writes an [`OrderJson`].
    pub fn serialize<S: Serializer>(order: &Order, serializer: S) -> Result<S::Ok, S::Error> {
        OrderJson::from(order).serialize(serializer)
    }

    /// Reads an [`OrderJson`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Order, D::Error> {
        OrderJson::deserialize(deserializer)?.to_order().map_err(de::Error::custom)
    }
}

/// A [`JobSpec`] as [`SpecJson`], for `#[serde(with = …)]`.
pub mod spec_json {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::SpecJson;
    use crate::abi::JobSpec;

    /// Writes a [`SpecJson`].
    pub fn serialize<S: Serializer>(spec: &JobSpec, serializer: S) -> Result<S::Ok, S::Error> {
        SpecJson::from(spec).serialize(serializer)
    }

    /// Reads a [`SpecJson`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobSpec, D::Error> {
        SpecJson::deserialize(deserializer).map(|spec| JobSpec::from(&spec))
    }
}

/// An address with its EIP-55 checksum, for `#[serde(serialize_with = …)]`: alloy writes lower case.
pub fn checksummed<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&address.to_checksum(None))
}

/// Why a text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `0x` and 40 hex digits.
    #[error("must be an address: 0x and 40 hex digits")]
    Malformed,
    /// Mixed case that is not the EIP-55 checksum: a digit is probably wrong.
    #[error("has a wrong EIP-55 checksum: write it as your wallet shows it, or all in lower case")]
    Checksum,
}

/// Reads an address: with its EIP-55 checksum, or all in lower case.
pub fn parse_address(text: &str) -> Result<Address, AddressError> {
    let digits = text.strip_prefix("0x").ok_or(AddressError::Malformed)?;
    let address: Address = digits.parse().map_err(|_| AddressError::Malformed)?;
    if digits.bytes().any(|byte| byte.is_ascii_uppercase()) && address.to_checksum(None) != text {
        return Err(AddressError::Checksum);
    }
    Ok(address)
}

/// As [`parse_address`], for `#[serde(deserialize_with = …)]`.
pub fn checked<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    parse_address(&text).map_err(de::Error::custom)
}

/// A number of 64 bits as a decimal string, for `#[serde(with = …)]`: JavaScript's numbers would round it.
pub mod uint64_text {
    use serde::{Deserializer, Serializer};

    /// Writes its decimal digits.
    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        super::decimal(number, serializer)
    }

    /// Reads decimal digits only.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        super::uint64(deserializer)
    }
}

fn decimal<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

fn uint128<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
    let amount = Amount::deserialize(deserializer)?;
    amount.to_u128().map_err(de::Error::custom)?;
    Ok(amount)
}

fn uint64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(de::Error::custom("must be an integer written in decimal digits only"));
    }
    text.parse().map_err(|_| de::Error::custom("is more than 2^64 - 1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn order() -> Order {
        Order {
            requester: Address::repeat_byte(0xab),
            maxPrice: u128::MAX,
            deadline: 1_800_000_000,
            nonce: u64::MAX,
            ..Order::default()
        }
    }

    #[test]
    fn an_order_survives_json_with_its_widest_numbers() {
        let json = serde_json::to_value(OrderJson::from(&order())).unwrap();
        assert_eq!(json["maxPrice"], u128::MAX.to_string());
        assert_eq!(json["nonce"], u64::MAX.to_string());
        assert_eq!(json["requester"], order().requester.to_checksum(None));
        assert_eq!(serde_json::from_value::<OrderJson>(json).unwrap().to_order(), Ok(order()));
    }

    #[test]
    fn what_the_contract_has_no_room_for_is_refused() {
        let good = serde_json::to_value(OrderJson::from(&order())).unwrap();
        for (field, value) in [
            ("maxPrice", json!("340282366920938463463374607431768211456")),
            ("maxPrice", json!("0.1 ETH")),
            ("nonce", json!("18446744073709551616")),
            ("nonce", json!("-1")),
            ("challengeWindow", json!(4_294_967_296_u64)),
            ("requester", json!("0x12")),
            ("requester", json!(order().requester.to_checksum(None).replace("aB", "Ab"))),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(serde_json::from_value::<OrderJson>(bad).is_err(), "{field}");
        }
    }
}
