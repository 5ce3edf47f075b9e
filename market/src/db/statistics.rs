//! What Postgres knows of the tables that grow with every job. Of a table that was never looked at it assumes what is not so, such
//! as that no order is open, and reads whole indexes for what one probe of another finds. Autovacuum looks within a minute, which
//! is long for a market that opens, or whose backup was restored.

use sqlx::postgres::PgConnection;

/// Rows that a table must have, and of which so many must have changed. What is known of an empty table misleads: it grows.
const FEW: i64 = 500;

/// Has Postgres look at each table of orders and their work that has doubled since it last did, which is seldom. What another
/// instance looks at is left out. How many it was.
pub async fn refresh(db: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let grown = sqlx::query_scalar!(
        r#"select s.relname::text as "table!"
           from pg_stat_user_tables s
           join pg_class c on c.oid = s.relid
           where s.relid = any(array[
                   'signed_order', 'escrow_job', 'job_submission', 'job_queue', 'job_work', 'job_attempt', 'job_completion',
                   'payment_due'
               ]::regclass[])
               and s.n_live_tup >= $1 and s.n_mod_since_analyze > greatest(c.reltuples::bigint, $1)"#,
        FEW
    )
    .fetch_all(&mut *db)
    .await?;
    for table in &grown {
        analyze(db, table).await?;
    }
    Ok(grown.len())
}

async fn analyze(db: &mut PgConnection, table: &str) -> Result<(), sqlx::Error> {
    match table {
        "signed_order" => sqlx::query!("analyze (skip_locked) signed_order").execute(db).await,
        "escrow_job" => sqlx::query!("analyze (skip_locked) escrow_job").execute(db).await,
        "job_submission" => sqlx::query!("analyze (skip_locked) job_submission").execute(db).await,
        "job_queue" => sqlx::query!("analyze (skip_locked) job_queue").execute(db).await,
        "job_work" => sqlx::query!("analyze (skip_locked) job_work").execute(db).await,
        "job_attempt" => sqlx::query!("analyze (skip_locked) job_attempt").execute(db).await,
        "job_completion" => sqlx::query!("analyze (skip_locked) job_completion").execute(db).await,
        _ => sqlx::query!("analyze (skip_locked) payment_due").execute(db).await,
    }?;
    Ok(())
}
