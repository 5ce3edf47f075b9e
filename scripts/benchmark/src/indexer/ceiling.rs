//! How fast the node itself hands out its logs: `eth_getLogs` over HTTP, read and thrown away.

use std::time::Instant;

use alloy::primitives::Address;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::chain::Chain;
use super::rpc::Rpc;

/// Events that one request is to answer, about, and requests under way at once: what is tried.
const EVENTS: [u64; 4] = [1_000, 4_000, 16_000, 64_000];
const CONCURRENCY: [usize; 4] = [1, 2, 4, 8];

/// A way to ask.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Blocks a request.
    pub blocks: u64,
    /// Requests under way at once.
    pub concurrency: usize,
}

/// The filter for the logs of both contracts in these blocks.
pub fn filter(contracts: [Address; 2], from: u64, to: u64) -> Value {
    json!([{"address": contracts, "fromBlock": format!("{from:#x}"), "toBlock": format!("{to:#x}")}])
}

/// Reads blocks up to `head` this way; how many seconds that takes.
pub async fn read(chain: &Chain, head: u64, way: Way) -> anyhow::Result<f64> {
    let contracts = [chain.deployment.manifest.escrow, chain.deployment.manifest.registry];
    let rpc: &Rpc = &chain.rpc;
    let started = Instant::now();
    let requests = (0..=head).step_by(usize::try_from(way.blocks)?).map(|from| async move {
        rpc.discard("eth_getLogs", filter(contracts, from, head.min(from + way.blocks - 1))).await
    });
    let sizes = stream::iter(requests).buffer_unordered(way.concurrency);
    let bytes = sizes.try_fold(0, |sum, size| async move { Ok(sum + size) }).await?;
    anyhow::ensure!(bytes > 0, "the node hands out nothing");
    Ok(started.elapsed().as_secs_f64())
}

/// The fastest of many ways.
pub async fn best(chain: &Chain, head: u64, events: u64) -> anyhow::Result<Way> {
    let mut best: Option<(f64, Way)> = None;
    for wanted in EVENTS {
        for concurrency in CONCURRENCY {
            let way = Way { blocks: (head * wanted / events.max(1)).max(1), concurrency };
            let took = read(chain, head, way).await?;
            if best.is_none_or(|(fastest, _)| took < fastest) {
                best = Some((took, way));
            }
        }
    }
    Ok(best.map_or(Way { blocks: 1, concurrency: 1 }, |(_, way)| way))
}
