//! Listening to channels. Messages are hints: whoever acts on one reads the state it speaks of, and after a
//! [`Signal::Resumed`] does so without one.

use std::time::Duration;

use futures::StreamExt;
use redis::aio::PubSub;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::client::{Client, LONGEST_WAIT, RedisError};

/// Messages that wait for a slow reader; then Redis has to wait, and in the end cuts it off.
const BACKLOG: usize = 1024;
/// How often a silent connection is asked whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Pause before the next attempt to subscribe.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What a [`Subscription`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The subscription took effect, at first or again: what was published before it may have been missed.
    Resumed,
    /// A message.
    Message {
        /// The channel it was published on.
        channel: String,
        /// Its text.
        payload: String,
    },
}

/// A subscription that is made again whenever it breaks. Ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    signals: mpsc::Receiver<Signal>,
    task: JoinHandle<()>,
}

impl Subscription {
    /// Subscribes to `channels`, as soon as Redis is there.
    #[must_use]
    pub fn open(redis: Client, channels: Vec<String>) -> Self {
        let (sender, signals) = mpsc::channel(BACKLOG);
        Self { signals, task: tokio::spawn(keep_subscribed(redis, channels, sender)) }
    }

    /// The next signal. Waits as long as Redis is down or silent. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Signal {
        match self.signals.recv().await {
            Some(signal) => signal,
            // The task ends only when this value is dropped.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_subscribed(redis: Client, channels: Vec<String>, signals: mpsc::Sender<Signal>) {
    let mut told = false;
    loop {
        let ended = match redis.subscribe(&channels).await {
            Ok(connection) => {
                told = false;
                forward(connection, &signals).await
            }
            Err(error) => Some(error),
        };
        if signals.is_closed() {
            return;
        }
        if !told {
            told = true;
            let reason = ended.map_or_else(|| "the connection closed".to_owned(), |error| error.to_string());
            tracing::warn!(reason, ?channels, "subscription to Redis broke; going on trying");
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Passes messages on until the connection or its reader ends.
async fn forward(connection: PubSub, signals: &mpsc::Sender<Signal>) -> Option<RedisError> {
    let (mut sink, mut messages) = connection.split();
    signals.send(Signal::Resumed).await.ok()?;
    loop {
        match timeout(PING_EVERY, messages.next()).await {
            Ok(None) => return None,
            Ok(Some(message)) => {
                let channel = message.get_channel_name().to_owned();
                // A message that is not text is none of ours.
                if let Ok(payload) = message.get_payload() {
                    signals.send(Signal::Message { channel, payload }).await.ok()?;
                }
            }
            Err(_) => match timeout(LONGEST_WAIT, sink.ping::<redis::Value>()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Some(error),
                Err(_) => return Some(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            },
        }
    }
}
