//! Where the cursor goes next: forward by batches of final blocks, forward by a few linked blocks at the head, or back to
//! where the chain branched off and onto the other branch at once.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use market::confirmation::{Finality, Policy};
use market::db::chain::{self, Applied, ApplyError, Block, BlockId, Cursor, HEADERS_KEPT, Step};
use market::db::chain_view::{self, ObserveError};
use market::db::confirmation;
use market::db::leader::{Fence, FenceError};
use market::fold::Contracts;
use market::source::{Header, Source, SourceError, Stretch};
use metrics::counter;
use sqlx::postgres::{PgConnection, PgPool};

use crate::backfill::Backfilling;

/// How far before the contracts' deployment indexing begins, so that a reorg of the deployment itself can be followed; also
/// the longest branch that is read at once beyond where the cursor stood.
pub const SETTLED_DISTANCE: u64 = 64;
/// Final blocks are read by ranges if there are more than this; fewer are read as those at the head are, with every block's
/// parent checked.
pub const NEAR: u64 = 32;
/// Most blocks of one step at the head.
const LINKED: u64 = 32;
/// How often it is asked which block is final, where that costs a request; and how often while the chain does not grow, for
/// whoever was asked may have been behind.
const FINAL_INTERVAL: Duration = Duration::from_secs(1);
const FINAL_AGAIN: Duration = Duration::from_secs(5);
/// How long one step waits for final blocks before whoever takes the steps is heard again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Follows the chain, one step at a time.
#[derive(Debug)]
pub struct Follower {
    pool: PgPool,
    source: Source,
    fence: Fence,
    cursor: BlockId,
    max_range: u64,
    /// The latest block that the chain has shown.
    head: BlockId,
    /// The latest final block that is known, above or below the cursor.
    finalized: Option<BlockId>,
    /// What was taken down last: head and final block.
    observed: Option<(u64, Option<BlockId>)>,
    /// When it was asked which block is final, and at which height of the chain that was answered.
    asked: Option<(Instant, Option<u64>)>,
    backfilling: Option<Backfilling>,
    pruned_at: u64,
}

/// What [`Follower::advance`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Number of the latest block that the chain has.
    pub head: u64,
    /// The last applied block.
    pub cursor: BlockId,
    /// The step that was taken; nothing if there was none to take.
    pub step: Option<Taken>,
}

/// A step that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Where the cursor stood.
    pub from: BlockId,
    /// Blocks that were undone, if it was a reorg.
    pub reorg_depth: Option<u64>,
    /// Whether it is one of many over final blocks.
    pub is_backfill: bool,
    /// Events applied.
    pub events: usize,
    /// What it did to the rows.
    pub applied: Applied,
}

/// Why there is no progress.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The chain could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The step was not taken.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// What is final could not be taken down.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The database did not answer.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// The database mirrors another deployment.
    #[error(
        "this database mirrors chain {} with escrow {} and registry {}, but the deployments manifest is for chain {} with \
         escrow {} and registry {}: use another database or another manifest",
        .indexed.chain_id, .indexed.escrow, .indexed.registry, .wanted.0, .wanted.1, .wanted.2
    )]
    WrongDeployment {
        /// As the database has it.
        indexed: Box<Cursor>,
        /// As the manifest has it: chain, escrow, registry.
        wanted: (u64, Address, Address),
    },
    /// No block that was indexed is on the chain.
    #[error(
        "not even block {number} ({stored}), where indexing began, is on the chain: its block {number} is {actual}. It was \
         reset, or is another chain with the same id: use an empty database"
    )]
    AnotherChain {
        /// The block.
        number: u64,
        /// Its hash in the database.
        stored: B256,
        /// Its hash on the chain.
        actual: B256,
    },
    /// What was final is not on the chain any more.
    #[error(
        "the chain branched off at block {ancestor}, below block {} ({}), which was final; nothing was undone. If all \
         endpoints are on the right chain, index it again into an empty database", .finalized.number, .finalized.hash
    )]
    FinalReorged {
        /// The last block that both branches have.
        ancestor: u64,
        /// The latest block that was final.
        finalized: BlockId,
    },
    /// The manifest speaks of a block that the chain does not have yet.
    #[error("the chain has no block {0}, where indexing is to begin; is the node still syncing?")]
    NoAnchor(u64),
}

