//! After any reorg, Redis holds what it would hold had it been filled from a fresh index of the final chain.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;

use devnet::{Redis, RedisOptions};
use market::clock;
use market::db::outbox::{self, Source};
use market::redis::client::Client;
use market::redis::dump::dump;
use market::redis::keys::Keys;
use market::redis::projector::Projector;
use serde_json::Value;
use support::{Chain, ETHER, Index, NODE, REQUESTER, spec};

/// A Redis that is kept equal to an index.
struct Mirror {
    client: Client,
    projector: Projector,
    _redis: Redis,
}

impl Mirror {
    /// Fills a fresh Redis from the index.
    async fn of(index: &Index) -> Self {
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let client = Client::open(redis.url(), Keys::default()).unwrap();
        let projector = Projector::new(index.pool.clone(), client.clone(), Source::Chain);
        projector.upkeep(clock::now()).await.unwrap();
        Self { client, projector, _redis: redis }
    }

    /// Applies the outbox, and returns all keys but the one that names the database.
    async fn keys(&self, index: &Index) -> BTreeMap<String, Value> {
        self.projector.drain(clock::now()).await.unwrap();
        let mut db = index.pool.acquire().await.unwrap();
        assert_eq!(outbox::depth(&mut db, Source::Chain).await.unwrap(), (0, None), "the outbox is drained");
        let mut keys = dump(&self.client).await.unwrap();
        keys.remove(&self.client.keys().generation());
        keys
    }
}

/// What a fresh Redis over a fresh index of the chain holds.
async fn fresh_keys(chain: &Chain) -> BTreeMap<String, Value> {
    let mut index = Index::of(chain).await;
    index.catch_up().await;
    Mirror::of(&index).await.keys(&index).await
}

#[tokio::test]
async fn after_reorgs_redis_is_as_if_filled_afresh() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    let mirror = Mirror::of(&index).await;
    chain.deposit(REQUESTER, 100_000).await;
    chain.mine(8).await;
    chain.register(NODE, ETHER).await;
    let mut last = BTreeMap::new();
    for (nonce, depth) in (0..).zip([5, 1, 2, 1]) {
        let spec = spec(&nonce.to_string());
        let order = chain.order(nonce, &spec).await;
        let job_id = chain.open(&order, &spec).await;
        index.catch_up().await;
        let key = mirror.client.keys().job_status(job_id);
        assert_eq!(mirror.keys(&index).await[&key]["value"]["status"], "pending");
        chain.submit(vec![chain.result(&order, 5)]).await;
        index.catch_up().await;
        assert_eq!(mirror.keys(&index).await[&key]["value"]["status"], "completed");

        // One block takes the settlement back, more take the job back too, and five the node's registration.
        chain.reorg(depth).await;
        index.catch_up().await;
        let keys = mirror.keys(&index).await;
        let status = keys.get(&key).map(|key| key["value"]["status"].clone());
        assert_eq!(status, (depth == 1).then(|| "pending".into()));
        assert_eq!(keys, fresh_keys(&chain).await, "after a reorg of {depth}");
        last = keys;
        if depth == 5 {
            chain.register(NODE, ETHER).await;
        }
    }
    assert!(!last.is_empty());
}
