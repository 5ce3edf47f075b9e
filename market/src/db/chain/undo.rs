//! `chain_undo`: what rows were before a block changed them.

use std::collections::BTreeSet;

use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use super::{Step, to_db};
use crate::db::copy::{Copy, copy_row};
use crate::fold::{Images, Key, Row, Rows};

/// How far the settled block may move before images are deleted: not with every block.
const SETTLED_AT_ONCE: u64 = 32;

/// Writes images.
pub(super) async fn keep(db: &mut PgConnection, images: &Images) -> Result<(), sqlx::Error> {
    let mut images = images.iter().peekable();
    if images.peek().is_none() {
        return Ok(());
    }
    let mut copy = Copy::begin(db, "copy chain_undo (block_number, key, before) from stdin (format binary)").await?;
    for (number, key, row) in images {
        copy_row!(copy, to_db(number)?, Json(*key), row.map(Json));
    }
    copy.finish().await
}

/// The keys of all rows that blocks above `ancestor` changed, and these rows as they were before. Their images are gone then:
/// the rows are to be put back.
pub(super) async fn restored(db: &mut PgConnection, ancestor: u64) -> Result<(BTreeSet<Key>, Rows), sqlx::Error> {
    let images = sqlx::query!(
        r#"with gone as (delete from chain_undo where block_number > $1 returning block_number, key, before)
           select distinct on (key) key as "key!: Json<Key>", before as "before: Json<Row>"
           from gone order by key, block_number"#,
        to_db(ancestor)?
    )
    .fetch_all(db)
    .await?;
    let (mut keys, mut rows) = (BTreeSet::new(), Rows::default());
    for image in images {
        let key = image.key.0;
        keys.insert(key);
        if !rows.put(key, image.before.map(|row| row.0)) {
            return Err(sqlx::Error::Decode(format!("chain_undo holds a row of another table for {key:?}").into()));
        }
    }
    Ok((keys, rows))
}

/// Moves `undo_above` to where `step` leaves it, and forgets the images of blocks up to there.
pub(super) async fn settle(db: &mut PgConnection, step: &Step, undo_above: u64) -> Result<(), sqlx::Error> {
    let tip = step.blocks.last().map_or(step.from.number, |block| block.id.number);
    let settled = step.settled.min(tip);
    let first = step.ancestor.unwrap_or(step.from).number + 1;
    // Blocks of the step itself have left no images.
    let must = settled >= first && settled > undo_above;
    if !must && settled < undo_above.saturating_add(SETTLED_AT_ONCE) {
        return Ok(());
    }
    sqlx::query!(
        "with settled as (update chain_cursor set undo_above = $1)
         delete from chain_undo where block_number <= $1",
        to_db(settled)?
    )
    .execute(db)
    .await?;
    Ok(())
}
