//! `chain_event`.

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::{from_db, to_db};
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::fold::{ChainEvent, Event, Key, RawLog};

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
                Key::Job(_) | Key::Parameters => {}
                Key::Account { owner, token } => (columns.account, columns.token) = (Some(owner), Some(token)),
                Key::Earned { node, token } => (columns.node, columns.token) = (Some(node), Some(token)),
                Key::Node(node) | Key::Settler { node, .. } => columns.node = Some(node),
                Key::Channel { requester, node, token } => {
                    columns = Self { account: Some(requester), node: Some(node), token: Some(token) };
                }
                Key::Session { requester, token, .. } => {
                    (columns.account, columns.token) = (Some(requester), Some(token));
                }
                Key::Fee(token) => columns.token = Some(token),
            }
        }
        if let Event::VouchersRedeemed(_) = event.event {
            // Its requesters are in chain_redemption.
            columns.account = None;
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
    .execute(&mut *db)
    .await?;
    insert_redemptions(db, events).await
}

async fn insert_redemptions(db: &mut PgConnection, events: &[ChainEvent]) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for event in events {
        if let Event::VouchersRedeemed(redeemed) = &event.event {
            for (position, redemption) in (0_i32..).zip(&redeemed.redemptions) {
                rows.push((&event.log, position, redeemed, redemption));
            }
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let log_indexes = rows.iter().map(|row| to_db(row.0.log_index)).collect::<Result<Vec<_>, _>>()?;
    let block_numbers = rows.iter().map(|row| to_db(row.0.block_number)).collect::<Result<Vec<_>, _>>()?;
    sqlx::query!(
        "insert into chain_redemption (block_hash, log_index, position, block_number, requester, node, token, claimed,
                                       covered_nonce, drawn)
         select * from unnest($1::bytea[], $2::bigint[], $3::integer[], $4::bigint[], $5::bytea[], $6::bytea[],
                              $7::bytea[], $8::numeric[], $9::numeric[], $10::boolean[])
         on conflict do nothing",
        &rows.iter().map(|row| DbHash(row.0.block_hash)).collect::<Vec<_>>() as _,
        &log_indexes,
        &rows.iter().map(|row| row.1).collect::<Vec<_>>(),
        &block_numbers,
        &rows.iter().map(|row| DbAddress(row.3.requester)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAddress(row.2.node)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAddress(row.2.token)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAmount::from(row.3.claimed)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAmount::from(u128::from(row.3.covered_nonce))).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.3.has_drawn()).collect::<Vec<_>>(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Marks the events of all blocks above `number` as no longer canonical, and says which they were.
pub(super) async fn orphan_above(db: &mut PgConnection, number: u64) -> Result<Vec<RawLog>, sqlx::Error> {
    let rows = sqlx::query_as!(
        LogRow,
        r#"update chain_event e set canonical = false
           from chain_block b
           where b.hash = e.block_hash and e.canonical and e.block_number > $1
           returning e.block_hash as "block_hash: DbHash", e.log_index, e.block_number, b.mined_at,
                     e.tx_hash as "tx_hash: DbHash", e.contract as "contract: DbAddress", e.topics, e.data"#,
        to_db(number)?
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(LogRow::read).collect()
}

/// The canonical events of the blocks `from` to `to`, in the chain's order.
pub async fn canonical_between(db: &mut PgConnection, from: u64, to: u64) -> Result<Vec<RawLog>, sqlx::Error> {
    let rows = sqlx::query_as!(
        LogRow,
        r#"select e.block_hash as "block_hash: DbHash", e.log_index, e.block_number, b.mined_at,
                  e.tx_hash as "tx_hash: DbHash", e.contract as "contract: DbAddress", e.topics, e.data
           from chain_event e
           join chain_block b on b.hash = e.block_hash
           where e.canonical and e.block_number between $1 and $2
           order by e.block_number, e.log_index"#,
        to_db(from)?,
        to_db(to)?
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(LogRow::read).collect()
}

/// A [`RawLog`] in its columns.
pub(super) struct LogRow {
    pub(super) block_hash: DbHash,
    pub(super) log_index: i64,
    pub(super) block_number: i64,
    pub(super) mined_at: DateTime<Utc>,
    pub(super) tx_hash: DbHash,
    pub(super) contract: DbAddress,
    pub(super) topics: Vec<u8>,
    pub(super) data: Vec<u8>,
}

impl LogRow {
    pub(super) fn read(self) -> Result<RawLog, sqlx::Error> {
        Ok(RawLog {
            block_number: from_db(self.block_number)?,
            block_hash: self.block_hash.0,
            mined_at: self.mined_at,
            tx_hash: self.tx_hash.0,
            log_index: from_db(self.log_index)?,
            contract: self.contract.0,
            topics: self.topics.chunks_exact(32).map(B256::from_slice).collect(),
            data: Bytes::from(self.data),
        })
    }
}
