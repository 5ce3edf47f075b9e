//! `littoral-indexer verify`: holds the index against the chain.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use market::db;
use market::deployment::Deployment;
use market::settings::ChainArgs;
use market::verify::{self, At, Ended, Report, Verifier};

use crate::service;

/// Options of `littoral-indexer verify`.
#[derive(Args, Clone)]
pub struct VerifyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub chain: ChainArgs,

    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// Block at which the contracts are asked; for an old one the node must be an archive [default: the latest final one]
    #[arg(long, value_name = "N", conflicts_with_all = ["from", "to"])]
    pub block: Option<u64>,

    /// Only recount the events from this block on, and neither ask the contracts nor look at folded rows
    #[arg(long, value_name = "N")]
    pub from: Option<u64>,

    /// Only recount the events up to this block
    #[arg(long, value_name = "N")]
    pub to: Option<u64>,

    /// Seconds to wait for the indexer to reach --block or --to, or for a reorg to pass
    #[arg(long, default_value_t = 120, value_name = "SECS")]
    pub wait_secs: u64,

    /// Requests to the chain under way at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// Write the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the report. Exit code 0 if nothing differs, 1 if something does; an error if that cannot be told.
pub async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    if let (Some(from), Some(to)) = (args.from, args.to) {
        anyhow::ensure!(from <= to, "--from {from} is beyond --to {to}");
    }
    let report = verify(&args).await?;
    if args.json {
        println!("{}", report.json());
    } else {
        println!(
            "{}{}",
            report,
            if report.is_clean() { "nothing differs" } else { "the index is not what the chain says" }
        );
    }
    Ok(ExitCode::from(u8::from(!report.is_clean())))
}

async fn verify(args: &VerifyArgs) -> anyhow::Result<Report> {
    let deployment = Deployment::read(&args.chain.deployment)?;
    let source = service::source(&args.chain, &deployment).await?;
    let pool = db::connect(&args.database_url, 2).await.context("cannot connect to Postgres (--database-url)")?;
    let verifier = Verifier::new(source, deployment, args.concurrency.into());
    let at = args.block.map_or(At::Final, At::Number);
    let report = verify::patiently(&pool, Duration::from_secs(args.wait_secs), async |db| {
        if args.from.is_none() && args.to.is_none() {
            let (report, ..) = verifier.everything(db, (at, args.block.unwrap_or(0)), Ended::LetGo).await?;
            return Ok(report);
        }
        verifier.recount(db, args.from.unwrap_or(0), args.to).await
    });
    Ok(report.await?)
}
