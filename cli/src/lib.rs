//! `littoral`, the command line of requesters and operators.

pub mod api;
pub mod args;
pub mod chain;
pub mod commands;
pub mod context;
pub mod error;
pub mod keys;
pub mod node;
pub mod ops;
pub mod output;
