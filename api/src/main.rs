//! `littoral-api serve` and `littoral-api settle`.

use clap::{Parser, Subcommand};
use littoral_api::{
    serve::{self, ServeArgs},
    settle::{self, SettleArgs},
};

/// The HTTP API and the settler of Littoral
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP: sign-in, contents, nodes, jobs. Any number of instances share the work
    Serve(Box<ServeArgs>),
    /// Send payments to the chain. One instance leads, others stand by
    Settle(Box<SettleArgs>),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Settle(args) => settle::run(*args).await,
    }
}
