//! `littoral`, the command line of requesters and operators.

pub mod api;
pub mod args;
pub mod chain;
pub mod commands;
pub mod context;
pub mod countersign;
pub mod error;
pub mod files;
pub mod keys;
pub mod node;
pub mod ops;
pub mod orders;
pub mod output;
pub mod records;
pub mod wallet;
