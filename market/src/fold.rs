//! What a sequence of events amounts to. Pure.
//!
//! Each row that the indexer keeps is the fold of the canonical events of its [`Key`], in the chain's order. Going forward
//! that is the row before and the new events; after a reorg it is the fold of the events that remain, from nothing. Both
//! are [`Rows::apply`].

mod event;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::{Address, B256, U256};
use chrono::{DateTime, Utc};

use crate::Amount;
use crate::abi::{JobSpec, Order};
pub use event::{ChainEvent, Contracts, DecodeError, Event, OpenedJob, RawLog};

/// Names one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
}

/// Where a job stands in the escrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscrowState {
    /// Its money is locked and no result is in.
    Open,
    /// A result is in and its challenge window runs.
    Submitted,
    /// The node was credited.
    Paid,
    /// The requester has the money back.
    Refunded,
}

impl EscrowState {
    /// Its name in SQL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Submitted => "submitted",
            Self::Paid => "paid",
            Self::Refunded => "refunded",
        }
    }

    /// The state with this name in SQL.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Open, Self::Submitted, Self::Paid, Self::Refunded].into_iter().find(|state| state.name() == name)
    }
}

/// Block, transaction and time at which something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Number of the block.
    pub block: u64,
    /// The transaction.
    pub tx: B256,
    /// The block's timestamp.
    pub at: DateTime<Utc>,
}

/// A result that is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobResult {
    /// Who did the work.
    pub node: Address,
    /// What it costs.
    pub price: Amount,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// End of the challenge window, and the transaction that opened it; nothing where the job was paid at once.
    pub window: Option<(DateTime<Utc>, B256)>,
}

/// A row of `escrow_job`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EscrowJob {
    /// The order, as opened.
    pub order: Order,
    /// The spec, as far as it can be stored.
    pub spec: JobSpec,
    /// Whether `spec` is byte for byte what is on the chain.
    pub spec_valid: bool,
    /// When it was opened.
    pub opened_when: Moment,
    /// Where it stands.
    pub state: EscrowState,
    /// From `submitted` on.
    pub result: Option<JobResult>,
    /// When it was paid or refunded.
    pub closed_when: Option<Moment>,
}

/// A row of `escrow_account`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EscrowAccount {
    /// What jobs can be opened with.
    pub free: Amount,
    /// What is on its way out.
    pub thawing: Amount,
    /// When `thawing` can be withdrawn; nothing while none is.
    pub thaw_end: Option<DateTime<Utc>>,
}

/// A row of `registry_node`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryNode {
    /// Its name off-chain.
    pub node_id: B256,
    /// X25519 key to which data for it is encrypted.
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

impl Rows {
    /// Whether there is a row of this key.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        match *key {
            Key::Job(job_id) => self.jobs.contains_key(&job_id),
            Key::Account { owner, token } => self.accounts.contains_key(&(owner, token)),
            Key::Earned { node, token } => self.earned.contains_key(&(node, token)),
            Key::Node(node) => self.nodes.contains_key(&node),
        }
    }

    /// Changes the rows of all of the event's keys.
    pub fn apply(&mut self, event: &ChainEvent) -> Result<(), FoldError> {
        event.event.keys().into_iter().try_for_each(|key| self.apply_to(key, event))
    }

    /// Changes only those rows of the event that are among `keys`.
    pub fn apply_within(&mut self, keys: &BTreeSet<Key>, event: &ChainEvent) -> Result<(), FoldError> {
        event.event.keys().into_iter().filter(|key| keys.contains(key)).try_for_each(|key| self.apply_to(key, event))
    }

    fn apply_to(&mut self, key: Key, event: &ChainEvent) -> Result<(), FoldError> {
        match key {
            Key::Job(job_id) => {
                let job = fold_job(self.jobs.remove(&job_id), event)?;
                self.jobs.insert(job_id, job);
            }
            Key::Account { owner, token } => {
                let account = self.accounts.entry((owner, token)).or_default();
                fold_account(account, &event.event);
            }
            Key::Earned { node, token } => {
                let earned = self.earned.entry((node, token)).or_default();
                match &event.event {
                    Event::JobPaid(e) => *earned = Amount(e.earned),
                    Event::EarnedWithdrawn(e) => *earned = Amount(e.earned),
                    _ => {}
                }
            }
            Key::Node(address) => {
                let node = fold_node(self.nodes.remove(&address), event)?;
                self.nodes.insert(address, node);
            }
        }
        Ok(())
    }
}

