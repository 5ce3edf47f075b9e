//! What the indexer found when it held its own tables against the chain: `chain_verification`. Writer: the indexer.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgConnection;

use super::chain::{from_db, to_db};
use super::leader::{Fence, FenceError};

/// Runs that are remembered.
const REMEMBERED: i64 = 1000;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything is as the chain says.
    Same,
    /// Something is not.
    Differs,
    /// The chain or the database did not answer, or changed meanwhile.
    Unknown,
}

impl Verdict {
    const ALL: [Self; 3] = [Self::Same, Self::Differs, Self::Unknown];

    /// Its name in SQL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Differs => "differs",
            Self::Unknown => "unknown",
        }
    }
}

/// One verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// First block that was looked at.
    pub from_block: u64,
    /// Last one.
    pub to_block: u64,
    /// What came of it.
    pub verdict: Verdict,
    /// Logs that were compared.
    pub events: u64,
    /// How much differs.
    pub differences: u64,
    /// The first of it, or why nothing can be told.
    pub detail: String,
}

/// Writes `run`, and forgets the oldest.
pub async fn record(db: &mut PgConnection, fence: Fence, run: &Run) -> Result<(), FenceError> {
    fence.check(db).await?;
    sqlx::query!(
        "insert into chain_verification (started_at, finished_at, from_block, to_block, verdict, events, differences, detail)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        run.started_at,
        run.finished_at,
        to_db(run.from_block)?,
        to_db(run.to_block)?,
        run.verdict.name(),
        to_db(run.events)?,
        to_db(run.differences)?,
        run.detail
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "delete from chain_verification where id <= (select max(id) from chain_verification) - $1",
        REMEMBERED
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The last run that came to a verdict, or the last one at all if none did.
pub async fn last(db: &mut PgConnection) -> Result<Option<Run>, sqlx::Error> {
    let row = sqlx::query!(
        "select started_at, finished_at, from_block, to_block, verdict, events, differences, detail
         from chain_verification order by verdict <> 'unknown' desc, id desc limit 1"
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let verdict = Verdict::ALL.into_iter().find(|verdict| verdict.name() == row.verdict);
        Ok(Run {
            started_at: row.started_at,
            finished_at: row.finished_at,
            from_block: from_db(row.from_block)?,
            to_block: from_db(row.to_block)?,
            verdict: verdict.ok_or_else(|| sqlx::Error::Decode(format!("verdict {:?}", row.verdict).into()))?,
            events: from_db(row.events)?,
            differences: from_db(row.differences)?,
            detail: row.detail,
        })
    })
    .transpose()
}
