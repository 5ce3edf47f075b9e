//! A chain with the contracts on it, things to do there, and indexes of it.

// Each test binary uses a part. Clippy excuses test functions only, not the helpers beside them.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

pub mod chain;
pub mod endpoint;
pub mod everything;
pub mod mirror;
pub mod process;

use std::time::Duration;

use devnet::TestDatabase;
use littoral_indexer::follower::{FollowError, Follower, Progress};
use market::db::leader::{Leadership, Role};
use market::deployment::Deployment;
use market::source::Source;
use market::{clock, db};
use sqlx::PgPool;

pub use chain::{ASSIGNER, COIN, Chain, ETHER, NODE, OTHER_REQUESTER, REQUESTER, SETTLER, spec};

/// An index of a chain in a database of its own.
#[derive(Debug)]
pub struct Index {
    pub pool: PgPool,
    pub follower: Follower,
    leadership: Option<Leadership>,
    source: Source,
    deployment: Deployment,
    database: TestDatabase,
}

impl Index {
    pub async fn of(chain: &Chain) -> Self {
        Self::with_range(chain, 2000).await
    }

    pub async fn with_range(chain: &Chain, max_range: u64) -> Self {
        let database = TestDatabase::create().await.unwrap();
        let pool = db::connect(database.url(), 8).await.unwrap();
        db::migrate(&pool).await.unwrap();
        let (source, deployment) = (chain.source(), chain.deployment.clone());
        let (leadership, follower) = lead(&pool, &source, &deployment, max_range).await.unwrap();
        Self { pool, follower, leadership: Some(leadership), source, deployment, database }
    }

    pub fn url(&self) -> &str {
        self.database.url()
    }

    /// As if the process had died and another had come.
    pub async fn restart(&mut self) {
        drop(self.replace().await);
    }

    /// Another follower takes over; what the one before would go on with.
    pub async fn replace(&mut self) -> Follower {
        drop(self.leadership.take());
        let (leadership, follower) = lead(&self.pool, &self.source, &self.deployment, 2000).await.unwrap();
        self.leadership = Some(leadership);
        std::mem::replace(&mut self.follower, follower)
    }

    /// As if the process had been started again with the endpoint and manifest of another chain.
    pub async fn pointed_at(mut self, chain: &Chain) -> Result<Self, FollowError> {
        drop(self.leadership.take());
        (self.source, self.deployment) = (chain.source(), chain.deployment.clone());
        let (leadership, follower) = lead(&self.pool, &self.source, &self.deployment, 2000).await?;
        (self.leadership, self.follower) = (Some(leadership), follower);
        Ok(self)
    }

    pub async fn advance(&mut self) -> Result<Progress, FollowError> {
        self.follower.advance(clock::now()).await
    }

    /// Follows the chain to its head. What was done on the way.
    pub async fn catch_up(&mut self) -> Vec<Progress> {
        let mut steps = vec![];
        loop {
            let progress = self.advance().await.unwrap();
            if progress.step.is_none() {
                assert_eq!(progress.head, progress.cursor.number);
                return steps;
            }
            steps.push(progress);
        }
    }

    /// Everything that follows from the chain.
    pub async fn state(&self) -> Vec<String> {
        db::chain::canonical_state(&mut self.pool.acquire().await.unwrap()).await.unwrap()
    }

    /// Catches up, and asserts that the outcome is that of a fresh index, of blocks one by one and of ranges.
    pub async fn assert_equals_a_fresh_index(&mut self, chain: &Chain) {
        self.catch_up().await;
        let mut fresh = Self::of(chain).await;
        fresh.catch_up().await;
        assert_eq!(self.state().await, fresh.state().await);
    }
}

async fn lead(
    pool: &PgPool,
    source: &Source,
    deployment: &Deployment,
    max_range: u64,
) -> Result<(Leadership, Follower), FollowError> {
    // The connection that held the lead before may take a moment to close.
    let leadership = loop {
        match Leadership::try_acquire(pool, Role::Indexer, clock::now()).await? {
            Some(leadership) => break leadership,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let fence = leadership.fence();
    let follower =
        Follower::start(pool.clone(), source.clone(), fence, deployment.deploy_block, max_range, clock::now()).await?;
    Ok((leadership, follower))
}
