//! One channel of Redis and those of this process's clients who follow it.
//!
//! Messages come with their place in the channel's history, and each client has the place up to which it was told. A message
//! that is next for a client is sent; one that it had is not; and where one is missing, or may be, the history is read. So
//! every client gets every message once and in order, whatever Redis, the bus or this process dropped meanwhile, or is told
//! that it cannot. A client that does not take its messages as fast as they come is told the rest from the history too, or
//! cut off if that lasts.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use market::redis::{
    Client,
    history::{self, History, KEPT_SECS, Message, Position},
};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::member::{Item, MemberId, Packet, Refused, Sink};
use super::topic::Topic;

/// How often the history of a channel that is followed is asked to be kept.
const RENEW_EVERY: Duration = Duration::from_secs(KEPT_SECS / 4);
/// Before a history that could not be read, or not be told, is read again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long a client may leave what waits for it where it is. Far less than goes by between two pings: one that finds no room
/// ends the connection without a reason.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a client's subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The place of the latest message; nothing while Redis does not answer.
    pub position: Option<Position>,
    /// Whether all that came after the place that the client named follows now.
    pub recovered: bool,
}

/// What a channel is told.
pub enum Input {
    /// A client follows from now on; `told` is called before it is sent anything.
    Join { member: MemberId, sink: Sink, since: Option<Position>, told: Box<dyn FnOnce(Joined) + Send> },
    /// A client follows no more.
    Leave(MemberId),
    /// Redis has a message.
    Message(String),
}

struct Member {
    sink: Sink,
    /// Up to where it was told; nothing while that is not known.
    position: Option<Position>,
    /// Since when it has not taken what there is for it.
    slow_since: Option<Instant>,
}

/// Whether everyone was told a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    /// Yes, or had it.
    All,
    /// Not those who are slow.
    NotYet,
    /// Not those who miss one before it.
    Gap,
}

/// See the module.
pub struct Channel {
    topic: Topic,
    name: String,
    redis: Client,
    members: HashMap<MemberId, Member>,
    /// When to try again to tell those who were not told all there is.
    again: Option<Instant>,
}

impl Channel {
    /// The channel `name`, with no one following it.
    pub fn new(topic: Topic, name: String, redis: Client) -> Self {
        Self { topic, name, redis, members: HashMap::new(), again: None }
    }

