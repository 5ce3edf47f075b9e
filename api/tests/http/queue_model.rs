//! The queue against a model of it, from one number each time.
//!
//! A seed makes requesters, nodes and jobs, and a sequence of rounds; in each, some things are done at the same moment by two
//! instances: claims of one job and of many, answers that get lost, completions and failures in time and too late, under right
//! and wrong fences, renewals, reaping, cancelling, redriving, and Redis flushed or behind. The clock is the model's. Whatever
//! the seed: no job is leased twice at one fence nor to two nodes at once, none is lost, no node holds more than it has room for,
//! and in the end everything that a node could do has been done.
//!
//! `LITTORAL_QUEUE_SECS=600` tries seeds for so long, 40 seconds unless given, `LITTORAL_QUEUE_FROM` says from which on;
//! `LITTORAL_QUEUE_SEED=7` runs that one. What is done follows from the seed; what runs first within a round, from the scheduler,
//! except in seeds that are even: those do one thing after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use alloy::{
    primitives::{Address, B256, U256},
    signers::{SignerSync, local::PrivateKeySigner},
};
use chrono::{DateTime, TimeDelta, Utc};
use devnet::{Redis, RedisOptions, TestDatabase};
use futures::future::join_all;
use littoral_api::{
    app::{App, Settings},
    jobs::{
        self, Handed, LeaseRef,
        grant::{self, Ask, Granted},
    },
    wire::{Hash, HexBytes},
};
use market::{
    Amount, ContentId,
    abi::{JobSpec, Order},
    db::{
        self,
        node_profile::{self, MinPrice, Profile},
        order::{Rail, Terms},
        outbox::{self, Entity, Source},
    },
    fold::{BondRecord, EscrowAccount, EscrowJob, EscrowState, Moment, Opened, RegistryNode},
    job::{Fence, MAX_ATTEMPTS, WorkState},
    redis::{Client, keys::Keys, projector::Projector},
    typed_data,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{CHAIN_ID, MIN_STAKE, app, assigner, deployment, job_id, spec};

const LEASE: TimeDelta = TimeDelta::seconds(60);
const PRICE: u128 = 100;
const OPERATIONS: [&str; 2] = ["encrypt", "decrypt"];
/// Where the model's clock begins.
const START: i64 = 1_800_000_000;

struct Node {
    signer: PrivateKeySigner,
    operations: Vec<String>,
    capacity: usize,
    stake: u128,
    min_price: u128,
    /// Leases it knows to hold.
    held: BTreeMap<B256, Fence>,
}

impl Node {
    fn address(&self) -> Address {
        self.signer.address()
    }
}

struct Job {
    order: Order,
    spec: JobSpec,
    terms: Terms,
    rail: Rail,
    /// Highest fence that was given out.
    fence: Fence,
    /// Who has the latest lease, and when it ends if it is not renewed.
    lease: Option<(Address, DateTime<Utc>)>,
    completed: Option<(Address, Fence)>,
    cancelled: bool,
}

/// What one round does.
#[derive(Debug, Clone)]
enum Act {
    Claim { node: usize, count: usize, tells: bool, answer_is_lost: bool },
    Complete { node: usize, job: B256, fence: Fence },
    Fail { node: usize, job: B256, fence: Fence, retryable: bool },
    Renew { node: usize, job: B256, fence: Fence },
    Reap,
    Cancel { job: B256 },
    Redrive { job: B256 },
    Drain,
    FlushRedis,
    FillRedis,
}

enum Outcome {
    Granted(Vec<Granted>),
    Ok,
    Renewed(DateTime<Utc>),
    Refused,
}

/// What became of a lease.
enum Event<'a> {
    Given { node: usize, lease: &'a Granted, tells: bool, is_lost: bool },
    Renewed { node: usize, until: DateTime<Utc> },
    Ended { node: usize, with_result: bool },
}

struct World {
    seed: u64,
    rng: StdRng,
    now: DateTime<Utc>,
    pool: PgPool,
    redis: Client,
    redis_address: String,
    apps: [App; 2],
    nodes: Vec<Node>,
    requesters: Vec<Address>,
    jobs: BTreeMap<B256, Job>,
    next_nonce: u64,
    leased: usize,
    _blobs: Arc<tempfile::TempDir>,
    _database: TestDatabase,
}

impl World {
    async fn new(seed: u64, server: &Redis) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let database = TestDatabase::create().await.unwrap();
        let pool = db::connect(database.url(), 16).await.unwrap();
        db::migrate(&pool).await.unwrap();
        let redis = Client::open(server.url(), Keys::new(format!("model:{seed}:"))).unwrap();
        let blobs = Arc::new(tempfile::tempdir().unwrap());
        let settings = || Settings { lease: LEASE, deadline_margin: TimeDelta::seconds(60), ..Settings::default() };
        let instance = || app(&pool, &redis, &blobs, "http://127.0.0.1:9", settings());
        let apps = [instance().await, instance().await];
        let mut world = Self {
            seed,
            now: DateTime::from_timestamp(START, 0).unwrap(),
            nodes: Vec::new(),
            requesters: (0..rng.random_range(1..6)).map(|_| Address::from(rng.random::<[u8; 20]>())).collect(),
            jobs: BTreeMap::new(),
            next_nonce: 1,
            leased: 0,
            rng,
            pool,
            redis,
            redis_address: server.url().trim_start_matches("redis://").trim_end_matches('/').to_owned(),
            apps,
            _blobs: blobs,
            _database: database,
        };
        world.prepare().await;
        world
    }

    async fn prepare(&mut self) {
        let mut db = self.pool.acquire().await.unwrap();
        let contracts = deployment();
        sqlx::query(
            "insert into chain_cursor (chain_id, escrow, registry, block_number, block_hash, undo_above, epoch, final_number)
             values ($1, $2, $3, 100, $4, 0, 1, 100)",
        )
        .bind(CHAIN_ID.cast_signed())
        .bind(contracts.escrow.as_slice())
        .bind(contracts.registry.as_slice())
        .bind(B256::ZERO.as_slice())
        .execute(&mut *db)
        .await
        .unwrap();
        for content in [b"input".as_slice(), b"output"] {
            db::blob::insert(&mut db, ContentId::of(content), 5, Address::ZERO, self.now).await.unwrap();
        }
        let account = || EscrowAccount { free: 1_000_000_000_u128.into(), ..EscrowAccount::default() };
        let accounts = self.requesters.iter().map(|owner| ((*owner, Address::ZERO), account())).collect();
        db::escrow::save_accounts(&mut db, &accounts).await.unwrap();
        for n in 0..self.rng.random_range(2..6) {
            let signer = PrivateKeySigner::from_bytes(&U256::from(1000 + n).into()).unwrap();
            let operations = match self.rng.random_range(0..3) {
                0 => vec![OPERATIONS[0].to_owned()],
                1 => vec![OPERATIONS[1].to_owned()],
                _ => OPERATIONS.map(str::to_owned).to_vec(),
            };
            let node = Node {
                signer,
                operations,
                capacity: self.rng.random_range(1..5),
                stake: MIN_STAKE * self.rng.random_range(1..3),
                min_price: if self.rng.random_ratio(1, 3) { PRICE + 1 } else { 0 },
                held: BTreeMap::new(),
            };
            register(&mut db, &node, self.now).await;
            self.nodes.push(node);
        }
    }

    /// A few new jobs, by both rails.
    async fn submit(&mut self) {
        let mut tx = self.pool.begin().await.unwrap();
        for _ in 0..self.rng.random_range(0..4) {
            let (id, job) = self.draw_job();
            match job.rail {
                Rail::Signed => {
                    let written = (&job.order, &job.spec);
                    db::order::insert_signed(&mut tx, id, written, b"signature", &job.terms, self.now).await.unwrap();
                    outbox::append(&mut tx, Source::Work, Entity::Job(id), "job.signed", self.now).await.unwrap();
                }
                Rail::Opened => {
                    let when = Moment { block: 1, tx: id, at: self.now };
                    let opened = Opened { order: job.order.clone(), spec: job.spec.clone(), spec_valid: true, when };
                    let row = EscrowJob {
                        requester: job.order.requester,
                        opened: Some(opened),
                        state: EscrowState::Open,
                        cancel_at: None,
                        result: None,
                        dispute: None,
                        resolution: None,
                        closed_when: None,
                    };
                    db::escrow::save_jobs(&mut tx, &[(id, &row)]).await.unwrap();
                    outbox::append(&mut tx, Source::Chain, Entity::Job(id), "job.opened", self.now).await.unwrap();
                }
            }
            self.jobs.insert(id, job);
        }
        tx.commit().await.unwrap();
    }

    fn draw_job(&mut self) -> (B256, Job) {
        let operation = (*OPERATIONS.choose(&mut self.rng).unwrap()).to_owned();
        let spec = JobSpec { operation, ..spec(ContentId::of(b"input")) };
        let named = self.rng.random_ratio(1, 4);
        let node = if named { self.nodes.choose(&mut self.rng).unwrap().address() } else { Address::ZERO };
        let order = Order {
            requester: *self.requesters.choose(&mut self.rng).unwrap(),
            maxPrice: PRICE + u128::from(self.rng.random_range(0..2_u8)),
            node,
            assigner: assigner().address(),
            specHash: typed_data::spec_hash(&spec),
            deadline: (START + 1_000_000).unsigned_abs(),
            challengeWindow: 60,
            nonce: self.next_nonce,
            ..Order::default()
        };
        self.next_nonce += 1;
        let rail = if self.rng.random_ratio(1, 3) { Rail::Opened } else { Rail::Signed };
        let terms = match rail {
            // Those of opened ones come with an announcement, of which this knows nothing.
            Rail::Opened => Terms::default(),
            Rail::Signed => Terms {
                priority: self.rng.random_range(0..=1000),
                not_before: self
                    .rng
                    .random_ratio(1, 5)
                    .then(|| self.now + TimeDelta::seconds(self.rng.random_range(1..200))),
                min_reputation: if self.rng.random_ratio(1, 8) { self.rng.random_range(50..=100) } else { 0 },
                min_stake: (MIN_STAKE * self.rng.random_range(0..4)).into(),
            },
        };
        let job = Job { order, spec, terms, rail, fence: Fence(0), lease: None, completed: None, cancelled: false };
        (job_id(&job.order), job)
    }

    /// A lease that someone has or had, or makes up.
    fn draw_lease(&mut self) -> Option<(usize, B256, Fence)> {
        let node = self.rng.random_range(0..self.nodes.len());
        let held: Vec<_> = self.nodes[node].held.iter().map(|(job, fence)| (node, *job, *fence)).collect();
        if self.rng.random_ratio(4, 5)
            && let Some(lease) = held.choose(&mut self.rng)
        {
            return Some(*lease);
        }
        let ids: Vec<B256> = self.jobs.keys().copied().collect();
        let job = *ids.choose(&mut self.rng)?;
        let fence = self.jobs[&job].fence.0;
        Some((node, job, Fence(self.rng.random_range(0..=fence + 1))))
    }

    fn draw_job_id(&mut self) -> Option<B256> {
        let ids: Vec<B256> = self.jobs.keys().copied().collect();
        ids.choose(&mut self.rng).copied()
    }

    fn draw(&mut self) -> Option<Act> {
        Some(match self.rng.random_range(0..100) {
            0..40 => Act::Claim {
                node: self.rng.random_range(0..self.nodes.len()),
                count: if self.rng.random() { 1 } else { self.rng.random_range(1..8) },
                tells: self.rng.random_ratio(1, 3),
                answer_is_lost: self.rng.random_ratio(1, 10),
            },
            40..58 => self.draw_lease().map(|(node, job, fence)| Act::Complete { node, job, fence })?,
            58..70 => {
                let (node, job, fence) = self.draw_lease()?;
                Act::Fail { node, job, fence, retryable: self.rng.random() }
            }
            70..76 => self.draw_lease().map(|(node, job, fence)| Act::Renew { node, job, fence })?,
            76..84 => Act::Reap,
            84..87 => Act::Cancel { job: self.draw_job_id()? },
            87..90 => Act::Redrive { job: self.draw_job_id()? },
            90..96 => Act::Drain,
            96..98 => Act::FlushRedis,
            _ => Act::FillRedis,
        })
    }

    async fn round(&mut self) {
        self.now += TimeDelta::milliseconds(match self.rng.random_range(0..10) {
            0 => self.rng.random_range(20_000..90_000),
            1..4 => self.rng.random_range(500..5_000),
            _ => self.rng.random_range(0..100),
        });
        self.submit().await;
        let count = if self.seed.is_multiple_of(2) { 1 } else { self.rng.random_range(1..9) };
        let acts: Vec<Act> = (0..count).filter_map(|_| self.draw()).collect();
        let instances: Vec<usize> = acts.iter().map(|_| self.rng.random_range(0..2)).collect();
        let doing = acts.iter().zip(instances).map(|(act, instance)| self.act(&self.apps[instance], act));
        let outcomes = join_all(doing).await;
        self.note(&acts, &outcomes);
        self.check().await;
    }

    async fn act(&self, app: &App, act: &Act) -> Outcome {
        let refused = |error: littoral_api::error::ApiError| {
            assert!(!error.code().status().is_server_error(), "seed {}: {act:?}: {error:?}", self.seed);
            Outcome::Refused
        };
        match act {
            Act::Claim { node, count, tells, .. } => {
                let node = &self.nodes[*node];
                let known: Vec<LeaseRef> =
                    node.held.iter().map(|(job, fence)| LeaseRef { job_id: Hash(*job), fence: *fence }).collect();
                let ask = Ask { node: node.address(), known: tells.then_some(&known[..]), count: *count };
                grant::claim(app, ask, self.now).await.map_or_else(refused, Outcome::Granted)
            }
            Act::Complete { node, job, fence } => {
                let (node, output) = (&self.nodes[*node], ContentId::of(b"output"));
                let digest = typed_data::receipt_digest(*job, PRICE, output.digest(), &app.domain);
                let signature = node.signer.sign_hash_sync(&digest).unwrap().as_bytes().to_vec();
                let price = Amount::from(PRICE);
                let handed =
                    Handed { fence: *fence, output_cid: output, price, receipt_signature: HexBytes(signature) };
                let done = jobs::complete(app, node.address(), *job, handed, self.now).await;
                done.map_or_else(refused, |_| Outcome::Ok)
            }
            Act::Fail { node, job, fence, retryable } => {
                let lease = LeaseRef { job_id: Hash(*job), fence: *fence };
                let failed = jobs::fail(app, self.nodes[*node].address(), lease, "broke", *retryable, self.now).await;
                failed.map_or_else(refused, |_| Outcome::Ok)
            }
            Act::Renew { node, job, fence } => {
                let lease = LeaseRef { job_id: Hash(*job), fence: *fence };
                let mut tx = app.begin().await.unwrap();
                let renewed = jobs::renew_lease(app, &mut tx, self.nodes[*node].address(), lease, self.now).await;
                tx.commit().await.unwrap();
                renewed.map_or_else(refused, |renewed| Outcome::Renewed(renewed.lease_expires_at))
            }
            Act::Reap => jobs::expire_leases(app, self.now).await.map_or_else(refused, |_| Outcome::Ok),
            Act::Cancel { job } => {
                let requester = self.jobs[job].order.requester;
                jobs::cancel(app, requester, *job, self.now).await.map_or_else(refused, |()| Outcome::Ok)
            }
            Act::Redrive { job } => {
                let requester = self.jobs[job].order.requester;
                jobs::redrive(app, requester, *job, self.now).await.map_or_else(refused, |()| Outcome::Ok)
            }
            Act::Drain => {
                self.drain().await;
                Outcome::Ok
            }
            Act::FlushRedis => {
                self.flush().await;
                Outcome::Ok
            }
            Act::FillRedis => {
                market::redis::rebuild::ensure(&self.pool, &self.redis, self.now).await.unwrap();
                Outcome::Ok
            }
        }
    }

    async fn drain(&self) {
        for source in [Source::Chain, Source::Work] {
            Projector::new(self.pool.clone(), self.redis.clone(), source).drain(self.now).await.unwrap();
        }
    }

    async fn flush(&self) {
        let mut connection = tokio::net::TcpStream::connect(&self.redis_address).await.unwrap();
        connection.write_all(b"FLUSHALL\r\n").await.unwrap();
        let mut answer = [0; 5];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }

    /// What the acts of one moment have brought: for each job in the order of its fences, as it can only have been.
    fn note(&mut self, acts: &[Act], outcomes: &[Outcome]) {
        let mut events: Vec<(B256, Fence, u8, Event<'_>)> = Vec::new();
        for (act, outcome) in acts.iter().zip(outcomes) {
            match (act, outcome) {
                (Act::Claim { node, answer_is_lost, tells, .. }, Outcome::Granted(granted)) => {
                    for lease in granted {
                        let given = Event::Given { node: *node, lease, tells: *tells, is_lost: *answer_is_lost };
                        // One that tells may be given again what another of the same node was given at that moment.
                        events.push((lease.held.job_id, lease.held.fence, u8::from(*tells), given));
                    }
                }
                (Act::Renew { node, job, fence }, Outcome::Renewed(until)) => {
                    events.push((*job, *fence, 2, Event::Renewed { node: *node, until: *until }));
                }
                (Act::Complete { node, job, fence }, Outcome::Ok) => {
                    events.push((*job, *fence, 3, Event::Ended { node: *node, with_result: true }));
                }
                (Act::Fail { node, job, fence, .. }, Outcome::Ok) => {
                    events.push((*job, *fence, 3, Event::Ended { node: *node, with_result: false }));
                }
                _ => {}
            }
        }
        events.sort_by_key(|(job, fence, kind, _)| (*job, *fence, *kind));
        for (job, fence, _, event) in events {
            match event {
                Event::Given { node, lease, tells, is_lost } => self.note_lease(node, lease, tells, is_lost),
                Event::Renewed { node, until } => {
                    let (by, entry) = (self.nodes[node].address(), self.jobs.get_mut(&job).unwrap());
                    assert!(entry.holds(by, fence, self.now), "seed {}: {job} {fence:?} renewed by {by}", self.seed);
                    entry.lease = Some((by, until));
                }
                Event::Ended { node, with_result } => self.note_end(node, job, fence, with_result),
            }
        }
        for act in acts.iter().zip(outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Ok)).map(|(act, _)| act) {
            if let Act::Cancel { job } = act {
                let entry = self.jobs.get_mut(job).unwrap();
                entry.cancelled = true;
                assert_eq!(entry.fence, Fence(0), "seed {}: {job} was taken back from a node", self.seed);
            }
        }
    }

    fn note_end(&mut self, node: usize, job: B256, fence: Fence, with_result: bool) {
        let (seed, by, entry) = (self.seed, self.nodes[node].address(), self.jobs.get_mut(&job).unwrap());
        self.nodes[node].held.remove(&job);
        if with_result && entry.completed == Some((by, fence)) {
            return;
        }
        assert!(entry.completed.is_none(), "seed {seed}: {job} {fence:?} ended by {by}, after {:?}", entry.completed);
        assert!(entry.holds(by, fence, self.now), "seed {seed}: {job} {fence:?} ended by {by}, not {:?}", entry.lease);
        entry.lease = None;
        entry.completed = with_result.then_some((by, fence));
    }

    fn note_lease(&mut self, node: usize, granted: &Granted, tells: bool, answer_is_lost: bool) {
        let (seed, now, held) = (self.seed, self.now, granted.held);
        let (by, job) = (self.nodes[node].address(), self.jobs.get_mut(&held.job_id).unwrap());
        let what = format!("seed {seed}: {} was given {} at {:?}", by, held.job_id, held.fence);
        assert!(suits(&self.nodes[node], job, now), "{what}, which is not for it");
        assert!(!job.cancelled, "{what}, which was taken back");
        if held.fence == job.fence {
            // Only what it has already, told again.
            assert!(tells && job.holds(by, held.fence, now), "{what} twice");
        } else {
            assert_eq!(held.fence, Fence(job.fence.0 + 1), "{what}");
            let is_free = job.lease.is_none_or(|(_, until)| until <= now);
            assert!(is_free, "{what} while {:?} has it", job.lease);
            assert!(job.completed.is_none(), "{what}, which is done");
            self.leased += 1;
        }
        job.fence = held.fence;
        job.lease = Some((by, held.expires_at));
        if !answer_is_lost {
            self.nodes[node].held.insert(held.job_id, held.fence);
        }
    }

    /// What must hold of the rows at any moment.
    async fn check(&self) {
        let seed = self.seed;
        let mut db = self.pool.acquire().await.unwrap();
        for node in &self.nodes {
            let held = db::work::held(&mut db, node.address(), self.now).await.unwrap().len();
            assert!(held <= node.capacity, "seed {seed}: {} holds {held} of {}", node.address(), node.capacity);
        }
        // Each job is in one place: the queue, a node's hands, or an end.
        let lost: Vec<String> = sqlx::query_scalar(
            "select encode(o.job_id, 'hex') || coalesce(' ' || w.state, ' never claimed')
             from open_order o
             left join job_work w on w.job_id = o.job_id
             left join job_queue q on q.job_id = o.job_id
             where (q.job_id is not null) <> (coalesce(w.state, 'queued') = 'queued')
             union all
             select encode(q.job_id, 'hex') || ' in the queue, not open' from job_queue q
             where not exists (select from open_order o where o.job_id = q.job_id)",
        )
        .fetch_all(&mut *db)
        .await
        .unwrap();
        assert!(lost.is_empty(), "seed {seed}: {lost:?}");
        let known: i64 = sqlx::query_scalar("select count(*) from job_order").fetch_one(&mut *db).await.unwrap();
        assert_eq!(usize::try_from(known).unwrap(), self.jobs.len(), "seed {seed}");
        let twice: i64 = sqlx::query_scalar(
            "select count(*) from (
                 select job_id from job_attempt where outcome = 'completed' group by job_id having count(*) > 1
                 union all
                 select job_id from job_attempt where ended_at is null group by job_id having count(*) > 1
             ) t",
        )
        .fetch_one(&mut *db)
        .await
        .unwrap();
        assert_eq!(twice, 0, "seed {seed}");
    }

    /// Every node takes and does what it can until there is nothing: then nothing may be left that one could do.
    async fn finish(&mut self) {
        for _ in 0..150 {
            self.now += TimeDelta::seconds(70);
            jobs::expire_leases(&self.apps[0], self.now).await.unwrap();
            let mut idle = true;
            for node in 0..self.nodes.len() {
                let claim = Act::Claim { node, count: 100, tells: false, answer_is_lost: false };
                let outcome = self.act(&self.apps[node % 2], &claim).await;
                self.note(&[claim], std::slice::from_ref(&outcome));
                let held: Vec<_> = self.nodes[node].held.clone().into_iter().collect();
                for (job, fence) in held {
                    idle = false;
                    let done = Act::Complete { node, job, fence };
                    let outcome = self.act(&self.apps[0], &done).await;
                    self.note(&[done], std::slice::from_ref(&outcome));
                    // What ran out or went to others meanwhile is not its any more.
                    self.nodes[node].held.remove(&job);
                }
            }
            if idle {
                break;
            }
        }
        self.check().await;
        self.nothing_is_left().await;
        self.redis_agrees().await;
    }

    async fn nothing_is_left(&self) {
        let mut db = self.pool.acquire().await.unwrap();
        for (id, job) in self.jobs.iter().filter(|(_, job)| job.completed.is_none() && !job.cancelled) {
            let work = db::work::lock(&mut db, *id).await.unwrap().unwrap_or_default();
            if work.state == WorkState::Failed {
                continue;
            }
            for node in self.nodes.iter().filter(|node| suits(node, job, self.now)) {
                let (completed, lost) = db::queue::record(&mut db, node.address()).await.unwrap();
                let reputation = db::node_view::reputation(completed, lost);
                let (tried, refused): (i64, bool) = sqlx::query_as(
                    "select count(*), coalesce(bool_or(outcome = 'failed'), false) from job_attempt
                     where job_id = $1 and node = $2 and outcome is not null and fence > $3",
                )
                .bind(id.as_slice())
                .bind(node.address().as_slice())
                .bind(work.forgiven.0)
                .fetch_one(&mut *db)
                .await
                .unwrap();
                let may = job.order.node != Address::ZERO || (!refused && tried < 3);
                assert!(
                    !may || reputation < job.terms.min_reputation,
                    "seed {}: {id} was left, {work:?}, though {} could do it",
                    self.seed,
                    node.address()
                );
            }
            assert!(work.attempts < MAX_ATTEMPTS || job.order.node == Address::ZERO, "seed {}: {work:?}", self.seed);
        }
    }

    /// Filled again, Redis has the queue that Postgres has.
    async fn redis_agrees(&self) {
        self.drain().await;
        market::redis::rebuild::ensure(&self.pool, &self.redis, self.now).await.unwrap();
        let mut db = self.pool.acquire().await.unwrap();
        let waiting = db::job_view::pending(&mut db, None, 10_000, self.now).await.unwrap();
        let waiting: BTreeSet<B256> = waiting.iter().map(|view| view.job_id).collect();
        let key = self.redis.keys().lines();
        let lines = market::redis::dump::dump(&self.redis).await.unwrap().remove(&key).unwrap_or_default();
        let members = lines["value"].as_array().into_iter().flatten();
        // A member ends with the job's id.
        let in_lines = members.map(|member| member[0].as_str().unwrap()[72..].parse().unwrap());
        assert_eq!(in_lines.collect::<BTreeSet<B256>>(), waiting, "seed {}", self.seed);
    }
}

