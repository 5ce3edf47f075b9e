//! Redis beside an index.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::B256;
use devnet::{Redis, RedisOptions};
use market::clock;
use market::db::outbox::{self, Entity, Source};
use market::redis::apply::{self, Changes};
use market::redis::client::Client;
use market::redis::dump::dump;
use market::redis::keys::Keys;
use market::redis::projector::Projector;
use serde_json::Value;

use super::{Chain, Index};

/// A Redis that is kept equal to an index.
pub struct Mirror {
    pub client: Client,
    pub redis: Redis,
    projector: Projector,
}

impl Mirror {
    /// Fills a fresh Redis from the index.
    pub async fn of(index: &Index) -> Self {
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let client = Client::open(redis.url(), Keys::default()).unwrap();
        let projector = Projector::new(index.pool.clone(), client.clone(), Source::Chain);
        projector.upkeep(clock::now()).await.unwrap();
        Self { client, redis, projector }
    }

    /// Applies jobs that changed in the API's tables.
    pub async fn project(&self, index: &Index, jobs: &BTreeSet<B256>) {
        let changes: Changes = jobs.iter().map(|job| (Entity::Job(*job), vec![])).collect();
        let mut tx = index.pool.begin().await.unwrap();
        apply::project(&mut tx, &self.client, &changes, clock::now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Applies the outbox, and returns all keys but the one that names the database.
    pub async fn keys(&self, index: &Index) -> BTreeMap<String, Value> {
        self.projector.drain(clock::now()).await.unwrap();
        let mut db = index.pool.acquire().await.unwrap();
        assert_eq!(outbox::depth(&mut db, Source::Chain).await.unwrap(), (0, None), "the outbox is drained");
        let mut keys = dump(&self.client).await.unwrap();
        keys.remove(&self.client.keys().generation());
        keys
    }
}

/// What a fresh Redis over a fresh index of the chain holds.
pub async fn fresh_keys(chain: &Chain) -> BTreeMap<String, Value> {
    let mut index = Index::of(chain).await;
    index.catch_up().await;
    Mirror::of(&index).await.keys(&index).await
}
