//! `littoral-api settle`.

use clap::Args;
use market::settings::{ChainArgs, LogArgs, StoreArgs};

/// Options of `settle`.
#[derive(Args, Clone)]
pub struct SettleArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// Settles until told to stop.
pub async fn run(args: SettleArgs) -> anyhow::Result<()> {
    market::telemetry::init(args.log.log_json);
    let pool = market::db::connect(&args.store.database_url, args.store.database_max_connections).await?;
    let deployment = market::deployment::Deployment::read(&args.chain.deployment)?;
    tracing::info!(chain_id = deployment.chain_id, connections = pool.size(), "ready");
    Ok(())
}
