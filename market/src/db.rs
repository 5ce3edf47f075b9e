//! All SQL of the workspace. Queries are functions over `&mut PgConnection`; the caller owns the transaction, and the
//! clock is an argument.

pub mod audit;
pub mod blob;
pub mod chain;
pub mod chain_view;
pub mod confirmation;
mod copy;
pub mod escrow;
pub mod exposure;
pub mod flag;
pub mod idempotency;
pub mod indexing;
pub mod job_view;
pub mod leader;
pub mod leaderboard;
pub mod ledger;
pub mod node_profile;
pub mod node_view;
mod numeric;
pub mod order;
pub mod outbox;
pub mod projection;
pub mod queue;
pub mod registry;
pub mod secret;
pub mod session;
pub mod settlement;
pub mod statistics;
pub mod submission;
pub mod types;
pub mod verification;
pub mod voucher;
pub mod work;

use std::{str::FromStr, time::Duration};

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

/// How long a transaction waits for its process before Postgres ends it. What is between two statements takes milliseconds.
const LONGEST_IDLE: &str = "10s";

/// A pool of at most `max_connections` connections to `database_url`. Waiting for a free one is bounded, so that an
/// overload answers with an error rather than hanging.
pub async fn connect(database_url: &str, max_connections: u32) -> Result<PgPool, sqlx::Error> {
    pool_options(max_connections).connect_with(options(database_url)?).await
}

/// Like [`connect`]. Postgres cancels statements that take longer than `statement_timeout`, those too that nobody waits
/// for any more because their request timed out.
pub async fn connect_bounded(
    database_url: &str,
    max_connections: u32,
    statement_timeout: Duration,
) -> Result<PgPool, sqlx::Error> {
    let limit = format!("{}ms", statement_timeout.as_millis());
    let options = options(database_url)?.options([("statement_timeout", limit)]);
    pool_options(max_connections).connect_with(options).await
}

/// What a pool connects with. All its sessions have a name that no other pool's have, by which a leader that no longer answers can
/// be parted from the database ([`leader`]). Queries here read few rows: to compile one takes longer than to run it, and
/// Postgres, which knows nothing of fresh tables, would compile some each time. A process that is frozen in a transaction
/// keeps others from the rows that it wrote no longer than [`LONGEST_IDLE`].
fn options(database_url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let name = format!("littoral-{:016x}", rand::random::<u64>());
    let settings = [("jit", "off"), ("idle_in_transaction_session_timeout", LONGEST_IDLE)];
    Ok(PgConnectOptions::from_str(database_url)?.application_name(&name).options(settings))
}

fn pool_options(max_connections: u32) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(max_connections).acquire_timeout(Duration::from_secs(5))
}

/// Whether the error means that Postgres was not there, or not to be reached, rather than that it refused something.
#[must_use]
pub fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => true,
        sqlx::Error::Database(cause) => {
            // Operators ended it, it crashed, it is starting, or it has no more connections.
            cause.code().is_some_and(|code| matches!(&*code, "57P01" | "57P02" | "57P03" | "53300"))
        }
        _ => false,
    }
}

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// Applies the migrations that the database lacks. Safe to run from several processes at once: sqlx holds a lock.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    MIGRATOR.run(pool).await
}

/// How many migrations the database lacks.
pub async fn missing_migrations(pool: &PgPool) -> Result<usize, MigrateError> {
    let mut connection = pool.acquire().await?;
    let applied = connection.list_applied_migrations("_sqlx_migrations").await?;
    let is_applied = |version| applied.iter().any(|migration| migration.version == version);
    Ok(MIGRATOR.iter().filter(|migration| !is_applied(migration.version)).count())
}
