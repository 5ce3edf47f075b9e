//! What was published on a channel, for those who missed it. Kept only while someone follows the channel: the first
//! [`watch`] begins it, and it goes [`KEPT_SECS`] after the last. A stream in Redis behind each channel holds at least the
//! last 256 messages (`lua/publish.lua` writes it, in one step with the state that the message tells).

use serde::{Deserialize, Serialize};

use super::client::{Client, RedisError};

const WATCH_LUA: &str = include_str!("lua/watch.lua");
/// Publishes `ARGV[1]`, a JSON object, on the channel `KEYS[1]`, as what happens to jobs is published.
pub const PUBLISH_LUA: &str = concat!(include_str!("lua/publish.lua"), "publish(KEYS[1], ARGV[1])\n");

/// Seconds that a channel's history outlives the last [`watch`]: how long a client may stay away and miss nothing.
pub const KEPT_SECS: u64 = 2 * 60 * 60;

/// Where in a channel's history a message stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Names the history: another one began if it differs, and what came between is not known.
    pub epoch: String,
    /// Number of the message within it, one more than that of the message before.
    pub offset: u64,
}

/// A message as it was published: JSON, with its position among the fields where the channel has a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The JSON text.
    pub text: String,
    /// Its place; nothing for what another application published.
    pub position: Option<Position>,
}

impl Message {
    /// Reads what was published; nothing if it is not JSON.
    #[must_use]
    pub fn read(text: String) -> Option<Self> {
        #[derive(Deserialize)]
        struct Place {
            epoch: Option<String>,
            offset: Option<u64>,
        }
        let place = match serde_json::from_str::<Place>(&text) {
            Ok(place) => place,
            // A message of another application need not be an object.
            Err(_) => {
                serde_json::from_str::<serde::de::IgnoredAny>(&text).ok()?;
                Place { epoch: None, offset: None }
            }
        };
        let position = place.epoch.zip(place.offset).map(|(epoch, offset)| Position { epoch, offset });
        Some(Self { text, position })
    }
}

/// What a channel's history says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The latest message's place.
    pub head: Position,
    /// What came after the position that was asked about, in order; nothing if that is not known (any more).
    pub missed: Option<Vec<Message>>,
}

/// Has the history of `channel` kept, and tells what came after `since`. To be called again well within [`KEPT_SECS`] while
/// the channel is followed.
pub async fn watch(redis: &Client, channel: &str, since: Option<&Position>) -> Result<History, RedisError> {
    let none = Position { epoch: String::new(), offset: 0 };
    let since = since.unwrap_or(&none);
    let script = redis::Script::new(WATCH_LUA);
    let mut call = script.key(format!("{channel}:stream"));
    call.key(redis.keys().history_lost()).arg(KEPT_SECS * 1000).arg(&since.epoch).arg(since.offset);
    let answer: Vec<String> = call.invoke_async(&mut redis.connection()).await?;
    let unexpected = || {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, format!("history of {channel}: {answer:?}"));
        RedisError::from(error)
    };
    let [epoch, offset, known, missed @ ..] = answer.as_slice() else { return Err(unexpected()) };
    let head = Position { epoch: epoch.clone(), offset: offset.parse().map_err(|_| unexpected())? };
    let missed = (known == "1").then(|| missed.iter().filter_map(|text| Message::read(text.clone())).collect());
    Ok(History { head, missed })
}

/// Publishes `message`, a JSON object, on `channel`, and keeps it if the channel is followed.
pub async fn publish(redis: &Client, channel: &str, message: &str) -> Result<(), RedisError> {
    let script = redis::Script::new(PUBLISH_LUA);
    script.key(channel).arg(message).invoke_async(&mut redis.connection()).await
}
