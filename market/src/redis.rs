//! All Redis code of the workspace. Redis is disposable: whatever it holds follows from Postgres and can be made again.
//!
//! [`projector`] keeps it equal to Postgres: it drains an outbox, and for each entity in it [`apply`]s the keys that
//! [`plan`] works out from the entity's rows. [`rebuild`] does so for all entities when Redis was flushed, [`sweep`] for
//! those that change because time goes by.

pub mod apply;
pub mod cache;
pub mod client;
pub mod cluster;
pub mod dump;
pub mod flag;
pub mod history;
pub mod idempotency;
pub mod keys;
pub mod leaderboard;
pub mod limit;
pub mod lock;
pub mod plan;
pub mod presence;
pub mod projector;
pub mod pubsub;
pub mod queue;
pub mod rebuild;
pub mod session;
pub mod sweep;

pub use client::{Client, RedisError};
