//! What every handler shares.

use std::{ops::Deref, sync::Arc, time::Duration};

use alloy::{
    primitives::{Address, B256},
    providers::DynProvider,
    signers::{SignerSync, local::PrivateKeySigner},
    sol_types::Eip712Domain,
};
use chrono::TimeDelta;
use ipnet::IpNet;
use market::{
    breaker::Breaker,
    db,
    deployment::Deployment,
    production::Environment,
    redis::{cache::Cache, client::Client},
    typed_data,
};
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::{PgPool, Postgres, Transaction, pool::PoolConnection};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    door::{Activity, Limiter, Limits, token::SessionSecret},
    error::{ApiError, ApiResult},
    http::Origin,
    jobs::{Funds, Tried},
    realtime::{Hub, Tokens},
    store::BlobStore,
};

/// How long the chain is left alone after it did not answer.
const CHAIN_PAUSE: Duration = Duration::from_secs(2);
/// How long Postgres is left alone after it gave no connection.
const POSTGRES_PAUSE: Duration = Duration::from_secs(1);
/// How long a connection to Postgres may take; the pool itself gives up a little earlier, and says why.
const POSTGRES_WITHIN: Duration = Duration::from_secs(6);

/// How the API behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Domains that a sign-in message may name.
    pub signin_domains: Vec<String>,
    /// Most bytes of one content.
    pub max_blob_bytes: usize,
    /// How long a content may take to arrive, however steadily it trickles.
    pub upload_timeout: Duration,
    /// How long a lease lasts unless renewed.
    pub lease: TimeDelta,
    /// Jobs with less time than this to their deadline are not handed out.
    pub deadline_margin: TimeDelta,
    /// Results with less time than this to their order's deadline are refused: they might not reach the chain any more. At
    /// most `deadline_margin`.
    pub settle_margin: TimeDelta,
    /// How far the indexer may be behind the chain while the API still counts as ready.
    pub max_index_lag: TimeDelta,
    /// Web origins that may call the API from a browser.
    pub cors_origins: Vec<Origin>,
    /// How long a request may take, apart from long polls and contents.
    pub request_timeout: Duration,
    /// How many claims may ask the database at once.
    pub claim_slots: usize,
    /// Whom nodes may let redeem their vouchers.
    pub settler: Option<Address>,
    /// Where it runs.
    pub environment: Environment,
    /// Secrets with which applications that share sessions sign tokens; none: they cannot.
    pub session_secrets: Vec<SessionSecret>,
    /// Proxies whose word on where a request comes from is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// How many requests are taken of whom.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            signin_domains: Vec::new(),
            max_blob_bytes: 64 * 1024 * 1024,
            upload_timeout: Duration::from_secs(15 * 60),
            lease: TimeDelta::seconds(60),
            deadline_margin: TimeDelta::seconds(60),
            settle_margin: TimeDelta::seconds(30),
            max_index_lag: TimeDelta::seconds(120),
            cors_origins: Vec::new(),
            request_timeout: Duration::from_secs(30),
            claim_slots: 8,
            settler: None,
            environment: Environment::default(),
            session_secrets: Vec::new(),
            trusted_proxies: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// What the API works with.
#[derive(Debug)]
pub struct Parts {
    /// Postgres.
    pub pool: PgPool,
    /// Redis, which may be down.
    pub redis: Client,
    /// The chain, for telling how far behind the indexer is.
    pub provider: DynProvider,
    /// Where the contracts are.
    pub deployment: Deployment,
    /// Signs assignments.
    pub assigner: PrivateKeySigner,
    /// Where contents lie.
    pub store: BlobStore,
    /// How it behaves.
    pub settings: Settings,
    /// Signs and checks realtime tokens.
    pub tokens: Tokens,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
}

/// The API's state: one a process, shared by its handlers and background tasks.
#[derive(Debug, Clone)]
pub struct App(Arc<Shared>);

/// See [`App`].
#[derive(Debug)]
pub struct Shared {
    /// What the API works with.
    pub parts: Parts,
    /// The escrow's EIP-712 domain.
    pub domain: Eip712Domain,
    /// Changes when a job may have become claimable.
    pub wake: watch::Sender<u64>,
    /// Bounds how many claims ask the database at once, so that a wake-up of many nodes leaves connections to others.
    pub claim_slots: Semaphore,
    /// What this process's clients follow.
    pub hub: Hub,
    /// Whether requesters had enough for their signed orders when a claim last looked.
    pub funds: Funds,
    /// Waiting jobs that claims are about to lease.
    pub tried: Tried,
    /// Counts requests while Redis does not.
    pub limiter: Limiter,
    /// When users last did something.
    pub activity: Activity,
    /// Keeps requests from waiting for a chain that does not answer.
    pub chain: Breaker,
    /// The same for Postgres.
    postgres: Breaker,
    /// What takes long to work out and may be a little old.
    pub cache: Cache,
    /// Cancelled when the process is about to end: it says that it is not ready, and goes on serving.
    pub draining: CancellationToken,
    /// Cancelled when the process is to end: long polls return, background tasks stop.
    pub shutdown: CancellationToken,
    /// When the process began to serve.
    pub started: Instant,
}

impl App {
    /// The state of an API that works with `parts`. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Shared {
            domain: parts.deployment.domain(),
            claim_slots: Semaphore::new(parts.settings.claim_slots),
            chain: Breaker::new("chain", CHAIN_PAUSE),
            postgres: Breaker::new("postgres", POSTGRES_PAUSE),
            cache: Cache::new(parts.redis.clone()),
            hub: Hub::open(parts.redis.clone()),
            parts,
            wake: watch::Sender::new(0),
            funds: Funds::default(),
            tried: Tried::default(),
            limiter: Limiter::default(),
            activity: Activity::default(),
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            started: Instant::now(),
        }))
    }

    /// A connection to Postgres. Refused at once if there was none to be had a moment ago.
    pub async fn db(&self) -> ApiResult<PoolConnection<Postgres>> {
        self.postgres(self.parts.pool.acquire()).await
    }

    /// A transaction, as [`Self::db`].
    pub async fn begin(&self) -> ApiResult<Transaction<'static, Postgres>> {
        self.postgres(self.parts.pool.begin()).await
    }

    async fn postgres<T>(&self, call: impl Future<Output = Result<T, sqlx::Error>>) -> ApiResult<T> {
        let answer = self.postgres.call(POSTGRES_WITHIN, call, db::is_outage).await;
        answer.map_err(|broken| ApiError::broken("The database", broken))
    }

    /// The address whose signature binds open orders to nodes.
    #[must_use]
    pub fn assigner(&self) -> Address {
        self.parts.assigner.address()
    }

    /// Signs that `node` may be paid for `job_id` until `expiry` (unix seconds).
    pub fn sign_assignment(&self, job_id: B256, node: Address, expiry: u64) -> ApiResult<Vec<u8>> {
        let digest = typed_data::assignment_digest(job_id, node, expiry, &self.domain);
        let signature = self.parts.assigner.sign_hash_sync(&digest).map_err(ApiError::internal)?;
        Ok(signature.as_bytes().to_vec())
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
