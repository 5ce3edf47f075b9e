//! What a sequence of events amounts to. Pure.
//!
//! Each row that the indexer keeps is the fold of the canonical events of its [`Key`], in the chain's order: going forward
//! that is [`Rows::apply`] of the row before and the new events, and going back is putting the row's [`Images`] in place.

mod apply;
mod event;
#[cfg(any(test, feature = "model"))]
pub mod model;
#[cfg(test)]
mod tests;
mod undo;

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::Amount;
use crate::abi::{JobSpec, Order};
use crate::order::{order_json, spec_json};
pub use event::{ChainEvent, Contracts, DecodeError, Event, OpenedJob, RawLog, Redeemed, Redemption};
pub use undo::{Images, Row};

/// Names one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// A row of `escrow_job`, by job id.
    Job(B256),
    /// A row of `escrow_account`.
    Account {
        /// The requester.
        owner: Address,
        /// Zero for the native coin.
        token: Address,
    },
    /// A row of `escrow_earned`.
    Earned {
        /// Who earned.
        node: Address,
        /// Zero for the native coin.
        token: Address,
    },
    /// A row of `registry_node`, by the operator's address.
    Node(Address),
    /// A row of `escrow_channel`.
    Channel {
        /// Who pays.
        requester: Address,
        /// Who is paid.
        node: Address,
        /// Zero for the native coin.
        token: Address,
    },
    /// A row of `escrow_session`.
    Session {
        /// Whose vouchers the key may sign.
        requester: Address,
        /// The key's address.
        key: Address,
        /// Zero for the native coin.
        token: Address,
    },
    /// A row of `escrow_settler`.
    Settler {
        /// Whose vouchers may be redeemed.
        node: Address,
        /// By whom.
        settler: Address,
    },
    /// A row of `escrow_fee`, by token.
    Fee(Address),
    /// The row of `chain_parameter`.
    Parameters,
}

/// Where a job stands in the escrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EscrowState {
    /// It was never opened and no result is in: only a notice of cancellation is known.
    None,
    /// Its money is locked and no result is in.
    Open,
    /// A result is in and its challenge window runs.
    Submitted,
    /// The requester objects to the result, and the arbiter's time runs.
    Disputed,
    /// The node was credited.
    Paid,
    /// The requester has the money back.
    Refunded,
    /// The arbiter has divided the price.
    Resolved,
}

impl EscrowState {
    const ALL: [Self; 7] =
        [Self::None, Self::Open, Self::Submitted, Self::Disputed, Self::Paid, Self::Refunded, Self::Resolved];

    /// Its name in SQL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Open => "open",
            Self::Submitted => "submitted",
            Self::Disputed => "disputed",
            Self::Paid => "paid",
            Self::Refunded => "refunded",
            Self::Resolved => "resolved",
        }
    }

    /// The state with this name in SQL.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether a result waits to be paid.
    fn is_waiting(self) -> bool {
        matches!(self, Self::Submitted | Self::Disputed)
    }
}

/// Block, transaction and time at which something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Number of the block.
    pub block: u64,
    /// The transaction.
    pub tx: B256,
    /// The block's timestamp.
    pub at: DateTime<Utc>,
}

/// A result that is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// Who did the work.
    pub node: Address,
    /// What it costs.
    pub price: Amount,
    /// Zero for the native coin.
    pub token: Address,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// End of the challenge window, and the transaction that opened it; nothing where the job was paid at once.
    pub window: Option<(DateTime<Utc>, B256)>,
}

/// An order as `openJob` brought it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The whole order.
    #[serde(with = "order_json")]
    pub order: Order,
    /// The spec, as far as it can be stored.
    #[serde(with = "spec_json")]
    pub spec: JobSpec,
    /// Whether `spec` is byte for byte what is on the chain.
    pub spec_valid: bool,
    /// When it was opened.
    pub when: Moment,
}

/// An objection to a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// What the requester locked on top of the price.
    pub bond: Amount,
    /// Until when the arbiter may decide.
    pub decide_by: DateTime<Utc>,
    /// The transaction.
    pub tx: B256,
}

/// What the arbiter decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// What the node was paid of the price, fee included.
    pub paid: Amount,
    /// What was taken of the node's stake, in wei.
    pub slashed: Amount,
    /// What the requester was given of that, in wei.
    pub compensation: Amount,
}

/// A row of `escrow_job`: a job that was opened, or a signed order that the chain has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowJob {
    /// Who pays.
    pub requester: Address,
    /// The order, if it was opened. The events about a signed order do not tell it.
    pub opened: Option<Opened>,
    /// Where it stands.
    pub state: EscrowState,
    /// From when on no result settles under the order, if the requester gave notice.
    pub cancel_at: Option<DateTime<Utc>>,
    /// From `submitted` on.
    pub result: Option<JobResult>,
    /// The latest objection.
    pub dispute: Option<Dispute>,
    /// The arbiter's decision, once `resolved`.
    pub resolution: Option<Resolution>,
    /// When it was paid, refunded or resolved.
    pub closed_when: Option<Moment>,
}

