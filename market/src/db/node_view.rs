//! A node as the chain and the API know it. Read from the view `node_view`, each function in one statement and so in one
//! snapshot.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgConnection;

use super::confirmation::Seen;
use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
use crate::confirmation::Confirmation;
use crate::redis::keys::NODE_TTL_SECS;

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The operator's address.
    pub node: Address,
    /// Its registration on the chain.
    pub registration: Option<Registration>,
    /// What it told the API.
    pub profile: Option<Profile>,
    /// Jobs it holds.
    pub active_jobs: i64,
    /// Jobs it completed.
    pub completed_jobs: i64,
    /// Jobs it was paid for, for good.
    pub paid_jobs: i64,
    /// Of its stake, taken by arbiters for good, in wei.
    pub slashed: Amount,
    /// The same, in blocks that are not final.
    pub slashing: Amount,
    /// 0 to 100; see [`reputation`].
    pub reputation: u8,
}

/// A registration in the `NodeRegistry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its name off-chain.
    pub node_id: B256,
    /// X25519 key to which data for the node is encrypted.
    pub public_key: Vec<u8>,
    /// Where stake and earnings go by default.
    pub payout: Address,
    /// Most jobs at once.
    pub capacity: i64,
    /// Names of the operations it performs.
    pub operations: Vec<String>,
    /// Where more can be read.
    pub uri: String,
    /// Active stake, in wei.
    pub stake: Amount,
    /// Stake on its way out, in wei.
    pub unbonding: Amount,
    /// When that may leave.
    pub unbond_end: Option<DateTime<Utc>>,
    /// How sure the stake is; nothing while it never moved.
    pub confirmation: Option<Confirmation>,
}

/// A registration with the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// X25519 key, as the node said.
    pub public_key: Vec<u8>,
    /// Most jobs at once, as the node said.
    pub max_concurrent_jobs: i32,
    /// Operations, as the node said.
    pub operations: Vec<String>,
    /// When it registered first.
    pub registered_at: DateTime<Utc>,
    /// When it last spoke.
    pub last_heartbeat_at: DateTime<Utc>,
}

impl NodeView {
    /// Its id, if it is registered on the chain.
    #[must_use]
    pub fn node_id(&self) -> Option<B256> {
        self.registration.as_ref().map(|r| r.node_id)
    }

    /// Most jobs at once: the lesser of what the chain and what the node itself says.
    #[must_use]
    pub fn capacity(&self) -> i64 {
        let registered = self.registration.as_ref().map(|r| r.capacity);
        let announced = self.profile.as_ref().map(|p| i64::from(p.max_concurrent_jobs));
        registered.into_iter().chain(announced).min().unwrap_or(0)
    }

