//! An indexer's process, as a future that can be dropped or left alone at any point where it waits.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use alloy::providers::DynProvider;
use chrono::{DateTime, Utc};
use futures::task::AtomicWaker;
use littoral_indexer::follower::{FollowError, Follower, Remedy};
use market::db::leader::{Leadership, Role};
use market::db::outbox;
use market::fold::Contracts;
use market::redis::client::Client;
use market::redis::keys::Keys;
use market::redis::projector::Projector;
use market::source::Source;
use market::{clock, db};
use sqlx::PgPool;
use tokio::task::JoinHandle;

/// What a process is started with.
#[derive(Clone)]
pub struct Setup {
    pub database_url: String,
    pub redis_url: String,
    pub providers: Vec<DynProvider>,
    pub contracts: Contracts,
    pub deploy_block: u64,
    pub max_range: u64,
    /// The time, which does not pass.
    pub now: DateTime<Utc>,
    /// Whether the projector runs as in the service, woken by Postgres and by the second, or as fast as it goes.
    pub is_notified: bool,
}

impl Setup {
    fn source(&self) -> Source {
        Source::new(self.providers.clone(), self.contracts.clone())
    }

    async fn follower(&self, pool: &PgPool, leadership: &Leadership) -> Result<Follower, FollowError> {
        let fence = leadership.fence();
        Follower::start(pool.clone(), self.source(), fence, self.deploy_block, self.max_range, self.now).await
    }
}

#[derive(Default)]
struct Fate {
    /// Times that it may still run before it is killed, or frozen.
    kill_in: Option<u64>,
    freeze_in: Option<u64>,
    is_frozen: bool,
}

/// Handle to a process.
pub struct Process {
    fate: Arc<Control>,
    turns: Arc<Turns>,
    task: JoinHandle<Option<String>>,
}

#[derive(Default)]
struct Control {
    fate: Mutex<Fate>,
    waker: AtomicWaker,
}

/// How often each loop went round.
#[derive(Default)]
struct Turns {
    standby: AtomicU64,
    follow: AtomicU64,
    project: AtomicU64,
    /// What kept it from following last.
    trouble: Mutex<Option<String>>,
}

impl Process {
    pub fn start(setup: Setup) -> Self {
        let (fate, turns) = (Arc::<Control>::default(), Arc::<Turns>::default());
        let inner = Some(Box::pin(run(setup, turns.clone())) as Pin<Box<dyn Future<Output = String>>>);
        let task = tokio::task::spawn_local(Controlled { inner, control: fate.clone() });
        Self { fate, turns, task }
    }

    /// Drops it once it has run `polls` times more.
    pub fn kill_in(&self, polls: u64) {
        self.fate.fate.lock().unwrap().kill_in = Some(polls);
        self.fate.waker.wake();
    }

    /// Leaves it alone from then on.
    pub fn freeze_in(&self, polls: u64) {
        self.fate.fate.lock().unwrap().freeze_in = Some(polls);
        self.fate.waker.wake();
    }

    pub fn thaw(&self) {
        let mut fate = self.fate.fate.lock().unwrap();
        (fate.freeze_in, fate.is_frozen) = (None, false);
        drop(fate);
        self.fate.waker.wake();
    }

    pub fn is_frozen(&self) -> bool {
        self.fate.fate.lock().unwrap().is_frozen
    }

    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Why it stopped by itself, if it did.
    pub async fn end(self) -> Option<String> {
        self.task.await.unwrap()
    }

    /// How often it went round: as a standby, and as a leader the slower of its two loops.
    pub fn turns(&self) -> u64 {
        let led = self.turns.follow.load(Relaxed).min(self.turns.project.load(Relaxed));
        self.turns.standby.load(Relaxed) + led
    }

    pub fn describe(&self) -> String {
        let [standby, follow, project] =
            [&self.turns.standby, &self.turns.follow, &self.turns.project].map(|turns| turns.load(Relaxed));
        let trouble = self.turns.trouble.lock().unwrap().clone().unwrap_or_else(|| "none".to_owned());
        format!("{standby} turns as a standby, {follow} of following, {project} of projecting, last trouble: {trouble}")
    }
}

struct Controlled {
    inner: Option<Pin<Box<dyn Future<Output = String>>>>,
    control: Arc<Control>,
}

