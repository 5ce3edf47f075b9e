//! Registered nodes and their stakes, as the chain says: `registry_node`. Writer: the indexer.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbAmount, DbHash};
use crate::fold::{BondRecord, RegistryNode};

fn count(column: i64) -> Result<u32, sqlx::Error> {
    u32::try_from(column).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Those among `addresses` that registered.
pub async fn nodes(
    db: &mut PgConnection,
    addresses: &[Address],
) -> Result<BTreeMap<Address, RegistryNode>, sqlx::Error> {
    if addresses.is_empty() {
        return Ok(BTreeMap::new());
    }
    let addresses: Vec<DbAddress> = addresses.iter().copied().map(DbAddress).collect();
    let rows = sqlx::query!(
        r#"select node as "node: DbAddress", node_id as "node_id: DbHash", public_key, payout as "payout: DbAddress",
                  capacity, operations, uri, stake as "stake: DbAmount", unbonding as "unbonding: DbAmount", unbond_end,
                  bonds, bonded_paid, bonded_disputed, bonded_lost
           from registry_node where node = any($1::bytea[])"#,
        &addresses as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let node = RegistryNode {
                node_id: row.node_id.0,
                public_key: row.public_key,
                payout: row.payout.0,
                capacity: count(row.capacity)?,
                operations: row.operations,
                uri: row.uri,
                stake: row.stake.0,
                unbonding: row.unbonding.0,
                unbond_end: row.unbond_end,
                record: BondRecord {
                    bonds: count(row.bonds)?,
                    paid: count(row.bonded_paid)?,
                    disputed: count(row.bonded_disputed)?,
                    lost: count(row.bonded_lost)?,
                },
            };
            Ok((row.node.0, node))
        })
        .collect()
}

/// Writes nodes as folded. One statement each: arrays of different lengths do not unnest, and registrations are rare.
pub async fn save_nodes(db: &mut PgConnection, nodes: &BTreeMap<Address, RegistryNode>) -> Result<(), sqlx::Error> {
    for (address, node) in nodes {
        sqlx::query!(
            "insert into registry_node
                 (node, node_id, public_key, payout, capacity, operations, uri, stake, unbonding, unbond_end, bonds,
                  bonded_paid, bonded_disputed, bonded_lost)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
             on conflict (node) do update set
                 node_id = excluded.node_id, public_key = excluded.public_key, payout = excluded.payout,
                 capacity = excluded.capacity, operations = excluded.operations, uri = excluded.uri,
                 stake = excluded.stake, unbonding = excluded.unbonding, unbond_end = excluded.unbond_end,
                 bonds = excluded.bonds, bonded_paid = excluded.bonded_paid,
                 bonded_disputed = excluded.bonded_disputed, bonded_lost = excluded.bonded_lost",
            DbAddress(*address) as _,
            DbHash(node.node_id) as _,
            node.public_key,
            DbAddress(node.payout) as _,
            i64::from(node.capacity),
            &node.operations,
            node.uri,
            DbAmount(node.stake) as _,
            DbAmount(node.unbonding) as _,
            node.unbond_end,
            i64::from(node.record.bonds),
            i64::from(node.record.paid),
            i64::from(node.record.disputed),
            i64::from(node.record.lost)
        )
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// Removes nodes that, after a reorg, never registered.
pub async fn delete_nodes(db: &mut PgConnection, addresses: &[Address]) -> Result<(), sqlx::Error> {
    let addresses: Vec<DbAddress> = addresses.iter().copied().map(DbAddress).collect();
    sqlx::query!("delete from registry_node where node = any($1::bytea[])", &addresses as _).execute(db).await?;
    Ok(())
}
