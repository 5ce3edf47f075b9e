//! Three instances behind a balancer that knows nothing of what it passes on, and keeps no client at one of them.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alloy::primitives::B256;
use littoral_api::realtime::Topic;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::World;

const JOB: B256 = B256::repeat_byte(0x11);
const CLIENTS: usize = 30;
/// Fewer than a history holds, so that it does not matter how long clients take to come back.
const COUNT: usize = 240;

/// Gives each connection to the next instance that takes it.
struct Balancer {
    url: String,
    task: JoinHandle<()>,
}

impl Balancer {
    async fn start(urls: impl IntoIterator<Item = &String>) -> Self {
        let targets: Arc<[String]> = urls.into_iter().map(|url| url.trim_start_matches("http://").to_owned()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let next = Arc::<AtomicUsize>::default();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (targets, next) = (Arc::clone(&targets), Arc::clone(&next));
                tokio::spawn(async move {
                    for _ in 0..targets.len() {
                        let target = &targets[next.fetch_add(1, Ordering::Relaxed) % targets.len()];
                        if let Ok(mut server) = TcpStream::connect(target).await {
                            copy_bidirectional(&mut client, &mut server).await.ok();
                            return;
                        }
                    }
                });
            }
        });
        Self { url, task }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_three_instances_behind_a_balancer_miss_nothing_when_one_is_killed_and_another_ends() {
    let mut world = World::start().await;
    let (mut killed, mut ended, stays) = (world.serve().await, world.serve().await, world.serve().await);
    let balancer = Balancer::start([&killed.url, &ended.url, &stays.url]).await;
    let mut process = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/balanced.mjs"))
        .env("API", &balancer.url)
        .env("TOKEN", world.token(&[Topic::Job(JOB)]).await)
        .env("JOB", JOB.to_string())
        .env("CLIENTS", CLIENTS.to_string())
        .env("COUNT", COUNT.to_string())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut said =
        async || timeout(Duration::from_secs(90), lines.next_line()).await.expect("the clients hang").unwrap();
    assert_eq!(said().await.as_deref(), Some("ready"));
    for n in 0..COUNT {
        if n == COUNT / 3 {
            killed.process.kill().await.unwrap();
        }
        if n == COUNT * 2 / 3 {
            ended.terminate();
        }
        world.happen(JOB, &format!("job.event{n}")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all: Vec<Value> = serde_json::from_str(&said().await.expect("the clients have ended")).unwrap();
    assert_eq!(all.len(), CLIENTS);
    for client in &all {
        assert_eq!((&client["seen"], &client["misplaced"]), (&json!(COUNT), &json!(-1)), "{client}");
        assert_eq!((&client["lost"], &client["unrecovered"]), (&json!(0), &json!(0)), "{client}");
    }
    let moved = all.iter().filter(|client| client["connects"].as_u64().unwrap() > 1).count();
    assert!(moved >= CLIENTS * 2 / 3, "only {moved} of {CLIENTS} had to come again");
    assert!(timeout(Duration::from_secs(30), ended.process.wait()).await.unwrap().unwrap().success());
}
