//! A chain with the contracts, a database, the real indexer, and settlers to start and kill. Everything is signed and opened
//! for real; only the API's part, keeping a completion, is done here by the function the API calls.

use std::time::{Duration, Instant};

use alloy::consensus::BlockHeader;
use alloy::network::EthereumWallet;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::ext::AnvilApi;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::{Filter, Log};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{Eip712Domain, SolEvent};
use chrono::TimeDelta;
use devnet::{
    Anvil, AnvilOptions, DEV_KEYS, DeployParams, Deployment, DevKey, Launch, Process, Redis, RedisOptions, TestDatabase,
};
use market::abi::{IJobEscrow, INodeRegistry, JobSpec, Order};
use market::db::escrow;
use market::db::settlement::{self, PendingBatch};
use market::db::work::{self, Completion};
use market::fold::EscrowState;
use market::{Amount, ContentId, clock, job, typed_data};
use sqlx::PgPool;
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(60);
const DEPLOYER: DevKey = DEV_KEYS[0];
/// Who pay for jobs; all but the first by signed orders only.
pub const REQUESTERS: [DevKey; 3] = [DEV_KEYS[1], DEV_KEYS[2], DEV_KEYS[3]];
const REQUESTER: DevKey = REQUESTERS[0];
/// Pays the gas.
pub const SETTLER: DevKey = DEV_KEYS[4];
/// Operators.
pub const NODES: [DevKey; 3] = [DEV_KEYS[5], DEV_KEYS[6], DEV_KEYS[7]];
/// Binds open orders.
pub const ASSIGNER: DevKey = DEV_KEYS[8];

/// How a job is to be.
#[derive(Clone, Copy)]
pub struct Terms {
    pub token: Address,
    pub node: DevKey,
    /// Whether the order leaves its node open.
    pub open: bool,
    pub window_secs: u32,
    /// From the latest block on.
    pub deadline_secs: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Self { token: Address::ZERO, node: NODES[0], open: false, window_secs: 0, deadline_secs: 3600 }
    }
}

/// A job that is open on the chain.
#[derive(Clone)]
pub struct Job {
    pub id: B256,
    pub order: Order,
    pub node: DevKey,
}

pub const MAX_PRICE: u128 = 1_000_000;
pub const PRICE: u128 = 700_000;

pub struct World {
    // In the order in which they must stop.
    pub indexer: Process,
    pub pool: PgPool,
    pub provider: DynProvider,
    pub anvil: Anvil,
    pub deployment: Deployment,
    database: TestDatabase,
    _redis: Redis,
    dir: TempDir,
    pub orders: u64,
    settlers: u32,
    rpc_url: String,
}

impl World {
    pub async fn start() -> Self {
        Self::with(true).await
    }

    /// On a chain that takes nothing back: what is mined is final for good.
    pub async fn start_irrevocable() -> Self {
        Self::with(false).await
    }

    async fn with(reorgs_below_final: bool) -> Self {
        let dir = devnet::paths::scratch_dir("settle").unwrap();
        let (database, anvil, redis) = tokio::try_join!(
            TestDatabase::create(),
            Anvil::start(AnvilOptions::default()),
            Redis::start(RedisOptions::default())
        )
        .unwrap();
        let manifest = dir.path().join("manifest.json");
        let mut deployment =
            Deployment::deploy_fast(anvil.rpc_url(), DEPLOYER, &manifest, DeployParams::default()).await.unwrap();
        deployment.manifest.confirmation.reorgs_below_final = reorgs_below_final;
        deployment.save().unwrap();
        let pool = market::db::connect(database.url(), 5).await.unwrap();
        market::db::migrate(&pool).await.unwrap();
        let indexer =
            Launch::new("indexer", devnet::binary("littoral-indexer").unwrap(), dir.path().join("indexer.log"))
                .arg("run")
                .env("DATABASE_URL", database.url())
                .env("REDIS_URL", redis.url())
                .env("RPC_URL", anvil.rpc_url())
                .env("LITTORAL_DEPLOYMENT", &deployment.path)
                .spawn()
                .unwrap();
        let mut wallet = EthereumWallet::from(DEPLOYER.signer());
        for key in &DEV_KEYS[1..] {
            wallet.register_signer(key.signer());
        }
        let provider = ProviderBuilder::new().wallet(wallet).connect_http(anvil.rpc_url().parse().unwrap()).erased();
        let rpc_url = anvil.rpc_url().to_owned();
        let (orders, settlers) = (0, 0);
        let world = Self {
            indexer,
            pool,
            provider,
            anvil,
            deployment,
            database,
            _redis: redis,
            dir,
            orders,
            settlers,
            rpc_url,
        };
        world.prepare().await;
        world
    }

