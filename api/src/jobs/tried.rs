//! Which waiting jobs this process is about to lease, so that claims at the same moment look at different ones instead of at the
//! same row. Only a hint: Postgres decides, and other processes know nothing of it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use alloy::primitives::B256;
use tokio::time::Instant;

/// How long a leased job is passed over: until Redis suggests it no more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);

/// Jobs that claims of this process have picked.
#[derive(Debug, Default)]
pub struct Tried(Mutex<HashMap<B256, Option<Instant>>>);

/// Jobs picked by one claim; the others can be picked again when it is dropped.
pub(super) struct Picked<'a> {
    tried: &'a Tried,
    ids: Vec<B256>,
    new: Vec<B256>,
}

impl Tried {
    /// The first `limit` of `ids` that no other claim has picked; if others have them all, any.
    pub(super) fn pick(&self, ids: &[B256], limit: usize) -> Picked<'_> {
        let mut tried = self.lock();
        let now = Instant::now();
        tried.retain(|_, until| until.is_none_or(|until| until > now));
        let new: Vec<B256> = ids.iter().filter(|id| !tried.contains_key(*id)).take(limit).copied().collect();
        tried.extend(new.iter().map(|id| (*id, None)));
        drop(tried);
        let ids = if new.is_empty() { ids.iter().take(limit).copied().collect() } else { new.clone() };
        Picked { tried: self, ids, new }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<B256, Option<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Picked<'_> {
    pub(super) fn ids(&self) -> &[B256] {
        &self.ids
    }

    /// `ids` are leased now.
    pub(super) fn leased(&mut self, ids: impl Iterator<Item = B256>) {
        let until = Some(Instant::now() + FORGOTTEN_AFTER);
        let mut tried = self.tried.lock();
        for id in ids {
            self.new.retain(|new| *new != id);
            tried.insert(id, until);
        }
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        let mut tried = self.tried.lock();
        for id in &self.new {
            tried.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_claims_pick_different_jobs_and_give_back_what_they_do_not_take() {
        let tried = Tried::default();
        let ids: Vec<B256> = (1..=4).map(B256::repeat_byte).collect();
        let mut first = tried.pick(&ids, 2);
        let second = tried.pick(&ids, 2);
        assert_eq!((first.ids(), second.ids()), (&ids[..2], &ids[2..]));
        assert_eq!(tried.pick(&ids, 1).ids(), &ids[..1], "when all are taken any may be tried");
        first.leased(ids[..1].iter().copied());
        drop(first);
        assert_eq!(tried.pick(&ids, 4).ids(), &ids[1..2]);
        drop(second);
        assert_eq!(tried.pick(&ids, 4).ids(), &ids[1..]);
    }
}
