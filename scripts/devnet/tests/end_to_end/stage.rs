//! A marketplace with a staked node at work and a requester with money in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use age::x25519::Identity;
use alloy::primitives::{Address, B256, U256};
use alloy::providers::ext::AnvilApi;
use devnet::{Chain, Littoral, Market, MarketOptions, NodeOptions, Service, TestDatabase};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// What a job in these tests costs, in wei or in units of the test token.
pub const PRICE: u64 = 1_000_000_000_000_000;
/// Longer than any job takes here, leases that have to run out included.
const WITHIN: Duration = Duration::from_secs(180);
/// The statuses that a job passes through on its way to being paid, in order.
const COURSE: [&str; 7] = ["awaiting_escrow", "pending", "active", "completed", "settling", "challengeable", "paid"];

/// Everything that one test needs. Prints the tails of all logs when the test fails.
pub struct Stage {
    pub market: Market,
    pub chain: Chain,
    pub requester: Littoral,
    pub operator: Littoral,
    dir: TempDir,
    // Dropped after the processes that use it.
    _database: TestDatabase,
}

/// How soon results are paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// By the order, if no voucher is there at once.
    Orders,
    /// By vouchers; orders wait for one for as long as in earnest.
    Vouchers,
}

impl Stage {
    /// Starts it all.
    pub async fn new() -> Self {
        Self::at(Pace::Orders).await
    }

    /// Starts it all, with a settler that waits for vouchers or does not.
    pub async fn at(pace: Pace) -> Self {
        let mut settler = vec!["SETTLER_INTERVAL", "SETTLER_MAX_WAIT", "SETTLER_VOUCHER_WAIT"];
        settler.extend((pace == Pace::Orders).then_some("SETTLER_VOUCHER_GRACE"));
        let database = TestDatabase::create().await.unwrap();
        let dir = devnet::paths::scratch_dir("market").unwrap();
        let market = Market::start(MarketOptions {
            dir: dir.path().to_owned(),
            database_url: Some(database.url().to_owned()),
            // Slow enough to be caught at work.
            node: NodeOptions { command: Some("sh -c 'sleep 1; cat'".to_owned()) },
            // Payments need not wait long for others: there are none.
            env: settler.into_iter().map(|name| (Service::Settler, name, "0.3".to_owned())).collect(),
            ..MarketOptions::default()
        })
        .await
        .unwrap();
        let chain = market.chain().unwrap();
        let (requester, operator) = (market.requester().unwrap(), market.operator().unwrap());
        let mut stage = Self { market, chain, requester, operator, dir, _database: database };
        stage.set_the_scene().await;
        stage
    }

    async fn set_the_scene(&mut self) {
        let register = ["node", "register", "--capacity", "4", "--ops", "encrypt,decrypt,command"];
        self.operator.run(register).await.unwrap();
        let stake = self.chain.min_stake().await.unwrap().to_string();
        self.operator.run(["node", "stake", &stake]).await.unwrap();
        self.requester.run(["deposit", &(U256::from(PRICE) * U256::from(100)).to_string()]).await.unwrap();
        self.market.start_service(Service::Node).await.unwrap();
    }

    /// Transactions wait from now on.
    pub async fn hold_blocks(&self) {
        self.chain.provider().anvil_set_auto_mine(false).await.unwrap();
    }

    /// What waited is mined, and everything at once from now on.
    pub async fn release_blocks(&self) {
        self.chain.provider().anvil_set_auto_mine(true).await.unwrap();
        self.chain.provider().evm_mine(None).await.unwrap();
    }

    /// The address of the node.
    pub fn node(&self) -> Address {
        self.market.keys().node.address()
    }

    /// A file with this content.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The arguments of `submit` for one job at [`PRICE`], to be completed.
    pub fn submit_args(file: &Path, operation: &str) -> Vec<String> {
        ["submit", file.to_str().unwrap(), "--op", operation, "--price", &PRICE.to_string()].map(str::to_owned).to_vec()
    }

    /// Submits a job for the node, with `more` arguments; returns it.
    pub async fn submit(&self, operation: &str, content: &[u8], more: &[&str]) -> B256 {
        let input = self.file("input", content);
        let mut args = Self::submit_args(&input, operation);
        args.extend(["--node".to_owned(), self.node().to_string()]);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.requester.run(args).await.unwrap().text("jobId").unwrap().parse().unwrap()
    }

    /// Has `content` encrypted to a new key by the node, with `more` arguments for `submit`; waits until that is paid,
    /// fetches the result, and returns the job once it decrypts to exactly `content`.
    pub async fn encrypt(&self, content: &[u8], more: &[&str]) -> B256 {
        let identity = Identity::generate();
        let input = self.file("input", content);
        let mut args = Self::submit_args(&input, "encrypt");
        args.extend(["--to".to_owned(), identity.to_public().to_string()]);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let job: B256 = self.requester.run(args).await.unwrap().text("jobId").unwrap().parse().unwrap();
        self.requester.run(["watch", &job.to_string()]).await.unwrap();

        let output = self.dir.path().join("output");
        let out = output.to_str().unwrap();
        self.requester.run(["fetch", &job.to_string(), "-o", out]).await.unwrap();
        let decrypted = age::decrypt(&identity, &std::fs::read(&output).unwrap()).unwrap();
        std::fs::remove_file(&output).unwrap();
        assert!(decrypted == content, "the result of {job} does not decrypt to its input");
        job
    }