impl Job {
    fn holds(&self, node: Address, fence: Fence, now: DateTime<Utc>) -> bool {
        fence == self.fence && self.lease.is_some_and(|(holder, until)| holder == node && until > now)
    }
}

/// Whether the node may be given the job at all, whatever happened to it before.
fn suits(node: &Node, job: &Job, now: DateTime<Utc>) -> bool {
    node.operations.contains(&job.spec.operation)
        && (job.order.node == Address::ZERO || job.order.node == node.address())
        && job.order.maxPrice >= node.min_price
        && Amount::from(node.stake) >= job.terms.min_stake
        && job.terms.not_before.is_none_or(|from| from <= now)
}

async fn register(db: &mut sqlx::PgConnection, node: &Node, now: DateTime<Utc>) {
    let address = node.address();
    let registered = RegistryNode {
        node_id: alloy::primitives::keccak256(address),
        public_key: vec![7; 32],
        payout: address,
        capacity: u32::try_from(node.capacity).unwrap(),
        operations: node.operations.clone(),
        uri: String::new(),
        stake: node.stake.into(),
        unbonding: Amount::ZERO,
        unbond_end: None,
        record: BondRecord::default(),
    };
    db::registry::save_nodes(db, &BTreeMap::from([(address, registered)])).await.unwrap();
    let profile = Profile { max_concurrent_jobs: 100, operations: node.operations.clone() };
    node_profile::save(db, address, &[7; 32], &profile, now).await.unwrap();
    let price = |operation: &String| MinPrice {
        operation: operation.clone(),
        token: Address::ZERO,
        amount: node.min_price.into(),
    };
    let prices: Vec<MinPrice> = node.operations.iter().filter(|_| node.min_price > 0).map(price).collect();
    node_profile::save_prices(db, address, &prices).await.unwrap();
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

async fn run(seed: u64, server: &Redis) -> usize {
    println!("seed {seed}");
    let mut world = World::new(seed, server).await;
    for _ in 0..60 {
        world.round().await;
    }
    world.finish().await;
    world.leased
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_no_job_is_lost_or_held_twice_and_all_that_can_be_done_is() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    if let Some(seed) = setting("LITTORAL_QUEUE_SEED") {
        run(seed, &server).await;
        return;
    }
    let end = Instant::now() + Duration::from_secs(setting("LITTORAL_QUEUE_SECS").unwrap_or(40));
    let first = setting("LITTORAL_QUEUE_FROM").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let (mut seed, mut leased) = (first, 0);
    while seed < first + 2 || Instant::now() < end {
        leased += run(seed, &server).await;
        seed += 1;
    }
    println!("{} seeds from {first} on, {leased} leases", seed - first);
    assert!(leased > 0, "it leased nothing");
}