    /// Operations that chain and node both name; where only one speaks, those.
    #[must_use]
    pub fn operations(&self) -> Vec<String> {
        match (&self.registration, &self.profile) {
            (Some(r), Some(p)) => r.operations.iter().filter(|name| p.operations.contains(name)).cloned().collect(),
            (Some(r), None) => r.operations.clone(),
            (None, Some(p)) => p.operations.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// Whether it spoke within the last [`NODE_TTL_SECS`].
    #[must_use]
    pub fn is_online(&self, now: DateTime<Utc>) -> bool {
        self.silent_at().is_some_and(|silent_at| now < silent_at)
    }

    /// When it counts as silent unless it speaks again; nothing if it never spoke.
    #[must_use]
    pub fn silent_at(&self) -> Option<DateTime<Utc>> {
        self.profile.as_ref().map(|p| p.last_heartbeat_at + TimeDelta::seconds(NODE_TTL_SECS.cast_signed()))
    }
}

/// How reliable a node is, 0 to 100: the share of its latest 1,000 ended attempts that were completed, with ten completed
/// ones added. So a new node starts at 100, one failure among few costs nine points rather than half of all, and a node
/// that only fails sinks to 0. `lost` counts attempts that failed or whose lease expired; handing a job back costs nothing.
#[must_use]
pub fn reputation(completed: i64, lost: i64) -> u8 {
    const HEAD_START: i64 = 10;
    let good = completed.max(0) + HEAD_START;
    u8::try_from(good * 100 / (good + lost.max(0))).unwrap_or(100)
}

struct Row {
    node: DbAddress,
    node_id: Option<DbHash>,
    public_key: Option<Vec<u8>>,
    payout: Option<DbAddress>,
    capacity: Option<i64>,
    operations: Option<Vec<String>>,
    uri: Option<String>,
    stake: Option<DbAmount>,
    unbonding: Option<DbAmount>,
    unbond_end: Option<DateTime<Utc>>,
    profile_public_key: Option<Vec<u8>>,
    max_concurrent_jobs: Option<i32>,
    profile_operations: Option<Vec<String>>,
    registered_at: Option<DateTime<Utc>>,
    last_heartbeat_at: Option<DateTime<Utc>>,
    active_jobs: i64,
    completed_jobs: i64,
    paid_jobs: i64,
    slashed: DbAmount,
    slashing: DbAmount,
    stake_block: Option<i64>,
    stake_hash: Option<DbHash>,
    stake_is_deep: Option<bool>,
    cursor_block: i64,
    final_number: i64,
    recent_completed: i64,
    recent_lost: i64,
}

/// `select` of all columns of a [`Row`] with the rest of the statement, so that every query names them once.
macro_rules! select_nodes {
    ($rest:literal, $($arg:expr),*) => {
        sqlx::query_as!(
            Row,
            r#"select n.node as "node!: DbAddress", n.node_id as "node_id?: DbHash", n.public_key as "public_key?",
                n.payout as "payout?: DbAddress", n.capacity as "capacity?", n.operations as "operations?",
                n.uri as "uri?", n.stake as "stake?: DbAmount", n.unbonding as "unbonding?: DbAmount",
                n.unbond_end as "unbond_end?", n.profile_public_key as "profile_public_key?",
                n.max_concurrent_jobs as "max_concurrent_jobs?", n.profile_operations as "profile_operations?",
                n.registered_at as "registered_at?", n.last_heartbeat_at as "last_heartbeat_at?",
                n.active_jobs as "active_jobs!", n.completed_jobs as "completed_jobs!", n.paid_jobs as "paid_jobs!",
                n.slashed as "slashed!: DbAmount", n.slashing as "slashing!: DbAmount", n.stake_block as "stake_block?",
                n.stake_hash as "stake_hash?: DbHash", n.stake_is_deep as "stake_is_deep?",
                n.cursor_block as "cursor_block!", n.final_number as "final_number!",
                n.recent_completed as "recent_completed!", n.recent_lost as "recent_lost!"
            from node_view n "# + $rest,
            $($arg),*
        )
    };
}

/// The node, if it is registered on the chain or with the API.
pub async fn by_address(db: &mut PgConnection, node: Address) -> Result<Option<NodeView>, sqlx::Error> {
    select_nodes!("where n.node = $1", DbAddress(node) as _)
        .fetch_optional(db)
        .await?
        .map(NodeView::try_from)
        .transpose()
}

/// Those of `nodes` that exist, in no particular order.
pub async fn by_addresses(db: &mut PgConnection, nodes: &[Address]) -> Result<Vec<NodeView>, sqlx::Error> {
    let nodes: Vec<DbAddress> = nodes.iter().copied().map(DbAddress).collect();
    let rows = select_nodes!("where n.node = any($1)", &nodes[..] as _).fetch_all(db).await?;
    rows.into_iter().map(NodeView::try_from).collect()
}

/// The node that is registered on the chain under `node_id`.
pub async fn by_node_id(db: &mut PgConnection, node_id: B256) -> Result<Option<NodeView>, sqlx::Error> {
    let row = select_nodes!("where n.node_id = $1", DbHash(node_id) as _).fetch_optional(db).await?;
    row.map(NodeView::try_from).transpose()
}

/// Nodes by address, at most `limit`, from behind `after` (zero for the start).
pub async fn list(db: &mut PgConnection, after: Address, limit: i64) -> Result<Vec<NodeView>, sqlx::Error> {
    let rows =
        select_nodes!("where n.node > $1 order by n.node limit $2", DbAddress(after) as _, limit).fetch_all(db).await?;
    rows.into_iter().map(NodeView::try_from).collect()
}

/// The operator's address of the node registered under `node_id`.
pub async fn address_of(db: &mut PgConnection, node_id: B256) -> Result<Option<Address>, sqlx::Error> {
    let row = sqlx::query_scalar!(
        r#"select node as "node: DbAddress" from registry_node where node_id = $1"#,
        DbHash(node_id) as _
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Address::from))
}

/// Address and id of those of `node_ids` that are registered.
pub async fn addresses_of(db: &mut PgConnection, node_ids: &[B256]) -> Result<Vec<(Address, B256)>, sqlx::Error> {
    let ids: Vec<DbHash> = node_ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query!(
        r#"select node as "node: DbAddress", node_id as "node_id: DbHash" from registry_node where node_id = any($1)"#,
        &ids[..] as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.node.0, row.node_id.0)).collect())
}

