//! A running API of a test's own, and shorthands.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use alloy::{
    primitives::{Address, B256, keccak256},
    signers::{SignerSync, local::PrivateKeySigner},
};
use chrono::{DateTime, TimeDelta, Utc};
use devnet::{Redis, RedisOptions, TestDatabase};
use littoral_api::{
    app::{App, Parts, Settings},
    background,
    door::Limits,
    http,
    realtime::Tokens,
    serve::install_metrics,
    server,
    store::BlobStore,
};
use market::{
    Amount, ContentId,
    abi::{JobSpec, Order},
    clock,
    confirmation::Policy,
    db,
    deployment::{Deployment, EscrowParams, RegistryParams},
    fold::{BondRecord, EscrowAccount, EscrowJob, EscrowState, Moment, Opened, RegistryNode},
    order::{OrderJson, SpecJson},
    redis::{Client, keys::Keys},
    rpc, typed_data,
};
use metrics_exporter_prometheus::PrometheusHandle;
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    net::TcpListener,
    sync::OnceCell,
    task::{AbortHandle, JoinSet},
};
use url::Url;

pub const CHAIN_ID: u64 = 31337;
pub const MIN_STAKE: u128 = 1_000;
pub const OPERATION: &str = "encrypt";
pub const PUBLIC_KEY: [u8; 32] = [7; 32];

static METRICS: LazyLock<PrometheusHandle> = LazyLock::new(|| install_metrics().unwrap());

async fn shared_redis() -> &'static str {
    static SHARED: OnceCell<Redis> = OnceCell::const_new();
    SHARED.get_or_init(|| async { Redis::start(RedisOptions::default()).await.unwrap() }).await.url()
}

/// A running API.
pub struct Api {
    pub url: String,
    pub app: App,
    pub pool: PgPool,
    pub redis: Client,
    pub redis_url: String,
    pub client: reqwest::Client,
    pub router_description: utoipa::openapi::OpenApi,
    pub blobs: Arc<tempfile::TempDir>,
    background: JoinSet<()>,
    server: AbortHandle,
    database: Arc<Database>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
        self.background.abort_all();
    }
}

/// An API's state, without what serves it.
pub async fn app(pool: &PgPool, redis: &Client, blobs: &tempfile::TempDir, rpc_url: &str, settings: Settings) -> App {
    App::new(Parts {
        tokens: Tokens::load(pool).await.unwrap(),
        pool: pool.clone(),
        redis: redis.clone(),
        provider: rpc::provider(&rpc_url.parse().unwrap()),
        deployment: deployment(),
        assigner: assigner(),
        store: BlobStore::open(&Url::from_directory_path(blobs.path()).unwrap()).unwrap(),
        settings,
        metrics: METRICS.clone(),
    })
}

/// What a test wants to be otherwise.
#[derive(Default)]
pub struct Wish {
    pub redis_url: Option<String>,
    /// A database of another server than all tests share.
    pub database_url: Option<String>,
    /// In front of every key; something random unless given.
    pub redis_prefix: Option<String>,
    pub rpc_url: Option<String>,
    pub settings: Option<fn(&mut Settings)>,
}

/// Where a test's rows are.
enum Database {
    /// On the server of all tests; gone with this value.
    Shared(TestDatabase),
    /// On a server of the test's own.
    Own(String),
}

impl Database {
    fn url(&self) -> &str {
        match self {
            Self::Shared(database) => database.url(),
            Self::Own(url) => url,
        }
    }
}

impl Api {
    pub async fn start() -> Self {
        Self::with(Wish::default()).await
    }

    pub async fn with_settings(change: fn(&mut Settings)) -> Self {
        Self::with(Wish { settings: Some(change), ..Wish::default() }).await
    }

    pub async fn with(wish: Wish) -> Self {
        let database = match wish.database_url {
            Some(url) => Database::Own(url),
            None => Database::Shared(TestDatabase::create().await.unwrap()),
        };
        let pool = db::connect(database.url(), 16).await.unwrap();
        db::migrate(&pool).await.unwrap();
        let redis_url = match wish.redis_url {
            Some(url) => url,
            None => shared_redis().await.to_owned(),
        };
        let random = || format!("test:{}:", hex::encode(rand::random::<[u8; 8]>()));
        let prefix = wish.redis_prefix.unwrap_or_else(random);
        let redis = Client::open(&redis_url, Keys::new(prefix)).unwrap();
        let blobs = Arc::new(tempfile::tempdir().unwrap());
        let rpc_url = wish.rpc_url.unwrap_or_else(|| "http://127.0.0.1:9".to_owned());
        Self::serve(pool, (redis_url, redis), blobs, Arc::new(database), &rpc_url, wish.settings).await
    }

    /// Where its rows are.
    pub fn database_url(&self) -> &str {
        self.database.url()
    }

