//! A simulator of everything that may happen to an indexer, from one number each time.
//!
//! A seed makes a chain whose blocks hold what the contracts could have done, endpoints that lag, fail and lie, reorgs,
//! processes that are killed or frozen anywhere, and troubles of Postgres and Redis. Whatever the seed: at any moment the
//! rows are what the events up to the cursor amount to, and in the end Postgres and Redis hold what a fresh index of the final
//! chain gives.
//!
//! `LITTORAL_SIM_SEEDS=10000` tries as many seeds, from `LITTORAL_SIM_FROM` on; `LITTORAL_SIM_SEED=123` runs that one and
//! shows what happened. The chain, the faults' frequencies and the steps follow from the seed; which request meets a fault,
//! and what runs first, depends on the scheduler too: a seed that failed may have to be run some times
//! (`LITTORAL_SIM_REPEAT=20`) to fail again.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chain;
mod check;
mod process;
mod rpc;
mod run;
mod stores;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use devnet::{Redis, RedisOptions};
use run::{Run, Tally};
use stores::{Database, Databases, OwnPostgres};
use tokio::task::LocalSet;

/// Seeds that are tried unless told otherwise.
const SEEDS: u64 = 200;
/// Runs at once: mostly they wait.
const WORKERS: u64 = 6;
/// A run that takes longer hangs: it gives up before, if it can tell why.
const LONGEST: Duration = Duration::from_mins(15);
/// One seed in as many has a Postgres of its own that crashes.
const CRASHING: u64 = 10;
/// With so many seeds everything that can happen happens in some.
const MANY: u64 = 100;
/// Lines of a run's steps that are shown when it fails.
const SHOWN: usize = 60;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Which seeds to run, how often each.
struct Plan {
    from: u64,
    count: u64,
    repeat: u64,
    is_single: bool,
}

impl Plan {
    fn read() -> Self {
        let repeat = setting("LITTORAL_SIM_REPEAT").unwrap_or(1);
        match setting("LITTORAL_SIM_SEED") {
            Some(seed) => Self { from: seed, count: 1, repeat, is_single: true },
            None => Self {
                from: setting("LITTORAL_SIM_FROM").unwrap_or(1),
                count: setting("LITTORAL_SIM_SEEDS").unwrap_or(SEEDS),
                repeat,
                is_single: false,
            },
        }
    }
}

/// Runs one seed. What happened, and what is wrong.
async fn run(seed: u64, databases: &mut Databases<'_>, redis: &mut Redis) -> (Tally, Vec<String>, Option<String>) {
    let (ours, fresh) = databases.get().await;
    let database = if seed.is_multiple_of(CRASHING) {
        Database::Own(Box::new(OwnPostgres::start().await))
    } else {
        Database::Shared(ours.url().to_owned())
    };
    stores::command(redis, &["FLUSHALL"]).await.unwrap();
    let mut run = Run::new(seed, database, fresh, redis).await;
    let ran = tokio::time::timeout(LONGEST, run.run()).await;
    let broken = ran.map_or(Some("it does not end".to_owned()), |ran| ran.err().map(|broken| broken.0));
    (run.tally, std::mem::take(&mut run.trace), broken)
}

fn report(seed: u64, trace: &[String], broken: &str) -> String {
    let skipped = trace.len().saturating_sub(SHOWN);
    let steps = trace[skipped..].join("\n  ");
    format!(
        "seed {seed}: {broken}\nsteps (the first {skipped} left out):\n  {steps}\n\
         again: LITTORAL_SIM_SEED={seed} cargo nextest run -p littoral-indexer --test sim --no-capture"
    )
}

/// As [`run`], on a runtime of its own; a panic is something wrong too.
fn run_alone(seed: u64, databases: &mut Databases<'_>, redis: &mut Redis) -> (Tally, Vec<String>, Option<String>) {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let runtime = runtime();
        // What is dropped at the end may want to say goodbye.
        let _context = runtime.enter();
        runtime.block_on(LocalSet::new().run_until(run(seed, databases, redis)))
    }));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        (Tally::default(), vec![], Some(format!("panicked: {}", text.unwrap_or("see above"))))
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn whatever_happens_the_end_is_that_of_a_fresh_index() {
    let (plan, started) = (Plan::read(), Instant::now());
    let template = runtime().block_on(stores::template());
    let (next, failures, tallies) = (AtomicU64::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(plan.count * plan.repeat) {
            scope.spawn(|| {
                let mut redis = runtime().block_on(Redis::start(RedisOptions::default())).unwrap();
                let mut databases = Databases::new(&template);
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= plan.count * plan.repeat || failures.lock().unwrap().len() >= 5 {
                        return;
                    }
                    let seed = plan.from + n % plan.count;
                    let (tally, trace, broken) = run_alone(seed, &mut databases, &mut redis);
                    if plan.is_single {
                        println!("{}", trace.join("\n"));
                    }
                    tallies.lock().unwrap().push(tally);
                    if let Some(broken) = broken {
                        let text = report(seed, &trace, &broken);
                        println!("{text}");
                        failures.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let tallies = tallies.into_inner().unwrap();
    let sum = |of: &dyn Fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let happened = [
        ("reorgs", sum(&|tally| tally.reorgs)),
        ("of more than 32 blocks", sum(&|tally| tally.deep_reorgs)),
        ("wrong answers", sum(&|tally| tally.faults)),
        ("heads told again", sum(&|tally| tally.repeated)),
        ("kills", sum(&|tally| tally.kills)),
        ("freezes", sum(&|tally| tally.freezes)),
        ("crashes of Postgres", sum(&|tally| tally.crashes)),
        ("connections ended", sum(&|tally| tally.terminated)),
        ("troubles of Redis", sum(&|tally| tally.redis_troubles)),
        ("leases", sum(&|tally| tally.leases)),
        ("of jobs that are gone", sum(&|tally| tally.revoked)),
        ("events", sum(&|tally| u64::try_from(tally.events).unwrap())),
    ];
    let told = happened.map(|(what, count)| format!("{count} {what}")).join(", ");
    println!("{} runs in {:.0} s: {told}", tallies.len(), started.elapsed().as_secs_f64());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} runs failed:\n{}", failures.len(), tallies.len(), failures.join("\n\n"));
    let missing = happened.iter().find(|(_, count)| plan.count >= MANY && *count == 0);
    assert_eq!(missing, None, "a simulator in which something never happens shows less than it seems to");
}
