//! Redis as a projection of Postgres, and the views it is made from: with real servers.

// Clippy excuses test functions only, not the helpers beside them.
// Tests look into tables with SQL of their own.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

mod cluster;
mod confirmation;
mod connection;
mod history;
mod leader;
mod projection;
mod rebuild;
mod running;
mod session;
mod shared;
mod support;
mod views;
