//! After any reorg, Redis holds what it would hold had it been filled from a fresh index of the final chain.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;

use support::mirror::{Mirror, fresh_keys};
use support::{Chain, ETHER, Index, NODE, REQUESTER, spec};

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
