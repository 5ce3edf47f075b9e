//! Those of this process's clients who want to know who follows a channel. They are told everyone first, and again whenever
//! something may have been missed; in between, who comes, changes and leaves.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use market::redis::{Client, history::Message, presence};
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::channel::Input;
use super::member::{Item, MemberId, Packet, Refused, Sink};
use super::topic::Topic;

/// Before Redis is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// See the module.
pub struct Watchers {
    topic: Topic,
    channel: String,
    redis: Client,
    sinks: HashMap<MemberId, Sink>,
    again: Option<Instant>,
}

impl Watchers {
    /// Of `channel`, that of `topic`; nobody yet.
    pub fn new(topic: Topic, channel: String, redis: Client) -> Self {
        Self { topic, channel, redis, sinks: HashMap::new(), again: None }
    }

    /// Runs until `inputs` ends. `missed` is notified when changes may not have come through.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, missed: Arc<Notify>) {
        loop {
            tokio::select! {
                input = inputs.recv() => match input {
                    None => return,
                    Some(Input::Join { member, sink, .. }) => {
                        self.sinks.insert(member, sink);
                        self.tell_all(Some(member)).await;
                    }
                    Some(Input::Leave(member)) => {
                        self.sinks.remove(&member);
                    }
                    Some(Input::Message(text)) => {
                        let text = text.strip_prefix('{').map(|rest| format!("{{{},{rest}", self.field()));
                        self.send(text, None);
                    }
                },
                () = missed.notified() => self.tell_all(None).await,
                () = sleep_until(self.again.unwrap_or_else(Instant::now)), if self.again.is_some() => {
                    self.tell_all(None).await;
                }
            }
        }
    }

    /// Tells one, or all, who follows now.
    async fn tell_all(&mut self, to: Option<MemberId>) {
        self.again = None;
        match presence::members(&self.redis, &self.channel).await {
            Ok(members) => {
                let mut text = format!("{{{},\"action\":\"present\",\"members\":[", self.field());
                // Other applications can write these keys too.
                let members = members.iter().filter(|member| serde_json::from_str::<&RawValue>(member).is_ok());
                for (index, member) in members.enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(text, "{comma}{member}").ok();
                }
                text.push_str("]}");
                self.send(Some(text), to);
            }
            Err(error) => {
                tracing::debug!(%error, channel = self.channel, "presence cannot be read");
                self.again = Some(Instant::now() + RETRY_PAUSE);
            }
        }
    }

    fn send(&mut self, text: Option<String>, to: Option<MemberId>) {
        let Some(packet) = text.and_then(|text| Packet::new(Message { text, position: None })) else { return };
        let (item, topic) = (Item::Presence(packet), self.topic);
        self.sinks.retain(|member, sink| {
            let is_meant = to.is_none_or(|to| to == *member);
            if is_meant && sink.send(topic, &item) == Err(Refused::Slow) {
                sink.cut_off(topic);
                return false;
            }
            true
        });
    }

    /// What says which channel it is.
    fn field(&self) -> String {
        match self.topic {
            Topic::Job(id) => format!("\"jobId\":\"{id}\""),
            Topic::Node(id) => format!("\"nodeId\":\"{id}\""),
        }
    }
}
