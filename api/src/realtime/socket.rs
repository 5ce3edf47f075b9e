//! The Socket.IO namespace `/lit-compute`. Clients subscribe and unsubscribe; they never publish.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use market::clock;
use market::redis::history::Position;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Extension, SocketRef, State, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::layer::SocketIoLayer;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::channel::Joined;
use super::hub::Membership;
use super::member::Sink;
use super::token::Claims;
use super::topic::Topic;
use crate::app::App;
use crate::wire::Hash;

/// Packets that wait for a slow client; what comes when there are as many, it is told later.
const BUFFER: usize = 512;
/// Largest message that is taken from a client.
const MAX_MESSAGE: usize = 16 * 1024;
/// Most bytes of JSON that a client says about itself.
const MAX_DATA: usize = 512;
/// How long a connection may take to say who it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a client was told that it is connected it may take until it counts as such, on a busy machine, and how often
/// that is looked at.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);
const COUNTED_STEP: Duration = Duration::from_millis(1);
/// What a client may ask at once: enough to follow all that a token names twice over.
const MOST_ASKED: f64 = 600.0;
/// What it may ask a second in the long run.
const ASKED_PER_SECOND: f64 = 20.0;
/// The namespace.
const NAMESPACE: &str = "/lit-compute";

/// What a client sends with its handshake.
#[derive(Debug, Deserialize)]
struct Auth {
    token: String,
}

/// What a client asks to follow: an id alone, or an object that names it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Subscribe {
    Id(String),
    #[serde(rename_all = "camelCase")]
    Named {
        #[serde(alias = "nodeId")]
        job_id: String,
        since: Option<Position>,
        /// Whether it wants to be told who else follows.
        #[serde(default)]
        presence: bool,
    },
}

impl Subscribe {
    fn id(&self) -> &str {
        let (Self::Id(id) | Self::Named { job_id: id, .. }) = self;
        id
    }
}

/// What a client says about itself to those who follow the same.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Show {
    job_id: Option<String>,
    node_id: Option<String>,
    data: Option<Box<RawValue>>,
}

/// The answer to it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Subscribed {
        ok: bool,
        #[serde(flatten)]
        position: Option<Position>,
        /// Whether what came after `since` follows. If not, the state has to be read anew.
        recovered: bool,
    },
    Done {
        ok: bool,
    },
    Refused {
        ok: bool,
        error: Refusal,
    },
}

/// Why a client is refused something.
#[derive(Debug, Clone, Serialize)]
struct Refusal {
    code: &'static str,
    detail: String,
}

impl Refusal {
    fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Refusal {}

/// What one connection follows, and what it may still ask.
#[derive(Debug)]
struct Following(Mutex<Follows>);

#[derive(Debug)]
struct Follows {
    topics: HashMap<Topic, Followed>,
    budget: f64,
    counted: Instant,
}

#[derive(Debug)]
struct Followed {
    updates: Membership,
    _presence: Option<Membership>,
}

impl Following {
    fn new() -> Self {
        Self(Mutex::new(Follows { topics: HashMap::new(), budget: MOST_ASKED, counted: Instant::now() }))
    }

