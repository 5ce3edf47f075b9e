//! `littoral-devnet`: what `scripts/up`, `scripts/deploy` and `scripts/test` start.

mod demo;
mod deploy;
mod up;
mod with_postgres;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "littoral-devnet", version, about = "A whole marketplace on this machine", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up servers, contracts and processes, and take one job through them
    Up(Box<up::Up>),
    /// Deploy the contracts to a chain, or check them there
    Deploy(Box<deploy::Deploy>),
    /// Run a command with a private Postgres, and stop that when the command ends
    WithPostgres(with_postgres::WithPostgres),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(up) => up.run().await.map(|()| ExitCode::SUCCESS),
        Command::Deploy(deploy) => deploy.run().await,
        Command::WithPostgres(command) => command.run().await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
