//! `littoral-api audit`: recomputes every balance from the chain, in as many ways as there are, and says what differs.
//!
//! At one block, the indexer's own: all that [`market::verify`] holds against the chain, and the payments that were due
//! (`payments`). Postgres is read in one snapshot.

mod payments;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use market::db::{self, audit as queries};
use market::deployment::Deployment;
use market::fold::Contracts;
use market::rpc;
use market::settings::{ChainArgs, LogArgs};
use market::source::Source;
use market::verify::{self, Ended, Verifier};
use sqlx::postgres::PgPool;

pub use market::verify::{Checked, Difference, VerifyError as AuditError, What};
pub use payments::{Doubled, Lost, LostReason, Overpaid, Payments, Short, Unexpected};
pub use report::Report;

/// Options of `littoral-api audit`.
#[derive(Args, Clone)]
pub struct AuditArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub chain: ChainArgs,

    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// A block that the audit must cover: a number, `latest` or `finalized`. The block audited is the one at which the
    /// indexer stands then [default: where the indexer stands]
    #[arg(long, value_name = "BLOCK", value_parser = At::parse)]
    pub block: Option<At>,

    /// Seconds to wait for the indexer to reach that block
    #[arg(long, default_value_t = 120)]
    pub wait_secs: u64,

    /// Requests to the chain under way at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// Write the report as JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// Up to which block an audit must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Where the indexer stands.
    Cursor,
    /// At least this block.
    Number(u64),
    /// At least what is the latest block when the audit begins.
    Latest,
    /// At least what is the finalized block when the audit begins.
    Finalized,
}

impl At {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self::Latest),
            "finalized" => Ok(Self::Finalized),
            number => number.parse().map(Self::Number).map_err(|_| "must be a number, latest or finalized".to_owned()),
        }
    }
}

/// What an audit needs.
#[derive(Debug, Clone)]
pub struct Audit {
    pool: PgPool,
    source: Source,
    deployment: Deployment,
    at: At,
    patience: Duration,
    concurrency: usize,
}

impl Audit {
    /// Of the deployment that `source` reads and `pool` mirrors, where the indexer stands.
    #[must_use]
    pub fn new(pool: PgPool, source: Source, deployment: Deployment) -> Self {
        Self { pool, source, deployment, at: At::Cursor, patience: Duration::from_secs(120), concurrency: 16 }
    }

    /// As far as `at`.
    #[must_use]
    pub fn at(self, at: At) -> Self {
        Self { at, ..self }
    }

    /// Waiting no longer than `patience` for the indexer, or for the chain to stay as it is.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// With this many requests to the chain under way at once.
    #[must_use]
    pub fn concurrency(self, concurrency: usize) -> Self {
        Self { concurrency: concurrency.max(1), ..self }
    }
}

/// Runs `audit`. A report, with or without differences, or the reason why there is none.
pub async fn run(audit: &Audit) -> Result<Report, AuditError> {
    let wanted = match audit.at {
        At::Cursor => 0,
        At::Number(number) => number,
        At::Latest => audit.source.head().await?.block.id.number,
        At::Finalized => audit.source.finalized().await?.id.number,
    };
    let verifier = Verifier::new(audit.source.clone(), audit.deployment.clone(), audit.concurrency);
    verify::patiently(&audit.pool, audit.patience, async |db| {
        let (report, truth, block) = verifier.everything(&mut *db, (verify::At::Cursor, wanted), Ended::Kept).await?;
        let payments = payments::examine(&queries::dues(db).await?, &truth.rows, block.mined_at);
        Ok(Report::new(report, payments))
    })
    .await
}

/// Runs the command. Exit code 0 if nothing differs, 1 if something does, 2 if that cannot be told.
pub async fn command(args: AuditArgs) -> ExitCode {
    market::telemetry::init(args.log.log_json);
    match audit_of(&args).await {
        Ok(report) => {
            let text = if args.json { report.json() } else { report.to_string() };
            println!("{}", text.trim_end());
            ExitCode::from(u8::from(!report.is_clean()))
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot tell");
            ExitCode::from(2)
        }
    }
}

async fn audit_of(args: &AuditArgs) -> anyhow::Result<Report> {
    let deployment = Deployment::read(&args.chain.deployment)?;
    let provider = rpc::connect(&args.chain.rpc_urls, &deployment).await?;
    let pool = db::connect(&args.database_url, 2).await.context("cannot connect to Postgres (DATABASE_URL)")?;
    let source = Source::new(vec![provider], Contracts::from(&deployment));
    let audit = Audit::new(pool, source, deployment)
        .at(args.block.unwrap_or(At::Cursor))
        .patience(Duration::from_secs(args.wait_secs))
        .concurrency(args.concurrency.into());
    Ok(run(&audit).await?)
}
