//! `littoral-api serve`, `littoral-api settle` and `littoral-api audit`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use littoral_api::{
    audit::{self, AuditArgs},
    door::args::TokenArgs,
    serve::{self, ServeArgs},
    settle::{self, SettleArgs},
    shared::{self, FlagArgs},
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
    /// Switch features of a running market on and off
    Flag(FlagArgs),
    /// Print a token for the session of a user, as applications that share sessions make them
    SessionToken(TokenArgs),
    /// Recompute every balance from the chain and print what differs. Exits with 0 if nothing does, 1 if something does, and 2
    /// if that cannot be told
    Audit(Box<AuditArgs>),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(*args).await?,
        Command::Settle(args) => settle::run(*args).await?,
        Command::Flag(args) => shared::run(args).await?,
        Command::SessionToken(args) => println!("{}", args.token(market::clock::now())?),
        Command::Audit(args) => return Ok(audit::command(*args).await),
    }
    Ok(ExitCode::SUCCESS)
}
