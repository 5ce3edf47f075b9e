//! Holds the index against the chain: recomputes everything that the chain's logs amount to, in as many ways as there are,
//! and says what differs.
//!
//! The logs are read afresh, by ranges and by block hash, and held against the stored events and the ledger's entries; what
//! they amount to when folded from nothing is held against the contracts' answers at a final block, and against the folded
//! rows and the ledger's sums where the indexer stands (`books`, `contracts`). Postgres is read in one snapshot. Memory is
//! bounded by what is under way on the chain: a job that ended is compared with the stretch in which it did, and let go.

mod books;
mod contracts;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use alloy::primitives::{Address, I256};
use alloy::transports::TransportError;
use sqlx::postgres::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use crate::confirmation::Finality;
use crate::db::chain::{self, Block, BlockId, Cursor};
use crate::db::{audit as queries, ledger};
use crate::deployment::Deployment;
use crate::fold::{ChainEvent, FoldError, Rows};
use crate::ledger::Account;
use crate::rpc::RpcError;
use crate::source::{Source, SourceError};

pub use report::{Checked, Difference, Report, What};

/// How long to wait between two looks at the indexer, and before a verification that the chain overtook begins again.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a verification came to no verdict.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
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
    /// An endpoint of which nothing it says can be held against the index.
    #[error("the endpoint contradicts itself: by its hash, block {0} has other logs than by its number")]
    Contradiction(u64),
}

impl VerifyError {
    /// Whether it may be told a moment later.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Behind { .. } | Self::Reorganised(_))
    }

    fn call(call: &'static str, block: u64, error: &SourceError) -> Self {
        Self::Call { call, block, error: error.to_string() }
    }
}

impl From<TransportError> for VerifyError {
    fn from(error: TransportError) -> Self {
        Self::Rpc(RpcError::Transport(error))
    }
}

/// What the chain's events amount to.
#[derive(Debug, Default)]
pub struct Truth {
    /// The rows.
    pub rows: Rows,
    /// Balances by account and token; none that is zero.
    sums: BTreeMap<(Account, Address), I256>,
    /// Jobs that ended, agreed with their stored rows, and were let go.
    let_go: u64,
}

impl Truth {
    /// A balance that cannot be negative.
    fn balance(&self, account: Account, token: Address) -> I256 {
        self.sums.get(&(account, token)).copied().unwrap_or_default()
    }
}

/// How much of the jobs that ended is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All: the caller wants them.
    Kept,
    /// None.
    LetGo,
}

/// At which block the contracts are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Where the indexer stands.
    Cursor,
    /// The latest final one, or where the indexer stands if that is before it or no contract is final yet.
    Final,
    /// This one.
    Number(u64),
}

/// What a verification needs.
#[derive(Debug, Clone)]
pub struct Verifier {
    source: Source,
    deployment: Deployment,
    concurrency: usize,
}

impl Verifier {
    /// Of the deployment that `source` reads, with `concurrency` requests to the chain under way at once.
    #[must_use]
    pub fn new(source: Source, deployment: Deployment, concurrency: usize) -> Self {
        Self { source, deployment, concurrency: concurrency.max(1) }
    }

    /// What it reads the chain through.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Verifies everything up to where the indexer stands, which must be at `wanted` or beyond, and the contracts' answers
    /// at `at`. `db` must be a snapshot ([`queries::snapshot`]).
    pub async fn everything(
        &self,
        db: &mut PgConnection,
        (at, wanted): (At, u64),
        ended: Ended,
    ) -> Result<(Report, Truth, Block), VerifyError> {
        let cursor = self.cursor(db, wanted).await?;
        let tip = self.on_chain(cursor).await?;
        let asked = match at {
            At::Cursor => tip.clone(),
            At::Final => self.final_block(&tip).await?,
            At::Number(number) => self.existing(number).await?,
        };
        tracing::info!(block = tip.id.number, hash = %tip.id.hash, contracts_at = asked.id.number, "verifying");
        let mut report = Report::at(asked.id, tip.id);
        let outcome = self.examine(db, &asked, &tip, ended, &mut report).await;
        // A chain that changed meanwhile explains any failure and any difference.
        self.on_chain(tip.id).await?;
        Ok((report, outcome?, tip))
    }

    async fn examine(
        &self,
        db: &mut PgConnection,
        asked: &Block,
        tip: &Block,
        ended: Ended,
        report: &mut Report,
    ) -> Result<Truth, VerifyError> {
        let mut truth = Truth::default();
        let view = contracts::View::new(self, asked);
        let first = self.deployment.deploy_block.min(asked.id.number);
        let mut reading = books::Reading::new(self, first);
        let letting_go = (ended == Ended::LetGo).then_some(&view);
        reading.fold(&mut truth, asked.id.number, db, letting_go, report).await?;
        contracts::compare(&view, &truth, report).await?;
        contracts::solvency(&view, &truth, report).await?;
        reading.fold(&mut truth, tip.id.number, db, None, report).await?;
        reading.still_holds().await?;
        books::not_taken_back(db, report).await?;
        books::rows(&view, &truth, db, report).await?;
        books::sums(&truth, db, report).await?;
        Ok(truth)
    }

