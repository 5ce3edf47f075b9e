//! A job's states and how they may change. Pure: no I/O, and the time is an argument.
//!
//! Two things are kept apart. [`Work`] is what the API decides: who holds the job, under which fence. [`JobStatus`] is what
//! people see: a view (`job_status` in SQL) over the rows of all writers, so that it follows from them and is stored nowhere.

use std::{fmt, str::FromStr};

use alloy::primitives::Address;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// Number of a lease of one job: grows with each, so that whoever held an earlier one can be told from who holds it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub i64);

/// How often a job is tried before it counts as failed: attempts of the node that the order names, or different nodes where
/// it leaves that open.
pub const MAX_ATTEMPTS: i32 = 5;

/// Longest time that one lease lasts, however often it is renewed.
pub const LONGEST_LEASE: TimeDelta = TimeDelta::hours(24);

/// Whose failures end a job. No single node can end one that others could do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tries {
    /// The order names its node: what that says of the job, and how often it tried, decides.
    Named,
    /// Any node may do it.
    Open {
        /// Different nodes, other than the holder of the lease, that had the job in vain.
        others: i32,
    },
}

/// Where the work on a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkState {
    /// Waits for a node, from `not_before` on.
    Queued {
        /// End of the pause after a failed attempt.
        not_before: Option<DateTime<Utc>>,
    },
    /// A node has it until `expires_at`.
    Leased {
        /// Who.
        node: Address,
        /// Since when.
        since: DateTime<Utc>,
        /// When it goes back to the queue unless renewed or completed.
        expires_at: DateTime<Utc>,
    },
    /// Done; its payment is due.
    Completed {
        /// By whom.
        node: Address,
    },
    /// Given up after [`MAX_ATTEMPTS`], or found impossible by the node that the order names.
    Failed,
}

/// The work on one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Fence of the latest lease; zero before the first.
    pub fence: Fence,
    /// Leases that ended without completion, since the job was last redriven.
    pub attempts: i32,
    /// Leases up to this one count no more: the requester had the job tried again.
    pub forgiven: Fence,
    /// Where it stands.
    pub state: WorkState,
}

/// Why a change of [`Work`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// Someone holds the lease, or the pause after a failure is not over.
    #[error("the job cannot be claimed now")]
    NotClaimable,
    /// The job ended.
    #[error("the job is already {0}")]
    Ended(&'static str),
    /// Another node holds the lease.
    #[error("the job is held by another node")]
    NotHolder,
    /// No one holds it.
    #[error("the job is not held by any node")]
    NotLeased,
    /// It has not failed.
    #[error("the job has not failed")]
    NotFailed,
    /// The fence is of an earlier lease.
    #[error("fence {given} is stale: the current one is {current}")]
    StaleFence {
        /// What the node sent.
        given: i64,
        /// What holds.
        current: i64,
    },
    /// The lease ended before the call.
    #[error("the lease expired at {0}")]
    LeaseExpired(DateTime<Utc>),
}

impl Default for Work {
    fn default() -> Self {
        Self { fence: Fence(0), attempts: 0, forgiven: Fence(0), state: WorkState::Queued { not_before: None } }
    }
}

impl Work {
    /// `node` takes the job for `lease`. A lease that has run out is taken back with [`Work::expire`] first.
    pub fn claim(&self, node: Address, now: DateTime<Utc>, lease: TimeDelta) -> Result<Self, WorkError> {
        match self.state {
            WorkState::Queued { not_before } if not_before.is_none_or(|from| from <= now) => Ok(Self {
                fence: Fence(self.fence.0 + 1),
                state: WorkState::Leased { node, since: now, expires_at: now + lease },
                ..self.clone()
            }),
            WorkState::Queued { .. } | WorkState::Leased { .. } => Err(WorkError::NotClaimable),
            WorkState::Completed { .. } => Err(WorkError::Ended("completed")),
            WorkState::Failed => Err(WorkError::Ended("failed")),
        }
    }

    /// The holder keeps the job for another `lease` from `now`, at most to [`LONGEST_LEASE`] after it took it.
    pub fn renew(&self, node: Address, fence: Fence, now: DateTime<Utc>, lease: TimeDelta) -> Result<Self, WorkError> {
        let since = self.held_by(node, fence, now)?;
        let expires_at = (now + lease).min(since + LONGEST_LEASE);
        Ok(Self { state: WorkState::Leased { node, since, expires_at }, ..self.clone() })
    }