    /// Deposits for the requester and stakes of the nodes.
    async fn prepare(&self) {
        let escrow = self.escrow();
        let deposit = U256::from(1000 * MAX_PRICE);
        for requester in REQUESTERS {
            self.mined(escrow.deposit(Address::ZERO, deposit).value(deposit).from(requester.address()).send()).await;
        }
        let token = market::abi::IERC20::new(self.token(), &self.provider);
        let chain = devnet::Chain::new(self.anvil.rpc_url(), &self.deployment.manifest).unwrap();
        chain.mint(DEPLOYER, self.token(), REQUESTER.address(), deposit).await.unwrap();
        self.mined(token.approve(*escrow.address(), deposit).from(REQUESTER.address()).send()).await;
        self.mined(escrow.deposit(self.token(), deposit).from(REQUESTER.address()).send()).await;
        let registry = INodeRegistry::new(self.deployment.manifest.registry, &self.provider);
        let stake = U256::from(DeployParams::default().min_stake_wei);
        for node in NODES {
            let id = keccak256(node.address());
            let register = registry
                .register(id, Bytes::from(vec![7; 32]), node.address(), 4, vec!["encrypt".to_owned()], String::new())
                .value(stake)
                .from(node.address());
            self.mined(register.send()).await;
        }
    }

    pub fn escrow(&self) -> IJobEscrow::IJobEscrowInstance<DynProvider> {
        IJobEscrow::new(self.deployment.manifest.escrow, self.provider.clone())
    }

    pub fn token(&self) -> Address {
        self.deployment.manifest.tokens["TEST"]
    }

    pub fn domain(&self) -> Eip712Domain {
        typed_data::domain(self.deployment.manifest.chain_id, self.deployment.manifest.escrow)
    }

    pub async fn mined<T: std::fmt::Debug>(
        &self,
        sent: impl Future<Output = Result<alloy::providers::PendingTransactionBuilder<alloy::network::Ethereum>, T>>,
    ) {
        assert!(sent.await.unwrap().get_receipt().await.unwrap().status());
    }

    /// Opens a job on the chain for each of `terms`, and waits until the indexer has seen them.
    pub async fn open(&mut self, terms: &[Terms]) -> Vec<Job> {
        let now = self.provider.get_block_by_number(Default::default()).await.unwrap().unwrap().header.timestamp();
        let mut jobs = Vec::new();
        for terms in terms {
            self.orders += 1;
            let spec = JobSpec {
                inputCID: ContentId::of(b"input").to_string(),
                operation: "encrypt".to_owned(),
                params: String::new(),
            };
            let order = Order {
                requester: REQUESTER.address(),
                token: terms.token,
                maxPrice: MAX_PRICE,
                node: if terms.open { Address::ZERO } else { terms.node.address() },
                assigner: ASSIGNER.address(),
                specHash: typed_data::spec_hash(&spec),
                deadline: now + terms.deadline_secs,
                challengeWindow: terms.window_secs,
                arbiter: Address::ZERO,
                maxFeeBps: 0,
                nonce: self.orders,
            };
            self.mined(self.escrow().openJob(order.clone(), spec).from(REQUESTER.address()).send()).await;
            jobs.push(Job { id: typed_data::job_id(&order, &self.domain()), order, node: terms.node });
        }
        self.wait("the indexer sees the jobs", async |world| {
            let mut states = Vec::new();
            for job in &jobs {
                states.push(world.state(job).await);
            }
            states.iter().all(|state| *state == Some(EscrowState::Open))
        })
        .await;
        jobs
    }