    fn lock(&self) -> MutexGuard<'_, Follows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one thing more that is asked.
    fn may_ask(&self) -> Result<(), Refusal> {
        let mut state = self.lock();
        let now = Instant::now();
        let earned = (now - state.counted).as_secs_f64() * ASKED_PER_SECOND;
        state.budget = (state.budget + earned).min(MOST_ASKED);
        state.counted = now;
        if state.budget < 1.0 {
            return Err(Refusal::new("rate_limited", format!("ask at most {ASKED_PER_SECOND} times a second")));
        }
        state.budget -= 1.0;
        Ok(())
    }
}

/// Serves the namespace. The layer goes around the router.
pub fn layer(app: App) -> (SocketIoLayer, SocketIo) {
    let (layer, io) = SocketIo::builder()
        .max_buffer_size(BUFFER)
        .max_payload(MAX_MESSAGE as u64)
        .ws_max_message_size(MAX_MESSAGE)
        .ws_max_frame_size(MAX_MESSAGE)
        .connect_timeout(CONNECT_TIMEOUT)
        .with_state(app)
        .build_layer();
    io.ns(NAMESPACE, connected.with(authenticate));
    (layer, io)
}

/// Lets in who has a token.
async fn authenticate(socket: SocketRef, auth: TryData<Auth>, State(app): State<App>) -> Result<(), Refusal> {
    let Ok(Auth { token }) = auth.0 else {
        return Err(Refusal::new("unauthenticated", "send auth: {token} with a token of POST realtime/token"));
    };
    let claims = app
        .parts
        .tokens
        .read(&token, clock::now())
        .ok_or_else(|| Refusal::new("unauthenticated", "the token is not valid or has expired; ask for another"))?;
    socket.extensions.insert(claims);
    socket.extensions.insert(Arc::new(Following::new()));
    // Here, and not when it is connected: by then it has been told so, and may have asked for something already.
    socket.on("subscribe:job", subscribe_job);
    socket.on("subscribe:node", subscribe_node);
    socket.on("unsubscribe:job", unsubscribe_job);
    socket.on("unsubscribe:node", unsubscribe_node);
    socket.on("presence:update", show);
    socket.on_disconnect(async |socket: SocketRef| {
        metrics::gauge!("littoral_realtime_sockets").decrement(1.0);
        if let Some(following) = following(&socket) {
            let left = std::mem::take(&mut following.lock().topics);
            drop(left);
        }
    });
    Ok(())
}

/// Ends the connection with its token.
async fn connected(socket: SocketRef, Extension(claims): Extension<Claims>) {
    metrics::gauge!("littoral_realtime_sockets").increment(1.0);
    let mut left = claims.left(clock::now());
    // In steps, so that a socket that is gone is not kept for two hours.
    while socket.connected() && !left.is_zero() {
        let step = left.min(Duration::from_secs(30));
        sleep(step).await;
        left -= step;
    }
    if socket.connected() {
        let reason = Refusal::new("token_expired", "ask for another token and connect again");
        socket.emit("error", &reason).ok();
        socket.disconnect().ok();
    }
}

fn following(socket: &SocketRef) -> Option<Arc<Following>> {
    socket.extensions.get()
}

async fn subscribe_job(socket: SocketRef, request: TryData<Subscribe>, ack: AckSender, State(app): State<App>) {
    subscribe(socket, request, ack, app, Topic::Job).await;
}

async fn subscribe_node(socket: SocketRef, request: TryData<Subscribe>, ack: AckSender, State(app): State<App>) {
    subscribe(socket, request, ack, app, Topic::Node).await;
}

async fn unsubscribe_job(socket: SocketRef, request: TryData<Subscribe>, ack: AckSender) {
    answer(&socket, ack, unsubscribe(&socket, request, Topic::Job));
}

async fn unsubscribe_node(socket: SocketRef, request: TryData<Subscribe>, ack: AckSender) {
    answer(&socket, ack, unsubscribe(&socket, request, Topic::Node));
}

async fn show(socket: SocketRef, request: TryData<Show>, ack: AckSender) {
    answer(&socket, ack, show_data(&socket, request));
}

async fn subscribe(socket: SocketRef, request: TryData<Subscribe>, ack: AckSender, app: App, topic: fn(B256) -> Topic) {
    let (following, topic, request, claims) = match permitted(&socket, request, topic) {
        Ok(permitted) => permitted,
        Err(error) => return answer(&socket, ack, Err(error)),
    };
    counted_as_connected(&socket).await;
    let (since, presence) = match request {
        Subscribe::Id(_) => (None, false),
        Subscribe::Named { since, presence, .. } => (since, presence),
    };
    // Whoever subscribes again begins again.
    let before = following.lock().topics.remove(&topic);
    drop(before);
    let (begun, has_begun) = oneshot::channel();
    let told = move |joined: Joined| {
        let answer = Answer::Subscribed { ok: true, position: joined.position, recovered: joined.recovered };
        ack.send(&answer).ok();
        begun.send(()).ok();
    };
    let sink = || Sink::Socket(socket.clone());
    let updates = app.hub.join(topic, sink(), since, claims.sub, told).await;
    // Nothing before the answer.
    has_begun.await.ok();
    let watch = if presence { Some(app.hub.watch(topic, sink()).await) } else { None };
    let before = following.lock().topics.insert(topic, Followed { updates, _presence: watch });
    drop(before);
    // It may have gone while it joined, and then no one else lets go.
    if !socket.connected() {
        let left = std::mem::take(&mut following.lock().topics);
        drop(left);
    }
}

/// A client is told that it is connected a moment before it counts as such here. One that asks at once would be sent nothing
/// until then, and be taken for one that is gone.
async fn counted_as_connected(socket: &SocketRef) {
    let deadline = Instant::now() + COUNTED_WITHIN;
    while !socket.connected() && Instant::now() < deadline {
        sleep(COUNTED_STEP).await;
    }
}

fn unsubscribe(socket: &SocketRef, request: TryData<Subscribe>, topic: fn(B256) -> Topic) -> Result<bool, Refusal> {
    let following = asked(socket)?;
    let request = request.0.map_err(|_| misnamed())?;
    let topic = topic(read_id(request.id())?);
    let left = following.lock().topics.remove(&topic);
    Ok(left.is_some())
}

fn show_data(socket: &SocketRef, request: TryData<Show>) -> Result<bool, Refusal> {
    let following = asked(socket)?;
    let request = request.0.map_err(|_| Refusal::new("invalid_parameter", "send {jobId | nodeId, data}"))?;
    let topic = match (request.job_id, request.node_id) {
        (Some(id), None) => Topic::Job(read_id(&id)?),
        (None, Some(id)) => Topic::Node(read_id(&id)?),
        _ => return Err(Refusal::new("invalid_parameter", "send either jobId or nodeId")),
    };
    if request.data.as_ref().is_some_and(|data| data.get().len() > MAX_DATA) {
        return Err(Refusal::new("invalid_parameter", format!("data may take {MAX_DATA} bytes")));
    }
    let state = following.lock();
    let followed = state.topics.get(&topic).ok_or_else(|| Refusal::new("not_permitted", "subscribe to it first"))?;
    followed.updates.show(request.data);
    Ok(true)
}

fn answer(socket: &SocketRef, ack: AckSender, result: Result<bool, Refusal>) {
    match result {
        Ok(ok) => ack.send(&Answer::Done { ok }).ok(),
        Err(error) => {
            socket.emit("error", &error).ok();
            ack.send(&Answer::Refused { ok: false, error }).ok()
        }
    };
}

/// What the socket follows, if it may ask something now.
fn asked(socket: &SocketRef) -> Result<Arc<Following>, Refusal> {
    let following = following(socket).ok_or_else(|| Refusal::new("unauthenticated", "connect with a token"))?;
    following.may_ask()?;
    Ok(following)
}

fn misnamed() -> Refusal {
    Refusal::new("invalid_parameter", "send an id, or {jobId | nodeId, since?: {epoch, offset}, presence?}")
}

fn read_id(id: &str) -> Result<B256, Refusal> {
    let id = id.parse::<Hash>().map_err(|error| Refusal::new("invalid_parameter", format!("the id {error}")))?;
    Ok(id.0)
}

/// What is asked for, if the token names it.
fn permitted(
    socket: &SocketRef,
    request: TryData<Subscribe>,
    topic: fn(B256) -> Topic,
) -> Result<(Arc<Following>, Topic, Subscribe, Claims), Refusal> {
    let following = asked(socket)?;
    let request = request.0.map_err(|_| misnamed())?;
    let topic = topic(read_id(request.id())?);
    let claims = socket.extensions.get::<Claims>().filter(|claims| claims.topics.contains(&topic));
    let claims = claims.ok_or_else(|| Refusal::new("not_permitted", "the token does not name it"))?;
    Ok((following, topic, request, claims))
}
