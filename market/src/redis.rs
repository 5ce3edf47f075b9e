//! All Redis code of the workspace. Redis is disposable: whatever it holds follows from Postgres and can be made again.

pub mod client;
pub mod keys;
pub mod projector;
pub mod pubsub;
pub mod queue;
pub mod session;
