//! Names of keys and channels: a public interface, since other applications read and write them. A prefix (empty by
//! default) goes in front of each; with a hash tag in it, such as `{littoral}:`, all keys of a market share a slot of a
//! Redis Cluster.

use alloy::primitives::{Address, B256};

/// Makes the names. Job and node ids are `0x` and 64 lower-case hex digits.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    prefix: String,
}

/// Seconds that `nodes:{nodeId}:status` lives without a heartbeat.
pub const NODE_TTL_SECS: u64 = 5 * 60;
/// Seconds between a node's heartbeats.
pub const HEARTBEAT_SECS: u64 = 60;
/// Seconds that a session lives.
pub const SESSION_TTL_SECS: u64 = 24 * 60 * 60;
/// Seconds that `jobs:completed` remembers a job.
pub const COMPLETED_TTL_SECS: u64 = 7 * 24 * 60 * 60;
/// Seconds that `payments:completed` remembers a payment.
pub const PAYMENTS_TTL_SECS: u64 = 30 * 24 * 60 * 60;

impl Keys {
    /// Names with `prefix` in front.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Hash: userId, walletAddress, nftTier, pkpPublicKey, lastActivity. [`SESSION_TTL_SECS`].
    #[must_use]
    pub fn session(&self, user_id: &str) -> String {
        format!("{}session:{user_id}", self.prefix)
    }

    /// Sorted set of job ids by score: enqueue time in ms, less for higher priority.
    #[must_use]
    pub fn jobs_pending(&self) -> String {
        format!("{}jobs:pending", self.prefix)
    }

    /// Set of job ids that a node holds.
    #[must_use]
    pub fn jobs_active(&self, node_id: B256) -> String {
        format!("{}jobs:active:{node_id}", self.prefix)
    }

    /// Sorted set of job ids by completion time in ms, trimmed to [`COMPLETED_TTL_SECS`].
    #[must_use]
    pub fn jobs_completed(&self) -> String {
        format!("{}jobs:completed", self.prefix)
    }

    /// Hash: status (pending, active, completed, failed), nodeId, outputCID, startedAt, completedAt, and more.
    #[must_use]
    pub fn job_status(&self, job_id: B256) -> String {
        format!("{}job:{job_id}:status", self.prefix)
    }

    /// Hash: nodeId, walletAddress, capacity, reputation, status, lastHeartbeat. [`NODE_TTL_SECS`].
    #[must_use]
    pub fn node_status(&self, node_id: B256) -> String {
        format!("{}nodes:{node_id}:status", self.prefix)
    }

    /// Set of node ids that are online.
    #[must_use]
    pub fn nodes_available(&self) -> String {
        format!("{}nodes:available", self.prefix)
    }

    /// Sorted set of node ids by last heartbeat in ms, from which the reaper finds who went silent.
    #[must_use]
    pub fn nodes_heartbeats(&self) -> String {
        format!("{}nodes:heartbeats", self.prefix)
    }

    /// List of `{jobId, amount, timestamp}` that a node is owed.
    #[must_use]
    pub fn payments_pending(&self, node_id: B256) -> String {
        format!("{}payments:pending:{node_id}", self.prefix)
    }

    /// Sorted set of paid jobs by time in ms, trimmed to [`PAYMENTS_TTL_SECS`].
    #[must_use]
    pub fn payments_completed(&self) -> String {
        format!("{}payments:completed", self.prefix)
    }

    /// Channel of one job.
    #[must_use]
    pub fn channel_job(&self, job_id: B256) -> String {
        format!("{}channel:job:{job_id}:updates", self.prefix)
    }

    /// Channel of commands to one node.
    #[must_use]
    pub fn channel_node(&self, node_id: B256) -> String {
        format!("{}channel:node:{node_id}:commands", self.prefix)
    }

    /// Channel of everything.
    #[must_use]
    pub fn channel_global(&self) -> String {
        format!("{}channel:global:events", self.prefix)
    }

    /// String: names the database that this Redis was filled from. Gone after a flush, which is how a flush is noticed.
    #[must_use]
    pub fn generation(&self) -> String {
        format!("{}littoral:generation", self.prefix)
    }
}

/// Position of a job in the queue: first in, first out, moved ahead by priorities over 100 and back by those under it.
/// `enqueued_ms` is a unix time in ms; a point of priority is worth [`PRIORITY_BOOST_MS`], so that a waiting job of any
/// priority is overtaken for a bounded time only.
#[must_use]
pub fn queue_score(enqueued_ms: i64, priority: i32) -> i64 {
    enqueued_ms - (i64::from(priority) - 100) * PRIORITY_BOOST_MS
}

/// Milliseconds that a point of priority is worth.
pub const PRIORITY_BOOST_MS: i64 = 1000;

/// How a user is named where no other application gave a name: by the checksummed address.
#[must_use]
pub fn user_id_of(wallet: Address) -> String {
    wallet.to_checksum(None)
}
