//! Sign-in: nonces and sessions. Writer: the API.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbHash};

/// An address that signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// SHA2-256 of the bearer token, which is stored nowhere.
    pub token_hash: B256,
    /// Names the Redis hash `session:{userId}`.
    pub user_id: String,
    /// Whose signature it was.
    pub wallet: Address,
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// Remembers a nonce that was handed out.
pub async fn insert_nonce(db: &mut PgConnection, nonce: &str, expires_at: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("insert into signin_nonce (nonce, expires_at) values ($1, $2)", nonce, expires_at).execute(db).await?;
    Ok(())
}

/// Uses up `nonce` and opens `session` in one statement, so that a nonce opens one session at most. False if there is no
/// such nonce (any more) at `session.created_at`.
pub async fn open(db: &mut PgConnection, nonce: &str, session: &Session) -> Result<bool, sqlx::Error> {
    let opened = sqlx::query!(
        "with used as (delete from signin_nonce where nonce = $1 and expires_at > $5 returning nonce)
         insert into session (token_hash, user_id, wallet, created_at, expires_at)
         select $2, $3, $4, $5, $6 from used",
        nonce,
        DbHash(session.token_hash) as _,
        session.user_id,
        DbAddress(session.wallet) as _,
        session.created_at,
        session.expires_at
    )
    .execute(db)
    .await?;
    Ok(opened.rows_affected() == 1)
}

/// The session of a token, unless it has expired at `now`.
pub async fn find(db: &mut PgConnection, token_hash: B256, now: DateTime<Utc>) -> Result<Option<Session>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select user_id, wallet as "wallet: DbAddress", created_at, expires_at
           from session where token_hash = $1 and expires_at > $2"#,
        DbHash(token_hash) as _,
        now
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Session {
        token_hash,
        user_id: row.user_id,
        wallet: row.wallet.0,
        created_at: row.created_at,
        expires_at: row.expires_at,
    }))
}

/// Ends a session. True if another one of the same user lives on at `now`.
pub async fn close(
    db: &mut PgConnection,
    token_hash: B256,
    user_id: &str,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    sqlx::query!("delete from session where token_hash = $1", DbHash(token_hash) as _).execute(&mut *db).await?;
    sqlx::query_scalar!(
        r#"select exists (select from session where user_id = $1 and expires_at > $2) as "lives!""#,
        user_id,
        now
    )
    .fetch_one(db)
    .await
}

/// Forgets nonces and sessions that have expired; says how many.
pub async fn sweep(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let nonces = sqlx::query!("delete from signin_nonce where expires_at <= $1", now).execute(&mut *db).await?;
    let sessions = sqlx::query!("delete from session where expires_at <= $1", now).execute(db).await?;
    Ok(nonces.rows_affected() + sessions.rows_affected())
}