/// The id under which `node` is registered.
pub async fn node_id_of(db: &mut PgConnection, node: Address) -> Result<Option<B256>, sqlx::Error> {
    let row = sqlx::query_scalar!(
        r#"select node_id as "node_id: DbHash" from registry_node where node = $1"#,
        DbAddress(node) as _
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(B256::from))
}

impl Row {
    fn confirmation(&self) -> Result<Option<Confirmation>, sqlx::Error> {
        let is_deep = self.stake_is_deep.unwrap_or(false);
        Seen { block: self.stake_block, hash: self.stake_hash, is_deep }
            .confirmation(self.cursor_block, self.final_number)
    }

    fn registration(&mut self, confirmation: Option<Confirmation>) -> Option<Registration> {
        Some(Registration {
            node_id: self.node_id?.0,
            public_key: self.public_key.take()?,
            payout: self.payout?.0,
            capacity: self.capacity?,
            operations: self.operations.take()?,
            uri: self.uri.take()?,
            stake: self.stake?.0,
            unbonding: self.unbonding?.0,
            unbond_end: self.unbond_end,
            confirmation,
        })
    }

    fn profile(&mut self) -> Option<Profile> {
        Some(Profile {
            public_key: self.profile_public_key.take()?,
            max_concurrent_jobs: self.max_concurrent_jobs?,
            operations: self.profile_operations.take()?,
            registered_at: self.registered_at?,
            last_heartbeat_at: self.last_heartbeat_at?,
        })
    }
}

impl TryFrom<Row> for NodeView {
    type Error = sqlx::Error;

    fn try_from(mut row: Row) -> Result<Self, Self::Error> {
        let confirmation = row.confirmation()?;
        Ok(Self {
            node: row.node.0,
            registration: row.registration(confirmation),
            profile: row.profile(),
            active_jobs: row.active_jobs,
            completed_jobs: row.completed_jobs,
            paid_jobs: row.paid_jobs,
            slashed: row.slashed.0,
            slashing: row.slashing.0,
            reputation: reputation(row.recent_completed, row.recent_lost),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reputation_starts_whole_falls_with_failures_and_recovers_with_work() {
        assert_eq!(reputation(0, 0), 100);
        assert_eq!(reputation(0, 1), 90);
        assert_eq!(reputation(0, 10), 50);
        assert_eq!(reputation(90, 10), 90);
        assert_eq!(reputation(0, 1000), 0);
        assert!(reputation(20, 1) > reputation(4, 1) && reputation(5, 2) < reputation(5, 1));
    }
}
