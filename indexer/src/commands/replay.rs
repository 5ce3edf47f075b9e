//! `littoral-indexer replay`: takes back everything from a block on, and reads it again from the chain.

use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use market::db::chain::{self, BlockId};
use market::db::leader::{Leadership, Role};
use market::deployment::Deployment;
use market::settings::ChainArgs;
use market::source::Source;
use market::{clock, db};
use sqlx::PgPool;

use crate::follower::{Follower, stored_cursor};
use crate::service;

/// Between two words about progress.
const TOLD_EVERY: Duration = Duration::from_secs(2);
/// A failure of the chain's endpoint is met again so many times in a row before the command gives up. What was read by then
/// stays; `littoral-indexer run` goes on from there.
const ATTEMPTS: u32 = 10;

/// Options of `littoral-indexer replay`.
#[derive(Args, Clone)]
pub struct ReplayArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub chain: ChainArgs,

    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// First block that is taken back and read again
    #[arg(long, value_name = "BLOCK")]
    pub from: u64,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// End the sessions of an indexer or a settler that is running; it stands by until the replay is over
    #[arg(long)]
    pub take_lead: bool,

    /// Most blocks that one query of logs spans; fewer are asked for where the endpoint refuses
    #[arg(long, env = "MAX_LOG_RANGE", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_log_range: u64,
}

/// Replays. Until it is over the index lacks what comes after the block, so the settler, which would take payments that
/// are not read again yet for unpaid, is kept from leading too.
pub async fn run(args: ReplayArgs) -> anyhow::Result<()> {
    let deployment = Deployment::read(&args.chain.deployment)?;
    let pool = db::connect(&args.database_url, 8).await.context("cannot connect to Postgres (--database-url)")?;
    let source = service::source(&args.chain, &deployment).await?;
    let Some(cursor) = stored_cursor(&pool, source.contracts()).await? else {
        bail!("nothing is indexed yet; littoral-indexer run begins at the deployment");
    };
    ensure!(
        args.from <= cursor.block.number,
        "--from {} is beyond the last indexed block, {}",
        args.from,
        cursor.block.number
    );
    let to = target(&pool, &source, args.from).await?;
    confirm(&pool, &args, cursor.block, to).await?;

    let indexing = lead(&pool, Role::Indexer, args.take_lead).await?;
    let settling = lead(&pool, Role::Settler, args.take_lead).await?;
    let replaying = async {
        // Whoever led may have moved on meanwhile.
        let Some(cursor) = stored_cursor(&pool, source.contracts()).await? else { bail!("the index is gone") };
        let began = Instant::now();
        let mut tx = pool.begin().await?;
        chain::rewind(&mut tx, indexing.fence(), source.contracts(), cursor.block, to).await?;
        tx.commit().await?;
        println!("taken back to block {} in {:.1} s", to.number, began.elapsed().as_secs_f64());
        follow(&pool, &source, &indexing, &deployment, args.max_log_range).await
    };
    tokio::select! {
        lost = indexing.lost() => bail!("lost the lead of the indexer: {lost}"),
        lost = settling.lost() => bail!("lost the lead of the settler: {lost}"),
        replayed = replaying => replayed?,
    }
    settling.release().await?;
    indexing.release().await?;
    Ok(())
}

/// The highest stored block below `from` that is on the chain, or where indexing began.
async fn target(pool: &PgPool, source: &Source, from: u64) -> anyhow::Result<BlockId> {
    let mut db = pool.acquire().await?;
    let mut below = from;
    while let Some(number) = below.checked_sub(1) {
        let Some(stored) = chain::canonical_at_or_below(&mut db, number).await? else { break };
        if source.block(stored.number).await?.is_some_and(|block| block.id == stored) {
            return Ok(stored);
        }
        below = stored.number;
    }
    let lowest = chain::lowest(&mut db).await?.context("no block is stored")?;
    let on_chain = source.block(lowest.number).await?.is_some_and(|block| block.id == lowest);
    ensure!(on_chain, "not even block {} ({}), where indexing began, is on the chain", lowest.number, lowest.hash);
    Ok(lowest)
}

async fn confirm(pool: &PgPool, args: &ReplayArgs, cursor: BlockId, to: BlockId) -> anyhow::Result<()> {
    let events = chain::events_above(&mut *pool.acquire().await?, to.number).await?;
    println!(
        "Blocks {} to {} with {events} events are taken back and read again from the chain. Until that is done the API shows \
         what the chain said at block {}, and the settler stands by.",
        to.number + 1,
        cursor.number,
        to.number
    );
    if args.yes {
        return Ok(());
    }
    ensure!(std::io::stdin().is_terminal(), "nobody is there to ask: say --yes");
    print!("Go on? Type yes: ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    ensure!(answer.trim() == "yes", "nothing was changed");
    Ok(())
}

async fn lead(pool: &PgPool, role: Role, take: bool) -> anyhow::Result<Leadership> {
    let now = clock::now();
    let leadership = if take {
        Some(Leadership::take(pool, role, now).await?)
    } else {
        Leadership::try_acquire(pool, role, now).await?
    };
    leadership.with_context(|| {
        format!(
            "a process leads as {}: stop it, or have it stand by for as long as this takes with --take-lead",
            role.name()
        )
    })
}

/// Follows the chain to its head.
async fn follow(
    pool: &PgPool,
    source: &Source,
    leadership: &Leadership,
    deployment: &Deployment,
    max_range: u64,
) -> anyhow::Result<()> {
    let fence = leadership.fence();
    let mut follower =
        Follower::start(pool.clone(), source.clone(), fence, deployment.deploy_block, max_range, clock::now()).await?;
    let (began, first) = (Instant::now(), follower.cursor().number);
    let (mut told_at, mut events, mut failed) = (Instant::now(), 0, 0);
    loop {
        let progress = match follower.advance(clock::now()).await {
            Ok(progress) => progress,
            Err(error) if error.remedy() == crate::follower::Remedy::Retry && failed < ATTEMPTS => {
                failed += 1;
                tracing::warn!(%error, "cannot read the chain; going on trying");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error).context("littoral-indexer run goes on from where this ended"),
        };
        failed = 0;
        let Some(step) = progress.step else {
            println!(
                "read again up to block {}: {events} events in {:.1} s",
                progress.cursor.number,
                began.elapsed().as_secs_f64()
            );
            return Ok(());
        };
        events += step.events;
        if told_at.elapsed() > TOLD_EVERY {
            told_at = Instant::now();
            let (done, all) =
                (progress.cursor.number.saturating_sub(first), progress.head.saturating_sub(first).max(1));
            println!(
                "block {} of {} ({} %), {events} events",
                progress.cursor.number,
                progress.head,
                done.saturating_mul(100) / all
            );
        }
    }
}
