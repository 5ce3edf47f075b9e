//! Following the chain: blocks, events, the cursor, and the rows that events amount to. Writer: the indexer.
//!
//! [`apply`] is the only way forward and back. It is one transaction of the caller's: the leader's fence, the cursor
//! (compare and set), what is undone, blocks, events, folded rows and outbox go together or not at all, so a process may
//! die anywhere.

mod block;
mod changes;
mod covered;
mod event;
mod rewind;
mod rows;
mod state;
#[cfg(test)]
mod tests;
mod undo;

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::confirmation;
use super::indexing::{self, Reorg};
use super::leader::{Fence, FenceError};
use super::ledger::{self, Booked};
use super::outbox::{self, Source};
use super::types::{DbAddress, DbHash};
use crate::fold::{ChainEvent, Contracts, EscrowChannel, FoldError, Images, Key, Rows};
use crate::ledger::{Balances, entries};
use changes::Changes;

pub use block::{canonical_at_or_below, prune_headers};
pub use event::canonical_between;
pub use rewind::{RewindError, events_above, lowest, rewind};
pub use rows::{all as all_rows, all_but_jobs as all_rows_but_jobs, load as rows_of};
pub use state::canonical_state;

/// Headers of blocks without events are kept this far below the cursor, to find where a reorg branched off. The rows' images
/// are to be kept at least as far: see [`Step::settled`].
pub const HEADERS_KEPT: u64 = 256;

/// `escrow_channel`, by requester, node and token.
type Channels = BTreeMap<(Address, Address, Address), EscrowChannel>;

/// A block's number and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BlockId {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// What is kept of a block's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its number and hash.
    pub id: BlockId,
    /// Hash of its parent.
    pub parent_hash: B256,
    /// Its timestamp.
    pub mined_at: DateTime<Utc>,
}

/// How far the indexer is, and on which deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// The `JobEscrow`.
    pub escrow: Address,
    /// The `NodeRegistry`.
    pub registry: Address,
    /// The last applied block.
    pub block: BlockId,
    /// Blocks above this one can be taken back.
    pub undo_above: u64,
    /// Epoch of the leader that wrote last.
    pub epoch: i64,
}

/// One step of the cursor.
#[derive(Debug, Clone)]
pub struct Step {
    /// Where the cursor stands.
    pub from: BlockId,
    /// The last block that stays, where the chain branched off below the cursor.
    pub ancestor: Option<BlockId>,
    /// What comes after it, or after `from`: the last one becomes the cursor. Blocks without events may be left out.
    pub blocks: Vec<Block>,
    /// All events of these blocks and of those left out, in the chain's order.
    pub events: Vec<ChainEvent>,
    /// Blocks up to this number will never be taken back: of what they change no images are kept, and those there are go.
    pub settled: u64,
}

/// What [`apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Events that no longer count.
    pub events_undone: u64,
    /// Rows written or removed.
    pub rows: usize,
}

/// Why [`apply`] changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// This process does not lead any more, or the database did not answer.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// Someone else moved the cursor, or it is that of another deployment.
    #[error("the cursor of these contracts is no longer at block {} ({})", .0.number, .0.hash)]
    CursorMoved(BlockId),
    /// A step that leads nowhere.
    #[error("a step of the cursor needs at least one block")]
    NoBlocks,
    /// The events do not follow one another.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The blocks to be taken back changed rows of which no images are kept.
    #[error(
        "the chain branched off at block {ancestor}, but blocks can be taken back only above block {undo_above}; nothing was \
         taken back. If the node is on the right chain, index it again into an empty database"
    )]
    TooDeep {
        /// The last block that was to stay.
        ancestor: u64,
        /// See [`Cursor::undo_above`].
        undo_above: u64,
    },
    /// The database refused or did not answer.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// A number of the chain as `bigint`.
pub(super) fn to_db(number: u64) -> Result<i64, sqlx::Error> {
    i64::try_from(number).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

/// A `bigint` as a number of the chain.
pub(super) fn from_db(number: i64) -> Result<u64, sqlx::Error> {
    u64::try_from(number).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// The cursor; nothing before [`begin`].
pub async fn cursor(db: &mut PgConnection) -> Result<Option<Cursor>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select chain_id, escrow as "escrow: DbAddress", registry as "registry: DbAddress", block_number,
                  block_hash as "block_hash: DbHash", undo_above, epoch
           from chain_cursor"#
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Cursor {
            chain_id: from_db(row.chain_id)?,
            escrow: row.escrow.0,
            registry: row.registry.0,
            block: BlockId { number: from_db(row.block_number)?, hash: row.block_hash.0 },
            undo_above: from_db(row.undo_above)?,
            epoch: row.epoch,
        })
    })
    .transpose()
}

/// Sets the cursor on `anchor`, a block with no events of `contracts` in it or below it.
pub async fn begin(
    db: &mut PgConnection,
    fence: Fence,
    contracts: &Contracts,
    anchor: &Block,
) -> Result<(), ApplyError> {
    fence.check(db).await?;
    block::insert(db, std::slice::from_ref(anchor)).await?;
    let inserted = sqlx::query!(
        "insert into chain_cursor (chain_id, escrow, registry, block_number, block_hash, undo_above, epoch)
         values ($1, $2, $3, $4, $5, $4, $6) on conflict do nothing",
        to_db(contracts.chain_id)?,
        DbAddress(contracts.escrow) as _,
        DbAddress(contracts.registry) as _,
        to_db(anchor.id.number)?,
        DbHash(anchor.id.hash) as _,
        fence.epoch()
    )
    .execute(db)
    .await?;
    if inserted.rows_affected() == 1 { Ok(()) } else { Err(ApplyError::CursorMoved(anchor.id)) }
}

