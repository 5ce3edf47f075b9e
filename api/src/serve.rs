//! `littoral-api serve`: reads its options, connects, serves until told to stop.

use std::{net::SocketAddr, time::Duration};

use alloy::{primitives::Address, signers::local::PrivateKeySigner};
use anyhow::Context;
use chrono::TimeDelta;
use clap::Args;
use market::{
    db,
    deployment::Deployment,
    production::Used,
    redis::{Client, keys::Keys},
    rpc::{self, RpcError},
    settings::{ChainArgs, Hidden, LogArgs, StoreArgs},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use sqlx::PgPool;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use url::Url;

use crate::{
    app::{App, Parts, Settings},
    background,
    door::args::DoorArgs,
    http,
    realtime::Tokens,
    server::{self, Limits},
    store::BlobStore,
};

/// How long a request's header may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one statement may take. Less than a request may, so that what a client gave up does not go on in Postgres.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Options of `serve`.
#[derive(Args, Clone)]
pub struct ServeArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    door: DoorArgs,

    /// Address and port to listen on
    #[arg(long, env = "BIND", default_value = "127.0.0.1:3001")]
    bind: SocketAddr,

    /// Where contents are kept: file:///directory, or s3://bucket/prefix with AWS_… credentials in the environment
    #[arg(long, env = "BLOB_STORE", value_name = "URL")]
    blob_store: Url,

    /// Private key that binds open orders to nodes. It moves no money
    #[arg(long, env = "ASSIGNER_KEY", hide_env_values = true, value_name = "HEX")]
    assigner_key: Hidden<PrivateKeySigner>,

    /// Address of this market's settler, which nodes may let redeem their vouchers
    #[arg(long, env = "SETTLER_ADDRESS", value_name = "ADDRESS")]
    settler_address: Option<Address>,

    /// Most bytes of one content
    #[arg(long, env = "MAX_BLOB_BYTES", default_value_t = 64 * 1024 * 1024)]
    max_blob_bytes: usize,

    /// Seconds in which a content must have arrived whole
    #[arg(long, env = "UPLOAD_SECS", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..))]
    upload_secs: u32,

    /// Most connections at once; further ones wait
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 10_000, value_parser = max_connections)]
    max_connections: usize,

    /// Seconds that a node may keep a job without renewing
    #[arg(long, env = "LEASE_SECS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    lease_secs: u32,

    /// Jobs with fewer seconds than this to their deadline are not handed out
    #[arg(long, env = "DEADLINE_MARGIN_SECS", default_value_t = 60)]
    deadline_margin_secs: u32,

    /// Results with fewer seconds than this to their order's deadline are refused, as they might not reach the chain before
    /// it: then the requester would have both the result and the money. At most DEADLINE_MARGIN_SECS
    #[arg(long, env = "SETTLE_MARGIN_SECS", default_value_t = 30)]
    settle_margin_secs: u32,

    /// Seconds that the indexer may be behind the chain while this API counts as ready
    #[arg(long, env = "MAX_INDEX_LAG_SECS", default_value_t = 120)]
    max_index_lag_secs: u32,

    /// Seconds between being told to end and taking no more connections, in which `/health/ready` says so to balancers
    #[arg(long, env = "DRAIN_SECS", default_value_t = 0)]
    drain_secs: u32,

    /// Seconds that requests have to end when the process is told to
    #[arg(long, env = "SHUTDOWN_SECS", default_value_t = 25)]
    shutdown_secs: u32,
}

/// Serves until SIGTERM or SIGINT, then lets requests end.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    market::telemetry::init(args.log.log_json);
    check_margins(&args)?;
    let accounts = [("ASSIGNER_KEY", args.assigner_key.value("ASSIGNER_KEY")?.address())];
    let (database, redis) = (Some(args.store.database_url.as_str()), Some(args.store.redis_url.as_str()));
    args.door.check(Used { database_url: database, redis_url: redis, accounts: &accounts }).await?;
    let deadline = Duration::from_secs(args.shutdown_secs.into());
    let listener = TcpListener::bind(args.bind).await.with_context(|| format!("listening on {}", args.bind))?;
    let app = open(&args).await?;
    let (router, _) = http::router(app.clone())?;
    let mut tasks = background::spawn(&app);
    tracing::info!(
        address = %listener.local_addr()?, chain_id = app.parts.deployment.chain_id,
        escrow = %app.parts.deployment.escrow, assigner = %app.assigner(), "serving"
    );
    let (told, drain) = (app.clone(), Duration::from_secs(args.drain_secs.into()));
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!(drain_secs = drain.as_secs(), "stopping: no longer ready");
        told.draining.cancel();
        // Balancers take a moment to notice. A second signal is impatient.
        tokio::select! {
            () = tokio::time::sleep(drain) => {}
            () = wait_for_signal() => {}
        }
        tracing::info!("stopping: letting requests end");
        told.shutdown.cancel();
    });
    let stop = app.shutdown.clone();
    let limits = Limits { max_connections: args.max_connections, header_timeout: HEADER_TIMEOUT };
    let serving = server::serve(listener, router, limits, stop);
    let overdue = async {
        app.shutdown.cancelled().await;
        tokio::time::sleep(deadline).await;
    };
    tokio::select! {
        () = serving => {}
        () = overdue => tracing::warn!("requests did not end in time"),
    }
    if timeout(Duration::from_secs(5), async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("background tasks did not end in time");
    }
    tracing::info!("stopped");
    Ok(())
}

