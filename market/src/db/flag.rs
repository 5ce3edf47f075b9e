//! Switches that operators set. A feature without a row is on. Writer: `littoral-api flag`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;

/// A feature that can be switched off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Its name: lower-case letters, digits and underscores.
    pub name: String,
    /// Whether it is on.
    pub enabled: bool,
    /// When it was set.
    pub updated_at: DateTime<Utc>,
}

/// Switches `name` on or off.
pub async fn set(db: &mut PgConnection, name: &str, enabled: bool, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into feature_flag (name, enabled, updated_at) values ($1, $2, $3)
         on conflict (name) do update set enabled = $2, updated_at = $3",
        name,
        enabled,
        now
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Every feature that was ever switched, by name.
pub async fn all(db: &mut PgConnection) -> Result<Vec<Flag>, sqlx::Error> {
    sqlx::query_as!(Flag, "select name, enabled, updated_at from feature_flag order by name").fetch_all(db).await
}
