//! Runs a command beside a private Postgres.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use devnet::{Postgres, SHARED_URL};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a command with a private Postgres, named by `LITTORAL_TEST_POSTGRES_URL`.
#[derive(Args)]
pub struct WithPostgres {
    /// Create a database of this name and pass its URL as DATABASE_URL
    #[arg(long, value_name = "NAME")]
    database: Option<String>,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<OsString>,
}

impl WithPostgres {
    /// Returns the command's exit status; 128 and the signal's number when a signal ended it.
    ///
    /// # Errors
    /// When Postgres or the command cannot be started.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let server = Postgres::temporary().await?;
        let (program, args) = self.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command.args(args).env(SHARED_URL, server.url().as_str());
        if let Some(name) = &self.database {
            command.env("DATABASE_URL", server.create_database(name).await?.as_str());
        }
        let mut child = command.spawn().with_context(|| format!("starting {}", program.to_string_lossy()))?;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                // A terminal sends Ctrl-C to the command too: what remains is to wait for it.
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {
                    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                    if let Some(pid) = pid {
                        kill_process(pid, Signal::TERM).ok();
                    }
                }
            }
        };
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|number| 128 + number);
        let code = status.code().or(by_signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Ok(ExitCode::from(code))
    }
}