/// What to do about a [`FollowError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Try again: the endpoint failed.
    Retry,
    /// Back to standby: the lead or the database is lost.
    StandBy,
    /// Stop, and have someone look.
    Stop,
}

impl FollowError {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Source(SourceError::Decode(_)) => Remedy::Stop,
            // If it is the cursor that is on another branch, the chain's head tells.
            Self::Source(_) | Self::NoAnchor(_) | Self::Observe(ObserveError::Contradicted { .. }) => Remedy::Retry,
            Self::WrongDeployment { .. } | Self::AnotherChain { .. } | Self::FinalReorged { .. } => Remedy::Stop,
            Self::Apply(ApplyError::CursorMoved(_) | ApplyError::Fence(FenceError::Deposed { .. }))
            | Self::Observe(ObserveError::Fence(FenceError::Deposed { .. }) | ObserveError::NoCursor) => {
                Remedy::StandBy
            }
            Self::Apply(ApplyError::Sql(error) | ApplyError::Fence(FenceError::Sql(error)))
            | Self::Observe(ObserveError::Sql(error) | ObserveError::Fence(FenceError::Sql(error)))
            | Self::Sql(error) => {
                if is_transient(error) {
                    Remedy::StandBy
                } else {
                    Remedy::Stop
                }
            }
            Self::Apply(ApplyError::Fold(_) | ApplyError::TooDeep { .. } | ApplyError::NoBlocks) => Remedy::Stop,
        }
    }
}

/// Whether the database may answer if asked again: connections lost, server restarting or full, deadlocks.
#[must_use]
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| ["08", "40", "53", "57", "25006"].iter().any(|class| code.starts_with(class))),
        _ => false,
    }
}

/// Errors if the database mirrors another deployment than `contracts`. Nothing if it mirrors none yet.
pub async fn stored_cursor(pool: &PgPool, contracts: &Contracts) -> Result<Option<Cursor>, FollowError> {
    let mut db = pool.acquire().await?;
    let Some(cursor) = chain::cursor(&mut db).await? else { return Ok(None) };
    let wanted = (contracts.chain_id, contracts.escrow, contracts.registry);
    if (cursor.chain_id, cursor.escrow, cursor.registry) != wanted {
        return Err(FollowError::WrongDeployment { indexed: Box::new(cursor), wanted });
    }
    Ok(Some(cursor))
}

/// What a backfill has to offer.
enum Settled {
    Step(Step),
    /// Nothing yet.
    Wait,
    /// It is complete.
    End,
}

impl Follower {
    /// Takes up where the database's cursor stands, or begins before `deploy_block`. `max_range` bounds how many blocks one
    /// query of logs spans.
    pub async fn start(
        pool: PgPool,
        source: Source,
        fence: Fence,
        deploy_block: u64,
        max_range: u64,
        now: DateTime<Utc>,
    ) -> Result<Self, FollowError> {
        let cursor = match stored_cursor(&pool, source.contracts()).await? {
            Some(cursor) => cursor.block,
            None => {
                let number = deploy_block.saturating_sub(SETTLED_DISTANCE);
                let anchor = source.anchor(number).await?.ok_or(FollowError::NoAnchor(number))?;
                let mut tx = pool.begin().await?;
                chain::begin(&mut tx, fence, source.contracts(), &anchor).await?;
                tx.commit().await?;
                anchor.id
            }
        };
        let mut tx = pool.begin().await?;
        confirmation::adopt(&mut tx, fence, &source.contracts().confirmation, now).await?;
        let finalized = match chain_view::standing(&mut tx).await?.and_then(|standing| standing.final_block) {
            Some(number) => chain::canonical_at_or_below(&mut tx, number).await?,
            None => None,
        };
        tx.commit().await?;
        Ok(Self {
            pool,
            source,
            fence,
            cursor,
            max_range,
            head: cursor,
            finalized,
            observed: None,
            asked: None,
            backfilling: None,
            pruned_at: cursor.number,
        })
    }

