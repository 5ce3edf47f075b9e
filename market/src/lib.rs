//! The vocabulary of Littoral, shared by the indexer, the API, the settler and the command line.
//!
//! The pure files (`abi`, `amount`, `batch`, `confirmation`, `content`, `deployment`, `fold`, `job`, `order`, `typed_data`) import no I/O. SQL lives only in [`db`], Redis
//! commands only in [`redis`].

pub mod abi;
pub mod amount;
pub mod batch;
pub mod breaker;
pub mod clock;
pub mod confirmation;
pub mod content;
pub mod db;
pub mod deployment;
pub mod fold;
pub mod hexbytes;
pub mod job;
pub mod ledger;
pub mod limit;
pub mod order;
pub mod production;
pub mod redis;
pub mod rpc;
pub mod settings;
pub mod source;
pub mod telemetry;
pub mod typed_data;
pub mod user;
pub mod verify;
pub mod wallet;

pub use alloy::primitives::{Address, B256, U256};
pub use amount::Amount;
pub use content::ContentId;
