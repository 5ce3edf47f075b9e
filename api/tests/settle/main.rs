//! The settler against a real chain, a real database and the real indexer.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod crashes;
mod lies;
mod payments;
mod proxy;
mod rails;
mod reorgs;
mod scale;
mod standby;
mod trouble;
mod vouchers;
mod wallets;
mod world;