    /// The holder is done.
    pub fn complete(&self, node: Address, fence: Fence, now: DateTime<Utc>) -> Result<Self, WorkError> {
        self.held_by(node, fence, now)?;
        Ok(Self { state: WorkState::Completed { node }, ..self.clone() })
    }

    /// The holder gives up: for good if all `tries` are used or the named node says that no other one can succeed
    /// (`retryable` is false), otherwise back to the queue after a pause that doubles with each attempt. `draw` is chance:
    /// it spreads the pauses of many that failed at once.
    pub fn fail(
        &self,
        node: Address,
        fence: Fence,
        retryable: bool,
        tries: Tries,
        draw: u32,
        now: DateTime<Utc>,
    ) -> Result<Self, WorkError> {
        self.held_by(node, fence, now)?;
        let impossible = !retryable && tries == Tries::Named;
        Ok(self.lost(impossible, tries, Some(now + retry_pause(self.attempts + 1, draw))))
    }

    /// A job that failed is tried again from the start: what was tried before counts no more.
    pub fn redrive(&self) -> Result<Self, WorkError> {
        match self.state {
            WorkState::Failed => Ok(Self {
                attempts: 0,
                forgiven: self.fence,
                state: WorkState::Queued { not_before: None },
                ..self.clone()
            }),
            _ => Err(WorkError::NotFailed),
        }
    }

    /// The work as it is at `now`: an expired lease is back in the queue, or the job has failed if that used up its `tries`.
    #[must_use]
    pub fn expire(&self, tries: Tries, now: DateTime<Utc>) -> Self {
        match self.state {
            WorkState::Leased { expires_at, .. } if expires_at <= now => self.lost(false, tries, None),
            _ => self.clone(),
        }
    }

    /// After a lease that brought no result.
    fn lost(&self, impossible: bool, tries: Tries, not_before: Option<DateTime<Utc>>) -> Self {
        let attempts = self.attempts + 1;
        let used = match tries {
            Tries::Named => attempts,
            Tries::Open { others } => others + 1,
        };
        let ended = impossible || used >= MAX_ATTEMPTS;
        let state = if ended { WorkState::Failed } else { WorkState::Queued { not_before } };
        Self { attempts, state, ..self.clone() }
    }

    /// When the lease began, if `node` holds it under `fence` at `now`.
    fn held_by(&self, node: Address, fence: Fence, now: DateTime<Utc>) -> Result<DateTime<Utc>, WorkError> {
        match self.state {
            WorkState::Leased { node: holder, .. } if holder != node => Err(WorkError::NotHolder),
            WorkState::Leased { .. } if fence != self.fence => {
                Err(WorkError::StaleFence { given: fence.0, current: self.fence.0 })
            }
            WorkState::Leased { expires_at, .. } if expires_at <= now => Err(WorkError::LeaseExpired(expires_at)),
            WorkState::Leased { since, .. } => Ok(since),
            WorkState::Completed { .. } => Err(WorkError::Ended("completed")),
            WorkState::Failed => Err(WorkError::Ended("failed")),
            WorkState::Queued { .. } => Err(WorkError::NotLeased),
        }
    }
}

/// The pause after the `attempts`-th failure: between half and all of 2, 4, 8, … seconds, as `draw` has it.
fn retry_pause(attempts: i32, draw: u32) -> TimeDelta {
    let half_ms = 500_i64 << attempts.clamp(0, 10);
    TimeDelta::milliseconds(half_ms + half_ms * i64::from(draw) / i64::from(u32::MAX))
}

/// What people see of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Announced to the API; its `openJob` is not on the chain (yet, or after a reorg not any more).
    AwaitingEscrow,
    /// Paid for and waiting for a node.
    Pending,
    /// A node works on it.
    Active,
    /// Done; its payment is due.
    Completed,
    /// Its payment is in a transaction that was sent, promised by a voucher, or on the chain and not final yet.
    Settling,
    /// Its result is on the chain and its challenge window runs.
    Challengeable,
    /// The node was credited, for good.
    Paid,
    /// No node could do it; the requester is refunded after the deadline.
    Failed,
    /// The deadline passed without a result; the requester can take the money back.
    Expired,
    /// The requester has the money back.
    Refunded,
    /// The requester objects to the result, and the arbiter's time runs.
    Disputed,
    /// The arbiter has divided the price, for good.
    Resolved,
    /// The requester gave notice; a result is still paid until that is over, and no node is given it any more.
    Cancelling,
    /// The requester took the signed order back before any node had it.
    Cancelled,
}

