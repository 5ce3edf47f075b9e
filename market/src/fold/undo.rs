//! Rows as they were, so that blocks can be taken back. Pure.
//!
//! Before a block that may still go first changes a row, the row's image is kept under the block's number. Taking blocks back
//! means to put the earliest image above the ancestor in each row's place, whatever lies between: nothing is folded again,
//! so it costs what the blocks changed and not what came before them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

use super::{EscrowAccount, EscrowChannel, EscrowJob, EscrowSession, Key, Parameters, RegistryNode, Rows};
use crate::Amount;

/// A row of any of the tables that events are folded into. In JSON exactly what it is in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// Of `escrow_job`.
    Job(Box<EscrowJob>),
    /// Of `escrow_account`.
    Account(EscrowAccount),
    /// Of `escrow_earned`.
    Earned(Amount),
    /// Of `registry_node`.
    Node(Box<RegistryNode>),
    /// Of `escrow_channel`.
    Channel(EscrowChannel),
    /// Of `escrow_session`.
    Session(EscrowSession),
    /// Of `escrow_settler`.
    Settler(bool),
    /// Of `escrow_fee`.
    Fee(Amount),
    /// Of `chain_parameter`.
    Parameters(Parameters),
}

impl Rows {
    /// The row of this key, if there is one.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Row> {
        match *key {
            Key::Job(job_id) => self.jobs.get(&job_id).cloned().map(Box::new).map(Row::Job),
            Key::Account { owner, token } => self.accounts.get(&(owner, token)).copied().map(Row::Account),
            Key::Earned { node, token } => self.earned.get(&(node, token)).copied().map(Row::Earned),
            Key::Node(node) => self.nodes.get(&node).cloned().map(Box::new).map(Row::Node),
            Key::Channel { requester, node, token } => {
                self.channels.get(&(requester, node, token)).copied().map(Row::Channel)
            }
            Key::Session { requester, key, token } => {
                self.sessions.get(&(requester, key, token)).copied().map(Row::Session)
            }
            Key::Settler { node, settler } => self.settlers.get(&(node, settler)).copied().map(Row::Settler),
            Key::Fee(token) => self.fees.get(&token).copied().map(Row::Fee),
            Key::Parameters => self.parameters.map(Row::Parameters),
        }
    }

    /// Puts `row` in the place of the row of `key`, or removes that. False, and nothing happens, if `row` is of another table
    /// than `key`.
    #[must_use]
    pub fn put(&mut self, key: Key, row: Option<Row>) -> bool {
        fn set<K: Ord, V>(rows: &mut BTreeMap<K, V>, key: K, row: V) {
            rows.insert(key, row);
        }
        match (key, row) {
            (key, None) => self.remove(&key),
            (Key::Job(job_id), Some(Row::Job(row))) => set(&mut self.jobs, job_id, *row),
            (Key::Account { owner, token }, Some(Row::Account(row))) => set(&mut self.accounts, (owner, token), row),
            (Key::Earned { node, token }, Some(Row::Earned(row))) => set(&mut self.earned, (node, token), row),
            (Key::Node(node), Some(Row::Node(row))) => set(&mut self.nodes, node, *row),
            (Key::Channel { requester, node, token }, Some(Row::Channel(row))) => {
                set(&mut self.channels, (requester, node, token), row);
            }
            (Key::Session { requester, key, token }, Some(Row::Session(row))) => {
                set(&mut self.sessions, (requester, key, token), row);
            }
            (Key::Settler { node, settler }, Some(Row::Settler(row))) => set(&mut self.settlers, (node, settler), row),
            (Key::Fee(token), Some(Row::Fee(row))) => set(&mut self.fees, token, row),
            (Key::Parameters, Some(Row::Parameters(row))) => self.parameters = Some(row),
            _ => return false,
        }
        true
    }

    fn remove(&mut self, key: &Key) {
        fn unset<K: Ord, V>(rows: &mut BTreeMap<K, V>, key: &K) {
            rows.remove(key);
        }
        match *key {
            Key::Job(job_id) => unset(&mut self.jobs, &job_id),
            Key::Account { owner, token } => unset(&mut self.accounts, &(owner, token)),
            Key::Earned { node, token } => unset(&mut self.earned, &(node, token)),
            Key::Node(node) => unset(&mut self.nodes, &node),
            Key::Channel { requester, node, token } => unset(&mut self.channels, &(requester, node, token)),
            Key::Session { requester, key, token } => unset(&mut self.sessions, &(requester, key, token)),
            Key::Settler { node, settler } => unset(&mut self.settlers, &(node, settler)),
            Key::Fee(token) => unset(&mut self.fees, &token),
            Key::Parameters => self.parameters = None,
        }
    }
}

/// What rows were before each block changed them, by number of the block; nothing where there was no row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Images(BTreeMap<(u64, Key), Option<Row>>);

impl Images {
    /// Keeps what the rows of `keys` are in `rows`, unless block `number` has changed them before.
    pub fn keep(&mut self, number: u64, keys: &[Key], rows: &Rows) {
        for key in keys {
            if let Entry::Vacant(image) = self.0.entry((number, *key)) {
                image.insert(rows.get(key));
            }
        }
    }

    /// Block, key and image, in the order of the blocks.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Key, Option<&Row>)> {
        self.0.iter().map(|((number, key), row)| (*number, key, row.as_ref()))
    }

    /// The rows as they were before any block above `ancestor`.
    #[must_use]
    pub fn before(&self, ancestor: u64) -> BTreeMap<Key, Option<Row>> {
        let mut earliest = BTreeMap::new();
        for ((_, key), row) in self.0.iter().filter(|((number, _), _)| *number > ancestor) {
            earliest.entry(*key).or_insert_with(|| row.clone());
        }
        earliest
    }
}
