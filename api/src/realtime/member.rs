//! Where messages go: a Socket.IO client, or a stream of Server-Sent Events.

use std::sync::Arc;
use std::time::Duration;

use market::redis::history::{Message, Position};
use serde::Serialize;
use serde_json::value::RawValue;
use socketioxide::{SendError, SocketError, extract::SocketRef};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::topic::Topic;

/// How long a slow client is given to take in why it is cut off.
const FAREWELL: Duration = Duration::from_secs(10);
/// How often it is tried to tell it.
const FAREWELL_STEP: Duration = Duration::from_millis(50);

/// A client's subscription, as numbered by its process.
pub type MemberId = u64;

/// What a client is sent.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message, with its JSON for whoever writes it as it is.
    Message(Arc<Packet>),
    /// What came up to this place is not known (any more).
    Lost(Position),
    /// Who follows, or that someone comes, changes or leaves.
    Presence(Arc<Packet>),
}

/// A message, ready to be sent.
#[derive(Debug)]
pub struct Packet {
    /// Its JSON.
    pub json: Box<RawValue>,
    /// Its place, where it has one.
    pub position: Option<Position>,
}

impl Packet {
    /// Nothing if it is not JSON.
    pub fn new(message: Message) -> Option<Arc<Self>> {
        let json = RawValue::from_string(message.text).ok()?;
        Some(Arc::new(Self { json, position: message.position }))
    }
}

/// What a Socket.IO client is told when messages are lost to it, as `history:lost`.
#[derive(Debug, Serialize)]
struct Lost {
    topic: Topic,
    #[serde(flatten)]
    position: Position,
}

/// The way to a client.
#[derive(Debug, Clone)]
pub enum Sink {
    /// A Socket.IO client.
    Socket(SocketRef),
    /// A stream of events; it ends when this is dropped.
    Stream(mpsc::Sender<Item>),
}

/// Why something could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The client is gone.
    Gone,
    /// The client does not take its messages; those that wait for it fill its buffer.
    Slow,
}

impl Sink {
    /// Sends without waiting: who is slow harms no other.
    pub fn send(&self, topic: Topic, item: &Item) -> Result<(), Refused> {
        match self {
            Self::Stream(events) => events.try_send(item.clone()).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refused::Slow,
                mpsc::error::TrySendError::Closed(_) => Refused::Gone,
            }),
            Self::Socket(socket) => match item {
                Item::Message(packet) => socket.emit(topic.event(), &packet.json),
                Item::Lost(position) => socket.emit("history:lost", &Lost { topic, position: position.clone() }),
                Item::Presence(packet) => socket.emit("presence", &packet.json),
            }
            .map_err(|error| match error {
                SendError::Socket(SocketError::InternalChannelFull) => Refused::Slow,
                _ => Refused::Gone,
            }),
        }
    }

    /// Ends a client that does not take its messages: told why as soon as it takes in anything, at the latest after a while.
    pub fn cut_off(&self, topic: Topic) {
        metrics::counter!("littoral_realtime_slow_clients_total").increment(1);
        // A stream of events ends when its sink is dropped; its client comes again with the last id it saw.
        let Self::Socket(socket) = self else { return };
        let socket = socket.clone();
        tracing::debug!(socket = %socket.id, ?topic, "a slow client is cut off");
        tokio::spawn(async move {
            let deadline = Instant::now() + FAREWELL;
            let reason = serde_json::json!({
                "code": "too_slow", "detail": "messages were left lying; connect again for what was missed", "topic": topic,
            });
            let mut told = false;
            while Instant::now() < deadline && socket.connected() {
                told = told || socket.emit("error", &reason).is_ok();
                if told && socket.clone().disconnect().is_ok() {
                    return;
                }
                sleep(FAREWELL_STEP).await;
            }
            socket.disconnect().ok();
        });
    }
}
