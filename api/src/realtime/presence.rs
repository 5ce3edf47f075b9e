//! Tells Redis whom this process has following what, and goes on saying so.
//!
//! What is to be there is kept here; Redis is made equal to it. After an outage, a flush or a pause so long that the others
//! took this process for dead, everyone enters anew under another name of the instance, and the old name's members leave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use market::clock;
use market::redis::Client;
use market::redis::presence::{self, Change, LIFE, MOST_CHANGES, Renewed};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::member::MemberId;

/// Changes that wait for Redis; with more it is cheaper to enter everyone anew.
const MOST_WAITING: usize = 8192;
/// Before Redis is tried again.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

/// Whom this process has following what. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Presence(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    present: HashMap<MemberId, Present>,
    waiting: Vec<MemberId>,
    leaving: Vec<(MemberId, String)>,
    overflowed: bool,
}

#[derive(Debug, Clone)]
struct Present {
    channel: String,
    wallet: Address,
    since: DateTime<Utc>,
    data: Option<Box<RawValue>>,
}

/// A member, as others see it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Member<'a> {
    id: &'a str,
    wallet_address: String,
    /// Unix ms.
    since: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

impl Presence {
    /// `member` follows `channel` from now on.
    pub fn enter(&self, member: MemberId, channel: String, wallet: Address) {
        let present = Present { channel, wallet, since: clock::now(), data: None };
        let mut state = self.lock();
        state.present.insert(member, present);
        state.wait_for(member);
        self.0.changed.notify_one();
    }

    /// `member` says something about itself. False if it follows nothing.
    pub fn update(&self, member: MemberId, data: Option<Box<RawValue>>) -> bool {
        let mut state = self.lock();
        let Some(present) = state.present.get_mut(&member) else { return false };
        present.data = data;
        state.wait_for(member);
        self.0.changed.notify_one();
        true
    }

    /// `member` follows no more.
    pub fn leave(&self, member: MemberId) {
        let mut state = self.lock();
        let Some(present) = state.present.remove(&member) else { return };
        state.leaving.push((member, present.channel));
        state.bound();
        self.0.changed.notify_one();
    }

    /// Keeps Redis told until `shutdown`, and then takes everyone out.
    pub async fn run(self, redis: Client, shutdown: CancellationToken) {
        let mut instance = Instance::new();
        while !shutdown.is_cancelled() {
            let pause = match self.tell(&redis, &mut instance).await {
                Ok(true) => continue,
                Ok(false) => LIFE / 3,
                Err(error) => {
                    tracing::debug!(%error, "presence cannot be told");
                    // What arrived of it is not known.
                    instance.is_behind = true;
                    RETRY_PAUSE
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.0.changed.notified(), if !instance.is_behind => {}
                () = sleep(pause) => {}
            }
        }
        for name in instance.names() {
            while matches!(timeout(LIFE, presence::retire(&redis, &name)).await, Ok(Ok(true))) {}
        }
    }

    /// Tells what has changed, or everything if need be. True if there is more to do.
    async fn tell(&self, redis: &Client, instance: &mut Instance) -> Result<bool, market::redis::RedisError> {
        let overflowed = std::mem::take(&mut self.lock().overflowed);
        if overflowed || instance.is_behind {
            instance.rename();
            self.lock().enter_all();
        }
        let changes = self.lock().take(&instance.name);
        let known = presence::renew(redis, &instance.name, instance.begins, &changes).await?;
        let Renewed::Done { more } = known else {
            instance.is_behind = true;
            return Ok(true);
        };
        instance.begins = false;
        let waits = !self.lock().is_told();
        if !waits && let Some(old) = instance.old.last() {
            if !presence::retire(redis, old).await? {
                instance.old.pop();
            }
            return Ok(true);
        }
        Ok(waits || more)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name under which this process has its members noted.
struct Instance {
    name: String,
    begins: bool,
    is_behind: bool,
    /// Names that it had before, whose members are to leave.
    old: Vec<String>,
}

impl Instance {
    fn new() -> Self {
        Self { name: Self::fresh(), begins: true, is_behind: false, old: Vec::new() }
    }

    fn fresh() -> String {
        hex::encode(rand::random::<[u8; 8]>())
    }

    fn rename(&mut self) {
        // A name that never got through has no members.
        let old = std::mem::replace(&mut self.name, Self::fresh());
        if self.old.len() < 16 {
            self.old.push(old);
        }
        self.begins = true;
        self.is_behind = false;
    }

    fn names(self) -> impl Iterator<Item = String> {
        self.old.into_iter().chain([self.name])
    }
}

impl State {
    fn wait_for(&mut self, member: MemberId) {
        self.waiting.push(member);
        self.bound();
    }

    fn bound(&mut self) {
        if self.waiting.len() + self.leaving.len() > MOST_WAITING {
            self.waiting.clear();
            self.leaving.clear();
            self.overflowed = true;
        }
    }

    fn enter_all(&mut self) {
        self.leaving.clear();
        self.waiting = self.present.keys().copied().collect();
    }

    fn is_told(&self) -> bool {
        self.waiting.is_empty() && self.leaving.is_empty()
    }

    /// The next changes. Those that leave come first, as nobody comes back: every member has an id of its own.
    fn take(&mut self, instance: &str) -> Vec<Change> {
        let id = |member: MemberId| format!("{instance}-{member}");
        let left = self.leaving.len().saturating_sub(MOST_CHANGES);
        let mut changes: Vec<Change> = self
            .leaving
            .drain(left..)
            .map(|(member, channel)| Change { channel, id: id(member), member: None })
            .collect();
        while changes.len() < MOST_CHANGES
            && let Some(member) = self.waiting.pop()
        {
            // It may have left since.
            let Some(present) = self.present.get(&member) else { continue };
            let id = id(member);
            let shown = Member {
                id: &id,
                wallet_address: present.wallet.to_checksum(None),
                since: present.since.timestamp_millis(),
                data: present.data.as_deref(),
            };
            let text = serde_json::to_string(&shown).unwrap_or_default();
            changes.push(Change { channel: present.channel.clone(), id, member: Some(text) });
        }
        changes
    }
}
