//! `littoral-api serve`.

use clap::Args;
use market::settings::{ChainArgs, LogArgs, StoreArgs};

/// Options of `serve`.
#[derive(Args, Clone)]
pub struct ServeArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// Serves until told to stop.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    market::telemetry::init(args.log.log_json);
    let pool = market::db::connect(&args.store.database_url, args.store.database_max_connections).await?;
    market::db::migrate(&pool).await?;
    let deployment = market::deployment::Deployment::read(&args.chain.deployment)?;
    tracing::info!(chain_id = deployment.chain_id, "ready");
    Ok(())
}
