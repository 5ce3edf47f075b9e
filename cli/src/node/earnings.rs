//! What the node has to show for what it is owed, kept by itself: every order with the signatures that settle it, and the best
//! voucher of every channel. With these files and the chain it is paid, whatever becomes of the API and the settler.
//!
//! ```text
//! NODE_DIR/earnings/<chain id>-<escrow>/open/<job id>.json              a result that is not known to be settled
//! NODE_DIR/earnings/<chain id>-<escrow>/closed/<job id>.json            one that the chain has settled, until a redeemed voucher covers it
//! NODE_DIR/earnings/<chain id>-<escrow>/vouchers/<requester>-<token>.json
//! ```
//!
//! A result is written here when its receipt is signed, before anyone is shown it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use alloy::primitives::{Address, B256, Bytes, U256};
use anyhow::Context;
use chrono::{DateTime, Utc};
use market::abi::Order;
use market::deployment::Deployment;
use market::order::{OrderJson, SpecJson, checked, checksummed};
use market::{Amount, ContentId};
use serde::{Deserialize, Serialize};

use crate::api::Assigned;
use crate::files;

const DIR: &str = "earnings";

/// A result and the signatures that settle it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Earning {
    /// Digest of the order.
    pub job_id: B256,
    /// What the requester agreed to.
    pub order: OrderJson,
    /// What was done.
    pub spec: SpecJson,
    /// The requester's, over the order; none where it was opened on the chain.
    pub order_signature: Option<Bytes>,
    /// The assigner's word, for an order that names no node.
    pub assignment: Option<Assigned>,
    /// What the receipt asks.
    pub price: Amount,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// The output.
    #[serde(rename = "outputCID")]
    pub output_cid: ContentId,
    /// The node's, over the receipt.
    pub receipt_signature: Bytes,
    /// When the receipt was signed.
    pub signed_at: DateTime<Utc>,
    /// When the API took the result. Before, the requester has nothing.
    pub acknowledged_at: Option<DateTime<Utc>>,
}

impl Earning {
    /// The order as the contract takes it.
    pub fn order(&self) -> anyhow::Result<Order> {
        Ok(self.order.to_order()?)
    }

    /// Whether it was signed against the deposit, and so may be paid by a voucher.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.order_signature.is_some()
    }

    /// The channel it belongs to.
    #[must_use]
    pub fn channel(&self) -> Channel {
        Channel { requester: self.order.requester, token: self.order.token }
    }
}

/// What lies between this node and one requester in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    /// Who pays.
    pub requester: Address,
    /// Zero for the native coin.
    pub token: Address,
}

/// A voucher that the node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldVoucher {
    /// Who pays.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    pub requester: Address,
    /// In what.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    pub token: Address,
    /// All that the channel is to have paid.
    pub cumulative: Amount,
    /// Orders up to this nonce are paid for by it.
    pub covered_nonce: u64,
    /// By the requester or a session key, over the `Voucher`.
    pub signature: Bytes,
}

impl HeldVoucher {
    /// Its channel.
    #[must_use]
    pub fn channel(&self) -> Channel {
        Channel { requester: self.requester, token: self.token }
    }

    /// As the contract takes it.
    pub fn to_voucher(&self, node: Address) -> anyhow::Result<market::abi::Voucher> {
        Ok(market::abi::Voucher {
            requester: self.requester,
            node,
            token: self.token,
            cumulative: self.cumulative.to_u128()?,
            coveredNonce: self.covered_nonce,
        })
    }

    /// Whether it is worth more than `other`: neither number may have fallen.
    #[must_use]
    pub fn improves_on(&self, other: &Self) -> bool {
        self.cumulative >= other.cumulative
            && self.covered_nonce >= other.covered_nonce
            && (self.cumulative, self.covered_nonce) != (other.cumulative, other.covered_nonce)
    }
}

/// The files.
#[derive(Debug, Clone)]
pub struct Earnings {
    root: PathBuf,
}

impl Earnings {
    /// Opens what is in the node's directory for one escrow, making what is missing.
    pub fn open(node_dir: &Path, deployment: &Deployment) -> anyhow::Result<Self> {
        let root = node_dir.join(DIR).join(files::name_of(deployment));
        for dir in [root.clone(), root.join("open"), root.join("closed"), root.join("vouchers")] {
            files::private_dir(&dir)?;
        }
        Ok(Self { root })
    }

    fn path(&self, place: &str, job_id: B256) -> PathBuf {
        self.root.join(place).join(format!("{job_id}.json"))
    }

    /// Keeps a result. It is on the disk when this returns.
    pub fn keep(&self, earning: &Earning) -> io::Result<()> {
        files::write_json(&self.path("open", earning.job_id), earning)
    }

    /// One that is not known to be settled.
    pub fn find(&self, job_id: B256) -> anyhow::Result<Option<Earning>> {
        files::read_json(&self.path("open", job_id))
    }

    /// The API took the result; for an order that names no node, with the assigner's word until the order's deadline.
    pub fn acknowledge(&self, job_id: B256, assignment: Option<Assigned>, now: DateTime<Utc>) -> anyhow::Result<()> {
        let Some(mut earning) = self.find(job_id)? else { return Ok(()) };
        earning.acknowledged_at.get_or_insert(now);
        if assignment.is_some() {
            earning.assignment = assignment;
        }
        self.keep(&earning).with_context(|| format!("cannot keep the earning of job {job_id}"))
    }