impl JobStatus {
    /// Every status.
    pub const ALL: [Self; 14] = [
        Self::AwaitingEscrow,
        Self::Pending,
        Self::Active,
        Self::Completed,
        Self::Settling,
        Self::Challengeable,
        Self::Paid,
        Self::Failed,
        Self::Expired,
        Self::Refunded,
        Self::Disputed,
        Self::Resolved,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// Its name in JSON, SQL and Redis.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AwaitingEscrow => "awaiting_escrow",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Settling => "settling",
            Self::Challengeable => "challengeable",
            Self::Paid => "paid",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Refunded => "refunded",
            Self::Disputed => "disputed",
            Self::Resolved => "resolved",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// What the view says, with the clock's word added: work that was not done by the deadline has expired.
    #[must_use]
    pub fn at(self, deadline: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        match self {
            Self::AwaitingEscrow | Self::Pending | Self::Active | Self::Failed | Self::Completed | Self::Cancelling
                if deadline < now =>
            {
                Self::Expired
            }
            other => other,
        }
    }

    /// The four words of the shared Redis hash `job:{jobId}:status`, for applications that know only these. Nothing for a
    /// job that is not paid for: it is not in the queue.
    #[must_use]
    pub fn public_word(self) -> Option<&'static str> {
        match self {
            Self::AwaitingEscrow => None,
            Self::Pending => Some("pending"),
            Self::Active => Some("active"),
            Self::Completed | Self::Settling | Self::Challengeable | Self::Disputed | Self::Paid | Self::Resolved => {
                Some("completed")
            }
            Self::Failed | Self::Expired | Self::Refunded | Self::Cancelling | Self::Cancelled => Some("failed"),
        }
    }

