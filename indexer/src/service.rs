//! The process: waits for the lead, follows the chain while it has it, and steps back when it loses it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use market::db::leader::{Leadership, Lost, Role};
use market::db::outbox::{self, Source as OutboxSource};
use market::db::{indexing, verification};
use market::deployment::Deployment;
use market::fold::Contracts;
use market::production::{self, EnvironmentArgs, Used};
use market::redis::client::Client;
use market::redis::keys::Keys;
use market::redis::projector::Projector;
use market::rpc::RpcError;
use market::settings::{ChainArgs, StoreArgs};
use market::source::Source;
use market::verify::Verifier;
use market::{clock, db, rpc};
use sqlx::postgres::PgPool;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::follower::{FollowError, Follower, Progress, Remedy, is_transient, stored_cursor};
use crate::head::{self, Hint};
use crate::status::{self, Limits, Measured, Status};
use crate::verifying::{self, Verifying};

/// Pause before a failed attempt is repeated; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// Of the chain.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Of the database, which is to have a leader again as soon as it is back.
const LONGEST_STANDBY_PAUSE: Duration = Duration::from_millis(500);
/// How often a standby looks whether the lead is free.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);
/// How often what health and metrics tell is read from the database.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);
/// How long an indexer that halted waits before it looks whether the reason is gone.
const HALTED_PAUSE: Duration = Duration::from_secs(15);
/// A chain on which nothing happens for so long is one that its node does not follow.
const MAX_HEAD_AGE_SECS: u64 = 300;
/// Id of local development chains, whose blocks come as fast as transactions do.
const LOCAL_CHAIN_ID: u64 = 31337;

/// Options of `littoral-indexer run`.
#[derive(Args, Clone)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub store: StoreArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub chain: ChainArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub environment: EnvironmentArgs,

    /// WebSocket endpoint that tells new blocks, so that they are looked at without waiting for the interval
    #[arg(long, env = "RPC_WS_URL", value_name = "URL", hide_env_values = true)]
    pub rpc_ws_url: Option<Url>,

    /// Milliseconds between two looks at the chain [default: 500, or 50 on chain 31337]
    #[arg(long, env = "POLL_INTERVAL_MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub poll_interval_ms: Option<u64>,

    /// Most blocks that one query of logs spans; fewer are asked for where the endpoint refuses
    #[arg(long, env = "MAX_LOG_RANGE", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_log_range: u64,

    /// Seconds from one verification of a stretch of the index to the next; 0 for none
    #[arg(long, env = "VERIFY_INTERVAL", default_value_t = 3600, value_name = "SECS")]
    pub verify_interval: u64,

    /// Seconds for which a leader may be without something that the chain has before /health says so
    #[arg(long, env = "MAX_LAG_SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_lag_secs: u64,

    /// Seconds that the chain's latest block may be old before /health says so; 0 for any age [default: 300, or 0 on chain
    /// 31337]
    #[arg(long, env = "MAX_HEAD_AGE_SECS")]
    pub max_head_age_secs: Option<u64>,

    /// Address and port on which to serve /live, /health and /metrics, such as 127.0.0.1:9102
    #[arg(long, env = "METRICS_BIND", value_name = "ADDRESS")]
    pub metrics_bind: Option<SocketAddr>,
}

/// Runs until `shutdown`, or until something is wrong that trying again does not mend.
pub async fn run(args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    if args.environment.environment.is_production() {
        let (database_url, redis_url) = (Some(&*args.store.database_url), Some(&*args.store.redis_url));
        let used = Used { database_url, redis_url, ..Used::default() };
        production::refuse(&production::weaknesses(used).await)?;
    }
    let deployment = Deployment::read(&args.chain.deployment)?;
    let contracts = Contracts::from(&deployment);
    let pool = db::connect(&args.store.database_url, args.store.database_max_connections)
        .await
        .context("cannot connect to Postgres (DATABASE_URL)")?;
    db::migrate(&pool).await.context("cannot apply the migrations")?;
    stored_cursor(&pool, &contracts).await?;
    let redis = Client::open(&args.store.redis_url, Keys::new(&args.store.redis_prefix))
        .context("REDIS_URL does not name a Redis server")?;

    let queue_depth = contracts.confirmation.queue().iter().map(|step| step.depth).max().unwrap_or(0);
    let is_local = deployment.chain_id == LOCAL_CHAIN_ID;
    let max_head_age = args.max_head_age_secs.unwrap_or(if is_local { 0 } else { MAX_HEAD_AGE_SECS });
    let limits = Limits {
        lag: Duration::from_secs(args.max_lag_secs),
        head_age: (max_head_age > 0).then(|| Duration::from_secs(max_head_age)),
    };
    let status = Status::new(limits, queue_depth);
    if let Some(bind) = args.metrics_bind {
        status::serve(bind, status.clone(), shutdown.clone()).await?;
    }
    let Some(source) = connect(&args, &deployment, contracts, &status, &shutdown).await? else { return Ok(()) };
    let poll_interval = args.poll_interval_ms.map_or_else(
        || if is_local { Duration::from_millis(50) } else { Duration::from_millis(500) },
        Duration::from_millis,
    );
    let verifying = Verifying {
        pool: pool.clone(),
        verifier: Verifier::new(source.clone(), deployment.clone(), verifying::CONCURRENCY),
        interval: Duration::from_secs(args.verify_interval),
        deploy_block: deployment.deploy_block,
    };
    let service = Service {
        pool,
        redis,
        verifying,
        source,
        status,
        hint: Hint::listen(args.rpc_ws_url, head::SILENCE),
        poll_interval,
        deploy_block: deployment.deploy_block,
        max_range: args.max_log_range,
    };
    tokio::select! {
        result = service.run() => result,
        () = shutdown.cancelled() => Ok(()),
    }?;
    tracing::info!("stopped");
    Ok(())
}

