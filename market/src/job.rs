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

/// How often a job is tried before it counts as failed.
pub const MAX_ATTEMPTS: i32 = 5;

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
    /// Given up after [`MAX_ATTEMPTS`], or found impossible.
    Failed,
}

/// The work on one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Fence of the latest lease; zero before the first.
    pub fence: Fence,
    /// Leases that ended without completion.
    pub attempts: i32,
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
        Self { fence: Fence(0), attempts: 0, state: WorkState::Queued { not_before: None } }
    }
}

impl Work {
    /// `node` takes the job for `lease`.
    pub fn claim(&self, node: Address, now: DateTime<Utc>, lease: TimeDelta) -> Result<Self, WorkError> {
        let queued = self.expire(now);
        match queued.state {
            WorkState::Queued { not_before } if not_before.is_none_or(|from| from <= now) => Ok(Self {
                fence: Fence(self.fence.0 + 1),
                attempts: queued.attempts,
                state: WorkState::Leased { node, since: now, expires_at: now + lease },
            }),
            WorkState::Queued { .. } | WorkState::Leased { .. } => Err(WorkError::NotClaimable),
            WorkState::Completed { .. } => Err(WorkError::Ended("completed")),
            WorkState::Failed => Err(WorkError::Ended("failed")),
        }
    }

    /// The holder keeps the job for another `lease` from `now`.
    pub fn renew(&self, node: Address, fence: Fence, now: DateTime<Utc>, lease: TimeDelta) -> Result<Self, WorkError> {
        let since = self.held_by(node, fence, now)?;
        Ok(Self { state: WorkState::Leased { node, since, expires_at: now + lease }, ..self.clone() })
    }

    /// The holder is done.
    pub fn complete(&self, node: Address, fence: Fence, now: DateTime<Utc>) -> Result<Self, WorkError> {
        self.held_by(node, fence, now)?;
        Ok(Self { state: WorkState::Completed { node }, ..self.clone() })
    }

    /// The holder gives up: for good if `retryable` is false or all attempts are used, otherwise back to the queue after
    /// a pause that doubles with each attempt.
    pub fn fail(&self, node: Address, fence: Fence, retryable: bool, now: DateTime<Utc>) -> Result<Self, WorkError> {
        self.held_by(node, fence, now)?;
        let attempts = self.attempts + 1;
        let state = if retryable && attempts < MAX_ATTEMPTS {
            WorkState::Queued { not_before: Some(now + retry_pause(attempts)) }
        } else {
            WorkState::Failed
        };
        Ok(Self { attempts, state, ..self.clone() })
    }

    /// The work as it is at `now`: an expired lease is back in the queue, or failed if that was the last attempt.
    #[must_use]
    pub fn expire(&self, now: DateTime<Utc>) -> Self {
        match self.state {
            WorkState::Leased { expires_at, .. } if expires_at <= now => {
                let attempts = self.attempts + 1;
                let state =
                    if attempts < MAX_ATTEMPTS { WorkState::Queued { not_before: None } } else { WorkState::Failed };
                Self { attempts, state, ..self.clone() }
            }
            _ => self.clone(),
        }
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

/// Seconds 2, 4, 8, … of pause after the `attempts`-th failure.
fn retry_pause(attempts: i32) -> TimeDelta {
    TimeDelta::seconds(1 << attempts.clamp(0, 10))
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
    /// Its payment is in a transaction that was sent.
    Settling,
    /// Its result is on the chain and its challenge window runs.
    Challengeable,
    /// The node was credited.
    Paid,
    /// No node could do it; the requester is refunded after the deadline.
    Failed,
    /// The deadline passed without a result; the requester can take the money back.
    Expired,
    /// The requester has the money back.
    Refunded,
}

impl JobStatus {
    /// Every status.
    pub const ALL: [Self; 10] = [
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
        }
    }

    /// What the view says, with the clock's word added: work that was not done by the deadline has expired.
    #[must_use]
    pub fn at(self, deadline: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        match self {
            Self::AwaitingEscrow | Self::Pending | Self::Active | Self::Failed | Self::Completed if deadline < now => {
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
            Self::Completed | Self::Settling | Self::Challengeable | Self::Paid => Some("completed"),
            Self::Failed | Self::Expired | Self::Refunded => Some("failed"),
        }
    }

    /// Nothing changes a job after this, short of a reorg.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Paid | Self::Refunded)
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

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
    }

    fn node(n: u8) -> Address {
        Address::repeat_byte(n)
    }

    #[test]
    fn only_the_holder_completes_and_only_under_the_current_fence() {
        let first = Work::default().claim(node(1), at(0), LEASE).unwrap();
        let second = first.claim(node(1), at(60), LEASE).unwrap();
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
        assert_eq!(held.claim(node(2), at(60), LEASE).unwrap().fence, Fence(2));
        let renewed = held.renew(node(1), Fence(1), at(59), LEASE).unwrap();
        assert!(renewed.complete(node(1), Fence(1), at(100)).is_ok());
    }

    #[test]
    fn a_failed_attempt_waits_longer_each_time_and_then_ends_the_job() {
        let mut work = Work::default();
        let mut now = at(0);
        for attempt in 1..MAX_ATTEMPTS {
            work = work.claim(node(1), now, LEASE).unwrap();
            work = work.fail(node(1), work.fence, true, now).unwrap();
            assert_eq!(work.state, WorkState::Queued { not_before: Some(now + retry_pause(attempt)) });
            assert_eq!(work.claim(node(1), now, LEASE), Err(WorkError::NotClaimable));
            now += retry_pause(attempt);
        }
        work = work.claim(node(1), now, LEASE).unwrap();
        assert_eq!(work.fail(node(1), work.fence, true, now).unwrap().state, WorkState::Failed);
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
                let before = work.clone();
                let held = matches!(before.state, WorkState::Leased { expires_at, .. } if expires_at > now);
                let next = match what {
                    0 => work.claim(node(who), now, LEASE),
                    1 => work.complete(node(who), Fence(fence), now),
                    2 => work.fail(node(who), Fence(fence), true, now),
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
