//! `chain_block`.

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::{ApplyError, Block, BlockId, HEADERS_KEPT, from_db, to_db};
use crate::db::leader::Fence;
use crate::db::types::DbHash;

/// Writes blocks as canonical, and says which of them had been stored before: those come back.
pub(super) async fn insert(db: &mut PgConnection, blocks: &[Block]) -> Result<Vec<BlockId>, sqlx::Error> {
    let hashes: Vec<DbHash> = blocks.iter().map(|block| DbHash(block.id.hash)).collect();
    let numbers = blocks.iter().map(|block| to_db(block.id.number)).collect::<Result<Vec<_>, _>>()?;
    let parents: Vec<DbHash> = blocks.iter().map(|block| DbHash(block.parent_hash)).collect();
    let mined_at: Vec<DateTime<Utc>> = blocks.iter().map(|block| block.mined_at).collect();
    let stored = sqlx::query_scalar!(
        r#"select hash as "hash: DbHash" from chain_block where hash = any($1::bytea[])"#,
        &hashes as _
    )
    .fetch_all(&mut *db)
    .await?;
    sqlx::query!(
        "insert into chain_block (hash, number, parent_hash, mined_at, canonical)
         select *, true from unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::timestamptz[])
         on conflict (hash) do update set canonical = true",
        &hashes as _,
        &numbers,
        &parents as _,
        &mined_at
    )
    .execute(db)
    .await?;
    Ok(blocks.iter().map(|block| block.id).filter(|id| stored.contains(&DbHash(id.hash))).collect())
}

/// Marks all blocks above `number` as no longer canonical, and says which they were.
pub(super) async fn orphan_above(db: &mut PgConnection, number: u64) -> Result<Vec<B256>, sqlx::Error> {
    let hashes = sqlx::query_scalar!(
        r#"update chain_block set canonical = false where canonical and number > $1 returning hash as "hash: DbHash""#,
        to_db(number)?
    )
    .fetch_all(db)
    .await?;
    Ok(hashes.into_iter().map(B256::from).collect())
}

/// The highest canonical block whose header is kept at or below `number`.
pub async fn canonical_at_or_below(db: &mut PgConnection, number: u64) -> Result<Option<BlockId>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select number, hash as "hash: DbHash" from chain_block
           where canonical and number <= $1 order by number desc limit 1"#,
        to_db(number)?
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| Ok(BlockId { number: from_db(row.number)?, hash: row.hash.0 })).transpose()
}

/// Forgets headers of blocks without events, [`HEADERS_KEPT`] and more below `tip`, but for the lowest, where indexing
/// began. Looks at a stretch of that length only, so it is to be called at least once in as many blocks.
pub async fn prune_headers(db: &mut PgConnection, fence: Fence, tip: u64) -> Result<u64, ApplyError> {
    fence.check(db).await?;
    let deleted = sqlx::query!(
        "delete from chain_block b
         where b.canonical and b.number > $1 and b.number <= $2
           and b.number > (select min(number) from chain_block where canonical)
           and not exists (select from chain_event e where e.block_number = b.number and e.block_hash = b.hash)",
        to_db(tip.saturating_sub(3 * HEADERS_KEPT))?,
        to_db(tip.saturating_sub(HEADERS_KEPT))?
    )
    .execute(db)
    .await?;
    Ok(deleted.rows_affected())
}
