//! The indexer: follows the chain into Postgres, and has what changed projected to Redis.
//!
//! [`market::source`] reads the chain, [`follower`] decides what the next step of the cursor is and takes it, [`backfill`]
//! has final blocks read ahead of it, [`head`] wakes it at new ones, [`service`] runs that under leadership, and [`status`]
//! tells people and Prometheus how far it is.

pub mod backfill;
pub mod commands;
pub mod follower;
pub mod head;
pub mod service;
pub mod status;
pub mod verifying;
