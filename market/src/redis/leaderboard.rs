//! `leaderboard:nodes`: sorted set of node ids by completed jobs, for other applications to see.

use super::client::{Client, RedisError};
use crate::db::leaderboard::Leader;

/// Seconds that it lives unless written again.
const TTL_SECS: u64 = 60 * 60;

/// Puts `leaders` in the place of those that were there.
pub async fn tell(redis: &Client, leaders: &[Leader]) -> Result<(), RedisError> {
    let key = redis.keys().leaderboard();
    let mut commands = redis::pipe();
    commands.atomic().cmd("DEL").arg(&key).ignore();
    if !leaders.is_empty() {
        let members = commands.cmd("ZADD").arg(&key);
        for leader in leaders {
            members.arg(leader.completed_jobs).arg(leader.node_id.to_string());
        }
        commands.ignore().cmd("EXPIRE").arg(&key).arg(TTL_SECS).ignore();
    }
    commands.query_async(&mut redis.connection()).await
}