    /// Verifies that the stored events of the blocks `from` to `to`, or to where the indexer stands, are the chain's, no more
    /// and no less. Nothing is before the deployment.
    pub async fn recount(&self, db: &mut PgConnection, from: u64, to: Option<u64>) -> Result<Report, VerifyError> {
        let cursor = self.cursor(db, to.unwrap_or(from)).await?;
        let from = from.max(self.deployment.deploy_block).min(cursor.number);
        let tip = self.existing(to.unwrap_or(cursor.number).max(from)).await?;
        let mut report = Report::at(tip.id, cursor);
        report.from = from;
        let mut reading = books::Reading::new(self, from);
        reading.recount(tip.id.number, db, &mut report).await?;
        reading.still_holds().await?;
        self.on_chain(cursor).await?;
        Ok(report)
    }

    /// As [`Self::recount`], and holds the rows that these events changed, as they are now, against the contracts where the
    /// indexer stands. At most `most` of these rows.
    pub async fn stretch(
        &self,
        db: &mut PgConnection,
        (from, to): (u64, u64),
        most: usize,
    ) -> Result<Report, VerifyError> {
        let mut report = self.recount(db, from, Some(to)).await?;
        let tip = self.on_chain(report.cursor).await?;
        let rows = books::touched(self, db, (report.from, report.block.number), most).await?;
        let mut truth = Truth { rows, ..Truth::default() };
        let jobs: Vec<_> = truth.rows.jobs.keys().copied().collect();
        truth.sums = ledger::job_balances(db, &jobs).await?;
        contracts::compare(&contracts::View::new(self, &tip), &truth, &mut report).await?;
        self.on_chain(tip.id).await?;
        Ok(report)
    }

    /// The latest block that is final and indexed.
    async fn final_block(&self, tip: &Block) -> Result<Block, VerifyError> {
        let block = match self.source.contracts().confirmation.finality() {
            Finality::Tag => self.source.finalized().await?,
            Finality::Depth(blocks) => self.existing(tip.id.number.saturating_sub(blocks)).await?,
        };
        let counts = (self.deployment.deploy_block..=tip.id.number).contains(&block.id.number);
        Ok(if counts { block } else { tip.clone() })
    }

    async fn cursor(&self, db: &mut PgConnection, wanted: u64) -> Result<BlockId, VerifyError> {
        let cursor = chain::cursor(db).await?.ok_or_else(|| VerifyError::OtherDeployment("nothing yet".to_owned()))?;
        self.same_deployment(&cursor)?;
        if cursor.block.number < wanted {
            return Err(VerifyError::Behind { cursor: cursor.block.number, wanted });
        }
        Ok(cursor.block)
    }

    fn same_deployment(&self, cursor: &Cursor) -> Result<(), VerifyError> {
        let indexed = (cursor.chain_id, cursor.escrow, cursor.registry);
        if indexed == (self.deployment.chain_id, self.deployment.escrow, self.deployment.registry) {
            return Ok(());
        }
        Err(VerifyError::OtherDeployment(format!(
            "chain {} with escrow {} and registry {}",
            indexed.0, indexed.1, indexed.2
        )))
    }

    async fn existing(&self, number: u64) -> Result<Block, VerifyError> {
        self.source.block(number).await?.ok_or(VerifyError::Reorganised(number))
    }

    /// The events of a block that is on the chain, asked for by its hash.
    async fn events_by_hash(&self, id: BlockId) -> Result<Vec<ChainEvent>, VerifyError> {
        let header = self.source.header(id.number).await?.filter(|header| header.block.id == id);
        let header = header.ok_or(VerifyError::Reorganised(id.number))?;
        Ok(self.source.events_of(&header).await?)
    }

    async fn on_chain(&self, id: BlockId) -> Result<Block, VerifyError> {
        let block = self.source.block(id.number).await?.filter(|block| block.id == id);
        block.ok_or(VerifyError::Reorganised(id.number))
    }
}

/// Makes `attempt` with one snapshot after another until the indexer is far enough and the chain stays as it is, or
/// `patience` is over.
pub async fn patiently<T>(
    pool: &PgPool,
    patience: Duration,
    mut attempt: impl AsyncFnMut(&mut PgConnection) -> Result<T, VerifyError>,
) -> Result<T, VerifyError> {
    let until = Instant::now() + patience;
    loop {
        let mut snapshot = queries::snapshot(pool).await?;
        let outcome = attempt(&mut snapshot).await;
        match outcome {
            Err(error) if error.may_pass() && Instant::now() < until => {}
            outcome => return outcome,
        }
        drop(snapshot);
        sleep(PAUSE).await;
    }
}
