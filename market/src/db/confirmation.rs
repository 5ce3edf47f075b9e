//! How deep what is on the chain lies, and which entities change by that alone. Writer: the indexer.
//!
//! Depth is counted in applied blocks (see the view `chain_level`). Whenever the cursor moves ([`moved`]) or the chain's
//! nodes call more of it final ([`observe`]), the jobs and nodes whose level that changes come into the outbox, found by
//! ranges of block numbers: what is deeper or shallower did not change.

use std::collections::BTreeSet;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::chain::{BlockId, HEADERS_KEPT, from_db, to_db};
use super::leader::{Fence, FenceError};
use super::outbox::{self, Entity, Source};
use super::types::{DbAddress, DbAmount, DbHash};
use crate::confirmation::{self, Confirmation, Finality, Policy, Step};

/// Where the chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Number of the last applied block.
    pub block: u64,
    /// The latest applied block that counts as final; nothing if none does.
    pub final_block: Option<u64>,
    /// The latest applied block that no reorg is followed below: what is settled at or under it is settled for good.
    pub irrevocable: Option<u64>,
    /// Latest block that the chain was seen to have.
    pub head: Option<u64>,
}

/// Where a view found the latest that the chain says of something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Number of the block.
    pub block: Option<i64>,
    /// Its hash.
    pub hash: Option<DbHash>,
    /// Whether that is deep enough for what it is worth.
    pub is_deep: bool,
}

impl Seen {
    /// How sure it is with the cursor at block `cursor` and blocks up to `last` final; nothing of what was not seen.
    pub fn confirmation(self, cursor: i64, last: i64) -> Result<Option<Confirmation>, sqlx::Error> {
        let Some(block) = self.block else { return Ok(None) };
        let level = match (block <= last, self.is_deep) {
            (true, _) => confirmation::Level::Final,
            (false, true) => confirmation::Level::Confirmed,
            (false, false) => confirmation::Level::Pending,
        };
        Ok(Some(Confirmation {
            block_number: from_db(block)?,
            block_hash: self.hash.map(B256::from),
            depth: from_db(cursor.saturating_sub(block).max(0))?,
            level,
        }))
    }
}

/// Why what the chain's nodes say was not taken down.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// This process does not lead any more, or the database did not answer.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// Nothing is indexed yet.
    #[error("there is no cursor yet")]
    NoCursor,
    /// A final block is not the one that was applied.
    #[error("block {number} is {applied} here, but {finalized} is final on the chain")]
    Contradicted {
        /// Its height.
        number: u64,
        /// As applied.
        applied: B256,
        /// As the chain's nodes say.
        finalized: B256,
    },
    /// The database refused or did not answer.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// Where the chain stands; nothing before the indexer began.
pub async fn standing(db: &mut PgConnection) -> Result<Option<Standing>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select l.block_number as "block!", l.final_number as "final!", c.head_number,
                  coalesce(p.reorgs_below_final, false) as "reorgs!"
           from chain_cursor c cross join chain_level l left join confirmation_policy p on true"#
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let (block, final_block) = (from_db(row.block)?, u64::try_from(row.r#final).ok());
        let irrevocable = if row.reorgs { block.checked_sub(HEADERS_KEPT) } else { final_block };
        Ok(Standing { block, final_block, irrevocable, head: row.head_number.map(from_db).transpose()? })
    })
    .transpose()
}

