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
pub use event::{ChainEvent, Contracts, DecodeError, Event, OpenedJob, RawLog, Redeemed, Redemption};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Zero for the native coin.
    pub token: Address,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// End of the challenge window, and the transaction that opened it; nothing where the job was paid at once.
    pub window: Option<(DateTime<Utc>, B256)>,
}

/// An order as `openJob` brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The whole order.
    pub order: Order,
    /// The spec, as far as it can be stored.
    pub spec: JobSpec,
    /// Whether `spec` is byte for byte what is on the chain.
    pub spec_valid: bool,
    /// When it was opened.
    pub when: Moment,
}

/// An objection to a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispute {
    /// What the requester locked on top of the price.
    pub bond: Amount,
    /// Until when the arbiter may decide.
    pub decide_by: DateTime<Utc>,
    /// The transaction.
    pub tx: B256,
}

/// What the arbiter decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    /// What the node was paid of the price, fee included.
    pub paid: Amount,
    /// What was taken of the node's stake, in wei.
    pub slashed: Amount,
    /// What the requester was given of that, in wei.
    pub compensation: Amount,
}

/// A row of `escrow_job`: a job that was opened, or a signed order that the chain has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Bonds and bonded jobs.
    pub record: BondRecord,
}

/// A node's bonds, and how its bonded jobs ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EscrowSession {
    /// What the key may still spend.
    pub left: Amount,
    /// Up to and including when.
    pub expires_at: DateTime<Utc>,
}

/// The row of `chain_parameter`: what owners have set. Nothing where no event has told yet and the construction holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

impl Rows {
    /// Whether there is a row of this key.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        match *key {
            Key::Job(job_id) => self.jobs.contains_key(&job_id),
            Key::Account { owner, token } => self.accounts.contains_key(&(owner, token)),
            Key::Earned { node, token } => self.earned.contains_key(&(node, token)),
            Key::Node(node) => self.nodes.contains_key(&node),
            Key::Channel { requester, node, token } => self.channels.contains_key(&(requester, node, token)),
            Key::Session { requester, key, token } => self.sessions.contains_key(&(requester, key, token)),
            Key::Settler { node, settler } => self.settlers.contains_key(&(node, settler)),
            Key::Fee(token) => self.fees.contains_key(&token),
            Key::Parameters => self.parameters.is_some(),
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
                fold_account(account, owner, &event.event);
            }
            Key::Earned { node, token } => {
                let earned = self.earned.entry((node, token)).or_default();
                match &event.event {
                    Event::JobPaid(e) => *earned = Amount(e.earned),
                    Event::JobResolved(e) => *earned = Amount(e.earned),
                    Event::VouchersRedeemed(e) => *earned = Amount(e.earned),
                    Event::EarnedWithdrawn(e) => *earned = Amount(e.earned),
                    _ => {}
                }
            }
            Key::Node(address) => {
                let node = fold_node(self.nodes.remove(&address), event)?;
                self.nodes.insert(address, node);
            }
            Key::Channel { requester, node, token } => {
                fold_channel(self.channels.entry((requester, node, token)).or_default(), requester, &event.event);
            }
            Key::Session { requester, key, token } => {
                if let Event::SessionUpdated(e) = &event.event {
                    let session = EscrowSession { left: Amount(e.left), expires_at: time_of(e.expiry) };
                    self.sessions.insert((requester, key, token), session);
                }
            }
            Key::Settler { node, settler } => {
                if let Event::SettlerSet(e) = &event.event {
                    self.settlers.insert((node, settler), e.allowed);
                }
            }
            Key::Fee(token) => match &event.event {
                Event::FeeTaken(e) => drop(self.fees.insert(token, Amount(e.fees))),
                Event::FeesWithdrawn(_) => drop(self.fees.insert(token, Amount::ZERO)),
                _ => {}
            },
            Key::Parameters => fold_parameters(self.parameters.get_or_insert_default(), event),
        }
        Ok(())
    }
}

