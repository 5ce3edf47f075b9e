//! A word from the chain that there is a new block. It only wakes whoever looks at the chain at intervals anyway: what is
//! looked at is the truth, so nothing is lost where the word is late, repeated, wrong or missing.

use std::sync::Arc;
use std::time::Duration;

use alloy::providers::{Provider, ProviderBuilder, WsConnect};
use alloy::transports::TransportError;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use url::Url;

/// Pause before the endpoint is called again; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A subscription that says nothing for so long may be dead without knowing.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Calling an endpoint may not take longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Wakes at new blocks, as an endpoint tells them over WebSocket; without one, at intervals only.
#[derive(Debug)]
pub struct Hint {
    new_block: Arc<Notify>,
    /// Ends with the hint.
    _listener: JoinSet<()>,
}

impl Hint {
    /// Listens to `newHeads` at `ws_url`, calling again for as long as it takes when the connection breaks or says nothing for
    /// `silence`, which is [`SILENCE`] but in tests.
    #[must_use]
    pub fn listen(ws_url: Option<Url>, silence: Duration) -> Self {
        let new_block = Arc::new(Notify::new());
        let mut listener = JoinSet::new();
        if let Some(url) = ws_url {
            listener.spawn(listen(url, silence, new_block.clone()));
        }
        Self { new_block, _listener: listener }
    }

    /// Waits until there may be a new block, but not longer than `interval`. What was told since it waited last counts.
    pub async fn wait(&self, interval: Duration) {
        tokio::select! {
            () = self.new_block.notified() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// Tells Prometheus what the metrics mean.
pub fn describe_metrics() {
    describe_gauge!("littoral_indexer_ws_connected", "1 if the chain's WebSocket tells new blocks");
    describe_counter!("littoral_indexer_ws_heads_total", "blocks that the chain's WebSocket told");
}

async fn listen(url: Url, silence: Duration, new_block: Arc<Notify>) {
    let mut pause = SHORTEST_PAUSE;
    let mut is_failing = false;
    loop {
        let heard = listen_once(&url, silence, &new_block).await;
        gauge!("littoral_indexer_ws_connected").set(0.0);
        if heard.heads > 0 {
            (pause, is_failing) = (SHORTEST_PAUSE, false);
        }
        // Told when it begins; the metric tells that it goes on. The URL may have a key in it, and so may the error.
        if !std::mem::replace(&mut is_failing, true) {
            let host = url.host_str().unwrap_or_default();
            tracing::warn!(host, reason = heard.end, "no word of new blocks over WebSocket; looking at intervals");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What came of one connection.
struct Heard {
    heads: u64,
    end: &'static str,
}

async fn listen_once(url: &Url, silence: Duration, new_block: &Notify) -> Heard {
    let mut heads = 0;
    let subscribing = tokio::time::timeout(CONNECT_TIMEOUT, async {
        // Calling again is done here, so that one place knows whether there is a connection.
        let provider = ProviderBuilder::new()
            .disable_recommended_fillers()
            .connect_ws(WsConnect::new(url.as_str()).with_max_retries(0))
            .await?;
        let subscription = provider.subscribe_blocks().await?;
        Ok::<_, TransportError>((provider, subscription))
    });
    let (_provider, mut subscription) = match subscribing.await {
        Ok(Ok(connected)) => connected,
        Ok(Err(_)) => return Heard { heads, end: "cannot subscribe" },
        Err(_) => return Heard { heads, end: "no answer in time" },
    };
    gauge!("littoral_indexer_ws_connected").set(1.0);
    tracing::debug!(host = url.host_str(), "new blocks are told over WebSocket");
    // What was mined before is found by looking.
    new_block.notify_one();
    loop {
        match tokio::time::timeout(silence, subscription.recv()).await {
            Ok(Ok(_)) => {}
            // Some were missed, which does not matter.
            Ok(Err(tokio::sync::broadcast::error::RecvError::Lagged(_))) => {}
            Ok(Err(tokio::sync::broadcast::error::RecvError::Closed)) => {
                return Heard { heads, end: "connection lost" };
            }
            Err(_) => return Heard { heads, end: "silent for too long" },
        }
        heads += 1;
        counter!("littoral_indexer_ws_heads_total").increment(1);
        new_block.notify_one();
    }
}
