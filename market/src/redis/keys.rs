//! Names of keys and channels: a public interface, since other applications read and write them. A prefix (empty by
//! default) goes in front of each; with a hash tag in it, such as `{littoral}:`, all keys of a market share a slot of a
//! Redis Cluster.

use alloy::primitives::{Address, B256, keccak256};
use chrono::{DateTime, Utc};

use crate::user::UserId;

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
/// Seconds that the answer to a call under an `Idempotency-Key` is remembered.
pub const IDEMPOTENCY_TTL_SECS: u64 = 24 * 60 * 60;
/// Seconds that `feature:{name}` lives unless written again.
pub const FEATURE_TTL_SECS: u64 = 24 * 60 * 60;
/// Seconds that `jobs:completed` remembers a job.
pub const COMPLETED_TTL_SECS: u64 = 7 * 24 * 60 * 60;
/// Seconds that the version of an applied snapshot is kept: far longer than a command that was given up on can still be
/// on its way.
pub const VERSION_TTL_SECS: u64 = 5 * 60;
/// Seconds that `payments:completed` remembers a payment.
pub const PAYMENTS_TTL_SECS: u64 = 30 * 24 * 60 * 60;

/// Seconds that `littoral:turns` remembers when a line was served.
pub const TURNS_KEPT_SECS: u64 = 24 * 60 * 60;

