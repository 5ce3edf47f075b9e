//! Instances of the API as processes, with everything that they share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use alloy::primitives::{Address, B256, keccak256};
use chrono::TimeDelta;
use devnet::{Anvil, AnvilOptions, DEV_KEYS, DeployParams, Deployment, Redis, RedisOptions, TestDatabase, ports};
use littoral_api::realtime::{Tokens, Topic};
use market::db::outbox::{self, Entity, Source};
use market::fold::{BondRecord, EscrowAccount, RegistryNode};
use market::redis::{Client, keys::Keys};
use market::{clock, db};
use sqlx::PgPool;
use tokio::process::{Child, Command};

/// What the instances share, but for the chain's indexer. Rows of the chain are put where the indexer would put them.
pub struct World {
    redis: Redis,
    pub pool: PgPool,
    manifest: PathBuf,
    anvil: Anvil,
    database: TestDatabase,
    dir: tempfile::TempDir,
}

/// An instance; it is killed when dropped.
pub struct Instance {
    pub url: String,
    pub process: Child,
}

impl World {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
        let manifest = dir.path().join("deployment.json");
        let deployed = Deployment::deploy_fast(anvil.rpc_url(), DEV_KEYS[0], &manifest, DeployParams::default());
        deployed.await.unwrap();
        let database = TestDatabase::create().await.unwrap();
        let pool = db::connect(database.url(), 4).await.unwrap();
        db::migrate(&pool).await.unwrap();
        let redis = Redis::start(RedisOptions { persistent: true, ..RedisOptions::default() }).await.unwrap();
        Self { redis, pool, manifest, anvil, database, dir }
    }

    /// Another instance, once it answers.
    pub async fn serve(&mut self) -> Instance {
        let port = ports::free_port().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let process = Command::new(env!("CARGO_BIN_EXE_littoral-api"))
            .arg("serve")
            .env("BIND", format!("127.0.0.1:{port}"))
            .env("DATABASE_URL", self.database.url())
            .env("REDIS_URL", self.redis.url())
            .env("RPC_URL", self.anvil.rpc_url())
            .env("LITTORAL_DEPLOYMENT", &self.manifest)
            .env("BLOB_STORE", format!("file://{}", self.dir.path().join("blobs").display()))
            .env("ASSIGNER_KEY", DEV_KEYS[3].secret())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        for _ in 0..400 {
            if reqwest::get(format!("{url}/health/live")).await.is_ok_and(|answer| answer.status().is_success()) {
                return Instance { url, process };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{url} does not answer");
    }

    /// A token that names `topics`.
    pub async fn token(&self, topics: &[Topic]) -> String {
        let until = clock::now() + TimeDelta::hours(1);
        let tokens = Tokens::load(&self.pool).await.unwrap();
        tokens.sign(DEV_KEYS[4].address(), topics.iter().copied().collect(), until).unwrap()
    }

    /// What signs tokens.
    pub async fn token_key(&self) -> Vec<u8> {
        db::secret::realtime(&mut self.pool.acquire().await.unwrap(), rand::random()).await.unwrap()
    }

    /// Notes that something happened to a job, as whoever changes it does.
    pub async fn happen(&self, job: B256, event: &str) {
        let mut tx = self.pool.begin().await.unwrap();
        outbox::append(&mut tx, Source::Work, Entity::Job(job), event, clock::now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Waits until a stream holds `count` messages.
    pub async fn told(&self, stream: &str, count: u64) {
        for _ in 0..600 {
            let held: u64 = redis::from_redis_value(self.command(&["XLEN", stream]).await).unwrap();
            if held >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{stream} does not get its {count} messages");
    }

    /// Sends Redis a command.
    pub async fn command(&self, words: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.redis.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.unwrap()
    }

    /// Our way to Redis.
    pub fn client(&self) -> Client {
        Client::open(self.redis.url(), Keys::default()).unwrap()
    }

    /// The process of Redis.
    pub fn redis(&mut self) -> &mut devnet::Process {
        self.redis.process()
    }

    pub async fn deposit(&self, owner: Address, free: u128) {
        let account = EscrowAccount { free: free.into(), ..EscrowAccount::default() };
        let accounts = BTreeMap::from([((owner, Address::ZERO), account)]);
        db::escrow::save_accounts(&mut self.pool.acquire().await.unwrap(), &accounts).await.unwrap();
    }

    /// Registers `node` on the chain, with a stake.
    pub async fn stake(&self, node: Address) {
        let registered = RegistryNode {
            node_id: keccak256(node),
            public_key: vec![0x11; 32],
            payout: node,
            capacity: 4,
            operations: vec!["encrypt".to_owned()],
            uri: String::new(),
            stake: 10_u128.pow(21).into(),
            unbonding: market::Amount::ZERO,
            unbond_end: None,
            record: BondRecord::default(),
        };
        let nodes = BTreeMap::from([(node, registered)]);
        db::registry::save_nodes(&mut self.pool.acquire().await.unwrap(), &nodes).await.unwrap();
    }
}

impl Instance {
    /// Asks it to end.
    pub fn terminate(&self) {
        let pid = i32::try_from(self.process.id().unwrap()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::TERM)
            .unwrap();
    }

    /// The value of one of its metrics; zero if it has none of that name.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.url)).await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }
}
