//! Every voucher that was ever signed here for one channel. A voucher is written before anyone is shown it.

use std::fs::File;
use std::path::Path;

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, Utc};
use market::Amount;
use market::order::{checked, checksummed};
use serde::{Deserialize, Serialize};

use crate::files::{self, Log};

/// A voucher that was signed, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedEntry {
    /// All that the channel is to have paid, in the token's smallest unit.
    pub cumulative: Amount,
    /// Orders up to this nonce are paid for by it.
    pub covered_nonce: u64,
    /// Whose key signed: the requester's or a session key.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    pub signer: Address,
    /// Over the `Voucher`.
    pub signature: Bytes,
    /// What it counts on top of the voucher before it. Empty for one that was signed elsewhere.
    pub jobs: Vec<CountedJob>,
    /// When it was written here.
    pub signed_at: DateTime<Utc>,
}

/// A job that a voucher counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CountedJob {
    /// The job.
    pub job_id: B256,
    /// Of its order.
    pub nonce: u64,
    /// As its receipt asks.
    pub price: Amount,
}

/// The vouchers of one channel. Held by one process at a time, so that what is signed next builds on what was signed last.
pub struct ChannelJournal {
    log: Log,
    _lock: File,
}

impl ChannelJournal {
    pub(super) fn open(dir: &Path, node: Address, token: Address) -> anyhow::Result<Self> {
        let name = format!("{node:?}-{token:?}");
        let lock = files::lock(&dir.join(format!("{name}.lock")))?;
        Ok(Self { log: Log::at(dir.join(format!("{name}.jsonl"))), _lock: lock })
    }

    /// All of them, as they were signed.
    pub fn all(&self) -> anyhow::Result<Vec<SignedEntry>> {
        self.log.read()
    }

    /// The last one: the highest in both numbers, since neither ever falls.
    pub fn best(&self) -> anyhow::Result<Option<SignedEntry>> {
        Ok(self.all()?.pop())
    }

    /// Writes down a voucher. Refuses one that falls behind the last: it would be of no use to the node.
    pub fn append(&self, entry: &SignedEntry) -> anyhow::Result<()> {
        if let Some(best) = self.best()? {
            anyhow::ensure!(
                entry.cumulative >= best.cumulative && entry.covered_nonce >= best.covered_nonce,
                "a voucher of {} up to nonce {} would fall behind the one of {} up to nonce {}",
                entry.cumulative,
                entry.covered_nonce,
                best.cumulative,
                best.covered_nonce
            );
        }
        self.log.append(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_number_ever_falls() {
        let dir = tempfile::tempdir().unwrap();
        let journal = ChannelJournal::open(dir.path(), Address::ZERO, Address::ZERO).unwrap();
        let entry = |cumulative: u128, covered_nonce| SignedEntry {
            cumulative: cumulative.into(),
            covered_nonce,
            ..SignedEntry::default()
        };
        journal.append(&entry(5, 2)).unwrap();
        journal.append(&entry(5, 3)).unwrap();
        assert!(journal.append(&entry(4, 9)).is_err() && journal.append(&entry(9, 2)).is_err());
        assert_eq!(journal.best().unwrap(), Some(entry(5, 3)));
        assert_eq!(journal.all().unwrap().len(), 2);
    }
}