/// A row of `escrow_account`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EscrowAccount {
    /// What jobs can be opened with.
    pub free: Amount,
    /// What is on its way out.
    pub thawing: Amount,
    /// When `thawing` can be withdrawn; nothing while none is.
    pub thaw_end: Option<DateTime<Utc>>,
}

/// A row of `registry_node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryNode {
    /// Its name off-chain.
    pub node_id: B256,
    /// X25519 key to which data for it is encrypted.
    #[serde(with = "alloy::primitives::serde_hex")]
    pub public_key: Vec<u8>,
    /// Where stake and earnings go by default.
    pub payout: Address,
    /// Most jobs at once.
    pub capacity: u32,
    /// What it can do.
    pub operations: Vec<String>,
    /// Where more can be read.
    pub uri: String,
    /// Active stake in wei.
    pub stake: Amount,
    /// Stake on its way out, in wei.
    pub unbonding: Amount,
    /// When `unbonding` can leave; nothing while none is.
    pub unbond_end: Option<DateTime<Utc>>,
    /// Bonds and bonded jobs.
    pub record: BondRecord,
}

/// A node's bonds, and how its bonded jobs ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BondRecord {
    /// Bonds of its stake that are locked.
    pub bonds: u32,
    /// Jobs that were paid.
    pub paid: u32,
    /// Jobs that were disputed.
    pub disputed: u32,
    /// Jobs that, after a dispute, were not paid in full.
    pub lost: u32,
}

/// A row of `escrow_channel`: what lies between a requester and a node in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EscrowChannel {
    /// All that it ever paid, by vouchers and by signed orders settled alone.
    pub claimed: Amount,
    /// What is set aside for the node.
    pub reserved: Amount,
    /// Signed orders with a nonce up to this one are paid for by a redeemed voucher.
    pub covered_nonce: u64,
    /// How much of `reserved` is on its way back, at most all of it.
    pub thawing: Amount,
    /// When `thawing` can be released; nothing while none is.
    pub thaw_end: Option<DateTime<Utc>>,
}

/// A row of `escrow_session`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowSession {
    /// What the key may still spend.
    pub left: Amount,
    /// Up to and including when.
    pub expires_at: DateTime<Utc>,
}

/// The row of `chain_parameter`: what owners have set. Nothing where no event has told yet and the construction holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parameters {
    /// The escrow's fee in basis points.
    pub fee_bps: u16,
    /// Whether deposits and new jobs are stopped.
    pub escrow_paused: bool,
    /// Whether registrations are stopped.
    pub registry_paused: bool,
    /// The latest minimum stake in wei, and from when on it holds.
    pub min_stake: Option<(Amount, DateTime<Utc>)>,
    /// What holds until then; nothing where it is the one of the construction.
    pub min_stake_before: Option<Amount>,
}

/// An event that cannot follow what came before: events are missing.
#[derive(Debug, thiserror::Error)]
#[error(
    "{kind} (log {log_index} of block {block_number}, {block_hash}) cannot follow {before}; events are missing, \
         perhaps because the manifest's deployBlock is too late"
)]
pub struct FoldError {
    /// The event's name.
    pub kind: &'static str,
    /// Its block.
    pub block_number: u64,
    /// Its block.
    pub block_hash: B256,
    /// Its place there.
    pub log_index: u64,
    /// The state it met.
    pub before: String,
}

/// Rows by key. A key that is missing has no row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// `escrow_job`.
    pub jobs: BTreeMap<B256, EscrowJob>,
    /// `escrow_account`, by owner and token.
    pub accounts: BTreeMap<(Address, Address), EscrowAccount>,
    /// `escrow_earned`, by node and token.
    pub earned: BTreeMap<(Address, Address), Amount>,
    /// `registry_node`.
    pub nodes: BTreeMap<Address, RegistryNode>,
    /// `escrow_channel`, by requester, node and token.
    pub channels: BTreeMap<(Address, Address, Address), EscrowChannel>,
    /// `escrow_session`, by requester, key and token.
    pub sessions: BTreeMap<(Address, Address, Address), EscrowSession>,
    /// `escrow_settler`, by node and settler: whether it may redeem.
    pub settlers: BTreeMap<(Address, Address), bool>,
    /// `escrow_fee`, by token.
    pub fees: BTreeMap<Address, Amount>,
    /// `chain_parameter`.
    pub parameters: Option<Parameters>,
}

/// The latest second that RFC 3339 can write, 9999-12-31T23:59:59Z.
const LATEST_SECS: u64 = 253_402_300_799;

/// A time of the chain, in unix seconds. Times after the year 9999 count as its last second: nothing that is read by people
/// or kept in Postgres goes further.
#[must_use]
pub fn time_of(unix_secs: u64) -> DateTime<Utc> {
    let secs = i64::try_from(unix_secs.min(LATEST_SECS)).unwrap_or(i64::MAX);
    DateTime::from_timestamp(secs, 0).unwrap_or(DateTime::UNIX_EPOCH)
}
