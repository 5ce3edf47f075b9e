//! One run: a chain, an index of it, and everything that may go wrong on the way.

use std::time::{Duration, Instant};

use alloy::providers::DynProvider;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use devnet::{Redis, TestDatabase};
use market::confirmation::{Finality, Policy, Step};
use market::db::outbox::Source;
use market::fold::{Contracts, model};
use market::redis::client::Client;
use market::redis::keys::Keys;
use market::redis::projector::Projector;
use market::{Amount, db};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sqlx::PgPool;

use super::chain::{DEEPEST, Tree};
use super::check::{self, Broken, Looked};
use super::process::{self, Process, Setup};
use super::rpc::{Endpoint, FINALIZED, Faults, REPEATED};
use super::stores::{self, Database};

/// What does not come any nearer to its end in this time will not come there, nor what takes so many times as long.
const PATIENCE: Duration = Duration::from_secs(90);
const MOST_PATIENCE: u32 = 8;
/// Longest that one statement waits for rows.
const STATEMENT: Duration = Duration::from_secs(5);

/// A reorg of more blocks is a deep one.
const DEEP: u64 = 32;

/// What a run did, for those who look whether the simulator does anything.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub blocks: usize,
    pub events: usize,
    pub reorgs: u64,
    /// Of more than 32 blocks.
    pub deep_reorgs: u64,
    pub faults: u64,
    /// Of these, heads that were told again.
    pub repeated: u64,
    pub kills: u64,
    pub freezes: u64,
    pub crashes: u64,
    pub terminated: u64,
    pub redis_troubles: u64,
    pub leases: u64,
    /// Of these, those of jobs that are not on the chain in the end.
    pub revoked: u64,
    pub checks: u64,
}

pub struct Run<'a> {
    rng: StdRng,
    tree: Tree,
    endpoints: Vec<Endpoint>,
    database: Database,
    fresh: &'a TestDatabase,
    redis: &'a mut Redis,
    client: Client,
    setup: Setup,
    pool: PgPool,
    processes: Vec<Process>,
    /// Whether endpoints leave logs out, rather than lie about filters.
    omits: bool,
    /// The highest block that there ever was, and how far below it a reorg may reach.
    highest: u64,
    reach: u64,
    pub trace: Vec<String>,
    pub tally: Tally,
}

/// Serves an endpoint over HTTP for as long as the runtime lives.
async fn over_http(endpoint: Endpoint) -> DynProvider {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let answer = async |State(endpoint): State<Endpoint>, body: String| {
        let (status, text) = endpoint.answer_text(&body).await;
        (StatusCode::from_u16(status).unwrap(), [("content-type", "application/json")], text)
    };
    let app = Router::new().route("/", post(answer)).with_state(endpoint);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    market::rpc::provider(&url)
}

/// A confirmation policy, and how far below the highest block a reorg may reach under it.
fn policy(rng: &mut StdRng) -> (Policy, u64) {
    let reach = *[5, 20, DEEPEST].choose(rng).unwrap();
    let queue = (0..2).flat_map(|coin| {
        let step = |up_to: u128, depth| Step { token: model::token(coin), up_to: Amount::from(up_to), depth };
        [step(1004, 0), step(1012, 2), step(1018, 4)]
    });
    match rng.random_range(0..4) {
        0 => (Policy::new(Finality::Tag, false, queue.collect()).unwrap(), FINALIZED),
        1 => (Policy::new(Finality::Depth(reach), false, queue.collect()).unwrap(), reach),
        _ => (Policy::local(), DEEPEST),
    }
}

