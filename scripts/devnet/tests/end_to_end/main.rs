//! The whole marketplace, as its users see it: real servers, contracts, processes and command line.

// Clippy excuses test functions only, not the helpers beside them.
#![allow(clippy::unwrap_used)]

mod crashes;
mod jobs;
mod market;
mod signed;
mod stage;
mod up;
mod walk_away;
