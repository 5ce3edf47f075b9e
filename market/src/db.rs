//! All SQL of the workspace. Queries are functions over `&mut PgConnection`; the caller owns the transaction, and the
//! clock is an argument.

pub mod blob;
pub mod chain;
pub mod chain_view;
pub mod escrow;
pub mod job_view;
pub mod leader;
pub mod node_profile;
pub mod node_view;
pub mod outbox;
pub mod projection;
pub mod registry;
pub mod session;
pub mod settlement;
pub mod submission;
pub mod types;
pub mod work;

use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};

/// A pool of at most `max_connections` connections to `database_url`. Waiting for a free one is bounded, so that an
/// overload answers with an error rather than hanging.
pub async fn connect(database_url: &str, max_connections: u32) -> Result<PgPool, sqlx::Error> {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(Duration::from_secs(5))
        .connect(database_url)
        .await
}

/// Applies the migrations that the database lacks. Safe to run from several processes at once: sqlx holds a lock.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::migrate::MigrateError> {
    sqlx::migrate!("./migrations").run(pool).await
}
