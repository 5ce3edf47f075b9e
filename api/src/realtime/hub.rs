//! All channels that this process's clients follow, and the one subscription to Redis behind them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::Address;
use market::redis::Client;
use market::redis::history::Position;
use market::redis::pubsub::{Channels, Signal, Subscription};
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::channel::{Channel, Input, Joined};
use super::member::{MemberId, Sink};
use super::presence::Presence;
use super::topic::Topic;
use super::watchers::Watchers;

/// Messages that wait for a channel; of more, it reads in the history.
const MAILBOX: usize = 256;

/// Cheap to clone. The subscription ends with the last clone.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    redis: Client,
    open: Arc<Open>,
    channels: Channels,
    presence: Presence,
    members: AtomicU64,
    bus: JoinHandle<()>,
}

/// The channels that are followed, by name.
#[derive(Debug, Default)]
struct Open(Mutex<HashMap<String, Handle>>);

#[derive(Debug, Clone)]
struct Handle {
    inputs: mpsc::Sender<Input>,
    missed: Arc<Notify>,
    members: u64,
}

/// A client's subscription. It ends when dropped.
#[derive(Debug)]
pub struct Membership {
    hub: Hub,
    channel: String,
    member: MemberId,
}

impl Hub {
    /// Follows nothing yet. Must be called inside a tokio runtime.
    #[must_use]
    pub fn open(redis: Client) -> Self {
        let subscription = Subscription::open(redis.clone(), Vec::new());
        let (open, channels) = (Arc::<Open>::default(), subscription.channels());
        let bus = tokio::spawn(route(subscription, Arc::clone(&open)));
        let (presence, members) = (Presence::default(), AtomicU64::new(0));
        Self(Arc::new(Shared { redis, open, channels, presence, members, bus }))
    }

    /// Has `sink` follow `topic` for `wallet`, from after `since` on if that is still known. `told` is called before anything
    /// is sent. Others see that it does.
    pub async fn join(
        &self,
        topic: Topic,
        sink: Sink,
        since: Option<Position>,
        wallet: Address,
        told: impl FnOnce(Joined) + Send + 'static,
    ) -> Membership {
        let channel = topic.channel(self.0.redis.keys());
        let (membership, inputs) = self.enter(channel.clone(), |inputs, missed, redis| {
            tokio::spawn(Channel::new(topic, channel.clone(), redis).run(inputs, missed));
        });
        self.0.presence.enter(membership.member, channel, wallet);
        let member = membership.member;
        // The channel runs as long as it has members, and it has one.
        inputs.send(Input::Join { member, sink, since, told: Box::new(told) }).await.ok();
        membership
    }

    /// Tells `sink` who follows `topic`, now and as that changes.
    pub async fn watch(&self, topic: Topic, sink: Sink) -> Membership {
        let channel = topic.channel(self.0.redis.keys());
        let (membership, inputs) = self.enter(self.0.redis.keys().presence(&channel), |inputs, missed, redis| {
            tokio::spawn(Watchers::new(topic, channel, redis).run(inputs, missed));
        });
        let member = membership.member;
        inputs.send(Input::Join { member, sink, since: None, told: Box::new(|_| ()) }).await.ok();
        membership
    }

    /// What tells others whom this process has following what.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.0.presence.clone()
    }

    /// How many channels are followed.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.0.open.lock().len()
    }

    fn enter(
        &self,
        channel: String,
        start: impl FnOnce(mpsc::Receiver<Input>, Arc<Notify>, Client),
    ) -> (Membership, mpsc::Sender<Input>) {
        let mut open = self.0.open.lock();
        let handle = open.entry(channel.clone()).or_insert_with(|| {
            let (inputs, received) = mpsc::channel(MAILBOX);
            let missed = Arc::<Notify>::default();
            start(received, Arc::clone(&missed), self.0.redis.clone());
            self.0.channels.add(channel.clone());
            Handle { inputs, missed, members: 0 }
        });
        handle.members += 1;
        let inputs = handle.inputs.clone();
        let member = self.0.members.fetch_add(1, Ordering::Relaxed);
        (Membership { hub: self.clone(), channel, member }, inputs)
    }
}

impl Membership {
    /// Has others see `data` beside it.
    pub fn show(&self, data: Option<Box<RawValue>>) {
        self.hub.0.presence.update(self.member, data);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let shared = &self.hub.0;
        shared.presence.leave(self.member);
        let mut open = shared.open.lock();
        let Some(handle) = open.get_mut(&self.channel) else { return };
        handle.members -= 1;
        if handle.members == 0 {
            open.remove(&self.channel);
            shared.channels.remove(self.channel.clone());
        } else if let Err(mpsc::error::TrySendError::Full(input)) = handle.inputs.try_send(Input::Leave(self.member)) {
            let inputs = handle.inputs.clone();
            tokio::spawn(async move { inputs.send(input).await.ok() });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.bus.abort();
    }
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives each channel its messages. A channel that cannot keep up misses some and reads them in the history.
async fn route(mut subscription: Subscription, open: Arc<Open>) {
    loop {
        match subscription.next().await {
            Signal::Resumed => open.lock().values().for_each(|handle| handle.missed.notify_one()),
            Signal::Listening(channel) => {
                if let Some(handle) = open.lock().get(&channel) {
                    handle.missed.notify_one();
                }
            }
            Signal::Message { channel, payload } => {
                if let Some(handle) = open.lock().get(&channel)
                    && handle.inputs.try_send(Input::Message(payload)).is_err()
                {
                    handle.missed.notify_one();
                }
            }
        }
    }
}
