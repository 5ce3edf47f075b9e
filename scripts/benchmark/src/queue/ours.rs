//! The queue on a database and a Redis prefix of its own, driven as the HTTP handlers drive it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, ensure};
use chrono::TimeDelta;
use devnet::{Postgres, Redis};
use futures::future::try_join_all;
use littoral_api::app::{App, Parts, Settings};
use littoral_api::background;
use littoral_api::jobs::grant::{self, Ask};
use littoral_api::jobs::{self, Draft, Handed, SignedDraft};
use littoral_api::realtime::Tokens;
use littoral_api::serve::install_metrics;
use littoral_api::store::BlobStore;
use littoral_api::wire::HexBytes;
use market::abi::{JobSpec, Order};
use market::confirmation::Policy;
use market::db::node_profile::{self, Profile};
use market::db::order::Terms;
use market::deployment::{Deployment, EscrowParams, RegistryParams};
use market::fold::{BondRecord, EscrowAccount, RegistryNode};
use market::redis::Client;
use market::redis::keys::Keys;
use market::{Amount, ContentId, clock, db, rpc, typed_data};
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use tokio::task::JoinSet;
use url::Url;

use crate::figures::quotient;

pub const OPERATION: &str = "encrypt";
const PRICE: u128 = 1000;
const REQUESTERS: usize = 20;
/// Nodes that share the work.
const NODES: usize = 4;
/// Orders handed in at once.
const BULK: usize = 500;
/// Requests of orders that are under way at once.
const SUBMITTERS: usize = 2;
/// What is the answer to everything.
const OUTPUT: &[u8] = b"output";

pub struct Ours {
    pub app: App,
    pub pool: PgPool,
    pub redis: Client,
    pub nodes: Vec<PrivateKeySigner>,
    drafts: Mutex<Vec<SignedDraft>>,
    jobs: usize,
    background: JoinSet<()>,
}

fn metrics() -> anyhow::Result<PrometheusHandle> {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(metrics) = METRICS.get() {
        return Ok(metrics.clone());
    }
    let metrics = install_metrics()?;
    Ok(METRICS.get_or_init(|| metrics).clone())
}

fn deployment() -> anyhow::Result<Deployment> {
    Ok(Deployment {
        chain_id: 31337,
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
            min_stake: Amount::from(1_u128),
            unbonding_period: 60 * 24 * 3600,
            bond: Amount::from(1_u128),
            owner: Address::repeat_byte(0x0a),
        },
        confirmation: Policy::local(),
        tokens: BTreeMap::new(),
    })
}

fn signer(role: &str, n: usize) -> anyhow::Result<PrivateKeySigner> {
    PrivateKeySigner::from_bytes(&keccak256(format!("littoral bench {role} {n}"))).context("a hash that is no key")
}

impl Ours {
    /// A queue of its own, and `jobs` orders that are signed and not yet handed in.
    pub async fn start(
        postgres: &Postgres,
        redis: &Redis,
        name: &str,
        jobs: usize,
        blobs: PathBuf,
    ) -> anyhow::Result<Self> {
        let pool = db::connect(postgres.create_database(name).await?.as_str(), 24).await?;
        db::migrate(&pool).await?;
        let client = Client::open(redis.url(), Keys::new(format!("{name}:")))?;
        std::fs::create_dir_all(&blobs)?;
        let blobs = Url::from_directory_path(&blobs).ok().context("a directory without a URL")?;
        let app = App::new(Parts {
            tokens: Tokens::load(&pool).await?,
            pool: pool.clone(),
            redis: client.clone(),
            provider: rpc::provider(&"http://127.0.0.1:9".parse()?),
            deployment: deployment()?,
            assigner: signer("assigner", 0)?,
            store: BlobStore::open(&blobs)?,
            settings: Settings { lease: TimeDelta::hours(1), ..Settings::default() },
            metrics: metrics()?,
        });
        let nodes = (0..NODES).map(|n| signer("node", n)).collect::<anyhow::Result<Vec<_>>>()?;
        let ours = Self { app, pool, redis: client, nodes, drafts: Mutex::default(), jobs, background: JoinSet::new() };
        ours.prepare().await?;
        let drafts = ours.sign(jobs)?;
        *ours.drafts.lock().unwrap_or_else(PoisonError::into_inner) = drafts;
        Ok(Self { background: background::spawn(&ours.app), ..ours })
    }

