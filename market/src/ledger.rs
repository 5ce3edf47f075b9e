//! Double-entry bookkeeping: which movements of money an event amounts to. Pure.
//!
//! Every balance of the contracts is an account, and the world outside is one too. An event changes balances; what it
//! changes them by are its entries, and they sum to zero in each token. Where an event tells both sides, such as a voucher
//! moving money from a requester to a node, that is checked and not assumed: what is left over goes to [`Account::Suspense`],
//! which an audit finds. A job's own balance is what the events about it took and gave, so a job that ended must have none.

#[cfg(test)]
mod tests;

use alloy::primitives::{Address, B256, I256, U256};

use crate::Amount;
use crate::fold::{Event, Key, Rows};

/// One side of a movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// Everything outside of the contracts: wallets, and what was burnt.
    World,
    /// A requester's free balance.
    Free(Address),
    /// A requester's balance on its way out.
    Thawing(Address),
    /// What a requester has set aside for a node.
    Reserved {
        /// Whose money it is.
        requester: Address,
        /// Who may draw on it.
        node: Address,
    },
    /// What is locked for a job.
    Job(B256),
    /// What a node has earned and not withdrawn.
    Earned(Address),
    /// Fees that were taken and not withdrawn.
    Fee,
    /// A node's active stake.
    Stake(Address),
    /// A node's stake on its way out.
    Unbonding(Address),
    /// On its way from the registry to the escrow, within one transaction.
    Transit,
    /// What an event does not account for.
    Suspense,
}

impl Account {
    /// Its name in SQL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::Free(_) => "free",
            Self::Thawing(_) => "thawing",
            Self::Reserved { .. } => "reserved",
            Self::Job(_) => "job",
            Self::Earned(_) => "earned",
            Self::Fee => "fee",
            Self::Stake(_) => "stake",
            Self::Unbonding(_) => "unbonding",
            Self::Transit => "transit",
            Self::Suspense => "suspense",
        }
    }

    /// The requester or node whose account it is.
    #[must_use]
    pub fn owner(self) -> Option<Address> {
        match self {
            Self::Free(owner) | Self::Thawing(owner) | Self::Earned(owner) => Some(owner),
            Self::Stake(node) | Self::Unbonding(node) => Some(node),
            Self::Reserved { requester, .. } => Some(requester),
            _ => None,
        }
    }
}

/// A movement into (positive) or out of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which account.
    pub account: Account,
    /// Zero for the native coin.
    pub token: Address,
    /// In the token's smallest unit; never zero.
    pub amount: I256,
}

/// Balances of the accounts behind some rows, to be taken before and after an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balances(Vec<(Account, Address, Amount)>);

impl Balances {
    /// Those that `rows` has under `keys`, of which none may come twice.
    #[must_use]
    pub fn of(rows: &Rows, keys: &[Key]) -> Self {
        let mut balances = Vec::with_capacity(2 * keys.len());
        let mut put = |account, token, amount| balances.push((account, token, amount));
        for key in keys {
            match *key {
                Key::Account { owner, token } => {
                    let account = rows.accounts.get(&(owner, token)).copied().unwrap_or_default();
                    put(Account::Free(owner), token, account.free);
                    put(Account::Thawing(owner), token, account.thawing);
                }
                Key::Channel { requester, node, token } => {
                    let channel = rows.channels.get(&(requester, node, token)).copied().unwrap_or_default();
                    put(Account::Reserved { requester, node }, token, channel.reserved);
                }
                Key::Earned { node, token } => {
                    put(Account::Earned(node), token, rows.earned.get(&(node, token)).copied().unwrap_or_default());
                }
                Key::Fee(token) => put(Account::Fee, token, rows.fees.get(&token).copied().unwrap_or_default()),
                Key::Node(node) => {
                    let (stake, unbonding) =
                        rows.nodes.get(&node).map_or_else(Default::default, |row| (row.stake, row.unbonding));
                    put(Account::Stake(node), Address::ZERO, stake);
                    put(Account::Unbonding(node), Address::ZERO, unbonding);
                }
                Key::Job(_) | Key::Session { .. } | Key::Settler { .. } | Key::Parameters => {}
            }
        }
        Self(balances)
    }
}

/// The entries of `event`, which changed the balances of its keys from `before` to `after`: both are of the same keys.
#[must_use]
pub fn entries(event: &Event, before: &Balances, after: &Balances) -> Vec<Entry> {
    let mut moves = Vec::with_capacity(after.0.len() + 2);
    for ((account, token, balance), (_, _, old)) in after.0.iter().zip(&before.0) {
        add(&mut moves, *account, *token, signed(balance.0).wrapping_sub(signed(old.0)));
    }
    outside(&mut moves, event);
    let rest = match event.job_id() {
        Some(job_id) => Account::Job(job_id),
        None => Account::Suspense,
    };
    // One token, seldom two.
    let mut totals: Vec<(Address, I256)> = Vec::with_capacity(1);
    for entry in &moves {
        match totals.iter_mut().find(|(token, _)| *token == entry.token) {
            Some((_, total)) => *total = total.wrapping_add(entry.amount),
            None => totals.push((entry.token, entry.amount)),
        }
    }
    for (token, total) in totals {
        add(&mut moves, rest, token, total.wrapping_neg());
    }
    moves.sort_unstable_by_key(|entry| (entry.account, entry.token));
    moves.dedup_by(|next, entry| {
        let same = (next.account, next.token) == (entry.account, entry.token);
        if same {
            entry.amount = entry.amount.wrapping_add(next.amount);
        }
        same
    });
    moves.retain(|entry| !entry.amount.is_zero());
    moves
}

/// What crosses the contracts' border, or goes from one to the other, by the event's own word.
fn outside(moves: &mut Vec<Entry>, event: &Event) {
    let native = Address::ZERO;
    let mut world = |token, amount: I256| add(moves, Account::World, token, amount);
    match event {
        Event::Deposited(e) => world(e.token, signed(e.amount).wrapping_neg()),
        Event::Withdrawn(e) => world(e.token, signed(e.amount)),
        Event::EarnedWithdrawn(e) => world(e.token, signed(e.amount)),
        Event::FeesWithdrawn(e) => world(e.token, signed(e.amount)),
        Event::Staked(e) => world(native, signed(e.amount).wrapping_neg()),
        Event::Unbonded(e) => world(native, signed(e.amount)),
        Event::Slashed(e) => {
            world(native, signed(e.amount).wrapping_sub(signed(e.compensation)));
            add(moves, Account::Transit, native, signed(e.compensation));
        }
        Event::JobResolved(e) => add(moves, Account::Transit, native, signed(e.compensation).wrapping_neg()),
        _ => {}
    }
}

fn add(moves: &mut Vec<Entry>, account: Account, token: Address, amount: I256) {
    if !amount.is_zero() {
        moves.push(Entry { account, token, amount });
    }
}

/// Balances beyond 2^255 - 1 do not occur: the contracts keep at most 128 bits of what was deposited in one, and their
/// sums are bounded by how often that can be done.
fn signed(amount: U256) -> I256 {
    I256::from_raw(amount)
}
