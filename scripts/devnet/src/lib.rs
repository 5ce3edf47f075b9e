//! Real private servers for tests and for `scripts/up`: Postgres, Redis, Anvil with the contracts on it, and a whole
//! marketplace on top of them.
//!
//! Every server listens on 127.0.0.1 only, on a port of its own, is stopped by its process id when its value is dropped,
//! and dies with this process even when that is killed. A missing program is an error that names it, never a skip.

mod anvil;
mod chain;
pub mod deployment;
mod littoral;
mod market;
pub mod paths;
pub mod ports;
mod postgres;
mod process;
mod redis;
mod redis_cluster;
mod services;
mod unforgiven;

pub use anvil::{Anvil, AnvilOptions, DEV_KEYS, DevKey, ws_url};
pub use chain::{Chain, Holdings};
pub use deployment::{DeployParams, Deployment, Manifest};
pub use littoral::{Littoral, Said};
pub use market::{Market, MarketOptions};
pub use postgres::{Postgres, SHARED_URL, TestDatabase};
pub use process::{Launch, Process, User};
pub use redis::{Redis, RedisOptions};
pub use redis_cluster::RedisCluster;
pub use services::{Endpoints, Keys, NodeOptions, Service, binary};
pub use unforgiven::Unforgiven;