    /// `GET` of one of the API's routes.
    pub async fn get(&self, route: &str) -> Option<Value> {
        let url = format!("{}{route}", self.market.endpoints().api_url);
        let answer = reqwest::get(url).await.ok()?;
        if answer.status().is_success() { answer.json().await.ok() } else { None }
    }

    /// The jobs that the API knows.
    pub async fn known_jobs(&self) -> BTreeSet<B256> {
        let page = self.get("/lit-compute/jobs?limit=100").await.unwrap_or_default();
        let jobs = page["jobs"].as_array().cloned().unwrap_or_default();
        jobs.iter().filter_map(|job| job["jobId"].as_str()?.parse().ok()).collect()
    }

    /// Waits until the API knows a node with a stake.
    pub async fn node_is_known(&self) {
        let started = Instant::now();
        loop {
            let page = self.get("/lit-compute/nodes").await.unwrap_or_default();
            let nodes = page["nodes"].as_array().cloned().unwrap_or_default();
            if nodes.iter().any(|node| node["stake"].as_str().is_some_and(|stake| stake != "0")) {
                return;
            }
            assert!(started.elapsed() < WITHIN, "no node has a stake: {page}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for a job that is not among `known`.
    pub async fn new_job(&self, known: &BTreeSet<B256>) -> B256 {
        let started = Instant::now();
        loop {
            if let Some(job) = self.known_jobs().await.difference(known).next() {
                return *job;
            }
            assert!(started.elapsed() < WITHIN, "no job was announced");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the job is at `status` or beyond, and says where it is.
    pub async fn reaches(&self, job: B256, status: &str) -> String {
        let goal = COURSE.iter().position(|step| *step == status).unwrap();
        let started = Instant::now();
        let mut last = Value::Null;
        loop {
            if let Some(answer) = self.get(&format!("/lit-compute/jobs/{job}")).await {
                last = answer;
            }
            let now = last["status"].as_str().unwrap_or_default().to_owned();
            if COURSE.iter().position(|step| *step == now).is_some_and(|at| at >= goal) {
                return now;
            }
            assert!(started.elapsed() < WITHIN, "{job} did not become {status}: {last}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The chain's word that the job was paid exactly once, and the API's that it was.
    pub async fn assert_paid_once(&self, job: B256) {
        self.reaches(job, "paid").await;
        let payments = self.chain.events("JobPaid", job).await.unwrap();
        assert_eq!(payments.len(), 1, "{job} was paid {} times", payments.len());
        let answer = self.get(&format!("/lit-compute/jobs/{job}")).await.unwrap();
        assert_eq!(answer["status"], "paid");
        assert_eq!(answer["closedTx"], payments[0].transaction_hash.unwrap().to_string());
    }

    /// The nonce of the job's order, and its token.
    async fn nonce(&self, job: B256) -> (u64, String) {
        let answer = self.get(&format!("/lit-compute/jobs/{job}")).await.unwrap();
        let text = |name: &str| answer["order"][name].as_str().unwrap().to_owned();
        (text("nonce").parse().unwrap(), text("token"))
    }

    /// The API's word that the job was paid, and the chain's that a voucher did it.
    pub async fn assert_paid_by_voucher(&self, job: B256) {
        self.reaches(job, "paid").await;
        assert!(self.chain.events("JobPaid", job).await.unwrap().is_empty(), "{job} was settled by itself");
        let (nonce, token) = self.nonce(job).await;
        let covered = self.covered_nonce(&token).await;
        assert!(nonce <= covered, "{job} has the nonce {nonce}, redeemed vouchers cover up to {covered}");
    }

    /// Up to which nonce the chain has redeemed vouchers of the requester for the node in the token.
    async fn covered_nonce(&self, token: &str) -> u64 {
        let account = self.requester.run(["account", "--token", token]).await.unwrap();
        let channels = account.result().unwrap()["channels"].as_array().cloned().unwrap_or_default();
        let node = self.node().to_string();
        let channel = channels.iter().find(|channel| channel["node"] == node);
        channel.map_or(0, |channel| channel["coveredNonce"].as_str().unwrap().parse().unwrap())
    }

    /// Redis says so too, whatever happened to it.
    pub async fn assert_redis_says_paid(&self, job: B256) {
        let (job, key) = (job.to_string(), format!("job:{job}:status"));
        self.redis_until(&["hget", &key, "status"], |answer| answer == "completed").await;
        self.redis_until(&["zrange", "payments:completed", "0", "-1"], |answer| answer.contains(&job)).await;
        assert_eq!(self.redis(&["zscore", "jobs:pending", &job]).await, "", "{job} is still in the queue");
    }

    /// What `redis-cli` answers.
    pub async fn redis(&self, command: &[&str]) -> String {
        let program = devnet::paths::program("redis-cli", "redis-tools").unwrap();
        let url = &self.market.endpoints().redis_url;
        let output = Command::new(program).args(["-u", url]).args(command).output().await.unwrap();
        assert!(output.status.success(), "redis-cli {command:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until `redis-cli` answers with something that satisfies `expected`.
    pub async fn redis_until(&self, command: &[&str], expected: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let answer = self.redis(command).await;
            if expected(&answer) {
                return answer;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "redis-cli {command:?} says {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in Service::ALL {
                if let Ok(process) = self.market.process(service) {
                    eprintln!("──── {} ────\n{}", service.name(), process.log_tail());
                }
            }
        }
    }
}
