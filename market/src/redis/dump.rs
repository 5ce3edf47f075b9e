//! What Redis holds of Postgres, as one value: to compare it with what a rebuild makes, or to look at it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::client::{Client, RedisError};
use super::rebuild::scan;

/// Every key that is made from Postgres, without the versions of snapshots: `{type, value}`, and `expiresAt` (unix ms)
/// where it expires. Sets are sorted; members of sorted sets come as `[member, score]`. For looking and testing: each key
/// costs some commands, and keys may change between them. Needs Redis 7.
pub async fn dump(redis: &Client) -> Result<BTreeMap<String, Value>, RedisError> {
    let mut dump = BTreeMap::new();
    for key in scan(redis).await?.into_iter().filter(|key| !redis.keys().is_version(key)) {
        if let Some(value) = dump_key(redis, &key).await? {
            dump.insert(key, value);
        }
    }
    Ok(dump)
}

async fn dump_key(redis: &Client, key: &str) -> Result<Option<Value>, RedisError> {
    let mut connection = redis.connection();
    let command = |name: &str| {
        let mut command = redis::cmd(name);
        command.arg(key);
        command
    };
    let kind: String = command("TYPE").query_async(&mut connection).await?;
    let value = match kind.as_str() {
        "string" => json!(command("GET").query_async::<Option<String>>(&mut connection).await?),
        "hash" => json!(command("HGETALL").query_async::<BTreeMap<String, String>>(&mut connection).await?),
        "list" => json!(command("LRANGE").arg(0).arg(-1).query_async::<Vec<String>>(&mut connection).await?),
        "set" => {
            let mut members: Vec<String> = command("SMEMBERS").query_async(&mut connection).await?;
            members.sort_unstable();
            json!(members)
        }
        "zset" => {
            let members = command("ZRANGE").arg(0).arg(-1).arg("WITHSCORES").to_owned();
            json!(members.query_async::<Vec<(String, f64)>>(&mut connection).await?)
        }
        // It is gone by now, or something of a type that is none of ours.
        _ => return Ok(None),
    };
    let expires_at: i64 = command("PEXPIRETIME").query_async(&mut connection).await?;
    Ok(Some(if expires_at >= 0 {
        json!({ "type": kind, "value": value, "expiresAt": expires_at })
    } else {
        json!({ "type": kind, "value": value })
    }))
}
