//! `littoral-indexer`: mirrors the chain into Postgres and Redis.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use littoral_indexer::service::{self, RunArgs};
use market::settings::LogArgs;
use market::telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Mirrors the chain into Postgres, and has what changed projected to Redis.
#[derive(Parser)]
#[command(name = "littoral-indexer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Follow the chain until stopped. Any number may run: one leads, the others stand by
    Run {
        #[command(flatten)]
        args: Box<RunArgs>,
        #[command(flatten)]
        log: LogArgs,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Run { args, log } = Cli::parse().command;
    telemetry::init(log.log_json);
    match run(*args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %reasons(&error), "cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => tracing::info!("interrupted; stopping"),
            _ = terminate.recv() => tracing::info!("asked to stop; stopping"),
        }
        stop.cancel();
    });
    service::run(args, shutdown).await
}

/// An error and its causes in one line. Some errors repeat their cause in their own text; it is not told twice.
fn reasons(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, reason| match told.as_str() {
        "" => reason,
        so_far if so_far.contains(&reason) => told,
        so_far => format!("{so_far}: {reason}"),
    })
}