    /// The last applied block.
    #[must_use]
    pub fn cursor(&self) -> BlockId {
        self.cursor
    }

    fn policy(&self) -> &Policy {
        &self.source.contracts().confirmation
    }

    /// Takes one step, if there is one to take.
    pub async fn advance(&mut self, now: DateTime<Utc>) -> Result<Progress, FollowError> {
        let advanced = self.advance_once(now).await;
        if advanced.is_err() {
            // It may be what is thought to be final that does not fit.
            self.asked = None;
        }
        advanced
    }

    async fn advance_once(&mut self, now: DateTime<Utc>) -> Result<Progress, FollowError> {
        let Some((step, is_backfill)) = self.next_step().await? else {
            self.observe_again(now).await?;
            return Ok(Progress { head: self.head.number, cursor: self.cursor, step: None });
        };
        // A step was found, so it has a last block.
        let Some(tip) = step.blocks.last().map(|block| block.id) else { return Err(ApplyError::NoBlocks.into()) };
        let mut tx = self.pool.begin().await?;
        let applied = chain::apply(&mut tx, self.fence, self.source.contracts(), &step, now).await?;
        // A final block above the cursor is known to be of the same branch only where reading was up to it.
        let finalized = self.finalized.filter(|finalized| is_backfill || finalized.number <= tip.number);
        self.observe(&mut tx, self.head.number.max(tip.number), finalized, now).await?;
        tx.commit().await?;
        self.cursor = tip;
        if self.head.number < tip.number {
            self.head = tip;
        }
        if let Some(backfilling) = &mut self.backfilling {
            backfilling.applied(tip.number, step.events.len());
        }
        self.prune().await?;
        let reorg_depth = step.ancestor.map(|ancestor| step.from.number - ancestor.number);
        let taken = Taken { from: step.from, reorg_depth, is_backfill, events: step.events.len(), applied };
        Ok(Progress { head: self.head.number, cursor: tip, step: Some(taken) })
    }

    /// Takes down what the chain has. The cursor has to be on it, and so has what is final.
    async fn observe(
        &mut self,
        db: &mut PgConnection,
        head: u64,
        finalized: Option<BlockId>,
        now: DateTime<Utc>,
    ) -> Result<(), FollowError> {
        chain_view::observe(db, self.fence, head, finalized, now).await?;
        self.observed = Some((head, finalized));
        Ok(())
    }

