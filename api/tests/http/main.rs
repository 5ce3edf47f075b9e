//! The API over HTTP, with real Postgres and Redis. Rows of the chain are put where the indexer would put them.
//!
//! Tests run on two threads: when one ends, its database is dropped while the thread waits, and Postgres would wait in turn
//! for connections that no one is left to finish opening.

// Tests look into tables with SQL of their own. Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

mod auth;
mod backup;
mod blobs;
mod claim;
mod cluster;
mod complete;
mod degraded;
mod door;
mod nodes;
mod promised;
mod queue;
mod queue_model;
mod queue_outage;
mod races;
mod shape;
mod shared;
mod signed;
mod submit;
mod support;
mod vouchers;
