//! `apply`: how fast steps of the cursor get into Postgres, with no node in the way.
//!
//! The steps are made beforehand, of events as the contracts would emit them, so that nothing but `market::db::chain::apply` and
//! the database is measured. The database is a server of its own that waits for the disk, with its settings as they come.

mod traffic;

use std::fs;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use devnet::Postgres;
use market::clock;
use market::db::chain::{self, Step};
use market::db::leader::{Leadership, Role};
use market::db::{self, ledger};
use serde::Serialize;
use sqlx::postgres::PgPool;

use traffic::Traffic;

/// Options of `apply`.
#[derive(Args)]
pub struct Apply {
    /// Events in all
    #[arg(long, default_value_t = 300_000)]
    events: usize,

    /// Events a block
    #[arg(long, default_value_t = 1000)]
    per_block: usize,

    /// Events a step
    #[arg(long, default_value_t = 10_000)]
    per_step: usize,

    /// Keep what rows were before each block, as near the head
    #[arg(long)]
    unsettled: bool,
}

#[derive(Debug, Serialize)]
struct Figures {
    events: usize,
    per_block: usize,
    per_step: usize,
    events_per_s: f64,
    /// Processor time an event, of this process and of Postgres' backend.
    own_us_per_event: f64,
    postgres_us_per_event: f64,
    database_mb: i64,
    wal_mb: i64,
}

impl Apply {
    /// Measures; false never, since books that do not balance are an error.
    pub async fn run(self) -> anyhow::Result<bool> {
        let scratch = tempfile::Builder::new().prefix("littoral-bench").tempdir()?;
        let postgres = Postgres::start(&scratch.path().join("postgres"), None).await?;
        let pool = db::connect(postgres.create_database("apply").await?.as_str(), 2).await?;
        db::migrate(&pool).await?;
        let mut traffic = Traffic::new(self.per_block);
        let steps = traffic.steps(self.events, self.per_step, self.unsettled)?;
        let figures = self.measure(&pool, &traffic, &steps).await?;
        let mut db = pool.acquire().await?;
        let in_suspense =
            ledger::balances(&mut db).await?.into_iter().find(|row| row.account == market::ledger::Account::Suspense);
        anyhow::ensure!(in_suspense.is_none(), "the books do not add up: {in_suspense:?}");
        println!("{}", serde_json::to_string(&figures)?);
        Ok(true)
    }

    // What it asks of Postgres' own statistics is no query of the market's.
    #[allow(clippy::disallowed_methods)]
    async fn measure(&self, pool: &PgPool, traffic: &Traffic, steps: &[Step]) -> anyhow::Result<Figures> {
        let leadership = Leadership::try_acquire(pool, Role::Indexer, clock::now()).await?.context("someone leads")?;
        let fence = leadership.fence();
        let mut db = pool.acquire().await?;
        chain::begin(&mut db, fence, &traffic.contracts, &traffic.anchor()).await?;
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *db).await?;
        sqlx::query("select pg_stat_reset_shared('wal')").execute(&mut *db).await?;
        let (own, theirs) = (cpu_seconds("self")?, cpu_seconds(&backend.to_string())?);
        let begun = Instant::now();
        for step in steps {
            sqlx::query("begin").execute(&mut *db).await?;
            chain::apply(&mut db, fence, &traffic.contracts, step, clock::now()).await?;
            sqlx::query("commit").execute(&mut *db).await?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let (own, theirs) = (cpu_seconds("self")? - own, cpu_seconds(&backend.to_string())? - theirs);
        let sizes: (i64, i64) = sqlx::query_as(
            "select pg_database_size(current_database()) / 1000000, (wal_bytes / 1000000)::bigint from pg_stat_wal",
        )
        .fetch_one(&mut *db)
        .await?;
        let count = f64::from(u32::try_from(steps.iter().map(|step| step.events.len()).sum::<usize>())?);
        Ok(Figures {
            events: steps.iter().map(|step| step.events.len()).sum(),
            per_block: self.per_block,
            per_step: self.per_step,
            events_per_s: (count / seconds).round(),
            own_us_per_event: own / count * 1e6,
            postgres_us_per_event: theirs / count * 1e6,
            database_mb: sizes.0,
            wal_mb: sizes.1,
        })
    }
}

/// What a process has used of the processors so far, from `/proc`, in hundredths of a second.
fn cpu_seconds(pid: &str) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name, in parentheses, and may contain anything.
    let after_name = stat.rsplit_once(')').context("no name")?.1;
    let ticks = |field: usize| -> anyhow::Result<f64> {
        Ok(after_name.split_whitespace().nth(field).context("too few fields")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