    /// Keeps the result of each job as the API does when a node completes it.
    pub async fn complete(&self, jobs: &[Job]) {
        for job in jobs {
            self.complete_as(job, job.node.signer()).await;
        }
    }

    /// As [`Self::complete`], with the receipt signed by `signer`.
    pub async fn complete_as(&self, job: &Job, signer: PrivateKeySigner) {
        let (domain, now) = (self.domain(), clock::now());
        let output = ContentId::of(job.id.as_slice());
        let receipt = typed_data::receipt_digest(job.id, PRICE, output.digest(), &domain);
        let open = job.order.node.is_zero();
        let expiry = if open { job.order.deadline } else { 0 };
        let assignment = typed_data::assignment_digest(job.id, job.node.address(), expiry, &domain);
        let assignment = ASSIGNER.signer().sign_hash_sync(&assignment).unwrap().as_bytes().to_vec();
        let completion = Completion {
            fence: job::Fence(1),
            node: job.node.address(),
            output_cid: output.to_string(),
            result_hash: output.digest(),
            price: Amount::from(PRICE),
            receipt_signature: signer.sign_hash_sync(&receipt).unwrap().as_bytes().to_vec(),
            assignment_expiry: expiry,
            assignment_signature: if open { assignment } else { Vec::new() },
            started_at: now - TimeDelta::seconds(1),
            completed_at: now,
        };
        let mut db = self.pool.begin().await.unwrap();
        work::insert_completion(&mut db, job.id, job.order.token, &completion).await.unwrap();
        db.commit().await.unwrap();
    }

    /// A settler that is not started yet.
    pub fn settler(&mut self) -> Launch {
        self.settlers += 1;
        let log = self.dir.path().join(format!("settler-{}.log", self.settlers));
        Launch::new("settler", devnet::binary("littoral-api").unwrap(), log)
            .args(["settle", "--interval", "0.1", "--max-wait", "0.3"])
            .env("DATABASE_URL", self.database.url())
            .env("RPC_URL", &self.rpc_url)
            .env("LITTORAL_DEPLOYMENT", &self.deployment.path)
            .env("SETTLER_KEY", SETTLER.secret())
            .env("RUST_LOG", "info,littoral_api=debug")
    }

    /// Has the settlers that are started from now on speak to the chain through `rpc_url`.
    pub fn speak_through(&mut self, rpc_url: String) {
        self.rpc_url = rpc_url;
    }

