//! New blocks are told over WebSocket, by an Anvil or by a proxy before it that breaks off, repeats itself and falls silent. What
//! is told wakes, and nothing depends on it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::providers::Provider;
use littoral_indexer::head::Hint;
use support::process::{SOON, Stores, assert_equals_a_fresh_index, caught_up, get};
use support::{Chain, ETHER, Index, NODE, OTHER_REQUESTER, REQUESTER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use url::Url;

/// An interval that no test lasts: who waits so long was not told.
const LONG: Duration = Duration::from_secs(3600);
/// A silence after which a connection is given up.
const SILENCE: Duration = Duration::from_secs(2);

fn ws_url(chain: &Chain) -> Url {
    devnet::ws_url(chain.anvil.rpc_url()).parse().unwrap()
}

async fn soon<T>(what: &str, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, done).await.unwrap_or_else(|_| panic!("{what} takes longer than {SOON:?}"))
}

/// Follows the chain to its head, looking only when it is told to.
async fn woken_to_the_head(index: &mut Index, hint: &Hint, chain: &Chain) {
    let head = chain.provider.get_block_number().await.unwrap();
    soon("being told", async {
        while index.follower.cursor().number < head {
            hint.wait(LONG).await;
            index.catch_up().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_block_wakes_long_before_the_interval_is_over() {
    let chain = Chain::start().await;
    let mut index = Index::of(&chain).await;
    let hint = Hint::listen(Some(ws_url(&chain)), LONG);
    for amount in 1..6 {
        chain.deposit(REQUESTER, amount).await;
        woken_to_the_head(&mut index, &hint, &chain).await;
    }
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn an_indexer_that_looks_once_an_hour_follows_as_it_is_told() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let bind = format!("127.0.0.1:{}", devnet::ports::free_port().unwrap());
    let launch = stores.indexer("told", chain.anvil.rpc_url(), &chain.manifest.path);
    let launch = launch.env("POLL_INTERVAL_MS", "3600000").env("RPC_WS_URL", ws_url(&chain).as_str());
    let _indexer = launch.env("METRICS_BIND", &bind).spawn().unwrap();
    caught_up(&pool, &chain).await;
    for amount in 1..4 {
        chain.deposit(REQUESTER, amount).await;
        caught_up(&pool, &chain).await;
    }
    let (_, metrics) = get(&bind, "/metrics").await;
    assert!(metrics.contains("littoral_indexer_ws_connected 1"), "{metrics}");
    let heads = metrics.lines().find_map(|line| line.strip_prefix("littoral_indexer_ws_heads_total "));
    assert!(heads.unwrap().parse::<u64>().unwrap() >= 3, "{heads:?} blocks were told");
    assert_equals_a_fresh_index(&pool, &chain).await;
}

/// What a proxy does with what the chain's node says.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// Every block is told three times.
    Repeats,
    /// The connection stays, and no block is told.
    Silent,
    /// Nobody gets through.
    Down,
}

/// Before a chain's WebSocket.
struct Proxy {
    url: Url,
    manner: watch::Sender<Manner>,
    /// Connections that got through.
    connections: watch::Receiver<u32>,
    /// Ends them all.
    cut: Arc<Notify>,
}

impl Proxy {
    async fn before(chain: &Chain) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let node = chain.anvil.rpc_url().trim_start_matches("http://").to_owned();
        let (manner, told) = watch::channel(Manner::Honest);
        let (count, connections) = watch::channel(0);
        let cut = Arc::new(Notify::new());
        let all = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *told.borrow() == Manner::Down {
                    continue;
                }
                let (from_node, to_node) = TcpStream::connect(&node).await.unwrap().into_split();
                let (mut from_client, to_client) = client.into_split();
                count.send_modify(|count| *count += 1);
                let (cut, told) = (all.clone(), told.clone());
                tokio::spawn(async move {
                    let mut to_node = to_node;
                    tokio::select! {
                        _ = tokio::io::copy(&mut from_client, &mut to_node) => {}
                        _ = pass(from_node, to_client, told) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        Self { url, manner, connections, cut }
    }

    fn connections(&self) -> u32 {
        *self.connections.borrow()
    }

    /// Waits until there were more connections than `before`.
    async fn reconnected(&mut self, before: u32) {
        soon("calling again", self.connections.wait_for(|count| *count > before)).await.unwrap();
    }
}

/// Hands on what the node says: its answer to the handshake, then message by message.
async fn pass(mut node: OwnedReadHalf, mut client: OwnedWriteHalf, manner: watch::Receiver<Manner>) -> Option<()> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(node.read_u8().await.ok()?);
    }
    client.write_all(&head).await.ok()?;
    loop {
        // What a server sends has no mask.
        let mut frame = vec![node.read_u8().await.ok()?, node.read_u8().await.ok()?];
        let more = match frame[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mut length = if more == 0 { u64::from(frame[1]) } else { 0 };
        for _ in 0..more {
            frame.push(node.read_u8().await.ok()?);
            length = (length << 8) | u64::from(frame[frame.len() - 1]);
        }
        let mut body = vec![0; usize::try_from(length).unwrap()];
        node.read_exact(&mut body).await.ok()?;
        let is_told = body.windows(16).any(|text| text == b"eth_subscription");
        frame.extend(body);
        let times = match *manner.borrow() {
            Manner::Silent if is_told => 0,
            Manner::Repeats if is_told => 3,
            _ => 1,
        };
        for _ in 0..times {
            client.write_all(&frame).await.ok()?;
        }
    }
}

#[tokio::test]
async fn whatever_the_connection_does_it_is_made_again_and_no_block_is_missed() {
    let chain = Chain::start().await;
    chain.register(NODE, ETHER).await;
    let mut index = Index::of(&chain).await;
    let mut proxy = Proxy::before(&chain).await;
    let hint = Hint::listen(Some(proxy.url.clone()), SILENCE);
    chain.deposit(REQUESTER, 1).await;
    woken_to_the_head(&mut index, &hint, &chain).await;

    // What is told more than once is looked at more than once, which changes nothing.
    proxy.manner.send_replace(Manner::Repeats);
    for amount in 1..4 {
        chain.deposit(REQUESTER, amount).await;
        woken_to_the_head(&mut index, &hint, &chain).await;
    }
    proxy.manner.send_replace(Manner::Honest);

    // Broken off, also in between two blocks: what came meanwhile is looked for as soon as it is back.
    for amount in 1..4 {
        let before = proxy.connections();
        proxy.manner.send_replace(Manner::Down);
        proxy.cut.notify_waiters();
        chain.deposit(OTHER_REQUESTER, amount).await;
        chain.reorg(1).await;
        chain.deposit(OTHER_REQUESTER, amount).await;
        proxy.manner.send_replace(Manner::Honest);
        proxy.reconnected(before).await;
        woken_to_the_head(&mut index, &hint, &chain).await;
    }

    // It seems to be there, and says nothing.
    let before = proxy.connections();
    proxy.manner.send_replace(Manner::Silent);
    chain.deposit(REQUESTER, 9).await;
    proxy.reconnected(before).await;
    proxy.manner.send_replace(Manner::Honest);
    woken_to_the_head(&mut index, &hint, &chain).await;
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn a_url_at_which_nobody_tells_anything_does_no_harm() {
    let (chain, stores) = (Chain::start().await, Stores::start().await);
    let pool = stores.pool().await;
    let nobody = format!("ws://127.0.0.1:{}", devnet::ports::free_port().unwrap());
    // Redis answers, but not as a WebSocket does.
    let stranger = stores.redis.url().replacen("redis", "ws", 1);
    for (name, url) in [("nobody", nobody), ("stranger", stranger)] {
        let hint = Hint::listen(Some(url.parse().unwrap()), LONG);
        let since = Instant::now();
        hint.wait(Duration::from_millis(50)).await;
        assert!(since.elapsed() >= Duration::from_millis(50), "nothing was told");

        let launch = stores.indexer(name, chain.anvil.rpc_url(), &chain.manifest.path).env("RPC_WS_URL", &url);
        let mut indexer = launch.spawn().unwrap();
        let said = async |process: &mut devnet::Process| process.output().contains("no word of new blocks");
        indexer.wait_until(SOON, said).await.unwrap();
        chain.deposit(REQUESTER, 5).await;
        caught_up(&pool, &chain).await;
        assert!(indexer.stop(), "ends when asked to");
    }
    assert_equals_a_fresh_index(&pool, &chain).await;
}
