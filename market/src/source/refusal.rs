//! What an endpoint means when it refuses a request. Pure. There is no standard for it: the texts are those that the
//! well-known nodes and providers are known to send.

use std::ops::RangeInclusive;

use alloy::rpc::json_rpc::ErrorPayload;

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The answer would be too large or take too long: less may be asked for.
    TooMuch(Allowed),
    /// Too many requests: the same may be asked for later.
    Busy,
    /// Something else.
    Other,
}

/// What would be answered, as far as the endpoint says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// Numbers of blocks whose logs would not be too many.
    pub range: Option<RangeInclusive<u64>>,
    /// Most blocks that a query may span.
    pub blocks: Option<u64>,
}

/// In the texts of refusals because of too many requests.
const BUSY: [&str; 10] = [
    "rate limit",
    "rate-limit",
    "ratelimit",
    "too many requests",
    "request limit",
    "requests per",
    "compute units",
    "throughput",
    "throttl",
    "capacity exceeded",
];
/// In the texts of refusals because of too much asked for.
const TOO_MUCH: [&str; 16] = [
    "results",
    "range",
    "response size",
    "response too large",
    "response is too",
    "too large",
    "too big",
    "too many blocks",
    "too many logs",
    "log response",
    "logs matched",
    "max message",
    "message size",
    "query timeout",
    "timed out",
    "execution timeout",
];
/// Of ranges that the endpoint does not have yet.
const AHEAD: [&str; 3] = ["invalid block range", "beyond current head", "beyond head"];
/// In front of the most blocks that are allowed.
const BLOCKS: [&str; 9] = [
    "limited to a ",
    "limited to ",
    "max range: ",
    "max block range ",
    "maximum block range: ",
    "block range limit: ",
    "maximum is set to ",
    "max: ",
    "up to a ",
];
/// What JSON-RPC servers use for too many requests and, some of them, for too large answers.
const LIMIT_EXCEEDED: i64 = -32005;

impl Refusal {
    /// Reads an endpoint's error.
    #[must_use]
    pub fn of<T>(error: &ErrorPayload<T>) -> Self {
        Self::read(error.code, &error.message)
    }

    fn read(code: i64, message: &str) -> Self {
        let text = message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if matches!(code, 429 | -32029) || says(&BUSY) {
            Self::Busy
        } else if says(&AHEAD) {
            Self::Other
        } else if says(&TOO_MUCH) {
            Self::TooMuch(Allowed { range: range_in(&text), blocks: blocks_in(&text) })
        } else if code == LIMIT_EXCEEDED {
            Self::Busy
        } else {
            Self::Other
        }
    }
}

/// The last two numbers that stand as `[from, to]` or `range from-to`.
fn range_in(text: &str) -> Option<RangeInclusive<u64>> {
    let (from, to) = match text.rsplit_once('[') {
        Some((_, rest)) => rest.split_once(']')?.0.split_once(',')?,
        None => text.rsplit_once("range ")?.1.split_once('-')?,
    };
    let to = to.split(|c: char| !c.is_ascii_alphanumeric()).find(|word| !word.is_empty())?;
    let (from, to) = (number(from)?, number(to)?);
    (from <= to).then_some(from..=to)
}

fn blocks_in(text: &str) -> Option<u64> {
    let rest = BLOCKS.iter().find_map(|before| text.split_once(before)).map(|(_, rest)| rest)?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    let blocks = digits.replace(',', "").parse::<u64>().ok()?;
    let thousands = if after.starts_with('k') { 1000 } else { 1 };
    // A limit of results or bytes says nothing about blocks.
    let of_something_else = ["results", "logs", "bytes", "mb"].iter().any(|word| after.trim_start().starts_with(word));
    (blocks > 0 && !of_something_else).then_some(blocks * thousands)
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn too_much(code: i64, message: &str) -> Allowed {
        match Refusal::read(code, message) {
            Refusal::TooMuch(allowed) => allowed,
            other => panic!("{message}: {other:?}"),
        }
    }

    #[test]
    fn ranges_that_are_suggested_are_read() {
        for (code, message, range) in [
            (-32005, "query returned more than 10000 results. Try with this block range [0x1a, 0x2F].", 26..=47),
            (
                -32602,
                "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no limit on \
                 the response size, or you can request any block range with a cap of 10K logs in the response. Based on \
                 your parameters and the response size limit, this block range should work: [0x0, 0x3e7]",
                0..=999,
            ),
            (-32000, "query exceeds max results 20000, retry with the range 123-456", 123..=456),
        ] {
            assert_eq!(too_much(code, message).range, Some(range), "{message}");
        }
    }

    #[test]
    fn the_most_blocks_are_read() {
        for (code, message, blocks) in [
            (-32614, "eth_getLogs is limited to a 10,000 range", Some(10_000)),
            (-32047, "Invalid eth_getLogs request. 'fromBlock'-'toBlock' range too large. Max range: 800", Some(800)),
            (-32000, "eth_getLogs block range too large, range: 5000, max: 3500", Some(3500)),
            (-32000, "requested too many blocks from 0 to 16384, maximum is set to 2048", Some(2048)),
            (-32005, "exceed maximum block range: 5000", Some(5000)),
            (-32000, "query exceeds max block range 100000", Some(100_000)),
            (-32062, "block range is too wide", None),
            (-32005, "query returned more than 10000 results", None),
            (-32000, "query timeout exceeded. Consider reducing your block range.", None),
            (-32008, "response size should not greater than 10000000 bytes", None),
            (-32000, "the response is limited to 1000 results", None),
            (-32000, "too many logs [1", None),
            (-32000, "range 9-5 of results", None),
        ] {
            let allowed = too_much(code, message);
            assert_eq!((allowed.blocks, allowed.range), (blocks, None), "{message}");
        }
    }

    #[test]
    fn other_refusals_are_told_apart() {
        for (code, message) in [
            (429, "slow down"),
            (-32005, "limit exceeded"),
            (-32005, "daily request count exceeded, request rate limited: rate limit"),
            (-32000, "Your app has exceeded its compute units per second capacity"),
            (-32029, "x"),
        ] {
            assert_eq!(Refusal::read(code, message), Refusal::Busy, "{message}");
        }
        for (code, message) in [
            (-32601, "the method eth_getLogs does not exist"),
            (-32000, "invalid block range params"),
            (-32000, "block range extends beyond current head block"),
            (-32000, "header not found"),
            (-32603, "internal error"),
        ] {
            assert_eq!(Refusal::read(code, message), Refusal::Other, "{message}");
        }
    }
}