/// Reaches the chain, however long that takes, unless it is the wrong one. Nothing if shut down meanwhile.
async fn connect(
    args: &RunArgs,
    deployment: &Deployment,
    contracts: Contracts,
    status: &Status,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Source>> {
    let provider = rpc::failover(&args.chain.rpc_urls);
    let mut pause = Pause::default();
    loop {
        match rpc::verify(&provider, deployment).await {
            Ok(()) => return Ok(Some(Source::named(rpc::providers(&args.chain.rpc_urls), contracts))),
            Err(error @ RpcError::Transport(_)) => {
                tracing::warn!(%error, "cannot reach the chain yet");
                status.failing(&error);
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = pause.wait() => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}

/// Reads the chain of `deployment`, which must be the one that the endpoint serves.
pub async fn source(chain: &ChainArgs, deployment: &Deployment) -> Result<Source, RpcError> {
    rpc::connect(&chain.rpc_urls, deployment).await?;
    Ok(Source::named(rpc::providers(&chain.rpc_urls), Contracts::from(deployment)))
}

struct Service {
    pool: PgPool,
    redis: Client,
    verifying: Verifying,
    source: Source,
    status: Status,
    hint: Hint,
    poll_interval: Duration,
    deploy_block: u64,
    max_range: u64,
}

/// Why a leader stepped back.
#[derive(Debug, thiserror::Error)]
enum SteppedBack {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Follow(#[from] FollowError),
}

impl Service {
    async fn run(&self) -> anyhow::Result<()> {
        let mut pause = Pause::up_to(LONGEST_STANDBY_PAUSE);
        loop {
            self.status.standing_by();
            let leadership = self.wait_for_lead(&mut pause).await?;
            let (epoch, since) = (leadership.epoch(), Instant::now());
            self.status.leading(epoch);
            tracing::info!(epoch, "leading");
            let error = self.lead_and_project(&leadership).await;
            tracing::warn!(epoch, %error, "back to standby");
            if since.elapsed() > LONGEST_PAUSE {
                pause = Pause::up_to(LONGEST_STANDBY_PAUSE);
            }
            drop(leadership);
            self.status.standing_by();
            pause.wait().await;
        }
    }

    async fn wait_for_lead(&self, pause: &mut Pause) -> anyhow::Result<Leadership> {
        let mut said = false;
        loop {
            match Leadership::try_acquire(&self.pool, Role::Indexer, clock::now()).await {
                Ok(Some(leadership)) => return Ok(leadership),
                Ok(None) => {
                    self.status.alive();
                    if !std::mem::replace(&mut said, true) {
                        tracing::info!("another indexer leads; standing by");
                    }
                    tokio::time::sleep(STANDBY_INTERVAL).await;
                }
                Err(error) if is_transient(&error) => {
                    self.status.failing(&error);
                    tracing::warn!(%error, "cannot reach the database; going on trying");
                    pause.wait().await;
                }
                Err(error) => return Err(error).context("cannot take the lead"),
            }
        }
    }

    /// Follows the chain until that is no longer possible, and has what changes projected meanwhile. All of it ends by being
    /// dropped: what the projector has not removed from the outbox by then, the next leader projects again.
    async fn lead_and_project(&self, leadership: &Leadership) -> SteppedBack {
        let projector = Projector::new(self.pool.clone(), self.redis.clone(), OutboxSource::Chain);
        let beside = async {
            tokio::join!(
                projector.run(std::future::pending()),
                self.measure_forever(),
                self.verifying.run(leadership.fence())
            );
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            lost = leadership.lost() => lost.into(),
            error = self.lead(leadership) => error.into(),
            never = beside => match never {},
        }
    }

    /// Follows the chain until the lead or the database is lost. What someone has to look at does not end the process: started
    /// again it would only meet it again, and what it knows about it would be gone. It stays, keeps Redis in step, says so in
    /// `/health`, touches nothing, and looks from time to time whether the reason is gone.
    async fn lead(&self, leadership: &Leadership) -> FollowError {
        let mut follower = None;
        let mut pause = Pause::default();
        let mut trouble: Option<String> = None;
        loop {
            let error = match self.look(leadership, &mut follower).await {
                Ok(progress) => {
                    if trouble.take().is_some() {
                        tracing::info!(head = progress.head, "following the chain again");
                        pause = Pause::default();
                    }
                    self.status.progress(&progress);
                    report(&progress);
                    if progress.step.is_none() {
                        self.hint.wait(self.poll_interval).await;
                    }
                    continue;
                }
                Err(error) => error,
            };
            match error.remedy() {
                Remedy::Retry => {
                    self.status.failing(&error);
                    // Told when it begins; health and metrics tell that it goes on.
                    if trouble.replace(String::new()).is_none() {
                        tracing::warn!(%error, "cannot read the chain; going on trying");
                    }
                    pause.wait().await;
                }
                Remedy::Stop => {
                    self.status.halted(&error);
                    let told = error.to_string();
                    if trouble.as_ref() != Some(&told) {
                        tracing::error!(%error, "halted: the index stays as it is until someone has looked at this");
                    }
                    trouble = Some(told);
                    follower = None;
                    tokio::time::sleep(HALTED_PAUSE).await;
                }
                Remedy::StandBy => return error,
            }
        }
    }

    async fn look(&self, leadership: &Leadership, follower: &mut Option<Follower>) -> Result<Progress, FollowError> {
        let following = match follower {
            Some(following) => following,
            None => follower.insert(
                Follower::start(
                    self.pool.clone(),
                    self.source.clone(),
                    leadership.fence(),
                    self.deploy_block,
                    self.max_range,
                    clock::now(),
                )
                .await?,
            ),
        };
        following.advance(clock::now()).await
    }

    /// Tells health and metrics what the database knows.
    async fn measure_forever(&self) {
        loop {
            match self.measure().await {
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, "cannot measure the outbox"),
            }
            tokio::time::sleep(MEASURE_INTERVAL).await;
        }
    }

    async fn measure(&self) -> Result<(), sqlx::Error> {
        let mut db = self.pool.acquire().await?;
        let (depth, oldest) = outbox::depth(&mut db, OutboxSource::Chain).await?;
        let verified = verification::last(&mut db).await?;
        let standing = indexing::standing(&mut db).await?;
        self.status.measured(Measured {
            finalized: standing.as_ref().and_then(|standing| standing.finalized),
            mined_at: standing.and_then(|standing| standing.mined_at),
            outbox: (depth, oldest.map(|at| clock::now() - at)),
            verified,
        });
        Ok(())
    }
}

/// One line a step: reorgs at warn, steps with events at info, others at debug.
fn report(progress: &Progress) {
    let (head, cursor) = (progress.head, progress.cursor);
    let Some(step) = progress.step else { return };
    let (blocks, events, rows) = (cursor.number.abs_diff(step.from.number), step.events, step.applied.rows);
    if let Some(depth) = step.reorg_depth {
        let (undone, from, from_hash) = (step.applied.events_undone, step.from.number, step.from.hash);
        let (to, to_hash) = (cursor.number, cursor.hash);
        tracing::warn!(depth, from, %from_hash, to, %to_hash, undone, events, rows, head, "followed a reorg");
    } else if !step.is_backfill && (events > 0 || blocks > 1) {
        tracing::info!(cursor = cursor.number, hash = %cursor.hash, blocks, events, rows, head, "applied");
    } else {
        tracing::debug!(cursor = cursor.number, hash = %cursor.hash, blocks, events, rows, head, "applied");
    }
}

/// Waits longer each time.
struct Pause {
    next: Duration,
    longest: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self::up_to(LONGEST_PAUSE)
    }
}

impl Pause {
    fn up_to(longest: Duration) -> Self {
        Self { next: SHORTEST_PAUSE, longest }
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(self.longest);
    }
}
