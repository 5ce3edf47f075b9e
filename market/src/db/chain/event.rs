//! `chain_event`.

use std::collections::BTreeSet;

use alloy::primitives::{Address, B256, Bytes};
use sqlx::postgres::PgConnection;

use super::{from_db, to_db};
use crate::db::types::{DbAddress, DbHash};
use crate::fold::{ChainEvent, Key, RawLog};

/// The key columns of an event.
#[derive(Default)]
struct KeyColumns {
    account: Option<Address>,
    node: Option<Address>,
    token: Option<Address>,
}

impl KeyColumns {
    fn of(event: &ChainEvent) -> Self {
        let mut columns = Self::default();
        for key in event.event.keys() {
            match key {
                Key::Job(_) => {}
                Key::Account { owner, token } => (columns.account, columns.token) = (Some(owner), Some(token)),
                Key::Earned { node, token } => (columns.node, columns.token) = (Some(node), Some(token)),
                Key::Node(node) => columns.node = Some(node),
            }
        }
        columns
    }
}

/// Writes events as canonical. An event whose block was orphaned may come back with it.
pub(super) async fn insert(db: &mut PgConnection, events: &[ChainEvent]) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    let logs = || events.iter().map(|event| &event.log);
    let keys: Vec<KeyColumns> = events.iter().map(KeyColumns::of).collect();
    let log_indexes = logs().map(|log| to_db(log.log_index)).collect::<Result<Vec<_>, _>>()?;
    let block_numbers = logs().map(|log| to_db(log.block_number)).collect::<Result<Vec<_>, _>>()?;
    let kinds: Vec<String> = events.iter().map(|event| event.event.kind().to_owned()).collect();
    sqlx::query!(
        "insert into chain_event (block_hash, log_index, block_number, tx_hash, contract, kind, topics, data, job_id,
                                  account, node, token, canonical)
         select *, true from unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[], $6::text[],
                                    $7::bytea[], $8::bytea[], $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[])
         on conflict (block_hash, log_index) do update set canonical = true",
        &logs().map(|log| DbHash(log.block_hash)).collect::<Vec<_>>() as _,
        &log_indexes,
        &block_numbers,
        &logs().map(|log| DbHash(log.tx_hash)).collect::<Vec<_>>() as _,
        &logs().map(|log| DbAddress(log.contract)).collect::<Vec<_>>() as _,
        &kinds,
        &logs().map(|log| log.topics.concat()).collect::<Vec<Vec<u8>>>(),
        &logs().map(|log| log.data.to_vec()).collect::<Vec<Vec<u8>>>(),
        &events.iter().map(|event| event.event.job_id().map(DbHash)).collect::<Vec<_>>() as _,
        &keys.iter().map(|key| key.account.map(DbAddress)).collect::<Vec<_>>() as _,
        &keys.iter().map(|key| key.node.map(DbAddress)).collect::<Vec<_>>() as _,
        &keys.iter().map(|key| key.token.map(DbAddress)).collect::<Vec<_>>() as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What [`orphan_above`] undid.
pub(super) struct Undone {
    /// How many events.
    pub(super) events: u64,
    /// The rows they had changed.
    pub(super) keys: BTreeSet<Key>,
}

/// Marks the events of all blocks above `number` as no longer canonical.
pub(super) async fn orphan_above(db: &mut PgConnection, number: u64) -> Result<Undone, sqlx::Error> {
    let rows = sqlx::query!(
        r#"update chain_event set canonical = false where canonical and block_number > $1
           returning kind, job_id as "job_id?: DbHash", account as "account?: DbAddress", node as "node?: DbAddress",
                     token as "token?: DbAddress""#,
        to_db(number)?
    )
    .fetch_all(db)
    .await?;
    let mut undone = Undone { events: 0, keys: BTreeSet::new() };
    for row in rows {
        undone.events += 1;
        let token = row.token.map(|token| token.0);
        // A Skipped names a job, and perhaps one that does not exist, without changing it.
        if let Some(job_id) = row.job_id.filter(|_| row.kind != "Skipped") {
            undone.keys.insert(Key::Job(job_id.0));
        }
        if let (Some(owner), Some(token)) = (row.account, token) {
            undone.keys.insert(Key::Account { owner: owner.0, token });
        }
        if let Some(node) = row.node {
            undone.keys.insert(token.map_or(Key::Node(node.0), |token| Key::Earned { node: node.0, token }));
        }
    }
    Ok(undone)
}

/// The canonical events that changed the rows of `keys`, in the chain's order.
pub(super) async fn canonical_of(db: &mut PgConnection, keys: &BTreeSet<Key>) -> Result<Vec<RawLog>, sqlx::Error> {
    let by_key = ByKey::of(keys);
    let rows = sqlx::query!(
        r#"with touching as (
               select e.block_hash, e.log_index from chain_event e
               where e.canonical and e.job_id = any($1::bytea[])
               union
               select e.block_hash, e.log_index from unnest($2::bytea[], $3::bytea[]) as k (owner, token)
               join chain_event e on e.canonical and e.account = k.owner and e.token = k.token
               union
               select e.block_hash, e.log_index from unnest($4::bytea[], $5::bytea[]) as k (node, token)
               join chain_event e on e.canonical and e.node = k.node and e.token = k.token
               union
               select e.block_hash, e.log_index from unnest($6::bytea[]) as k (node)
               join chain_event e on e.canonical and e.node = k.node and e.token is null
           )
           select e.block_hash as "block_hash: DbHash", e.log_index, e.block_number, b.mined_at,
                  e.tx_hash as "tx_hash: DbHash", e.contract as "contract: DbAddress", e.topics, e.data
           from touching t
           join chain_event e on e.block_hash = t.block_hash and e.log_index = t.log_index
           join chain_block b on b.hash = e.block_hash
           order by e.block_number, e.log_index"#,
        &by_key.jobs as _,
        &by_key.owners as _,
        &by_key.owners_tokens as _,
        &by_key.earners as _,
        &by_key.earners_tokens as _,
        &by_key.nodes as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(RawLog {
                block_number: from_db(row.block_number)?,
                block_hash: row.block_hash.0,
                mined_at: row.mined_at,
                tx_hash: row.tx_hash.0,
                log_index: from_db(row.log_index)?,
                contract: row.contract.0,
                topics: row.topics.chunks_exact(32).map(B256::from_slice).collect(),
                data: Bytes::from(row.data),
            })
        })
        .collect()
}

/// Keys as arrays for `unnest`.
#[derive(Default)]
struct ByKey {
    jobs: Vec<DbHash>,
    owners: Vec<DbAddress>,
    owners_tokens: Vec<DbAddress>,
    earners: Vec<DbAddress>,
    earners_tokens: Vec<DbAddress>,
    nodes: Vec<DbAddress>,
}

impl ByKey {
    fn of(keys: &BTreeSet<Key>) -> Self {
        let mut by_key = Self::default();
        for key in keys {
            match *key {
                Key::Job(job_id) => by_key.jobs.push(DbHash(job_id)),
                Key::Account { owner, token } => {
                    by_key.owners.push(DbAddress(owner));
                    by_key.owners_tokens.push(DbAddress(token));
                }
                Key::Earned { node, token } => {
                    by_key.earners.push(DbAddress(node));
                    by_key.earners_tokens.push(DbAddress(token));
                }
                Key::Node(node) => by_key.nodes.push(DbAddress(node)),
            }
        }
        by_key
    }
}