    /// Forgets a result that nobody was given.
    pub fn drop_unacknowledged(&self, job_id: B256) -> anyhow::Result<()> {
        if self.find(job_id)?.is_some_and(|earning| earning.acknowledged_at.is_none()) {
            remove(&self.path("open", job_id))?;
        }
        Ok(())
    }

    /// The chain has settled it, for good.
    pub fn close(&self, job_id: B256) -> anyhow::Result<()> {
        match fs::rename(self.path("open", job_id), self.path("closed", job_id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot close the earning of job {job_id}"))
            }
            // Closed by another process meanwhile.
            _ => Ok(()),
        }
    }

    /// Forgets a settled result.
    pub fn forget(&self, job_id: B256) -> anyhow::Result<()> {
        remove(&self.path("closed", job_id))
    }

    /// Results that are not known to be settled.
    pub fn open_ones(&self) -> anyhow::Result<Vec<Earning>> {
        files::read_all(&self.root.join("open"))
    }

    /// Results that the chain settled.
    pub fn closed_ones(&self) -> anyhow::Result<Vec<Earning>> {
        files::read_all(&self.root.join("closed"))
    }

    /// The best voucher of every channel.
    pub fn vouchers(&self) -> anyhow::Result<Vec<HeldVoucher>> {
        files::read_all(&self.root.join("vouchers"))
    }

    /// The best voucher of one channel.
    pub fn voucher(&self, channel: Channel) -> anyhow::Result<Option<HeldVoucher>> {
        files::read_json(&self.voucher_path(channel))
    }

    fn voucher_path(&self, channel: Channel) -> PathBuf {
        self.root.join("vouchers").join(format!("{:?}-{:?}.json", channel.requester, channel.token))
    }

    /// Keeps a voucher, whose signature was checked, unless a better one is held. True if it was kept.
    pub fn keep_voucher(&self, voucher: &HeldVoucher) -> anyhow::Result<bool> {
        let _lock = files::lock(&self.root.join("vouchers.lock"))?;
        if self.voucher(voucher.channel())?.is_some_and(|held| !voucher.improves_on(&held)) {
            return Ok(false);
        }
        let path = self.voucher_path(voucher.channel());
        files::write_json(&path, voucher).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(true)
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The sum of what is asked for, in the smallest unit of their token.
pub fn total<'a>(earnings: impl IntoIterator<Item = &'a Earning>) -> U256 {
    earnings.into_iter().fold(U256::ZERO, |sum, earning| sum.saturating_add(earning.price.0))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A signed order's result, as far as these tests care.
    pub fn earning(byte: u8, nonce: u64, price: u128) -> Earning {
        let output_cid = ContentId::of(&[byte]);
        let order = Order { nonce, maxPrice: price, ..Order::default() };
        Earning {
            job_id: B256::repeat_byte(byte),
            order: (&order).into(),
            spec: (&market::abi::JobSpec::default()).into(),
            order_signature: Some(vec![7; 65].into()),
            assignment: None,
            price: price.into(),
            result_hash: output_cid.digest(),
            output_cid,
            receipt_signature: vec![8; 65].into(),
            signed_at: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            acknowledged_at: DateTime::from_timestamp(1_800_000_001, 0),
        }
    }

    #[test]
    fn a_result_is_kept_acknowledged_closed_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let earnings = Earnings::open(dir.path(), &files::tests::deployment()).unwrap();
        let mut one = Earning { acknowledged_at: None, ..earning(1, 5, 10) };
        earnings.keep(&one).unwrap();
        assert_eq!(earnings.open_ones().unwrap(), [one.clone()]);
        let assignment = Assigned { expiry: 9, signature: vec![1].into() };
        earnings.acknowledge(one.job_id, Some(assignment.clone()), one.signed_at).unwrap();
        (one.acknowledged_at, one.assignment) = (Some(one.signed_at), Some(assignment));
        assert_eq!(earnings.find(one.job_id).unwrap(), Some(one.clone()));
        earnings.drop_unacknowledged(one.job_id).unwrap();
        assert!(earnings.find(one.job_id).unwrap().is_some(), "what was acknowledged stays");

        for _ in 0..2 {
            earnings.close(one.job_id).unwrap();
            assert_eq!(earnings.closed_ones().unwrap().len(), 1);
            assert!(earnings.open_ones().unwrap().is_empty());
        }
        earnings.forget(one.job_id).unwrap();
        earnings.forget(one.job_id).unwrap();
        assert!(earnings.closed_ones().unwrap().is_empty());

        let unseen = Earning { acknowledged_at: None, ..earning(2, 6, 10) };
        earnings.keep(&unseen).unwrap();
        earnings.drop_unacknowledged(unseen.job_id).unwrap();
        assert!(earnings.open_ones().unwrap().is_empty());
    }

    #[test]
    fn only_a_better_voucher_takes_the_place_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let earnings = Earnings::open(dir.path(), &files::tests::deployment()).unwrap();
        let voucher = |cumulative: u128, covered_nonce| HeldVoucher {
            requester: Address::repeat_byte(1),
            token: Address::ZERO,
            cumulative: cumulative.into(),
            covered_nonce,
            signature: vec![1; 65].into(),
        };
        assert!(earnings.keep_voucher(&voucher(5, 5)).unwrap());
        for worse in [voucher(5, 5), voucher(4, 9), voucher(9, 4)] {
            assert!(!earnings.keep_voucher(&worse).unwrap());
        }
        assert!(earnings.keep_voucher(&voucher(5, 6)).unwrap());
        assert!(earnings.keep_voucher(&voucher(9, 6)).unwrap());
        assert_eq!(earnings.vouchers().unwrap(), [voucher(9, 6)]);
    }
}