fn fold_job(before: Option<EscrowJob>, event: &ChainEvent) -> Result<EscrowJob, FoldError> {
    let when = Moment { block: event.log.block_number, tx: event.log.tx_hash, at: event.log.mined_at };
    let unopened = |requester| EscrowJob {
        requester,
        opened: None,
        state: EscrowState::None,
        cancel_at: None,
        result: None,
        dispute: None,
        resolution: None,
        closed_when: None,
    };
    let refuse = |job: &EscrowJob| Err(out_of_order(event, format!("a job that is {}", job.state.name())));
    match &event.event {
        Event::JobOpened(opened) => {
            let mut job = before.unwrap_or_else(|| unopened(opened.order.requester));
            if job.state != EscrowState::None {
                return refuse(&job);
            }
            (job.state, job.cancel_at) = (EscrowState::Open, None);
            let OpenedJob { order, spec, spec_valid, .. } = opened.as_ref().clone();
            job.opened = Some(Opened { order, spec, spec_valid, when });
            Ok(job)
        }
        Event::JobCancelling(e) => {
            let mut job = before.unwrap_or_else(|| unopened(e.requester));
            if !matches!(job.state, EscrowState::None | EscrowState::Open) {
                return refuse(&job);
            }
            job.cancel_at = Some(time_of(e.cancelAt));
            Ok(job)
        }
        Event::ResultSubmitted(e) => {
            let mut job = before.unwrap_or_else(|| unopened(e.requester));
            if !matches!(job.state, EscrowState::None | EscrowState::Open) {
                return refuse(&job);
            }
            job.state = EscrowState::Submitted;
            let window = Some((time_of(e.finalizeAt), when.tx));
            let (node, price, token, result_hash) = (e.node, e.price.into(), e.token, e.resultHash);
            job.result = Some(JobResult { node, price, token, result_hash, window });
            Ok(job)
        }
        Event::JobPaid(e) => {
            let mut job = before.unwrap_or_else(|| unopened(e.requester));
            if job.closed_when.is_some() {
                return refuse(&job);
            }
            job.state = EscrowState::Paid;
            let window = job.result.and_then(|result| result.window);
            let (node, price, token, result_hash) = (e.node, e.price.into(), e.token, e.resultHash);
            job.result = Some(JobResult { node, price, token, result_hash, window });
            job.closed_when = Some(when);
            Ok(job)
        }
        _ => fold_job_that_is_known(before, event, when),
    }
}

/// The events that only a job can have of which the chain has told before.
fn fold_job_that_is_known(before: Option<EscrowJob>, event: &ChainEvent, when: Moment) -> Result<EscrowJob, FoldError> {
    let Some(mut job) = before else {
        return Err(out_of_order(event, "a job that is not known".to_owned()));
    };
    match &event.event {
        Event::JobRefunded(_) if job.state == EscrowState::Open || job.state.is_waiting() => {
            job.state = EscrowState::Refunded;
            job.closed_when = Some(when);
        }
        Event::JobDisputed(e) if job.state == EscrowState::Submitted => {
            job.state = EscrowState::Disputed;
            job.dispute = Some(Dispute { bond: e.bond.into(), decide_by: time_of(e.decideBy), tx: when.tx });
        }
        Event::JobResolved(e) if job.state == EscrowState::Disputed => {
            job.state = EscrowState::Resolved;
            let (slashed, compensation) = (Amount(e.slashed), Amount(e.compensation));
            job.resolution = Some(Resolution { paid: e.price.into(), slashed, compensation });
            job.closed_when = Some(when);
        }
        _ => return Err(out_of_order(event, format!("a job that is {}", job.state.name()))),
    }
    Ok(job)
}

