//! The leases a node holds, and keeping them.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use market::job::Fence;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::{Heartbeat, Lease, LeaseRef};

/// Longest time between two heartbeats, with and without work.
const WORKING: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(20);
const SHORTEST: Duration = Duration::from_millis(500);

struct Entry {
    fence: Fence,
    expires_at: DateTime<Utc>,
    lost: CancellationToken,
    /// The lease that came while the job was held under an earlier fence.
    newer: Option<Lease>,
}

/// A lease to work under, and the token that is cancelled when it is lost.
pub type Taken = (Lease, CancellationToken);

/// The leases a node holds.
#[derive(Default)]
pub struct Held {
    leases: Mutex<HashMap<B256, Entry>>,
    changed: Notify,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<B256, Entry>> {
        // Nothing that can panic runs under the lock.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the lease `reference` from now on. Nothing if the node holds the job already.
    pub fn insert(&self, reference: LeaseRef, expires_at: DateTime<Utc>) -> Option<CancellationToken> {
        match self.lock().entry(reference.job_id) {
            Occupied(_) => None,
            Vacant(place) => {
                let lost = CancellationToken::new();
                place.insert(Entry { fence: reference.fence, expires_at, lost: lost.clone(), newer: None });
                self.changed.notify_one();
                Some(lost)
            }
        }
    }

    /// Holds `lease` from now on. Nothing if the node holds the job already: an earlier lease of it ended, and this is
    /// the next, under which the work goes on, or is taken up by who [`Self::release`]s the earlier one.
    pub fn take(&self, lease: Lease) -> Option<Taken> {
        if let Some(lost) = self.insert(lease.reference(), lease.lease_expires_at) {
            return Some((lease, lost));
        }
        if let Some(entry) = self.lock().get_mut(&lease.job_id).filter(|entry| lease.fence > entry.fence) {
            (entry.fence, entry.expires_at) = (lease.fence, lease.lease_expires_at);
            if entry.lost.is_cancelled() {
                entry.lost = CancellationToken::new();
            }
            entry.newer = Some(lease);
            self.changed.notify_one();
        }
        None
    }

    /// Lets go of the job. If it is not `done` and a newer lease of it has come meanwhile, keeps it and returns that.
    pub fn release(&self, job_id: B256, done: bool) -> Option<Taken> {
        let mut leases = self.lock();
        if !done
            && let Some(entry) = leases.get_mut(&job_id)
            && let Some(lease) = entry.newer.take()
        {
            return Some((lease, entry.lost.clone()));
        }
        leases.remove(&job_id);
        None
    }

    /// The fence under which the node holds the job.
    #[must_use]
    pub fn fence(&self, job_id: B256) -> Option<Fence> {
        self.lock().get(&job_id).map(|entry| entry.fence)
    }

    /// All leases, for a claim or a heartbeat.
    #[must_use]
    pub fn list(&self) -> Vec<LeaseRef> {
        self.lock().iter().map(|(job_id, entry)| LeaseRef { job_id: *job_id, fence: entry.fence }).collect()
    }

    /// Takes in what the API says of the leases. Returns those that were lost, with the reason.
    pub fn update(&self, heartbeat: &Heartbeat) -> Vec<(B256, String)> {
        let mut leases = self.lock();
        for renewed in &heartbeat.renewed {
            if let Some(entry) = leases.get_mut(&renewed.job_id).filter(|entry| entry.fence == renewed.fence) {
                entry.expires_at = renewed.lease_expires_at;
            }
        }
        let mut lost = Vec::new();
        for gone in &heartbeat.lost {
            if let Some(entry) = leases.get(&gone.job_id).filter(|entry| entry.fence == gone.fence) {
                entry.lost.cancel();
                lost.push((gone.job_id, gone.detail.clone()));
            }
        }
        lost
    }

    /// How long the next heartbeat may wait: a third of what is left of the shortest lease.
    #[must_use]
    pub fn next_heartbeat(&self, now: DateTime<Utc>) -> Duration {
        let leases = self.lock();
        let Some(first) = leases.values().map(|entry| entry.expires_at).min() else { return IDLE };
        let left = (first - now).to_std().unwrap_or(Duration::ZERO);
        (left / 3).clamp(SHORTEST, WORKING)
    }

    /// Waits until a lease is added.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Lost, Renewed};

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
    }

    fn lease(byte: u8, fence: i64) -> LeaseRef {
        LeaseRef { job_id: B256::repeat_byte(byte), fence: Fence(fence) }
    }

    #[test]
    fn heartbeats_come_well_before_the_first_lease_ends() {
        let held = Held::default();
        assert_eq!(held.next_heartbeat(at(0)), IDLE);
        held.insert(lease(1, 1), at(60)).unwrap();
        assert_eq!(held.next_heartbeat(at(0)), WORKING);
        held.insert(lease(2, 1), at(6)).unwrap();
        assert_eq!(held.next_heartbeat(at(0)), Duration::from_secs(2));
        assert_eq!(held.next_heartbeat(at(99)), SHORTEST);
        assert!(held.release(lease(2, 1).job_id, false).is_none());
        assert_eq!(held.list(), [lease(1, 1)]);
    }

    #[test]
    fn only_the_lease_that_was_lost_is_cancelled() {
        let held = Held::default();
        let (first, second) = (held.insert(lease(1, 4), at(60)).unwrap(), held.insert(lease(2, 4), at(60)).unwrap());
        let lost = |l: LeaseRef| Lost { job_id: l.job_id, fence: l.fence, detail: "stale".into() };
        let renewed = Renewed { job_id: lease(2, 4).job_id, fence: Fence(4), lease_expires_at: at(90) };
        let heartbeat = Heartbeat { renewed: vec![renewed], lost: vec![lost(lease(1, 4)), lost(lease(2, 3))] };
        assert_eq!(held.update(&heartbeat), [(lease(1, 4).job_id, "stale".to_owned())]);
        assert!(first.is_cancelled() && !second.is_cancelled());
    }

    fn whole(reference: LeaseRef) -> Lease {
        Lease {
            job_id: reference.job_id,
            fence: reference.fence,
            lease_expires_at: at(120),
            order: market::order::OrderJson::from(&market::abi::Order::default()),
            spec: (&market::abi::JobSpec::default()).into(),
            signature: None,
            assignment: None,
        }
    }

    #[test]
    fn a_newer_lease_of_a_job_under_way_is_not_dropped() {
        let held = Held::default();
        let first = held.insert(lease(1, 1), at(0)).unwrap();
        let lost = Lost { job_id: lease(1, 1).job_id, fence: Fence(1), detail: "expired".into() };
        held.update(&Heartbeat { renewed: vec![], lost: vec![lost] });
        assert!(first.is_cancelled());
        assert!(held.take(whole(lease(1, 1))).is_none(), "the same lease again brings nothing new");
        assert!(held.take(whole(lease(1, 2))).is_none(), "the node is still busy with the first");
        assert_eq!(held.list(), [lease(1, 2)]);
        let (next, token) = held.release(lease(1, 1).job_id, false).unwrap();
        assert_eq!(next.fence, Fence(2));
        assert!(!token.is_cancelled());
        assert!(held.release(next.job_id, false).is_none() && held.list().is_empty());
        held.take(whole(lease(1, 3))).unwrap();
        held.take(whole(lease(1, 4)));
        assert!(held.release(next.job_id, true).is_none(), "what is done is not done again");
    }
}
