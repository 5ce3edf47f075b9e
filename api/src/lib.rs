//! The HTTP API (`serve`) and the settler (`settle`) of Littoral: two processes of one program.

pub mod app;
pub mod audit;
pub mod auth;
pub mod background;
pub mod blobs;
pub mod chain;
pub mod door;
pub mod error;
pub mod extract;
pub mod health;
pub mod http;
pub mod jobs;
pub mod nodes;
pub mod openapi;
pub mod page;
pub mod realtime;
pub mod serve;
pub mod server;
pub mod settle;
pub mod shared;
pub mod store;
pub mod vouchers;
pub mod wallet;
pub mod wire;
