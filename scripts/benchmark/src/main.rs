//! `littoral-bench`: what `scripts/bench` runs. Every figure comes from real servers, and the last line of standard output
//! is one JSON object.

mod apply;
mod figures;
mod http;
mod indexer;
mod people;
mod queue;
mod realtime;
mod settle;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "littoral-bench", version, about = "Measure the marketplace on this machine", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write made-up steps of the indexer, to see what Postgres makes of them
    Apply(apply::Apply),
    /// Index a chain full of events, and compare the speed with the node's own and Ponder's, the rows with the chain
    Indexer(indexer::Indexer),
    /// Hand in signed orders over HTTP, singly and in bulk, and read jobs, beside what checking signatures alone allows
    Http(http::Http),
    /// Submit, assign and complete many jobs, and compare the speed with BullMQ's on the same Redis
    Queue(queue::Queue),
    /// Send many messages to many Socket.IO clients, and compare the cost and the time with those of the npm server
    Realtime(realtime::Realtime),
    /// Settle many payments through the real settler, Postgres and Anvil, and compare the chain's logs with Postgres
    Settle(settle::Settle),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Apply(apply) => apply.run().await,
        Command::Http(http) => http.run().await,
        Command::Indexer(indexer) => indexer.run().await,
        Command::Queue(queue) => queue.run().await,
        Command::Realtime(realtime) => realtime.run().await,
        Command::Settle(settle) => settle.run().await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
