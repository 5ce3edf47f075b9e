//! Contents that the object store holds. Writer: the API.

use std::collections::HashSet;

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use crate::ContentId;

/// Notes that the store holds `cid`. The first one to bring a content is remembered as its author.
pub async fn insert(
    db: &mut PgConnection,
    cid: ContentId,
    size_bytes: u64,
    author: Address,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let size_bytes = i64::try_from(size_bytes).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    sqlx::query!(
        "insert into blob (cid, size_bytes, created_by, created_at) values ($1, $2, $3, $4) on conflict do nothing",
        cid.to_string(),
        size_bytes,
        super::types::DbAddress(author) as _,
        now
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Bytes of the content, if the store holds it.
pub async fn size(db: &mut PgConnection, cid: ContentId) -> Result<Option<u64>, sqlx::Error> {
    let size =
        sqlx::query_scalar!("select size_bytes from blob where cid = $1", cid.to_string()).fetch_optional(db).await?;
    size.map(u64::try_from).transpose().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Which of `cids` the store holds.
pub async fn stored(db: &mut PgConnection, cids: &[String]) -> Result<HashSet<String>, sqlx::Error> {
    let found = sqlx::query_scalar!("select cid from blob where cid = any($1)", cids).fetch_all(db).await?;
    Ok(found.into_iter().collect())
}