    /// Runs until `inputs` ends. `missed` is notified when messages may not have come through.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, missed: Arc<Notify>) {
        let mut renew = interval_at(Instant::now() + RENEW_EVERY, RENEW_EVERY);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                input = inputs.recv() => match input {
                    None => return,
                    Some(Input::Join { member, sink, since, told }) => self.join(member, sink, since, told).await,
                    Some(Input::Leave(member)) => {
                        self.members.remove(&member);
                    }
                    Some(Input::Message(text)) => match self.message(text) {
                        Told::All => {}
                        Told::NotYet => self.later(),
                        Told::Gap => self.catch_up().await,
                    },
                },
                () = missed.notified() => self.catch_up().await,
                () = sleep_until(self.again.unwrap_or_else(Instant::now)), if self.again.is_some() => self.catch_up().await,
                _ = renew.tick() => self.catch_up().await,
            }
        }
    }

    async fn join(&mut self, id: MemberId, sink: Sink, since: Option<Position>, told: Box<dyn FnOnce(Joined) + Send>) {
        match history::watch(&self.redis, &self.name, since.as_ref()).await {
            Ok(History { head, missed }) => {
                told(Joined { position: Some(head.clone()), recovered: missed.is_some() });
                let position = if missed.is_some() { since } else { Some(head) };
                let mut member = Member { sink, position, slow_since: None };
                let packets: Vec<Arc<Packet>> = missed.into_iter().flatten().filter_map(Packet::new).collect();
                if member.tell_after(self.topic, &packets) != Told::All {
                    self.later();
                }
                self.members.insert(id, member);
            }
            Err(error) => {
                tracing::debug!(%error, channel = self.name, "the history cannot be read");
                told(Joined { position: None, recovered: false });
                self.members.insert(id, Member { sink, position: since, slow_since: None });
                self.later();
            }
        }
    }

    /// Sends a message to those for whom it is next.
    fn message(&mut self, text: String) -> Told {
        let Some(packet) = Message::read(text).and_then(Packet::new) else { return Told::All };
        let mut told = Told::All;
        self.members.retain(|_, member| {
            told = told.max(member.tell(self.topic, &packet));
            member.stays(self.topic)
        });
        told
    }

    /// Tells everyone what they have not been told.
    async fn catch_up(&mut self) {
        self.again = None;
        // The history after the earliest place holds what all others of the same epoch need.
        let mut places: BTreeSet<Option<Position>> =
            self.members.values().map(|member| member.position.clone()).collect();
        while let Some(place) = places.pop_first() {
            let History { head, missed } = match history::watch(&self.redis, &self.name, place.as_ref()).await {
                Ok(history) => history,
                Err(error) => {
                    tracing::debug!(%error, channel = self.name, "the history cannot be read");
                    return self.later();
                }
            };
            let told = match (missed, place) {
                (Some(missed), Some(from)) => {
                    places.retain(|other| other.as_ref().is_none_or(|other| other.epoch != from.epoch));
                    let packets: Vec<Arc<Packet>> = missed.into_iter().filter_map(Packet::new).collect();
                    // Not those before it, whose turn was and who are too slow even to be told that they lost something.
                    let is_told = |member: &Member| {
                        member.position.as_ref().is_some_and(|at| at.epoch == from.epoch && at.offset >= from.offset)
                    };
                    self.each(is_told, |member, topic| member.tell_after(topic, &packets))
                }
                (_, from) => {
                    // Whoever has no place joined while Redis was away, and is told now where it stands.
                    let is_lost = |at: &Option<Position>| match (at, &from) {
                        (Some(at), Some(from)) => at.epoch == from.epoch && (at == from || at.epoch != head.epoch),
                        (at, from) => at.is_none() && from.is_none(),
                    };
                    places.retain(|place| !is_lost(place));
                    self.each(|member| is_lost(&member.position), |member, topic| member.lose(topic, &head))
                }
            };
            if told != Told::All {
                self.later();
            }
        }
    }

    /// Does `tell` to the members of whom `is_meant` holds, and ends those that it has ended.
    fn each(&mut self, is_meant: impl Fn(&Member) -> bool, mut tell: impl FnMut(&mut Member, Topic) -> Told) -> Told {
        let mut told = Told::All;
        self.members.retain(|_, member| {
            if is_meant(member) {
                told = told.max(tell(member, self.topic));
            }
            member.stays(self.topic)
        });
        told
    }

    fn later(&mut self) {
        self.again.get_or_insert_with(|| Instant::now() + RETRY_PAUSE);
    }
}

impl Member {
    /// Sends a message if it is next. One without a place is sent to whoever can take it.
    fn tell(&mut self, topic: Topic, packet: &Arc<Packet>) -> Told {
        match (&packet.position, &self.position) {
            (None, _) => {}
            (Some(place), Some(had)) if place.epoch == had.epoch && place.offset <= had.offset => return Told::All,
            _ if self.slow_since.is_some() => return Told::NotYet,
            (Some(place), Some(had)) if place.epoch == had.epoch && place.offset == had.offset + 1 => {}
            _ => return Told::Gap,
        }
        if !self.send(topic, &Item::Message(Arc::clone(packet))) {
            return Told::NotYet;
        }
        if packet.position.is_some() {
            self.position.clone_from(&packet.position);
        }
        Told::All
    }

    /// Sends those of the messages of its epoch that it has not had, as far as it takes them.
    fn tell_after(&mut self, topic: Topic, packets: &[Arc<Packet>]) -> Told {
        // It may have caught up: what it takes now shows.
        let since = self.slow_since.take();
        for packet in packets {
            let told = self.tell(topic, packet);
            if told != Told::All {
                self.slow_since = since.or(self.slow_since);
                return told;
            }
        }
        Told::All
    }

    /// Says that what came up to `head` is not known any more.
    fn lose(&mut self, topic: Topic, head: &Position) -> Told {
        if !self.send(topic, &Item::Lost(head.clone())) {
            return Told::NotYet;
        }
        self.slow_since = None;
        self.position = Some(head.clone());
        Told::All
    }

    /// False if it cannot take it now.
    fn send(&mut self, topic: Topic, item: &Item) -> bool {
        match self.sink.send(topic, item) {
            Ok(()) => true,
            Err(Refused::Slow) => {
                self.slow_since.get_or_insert_with(Instant::now);
                false
            }
            // It leaves by itself.
            Err(Refused::Gone) => true,
        }
    }

    /// Cuts it off if it has been slow for too long.
    fn stays(&self, topic: Topic) -> bool {
        let stays = self.slow_since.is_none_or(|since| since.elapsed() < PATIENCE);
        if !stays {
            self.sink.cut_off(topic);
        }
        stays
    }
}