    async fn prepare(&self) -> anyhow::Result<()> {
        let (mut db, now) = (self.pool.acquire().await?, clock::now());
        for content in [b"input".as_slice(), OUTPUT] {
            db::blob::insert(&mut db, ContentId::of(content), 6, Address::ZERO, now).await?;
        }
        let mut accounts = BTreeMap::new();
        for n in 0..REQUESTERS {
            let account = EscrowAccount { free: Amount::from(u128::MAX >> 8), ..EscrowAccount::default() };
            accounts.insert((signer("requester", n)?.address(), Address::ZERO), account);
        }
        db::escrow::save_accounts(&mut db, &accounts).await?;
        for node in &self.nodes {
            let registered = RegistryNode {
                node_id: keccak256(node.address()),
                public_key: vec![7; 32],
                payout: node.address(),
                capacity: 1_000_000,
                operations: vec![OPERATION.to_owned()],
                uri: String::new(),
                stake: Amount::from(1_u128),
                unbonding: Amount::ZERO,
                unbond_end: None,
                record: BondRecord::default(),
            };
            db::registry::save_nodes(&mut db, &BTreeMap::from([(node.address(), registered)])).await?;
            let profile = Profile { max_concurrent_jobs: 1_000_000, operations: vec![OPERATION.to_owned()] };
            node_profile::save(&mut db, node.address(), &[7; 32], &profile, now).await?;
        }
        Ok(())
    }

