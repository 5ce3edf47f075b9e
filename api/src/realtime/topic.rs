//! What can be followed.

use alloy::primitives::B256;
use market::redis::keys::Keys;
use serde::{Deserialize, Serialize};

/// A job's updates or a node's commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Topic {
    /// What happens to a job, by job id.
    Job(B256),
    /// What a node is told, by node id.
    Node(B256),
}

impl Topic {
    /// Its channel in Redis.
    pub(super) fn channel(self, keys: &Keys) -> String {
        match self {
            Self::Job(id) => keys.channel_job(id),
            Self::Node(id) => keys.channel_node(id),
        }
    }

    /// The name under which clients get its messages.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Job(_) => "job:update",
            Self::Node(_) => "node:command",
        }
    }
}