impl Future for Controlled {
    type Output = Option<String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.control.waker.register(cx.waker());
        {
            let control = self.control.clone();
            let mut fate = control.fate.lock().unwrap();
            if fate.kill_in == Some(0) {
                self.inner = None;
                return Poll::Ready(None);
            }
            if fate.freeze_in == Some(0) {
                (fate.freeze_in, fate.is_frozen) = (None, true);
            }
            if fate.is_frozen {
                return Poll::Pending;
            }
            fate.kill_in = fate.kill_in.map(|left| left - 1);
            fate.freeze_in = fate.freeze_in.map(|left| left - 1);
        }
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        inner.as_mut().poll(cx).map(Some)
    }
}

/// As the service: waits for the lead, leads as long as it can, and steps back. Returns what it cannot go on after.
async fn run(setup: Setup, turns: Arc<Turns>) -> String {
    let pool = loop {
        match db::connect(&setup.database_url, 6).await {
            Ok(pool) => break pool,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    loop {
        turns.standby.fetch_add(1, Relaxed);
        match Leadership::try_acquire(&pool, Role::Indexer, clock::now()).await {
            Ok(Some(leadership)) => {
                let error = lead(&setup, &pool, leadership, &turns).await;
                if error.remedy() == Remedy::Stop {
                    return error.to_string();
                }
            }
            Ok(None) => {}
            Err(error) if littoral_indexer::follower::is_transient(&error) => {}
            Err(error) => return error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn lead(setup: &Setup, pool: &PgPool, leadership: Leadership, turns: &Turns) -> FollowError {
    let redis = Client::open(&setup.redis_url, Keys::default()).unwrap();
    let projector = Projector::new(pool.clone(), redis, outbox::Source::Chain);
    tokio::select! {
        error = follow(setup, pool, leadership, turns) => error,
        never = project(setup, projector, turns) => match never {},
    }
}

async fn follow(setup: &Setup, pool: &PgPool, mut leadership: Leadership, turns: &Turns) -> FollowError {
    let mut follower = None;
    loop {
        turns.follow.fetch_add(1, Relaxed);
        match look(setup, pool, &mut leadership, &mut follower).await {
            Ok(true) => {}
            Ok(false) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) if error.remedy() == Remedy::Retry => {
                *turns.trouble.lock().unwrap() = Some(error.to_string());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => return error,
        }
    }
}

/// Whether there was a step to take.
async fn look(
    setup: &Setup,
    pool: &PgPool,
    leadership: &mut Leadership,
    follower: &mut Option<Follower>,
) -> Result<bool, FollowError> {
    // Back to standby.
    leadership.check().await.map_err(|_| sqlx::Error::WorkerCrashed)?;
    let following = match follower {
        Some(following) => following,
        None => follower.insert(setup.follower(pool, leadership).await?),
    };
    Ok(following.advance(setup.now).await?.step.is_some())
}

async fn project(setup: &Setup, projector: Projector, turns: &Turns) -> Infallible {
    if setup.is_notified {
        // Turns are not counted in there: a second is as good.
        let count = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                turns.project.fetch_add(1, Relaxed);
            }
        };
        let ((), never) = tokio::join!(projector.run(std::future::pending()), count);
        return never;
    }
    for turn in 0_u64.. {
        turns.project.fetch_add(1, Relaxed);
        let drained = projector.drain(setup.now).await;
        let kept = if turn.is_multiple_of(8) { projector.upkeep(setup.now).await } else { Ok(()) };
        let pause = if drained.is_err() || kept.is_err() { 20 } else { 8 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    unreachable!("that is a long time")
}

/// Follows the chain through an honest endpoint to its head, into a database that nobody else uses.
pub async fn catch_up(setup: &Setup, pool: &PgPool) {
    let leadership = Leadership::try_acquire(pool, Role::Indexer, clock::now()).await.unwrap().unwrap();
    let mut follower = setup.follower(pool, &leadership).await.unwrap();
    loop {
        let progress = follower.advance(setup.now).await.unwrap();
        // On a busy machine there may be a while without a step.
        if progress.step.is_none() && progress.cursor.number >= progress.head {
            return;
        }
    }
}

/// Fills an empty Redis from a database that nobody else uses.
pub async fn fill(setup: &Setup, pool: &PgPool) {
    let redis = Client::open(&setup.redis_url, Keys::default()).unwrap();
    let projector = Projector::new(pool.clone(), redis, outbox::Source::Chain);
    projector.upkeep(setup.now).await.unwrap();
    projector.drain(setup.now).await.unwrap();
}