    /// The same where no step was taken, if something is new.
    async fn observe_again(&mut self, now: DateTime<Utc>) -> Result<(), FollowError> {
        let seen = (self.head.number, self.finalized);
        if self.head == self.cursor && self.observed != Some(seen) {
            let mut tx = self.pool.begin().await?;
            self.observe(&mut tx, self.head.number, self.finalized, now).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// The next step, and whether it is one of a backfill.
    async fn next_step(&mut self) -> Result<Option<(Step, bool)>, FollowError> {
        if self.backfilling.is_some() {
            match self.settled_step().await {
                // Where the chain branched off is found below.
                Err(SourceError::Branched(_)) => self.backfilling = None,
                Err(error) => {
                    self.backfilling = None;
                    return Err(error.into());
                }
                Ok(Settled::Step(step)) => return Ok(Some((step, true))),
                Ok(Settled::Wait) => return Ok(None),
                Ok(Settled::End) => self.backfilling = None,
            }
        }
        let head = self.source.head().await?;
        self.head = head.block.id;
        self.look_for_final(&head).await?;
        if head.block.id == self.cursor {
            return Ok(None);
        }
        if let Some(to) = self.finalized.filter(|to| to.number > self.cursor.number + NEAR) {
            let begun = Backfilling::begin(&self.source, self.cursor, to, self.settled(), self.max_range);
            self.backfilling = Some(begun);
            return Box::pin(self.next_step_of_backfill(&head)).await;
        }
        Ok(self.step_at_head(head).await?.map(|step| (step, false)))
    }

    /// The first step of a backfill, or what there is instead if the cursor is not on the chain.
    async fn next_step_of_backfill(&mut self, head: &Header) -> Result<Option<(Step, bool)>, FollowError> {
        match self.settled_step().await {
            Ok(Settled::Step(step)) => Ok(Some((step, true))),
            Ok(Settled::Wait | Settled::End) => Ok(None),
            Err(error) => {
                self.backfilling = None;
                match error {
                    SourceError::Branched(_) => match self.reorg_step(head.block.id).await? {
                        Some(step) => Ok(Some((step, false))),
                        // Then it is not the cursor that is elsewhere.
                        None => Err(error.into()),
                    },
                    error => Err(error.into()),
                }
            }
        }
    }

    /// Forward by a batch of final blocks.
    async fn settled_step(&mut self) -> Result<Settled, SourceError> {
        let Some(backfilling) = &mut self.backfilling else { return Ok(Settled::End) };
        match tokio::time::timeout(LONGEST_WAIT, backfilling.next()).await {
            Ok(Some(read)) => {
                let Stretch { blocks, events } = read?;
                Ok(Settled::Step(Step { from: self.cursor, ancestor: None, blocks, events, settled: self.settled() }))
            }
            Ok(None) => Ok(Settled::End),
            Err(_) => Ok(Settled::Wait),
        }
    }

    /// Forward by a few linked blocks, or onto another branch.
    async fn step_at_head(&self, head: Header) -> Result<Option<Step>, FollowError> {
        let (from, head_id) = (self.cursor, head.block.id);
        let read = match head_id.number.saturating_sub(from.number) {
            0 => return self.reorg_step(head_id).await,
            1 => self.source.linked(from, vec![head]).await,
            _ => self.source.branch(from, head_id.number.min(from.number + LINKED)).await,
        };
        match read {
            Ok(Stretch { blocks, events }) => {
                Ok(Some(Step { from, ancestor: None, blocks, events, settled: self.settled() }))
            }
            Err(SourceError::Branched(at)) if at == from => self.reorg_step(head_id).await,
            Err(error) => Err(error.into()),
        }
    }

    /// The highest block that will never be taken back.
    fn settled(&self) -> u64 {
        if self.policy().follows_reorgs_below_final() {
            return self.head.number.saturating_sub(HEADERS_KEPT);
        }
        self.finalized.map_or(0, |finalized| finalized.number)
    }

    /// Finds out which block is final, if it is time to.
    async fn look_for_final(&mut self, head: &Header) -> Result<(), FollowError> {
        let (finality, height) = (self.policy().finality(), head.block.id.number);
        let is_free = finality == Finality::Depth(0) && self.source.provider_count() == 1;
        let is_recent = self.asked.is_some_and(|(at, answered)| {
            at.elapsed() < if answered == Some(height) { FINAL_AGAIN } else { FINAL_INTERVAL }
        });
        if is_recent && !is_free {
            return Ok(());
        }
        let found = self.source.final_block(head, finality).await?;
        self.asked = Some((Instant::now(), found.map(|_| height)));
        // An endpoint that is behind does not make less final.
        let is_later = |found: &BlockId| self.finalized.is_none_or(|known| known.number <= found.number);
        if let Some(found) = found.filter(|found| self.policy().follows_reorgs_below_final() || is_later(found)) {
            self.finalized = Some(found);
        }
        Ok(())
    }

    /// Back to the last block that the chain still has, and onto its branch, which is read whole before anything is undone.
    /// Nothing if the cursor is on the chain, or if the endpoint is merely behind.
    async fn reorg_step(&self, head: BlockId) -> Result<Option<Step>, FollowError> {
        let from = self.cursor;
        let Some(ancestor) = self.ancestor(head.number.min(from.number)).await? else { return Ok(None) };
        self.check_final(ancestor).await?;
        let to = if head.number > from.number + SETTLED_DISTANCE { from.number } else { head.number };
        let Stretch { blocks, events } = self.source.branch(ancestor, to).await?;
        Ok(Some(Step { from, ancestor: Some(ancestor), blocks, events, settled: self.settled() }))
    }

    /// An error if applied blocks above `ancestor` are final. If only some endpoints say that they are gone, it is those that
    /// are wrong. What the chain calls final now says nothing here: it may be of the branch that the cursor is not on yet.
    async fn check_final(&self, ancestor: BlockId) -> Result<(), FollowError> {
        if self.policy().follows_reorgs_below_final() {
            return Ok(());
        }
        let Some(finalized) = self.applied_final().await?.filter(|block| block.number > ancestor.number) else {
            return Ok(());
        };
        if !self.source.is_gone(finalized).await? {
            let what = format!("block {} is final and has another hash now", finalized.number);
            return Err(SourceError::Inconsistent(what).into());
        }
        counter!("littoral_indexer_final_reorgs_total").increment(1);
        Err(FollowError::FinalReorged { ancestor: ancestor.number, finalized })
    }

    /// The latest applied block that counts as final.
    async fn applied_final(&self) -> Result<Option<BlockId>, FollowError> {
        let standing = chain_view::standing(&mut *self.pool.acquire().await?).await?;
        match standing.and_then(|standing| standing.final_block) {
            Some(number) => self.stored(number).await,
            None => Ok(None),
        }
    }

    /// The highest stored block that is on the chain, if any stored block up to `limit` is not.
    async fn ancestor(&self, limit: u64) -> Result<Option<BlockId>, FollowError> {
        let Some(top) = self.stored(limit).await? else { return Ok(None) };
        if self.is_on_chain(top).await? {
            return Ok(None);
        }
        let (found, gone) = self.bracket(top).await?;
        Ok(Some(self.highest_between(found, gone).await?))
    }

    /// Down from `gone`, which is not on the chain, in growing strides to a stored block that is; and the lowest one met
    /// that is not. What is below a block on the chain is on it too.
    async fn bracket(&self, gone: BlockId) -> Result<(BlockId, BlockId), FollowError> {
        let mut gone = gone;
        let mut stride = 1;
        loop {
            let below = match gone.number.checked_sub(stride) {
                Some(number) => self.stored(number).await?,
                None => None,
            };
            match below {
                Some(below) if self.is_on_chain(below).await? => return Ok((below, gone)),
                Some(below) => {
                    gone = below;
                    stride *= 2;
                }
                // Nothing is stored so far down.
                None if stride > 1 => stride /= 2,
                None => return Err(self.another_chain(gone).await?),
            }
        }
    }

    /// The highest stored block on the chain, given one that is and a higher one that is not.
    async fn highest_between(&self, found: BlockId, gone: BlockId) -> Result<BlockId, FollowError> {
        let (mut found, mut low, mut high) = (found, found.number, gone.number);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.stored(middle).await?.filter(|block| block.number > found.number) {
                Some(block) if self.is_on_chain(block).await? => (found, low) = (block, middle),
                Some(block) => high = block.number,
                None => low = middle,
            }
        }
        Ok(found)
    }

    /// What follows from `lowest`, where indexing began, not being on the chain.
    async fn another_chain(&self, lowest: BlockId) -> Result<FollowError, FollowError> {
        if !self.source.is_gone(lowest).await? {
            let what = format!("block {}, where indexing began, is said to be another", lowest.number);
            return Ok(SourceError::Inconsistent(what).into());
        }
        let actual = self.source.block(lowest.number).await?.map(|block| block.id.hash).unwrap_or_default();
        Ok(FollowError::AnotherChain { number: lowest.number, stored: lowest.hash, actual })
    }

    async fn stored(&self, number: u64) -> Result<Option<BlockId>, FollowError> {
        let mut db = self.pool.acquire().await?;
        Ok(chain::canonical_at_or_below(&mut db, number).await?)
    }

    async fn is_on_chain(&self, id: BlockId) -> Result<bool, FollowError> {
        Ok(self.source.block(id.number).await?.is_some_and(|block: Block| block.id == id))
    }

    async fn prune(&mut self) -> Result<(), FollowError> {
        if self.cursor.number < self.pruned_at.saturating_add(HEADERS_KEPT) {
            return Ok(());
        }
        let mut tx = self.pool.begin().await?;
        let forgotten = chain::prune_headers(&mut tx, self.fence, self.cursor.number).await?;
        tx.commit().await?;
        tracing::debug!(forgotten, cursor = self.cursor.number, "forgot old headers");
        self.pruned_at = self.cursor.number;
        Ok(())
    }
}