    /// Another instance on the same database, Redis and contents.
    pub async fn beside(&self) -> Self {
        let redis = Client::open(&self.redis_url, self.redis.keys().clone()).unwrap();
        let pool = db::connect(self.database.url(), 16).await.unwrap();
        let redis = (self.redis_url.clone(), redis);
        Self::serve(pool, redis, self.blobs.clone(), self.database.clone(), "http://127.0.0.1:9", None).await
    }

    async fn serve(
        pool: PgPool,
        (redis_url, redis): (String, Client),
        blobs: Arc<tempfile::TempDir>,
        database: Arc<Database>,
        rpc_url: &str,
        change: Option<fn(&mut Settings)>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut settings = Settings {
            signin_domains: vec![address.to_string()],
            max_blob_bytes: 4 * 1024 * 1024,
            // Tests are quicker than users.
            limits: Limits { users: None, nodes: None, readers: None },
            ..Settings::default()
        };
        if let Some(change) = change {
            change(&mut settings);
        }
        let app = app(&pool, &redis, &blobs, rpc_url, settings).await;
        let (router, router_description) = http::router(app.clone()).unwrap();
        let background = background::spawn(&app);
        let stop = app.shutdown.clone();
        let limits = server::Limits { max_connections: 10_000, header_timeout: Duration::from_secs(10) };
        let server = tokio::spawn(server::serve(listener, router, limits, stop)).abort_handle();
        Self {
            url: format!("http://{address}"),
            app,
            pool,
            redis,
            redis_url,
            client: reqwest::Client::new(),
            router_description,
            blobs,
            background,
            server,
            database,
        }
    }