    fn sign(&self, jobs: usize) -> anyhow::Result<Vec<SignedDraft>> {
        let deadline = u64::try_from((clock::now() + TimeDelta::days(1)).timestamp())?;
        let spec = JobSpec {
            inputCID: ContentId::of(b"input").to_string(),
            operation: OPERATION.to_owned(),
            params: String::new(),
        };
        let requesters = (0..REQUESTERS).map(|n| signer("requester", n)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut drafts = Vec::with_capacity(jobs);
        for (requester, nonce) in requesters.iter().cycle().zip(1_u64..).take(jobs) {
            let order = Order {
                requester: requester.address(),
                maxPrice: PRICE,
                assigner: self.app.assigner(),
                specHash: typed_data::spec_hash(&spec),
                deadline,
                challengeWindow: 60,
                nonce,
                ..Order::default()
            };
            let job_id = typed_data::job_id(&order, &self.app.domain);
            let signature = requester.sign_hash_sync(&job_id)?.as_bytes().to_vec();
            let draft = Draft { job_id, order, spec: spec.clone(), terms: Terms::default() };
            drafts.push(SignedDraft::read(draft, signature).map_err(|error| anyhow::anyhow!("{error:?}"))?);
        }
        Ok(drafts)
    }

    fn take_drafts(&self, count: usize) -> Vec<SignedDraft> {
        let mut drafts = self.drafts.lock().unwrap_or_else(PoisonError::into_inner);
        let from = drafts.len().saturating_sub(count);
        drafts.split_off(from)
    }

    async fn keep(&self, drafts: &[SignedDraft]) -> anyhow::Result<()> {
        let kept = jobs::keep(&self.app, drafts, clock::now()).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let refused = kept.into_iter().find_map(Result::err);
        ensure!(refused.is_none(), "an order was refused: {refused:?}");
        Ok(())
    }

    /// Hands all orders in: how many a second.
    pub async fn submit(&self) -> anyhow::Result<f64> {
        let started = Instant::now();
        try_join_all((0..SUBMITTERS).map(async |_| {
            loop {
                let drafts = self.take_drafts(BULK);
                if drafts.is_empty() {
                    return Ok::<_, anyhow::Error>(());
                }
                self.keep(&drafts).await?;
            }
        }))
        .await?;
        let rate = quotient(self.jobs, started.elapsed().as_secs_f64());
        // As the server does within two seconds, of which a turn has not many.
        db::statistics::refresh(&mut *self.pool.acquire().await?).await?;
        Ok(rate)
    }

    /// Has all jobs claimed and done, `concurrency` at a time: how many a second.
    pub async fn work(&self, concurrency: usize) -> anyhow::Result<f64> {
        let count = concurrency.div_ceil(NODES);
        let started = Instant::now();
        let done = try_join_all(self.nodes.iter().map(async |node| {
            let mut done = 0;
            loop {
                let leases = self.claim(node.address(), count, 0).await?;
                if leases.is_empty() {
                    return Ok::<_, anyhow::Error>(done);
                }
                done += leases.len();
                self.complete(node, &leases).await?;
            }
        }))
        .await?;
        let seconds = started.elapsed().as_secs_f64();
        let (done, stored) = (done.into_iter().sum::<usize>(), self.completed().await?);
        ensure!(done == self.jobs && stored == self.jobs, "{done} of {} jobs are done, {stored} stored", self.jobs);
        Ok(quotient(done, seconds))
    }

    #[allow(clippy::disallowed_methods)]
    async fn completed(&self) -> anyhow::Result<usize> {
        let count: i64 = sqlx::query_scalar("select count(*) from job_completion").fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    /// Leases for a node: job and fence.
    pub async fn claim(
        &self,
        node: Address,
        count: usize,
        wait_secs: u64,
    ) -> anyhow::Result<Vec<(B256, market::job::Fence)>> {
        let ask = Ask { node, known: None, count };
        let granted = grant::wait(&self.app, ask, Duration::from_secs(wait_secs)).await;
        let granted = granted.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(granted.into_iter().map(|granted| (granted.held.job_id, granted.held.fence)).collect())
    }

    async fn complete(&self, node: &PrivateKeySigner, leases: &[(B256, market::job::Fence)]) -> anyhow::Result<()> {
        let output = ContentId::of(OUTPUT);
        let mut results = Vec::with_capacity(leases.len());
        for (job_id, fence) in leases {
            let digest = typed_data::receipt_digest(*job_id, PRICE, output.digest(), &self.app.domain);
            let receipt_signature = HexBytes(node.sign_hash_sync(&digest)?.as_bytes().to_vec());
            let price = Amount::from(PRICE);
            results.push((*job_id, Handed { fence: *fence, output_cid: output, price, receipt_signature }));
        }
        let done = jobs::complete_all(&self.app, node.address(), results, clock::now()).await;
        let refused = done.map_err(|error| anyhow::anyhow!("{error:?}"))?.into_iter().find_map(Result::err);
        ensure!(refused.is_none(), "a result was refused: {refused:?}");
        Ok(())
    }

    /// From the call that hands an order in to the lease that a waiting node is given, with `held` jobs in the nodes' hands.
    pub async fn assign(&self, held: usize, samples: usize, every: Duration) -> anyhow::Result<Vec<Duration>> {
        while let drafts = self.take_drafts(BULK.min(held))
            && !drafts.is_empty()
        {
            self.keep(&drafts).await?;
            let mut left = drafts.len();
            while left > 0 {
                left -= self.claim(self.nodes[0].address(), left.min(100), 1).await?.len();
            }
            if self.drafts.lock().unwrap_or_else(PoisonError::into_inner).len() <= samples {
                break;
            }
        }
        let (began, times) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(Mutex::new(Vec::new())));
        let waiting = try_join_all(self.nodes.iter().map(async |node| {
            while locked(&times).len() < samples {
                for (job_id, _) in self.claim(node.address(), 1, 1).await? {
                    let now = Instant::now();
                    let began: Option<Instant> = locked(&began).get(&job_id).copied();
                    locked(&times).push(now.duration_since(began.context("a job that nobody handed in")?));
                }
            }
            Ok::<_, anyhow::Error>(())
        }));
        let submitting = async {
            for draft in self.take_drafts(samples) {
                locked(&began).insert(draft.job_id(), Instant::now());
                self.keep(std::slice::from_ref(&draft)).await?;
                tokio::time::sleep(every).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::try_join!(waiting, submitting)?;
        Ok(locked(&times).clone())
    }

    /// Ends what runs in the background.
    pub async fn stop(mut self) {
        self.app.shutdown.cancel();
        while self.background.join_next().await.is_some() {}
        self.pool.close().await;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
