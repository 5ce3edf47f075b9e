//! What must hold: at every moment, once all is quiet, and at the end.

use std::collections::BTreeSet;

use market::confirmation::{Finality, Policy};
use market::db::outbox::{self, Source};
use market::db::{audit, chain, confirmation, ledger};
use market::fold::{ChainEvent, EscrowState, Rows, model};
use market::redis::client::Client;
use market::redis::rebuild;
use sqlx::PgPool;

use super::chain::Tree;
use super::rpc::FINALIZED;
use super::stores;

/// Something is not as it must be.
#[derive(Debug)]
pub struct Broken(pub String);

/// What a look at the database came to.
pub type Looked = Result<Result<(), Broken>, sqlx::Error>;

fn broken(what: impl Into<String>) -> Looked {
    Ok(Err(Broken(what.into())))
}

/// The events of the branch that ends in `cursor`.
fn events(tree: &Tree, cursor: chain::BlockId) -> Vec<ChainEvent> {
    tree.branch(cursor.hash).iter().flat_map(|block| block.events()).collect()
}

/// That at this moment, whatever is going on, the database holds what its cursor's block amounts to: no event too many or too
/// few, rows that are the fold of them, a ledger that balances. Needs that the cursor's block exists, which only an endpoint
/// that invents hashes can prevent.
pub async fn at_any_moment(pool: &PgPool, tree: &Tree) -> Looked {
    let mut db = audit::snapshot(pool).await?;
    let Some(cursor) = chain::cursor(&mut db).await? else { return Ok(Ok(())) };
    if !tree.blocks.contains_key(&cursor.block.hash) {
        return Ok(Ok(()));
    }
    let expected = events(tree, cursor.block);
    let logs: Vec<_> = expected.iter().map(|event| event.log.clone()).collect();
    let stored = chain::canonical_between(&mut db, 0, cursor.block.number).await?;
    if stored != logs {
        let block = stored.iter().zip(&logs).find(|(a, b)| a != b).map_or(cursor.block.number, |(a, _)| a.block_number);
        let (cursor, ours, theirs) = (cursor.block.number, stored.len(), logs.len());
        return broken(format!("{ours} events up to {cursor}, not the chain's {theirs}; they differ at block {block}"));
    }
    let mut rows = Rows::default();
    for event in &expected {
        if let Err(error) = rows.apply(event) {
            return broken(format!("the simulated chain is impossible: {error}"));
        }
    }
    let found = chain::all_rows(&mut db).await?;
    if found != rows {
        return broken(format!("rows are not the fold of their events:\n{found:?}\ninstead of\n{rows:?}"));
    }
    let pending = ledger::not_taken_back(&mut db).await?;
    if !pending.is_empty() {
        return broken(format!("the ledger still has what was undone: {pending:?}"));
    }
    Ok(Ok(()))
}

/// Whether the database is at the chain's head, knows what is final by the nodes' word, and Redis has all of it.
pub async fn is_settled(
    pool: &PgPool,
    tree: &Tree,
    policy: &Policy,
    redis: &Client,
) -> Result<Result<(), String>, sqlx::Error> {
    let mut db = pool.acquire().await?;
    let head = tree.head();
    let cursor = chain::cursor(&mut db).await?;
    if cursor.as_ref().is_none_or(|cursor| cursor.block.hash != head.hash) {
        return Ok(Err(format!("the cursor is at {:?}, not at block {}", cursor.map(|c| c.block.number), head.number)));
    }
    let standing = confirmation::standing(&mut db).await?;
    let (known, wanted) = (standing.and_then(|standing| standing.final_block), head.number.saturating_sub(FINALIZED));
    if policy.finality() == Finality::Tag && known.is_none_or(|known| known < wanted) {
        return Ok(Err(format!("blocks up to {known:?} are final, not up to {wanted}")));
    }
    let (rows, _) = outbox::depth(&mut db, Source::Chain).await?;
    if rows > 0 {
        return Ok(Err(format!("{rows} rows are in the outbox")));
    }
    let wanted = market::db::projection::generation(&mut db).await?;
    match rebuild::generation(redis).await {
        Ok(found) if found.as_ref() == Some(&wanted) => Ok(Ok(())),
        Ok(_) => Ok(Err("Redis is not filled".to_owned())),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// That every job in the queue is open on the canonical chain, once all is quiet.
pub async fn queue(pool: &PgPool, redis: &Client) -> Looked {
    let keys = match stores::keys(redis).await {
        Ok(keys) => keys,
        Err(error) => return broken(format!("Redis: {error}")),
    };
    let rows = chain::all_rows(&mut *pool.acquire().await?).await?;
    let open = rows.jobs.iter().filter(|(_, job)| job.state == EscrowState::Open).map(|(id, _)| id.to_string());
    let open: BTreeSet<String> = open.collect();
    let queued = keys.get("jobs:pending").map(|key| key["value"].clone()).unwrap_or_default();
    for member in queued.as_array().into_iter().flatten() {
        let job = member[0].as_str().unwrap_or_default();
        if !open.contains(job) {
            return broken(format!("{job} is in the queue and not open"));
        }
    }
    Ok(Ok(()))
}

/// The first lines in which two states differ.
pub fn difference<T: PartialEq + std::fmt::Debug>(ours: &[T], fresh: &[T]) -> Option<String> {
    if ours == fresh {
        return None;
    }
    let only = |these: &[T], those: &[T]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).take(5).map(|line| format!("{line:?}")).collect()
    };
    let [here, there] = [only(ours, fresh), only(fresh, ours)];
    Some(format!("only here: {here:#?}\nonly in a fresh index: {there:#?}"))
}

pub fn now() -> chrono::DateTime<chrono::Utc> {
    market::fold::time_of(model::START + 500)
}