fn fold_job(before: Option<EscrowJob>, event: &ChainEvent) -> Result<EscrowJob, FoldError> {
    let when = Moment { block: event.log.block_number, tx: event.log.tx_hash, at: event.log.mined_at };
    match (&event.event, before) {
        (Event::JobOpened(opened), None) => Ok(EscrowJob {
            order: opened.order.clone(),
            spec: opened.spec.clone(),
            spec_valid: opened.spec_valid,
            opened_when: when,
            state: EscrowState::Open,
            result: None,
            closed_when: None,
        }),
        (Event::ResultSubmitted(e), Some(mut job)) if job.state == EscrowState::Open => {
            job.state = EscrowState::Submitted;
            job.result = Some(JobResult {
                node: e.node,
                price: e.price.into(),
                result_hash: e.resultHash,
                window: Some((time_of(e.finalizeAt), when.tx)),
            });
            Ok(job)
        }
        (Event::JobPaid(e), Some(mut job)) if matches!(job.state, EscrowState::Open | EscrowState::Submitted) => {
            job.state = EscrowState::Paid;
            let window = job.result.and_then(|result| result.window);
            job.result = Some(JobResult { node: e.node, price: e.price.into(), result_hash: e.resultHash, window });
            job.closed_when = Some(when);
            Ok(job)
        }
        (Event::JobRefunded(_), Some(mut job)) if job.state == EscrowState::Open => {
            job.state = EscrowState::Refunded;
            job.closed_when = Some(when);
            Ok(job)
        }
        (_, before) => Err(out_of_order(
            event,
            before
                .map_or("a job that was never opened".to_owned(), |job| format!("a job that is {}", job.state.name())),
        )),
    }
}

fn fold_account(account: &mut EscrowAccount, event: &Event) {
    let free = |account: &mut EscrowAccount, free: U256| account.free = Amount(free);
    match event {
        Event::Deposited(e) => free(account, e.free),
        Event::JobOpened(e) => free(account, e.free),
        Event::ResultSubmitted(e) => free(account, e.free),
        Event::JobPaid(e) => free(account, e.free),
        Event::JobRefunded(e) => free(account, e.free),
        Event::Thawing(e) => {
            *account =
                EscrowAccount { free: Amount(e.free), thawing: Amount(e.thawing), thaw_end: Some(time_of(e.thawEnd)) };
        }
        Event::Withdrawn(e) => {
            let thaw_end = if e.thawing.is_zero() { None } else { account.thaw_end };
            *account = EscrowAccount { free: Amount(e.free), thawing: Amount(e.thawing), thaw_end };
        }
        _ => {}
    }
}

fn fold_node(before: Option<RegistryNode>, event: &ChainEvent) -> Result<RegistryNode, FoldError> {
    match (&event.event, before) {
        (Event::NodeUpdated(e), before) => {
            let (stake, unbonding, unbond_end) =
                before.map_or((Amount::ZERO, Amount::ZERO, None), |node| (node.stake, node.unbonding, node.unbond_end));
            Ok(RegistryNode {
                node_id: e.nodeId,
                public_key: e.publicKey.to_vec(),
                payout: e.payout,
                capacity: e.capacity,
                operations: e.operations.clone(),
                uri: e.uri.clone(),
                stake,
                unbonding,
                unbond_end,
            })
        }
        (Event::Staked(e), Some(mut node)) => {
            node.stake = Amount(e.stake);
            Ok(node)
        }
        (Event::Unbonding(e), Some(mut node)) => {
            node.stake = Amount(e.stake);
            node.unbonding = Amount(e.unbonding);
            node.unbond_end = Some(time_of(e.unbondEnd));
            Ok(node)
        }
        (Event::Unbonded(e), Some(mut node)) => {
            node.stake = Amount(e.stake);
            node.unbonding = Amount::ZERO;
            node.unbond_end = None;
            Ok(node)
        }
        (_, _) => Err(out_of_order(event, "a node that never registered".to_owned())),
    }
}

fn out_of_order(event: &ChainEvent, before: String) -> FoldError {
    FoldError {
        kind: event.event.kind(),
        block_number: event.log.block_number,
        block_hash: event.log.block_hash,
        log_index: event.log.log_index,
        before,
    }
}
