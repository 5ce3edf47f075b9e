//! `littoral-api audit` on a real chain and database: clean where all is well, and naming what is not.

// Tests tamper with tables by SQL of their own.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

// The chain and what happens there are those of the indexer's own tests.
#[allow(dead_code)]
#[path = "../../../indexer/tests/support/chain.rs"]
mod chain;
mod command;
mod differences;
#[path = "../../../indexer/tests/support/everything.rs"]
mod everything;
mod payments;
mod world;
