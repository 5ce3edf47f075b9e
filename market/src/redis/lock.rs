//! `lock:{name}`: one of many does something at a time. A lock has an owner, who alone can renew or release it, and a fence, which
//! grows with every owner, so that whoever is written to can refuse one that has lost the lock and does not know it yet.
//!
//! Locks save work; what must not happen twice is decided in Postgres. With Redis flushed two may hold one lock for a moment, under
//! different fences.

use std::time::Duration;

use super::client::{Client, RedisError};
use crate::limit::millis;

const TAKE: &str = include_str!("lua/lock.lua");
/// How long the last fence is remembered after a lock was taken.
const FENCE_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A lock that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What is locked.
    pub name: String,
    /// Drawn at random: no one else can name it.
    pub owner: String,
    /// Greater than that of any owner before.
    pub fence: u64,
}

/// Takes the lock `name` for `ttl`, unless another holds it. A name is a plain word.
pub async fn take(redis: &Client, name: &str, ttl: Duration) -> Result<Option<Held>, RedisError> {
    let owner = format!("{:032x}", rand::random::<u128>());
    let fence = call(redis, name, &owner, ttl).await?;
    Ok(fence.map(|fence| Held { name: name.to_owned(), owner, fence }))
}

/// Lets a lock last for another `ttl`. False if it is lost.
pub async fn renew(redis: &Client, held: &Held, ttl: Duration) -> Result<bool, RedisError> {
    const RENEW: &str = "
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";
    redis::Script::new(RENEW)
        .key(redis.keys().lock(&held.name))
        .arg(&held.owner)
        .arg(millis(ttl))
        .invoke_async(&mut redis.connection())
        .await
}

/// Gives a lock back. False if it was lost before; then it is left to whoever has it now.
pub async fn release(redis: &Client, held: &Held) -> Result<bool, RedisError> {
    const RELEASE: &str = "
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])";
    redis::Script::new(RELEASE)
        .key(redis.keys().lock(&held.name))
        .arg(&held.owner)
        .invoke_async(&mut redis.connection())
        .await
}

async fn call(redis: &Client, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, RedisError> {
    redis::Script::new(TAKE)
        .key(redis.keys().lock(name))
        .key(redis.keys().lock_fence(name))
        .arg(owner)
        .arg(millis(ttl))
        .arg(millis(FENCE_TTL))
        .invoke_async(&mut redis.connection())
        .await
}
