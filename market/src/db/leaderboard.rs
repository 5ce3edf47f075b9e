//! Who has done most.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbHash};

/// Most nodes that are ranked.
pub const MOST_RANKED: i64 = 1000;

/// A node and what it has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The operator's address.
    pub node: Address,
    /// Its id.
    pub node_id: B256,
    /// Results that it has handed in.
    pub completed_jobs: i64,
    /// When it handed the latest in.
    pub last_completed_at: DateTime<Utc>,
}

/// The nodes that completed most jobs, at most [`MOST_RANKED`]; of two with as many, the one first that had them earlier.
pub async fn leaders(db: &mut PgConnection) -> Result<Vec<Leader>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select c.node as "node!: DbAddress", r.node_id as "node_id!: DbHash", c.jobs as "jobs!", c.latest as "latest!"
           from (select node, count(*) as jobs, max(completed_at) as latest from job_completion group by node) c
           join registry_node r on r.node = c.node
           order by c.jobs desc, c.latest, c.node
           limit $1"#,
        MOST_RANKED
    )
    .fetch_all(db)
    .await?;

    Ok(rows
        .into_iter()
        .map(|row| Leader {
            node: row.node.0,
            node_id: row.node_id.0,
            completed_jobs: row.jobs,
            last_completed_at: row.latest,
        })
        .collect())
}