/// Takes `step` within the caller's transaction, which must be rolled back on an error.
pub async fn apply(
    db: &mut PgConnection,
    fence: Fence,
    contracts: &Contracts,
    step: &Step,
    now: DateTime<Utc>,
) -> Result<Applied, ApplyError> {
    fence.check(db).await?;
    let tip = step.blocks.last().ok_or(ApplyError::NoBlocks)?.id;
    let undo_above = move_cursor(db, fence, contracts, step.from, tip).await?;
    let mut changes = Changes::default();
    let mut applied = Applied::default();
    if let Some(ancestor) = step.ancestor {
        if ancestor.number < undo_above {
            return Err(ApplyError::TooDeep { ancestor: ancestor.number, undo_above });
        }
        take_back(db, ancestor, step.from, &mut changes, &mut applied).await?;
        let (from, events_undone) = (step.from, applied.events_undone);
        indexing::note_reorg(db, &Reorg { at: now, ancestor: ancestor.number, from, to: tip, events_undone }).await?;
    }
    extend(db, step, &mut changes, &mut applied).await?;
    changes.tell_moves(contracts)?;
    if tip.number <= step.settled {
        changes.keep_last();
    }
    undo::settle(db, step, undo_above).await?;
    let stays = step.ancestor.unwrap_or(step.from);
    changes.tell(confirmation::moved(db, step.from.number, tip.number, stays.number).await?);
    outbox::append_many(db, Source::Chain, changes.told(), now).await?;
    Ok(applied)
}

/// Takes back all blocks above `ancestor` up to `from`.
async fn take_back(
    db: &mut PgConnection,
    ancestor: BlockId,
    from: BlockId,
    changes: &mut Changes,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let ancestor = ancestor.number;
    changes.expect(event::canonical_between(db, ancestor + 1, from.number).await?);
    applied.events_undone += event::orphan_above(db, ancestor).await?;
    let orphans = block::orphan_above(db, ancestor).await?;
    ledger::reverse(db, ancestor, &orphans).await?;
    let (keys, before) = undo::restored(db, ancestor).await?;
    let stored = rows::load(db, &keys).await?;
    rows::save(db, &stored, &before).await?;
    rows::delete_missing(db, &keys, &before).await?;
    let covered = covered::changes(db, &with_missing(&stored.channels, &keys), &before, true).await?;
    changes.undone(&keys, covered);
    applied.rows += keys.len();
    Ok(())
}

/// Goes forward over the step's blocks.
async fn extend(
    db: &mut PgConnection,
    step: &Step,
    changes: &mut Changes,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let back = block::insert(db, &step.blocks).await?;
    let keys: BTreeSet<Key> = step.events.iter().flat_map(|event| event.event.keys()).collect();
    let stored = rows::load(db, &keys).await?;
    let mut folding = Folding::of(&stored, step.settled, changes);
    event::insert(db, &step.events, &back, |events| events.iter().try_for_each(|event| folding.fold(event))).await?;
    undo::keep(db, &folding.images).await?;
    rows::save(db, &stored, &folding.rows).await?;
    ledger::append(db, &folding.book).await?;
    let covered = covered::changes(db, &with_missing(&stored.channels, &keys), &folding.rows, false).await?;
    changes.tell(covered);
    applied.rows += keys.len();
    Ok(())
}

/// What the events of a step amount to, as they are folded.
struct Folding<'a> {
    settled: u64,
    rows: Rows,
    images: Images,
    book: Vec<Booked>,
    changes: &'a mut Changes,
}

impl<'a> Folding<'a> {
    fn of(stored: &Rows, settled: u64, changes: &'a mut Changes) -> Self {
        Self { settled, rows: stored.clone(), images: Images::default(), book: Vec::new(), changes }
    }

    fn fold(&mut self, event: &ChainEvent) -> Result<(), FoldError> {
        let touched = event.event.keys();
        if event.log.block_number > self.settled {
            self.images.keep(event.log.block_number, &touched, &self.rows);
        }
        let before = Balances::of(&self.rows, &touched);
        self.rows.apply(event)?;
        let after = Balances::of(&self.rows, &touched);
        let entries = entries(&event.event, &before, &after);
        self.book.extend(entries.into_iter().map(|entry| Booked::new(&event.log, entry)));
        self.changes.happened(event);
        Ok(())
    }
}

/// All channels among `keys`, also those of which there is no row yet.
fn with_missing(rows: &Channels, keys: &BTreeSet<Key>) -> Channels {
    let channel = |key: &Key| match *key {
        Key::Channel { requester, node, token } => Some((requester, node, token)),
        _ => None,
    };
    let row = |channel| (channel, rows.get(&channel).copied().unwrap_or_default());
    keys.iter().filter_map(channel).map(row).collect()
}

/// Returns above which block images are kept.
async fn move_cursor(
    db: &mut PgConnection,
    fence: Fence,
    contracts: &Contracts,
    from: BlockId,
    to: BlockId,
) -> Result<u64, ApplyError> {
    let moved = sqlx::query_scalar!(
        "update chain_cursor set block_number = $1, block_hash = $2, epoch = $3
         where block_number = $4 and block_hash = $5 and epoch <= $3 and chain_id = $6 and escrow = $7 and registry = $8
         returning undo_above",
        to_db(to.number)?,
        DbHash(to.hash) as _,
        fence.epoch(),
        to_db(from.number)?,
        DbHash(from.hash) as _,
        to_db(contracts.chain_id)?,
        DbAddress(contracts.escrow) as _,
        DbAddress(contracts.registry) as _
    )
    .fetch_optional(db)
    .await?;
    Ok(from_db(moved.ok_or(ApplyError::CursorMoved(from))?)?)
}