/// Whose a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The hash of a job.
    Job(B256),
    /// The hash of a node.
    Node(B256),
    /// The jobs or payments of a node.
    Collection(B256),
}

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

    /// What decides on the slot of a Redis Cluster that all keys with this prefix are in; nothing if each has its own.
    #[must_use]
    pub fn hash_tag(&self) -> Option<&str> {
        let (_, behind) = self.prefix.split_once('{')?;
        behind.split_once('}').map(|(tag, _)| tag).filter(|tag| !tag.is_empty())
    }

    /// Hash: userId, walletAddress, nftTier, pkpPublicKey, lastActivity. [`SESSION_TTL_SECS`].
    #[must_use]
    pub fn session(&self, user_id: &UserId) -> String {
        format!("{}session:{user_id}", self.prefix)
    }

    /// What other applications keep beside a session: `part` is pkp, wallet or sessionSigs. [`SESSION_TTL_SECS`].
    #[must_use]
    pub fn session_part(&self, user_id: &UserId, part: &str) -> String {
        format!("{}session:{user_id}:{part}", self.prefix)
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

    /// String: what was admitted of `who` in `scope` since `start_secs`, by the tier `burst` or `sustained`. Two window lengths.
    /// None of the parts may have a colon.
    #[must_use]
    pub fn rate(&self, environment: &str, scope: &str, who: &str, tier: &str, start_secs: u64) -> String {
        format!("{}rl:{environment}:{scope}:{who}:{tier}:{start_secs}", self.prefix)
    }

    /// String: what a call under an `Idempotency-Key` was answered, as JSON. The last part names the user and the key.
    /// [`IDEMPOTENCY_TTL_SECS`].
    #[must_use]
    pub fn idempotency(&self, operation: &str, user_id: &UserId, key: &str) -> String {
        format!("{}idempotency:{operation}:{user_id}:{key}", self.prefix)
    }

    /// Hash: owner and fence of who holds the lock `name`. As long as it was taken for.
    #[must_use]
    pub fn lock(&self, name: &str) -> String {
        format!("{}lock:{name}", self.prefix)
    }

    /// String: fence of the lock's latest owner.
    #[must_use]
    pub fn lock_fence(&self, name: &str) -> String {
        format!("{}lock:{name}:fence", self.prefix)
    }

    /// String: a value as JSON that may be a little old.
    #[must_use]
    pub fn cache(&self, name: &str) -> String {
        format!("{}cache:{name}", self.prefix)
    }

    /// String: changes whenever the value is invalidated.
    #[must_use]
    pub fn cache_version(&self, name: &str) -> String {
        format!("{}cache:{name}:version", self.prefix)
    }

    /// Channel of names of values that are to be forgotten.
    #[must_use]
    pub fn channel_cache(&self) -> String {
        format!("{}channel:cache:invalidate", self.prefix)
    }

    /// String: `true` or `false`, whether a feature is on. [`FEATURE_TTL_SECS`].
    #[must_use]
    pub fn feature(&self, name: &str) -> String {
        format!("{}feature:{name}", self.prefix)
    }

    /// Sorted set of node ids by completed jobs.
    #[must_use]
    pub fn leaderboard(&self) -> String {
        format!("{}leaderboard:nodes", self.prefix)
    }

    /// String: when Redis was last found to have lost what it had told, and the generation of which it lost it.
    #[must_use]
    pub fn history_lost(&self) -> String {
        format!("{}littoral:history", self.prefix)
    }

    /// Hash of those who follow `channel`, as JSON by member id; also the channel on which its changes are published.
    #[must_use]
    pub fn presence(&self, channel: &str) -> String {
        format!("{channel}:presence")
    }

    /// Sorted set of the API's instances by the time in ms until which they count as alive.
    #[must_use]
    pub fn presence_instances(&self) -> String {
        format!("{}littoral:presence", self.prefix)
    }

    /// Set of what an instance has noted: `{member id} {channel}`.
    #[must_use]
    pub fn presence_of(&self, instance: &str) -> String {
        format!("{}littoral:presence:{instance}", self.prefix)
    }

    /// String: names the database that this Redis was filled from. Gone after a flush, which is how a flush is noticed.
    #[must_use]
    pub fn generation(&self) -> String {
        format!("{}littoral:generation", self.prefix)
    }

    /// String: token of the rebuild that is under way. Gone after a flush, so that a rebuild notices one. While it is there,
    /// `littoral:staging:*` are kept like the keys that they will take the place of.
    #[must_use]
    pub fn rebuilding(&self) -> String {
        format!("{}littoral:rebuilding", self.prefix)
    }

    /// Hash: number of the latest batch of an outbox that was applied, the indexer's epoch then, and the batch's rows.
    #[must_use]
    pub fn applied(&self, outbox: &str) -> String {
        format!("{}littoral:applied:{outbox}", self.prefix)
    }

    /// Sorted set, by text, of the jobs that wait: one member a job, [`line_member`].
    #[must_use]
    pub fn lines(&self) -> String {
        format!("{}littoral:lines", self.prefix)
    }

    /// Sorted set of lines ([`line_name`]) by the time (ms) when each was last served. [`TURNS_KEPT_SECS`].
    #[must_use]
    pub fn turns(&self) -> String {
        format!("{}littoral:turns", self.prefix)
    }

    /// Sorted set of job ids by the deadline (ms) at which their status changes by itself.
    #[must_use]
    pub fn deadlines(&self) -> String {
        format!("{}littoral:deadlines", self.prefix)
    }

    /// Hash from a node's address to the node id under which its keys are.
    #[must_use]
    pub fn node_ids(&self) -> String {
        format!("{}littoral:nodes", self.prefix)
    }

    /// String: version of the latest snapshot of a job or node that was applied. [`VERSION_TTL_SECS`].
    #[must_use]
    pub fn version(&self, entity: &str) -> String {
        format!("{}littoral:version:{entity}", self.prefix)
    }

    /// Pattern that matches every key with the prefix.
    #[must_use]
    pub fn pattern(&self) -> String {
        format!("{}*", escape_glob(&self.prefix))
    }

    /// Whether `key` is made from Postgres, and so may be removed and made again. Sessions, limits and idempotency records
    /// are not.
    #[must_use]
    pub fn is_projected(&self, key: &str) -> bool {
        let Some(name) = key.strip_prefix(&self.prefix) else { return false };
        match name {
            "jobs:pending" | "jobs:completed" | "nodes:available" | "nodes:heartbeats" | "payments:completed"
            | "littoral:deadlines" | "littoral:nodes" | "littoral:lines" => true,
            _ => self.owner_of(key).is_some() || self.is_version(key),
        }
    }

    /// Whose `key` is, if it is one entity's own.
    pub(super) fn owner_of(&self, key: &str) -> Option<Owner> {
        let name = key.strip_prefix(&self.prefix)?;
        let hash_of = |kind| name.strip_prefix(kind)?.strip_suffix(":status")?.parse().ok();
        let collection_of = |kind| name.strip_prefix(kind)?.parse().ok();
        hash_of("job:").map(Owner::Job).or_else(|| hash_of("nodes:").map(Owner::Node)).or_else(|| {
            collection_of("jobs:active:").or_else(|| collection_of("payments:pending:")).map(Owner::Collection)
        })
    }

    /// Whether `key` is one of [`Keys::version`].
    #[must_use]
    pub fn is_version(&self, key: &str) -> bool {
        key.strip_prefix(&self.prefix).is_some_and(|name| name.starts_with("littoral:version:"))
    }
}