/// Makes `policy` the one that holds. To be called by each leader before its first step, since a manifest can be changed
/// between two of them; after the first block. Open jobs that are not final are looked at again if it is another one.
pub async fn adopt(
    db: &mut PgConnection,
    fence: Fence,
    policy: &Policy,
    now: DateTime<Utc>,
) -> Result<(), ObserveError> {
    fence.check(db).await?;
    if stored_policy(db).await?.as_ref() == Some(policy) {
        return Ok(());
    }
    store_policy(db, policy).await?;
    let changed = sqlx::query_scalar!(
        r#"select e.job_id as "job_id: DbHash" from escrow_job e cross join chain_level l
           where e.state = 'open' and e.opened_block > l.final_number order by e.opened_block, e.job_id"#
    )
    .fetch_all(&mut *db)
    .await?;
    let mut changes: Vec<_> = changed.into_iter().map(|id| (Entity::Job(id.0), "job.confirmed")).collect();
    let cursor = cursor(db).await?.ok_or(ObserveError::NoCursor)?;
    changes.extend(moved(db, cursor.block, cursor.block, cursor.block).await?);
    outbox::append_many(db, Source::Chain, &changes, now).await?;
    Ok(())
}

/// The policy that holds; nothing before the first was adopted.
async fn stored_policy(db: &mut PgConnection) -> Result<Option<Policy>, sqlx::Error> {
    let Some(row) = sqlx::query!("select final_depth, reorgs_below_final from confirmation_policy")
        .fetch_optional(&mut *db)
        .await?
    else {
        return Ok(None);
    };
    let steps = sqlx::query!(
        r#"select token as "token: DbAddress", up_to as "up_to: DbAmount", depth from confirmation_step
           order by token, up_to"#
    )
    .fetch_all(db)
    .await?;
    let finality = row.final_depth.map(from_db).transpose()?.map_or(Finality::Tag, Finality::Depth);
    let step =
        |token: DbAddress, up_to: DbAmount, depth| Ok(Step { token: token.0, up_to: up_to.0, depth: from_db(depth)? });
    let steps =
        steps.into_iter().map(|row| step(row.token, row.up_to, row.depth)).collect::<Result<_, sqlx::Error>>()?;
    Policy::new(finality, row.reorgs_below_final, steps).map(Some).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

async fn store_policy(db: &mut PgConnection, policy: &Policy) -> Result<(), sqlx::Error> {
    let final_depth = match policy.finality() {
        Finality::Tag => None,
        Finality::Depth(blocks) => Some(to_db(blocks)?),
    };
    sqlx::query!(
        "insert into confirmation_policy (final_depth, reorgs_below_final) values ($1, $2)
         on conflict (singleton) do update set
             final_depth = excluded.final_depth, reorgs_below_final = excluded.reorgs_below_final",
        final_depth,
        policy.follows_reorgs_below_final()
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!("delete from confirmation_step").execute(&mut *db).await?;
    let tokens: Vec<DbAddress> = policy.queue().iter().map(|step| DbAddress(step.token)).collect();
    let up_to: Vec<DbAmount> = policy.queue().iter().map(|step| DbAmount(step.up_to)).collect();
    let depths = policy.queue().iter().map(|step| to_db(step.depth)).collect::<Result<Vec<_>, _>>()?;
    sqlx::query!(
        "insert into confirmation_step (token, up_to, depth)
         select * from unnest($1::bytea[], $2::numeric[], $3::bigint[])",
        &tokens as _,
        &up_to as _,
        &depths
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes down the chain's latest block and, where its nodes say which that is, its latest final one. `finalized` must be of
/// the chain that the cursor's block is on too: where it is above the cursor the caller has looked that up, for after a
/// restart the cursor may stand on an orphan. A node that is behind what was known before changes nothing.
pub async fn observe(
    db: &mut PgConnection,
    fence: Fence,
    head: u64,
    finalized: Option<BlockId>,
    now: DateTime<Utc>,
) -> Result<Standing, ObserveError> {
    fence.check(db).await?;
    let before = cursor(db).await?.ok_or(ObserveError::NoCursor)?;
    let by_tag = sqlx::query_scalar!(r#"select final_depth is null as "by_tag!" from confirmation_policy"#)
        .fetch_optional(&mut *db)
        .await?
        .unwrap_or(false);
    let finalized = finalized.filter(|block| by_tag && before.final_number.is_none_or(|known| known < block.number));
    if let Some(finalized) = finalized {
        check_canonical(db, finalized).await?;
    }
    let final_number = finalized.map(|block| block.number).or(before.final_number);
    if before.head != Some(head) || final_number != before.final_number {
        sqlx::query!(
            "update chain_cursor set head_number = $1, final_number = $2",
            to_db(head)?,
            final_number.map(to_db).transpose()?
        )
        .execute(&mut *db)
        .await?;
    }
    if final_number != before.final_number {
        let changes =
            changed(db, before.level(), Level { block: before.block, last: final_number }, before.block).await?;
        outbox::append_many(db, Source::Chain, &changes, now).await?;
    }
    standing(db).await?.ok_or(ObserveError::NoCursor)
}

async fn check_canonical(db: &mut PgConnection, finalized: BlockId) -> Result<(), ObserveError> {
    let applied = sqlx::query_scalar!(
        r#"select hash as "hash: DbHash" from chain_block where canonical and number = $1"#,
        to_db(finalized.number)?
    )
    .fetch_optional(db)
    .await?;
    match applied {
        Some(DbHash(applied)) if applied != finalized.hash => {
            Err(ObserveError::Contradicted { number: finalized.number, applied, finalized: finalized.hash })
        }
        _ => Ok(()),
    }
}

/// After the cursor moved from block `from` to block `to`: moves finality along where that is a depth, and returns what
/// became deep enough, or too shallow, by that. Blocks above `stays` were applied in this very transaction and what they
/// changed is told anyway.
pub(super) async fn moved(
    db: &mut PgConnection,
    from: u64,
    to: u64,
    stays: u64,
) -> Result<Vec<(Entity, &'static str)>, sqlx::Error> {
    let Some(policy) = sqlx::query!("select final_depth, reorgs_below_final from confirmation_policy")
        .fetch_optional(&mut *db)
        .await?
    else {
        return Ok(Vec::new());
    };
    let known = cursor(db).await?.and_then(|cursor| cursor.final_number);
    let last = match policy.final_depth {
        None => known,
        Some(depth) => {
            let deep = to.checked_sub(from_db(depth)?);
            if policy.reorgs_below_final { deep } else { deep.max(known) }
        }
    };
    if last != known {
        sqlx::query!("update chain_cursor set final_number = $1", last.map(to_db).transpose()?)
            .execute(&mut *db)
            .await?;
    }
    changed(db, Level { block: from, last: known }, Level { block: to, last }, stays).await
}

/// How far the chain is at one moment.
#[derive(Debug, Clone, Copy)]
struct Level {
    /// Of the cursor.
    block: u64,
    /// Latest final one, which may lie above the cursor.
    last: Option<u64>,
}

impl Level {
    fn final_number(self) -> Result<i64, sqlx::Error> {
        self.last.map_or(Ok(-1), |last| to_db(last.min(self.block)))
    }
}

struct Cursor {
    block: u64,
    final_number: Option<u64>,
    head: Option<u64>,
}

impl Cursor {
    fn level(&self) -> Level {
        Level { block: self.block, last: self.final_number }
    }
}

/// The cursor, held until the transaction ends.
async fn cursor(db: &mut PgConnection) -> Result<Option<Cursor>, sqlx::Error> {
    let row = sqlx::query!("select block_number, final_number, head_number from chain_cursor for update")
        .fetch_optional(db)
        .await?;
    row.map(|row| {
        Ok(Cursor {
            block: from_db(row.block_number)?,
            final_number: row.final_number.map(from_db).transpose()?,
            head: row.head_number.map(from_db).transpose()?,
        })
    })
    .transpose()
}

/// What changed between two levels by depth alone, in blocks up to `stays`.
async fn changed(
    db: &mut PgConnection,
    before: Level,
    after: Level,
    stays: u64,
) -> Result<Vec<(Entity, &'static str)>, sqlx::Error> {
    let finals = (before.final_number()?, after.final_number()?);
    let stays = to_db(stays)?;
    let mut changes = Vec::new();
    if finals.0.min(finals.1) < stays {
        changes.extend(queued(db, (to_db(before.block)?, to_db(after.block)?), finals, stays).await?);
        if finals.0 != finals.1 {
            changes.extend(settled(db, finals.0.min(finals.1), finals.0.max(finals.1).min(stays)).await?);
        }
    }
    Ok(changes)
}

/// Open jobs that became deep enough to be queued, or are no more.
async fn queued(
    db: &mut PgConnection,
    blocks: (i64, i64),
    finals: (i64, i64),
    stays: i64,
) -> Result<Vec<(Entity, &'static str)>, sqlx::Error> {
    let jobs = sqlx::query_scalar!(
        r#"select e.job_id as "job_id!: DbHash"
           from (select distinct depth from confirmation_step) d
           join escrow_job e on e.state = 'open' and e.opened_block <= $5::bigint
               and e.opened_block > least($3::bigint, $4::bigint)
               and e.opened_block > least($1::bigint, $2::bigint) - d.depth
               and e.opened_block <= greatest($1, $2) - d.depth
           where confirmation_depth(e.token, e.max_price) = d.depth
           union
           select e.job_id from escrow_job e
           where e.state = 'open' and e.opened_block > least($3, $4) and e.opened_block <= least(greatest($3, $4), $5)"#,
        blocks.0,
        blocks.1,
        finals.0,
        finals.1,
        stays
    )
    .fetch_all(db)
    .await?;
    Ok(jobs.into_iter().map(|DbHash(id)| (Entity::Job(id), "job.confirmed")).collect())
}

/// What the blocks above `low` up to `high` paid, decided or slashed.
async fn settled(db: &mut PgConnection, low: i64, high: i64) -> Result<Vec<(Entity, &'static str)>, sqlx::Error> {
    let closed = sqlx::query!(
        r#"select e.job_id as "job_id: DbHash", e.state, e.node as "node?: DbAddress",
                  coalesce(e.slashed > 0, false) as "slashed!"
           from escrow_job e
           where e.state in ('paid', 'resolved') and e.job_id in (
               select substring(q.topics from 33 for 32)  -- the first that is indexed
               from chain_event q
               where q.canonical and q.block_number > $1 and q.block_number <= $2 and q.kind in ('JobPaid', 'JobResolved')
           )
           order by e.closed_block, e.job_id"#,
        low,
        high
    )
    .fetch_all(&mut *db)
    .await?;
    let mut changes: Vec<(Entity, &'static str)> = Vec::new();
    let mut nodes: BTreeSet<Address> = BTreeSet::new();
    for row in closed {
        changes.push((Entity::Job(row.job_id.0), if row.state == "paid" { "job.paid" } else { "job.resolved" }));
        nodes.extend(row.node.filter(|_| row.slashed).map(Address::from));
    }
    changes.extend(redeemed(db, low, high).await?.into_iter().map(|id| (Entity::Job(id), "job.paid")));
    changes.extend(nodes.into_iter().map(|node| (Entity::Node(node), "node.slashed")));
    Ok(changes)
}

/// Signed orders that are not closed, of channels whose vouchers the blocks above `low` up to `high` redeemed.
async fn redeemed(db: &mut PgConnection, low: i64, high: i64) -> Result<Vec<B256>, sqlx::Error> {
    let jobs = sqlx::query_scalar!(
        r#"select distinct g.job_id as "job_id: DbHash"
           from chain_block b
           join chain_redemption r on r.block_number = b.number and r.block_hash = b.hash
           join signed_order g on g.requester = r.requester and g.token = r.token and g.nonce <= r.covered_nonce
               and g.closed_at is null and g.withdrawn_at is null
           join job_completion c on c.job_id = g.job_id and c.node = r.node
           where b.canonical and b.number > $1 and b.number <= $2"#,
        low,
        high
    )
    .fetch_all(db)
    .await?;
    Ok(jobs.into_iter().map(B256::from).collect())
}
