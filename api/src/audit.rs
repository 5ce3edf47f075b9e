//! `littoral-api audit`: recomputes every balance from the chain, in as many ways as there are, and says what differs.
//!
//! At one block, the indexer's own: the chain's logs, read afresh and folded from nothing, are held against the contracts'
//! answers (`contracts`), the stored events, the folded rows, the ledger's entries and sums, the coins that the contracts
//! hold (`books`), and the payments that were due (`payments`). Postgres is read in one snapshot.

mod books;
mod contracts;
mod payments;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use alloy::transports::TransportError;
use anyhow::Context;
use clap::Args;
use market::db::chain::{Block, BlockId, Cursor};
use market::db::{self, audit as queries, chain};
use market::deployment::Deployment;
use market::fold::{Contracts, FoldError};
use market::rpc::{self, RpcError};
use market::settings::{ChainArgs, LogArgs};
use market::source::{Source, SourceError};
use sqlx::postgres::PgPool;
use tokio::time::{Instant, sleep};

pub use payments::{Doubled, Lost, LostReason, Overpaid, Payments, Short, Unexpected};
pub use report::{Checked, Difference, Report, What};

/// How long to wait between two looks at the indexer, and before an audit that the chain overtook begins again.
const PAUSE: Duration = Duration::from_millis(200);
/// Blocks that one query of logs spans at most.
const LOG_RANGE: u64 = 2000;

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

/// Why an audit came to no verdict.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The chain could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The endpoint is not that of the deployment.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The contracts did not answer.
    #[error("{call} at block {block}: {error}")]
    Call {
        /// What was asked.
        call: &'static str,
        /// At which block.
        block: u64,
        /// Why there is no answer.
        error: String,
    },
    /// The database could not be read.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// The chain's own events cannot follow one another: the manifest's `deployBlock` is too late.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The database mirrors another deployment, or none yet.
    #[error("the database mirrors {0}, not the deployment of the manifest")]
    OtherDeployment(String),
    /// The indexer is behind.
    #[error("the indexer is at block {cursor} and did not reach block {wanted} in time")]
    Behind {
        /// Where it stands.
        cursor: u64,
        /// What was to be reached.
        wanted: u64,
    },
    /// The chain changed whenever it was read.
    #[error("block {0}, at which the indexer stands, is not or no longer on the chain")]
    Reorganised(u64),
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
    let until = Instant::now() + audit.patience;
    let wanted = match audit.at {
        At::Cursor => 0,
        At::Number(number) => number,
        At::Latest => audit.source.head().await?.block.id.number,
        At::Finalized => audit.source.finalized().await?.id.number,
    };
    loop {
        let outcome = attempt(audit, wanted).await;
        let retriable = matches!(&outcome, Err(AuditError::Behind { .. } | AuditError::Reorganised(_)));
        if !retriable || Instant::now() >= until {
            return outcome;
        }
        sleep(PAUSE).await;
    }
}

/// One audit of one snapshot, if that reaches as far as `wanted`.
async fn attempt(audit: &Audit, wanted: u64) -> Result<Report, AuditError> {
    let mut db = queries::snapshot(&audit.pool).await?;
    let cursor = chain::cursor(&mut db).await?.ok_or_else(|| AuditError::OtherDeployment("nothing yet".to_owned()))?;
    same_deployment(&cursor, &audit.deployment)?;
    if cursor.block.number < wanted {
        return Err(AuditError::Behind { cursor: cursor.block.number, wanted });
    }
    let block = on_chain(audit, cursor.block).await?;
    tracing::info!(block = block.id.number, hash = %block.id.hash, "auditing");

    let mut report = Report::at(block.id);
    let outcome = examine(audit, &block, &mut db, &mut report).await;
    // A chain that changed meanwhile explains any failure and any difference.
    on_chain(audit, block.id).await?;
    outcome?;
    Ok(report)
}

async fn examine(
    audit: &Audit,
    block: &Block,
    db: &mut sqlx::PgConnection,
    report: &mut Report,
) -> Result<(), AuditError> {
    let truth = books::read(audit, block, db, report).await?;
    books::rows(&truth, db, report).await?;
    books::sums(&truth, db, report).await?;
    let view = contracts::View::new(audit, block);
    contracts::compare(&view, &truth, report).await?;
    contracts::solvency(&view, &truth, report).await?;
    report.payments = payments::examine(&queries::dues(db).await?, &truth.rows, block.mined_at);
    Ok(())
}

async fn on_chain(audit: &Audit, id: BlockId) -> Result<Block, AuditError> {
    let block = audit.source.block(id.number).await?.filter(|block| block.id == id);
    block.ok_or(AuditError::Reorganised(id.number))
}

fn same_deployment(cursor: &Cursor, deployment: &Deployment) -> Result<(), AuditError> {
    let indexed = (cursor.chain_id, cursor.escrow, cursor.registry);
    if indexed == (deployment.chain_id, deployment.escrow, deployment.registry) {
        return Ok(());
    }
    Err(AuditError::OtherDeployment(format!(
        "chain {} with escrow {} and registry {}",
        indexed.0, indexed.1, indexed.2
    )))
}

fn call_failed(call: &'static str, block: u64, error: &SourceError) -> AuditError {
    AuditError::Call { call, block, error: error.to_string() }
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

impl From<TransportError> for AuditError {
    fn from(error: TransportError) -> Self {
        Self::Rpc(RpcError::Transport(error))
    }
}