/// `text` as a pattern that matches nothing else.
fn escape_glob(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Position of a job in the queue: first in, first out, moved ahead by priorities over 100 and back by those under it.
/// `enqueued_ms` is a unix time in ms; a point of priority is worth [`PRIORITY_BOOST_MS`], so that a waiting job of any
/// priority is overtaken for a bounded time only.
#[must_use]
pub fn queue_score(enqueued_ms: i64, priority: i32) -> i64 {
    enqueued_ms - (i64::from(priority) - 100) * PRIORITY_BOOST_MS
}

/// The highest score of a job that can be had at `now`: one of the lowest priority that has just come. Behind it are only jobs
/// whose pause or delay is not over.
#[must_use]
pub fn latest_ready_score(now: DateTime<Utc>) -> i64 {
    queue_score(now.timestamp_millis(), 0)
}

/// The jobs of `operation` that name `order_node`, or none if that is zero, as a text of 16 hex digits.
#[must_use]
pub fn line_group(operation: &str, order_node: Address) -> String {
    alloy::hex::encode(&keccak256([order_node.as_slice(), operation.as_bytes()].concat())[..8])
}

/// A line: 56 hex digits, of its group and its requester.
#[must_use]
pub fn line_name(operation: &str, order_node: Address, requester: Address) -> String {
    format!("{}{}", line_group(operation, order_node), alloy::hex::encode(requester))
}

/// A waiting job among all others: its line, its score in 16 digits, its id. In the order of texts each line is in one piece and
/// its jobs in the order of the queue.
#[must_use]
pub fn line_member(line_name: &str, score: i64, job_id: B256) -> String {
    format!("{line_name}{}{job_id}", score_text(score))
}

/// `score` as 16 digits, in whose order texts are as numbers. Scores are times in ms of this age, less at most a quarter of an
/// hour; one that is not ends up at an end.
#[must_use]
pub fn score_text(score: i64) -> String {
    format!("{:016}", score.clamp(0, 9_999_999_999_999_999))
}

/// Milliseconds that a point of priority is worth.
pub const PRIORITY_BOOST_MS: i64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_are_made_from_postgres_count_as_projected() {
        let (keys, id) = (Keys::new("{m}:"), B256::repeat_byte(7));
        for name in [
            keys.jobs_pending(),
            keys.jobs_active(id),
            keys.jobs_completed(),
            keys.job_status(id),
            keys.node_status(id),
            keys.nodes_available(),
            keys.nodes_heartbeats(),
            keys.payments_pending(id),
            keys.payments_completed(),
            keys.deadlines(),
            keys.lines(),
            keys.node_ids(),
            keys.version("x"),
        ] {
            assert!(keys.is_projected(&name), "{name}");
            assert!(!Keys::default().is_projected(&name), "{name} has a prefix");
        }
        let others =
            ["{m}:session:u", "{m}:rl:a:b:c:burst:1", "{m}:idempotency:x:y", "{m}:job:12:status", "jobs:pending"];
        for name in
            others.map(str::to_owned).into_iter().chain([keys.generation(), keys.session(&"0x1".parse().unwrap())])
        {
            assert!(!keys.is_projected(&name), "{name}");
        }
    }

    #[test]
    fn a_point_of_priority_moves_a_job_by_its_boost_and_the_default_by_nothing() {
        assert_eq!(queue_score(5_000, 100), 5_000);
        assert_eq!(queue_score(5_000, 101), 5_000 - PRIORITY_BOOST_MS);
        assert_eq!(queue_score(5_000, 99), 5_000 + PRIORITY_BOOST_MS);
    }

    #[test]
    fn members_of_a_line_are_in_the_order_of_their_scores() {
        let line = line_name("encrypt", Address::ZERO, Address::repeat_byte(0xab));
        assert_eq!((line.len(), score_text(7).len()), (56, 16));
        let scores = [i64::MIN, -1, 0, 9, 10, 1_800_000_000_000, 1_800_000_000_001, i64::MAX];
        let members = scores.map(|score| line_member(&line, score, B256::ZERO));
        assert!(members.is_sorted());
        assert_ne!(line_group("encrypt", Address::ZERO), line_group("encrypt", Address::repeat_byte(1)));
    }

    #[test]
    fn a_prefix_matches_itself_only() {
        assert_eq!(Keys::new("a*[b]:").pattern(), r"a\*\[b\]:*");
        assert_eq!(Keys::default().pattern(), "*");
    }
}
