//! What stands before every handler: whose request it is, how many more of them are taken, and whether it was answered before.

pub mod address;
pub mod args;
mod idempotency;
mod limit;
mod sessions;
pub mod token;

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use market::clock;

pub use address::{ClientAddress, Peer};
pub use idempotency::{IDEMPOTENCY_KEY, REPLAYED, operation};
pub use limit::{Limiter, Limits, RATE_LIMIT, RATE_LIMIT_POLICY, Scope};
pub(crate) use sessions::hash as token_hash;
pub use sessions::{Activity, Known, authenticate};

use crate::{
    app::App,
    auth::SignedIn,
    error::ApiResult,
    shared::{self, Feature},
};

/// Who makes a request, as far as its token tells.
#[derive(Debug, Clone)]
pub enum Caller {
    /// There is no token.
    Anonymous,
    /// The token is good.
    Known(SignedIn),
    /// The token is not, or cannot be looked up now.
    Refused(sessions::Refusal),
}

/// Lets a request in, or not.
pub async fn enter(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let Some(scope) = Scope::of(request.method(), &route) else { return next.run(request).await };
    let trusted = &app.parts.settings.trusted_proxies;
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(NOWHERE);
    let address = ClientAddress::of(peer, request.headers(), trusted);
    let caller = sessions::caller(&app, request.headers()).await;
    let verdict = limit::take(&app, scope, request.method(), &caller, address).await;
    let mut response = match &verdict {
        Some(verdict) if !verdict.admitted => limit::refusal(verdict).into_response(),
        _ => {
            request.extensions_mut().insert(address);
            request.extensions_mut().insert(caller.clone());
            let answered = admitted(&app, &caller, &route, request, next).await;
            answered.unwrap_or_else(IntoResponse::into_response)
        }
    };
    if let Some(verdict) = &verdict {
        limit::tell(verdict, response.headers_mut());
    }
    response
}

/// Lets a handshake of Socket.IO in, or not: it takes memory and a while before it is known whose it is, and passes no route.
pub async fn greet(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_handshake = request.uri().path().starts_with("/socket.io")
        && !request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("sid=")));
    if !is_handshake {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(NOWHERE);
    let address = ClientAddress::of(peer, request.headers(), &app.parts.settings.trusted_proxies);
    let verdict = limit::take(&app, Scope::Read, request.method(), &Caller::Anonymous, address).await;
    match verdict {
        Some(verdict) if !verdict.admitted => {
            let mut response = limit::refusal(&verdict).into_response();
            limit::tell(&verdict, response.headers_mut());
            response
        }
        _ => next.run(request).await,
    }
}

/// Answers a request that is let in.
async fn admitted(app: &App, caller: &Caller, route: &str, request: Request, next: Next) -> ApiResult<Response> {
    if let Some(feature) = Feature::of(route) {
        shared::check(app, feature).await?;
    }
    let Caller::Known(user) = caller else { return Ok(next.run(request).await) };
    app.activity.note(app, user, clock::now());
    match operation(request.method(), route) {
        Some(operation) => idempotency::once(app, user, operation, request, next).await,
        None => Ok(next.run(request).await),
    }
}

/// Where requests come from that came through no connection: there are none but in tests of handlers.
const NOWHERE: Peer = Peer(std::net::SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0)));

/// Whether a request changes nothing.
fn only_reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}
