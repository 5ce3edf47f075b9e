//! `littoral-indexer`: mirrors the chain into Postgres and Redis.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use littoral_indexer::commands::rebuild::{self, RebuildArgs};
use littoral_indexer::commands::replay::{self, ReplayArgs};
use littoral_indexer::commands::status::{self, StatusArgs};
use littoral_indexer::commands::verify::{self, VerifyArgs};
use littoral_indexer::service::{self, RunArgs};
use market::settings::LogArgs;
use market::telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What `verify` returns if it came to no verdict.
const UNKNOWN: u8 = 2;

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
    /// Hold the index against the chain and print what differs: logs, rows, ledger, the contracts' answers. Writes nothing
    ///
    /// Logs are read again by ranges and by block hash and must be what is stored, no more and no less. What they amount to
    /// must be what the contracts answer at a final block, and what the folded rows and the ledger say where the indexer stands.
    /// With --from or --to only the logs of that stretch are recounted. Exits with 0 if nothing differs, 1 if something does,
    /// and 2 if that cannot be told.
    Verify {
        #[command(flatten)]
        args: Box<VerifyArgs>,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Take back everything from a block on and read it again from the chain
    ///
    /// Mends an index of which verify says that it differs: rows are folded anew from the events before the block, and
    /// everything after it comes from the chain. Refuses while an indexer or a settler leads, unless told to --take-lead; Redis is
    /// filled again afterwards.
    Replay {
        #[command(flatten)]
        args: Box<ReplayArgs>,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Make everything in Redis again from Postgres, while everyone goes on
    RebuildRedis {
        #[command(flatten)]
        args: Box<RebuildArgs>,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Say how far the index is: cursor, head, final block, lag, leader, outbox, reorgs, last verification
    ///
    /// Needs the database only. Chain and Redis are asked if they are named with --rpc-url and --redis-url.
    Status {
        #[command(flatten)]
        args: Box<StatusArgs>,
        #[command(flatten)]
        log: LogArgs,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Cli::parse().command;
    let failure = if matches!(command, Command::Verify { .. }) { ExitCode::from(UNKNOWN) } else { ExitCode::FAILURE };
    match dispatch(command).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = %reasons(&error), "cannot go on");
            failure
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let (Command::Run { log, .. }
    | Command::Verify { log, .. }
    | Command::Replay { log, .. }
    | Command::RebuildRedis { log, .. }
    | Command::Status { log, .. }) = &command;
    telemetry::init(log.log_json);
    match command {
        Command::Run { args, .. } => run(*args).await?,
        Command::Verify { args, .. } => return verify::run(*args).await,
        Command::Replay { args, .. } => replay::run(*args).await?,
        Command::RebuildRedis { args, .. } => rebuild::run(*args).await?,
        Command::Status { args, .. } => status::run(*args).await?,
    }
    Ok(ExitCode::SUCCESS)
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
