//! `idempotency:{op}:{key}`: what calls under an `Idempotency-Key` were answered, for other applications to see. Postgres is what
//! decides whether a call is a repetition, so that a flush makes nothing happen twice.

use serde_json::json;

use super::client::{Client, RedisError};
use super::keys::IDEMPOTENCY_TTL_SECS;
use crate::db::idempotency::{Answer, Call};

/// Answers that are longer are told without their body.
const MOST_BYTES: usize = 64 * 1024;

/// Tells what `call` was answered.
pub async fn tell(redis: &Client, call: &Call, answer: &Answer) -> Result<(), RedisError> {
    let short = (answer.body.len() <= MOST_BYTES).then_some(&answer.body);
    let body: Option<serde_json::Value> = short.and_then(|bytes| serde_json::from_slice(bytes).ok());
    let text = json!({ "status": answer.status, "requestHash": call.request_hash, "body": body }).to_string();
    redis::cmd("SET")
        .arg(redis.keys().idempotency(call.operation, &call.user_id, &call.key))
        .arg(text)
        .arg("EX")
        .arg(IDEMPOTENCY_TTL_SECS)
        .exec_async(&mut redis.connection())
        .await
}
