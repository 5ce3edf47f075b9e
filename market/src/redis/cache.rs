//! `cache:{name}`: what takes long to work out and may be a little old. Whoever wants a value gets it from this process, else from
//! Redis, else works it out; of many who want it at once in one process, one does. [`Cache::invalidate`] has it forgotten by all
//! instances: they are told over `channel:cache:invalidate`, and whoever was working it out meanwhile does not keep it.
//!
//! Without Redis each process caches alone, for as long as it may be old.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::Instant;

use super::client::{Client, RedisError};
use super::pubsub::{Signal, Subscription};
use crate::limit::millis;

/// How long anyone waits for Redis.
const WITHIN: Duration = Duration::from_millis(250);
/// Values that one process keeps.
const MOST_KEPT: usize = 1000;

/// How long a value is good, from when it was worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// In Redis, for all instances.
    pub shared: Duration,
    /// In this process, without asking Redis. What was invalidated may be served as long if the message is lost.
    pub local: Duration,
}

/// A cache that all instances share.
#[derive(Clone)]
pub struct Cache(Arc<Shared>);

struct Shared {
    redis: Client,
    kept: Mutex<HashMap<String, Kept>>,
    /// One lock for each name that is being worked out.
    working: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Clone)]
struct Kept {
    value: Value,
    until: Instant,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty one.
    #[must_use]
    pub fn new(redis: Client) -> Self {
        Self(Arc::new(Shared { redis, kept: Mutex::default(), working: Mutex::default() }))
    }

    /// The value of `name`, a plain word, by `compute` if it is not known or too old.
    pub async fn get_or_compute<T, E, F>(&self, name: &str, life: Life, compute: impl FnOnce() -> F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, E>>,
    {
        if let Some(value) = self.kept(name) {
            return Ok(value);
        }
        let turn = Arc::clone(self.working().entry(name.to_owned()).or_default());
        let _guard = turn.lock().await;
        if let Some(value) = self.kept(name) {
            return Ok(value);
        }
        let redis = &self.0.redis;
        let (shared, version) = redis.within(WITHIN, read(redis, name)).await.unwrap_or_default();
        let shared = shared.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        if let Some((value, known)) = shared.and_then(|json| Some((serde_json::from_value(json.clone()).ok()?, json))) {
            self.keep(name, known, life.local);
            return Ok(value);
        }
        let value = compute().await?;
        if let Ok(json) = serde_json::to_value(&value) {
            let written = redis.within(WITHIN, write(redis, name, &json, version.as_deref(), life.shared)).await;
            // What was invalidated while it was worked out is old already.
            if written.unwrap_or(true) {
                self.keep(name, json, life.local);
            }
        }
        self.working().retain(|_, turn| Arc::strong_count(turn) > 1);
        Ok(value)
    }

    /// Has every instance forget `name`. This one has when it returns, and Redis too unless that is an error.
    pub async fn invalidate(&self, name: &str) -> Result<(), RedisError> {
        self.forget(name);
        invalidate(&self.0.redis, name).await
    }

    /// Listens to what other instances have forgotten, for as long as it is polled.
    pub async fn follow(&self) {
        let redis = &self.0.redis;
        let mut news = Subscription::open(redis.clone(), vec![redis.keys().channel_cache()]);
        loop {
            match news.next().await {
                // Something may have been missed.
                Signal::Resumed | Signal::Listening(_) => self.all().clear(),
                Signal::Message { payload, .. } => self.forget(&payload),
            }
        }
    }

    fn kept<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let kept = self.all().get(name).filter(|kept| Instant::now() < kept.until).cloned()?;
        serde_json::from_value(kept.value).ok()
    }

    fn keep(&self, name: &str, value: Value, life: Duration) {
        let (mut all, now) = (self.all(), Instant::now());
        if all.len() >= MOST_KEPT {
            all.retain(|_, kept| now < kept.until);
        }
        if all.len() < MOST_KEPT {
            all.insert(name.to_owned(), Kept { value, until: now + life });
        }
    }

    fn forget(&self, name: &str) {
        self.all().remove(name);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.0.working.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has every instance that follows forget `name`.
pub async fn invalidate(redis: &Client, name: &str) -> Result<(), RedisError> {
    const INVALIDATE: &str = "
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[1])
return redis.call('PUBLISH', ARGV[4], ARGV[1])";
    redis::Script::new(INVALIDATE)
        .key(redis.keys().cache(name))
        .key(redis.keys().cache_version(name))
        .arg(name)
        .arg(format!("{:016x}", rand::random::<u64>()))
        .arg(millis(VERSION_TTL))
        .arg(redis.keys().channel_cache())
        .invoke_async(&mut redis.connection())
        .await
}

/// Longer than anything takes to work out.
const VERSION_TTL: Duration = Duration::from_secs(10 * 60);

/// The value, and what the next invalidation will change.
async fn read(redis: &Client, name: &str) -> Result<(Option<String>, Option<String>), RedisError> {
    let (value, version) = (redis.keys().cache(name), redis.keys().cache_version(name));
    redis::cmd("MGET").arg(value).arg(version).query_async(&mut redis.connection()).await
}

/// Keeps the value unless it was invalidated since `version` was read. False if it was.
async fn write(
    redis: &Client,
    name: &str,
    value: &Value,
    version: Option<&str>,
    life: Duration,
) -> Result<bool, RedisError> {
    const WRITE: &str = "
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1";
    redis::Script::new(WRITE)
        .key(redis.keys().cache(name))
        .key(redis.keys().cache_version(name))
        .arg(value.to_string())
        .arg(version.unwrap_or_default())
        .arg(millis(life))
        .invoke_async(&mut redis.connection())
        .await
}
