//! An order that this account made, and what came of it.

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, Utc};
use market::Amount;
use market::order::{OrderJson, SpecJson, checked, checksummed};
use serde::{Deserialize, Serialize};

/// Why a delivery may be paid by a voucher, or may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// This client fetched the output and found it to be what the receipt names.
    Verified,
    /// The user said so, unseen.
    Accepted,
    /// The user does not want it countersigned by itself.
    Withheld,
}

/// What a node delivered, under its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Who delivered.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    pub node: Address,
    /// What it asks.
    pub price: Amount,
    /// SHA2-256 of the output.
    pub result_hash: B256,
}

/// An order, as its requester keeps it: enough to cancel it, refund it, accept or dispute its result without asking anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderRecord {
    /// Digest of the order.
    pub job_id: B256,
    /// What was agreed to.
    pub order: OrderJson,
    /// What the node is to do.
    pub spec: SpecJson,
    /// Over the order; none where it is opened on the chain.
    pub signature: Option<Bytes>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// What was delivered, once that was checked.
    #[serde(default)]
    pub delivery: Option<Delivery>,
    /// Whether it may be countersigned.
    #[serde(default)]
    pub verdict: Option<Verdict>,
}
