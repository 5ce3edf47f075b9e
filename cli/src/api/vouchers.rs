//! Vouchers and accounts as they go over HTTP.

use alloy::primitives::{Address, B256, Bytes};
use market::Amount;
use market::order::{checked, checksummed};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::records::SignedEntry;

/// `GET vouchers/next`: what the API would like countersigned.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NextVoucher {
    /// All that the channel is to have paid.
    pub cumulative: Amount,
    /// For orders up to this nonce.
    #[serde(deserialize_with = "nonce")]
    pub covered_nonce: u64,
    /// What it counts on top of the best voucher.
    pub jobs: Vec<NextJob>,
    /// The best voucher of the channel that the API has.
    pub best: Option<VoucherBody>,
}

/// A job to be countersigned.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NextJob {
    /// The job.
    pub job_id: B256,
    /// Of its order.
    #[serde(deserialize_with = "nonce")]
    pub nonce: u64,
    /// What the receipt asks.
    pub price: Amount,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// The node's, over the receipt.
    pub receipt_signature: Bytes,
}

/// A voucher with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoucherBody {
    /// Who pays.
    #[serde(deserialize_with = "checked")]
    pub requester: Address,
    /// Who is paid.
    #[serde(deserialize_with = "checked")]
    pub node: Address,
    /// In what.
    #[serde(deserialize_with = "checked")]
    pub token: Address,
    /// All that the channel is to have paid.
    pub cumulative: Amount,
    /// For orders up to this nonce.
    #[serde(deserialize_with = "nonce")]
    pub covered_nonce: u64,
    /// By the requester or a session key.
    pub signature: Bytes,
}

/// `GET nodes/{id}/vouchers`
#[derive(Debug, Clone, Deserialize)]
pub struct VoucherList {
    /// The best voucher of each channel.
    pub vouchers: Vec<VoucherBody>,
}

/// Body of `POST vouchers`.
#[derive(Debug, Clone, Serialize)]
pub struct VoucherPost {
    voucher: PostedVoucher,
    signature: Bytes,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct PostedVoucher {
    #[serde(serialize_with = "checksummed")]
    requester: Address,
    #[serde(serialize_with = "checksummed")]
    node: Address,
    #[serde(serialize_with = "checksummed")]
    token: Address,
    cumulative: Amount,
    #[serde(serialize_with = "decimal")]
    covered_nonce: u64,
}

impl VoucherPost {
    /// The voucher that was written to the journal.
    #[must_use]
    pub fn new(requester: Address, node: Address, token: Address, entry: &SignedEntry) -> Self {
        let (cumulative, covered_nonce) = (entry.cumulative, entry.covered_nonce);
        let voucher = PostedVoucher { requester, node, token, cumulative, covered_nonce };
        Self { voucher, signature: entry.signature.clone() }
    }
}

fn decimal<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// A nonce, which JSON has as a decimal string because JavaScript's numbers would round it.
fn nonce<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    text.parse().map_err(|_| de::Error::custom("must be an integer below 2^64 in decimal digits"))
}

/// `GET accounts/{address}`, as far as we look at it.
#[derive(Debug, Clone, Deserialize)]
pub struct AccountInfo {
    /// One for each token.
    pub accounts: Vec<AccountBody>,
}

/// What an account has promised in one token.
#[derive(Debug, Clone, Deserialize)]
pub struct AccountBody {
    /// Which.
    #[serde(deserialize_with = "checked")]
    pub token: Address,
    /// By signed orders that are not settled.
    pub promised: Amount,
}

impl AccountInfo {
    /// What is promised in one token.
    #[must_use]
    pub fn promised(&self, token: Address) -> Amount {
        let found = self.accounts.iter().find(|account| account.token == token);
        found.map_or(Amount::ZERO, |account| account.promised)
    }
}
