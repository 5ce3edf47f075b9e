//! Blocks and logs as nodes write them. Only what is used of them is read, with nothing copied twice: of a backfill's time
//! much goes here.

use alloy::hex;
use alloy::primitives::{Address, B256, Bloom};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::db::chain::{Block, BlockId};
use crate::fold::{RawLog, time_of};

/// A block's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What is kept of it.
    pub block: Block,
    /// Which logs its block may have.
    pub bloom: Bloom,
}

/// A log of a mined block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub block: BlockId,
    pub tx_hash: B256,
    pub log_index: u64,
    pub contract: Address,
    pub topics: Vec<B256>,
    pub data: Vec<u8>,
}

impl Found {
    /// With the time of its block.
    pub fn mined_at(self, mined_at: DateTime<Utc>) -> RawLog {
        RawLog {
            block_number: self.block.number,
            block_hash: self.block.hash,
            mined_at,
            tx_hash: self.tx_hash,
            log_index: self.log_index,
            contract: self.contract,
            topics: self.topics,
            data: self.data.into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireHeader<'a> {
    hash: B256,
    #[serde(borrow)]
    number: &'a str,
    parent_hash: B256,
    #[serde(borrow)]
    timestamp: &'a str,
    logs_bloom: Bloom,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireLog<'a> {
    address: Address,
    topics: Vec<B256>,
    #[serde(borrow)]
    data: &'a str,
    block_hash: B256,
    #[serde(borrow)]
    block_number: &'a str,
    transaction_hash: B256,
    #[serde(borrow)]
    log_index: &'a str,
    #[serde(default)]
    removed: bool,
}

/// Reads an answer to `eth_getBlockByNumber`. The error says what is wrong with it.
pub(super) fn header(raw: &RawValue) -> Result<Header, String> {
    let wire: WireHeader<'_> =
        serde_json::from_str(raw.get()).map_err(|error| format!("a block that cannot be read: {error}"))?;
    let number = quantity(wire.number)?;
    let mined_at = time_of(quantity(wire.timestamp)?);
    let id = BlockId { number, hash: wire.hash };
    Ok(Header { block: Block { id, parent_hash: wire.parent_hash, mined_at }, bloom: wire.logs_bloom })
}

/// Reads an answer to `eth_getLogs`, and brings it into the chain's order. The error says what is wrong with it.
pub(super) fn logs(raw: &RawValue) -> Result<Vec<Found>, String> {
    let wire: Vec<WireLog<'_>> =
        serde_json::from_str(raw.get()).map_err(|error| format!("logs that cannot be read: {error}"))?;
    let mut logs = wire.into_iter().map(found).collect::<Result<Vec<_>, _>>()?;
    let place = |log: &Found| (log.block.number, log.log_index);
    if !logs.is_sorted_by_key(place) {
        logs.sort_by_key(place);
    }
    match logs.windows(2).find(|pair| place(&pair[0]) == place(&pair[1])) {
        Some(pair) => Err(format!("log {} of block {} twice", pair[0].log_index, pair[0].block.number)),
        None => Ok(logs),
    }
}

fn found(wire: WireLog<'_>) -> Result<Found, String> {
    if wire.removed {
        return Err(format!("a log of block {} that was removed", wire.block_hash));
    }
    Ok(Found {
        block: BlockId { number: quantity(wire.block_number)?, hash: wire.block_hash },
        tx_hash: wire.transaction_hash,
        log_index: quantity(wire.log_index)?,
        contract: wire.address,
        topics: wire.topics,
        data: hex::decode(wire.data).map_err(|error| format!("data of a log: {error}"))?,
    })
}

fn quantity(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| format!("{text:?} is no number of 64 bits in hexadecimal"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).unwrap()
    }

    fn log(number: &str, index: &str) -> Value {
        json!({
            "address": Address::repeat_byte(1), "topics": [B256::repeat_byte(2)], "data": "0x0a0b",
            "blockHash": B256::repeat_byte(3), "blockNumber": number, "transactionHash": B256::repeat_byte(4),
            "transactionIndex": "0x0", "logIndex": index, "removed": false, "blockTimestamp": "0x1"
        })
    }

    #[test]
    fn logs_are_read_in_the_chains_order() {
        let read = logs(&raw(&json!([log("0x10", "0x1"), log("0xf", "0x2"), log("0x10", "0x0")]))).unwrap();
        let places: Vec<_> = read.iter().map(|log| (log.block.number, log.log_index)).collect();
        assert_eq!(places, [(15, 2), (16, 0), (16, 1)]);
        assert_eq!(read[0].data, [10, 11]);
        assert_eq!((read[0].contract, read[0].tx_hash), (Address::repeat_byte(1), B256::repeat_byte(4)));
        assert_eq!(logs(&raw(&json!([]))).unwrap(), []);
    }

    #[test]
    fn logs_that_are_not_of_a_mined_block_are_refused() {
        let spoilt = |key: &str, value: Value| {
            let mut log = log("0x1", "0x1");
            log[key] = value;
            logs(&raw(&json!([log]))).unwrap_err()
        };
        for (key, value) in [
            ("blockHash", Value::Null),
            ("blockNumber", Value::Null),
            ("logIndex", Value::Null),
            ("logIndex", json!("0x+1")),
            ("logIndex", json!("12")),
            ("blockNumber", json!("0x10000000000000000")),
            ("data", json!("0x0")),
            ("removed", json!(true)),
        ] {
            assert!(!spoilt(key, value.clone()).is_empty(), "{key} {value}");
        }
        assert!(logs(&raw(&json!([log("0x1", "0x1"), log("0x1", "0x1")]))).unwrap_err().contains("twice"));
        assert!(logs(&raw(&json!({ "logs": [] }))).is_err());
    }

    #[test]
    fn headers_are_read_whatever_else_they_have() {
        let value = json!({
            "hash": B256::repeat_byte(1), "number": "0x7", "parentHash": B256::repeat_byte(2), "timestamp": "0x5",
            "logsBloom": Bloom::repeat_byte(8), "transactions": [B256::ZERO], "somethingNew": { "a": [1] }
        });
        let read = header(&raw(&value)).unwrap();
        assert_eq!(read.block.id, BlockId { number: 7, hash: B256::repeat_byte(1) });
        assert_eq!((read.block.parent_hash, read.block.mined_at), (B256::repeat_byte(2), time_of(5)));
        assert_eq!(read.bloom, Bloom::repeat_byte(8));
        let mut pending = value;
        pending["hash"] = Value::Null;
        assert!(header(&raw(&pending)).is_err());
    }
}
