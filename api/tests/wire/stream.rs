//! A stream of Server-Sent Events over real HTTP.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::Response;
use serde_json::Value;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// An event of a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

pub struct Events {
    chunks: BoxStream<'static, Vec<u8>>,
    read: Vec<u8>,
}

impl Events {
    pub async fn open(url: &str, path: &str, token: &str, last: Option<&str>) -> Result<Self, Response> {
        let mut request =
            reqwest::Client::new().get(format!("{url}/lit-compute/{path}/events")).query(&[("token", token)]);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        if !answer.status().is_success() {
            return Err(answer);
        }
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let chunks = answer.bytes_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
        Ok(Self { chunks: chunks.map(|chunk| chunk.unwrap().to_vec()).boxed(), read: Vec::new() })
    }

    /// The next event; nothing once the stream has ended.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.read.drain(..end + 2).collect();
                if let Some(event) = event_of(std::str::from_utf8(&block).unwrap()) {
                    return Some(event);
                }
                continue;
            }
            let chunk = timeout(PATIENCE, self.chunks.next()).await.expect("nothing comes")?;
            self.read.extend(chunk);
        }
    }

    /// The next event, which has to be one called `name`.
    pub async fn expect(&mut self, name: &str) -> Event {
        let event = self.next().await.unwrap_or_else(|| panic!("the stream ended where {name} was expected"));
        assert_eq!(event.name, name, "{event:?}");
        event
    }
}

fn event_of(block: &str) -> Option<Event> {
    let mut event = Event::default();
    for line in block.lines() {
        match line.split_once(": ").or_else(|| line.split_once(':')) {
            Some(("event", name)) => name.clone_into(&mut event.name),
            Some(("id", id)) => event.id = Some(id.to_owned()),
            Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
            // A comment keeps the connection alive.
            _ => {}
        }
    }
    (!event.name.is_empty()).then_some(event)
}
