//! Listening to channels. Messages are hints: whoever acts on one reads the state it speaks of, or the channel's history,
//! and after a [`Signal::Resumed`] does so without one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use redis::aio::PubSubSink;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at, sleep, timeout};

use super::client::{Client, LONGEST_WAIT, RedisError};

/// Messages that wait for a slow reader; then Redis has to wait, and in the end cuts it off.
const BACKLOG: usize = 1024;
/// Most channels that one command names.
const STEP: usize = 512;
/// How often a silent connection is asked whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Pause before the next attempt to subscribe.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What a [`Subscription`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The subscription took effect, at first or again: what was published before it may have been missed.
    Resumed,
    /// A channel that was added is listened to from now on.
    Listening(String),
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
    channels: Channels,
    task: JoinHandle<()>,
}

/// Adds channels to a [`Subscription`] and takes them away again.
#[derive(Debug, Clone)]
pub struct Channels(mpsc::UnboundedSender<Change>);

#[derive(Debug)]
enum Change {
    Add(String),
    Remove(String),
}

impl Channels {
    /// Listens to `channel` too, as soon as Redis is there: from the next [`Signal::Listening`] or [`Signal::Resumed`] on.
    pub fn add(&self, channel: String) {
        // Fails only after the subscription was dropped.
        self.0.send(Change::Add(channel)).ok();
    }

    /// Listens to `channel` no more.
    pub fn remove(&self, channel: String) {
        self.0.send(Change::Remove(channel)).ok();
    }
}

impl Subscription {
    /// Subscribes to `channels`, as soon as Redis is there.
    #[must_use]
    pub fn open(redis: Client, channels: Vec<String>) -> Self {
        let (sender, signals) = mpsc::channel(BACKLOG);
        let (changes, changed) = mpsc::unbounded_channel();
        let keeper = Keeper { redis, channels: channels.into_iter().collect(), changed, signals: sender };
        Self { signals, channels: Channels(changes), task: tokio::spawn(keeper.run()) }
    }

    /// What changes the channels that are listened to.
    #[must_use]
    pub fn channels(&self) -> Channels {
        self.channels.clone()
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

struct Keeper {
    redis: Client,
    channels: BTreeSet<String>,
    changed: mpsc::UnboundedReceiver<Change>,
    signals: mpsc::Sender<Signal>,
}

impl Keeper {
    async fn run(mut self) {
        let mut told = false;
        loop {
            self.take_changes();
            let listening = self.listen(&mut told).await;
            if self.signals.is_closed() {
                return;
            }
            if let Err(error) = listening
                && !std::mem::replace(&mut told, true)
            {
                tracing::warn!(%error, "subscription to Redis broke; going on trying");
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Passes messages on until the connection or its reader ends.
    async fn listen(&mut self, told: &mut bool) -> Result<(), RedisError> {
        let (connected, node) = in_time(self.redis.pubsub()).await?;
        let (mut sink, mut messages) = connected.split();
        subscribe(&mut sink, &self.channels.iter().collect::<Vec<_>>()).await?;
        *told = false;
        self.signals.send(Signal::Resumed).await.map_err(closed)?;
        let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        loop {
            tokio::select! {
                message = messages.next() => {
                    let message = message.ok_or_else(|| closed("the connection"))?;
                    let channel = message.get_channel_name().to_owned();
                    // A message that is not text is none of ours.
                    if let Ok(payload) = message.get_payload() {
                        self.signals.send(Signal::Message { channel, payload }).await.map_err(closed)?;
                    }
                    ping.reset();
                }
                change = self.changed.recv() => {
                    let change = change.ok_or_else(|| closed("the reader"))?;
                    self.change(&mut sink, change).await?;
                }
                _ = ping.tick() => {
                    in_time(sink.ping::<redis::Value>()).await?;
                    if self.redis.has_left(node.as_ref()) {
                        return Err(closed("our keys are at another node of the cluster"));
                    }
                }
            }
        }
    }

    /// Changes what is listened to: this and whatever else waits, so that many changes are few commands.
    async fn change(&mut self, sink: &mut PubSubSink, first: Change) -> Result<(), RedisError> {
        // Each channel that is named, and whether it was listened to before.
        let mut before = BTreeMap::new();
        self.apply(first, &mut before);
        while let Ok(change) = self.changed.try_recv() {
            self.apply(change, &mut before);
        }
        let channels = &self.channels;
        let names = |was: bool, is: bool| {
            let named = before.iter().filter(move |(_, listened)| **listened == was);
            named.map(|(channel, _)| channel).filter(move |channel| channels.contains(*channel) == is)
        };
        subscribe(sink, &names(false, true).collect::<Vec<_>>()).await?;
        for gone in names(true, false).collect::<Vec<_>>().chunks(STEP) {
            in_time(sink.unsubscribe(gone)).await?;
        }
        // Also those that were listened to before: whoever added them waits to be told.
        for channel in before.keys().filter(|channel| self.channels.contains(*channel)) {
            self.signals.send(Signal::Listening(channel.clone())).await.map_err(closed)?;
        }
        Ok(())
    }

    fn apply(&mut self, change: Change, before: &mut BTreeMap<String, bool>) {
        match change {
            Change::Add(channel) => {
                let is_new = self.channels.insert(channel.clone());
                before.entry(channel).or_insert(!is_new);
            }
            Change::Remove(channel) => {
                let was = self.channels.remove(&channel);
                before.entry(channel).or_insert(was);
            }
        }
    }

    /// Changes made while there was no connection.
    fn take_changes(&mut self) {
        while let Ok(change) = self.changed.try_recv() {
            self.apply(change, &mut BTreeMap::new());
        }
    }
}

async fn subscribe(sink: &mut PubSubSink, channels: &[&String]) -> Result<(), RedisError> {
    for channels in channels.chunks(STEP) {
        in_time(sink.subscribe(channels)).await?;
    }
    Ok(())
}

async fn in_time<T>(answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut).into();
    timeout(LONGEST_WAIT, answer).await.unwrap_or_else(|_| Err(late()))
}

fn closed(what: impl std::fmt::Display) -> RedisError {
    std::io::Error::new(std::io::ErrorKind::ConnectionAborted, format!("closed: {what}")).into()
}
