//! `kill -9` of each process, of all of them, and a flush of Redis, at every stage of a job: it still ends paid, once.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use devnet::Service;
use rustix::process::Signal;

use crate::stage::{PRICE, Stage};

/// When to strike, and on which rail: a signed order is pending at once.
const MOMENTS: [(&str, Rail); 7] = [
    ("awaiting_escrow", Rail::Opened),
    ("pending", Rail::Opened),
    ("active", Rail::Opened),
    ("completed", Rail::Opened),
    ("settling", Rail::Opened),
    ("active", Rail::Signed),
    ("completed", Rail::Signed),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rail {
    Opened,
    Signed,
}

enum Blow {
    Kill(&'static [Service]),
    FlushRedis,
}

impl Blow {
    /// Strikes, and after a while repairs what can be repaired from outside: killed processes are started again.
    async fn strike(&self, stage: &mut Stage) {
        match self {
            Self::Kill(services) => {
                for service in *services {
                    stage.market.kill(*service).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
                for service in *services {
                    stage.market.start_service(*service).await.unwrap();
                }
            }
            Self::FlushRedis => assert_eq!(stage.redis(&["flushall"]).await, "OK"),
        }
    }
}

/// Keeps the next job from leaving the status `moment` before it is struck there.
async fn hold(stage: &mut Stage, moment: &str) {
    match moment {
        "awaiting_escrow" => stage.hold_blocks().await,
        "pending" => stage.market.kill(Service::Node).unwrap(),
        "completed" => stage.market.process(Service::Settler).unwrap().signal(Signal::STOP).unwrap(),
        // The work itself takes a second; the settler's transaction must wait only once the job is under way.
        _ => {}
    }
}

async fn release(stage: &mut Stage, moment: &str) {
    match moment {
        "awaiting_escrow" | "settling" => stage.release_blocks().await,
        "pending" if !stage.market.process(Service::Node).unwrap().is_running() => {
            stage.market.start_service(Service::Node).await.unwrap();
        }
        "completed" => stage.market.process(Service::Settler).unwrap().signal(Signal::CONT).unwrap(),
        _ => {}
    }
}

/// Submits a job, strikes as soon as it is at `moment`, and waits until it is paid.
async fn job_survives(stage: &mut Stage, blow: &Blow, (moment, rail): (&str, Rail)) -> B256 {
    let known = stage.known_jobs().await;
    let input = stage.file("input", format!("struck when {moment}, {rail:?}").as_bytes());
    let mut args = Stage::submit_args(&input, "command");
    args.extend(["--node".to_owned(), stage.node().to_string()]);
    args.extend((rail == Rail::Opened).then(|| "--open".to_owned()));
    let requester = stage.requester.clone();

    hold(stage, moment).await;
    let submission = tokio::spawn(async move { requester.run(args).await });
    let job = stage.new_job(&known).await;
    if moment == "settling" {
        stage.reaches(job, "active").await;
        stage.hold_blocks().await;
    }
    let reached = stage.reaches(job, moment).await;
    assert_eq!(reached, moment, "{job} went on before it could be struck");
    blow.strike(stage).await;
    release(stage, moment).await;

    submission.await.unwrap().unwrap_or_else(|error| panic!("struck when {moment}: {error:#}"));
    stage.assert_paid_once(job).await;
    println!("struck when {moment}, {rail:?}: {job} is paid");
    job
}

async fn jobs_survive(blow: Blow) {
    let mut stage = Stage::new().await;
    let requester = stage.market.keys().requester.address();
    let before = stage.chain.holdings(requester, Address::ZERO).await.unwrap();
    let mut jobs = Vec::new();
    for moment in MOMENTS {
        jobs.push(job_survives(&mut stage, &blow, moment).await);
    }
    // Nothing was paid twice, not even later than we looked.
    let total = U256::from(PRICE) * U256::from(jobs.len());
    for job in jobs {
        stage.assert_paid_once(job).await;
        stage.assert_redis_says_paid(job).await;
    }
    let after = stage.chain.holdings(requester, Address::ZERO).await.unwrap();
    assert_eq!(before.deposited - after.deposited, total);
    assert_eq!(stage.chain.holdings(stage.node(), Address::ZERO).await.unwrap().earned, total);
}

#[tokio::test]
async fn jobs_survive_a_killed_indexer() {
    jobs_survive(Blow::Kill(&[Service::Indexer])).await;
}

#[tokio::test]
async fn jobs_survive_a_killed_api() {
    jobs_survive(Blow::Kill(&[Service::Api])).await;
}

#[tokio::test]
async fn jobs_survive_a_killed_settler() {
    jobs_survive(Blow::Kill(&[Service::Settler])).await;
}

#[tokio::test]
async fn jobs_survive_a_killed_node() {
    jobs_survive(Blow::Kill(&[Service::Node])).await;
}

#[tokio::test]
async fn jobs_survive_when_everything_is_killed_at_once() {
    jobs_survive(Blow::Kill(&Service::ALL)).await;
}

#[tokio::test]
async fn jobs_survive_a_flush_of_redis() {
    jobs_survive(Blow::FlushRedis).await;
}
