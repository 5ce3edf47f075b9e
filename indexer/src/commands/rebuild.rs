//! `littoral-indexer rebuild-redis`: makes everything in Redis again from Postgres.

use std::time::Instant;

use anyhow::Context;
use clap::Args;
use market::redis::client::Client;
use market::redis::keys::Keys;
use market::redis::rebuild;
use market::settings::StoreArgs;
use market::{clock, db};

/// Options of `littoral-indexer rebuild-redis`.
#[derive(Args, Clone)]
pub struct RebuildArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub store: StoreArgs,
}

/// Rebuilds, while everyone goes on. Sessions that other applications wrote are left alone.
pub async fn run(args: RebuildArgs) -> anyhow::Result<()> {
    let pool = db::connect(&args.store.database_url, args.store.database_max_connections)
        .await
        .context("cannot connect to Postgres (--database-url)")?;
    let redis = Client::open(&args.store.redis_url, Keys::new(&args.store.redis_prefix))
        .context("--redis-url does not name a Redis server")?;
    let began = Instant::now();
    let done = rebuild::rebuild(&pool, &redis, clock::now()).await?;
    anyhow::ensure!(
        done,
        "another process is filling Redis, or it was flushed meanwhile: look again when that is done"
    );
    println!("Redis is filled from Postgres, in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