    pub fn request(&self, method: Method, path: &str, user: Option<&User>) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match user {
            Some(user) => request.bearer_auth(&user.token),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.request(Method::GET, path, None)).await
    }

    pub async fn post(&self, user: &User, path: &str, body: Value) -> Reply {
        Reply::of(self.request(Method::POST, path, Some(user)).json(&body)).await
    }

    pub async fn put_blob(&self, user: &User, bytes: impl Into<reqwest::Body>) -> Reply {
        Reply::of(self.request(Method::PUT, "/lit-compute/blobs", Some(user)).body(bytes)).await
    }

    /// A sign-in message for `signer` with a fresh nonce.
    pub async fn message(&self, signer: &PrivateKeySigner) -> Message {
        let reply = Reply::of(self.request(Method::POST, "/lit-compute/auth/nonce", None)).await;
        Message {
            domain: self.url.trim_start_matches("http://").to_owned(),
            address: signer.address(),
            chain_id: CHAIN_ID,
            nonce: reply.text("nonce"),
            issued_at: clock::now(),
            more: String::new(),
        }
    }

    pub async fn verify(&self, message: &str, signer: &PrivateKeySigner) -> Reply {
        let signature = signer.sign_message_sync(message.as_bytes()).unwrap().to_string();
        let body = json!({ "message": message, "signature": signature });
        Reply::of(self.request(Method::POST, "/lit-compute/auth/verify", None).json(&body)).await
    }

    pub async fn sign_in(&self, signer: PrivateKeySigner) -> User {
        let message = self.message(&signer).await.to_string();
        let reply = self.verify(&message, &signer).await.ok();
        User { token: reply.text("token"), signer }
    }

    pub async fn user(&self) -> User {
        self.sign_in(PrivateKeySigner::random()).await
    }

    /// A requester with a free deposit of a million.
    pub async fn requester(&self) -> User {
        let user = self.user().await;
        self.deposit(user.address(), 1_000_000).await;
        user
    }

    pub async fn deposit(&self, owner: Address, free: u128) {
        let account = EscrowAccount { free: free.into(), ..EscrowAccount::default() };
        let accounts = BTreeMap::from([((owner, Address::ZERO), account)]);
        db::escrow::save_accounts(&mut self.pool.acquire().await.unwrap(), &accounts).await.unwrap();
    }

    /// Registers `node` on the chain.
    pub async fn stake(&self, node: Address, stake: u128) {
        let registered = RegistryNode {
            node_id: node_id(node),
            public_key: PUBLIC_KEY.to_vec(),
            payout: node,
            capacity: 4,
            operations: vec![OPERATION.to_owned(), "decrypt".to_owned()],
            uri: String::new(),
            stake: stake.into(),
            unbonding: Amount::ZERO,
            unbond_end: None,
            record: BondRecord::default(),
        };
        let nodes = BTreeMap::from([(node, registered)]);
        db::registry::save_nodes(&mut self.pool.acquire().await.unwrap(), &nodes).await.unwrap();
    }

    /// A node that is staked and has registered with the API.
    pub async fn node(&self) -> User {
        let user = self.user().await;
        self.stake(user.address(), MIN_STAKE).await;
        self.post(&user, "/lit-compute/nodes/register", registration(user.address())).await.ok();
        user
    }

    /// Stores `bytes`.
    pub async fn blob(&self, bytes: &'static [u8]) -> ContentId {
        let user = self.user().await;
        self.put_blob(&user, bytes).await.ok().text("cid").parse().unwrap()
    }

    /// Opens a job on the chain, as the indexer would write it, and has its input stored here.
    pub async fn open(&self, order: &Order, spec: &JobSpec) -> B256 {
        let input = spec.inputCID.parse().unwrap();
        let mut db = self.pool.acquire().await.unwrap();
        db::blob::insert(&mut db, input, 5, order.requester, clock::now()).await.unwrap();
        self.open_without_input(order, spec).await
    }

    /// Opens a job on the chain, as the indexer would write it.
    pub async fn open_without_input(&self, order: &Order, spec: &JobSpec) -> B256 {
        let job_id = job_id(order);
        let job = EscrowJob {
            requester: order.requester,
            opened: Some(Opened {
                order: order.clone(),
                spec: spec.clone(),
                spec_valid: true,
                when: Moment { block: 1, tx: keccak256(job_id), at: clock::now() },
            }),
            state: EscrowState::Open,
            cancel_at: None,
            result: None,
            dispute: None,
            resolution: None,
            closed_when: None,
        };
        self.save_job(job_id, job).await;
        job_id
    }

    pub async fn save_job(&self, job_id: B256, job: EscrowJob) {
        use db::outbox::{Entity, Source, append};
        let mut tx = self.pool.begin().await.unwrap();
        db::escrow::save_jobs(&mut tx, &[(job_id, &job)]).await.unwrap();
        append(&mut tx, Source::Chain, Entity::Job(job_id), "job.opened", clock::now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// An open job that any node can do.
    pub async fn open_job(&self) -> B256 {
        let spec = spec(ContentId::of(b"input"));
        self.open(&order(Address::repeat_byte(0xaa), &spec), &spec).await
    }

    pub async fn claim(&self, node: &User) -> Reply {
        self.post(node, "/lit-compute/jobs/claim", json!({})).await
    }

    /// Everything that the API has written, to see that it wrote nothing.
    pub async fn written(&self) -> Value {
        sqlx::query_scalar(
            "select jsonb_build_object(
                'blob', (select jsonb_agg(t order by cid) from blob t),
                'job_submission', (select jsonb_agg(t order by job_id) from job_submission t),
                'signed_order', (select jsonb_agg(t order by job_id) from signed_order t),
                'job_work', (select jsonb_agg(t order by job_id) from job_work t),
                'job_attempt', (select jsonb_agg(t order by job_id, fence) from job_attempt t),
                'job_completion', (select jsonb_agg(t order by job_id) from job_completion t),
                'payment_due', (select jsonb_agg(t order by job_id) from payment_due t),
                'node_profile', (select jsonb_agg(t order by node) from node_profile t),
                'session', (select count(*) from session))",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    /// What Redis holds under `key`.
    pub async fn in_redis(&self, key: &str) -> Value {
        market::redis::dump::dump(&self.redis).await.unwrap().remove(key).unwrap_or_default()["value"].take()
    }

    /// What `redis-cli` answers, as another application's operator would see it.
    pub async fn redis_cli(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new("redis-cli");
        let output = command.arg("-u").arg(&self.redis_url).args(arguments).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub async fn sql(&self, statement: &'static str) -> u64 {
        sqlx::query(statement).execute(&self.pool).await.unwrap().rows_affected()
    }
}

/// Someone who signed in.
pub struct User {
    pub token: String,
    pub signer: PrivateKeySigner,
}

impl User {
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    pub fn name(&self) -> String {
        self.address().to_checksum(None)
    }

    /// The body of a completion with a receipt of this node.
    pub fn completion(&self, job_id: B256, fence: i64, output: ContentId, price: u128) -> Value {
        let digest = typed_data::receipt_digest(job_id, price, output.digest(), &deployment().domain());
        let signature = self.signer.sign_hash_sync(&digest).unwrap();
        json!({
            "fence": fence,
            "outputCID": output,
            "price": price.to_string(),
            "receiptSignature": signature.to_string(),
        })
    }
}

/// A sign-in message whose parts a test can change.
pub struct Message {
    pub domain: String,
    pub address: Address,
    pub chain_id: u64,
    pub nonce: String,
    pub issued_at: DateTime<Utc>,
    pub more: String,
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { domain, address, chain_id, nonce, issued_at, more } = self;
        write!(
            f,
            "{domain} wants you to sign in with your Ethereum account:\n{}\n\n\nURI: http://{domain}\nVersion: 1\n\
             Chain ID: {chain_id}\nNonce: {nonce}\nIssued At: {}{more}",
            address.to_checksum(None),
            issued_at.format("%Y-%m-%dT%H:%M:%SZ")
        )
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Reply {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.timeout(Duration::from_secs(60)).send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Self { status, headers, body }
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.is_success(), "{self:?}");
        self
    }

    #[track_caller]
    pub fn text(&self, field: &str) -> String {
        self.body[field].as_str().unwrap_or_else(|| panic!("no {field} in {self:?}")).to_owned()
    }

    #[track_caller]
    pub fn int(&self, field: &str) -> i64 {
        self.body[field].as_i64().unwrap_or_else(|| panic!("no {field} in {self:?}"))
    }

    #[track_caller]
    pub fn job_id(&self) -> B256 {
        self.text("jobId").parse().unwrap()
    }

    /// It is a whole problem with this code, in this field.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str, field: Option<&str>) {
        assert_eq!(self.body["code"], code, "{self:?}");
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], status, "{self:?}");
        assert_eq!(self.body["type"], format!("urn:littoral:problem:{code}"), "{self:?}");
        assert!(self.body["title"].is_string() && self.body["detail"].is_string(), "{self:?}");
        assert_eq!(self.body.get("field").and_then(Value::as_str), field, "{self:?}");
    }
}

