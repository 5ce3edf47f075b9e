//! What a step changed, as the outbox tells it.

use std::collections::{BTreeSet, HashMap, HashSet};

use alloy::primitives::{Address, B256, Bytes};

use super::covered;
use crate::db::outbox::Entity;
use crate::fold::{ChainEvent, Contracts, Event, Key, RawLog};

/// What was undone, then what happened, in the chain's order. What a transaction did that was mined again elsewhere is neither:
/// it moved.
#[derive(Default)]
pub(super) struct Changes {
    told: Vec<(Entity, &'static str)>,
    /// How many of these, from the first, are of what was taken back: of rows that were, and with them of what vouchers paid.
    rows: usize,
    taken_back: usize,
    /// Logs of blocks that were taken back and have not come again.
    gone: HashMap<Fingerprint, Vec<RawLog>>,
}

/// What stays of a log when its transaction is mined in another block.
type Fingerprint = (B256, Address, Vec<B256>, Bytes);

fn fingerprint(log: &RawLog) -> Fingerprint {
    (log.tx_hash, log.contract, log.topics.clone(), log.data.clone())
}

impl Changes {
    /// These logs are taken back and may come again.
    pub fn expect(&mut self, gone: Vec<RawLog>) {
        for log in gone {
            self.gone.entry(fingerprint(&log)).or_default().push(log);
        }
    }

    /// The rows of `keys` are as they were before, and with them what is known of the jobs that `covered` tells of.
    pub fn undone(&mut self, keys: &BTreeSet<Key>, covered: Vec<(Entity, &'static str)>) {
        self.told.extend(keys.iter().filter_map(entity).map(|entity| (entity, reorged(entity))));
        self.rows = self.told.len();
        self.told.extend(covered);
        self.taken_back = self.told.len();
    }

    pub fn tell(&mut self, words: Vec<(Entity, &'static str)>) {
        self.told.extend(words);
    }

    pub fn told(&self) -> &[(Entity, &'static str)] {
        &self.told
    }

    pub fn happened(&mut self, event: &ChainEvent) {
        if self.has_come_again(&event.log) {
            return;
        }
        self.told.push(match &event.event {
            Event::JobOpened(e) => (Entity::Job(e.job_id), "job.opened"),
            Event::ResultSubmitted(e) => (Entity::Job(e.jobId), "job.submitted"),
            Event::JobPaid(e) => (Entity::Job(e.jobId), "job.paid"),
            Event::JobRefunded(e) => (Entity::Job(e.jobId), "job.refunded"),
            Event::NodeUpdated(e) => (Entity::Node(e.node), "node.updated"),
            Event::Staked(e) => (Entity::Node(e.node), "node.staked"),
            Event::Unbonding(e) => (Entity::Node(e.node), "node.unbonding"),
            Event::Unbonded(e) => (Entity::Node(e.node), "node.unbonded"),
            Event::JobCancelling(e) => (Entity::Job(e.jobId), "job.cancelling"),
            Event::JobDisputed(e) => (Entity::Job(e.jobId), "job.disputed"),
            Event::JobResolved(e) => (Entity::Job(e.jobId), "job.resolved"),
            Event::Slashed(e) => (Entity::Node(e.node), "node.slashed"),
            _ => return,
        });
    }

    fn has_come_again(&mut self, log: &RawLog) -> bool {
        !self.gone.is_empty() && self.gone.get_mut(&fingerprint(log)).is_some_and(|left| left.pop().is_some())
    }

    /// Says of those that lost nothing that they moved. To be called after the step's last event.
    pub fn tell_moves(&mut self, contracts: &Contracts) -> Result<(), sqlx::Error> {
        let all_came_again = self.gone.values().all(Vec::is_empty);
        let mut lost = HashSet::new();
        for log in std::mem::take(&mut self.gone).into_values().flatten() {
            let event = ChainEvent::decode(log, contracts).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            lost.extend(event.event.keys().iter().filter_map(entity));
        }
        let (rows, rest) = self.told.split_at_mut(self.rows);
        for (entity, word) in rows.iter_mut().filter(|(entity, _)| !lost.contains(entity)) {
            *word = moved(*entity);
        }
        if all_came_again {
            let covered = &mut rest[..self.taken_back - self.rows];
            covered.iter_mut().for_each(|(entity, word)| *word = moved(*entity));
            let again: HashSet<Entity> = covered.iter().map(|(entity, _)| *entity).collect();
            let mut index = 0;
            self.told.retain(|(entity, word)| {
                index += 1;
                index <= self.taken_back || !covered::WORDS.contains(word) || !again.contains(entity)
            });
        }
        Ok(())
    }

    /// Keeps the last word about each: nobody has to hear of every turn that things took long ago. That a node may have another id
    /// is kept too, as its jobs bear it.
    pub fn keep_last(&mut self) {
        let mut told = HashSet::new();
        self.told.reverse();
        self.told.retain(|(entity, word)| told.insert(*entity) || *word == "node.updated");
        self.told.reverse();
    }
}

/// What Redis holds something of.
fn entity(key: &Key) -> Option<Entity> {
    match key {
        Key::Job(job_id) => Some(Entity::Job(*job_id)),
        Key::Node(node) => Some(Entity::Node(*node)),
        Key::Account { .. }
        | Key::Earned { .. }
        | Key::Channel { .. }
        | Key::Session { .. }
        | Key::Settler { .. }
        | Key::Fee(_)
        | Key::Parameters => None,
    }
}

fn reorged(entity: Entity) -> &'static str {
    match entity {
        Entity::Job(_) => "job.reorged",
        Entity::Node(_) => "node.reorged",
    }
}

fn moved(entity: Entity) -> &'static str {
    match entity {
        Entity::Job(_) => "job.moved",
        Entity::Node(_) => "node.moved",
    }
}