    /// Runs `littoral-api settle` with `args` to its end; what it printed.
    pub fn settle(&self, args: &[&str]) -> String {
        let output = std::process::Command::new(devnet::binary("littoral-api").unwrap())
            .arg("settle")
            .args(args)
            .env("DATABASE_URL", self.database.url())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has every balance and every payment recomputed from the chain; fails with what differs.
    pub async fn audit(&self) {
        let mut audit = tokio::process::Command::new(devnet::binary("littoral-api").unwrap());
        audit
            .args(["audit", "--block", "latest"])
            .env("DATABASE_URL", self.database.url())
            .env("RPC_URL", self.anvil.rpc_url())
            .env("LITTORAL_DEPLOYMENT", &self.deployment.path);
        let report = audit.output().await.unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(report.status.success(), "{}\n{}", said(&report.stdout), said(&report.stderr));
    }

    /// Polls until `reached`; fails with the indexer's log if it takes too long.
    pub async fn wait(&mut self, what: &str, reached: impl AsyncFn(&Self) -> bool) {
        let started = Instant::now();
        while !reached(self).await {
            assert!(self.indexer.is_running(), "the indexer ended:\n{}", self.indexer.log_tail());
            if started.elapsed() > PATIENCE {
                for number in 1..=self.settlers {
                    let log = self.dir.path().join(format!("settler-{number}.log"));
                    eprintln!("settler {number}:\n{}", std::fs::read_to_string(log).unwrap_or_default());
                }
                panic!("waited in vain: {what}; the indexer's log says:\n{}", self.indexer.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn wait_paid(&mut self, jobs: &[Job]) {
        self.wait("all jobs are paid", async |world| {
            for job in jobs {
                if world.state(job).await != Some(EscrowState::Paid) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Waits until no batch is pending.
    pub async fn wait_settled(&mut self) {
        self.wait("no batch is pending", async |world| world.pending().await.is_empty()).await;
    }

    /// What the indexer says of a job.
    pub async fn state(&self, job: &Job) -> Option<EscrowState> {
        let mut db = self.pool.acquire().await.unwrap();
        escrow::jobs(&mut db, &[job.id]).await.unwrap().get(&job.id).map(|job| job.state)
    }

    pub async fn pending(&self) -> Vec<PendingBatch> {
        settlement::pending(&mut self.pool.acquire().await.unwrap()).await.unwrap()
    }

    /// State and number of items of every batch, oldest first.
    pub async fn batches(&self) -> Vec<(String, i64)> {
        sqlx::query!(
            r#"select b.state, (select count(*) from settlement_item i where i.batch_id = b.id)
                      + (select count(*) from settlement_voucher v where v.batch_id = b.id) as "items!"
               from settlement_batch b order by b.id"#
        )
        .fetch_all(&self.pool)
        .await
        .unwrap()
        .into_iter()
        .map(|row| (row.state, row.items))
        .collect()
    }

    /// Hashes of all transactions that were ever signed.
    pub async fn signed(&self) -> Vec<B256> {
        sqlx::query_scalar!(
            r#"select tx_hash as "hash: market::db::types::DbHash" from settlement_attempt order by created_at"#
        )
        .fetch_all(&self.pool)
        .await
        .unwrap()
        .into_iter()
        .map(|hash| hash.0)
        .collect()
    }

    /// Why a payment is on hold.
    pub async fn hold(&self, job: &Job) -> Option<String> {
        let id = market::db::types::DbHash(job.id);
        sqlx::query_scalar!("select reason from settlement_hold where job_id = $1", id as _)
            .fetch_optional(&self.pool)
            .await
            .unwrap()
    }

    /// Ends the database session that holds the settler's lead.
    pub async fn end_settlers_lock(&self) {
        let ended = sqlx::query_scalar!(
            r#"select pg_terminate_backend(l.pid) as "ended!" from pg_locks l
               join pg_database d on d.oid = l.database
               where l.locktype = 'advisory' and l.objid = 2 and d.datname = current_database()"#
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        assert_eq!(ended, [true], "one session leads");
    }

    /// The escrow's events of one kind on the canonical chain.
    pub async fn logs<E: SolEvent>(&self) -> Vec<Log<E>> {
        let filter =
            Filter::new().address(self.deployment.manifest.escrow).event_signature(E::SIGNATURE_HASH).from_block(0);
        let logs = self.provider.get_logs(&filter).await.unwrap();
        logs.into_iter().map(|log| log.log_decode().unwrap()).collect()
    }

    /// Asserts that each job was paid once, the right price to the right node, and nothing else was.
    pub async fn assert_paid_once(&self, jobs: &[Job]) {
        let paid = self.logs::<IJobEscrow::JobPaid>().await;
        for job in jobs {
            let logs: Vec<_> = paid.iter().filter(|log| log.inner.jobId == job.id).collect();
            assert_eq!(logs.len(), 1, "job {} is paid once", job.id);
            let event = &logs[0].inner;
            assert_eq!((event.node, event.price, event.token), (job.node.address(), PRICE, job.order.token));
        }
        assert_eq!(paid.len(), jobs.len(), "nothing else is paid");
    }

    /// How many transactions of the settler's account are mined.
    pub async fn nonce(&self) -> u64 {
        self.provider.get_transaction_count(SETTLER.address()).await.unwrap()
    }

    /// How many transactions wait in the node's pool to be mined next.
    pub async fn pending_transactions(&self) -> u64 {
        let status: serde_json::Value = self.provider.raw_request("txpool_status".into(), ()).await.unwrap();
        u64::from_str_radix(status["pending"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    pub async fn mine(&self, blocks: u64) {
        self.provider.anvil_mine(Some(blocks), None).await.unwrap();
    }
}

/// Waits until a process ends by itself.
pub async fn ended(process: &mut Process) {
    let started = Instant::now();
    while process.is_running() {
        assert!(started.elapsed() < PATIENCE, "still running:\n{}", process.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
