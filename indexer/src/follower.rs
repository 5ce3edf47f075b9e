//! Where the cursor goes next: forward by a range of settled blocks, forward by one block at the head, or back to where the
//! chain branched off and onto the other branch at once.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use market::confirmation::Finality;
use market::db::chain::{self, Applied, ApplyError, Block, BlockId, Cursor, HEADERS_KEPT, Step};
use market::db::chain_view::{self, ObserveError};
use market::db::confirmation;
use market::db::leader::{Fence, FenceError};
use market::fold::Contracts;
use market::source::{RangeSize, Source, SourceError, Stretch};
use sqlx::postgres::{PgConnection, PgPool};

/// Blocks this far below the head are read by range, without checking each one's parent; also how far before the contracts'
/// deployment indexing begins, so that a reorg of the deployment itself can be followed.
pub const SETTLED_DISTANCE: u64 = 64;

/// Follows the chain, one step at a time.
#[derive(Debug)]
pub struct Follower {
    pool: PgPool,
    source: Source,
    fence: Fence,
    cursor: BlockId,
    ranges: RangeSize,
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
            Self::Source(_) | Self::NoAnchor(_) => Remedy::Retry,
            Self::WrongDeployment { .. }
            | Self::AnotherChain { .. }
            | Self::Observe(ObserveError::Contradicted { .. }) => Remedy::Stop,
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

/// The highest block that will never be taken back, while `head` is the latest one.
fn settled(head: BlockId) -> u64 {
    head.number.saturating_sub(HEADERS_KEPT)
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
                let anchor = source.block(number).await?.ok_or(FollowError::NoAnchor(number))?;
                let mut tx = pool.begin().await?;
                chain::begin(&mut tx, fence, source.contracts(), &anchor).await?;
                tx.commit().await?;
                anchor.id
            }
        };
        let mut tx = pool.begin().await?;
        confirmation::adopt(&mut tx, fence, &source.contracts().confirmation, now).await?;
        tx.commit().await?;
        let ranges = RangeSize::up_to(max_range);
        Ok(Self { pool, source, fence, cursor, ranges, pruned_at: cursor.number })
    }

    /// The last applied block.
    #[must_use]
    pub fn cursor(&self) -> BlockId {
        self.cursor
    }

    /// Takes one step, if there is one to take.
    pub async fn advance(&mut self, now: DateTime<Utc>) -> Result<Progress, FollowError> {
        let head = self.source.head().await?;
        let step = self.next_step(&head).await?;
        let head = head.id;
        let Some(step) = step else {
            if head == self.cursor {
                let mut tx = self.pool.begin().await?;
                self.observe(&mut tx, head.number, now).await?;
                tx.commit().await?;
            }
            return Ok(Progress { head: head.number, cursor: self.cursor, step: None });
        };
        // A step was found, so it has a last block.
        let Some(tip) = step.blocks.last().map(|block| block.id) else { return Err(ApplyError::NoBlocks.into()) };
        let mut tx = self.pool.begin().await?;
        let applied = chain::apply(&mut tx, self.fence, self.source.contracts(), &step, now).await?;
        self.observe(&mut tx, head.number.max(tip.number), now).await?;
        tx.commit().await?;
        self.cursor = tip;
        self.prune().await?;
        let reorg_depth = step.ancestor.map(|ancestor| step.from.number - ancestor.number);
        let taken = Taken { from: step.from, reorg_depth, events: step.events.len(), applied };
        Ok(Progress { head: head.number.max(tip.number), cursor: tip, step: Some(taken) })
    }

    /// Takes down what the chain has, now that the cursor is known to be on it.
    async fn observe(&self, db: &mut PgConnection, head: u64, now: DateTime<Utc>) -> Result<(), FollowError> {
        let finalized = match self.source.contracts().confirmation.finality() {
            Finality::Tag => Some(self.source.finalized().await?.id),
            Finality::Depth(_) => None,
        };
        chain_view::observe(db, self.fence, head, finalized, now).await?;
        Ok(())
    }

    async fn next_step(&mut self, head: &Block) -> Result<Option<Step>, FollowError> {
        let from = self.cursor;
        if head.id == from {
            return Ok(None);
        }
        let forward = match head.id.number.saturating_sub(from.number) {
            0 => None,
            1..=SETTLED_DISTANCE => self.single_step(head).await?,
            _ => self.settled_step(head.id).await?,
        };
        match forward {
            Some(step) => Ok(Some(step)),
            None => self.reorg_step(head.id).await,
        }
    }

    /// Forward by as many blocks as one query of logs allows; nothing if the cursor is not on the chain any more.
    async fn settled_step(&mut self, head: BlockId) -> Result<Option<Step>, FollowError> {
        let from = self.cursor;
        let to = head.number.saturating_sub(SETTLED_DISTANCE);
        let Stretch { blocks, events } = self.source.next_range(from.number + 1, to, &mut self.ranges).await?;
        // Asked last: had the chain branched off below the cursor before the logs were read, this would show it.
        if self.source.block(from.number).await?.is_none_or(|block| block.id != from) {
            return Ok(None);
        }
        Ok(Some(Step { from, ancestor: None, blocks, events, settled: settled(head) }))
    }

    /// Forward by the next block; nothing if it is not a child of the cursor.
    async fn single_step(&self, head: &Block) -> Result<Option<Step>, FollowError> {
        let from = self.cursor;
        let next = if head.id.number == from.number + 1 {
            Some(head.clone())
        } else {
            self.source.block(from.number + 1).await?
        };
        let Some(next) = next.filter(|next| next.parent_hash == from.hash) else { return Ok(None) };
        let events = self.source.events_of(&next).await?;
        Ok(Some(Step { from, ancestor: None, blocks: vec![next], events, settled: settled(head.id) }))
    }

    /// Back to the last block that the chain still has, and onto its branch, which is read whole before anything is undone.
    /// Nothing if the cursor is on the chain, or if the endpoint is merely behind.
    async fn reorg_step(&self, head: BlockId) -> Result<Option<Step>, FollowError> {
        let from = self.cursor;
        let Some(ancestor) = self.ancestor(head.number.min(from.number)).await? else { return Ok(None) };
        let to = if head.number > from.number + SETTLED_DISTANCE { from.number } else { head.number };
        let Stretch { blocks, events } = self.source.branch(ancestor, to).await?;
        Ok(Some(Step { from, ancestor: Some(ancestor), blocks, events, settled: settled(head) }))
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

    async fn another_chain(&self, lowest: BlockId) -> Result<FollowError, FollowError> {
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
