//! `feature:{name}`: whether a feature is on, for other applications to see. Postgres is what decides here.

use super::client::{Client, RedisError};
use super::keys::FEATURE_TTL_SECS;
use crate::db::flag::Flag;

/// Tells which features are on.
pub async fn tell(redis: &Client, flags: &[Flag]) -> Result<(), RedisError> {
    // Nothing is no command.
    if flags.is_empty() {
        return Ok(());
    }
    let mut commands = redis::pipe();
    for flag in flags {
        let (key, text) = (redis.keys().feature(&flag.name), if flag.enabled { "true" } else { "false" });
        commands.cmd("SET").arg(key).arg(text).arg("EX").arg(FEATURE_TTL_SECS).ignore();
    }
    commands.query_async(&mut redis.connection()).await
}