    /// Nothing changes a job after this, short of a reorg.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Paid | Self::Refunded | Self::Resolved | Self::Cancelled)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a [`JobStatus`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a job status")]
pub struct UnknownStatus(String);

impl FromStr for JobStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|status| status.name() == text).ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: TimeDelta = TimeDelta::seconds(60);
    const OPEN: Tries = Tries::Open { others: 0 };

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
    }

    fn node(n: u8) -> Address {
        Address::repeat_byte(n)
    }

    #[test]
    fn only_the_holder_completes_and_only_under_the_current_fence() {
        let first = Work::default().claim(node(1), at(0), LEASE).unwrap();
        let second = first.expire(OPEN, at(60)).claim(node(1), at(60), LEASE).unwrap();
        assert_eq!(second.complete(node(2), Fence(2), at(61)), Err(WorkError::NotHolder));
        assert_eq!(second.complete(node(1), Fence(1), at(61)), Err(WorkError::StaleFence { given: 1, current: 2 }));
        let done = second.complete(node(1), Fence(2), at(61)).unwrap();
        assert_eq!(done.complete(node(1), Fence(2), at(62)), Err(WorkError::Ended("completed")));
        assert_eq!(done.claim(node(3), at(900), LEASE), Err(WorkError::Ended("completed")));
    }

    #[test]
    fn a_lease_ends_at_its_time_and_not_before() {
        let held = Work::default().claim(node(1), at(0), LEASE).unwrap();
        assert_eq!(held.claim(node(2), at(59), LEASE), Err(WorkError::NotClaimable));
        assert_eq!(held.complete(node(1), Fence(1), at(60)), Err(WorkError::LeaseExpired(at(60))));
        assert_eq!(held.expire(OPEN, at(59)), held);
        assert_eq!(held.expire(OPEN, at(60)).claim(node(2), at(60), LEASE).unwrap().fence, Fence(2));
        let renewed = held.renew(node(1), Fence(1), at(59), LEASE).unwrap();
        assert!(renewed.complete(node(1), Fence(1), at(100)).is_ok());
    }

    #[test]
    fn a_failed_attempt_waits_longer_each_time_and_then_ends_the_job() {
        let mut work = Work::default();
        let mut now = at(0);
        for attempt in 1..MAX_ATTEMPTS {
            work = work.claim(node(1), now, LEASE).unwrap();
            work = work.fail(node(1), work.fence, true, Tries::Named, u32::MAX, now).unwrap();
            let pause = TimeDelta::seconds(1 << attempt);
            assert_eq!(work.state, WorkState::Queued { not_before: Some(now + pause) });
            assert_eq!(work.claim(node(1), now, LEASE), Err(WorkError::NotClaimable));
            now += pause;
        }
        work = work.claim(node(1), now, LEASE).unwrap();
        assert_eq!(work.fail(node(1), work.fence, true, Tries::Named, 0, now).unwrap().state, WorkState::Failed);
    }

    #[test]
    fn pauses_spread_over_half_of_their_length_and_end() {
        for attempts in 1..40 {
            let (least, most) = (retry_pause(attempts, 0), retry_pause(attempts, u32::MAX));
            assert_eq!(most, least * 2);
            assert!((least..=most).contains(&retry_pause(attempts, 1 << 31)));
            assert!(most <= TimeDelta::seconds(1024));
        }
    }

    #[test]
    fn a_redriven_job_starts_anew_under_higher_fences_and_only_a_failed_one_is() {
        let held = Work::default().claim(node(1), at(0), LEASE).unwrap();
        let failed = held.fail(node(1), Fence(1), false, Tries::Named, 0, at(1)).unwrap();
        let again = failed.redrive().unwrap();
        assert_eq!((again.attempts, again.forgiven), (0, Fence(1)));
        assert_eq!(again.claim(node(1), at(2), LEASE).unwrap().fence, Fence(2));
        for other in [Work::default(), held.clone(), again, held.complete(node(1), Fence(1), at(1)).unwrap()] {
            assert_eq!(other.redrive(), Err(WorkError::NotFailed));
        }
    }

    #[test]
    fn renewing_prolongs_no_lease_beyond_the_longest() {
        let mut work = Work::default().claim(node(1), at(0), LEASE).unwrap();
        let end = at(0) + LONGEST_LEASE;
        let mut now = at(0);
        while let Ok(renewed) = work.renew(node(1), Fence(1), now, LEASE) {
            assert!(now < end);
            work = renewed;
            now += LEASE / 2;
        }
        assert_eq!(now, end);
        assert_eq!(work.complete(node(1), Fence(1), end), Err(WorkError::LeaseExpired(end)));
    }

    #[test]
    fn one_node_cannot_end_a_job_that_others_could_do() {
        let held = Work { attempts: 99, ..Work::default() }.claim(node(1), at(0), LEASE).unwrap();
        let fail = |tries, retryable| held.fail(node(1), Fence(1), retryable, tries, 0, at(1)).unwrap().state;
        for others in 0..MAX_ATTEMPTS - 1 {
            let tries = Tries::Open { others };
            assert!(matches!(fail(tries, false), WorkState::Queued { .. }));
            assert_eq!(held.expire(tries, at(60)).state, WorkState::Queued { not_before: None });
        }
        let last = Tries::Open { others: MAX_ATTEMPTS - 1 };
        assert_eq!(fail(last, true), WorkState::Failed);
        assert_eq!(held.expire(last, at(60)).state, WorkState::Failed);
    }

    #[test]
    fn what_the_named_node_finds_impossible_has_failed() {
        let held = Work::default().claim(node(1), at(0), LEASE).unwrap();
        let failed = held.fail(node(1), Fence(1), false, Tries::Named, 0, at(1)).unwrap();
        assert_eq!((failed.attempts, failed.state), (1, WorkState::Failed));
    }

    #[test]
    fn every_status_is_read_back_from_its_name() {
        for status in JobStatus::ALL {
            assert_eq!(status.name().parse(), Ok(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
        }
    }

    proptest! {
        // Whatever two nodes try in whatever order, at most one of them holds the job, and the fence never falls.
        #[test]
        fn no_two_leases_overlap(steps in proptest::collection::vec((0u8..4, 1u8..3, 0i64..90, 0i64..4), 1..60)) {
            let mut work = Work::default();
            let mut now = at(0);
            for (what, who, wait, fence) in steps {
                now += TimeDelta::seconds(wait);
                work = work.expire(OPEN, now);
                let before = work.clone();
                let held = matches!(before.state, WorkState::Leased { expires_at, .. } if expires_at > now);
                let next = match what {
                    0 => work.claim(node(who), now, LEASE),
                    1 => work.complete(node(who), Fence(fence), now),
                    2 => work.fail(node(who), Fence(fence), true, OPEN, 0, now),
                    _ => work.renew(node(who), Fence(fence), now, LEASE),
                };
                if let Ok(next) = next {
                    prop_assert!(next.fence >= before.fence);
                    if what == 0 {
                        prop_assert!(!held);
                        prop_assert!(next.fence > before.fence);
                    } else {
                        prop_assert!(held);
                        prop_assert_eq!(Fence(fence), before.fence);
                    }
                    work = next;
                }
            }
        }
    }
}
