//! The wire: what happens to jobs and what nodes are told, to whoever may know, as it happens.
//!
//! The projector publishes on Redis channels, each with a short history behind it. A [`Hub`] follows the channels that this
//! process's clients follow, over one connection; clients come by Socket.IO ([`socket`]) or as Server-Sent Events ([`sse`]),
//! with a token that names what they may follow ([`token`]). Any client may use any instance, and change it at any time.

mod channel;
mod hub;
mod member;
mod presence;
mod socket;
mod sse;
mod token;
mod topic;
mod watchers;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::App;

pub use hub::Hub;
pub use socket::layer;
pub use token::Tokens;
pub use topic::Topic;

/// The route of tokens.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(token::create))
}

/// The routes of event streams, which last.
pub fn streams() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(sse::job_events)).routes(routes!(sse::node_events))
}