fn fold_account(account: &mut EscrowAccount, owner: Address, event: &Event) {
    let free = |account: &mut EscrowAccount, free: U256| account.free = Amount(free);
    // The contract's time of a thaw stays behind when nothing thaws any more; here it goes.
    let both = |account: &mut EscrowAccount, free: U256, thawing: U256| {
        let thaw_end = if thawing.is_zero() { None } else { account.thaw_end };
        *account = EscrowAccount { free: Amount(free), thawing: Amount(thawing), thaw_end };
    };
    match event {
        Event::Deposited(e) => free(account, e.free),
        Event::JobOpened(e) => free(account, e.free),
        Event::ResultSubmitted(e) => free(account, e.free),
        Event::JobPaid(e) => free(account, e.free),
        Event::JobRefunded(e) => free(account, e.free),
        Event::JobResolved(e) => free(account, e.free),
        Event::ReservationChanged(e) => free(account, e.free),
        Event::JobDisputed(e) => both(account, e.free, e.thawing),
        Event::ChannelUpdated(e) => both(account, e.free, e.thawing),
        Event::Withdrawn(e) => both(account, e.free, e.thawing),
        Event::Thawing(e) => {
            *account =
                EscrowAccount { free: Amount(e.free), thawing: Amount(e.thawing), thaw_end: Some(time_of(e.thawEnd)) };
        }
        Event::VouchersRedeemed(e) => {
            for redemption in e.redemptions.iter().filter(|r| r.requester == owner && r.has_drawn()) {
                both(account, redemption.free, redemption.thawing);
            }
        }
        _ => {}
    }
}

fn fold_channel(channel: &mut EscrowChannel, requester: Address, event: &Event) {
    match event {
        Event::ChannelUpdated(e) => (channel.claimed, channel.reserved) = (Amount(e.claimed), Amount(e.reserved)),
        Event::VouchersRedeemed(e) => {
            for redemption in e.redemptions.iter().filter(|r| r.requester == requester) {
                channel.claimed = Amount(redemption.claimed);
                channel.reserved = Amount(redemption.reserved);
                channel.covered_nonce = redemption.covered_nonce;
            }
        }
        Event::ReservationChanged(e) => {
            channel.reserved = Amount(e.reserved);
            channel.thawing = Amount(e.thawing);
            channel.thaw_end = if e.thawing.is_zero() { None } else { Some(time_of(e.thawEnd)) };
        }
        _ => {}
    }
    // The node may have drawn on what was on its way back.
    channel.thawing = channel.thawing.min(channel.reserved);
    if channel.thawing == Amount::ZERO {
        channel.thaw_end = None;
    }
}

fn fold_parameters(parameters: &mut Parameters, event: &ChainEvent) {
    match &event.event {
        Event::FeeBpsSet(e) => parameters.fee_bps = e.feeBps,
        Event::EscrowPausedSet(e) => parameters.escrow_paused = e.paused,
        Event::RegistryPausedSet(e) => parameters.registry_paused = e.paused,
        Event::MinStakeSet(e) => {
            if let Some((amount, _)) = parameters.min_stake.filter(|(_, since)| *since <= event.log.mined_at) {
                parameters.min_stake_before = Some(amount);
            }
            parameters.min_stake = Some((Amount(e.minStake), time_of(e.since)));
        }
        _ => {}
    }
}

fn fold_node(before: Option<RegistryNode>, event: &ChainEvent) -> Result<RegistryNode, FoldError> {
    match (&event.event, before) {
        (Event::NodeUpdated(e), before) => {
            let (stake, unbonding, unbond_end, record) = before
                .map_or((Amount::ZERO, Amount::ZERO, None, BondRecord::default()), |node| {
                    (node.stake, node.unbonding, node.unbond_end, node.record)
                });
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
                record,
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
        (Event::Slashed(e), Some(mut node)) => {
            (node.stake, node.unbonding) = (Amount(e.stake), Amount(e.unbonding));
            if e.unbonding.is_zero() {
                node.unbond_end = None;
            }
            Ok(node)
        }
        (Event::BondLocked(e), Some(mut node)) => {
            node.record.bonds = e.bonds;
            Ok(node)
        }
        (Event::BondReleased(e), Some(mut node)) => {
            node.record = BondRecord { bonds: e.bonds, paid: e.paid, disputed: e.disputed, lost: e.lost };
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
