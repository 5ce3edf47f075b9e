//! Who follows a channel, over all instances of the API: a hash `{channel}:presence` of members as JSON. What changes in it
//! is published on a channel of the same name, as `{"action": "enter" | "update" | "leave", "member": …}`.
//!
//! Members belong to an instance, which says every few seconds that it is alive ([`renew`]). Each instance that does so lets
//! go of the members of those that did not.

use std::time::Duration;

use super::client::{Client, RedisError};

const PRESENCE_LUA: &str = include_str!("lua/presence.lua");

/// How long an instance counts as alive without a [`renew`].
pub const LIFE: Duration = Duration::from_secs(15);
/// Most changes of one [`renew`].
pub const MOST_CHANGES: usize = 256;

/// A member that comes, changes or leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The channel it follows.
    pub channel: String,
    /// Its id, which no other member has. Without a blank.
    pub id: String,
    /// The member as JSON; nothing if it leaves.
    pub member: Option<String>,
}

/// What became of a [`renew`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// It is done. `more` members of instances that ended may be left to let go of.
    Done {
        /// Whether to call again at once.
        more: bool,
    },
    /// The instance is not known (any more), and nothing was done: it has to begin anew, under another name.
    Unknown,
}

/// Says that `instance` is alive, `begins` the first time, and makes at most [`MOST_CHANGES`] changes to its members.
pub async fn renew(redis: &Client, instance: &str, begins: bool, changes: &[Change]) -> Result<Renewed, RedisError> {
    call(redis, instance, LIFE, begins, changes).await
}

/// Lets go of all members of `instance`, which ends. True if there may be more: to be called again then.
pub async fn retire(redis: &Client, instance: &str) -> Result<bool, RedisError> {
    // It begins a life of no length, and so is the first whose members are let go of.
    Ok(call(redis, instance, Duration::ZERO, true, &[]).await? == Renewed::Done { more: true }
        && redis::cmd("EXISTS")
            .arg(redis.keys().presence_of(instance))
            .query_async::<bool>(&mut redis.connection())
            .await?)
}

async fn call(
    redis: &Client,
    instance: &str,
    life: Duration,
    begins: bool,
    changes: &[Change],
) -> Result<Renewed, RedisError> {
    let keys = redis.keys();
    let script = redis::Script::new(PRESENCE_LUA);
    let mut call = script.key(keys.presence_instances());
    call.key(keys.presence_of(instance)).arg(keys.prefix()).arg(instance);
    call.arg(u64::try_from(life.as_millis()).unwrap_or(u64::MAX)).arg(u8::from(begins));
    for change in changes {
        call.arg(&change.channel).arg(&change.id).arg(change.member.as_deref().unwrap_or_default());
    }
    let (known, more): (bool, bool) = call.invoke_async(&mut redis.connection()).await?;
    Ok(if known { Renewed::Done { more } } else { Renewed::Unknown })
}

/// Everyone who follows `channel`, as JSON, by id.
pub async fn members(redis: &Client, channel: &str) -> Result<Vec<String>, RedisError> {
    let members: Vec<(String, String)> =
        redis::cmd("HGETALL").arg(redis.keys().presence(channel)).query_async(&mut redis.connection()).await?;
    let mut members = members;
    members.sort_unstable();
    Ok(members.into_iter().map(|(_, member)| member).collect())
}