fn max_connections(text: &str) -> Result<usize, String> {
    let most = tokio::sync::Semaphore::MAX_PERMITS;
    text.parse().ok().filter(|count| (1..=most).contains(count)).ok_or_else(|| format!("must be 1 to {most}"))
}

async fn wait_for_signal() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(error) => {
                tracing::error!(%error, "cannot hear SIGTERM");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Connects to everything, and makes sure that it belongs together.
async fn open(args: &ServeArgs) -> anyhow::Result<App> {
    let deployment = Deployment::read(&args.chain.deployment)?;
    let (database_url, most) = (&args.store.database_url, args.store.database_max_connections);
    let unbounded = db::connect(database_url, 1).await.context("connecting to Postgres")?;
    db::migrate(&unbounded).await.context("applying the migrations")?;
    unbounded.close().await;
    let pool = db::connect_bounded(database_url, most, STATEMENT_TIMEOUT).await.context("connecting to Postgres")?;
    check_database(&pool, &deployment).await?;
    let provider = rpc::failover(&args.chain.rpc_urls);
    match rpc::verify(&provider, &deployment).await {
        Ok(()) => {}
        // Serving needs no chain: what it says comes through the indexer.
        Err(error @ RpcError::Transport(_)) => tracing::warn!(%error, "serving without the chain"),
        Err(error) => return Err(error.into()),
    }
    let redis = Client::open(&args.store.redis_url, Keys::new(args.store.redis_prefix.as_str()))
        .context("REDIS_URL is not usable")?;
    Ok(App::new(Parts {
        tokens: Tokens::load(&pool).await.context("reading the key of realtime tokens")?,
        pool,
        redis,
        provider,
        deployment,
        assigner: args.assigner_key.value("ASSIGNER_KEY")?.clone(),
        store: BlobStore::open(&args.blob_store)?,
        settings: settings(args)?,
        metrics: install_metrics()?,
    }))
}

/// That the database is not one of another deployment.
async fn check_database(pool: &PgPool, deployment: &Deployment) -> anyhow::Result<()> {
    let Some(cursor) = db::chain::cursor(&mut *pool.acquire().await?).await? else { return Ok(()) };
    anyhow::ensure!(
        (cursor.chain_id, cursor.escrow, cursor.registry)
            == (deployment.chain_id, deployment.escrow, deployment.registry),
        "the database is of the escrow {} on chain {}, the deployments manifest is of {} on chain {}",
        cursor.escrow,
        cursor.chain_id,
        deployment.escrow,
        deployment.chain_id
    );
    Ok(())
}

/// That a job is not handed out when its result would be refused already.
fn check_margins(args: &ServeArgs) -> anyhow::Result<()> {
    let (claim, settle) = (args.deadline_margin_secs, args.settle_margin_secs);
    anyhow::ensure!(
        claim >= settle,
        "--deadline-margin-secs (DEADLINE_MARGIN_SECS) is {claim}, less than --settle-margin-secs (SETTLE_MARGIN_SECS), \
         {settle}: jobs would be handed out whose results are refused"
    );
    Ok(())
}

fn settings(args: &ServeArgs) -> anyhow::Result<Settings> {
    let signin_domains =
        if args.door.signin_domain.is_empty() { own_domains(args.bind) } else { args.door.signin_domain.clone() };
    let claim_slots = usize::try_from(args.store.database_max_connections / 2).unwrap_or(usize::MAX).max(1);
    Ok(Settings {
        signin_domains,
        max_blob_bytes: args.max_blob_bytes,
        upload_timeout: Duration::from_secs(args.upload_secs.into()),
        lease: TimeDelta::seconds(args.lease_secs.into()),
        deadline_margin: TimeDelta::seconds(args.deadline_margin_secs.into()),
        settle_margin: TimeDelta::seconds(args.settle_margin_secs.into()),
        settler: args.settler_address,
        max_index_lag: TimeDelta::seconds(args.max_index_lag_secs.into()),
        cors_origins: args.door.cors_origin.clone(),
        environment: args.door.environment.environment.clone(),
        session_secrets: args.door.session_secrets()?,
        trusted_proxies: args.door.trusted_proxy.clone(),
        limits: args.door.limits(),
        claim_slots,
        ..Settings::default()
    })
}

/// The names of the address itself.
fn own_domains(bind: SocketAddr) -> Vec<String> {
    let mut domains = vec![bind.to_string()];
    if bind.ip().is_loopback() || bind.ip().is_unspecified() {
        domains.push(format!("localhost:{}", bind.port()));
    }
    if bind.ip().is_unspecified() {
        domains.push(format!("127.0.0.1:{}", bind.port()));
    }
    domains
}

/// Makes this process measure, with buckets that tell milliseconds apart.
pub fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
    Ok(PrometheusBuilder::new().set_buckets(&buckets)?.install_recorder()?)
}
