//! Answers to calls under an `Idempotency-Key`. Writer: the API.

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::DbHash;
use crate::user::UserId;

/// A call and its key.
#[derive(Debug, Clone)]
pub struct Call {
    /// Whose key it is.
    pub user_id: UserId,
    /// What is done, in a word.
    pub operation: &'static str,
    /// As the user chose it.
    pub key: String,
    /// Of all that makes the call what it is.
    pub request_hash: B256,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// What a call finds under its key.
#[derive(Debug, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: it goes on, and owns the key until it ends or `locked_until` has passed.
    Ours(Owner),
    /// The same call is under way.
    InFlight,
    /// Another call had the key.
    Mismatch,
    /// The same call has been answered.
    Answered(Answer),
}

/// Lets a call, and no other, say how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(i64);

/// Takes the key for `call` if it is free at `now`: unknown, forgotten, or left by the same call in a process that died.
pub async fn begin(
    db: &mut PgConnection,
    call: &Call,
    now: DateTime<Utc>,
    locked_until: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<Begun, sqlx::Error> {
    // Twice at most: a key that was found taken may be free when it is looked at.
    loop {
        let owner: i64 = rand::random();
        let taken = sqlx::query!(
            "insert into idempotency as i (user_id, operation, key, request_hash, owner, locked_until, expires_at)
             values ($1, $2, $3, $4, $5, $7, $8)
             on conflict (user_id, operation, key) do update
             set request_hash = $4, owner = $5, locked_until = $7, expires_at = $8, status = null, body = null
             where i.expires_at <= $6 or (i.status is null and i.locked_until <= $6 and i.request_hash = $4)",
            call.user_id.as_str(),
            call.operation,
            call.key,
            DbHash(call.request_hash) as _,
            owner,
            now,
            locked_until,
            expires_at
        )
        .execute(&mut *db)
        .await?;
        if taken.rows_affected() == 1 {
            return Ok(Begun::Ours(Owner(owner)));
        }
        let found = sqlx::query!(
            r#"select request_hash as "request_hash: DbHash", status, body
               from idempotency where user_id = $1 and operation = $2 and key = $3"#,
            call.user_id.as_str(),
            call.operation,
            call.key
        )
        .fetch_optional(&mut *db)
        .await?;
        let Some(found) = found else { continue };
        if found.request_hash.0 != call.request_hash {
            return Ok(Begun::Mismatch);
        }
        let status = found.status.and_then(|status| u16::try_from(status).ok());
        return Ok(match (status, found.body) {
            (Some(status), Some(body)) => Begun::Answered(Answer { status, body }),
            _ => Begun::InFlight,
        });
    }
}

/// Remembers the answer. False if the key is no longer the call's own.
pub async fn finish(db: &mut PgConnection, call: &Call, owner: Owner, answer: &Answer) -> Result<bool, sqlx::Error> {
    let status = i16::try_from(answer.status).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let finished = sqlx::query!(
        "update idempotency set status = $5, body = $6
         where user_id = $1 and operation = $2 and key = $3 and owner = $4 and status is null",
        call.user_id.as_str(),
        call.operation,
        call.key,
        owner.0,
        status,
        answer.body
    )
    .execute(db)
    .await?;
    Ok(finished.rows_affected() == 1)
}

/// Gives the key back: the call changed nothing, or failed.
pub async fn release(db: &mut PgConnection, call: &Call, owner: Owner) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "delete from idempotency
         where user_id = $1 and operation = $2 and key = $3 and owner = $4 and status is null",
        call.user_id.as_str(),
        call.operation,
        call.key,
        owner.0
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets what has expired; says how many.
pub async fn sweep(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let swept = sqlx::query!("delete from idempotency where expires_at <= $1", now).execute(db).await?;
    Ok(swept.rows_affected())
}
