//! Taking back blocks however deep, to read them again. Unlike a reorg this trusts neither the rows nor their images: every
//! row is folded anew from the events that stay.

use std::collections::BTreeSet;

use alloy::primitives::B256;
use sqlx::postgres::PgConnection;

use super::{ApplyError, BlockId, event, move_cursor, rows, to_db};
use crate::db::audit::stretch_end;
use crate::db::leader::Fence;
use crate::db::ledger;
use crate::db::types::DbHash;
use crate::fold::{ChainEvent, Contracts, DecodeError, Key};

/// Events that are folded at once, unless one block has more.
const EVENTS_AT_ONCE: u64 = 20_000;

/// Why nothing was taken back.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// As with every step.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// An event that is to stay is not understood: more has to be taken back.
    #[error("a stored event cannot be read, so that replay has to begin at its block or before: {0}")]
    Decode(#[from] DecodeError),
    /// The database refused or did not answer.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// How many canonical events are stored above `number`.
pub async fn events_above(db: &mut PgConnection, number: u64) -> Result<u64, sqlx::Error> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from chain_event where canonical and block_number > $1"#,
        to_db(number)?
    )
    .fetch_one(db)
    .await?;
    super::from_db(count)
}

/// The lowest block there is: where indexing began.
pub async fn lowest(db: &mut PgConnection) -> Result<Option<BlockId>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select number, hash as "hash: DbHash" from chain_block where canonical order by number limit 1"#
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| Ok(BlockId { number: super::from_db(row.number)?, hash: row.hash.0 })).transpose()
}

/// Moves the cursor from `from` back to `to`, a stored canonical block, within the caller's transaction: removes the blocks
/// and events above it, takes back their entries in the ledger, and folds all rows anew from the events up to `to`. Redis is
/// filled again afterwards, as the database counts as another one from then on.
pub async fn rewind(
    db: &mut PgConnection,
    fence: Fence,
    contracts: &Contracts,
    from: BlockId,
    to: BlockId,
) -> Result<(), RewindError> {
    fence.check(db).await.map_err(ApplyError::from)?;
    move_cursor(db, fence, contracts, from, to).await?;
    forget_above(db, to.number).await?;
    forget_rows(db).await?;
    let mut next = 0;
    while next <= to.number {
        let until = stretch_end(db, next, to.number, EVENTS_AT_ONCE).await?;
        let logs = event::canonical_between(db, next, until).await?;
        let events =
            logs.into_iter().map(|log| ChainEvent::decode(log, contracts)).collect::<Result<Vec<_>, DecodeError>>()?;
        let keys: BTreeSet<Key> = events.iter().flat_map(|event| event.event.keys()).collect();
        let stored = rows::load(db, &keys).await?;
        let mut folded = stored.clone();
        for event in &events {
            folded.apply(event).map_err(ApplyError::from)?;
        }
        rows::save(db, &stored, &folded).await?;
        next = until + 1;
    }
    sqlx::query!("update redis_generation set generation = gen_random_uuid()::text").execute(db).await?;
    Ok(())
}

async fn forget_above(db: &mut PgConnection, number_above: u64) -> Result<(), sqlx::Error> {
    let number = to_db(number_above)?;
    // By the entries themselves: the events they follow from may be gone.
    let blocks = sqlx::query_scalar!(
        r#"select distinct block_hash as "hash: DbHash" from ledger_entry where block_number > $1"#,
        number
    )
    .fetch_all(&mut *db)
    .await?;
    let blocks: Vec<B256> = blocks.into_iter().map(B256::from).collect();
    ledger::reverse(db, number_above, &blocks).await?;
    sqlx::query!("delete from chain_redemption where block_number > $1", number).execute(&mut *db).await?;
    sqlx::query!("delete from chain_event where block_number > $1", number).execute(&mut *db).await?;
    sqlx::query!("delete from chain_block where number > $1", number).execute(&mut *db).await?;
    sqlx::query!("delete from chain_undo").execute(&mut *db).await?;
    sqlx::query!("update chain_cursor set undo_above = $1", number).execute(db).await?;
    Ok(())
}

async fn forget_rows(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from escrow_job").execute(&mut *db).await?;
    sqlx::query!("delete from escrow_account").execute(&mut *db).await?;
    sqlx::query!("delete from escrow_earned").execute(&mut *db).await?;
    sqlx::query!("delete from escrow_channel").execute(&mut *db).await?;
    sqlx::query!("delete from escrow_session").execute(&mut *db).await?;
    sqlx::query!("delete from escrow_settler").execute(&mut *db).await?;
    sqlx::query!("delete from escrow_fee").execute(&mut *db).await?;
    sqlx::query!("delete from chain_parameter").execute(&mut *db).await?;
    sqlx::query!("delete from registry_node").execute(db).await?;
    Ok(())
}
