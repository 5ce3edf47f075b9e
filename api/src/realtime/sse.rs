//! The same streams as Server-Sent Events, for those without Socket.IO. The id of an event is its place, so that a browser
//! that comes back, to whichever instance, goes on where it was.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use market::clock;
use market::redis::history::Position;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::channel::Joined;
use super::member::{Item, Sink};
use super::topic::Topic;
use crate::app::App;
use crate::error::{ApiError, ApiResult, Code, Problem};
use crate::extract::{Path, Query};
use crate::wire::Hash;

/// Events that wait for a slow reader; then its stream ends, and it may come back for the rest.
const BUFFER: usize = 512;
/// How often something is sent, so that what lies between knows that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which job.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
pub struct JobPath {
    job_id: Hash,
}

/// Which node.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
pub struct NodePath {
    node_id: Hash,
}

/// With what right, and from where on.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// A token of `realtime/token` that names what is followed. Described as what it is, a credential.
    #[param(ignore)]
    token: Option<String>,
    /// The place after which to go on, as `epoch:offset`; a header `Last-Event-ID` counts for more.
    since: Option<String>,
}

/// Follow a job as Server-Sent Events
#[utoipa::path(
    get, path = "/lit-compute/jobs/{jobId}/events", tag = "realtime", security(("realtime" = [])),
    params(JobPath, StreamQuery, ("Last-Event-ID" = Option<String>, Header, description = "As `since`, which it takes the place of")),
    responses(
        (status = 200, content_type = "text/event-stream", body = String,
         description = "`job:update` events; `subscribed` first, `history:lost` where some are not known, `end` last"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`not_party`"),
    )
)]
pub async fn job_events(
    State(app): State<App>,
    Path(path): Path<JobPath>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    follow(app, Topic::Job(path.job_id.0), query, headers).await
}

/// Follow a node's commands as Server-Sent Events
#[utoipa::path(
    get, path = "/lit-compute/nodes/{nodeId}/events", tag = "realtime", security(("realtime" = [])),
    params(NodePath, StreamQuery, ("Last-Event-ID" = Option<String>, Header, description = "As `since`, which it takes the place of")),
    responses(
        (status = 200, content_type = "text/event-stream", body = String,
         description = "`node:command` events; `subscribed` first, `history:lost` where some are not known, `end` last"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`not_party`"),
    )
)]
pub async fn node_events(
    State(app): State<App>,
    Path(path): Path<NodePath>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    follow(app, Topic::Node(path.node_id.0), query, headers).await
}

async fn follow(
    app: App,
    topic: Topic,
    query: StreamQuery,
    headers: HeaderMap,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let unknown = || ApiError::new(Code::Unauthenticated, "The token is not valid or has expired. Ask for another.");
    let token = query.token.as_deref().ok_or_else(unknown)?;
    let claims = app.parts.tokens.read(token, clock::now()).ok_or_else(unknown)?;
    if !claims.topics.contains(&topic) {
        return Err(ApiError::field(Code::NotParty, "token", "does not name what is followed"));
    }
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned).or(query.since);
    let since = last.as_deref().map(position).transpose()?;
    let (sender, items) = mpsc::channel(BUFFER);
    let (told, joined) = oneshot::channel();
    let membership = app
        .hub
        .join(topic, Sink::Stream(sender), since, claims.sub, move |joined| {
            told.send(joined).ok();
        })
        .await;
    let first =
        stream::once(async move { joined.await.map_or_else(|_| Event::default(), |joined| subscribed(&joined)) });
    let rest = ReceiverStream::new(items).map(move |item| {
        let _ = &membership; // It lasts as long as the stream.
        event(topic, &item)
    });
    // Whatever ends it by itself is told, if the reader takes it in.
    let why = Arc::new(OnceLock::new());
    let (shutdown, left, known) = (app.shutdown.clone(), claims.left(clock::now()), why.clone());
    let until = async move {
        let is_expired = timeout(left, shutdown.cancelled()).await.is_err();
        known.get_or_init(|| if is_expired { End::TokenExpired } else { End::ShuttingDown });
    };
    let all = first.chain(rest).take_until(Box::pin(until));
    let last = stream::once(async move { why.get().copied().unwrap_or(End::TooSlow).event() });
    Ok(Sse::new(all.chain(last).map(Ok)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Why a stream ends that its reader did not end.
#[derive(Debug, Clone, Copy)]
enum End {
    TokenExpired,
    ShuttingDown,
    /// The hub has let it go.
    TooSlow,
}

impl End {
    fn event(self) -> Event {
        let (code, detail) = match self {
            Self::TokenExpired => ("token_expired", "ask for another token"),
            Self::ShuttingDown => ("shutting_down", "connect again"),
            Self::TooSlow => ("too_slow", "events were left lying; connect again for what was missed"),
        };
        Event::default().event("end").data(serde_json::json!({ "code": code, "detail": detail }).to_string())
    }
}

fn subscribed(joined: &Joined) -> Event {
    let body = serde_json::json!({ "position": joined.position, "recovered": joined.recovered });
    Event::default().event("subscribed").data(body.to_string())
}

fn event(topic: Topic, item: &Item) -> Event {
    match item {
        Item::Message(packet) => {
            let event = Event::default().event(topic.event()).data(packet.json.get());
            match &packet.position {
                Some(place) => event.id(format!("{}:{}", place.epoch, place.offset)),
                None => event,
            }
        }
        Item::Presence(packet) => Event::default().event("presence").data(packet.json.get()),
        Item::Lost(head) => {
            let body = serde_json::json!({ "topic": topic, "epoch": head.epoch, "offset": head.offset });
            let event = Event::default().event("history:lost").data(body.to_string());
            event.id(format!("{}:{}", head.epoch, head.offset))
        }
    }
}

fn position(text: &str) -> ApiResult<Position> {
    let parsed = text.split_once(':').and_then(|(epoch, offset)| {
        let epoch = (!epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(epoch)?;
        Some(Position { epoch: epoch.to_owned(), offset: offset.parse().ok()? })
    });
    parsed
        .ok_or_else(|| ApiError::field(Code::InvalidParameter, "since", "must be epoch:offset, as an event's id says"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_id_says_where_to_go_on() {
        let place = Position { epoch: "65f0".to_owned(), offset: 7 };
        assert_eq!(position("65f0:7").unwrap(), place);
        for wrong in ["", "7", ":7", "65f0:", "65f0:x", "65 f0:7", "65f0:7:8", "*:1"] {
            assert!(position(wrong).is_err(), "{wrong}");
        }
    }
}