pub fn assigner() -> PrivateKeySigner {
    devnet::DEV_KEYS[3].signer()
}

pub fn deployment() -> Deployment {
    Deployment {
        chain_id: CHAIN_ID,
        escrow: Address::repeat_byte(0xe5),
        registry: Address::repeat_byte(0x4e),
        deploy_block: 0,
        escrow_params: EscrowParams {
            thaw_period: 30,
            owner: Address::repeat_byte(0x0a),
            max_challenge_window: 30 * 24 * 3600,
            arbiter_period: 3600,
        },
        registry_params: RegistryParams {
            min_stake: MIN_STAKE.into(),
            unbonding_period: 60 * 24 * 3600,
            bond: 1_u128.into(),
            owner: Address::repeat_byte(0x0a),
        },
        confirmation: Policy::local(),
        tokens: BTreeMap::from([("TEST".to_owned(), Address::repeat_byte(0x70))]),
    }
}

pub fn node_id(node: Address) -> B256 {
    keccak256(node)
}

pub fn registration(node: Address) -> Value {
    json!({
        "walletAddress": node.to_checksum(None),
        "publicKey": format!("0x{}", hex::encode(PUBLIC_KEY)),
        "capabilities": { "maxConcurrentJobs": 4, "supportedOperations": [OPERATION, "decrypt"] },
    })
}

pub fn spec(input: ContentId) -> JobSpec {
    JobSpec { inputCID: input.to_string(), operation: OPERATION.to_owned(), params: String::new() }
}

pub fn in_secs(secs: i64) -> u64 {
    u64::try_from((clock::now() + TimeDelta::seconds(secs)).timestamp()).unwrap()
}

/// An open order of 1,000 wei, different each time.
pub fn order(requester: Address, spec: &JobSpec) -> Order {
    Order {
        requester,
        maxPrice: 1_000,
        assigner: assigner().address(),
        specHash: typed_data::spec_hash(spec),
        deadline: in_secs(3600),
        challengeWindow: 60,
        nonce: rand::random(),
        ..Order::default()
    }
}

pub fn job_id(order: &Order) -> B256 {
    typed_data::job_id(order, &deployment().domain())
}

pub fn submission(order: &Order, spec: &JobSpec) -> Value {
    json!({ "order": OrderJson::from(order), "spec": SpecJson::from(spec) })
}

/// Sets how far the indexer has read: to block `number`, mined at `mined_secs`.
pub async fn set_cursor(api: &Api, number: i64, mined_secs: u64) {
    sqlx::query("delete from chain_cursor").execute(&api.pool).await.unwrap();
    sqlx::query(
        "with block as (
            insert into chain_block (hash, number, parent_hash, mined_at, canonical)
            values (decode(lpad($1::text, 64, '0'), 'hex'), $1, decode(repeat('00', 32), 'hex'), to_timestamp($2), true)
            returning hash)
         insert into chain_cursor (chain_id, escrow, registry, block_number, block_hash, undo_above, epoch, final_number)
         select 31337, decode(repeat('e5', 20), 'hex'), decode(repeat('4e', 20), 'hex'), $1, hash, 0, 1, $1 from block",
    )
    .bind(number)
    .bind(f64::from(u32::try_from(mined_secs).unwrap()))
    .execute(&api.pool)
    .await
    .unwrap();
}

/// Waits until `check` says something, at most ten seconds.
pub async fn eventually<T>(mut check: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(value) = check().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not happen within ten seconds")
}
