//! What a requester must not lose and cannot ask anyone for: the orders they signed, the vouchers they gave, and how far
//! their nonces have come. One directory for each account at each escrow.
//!
//! ```text
//! DATA_DIR/<chain id>-<escrow>/<requester>/
//!     lock                          held while a nonce is taken
//!     nonce.json                    the last nonce taken
//!     orders/<job id>.json          an order, its signature, and what came of it
//!     vouchers/<node>-<token>.jsonl every voucher signed for the channel, one a line
//! DATA_DIR/sessions/<key>.key       session keys
//! ```

mod journal;
mod order;

use std::path::{Path, PathBuf};

use alloy::primitives::{Address, B256};
use market::deployment::Deployment;

use crate::files;
pub use journal::{ChannelJournal, CountedJob, SignedEntry};
pub use order::{Delivery, OrderRecord, Verdict};

/// One account's records at one escrow.
#[derive(Debug, Clone)]
pub struct Records {
    root: PathBuf,
}

impl Records {
    /// Opens the records of `requester`, making the directory first if there is none.
    pub fn open(data_dir: &Path, deployment: &Deployment, requester: Address) -> anyhow::Result<Self> {
        files::private_dir(data_dir)?;
        let root = data_dir.join(files::name_of(deployment)).join(format!("{requester:?}"));
        for dir in [root.clone(), root.join("orders"), root.join("vouchers")] {
            files::private_dir(&dir)?;
        }
        Ok(Self { root })
    }

    /// Takes `count` nonces in a row that no order of this account has, the first at least `least`, and returns it.
    ///
    /// A voucher covers every order of a channel up to a nonce, so what matters is that a new order's nonce is above those
    /// of all that went before. Microseconds since 1970 give that without asking anybody, on any number of machines whose
    /// clocks agree within the time that a voucher takes to come about; on one machine the file makes it exact, whatever
    /// the clock does. Two machines that take the same nonce do no harm: orders are told apart by their digest.
    pub fn take_nonces(&self, count: u64, least: u64) -> anyhow::Result<u64> {
        let _lock = files::lock(&self.root.join("lock"))?;
        let path = self.root.join("nonce.json");
        let last: u64 = files::read_json(&path)?.unwrap_or(0);
        let clock = u64::try_from(market::clock::now().timestamp_micros()).unwrap_or(0);
        let first = clock.max(least).max(last.saturating_add(1)).max(1);
        let next = first.checked_add(count).ok_or_else(|| anyhow::anyhow!("no nonces are left"))?;
        files::write_json(&path, &(next - 1))?;
        Ok(first)
    }

    fn order_path(&self, job_id: B256) -> PathBuf {
        self.root.join("orders").join(format!("{job_id}.json"))
    }

    /// Keeps the order, in place of what was known of it.
    pub fn keep(&self, record: &OrderRecord) -> anyhow::Result<()> {
        use anyhow::Context as _;
        let path = self.order_path(record.job_id);
        files::write_json(&path, record).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The order with this digest, if it is known here.
    pub fn order(&self, job_id: B256) -> anyhow::Result<Option<OrderRecord>> {
        files::read_json(&self.order_path(job_id))
    }

    /// The journal of the channel with `node` in `token`, locked against other processes until it is dropped.
    pub fn journal(&self, node: Address, token: Address) -> anyhow::Result<ChannelJournal> {
        ChannelJournal::open(&self.root.join("vouchers"), node, token)
    }

    /// The channels for which vouchers were signed here, as node and token.
    pub fn channels(&self) -> anyhow::Result<Vec<(Address, Address)>> {
        let paths = files::list(&self.root.join("vouchers"), "jsonl")?;
        let channel = |path: &PathBuf| {
            let (node, token) = path.file_stem()?.to_str()?.split_once('-')?;
            Some((node.parse().ok()?, token.parse().ok()?))
        };
        Ok(paths.iter().filter_map(channel).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(dir: &Path) -> Records {
        let deployment = files::tests::deployment();
        Records::open(dir, &deployment, Address::with_last_byte(9)).unwrap()
    }

    #[test]
    fn nonces_grow_whatever_the_clock_says_and_never_meet() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path());
        let first = records.take_nonces(3, 0).unwrap();
        assert!(first > 1_600_000_000_000_000, "microseconds since 1970");
        assert!(records.take_nonces(1, 0).unwrap() >= first + 3);
        let far = records.take_nonces(1, u64::MAX - 50).unwrap();
        assert_eq!(far, u64::MAX - 50);
        assert_eq!(records.take_nonces(2, 0).unwrap(), far + 1, "a clock that lags behind does not take them back");
        assert!(records.take_nonces(100, 0).is_err());

        let threads: Vec<_> = (0..8)
            .map(|_| {
                let records = records.clone();
                std::thread::spawn(move || records.take_nonces(2, 0).unwrap())
            })
            .collect();
        let mut taken: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[1] >= pair[0] + 2), "{taken:?}");
    }

    #[test]
    fn channels_are_found_by_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path());
        let channel = (Address::repeat_byte(5), Address::ZERO);
        let journal = records.journal(channel.0, channel.1).unwrap();
        assert!(records.channels().unwrap().is_empty());
        journal.append(&SignedEntry::default()).unwrap();
        assert_eq!(records.channels().unwrap(), [channel]);
    }
}
