//! How far the indexer is, and what befell it, as the database alone tells it. Writer of `chain_reorg`: the indexer.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgConnection;

use super::chain::{BlockId, from_db, to_db};
use super::types::DbHash;

/// Reorgs that are remembered.
const REMEMBERED: i64 = 1000;

/// Where the index and the chain stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// Last applied block.
    pub cursor: BlockId,
    /// Its timestamp.
    pub mined_at: Option<DateTime<Utc>>,
    /// Epoch of the leader that wrote last.
    pub epoch: i64,
    /// Latest block that the chain was seen to have.
    pub head: Option<u64>,
    /// Latest block that counts as final; above the cursor while the indexer catches up.
    pub finalized: Option<u64>,
}

/// Where index and chain stand; nothing before the indexer began.
pub async fn standing(db: &mut PgConnection) -> Result<Option<Standing>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select c.chain_id, c.block_number, c.block_hash as "block_hash: DbHash", c.epoch, c.head_number, c.final_number,
                  b.mined_at as "mined_at?"
           from chain_cursor c left join chain_block b on b.hash = c.block_hash"#
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Standing {
            chain_id: from_db(row.chain_id)?,
            cursor: BlockId { number: from_db(row.block_number)?, hash: row.block_hash.0 },
            mined_at: row.mined_at,
            epoch: row.epoch,
            head: row.head_number.map(from_db).transpose()?,
            finalized: row.final_number.map(from_db).transpose()?,
        })
    })
    .transpose()
}

/// A reorg that was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reorg {
    /// When.
    pub at: DateTime<Utc>,
    /// The last block that both branches have.
    pub ancestor: u64,
    /// Where the cursor stood.
    pub from: BlockId,
    /// Where it stood then.
    pub to: BlockId,
    /// Events that no longer count.
    pub events_undone: u64,
}

/// Notes a reorg, in the transaction that follows it, and forgets the oldest.
pub(super) async fn note_reorg(db: &mut PgConnection, reorg: &Reorg) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into chain_reorg (at, ancestor, from_block, from_hash, to_block, to_hash, events_undone)
         values ($1, $2, $3, $4, $5, $6, $7)",
        reorg.at,
        to_db(reorg.ancestor)?,
        to_db(reorg.from.number)?,
        DbHash(reorg.from.hash) as _,
        to_db(reorg.to.number)?,
        DbHash(reorg.to.hash) as _,
        to_db(reorg.events_undone)?
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!("delete from chain_reorg where id <= (select max(id) from chain_reorg) - $1", REMEMBERED)
        .execute(db)
        .await?;
    Ok(())
}

/// The latest `limit` reorgs, latest first.
pub async fn reorgs(db: &mut PgConnection, limit: i64) -> Result<Vec<Reorg>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select at, ancestor, from_block, from_hash as "from_hash: DbHash", to_block, to_hash as "to_hash: DbHash",
                  events_undone
           from chain_reorg order by id desc limit $1"#,
        limit
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Reorg {
                at: row.at,
                ancestor: from_db(row.ancestor)?,
                from: BlockId { number: from_db(row.from_block)?, hash: row.from_hash.0 },
                to: BlockId { number: from_db(row.to_block)?, hash: row.to_hash.0 },
                events_undone: from_db(row.events_undone)?,
            })
        })
        .collect()
}
