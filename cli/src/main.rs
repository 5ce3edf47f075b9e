//! `littoral`: see docs/cli.md.

use std::process::ExitCode;

use clap::Parser;
use littoral::args::{Cli, Command, NodeCommand};
use littoral::context::Context;
use littoral::error::{Exit, Failure, exit_of};
use littoral::output::Out;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let out = Out::new(cli.global.json);
    init_logging(&cli);
    match run(cli) {
        Ok(()) => ExitCode::from(Exit::Ok as u8),
        Err(error) => {
            out.error(&error);
            ExitCode::from(exit_of(&error) as u8)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let context = Context::new(cli.global);
    let result = runtime.block_on(littoral::commands::run(&context, cli.command));
    // A thread that still encrypts for a job which was given back must not hold up the end.
    runtime.shutdown_background();
    result
}

/// A node tells what it does; other commands only what they print themselves, unless `RUST_LOG` asks for more.
fn init_logging(cli: &Cli) {
    let is_node = matches!(cli.command, Command::Node(NodeCommand::Run(_)));
    if is_node || std::env::var_os("RUST_LOG").is_some() {
        market::telemetry::init(cli.global.json);
    }
}

/// Help, version, or what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().any(|arg| arg == "--json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        Out::new(true).error(&Failure::Usage(text.trim().trim_start_matches("error: ").to_owned()).into());
    } else {
        // Nothing is left to say it to when the stream is gone.
        error.print().ok();
    }
    ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { Exit::Ok as u8 })
}
