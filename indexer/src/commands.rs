//! What an operator asks of the indexer besides following the chain.

pub mod rebuild;
pub mod replay;
pub mod status;
pub mod verify;