impl<'a> Run<'a> {
    pub async fn new(seed: u64, database: Database, fresh: &'a TestDatabase, redis: &'a mut Redis) -> Run<'a> {
        let mut rng = StdRng::seed_from_u64(seed);
        let deploy_block = rng.random_range(1..100);
        let mut tree = Tree::new(&mut rng, deploy_block);
        let length = *[0, 3, 30, 70, 150].choose(&mut rng).unwrap();
        tree.grow(&mut rng, length);
        let (confirmation, reach) = policy(&mut rng);
        let count = rng.random_range(1..=3);
        let endpoints: Vec<Endpoint> =
            (0..count).map(|name| Endpoint::new(name, rng.random(), count == 1, tree.best.clone())).collect();
        let mut providers = vec![];
        let (is_http, omits) = (rng.random_bool(0.1), rng.random_bool(0.5));
        for endpoint in &endpoints {
            providers.push(if is_http { over_http(endpoint.clone()).await } else { endpoint.provider() });
        }
        let setup = Setup {
            database_url: database.url().to_owned(),
            redis_url: redis.url().to_owned(),
            providers,
            contracts: Contracts { confirmation, ..model::contracts() },
            deploy_block,
            max_range: *[1, 7, 50, 2000].choose(&mut rng).unwrap(),
            now: check::now(),
            is_notified: rng.random_bool(0.1),
        };
        // Bounded: a frozen indexer may hold rows that are asked for here, and nobody else thaws it.
        let pool = db::connect_bounded(database.url(), 2, STATEMENT).await.unwrap();
        let trace = vec![format!(
            "contracts in block {deploy_block}, head {}, {} endpoints{}, ranges of {}, {:?}",
            tree.head().number,
            endpoints.len(),
            if is_http { " over HTTP" } else { "" },
            setup.max_range,
            setup.contracts.confirmation
        )];
        let (processes, tally) = (vec![], Tally::default());
        let client = Client::open(redis.url(), Keys::default()).unwrap();
        let highest = tree.head().number;
        Self {
            rng,
            tree,
            endpoints,
            database,
            fresh,
            redis,
            client,
            setup,
            pool,
            processes,
            omits,
            highest,
            reach,
            trace,
            tally,
        }
    }

    /// Runs to the end.
    pub async fn run(&mut self) -> Result<(), Broken> {
        for endpoint in &self.endpoints {
            if self.rng.random_bool(0.5) {
                endpoint.set_faults(Faults::random(&mut self.rng, self.omits));
            }
        }
        for _ in 0..self.rng.random_range(1..=2) {
            self.start();
        }
        for _ in 0..self.rng.random_range(8..24) {
            self.step().await?;
            self.wait().await?;
        }
        // What was final once stays so: the index from nothing has to come as far.
        let missing = self.highest.saturating_sub(self.tree.head().number);
        self.tree.grow(&mut self.rng, missing);
        self.settle().await?;
        let equal = self.compare().await;
        self.tally.blocks = self.tree.blocks.len();
        self.tally.events = self.tree.best.iter().map(|block| block.events().count()).sum();
        equal
    }

    fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    fn start(&mut self) {
        self.processes.push(Process::start(self.setup.clone()));
        self.note("an indexer starts");
    }

    /// One thing happens.
    async fn step(&mut self) -> Result<(), Broken> {
        match self.rng.random_range(0..100) {
            0..24 => self.grow(),
            24..30 => self.claim().await,
            30..52 => self.reorg(),
            52..64 => self.trouble_endpoints(),
            64..72 => self.kill(),
            72..80 => self.freeze().await,
            80..88 => self.trouble_postgres().await,
            88..95 => self.trouble_redis().await,
            _ => self.settle().await?,
        }
        Ok(())
    }

    fn grow(&mut self) {
        let count = if self.rng.random_bool(0.1) { self.rng.random_range(1..90) } else { self.rng.random_range(1..5) };
        self.tree.grow(&mut self.rng, count);
        self.note(format!("{count} blocks, up to {}", self.tree.head().number));
        self.spread();
    }

    fn reorg(&mut self) {
        self.highest = self.highest.max(self.tree.head().number);
        let lowest = self.tree.kept.max(self.highest.saturating_sub(self.reach));
        let most = self.tree.head().number.saturating_sub(lowest).min(DEEPEST);
        let most = if self.rng.random_bool(0.7) { most.min(6) } else { most };
        if most == 0 {
            return;
        }
        let depth = self.rng.random_range(1..=most);
        let shortest = if self.rng.random_bool(0.2) { depth.saturating_sub(3).max(1) } else { depth };
        let count = self.rng.random_range(shortest..=depth + 2);
        self.tree.reorg(&mut self.rng, depth, count);
        self.tally.reorgs += 1;
        self.tally.deep_reorgs += u64::from(depth > DEEP);
        self.note(format!("the last {depth} blocks replaced by {count}, up to {}", self.tree.head().number));
        self.spread();
    }

    /// A node takes some of the jobs that are open, as the API has it do.
    async fn claim(&mut self) {
        let (node, most) = (model::node(self.rng.random_range(0..3)), self.rng.random_range(1..6));
        match stores::lease(&self.pool, node, most, self.setup.now).await {
            Ok(count) => {
                self.tally.leases += count;
                self.note(format!("{node} takes {count} jobs"));
            }
            Err(error) => self.note(format!("jobs could not be taken: {error}")),
        }
        self.tell_work().await.ok();
    }

    /// Applies what the API has done, as the API does.
    async fn tell_work(&self) -> Result<(), String> {
        let projector = Projector::new(self.pool.clone(), self.client.clone(), Source::Work);
        projector.drain(self.setup.now).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Most endpoints see the new head, others go on with the one that they have.
    fn spread(&mut self) {
        for endpoint in &self.endpoints {
            if self.rng.random_bool(0.85) {
                endpoint.show(self.tree.best.clone());
            }
        }
    }

    fn trouble_endpoints(&mut self) {
        let n = self.rng.random_range(0..self.endpoints.len());
        let endpoint = self.endpoints[n].clone();
        match self.rng.random_range(0..6) {
            0 => {
                endpoint.set_up(false);
                self.note(format!("endpoint {n} is gone"));
            }
            1 => {
                endpoint.set_up(true);
                endpoint.show(self.tree.best.clone());
                self.note(format!("endpoint {n} is there and has the head"));
            }
            2 => {
                // Late, on this branch or on one that was given up.
                let block = self.tree.blocks.values().nth(self.rng.random_range(0..self.tree.blocks.len())).unwrap();
                let (number, branch) = (block.number, self.tree.branch(block.hash));
                if number >= self.tree.kept {
                    endpoint.show(branch);
                    self.note(format!("endpoint {n} is behind, at {number}"));
                }
            }
            _ => {
                let faults = Faults::random(&mut self.rng, self.omits);
                endpoint.set_faults(faults);
                self.note(format!("endpoint {n}: {faults:?}"));
            }
        }
    }

    fn kill(&mut self) {
        let polls = self.rng.random_range(0..400);
        if !self.processes.is_empty() {
            let n = self.rng.random_range(0..self.processes.len());
            self.processes[n].kill_in(polls);
            self.tally.kills += 1;
            self.note(format!("indexer {n} is to be killed after {polls} polls"));
        }
        self.start();
    }

    /// Leaves an indexer alone, lets another take over, and may wake it at once or only later.
    async fn freeze(&mut self) {
        if let Some(frozen) = self.processes.iter().position(Process::is_frozen)
            && self.rng.random_bool(0.6)
        {
            self.processes[frozen].thaw();
            return self.note(format!("indexer {frozen} thaws"));
        }
        let polls = self.rng.random_range(0..400);
        if !self.processes.is_empty() {
            let n = self.rng.random_range(0..self.processes.len());
            self.processes[n].freeze_in(polls);
            self.tally.freezes += 1;
            self.note(format!("indexer {n} is to be frozen after {polls} polls"));
        }
        if self.processes.len() < 4 {
            self.start();
        }
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..40))).await;
        if self.rng.random_bool(0.8) {
            self.terminate(true, 1.0).await;
        }
    }

    async fn terminate(&mut self, locks_only: bool, part: f64) {
        match stores::terminate(&self.pool, locks_only, part).await {
            Ok(count) => {
                self.tally.terminated += u64::try_from(count).unwrap_or(0);
                let of = if locks_only { "of leaders" } else { "of any" };
                self.note(format!("{count} connections {of} to Postgres are ended"));
            }
            Err(error) => self.note(format!("connections to Postgres could not be ended: {error}")),
        }
    }

    async fn trouble_postgres(&mut self) {
        if self.rng.random_bool(0.5) && self.database.crash().await {
            self.tally.crashes += 1;
            return self.note("Postgres crashed and is back");
        }
        let (locks_only, part) = (self.rng.random_bool(0.3), if self.rng.random_bool(0.5) { 1.0 } else { 0.4 });
        self.terminate(locks_only, part).await;
    }

    async fn trouble_redis(&mut self) {
        self.tally.redis_troubles += 1;
        let words: &[&str] = match self.rng.random_range(0..8) {
            0 => {
                self.redis.process().kill();
                self.redis.process().restart().unwrap();
                return self.note("Redis starts again, empty");
            }
            1..4 => &["CLIENT", "KILL", "TYPE", "normal"],
            _ => &["FLUSHALL"],
        };
        let done = stores::command(self.redis, words).await;
        self.note(format!("Redis: {} ({done:?})", words.join(" ")));
    }

    /// Lets the indexers do something, or nothing.
    async fn wait(&mut self) -> Result<(), Broken> {
        let requests: u64 = self.endpoints.iter().map(Endpoint::requests).sum();
        let (more, patience) = (self.rng.random_range(0..60), Duration::from_millis(self.rng.random_range(0..60)));
        let since = Instant::now();
        while since.elapsed() < patience && self.endpoints.iter().map(Endpoint::requests).sum::<u64>() < requests + more
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.reap().await?;
        if self.rng.random_bool(0.25) { self.look().await } else { Ok(()) }
    }

    /// Collects what went wrong, and processes that ended. They may be killed, but have no reason to give up.
    async fn reap(&mut self) -> Result<(), Broken> {
        for endpoint in &self.endpoints {
            let told = endpoint.take_told();
            self.tally.faults += u64::try_from(told.len()).unwrap();
            let repeated = told.iter().filter(|what| what.ends_with(REPEATED)).count();
            self.tally.repeated += u64::try_from(repeated).unwrap();
            self.trace.extend(told);
        }
        while let Some(n) = self.processes.iter().position(Process::is_over) {
            match self.processes.remove(n).end().await {
                Some(error) => return Err(Broken(format!("indexer {n} gave up: {error}"))),
                None => self.note(format!("indexer {n} is dead; those after it move up")),
            }
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), Broken> {
        self.tally.checks += 1;
        asked(async || check::at_any_moment(&self.pool, &self.tree).await).await
    }

    /// All is well from now on: waits until the index and Redis are at the chain's head, and nobody does anything any more.
    async fn settle(&mut self) -> Result<(), Broken> {
        self.note("all is well");
        for endpoint in &self.endpoints {
            endpoint.heal(self.tree.best.clone());
        }
        self.processes.iter().for_each(Process::thaw);
        self.reap().await?;
        if self.processes.is_empty() {
            self.start();
        }
        let begun = Instant::now();
        let (mut since, mut before) = (begun, String::new());
        // Whoever was frozen has to have had its say.
        let mut turns: Vec<u64> = self.processes.iter().map(|process| process.turns() + 2).collect();
        let mut passes = 0;
        loop {
            self.reap().await?;
            if turns.len() != self.processes.len() {
                turns = self.processes.iter().map(|process| process.turns() + 2).collect();
            }
            let all_turned = self.processes.iter().zip(&turns).all(|(process, turns)| process.turns() >= *turns);
            let policy = &self.setup.contracts.confirmation;
            let settled = match self.tell_work().await {
                Err(error) => error,
                Ok(()) => match check::is_settled(&self.pool, &self.tree, policy, &self.client).await {
                    Ok(Ok(())) if all_turned && passes == 1 => break,
                    Ok(Ok(())) if all_turned => {
                        // What came with the last block may have brought about something more.
                        passes += 1;
                        turns = self.processes.iter().map(|process| process.turns() + 2).collect();
                        "once".to_owned()
                    }
                    Ok(Ok(())) => "some are waiting".to_owned(),
                    Ok(Err(why)) => why,
                    Err(error) => error.to_string(),
                },
            };
            if self.processes.is_empty() {
                self.start();
            }
            if settled != before {
                (since, before) = (Instant::now(), settled.clone());
            }
            if since.elapsed() > PATIENCE || begun.elapsed() > PATIENCE * MOST_PATIENCE {
                let turns: Vec<String> = self.processes.iter().map(Process::describe).collect();
                return Err(Broken(format!("it does not settle: {settled}; {turns:?}")));
            }
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
        self.look().await?;
        asked(async || check::queue(&self.pool, &self.client).await).await
    }

    /// Compares with an index from nothing.
    async fn compare(&mut self) -> Result<(), Broken> {
        for process in self.processes.drain(..) {
            process.kill_in(0);
            process.end().await;
        }
        let ours = db::chain::canonical_state(&mut self.pool.acquire().await.unwrap()).await.unwrap();
        let keys = stores::keys(&self.client).await.unwrap();
        stores::command(self.redis, &["FLUSHALL"]).await.unwrap();

        let endpoint = Endpoint::honest(self.tree.best.clone());
        let setup = Setup {
            database_url: self.fresh.url().to_owned(),
            providers: vec![endpoint.provider()],
            ..self.setup.clone()
        };
        let pool = db::connect(self.fresh.url(), 4).await.unwrap();
        process::catch_up(&setup, &pool).await;
        self.tally.revoked = stores::copy_leases(&self.pool, &pool).await.unwrap();
        let theirs = db::chain::canonical_state(&mut pool.acquire().await.unwrap()).await.unwrap();
        if let Some(difference) = check::difference(&ours, &theirs) {
            return Err(Broken(format!("Postgres is not as from a fresh index: {difference}")));
        }
        process::fill(&setup, &pool).await;
        let [keys, fresh_keys] = [keys, stores::keys(&self.client).await.unwrap()]
            .map(|keys| keys.into_iter().collect::<Vec<(String, serde_json::Value)>>());
        match check::difference(&keys, &fresh_keys) {
            Some(difference) => Err(Broken(format!("Redis is not as from a fresh index: {difference}"))),
            None => Ok(()),
        }
    }
}

/// Asks again where Postgres was made to break the connection.
async fn asked(look: impl AsyncFn() -> Looked) -> Result<(), Broken> {
    let mut last = None;
    for _ in 0..20 {
        match look().await {
            Ok(outcome) => return outcome,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Broken(format!("the database cannot be looked at: {last:?}")))
}
