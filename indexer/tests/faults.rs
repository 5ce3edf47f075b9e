//! Endpoints that fail, refuse, lag and contradict themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use alloy::providers::{DynProvider, Provider};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use littoral_indexer::follower::{FollowError, Remedy, SETTLED_DISTANCE};
use market::rpc;
use market::source::SourceError;
use serde_json::{Value, json};
use support::{Chain, ETHER, Index, NODE, REQUESTER, spec};

/// An endpoint in front of a chain's own, with faults that can be set.
struct Endpoint {
    chain: DynProvider,
    /// The most blocks that a query of logs may span.
    log_range: AtomicU64,
    /// Every how many-th request fails; zero for none.
    fail_every: AtomicU64,
    /// How many blocks the latest block is behind.
    behind: AtomicU64,
    /// Block whose logs are given for every block asked for by hash; zero for none.
    logs_of: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
}

impl Endpoint {
    async fn before(chain: &mut Chain) -> Arc<Self> {
        let endpoint = Arc::new(Self {
            chain: chain.provider.clone(),
            log_range: AtomicU64::new(u64::MAX),
            fail_every: AtomicU64::new(0),
            behind: AtomicU64::new(0),
            logs_of: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let app = Router::new().route("/", post(answer)).with_state(endpoint.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        chain.read_through(rpc::provider(&url));
        endpoint
    }

    async fn latest(&self) -> u64 {
        self.chain.get_block_number().await.unwrap().saturating_sub(self.behind.load(SeqCst))
    }
}

async fn answer(State(endpoint): State<Arc<Endpoint>>, Json(request): Json<Value>) -> Response {
    let number = endpoint.requests.fetch_add(1, SeqCst) + 1;
    let every = endpoint.fail_every.load(SeqCst);
    if every > 0 && number % every == 0 {
        return (StatusCode::BAD_GATEWAY, "upstream is gone").into_response();
    }
    let method = request["method"].as_str().unwrap().to_owned();
    let mut params = request["params"].clone();
    if method == "eth_getBlockByNumber" && params[0] == "latest" {
        params[0] = json!(format!("{:#x}", endpoint.latest().await));
    }
    if method == "eth_getLogs" {
        let at = |key: &str| u64::from_str_radix(params[0][key].as_str()?.trim_start_matches("0x"), 16).ok();
        if let (Some(from), Some(to)) = (at("fromBlock"), at("toBlock")) {
            if to - from + 1 > endpoint.log_range.load(SeqCst) {
                endpoint.refused.fetch_add(1, SeqCst);
                let error = json!({ "code": -32005, "message": "query exceeds the range allowed" });
                return Json(json!({ "jsonrpc": "2.0", "id": request["id"], "error": error })).into_response();
            }
        } else if endpoint.logs_of.load(SeqCst) > 0 {
            let block = json!(format!("{:#x}", endpoint.logs_of.load(SeqCst)));
            params[0]["fromBlock"] = block.clone();
            params[0]["toBlock"] = block;
            params[0].as_object_mut().unwrap().remove("blockHash");
        }
    }
    let result: Value = endpoint.chain.raw_request(method.into(), params).await.unwrap();
    Json(json!({ "jsonrpc": "2.0", "id": request["id"], "result": result })).into_response()
}

async fn busy_chain() -> Chain {
    let chain = Chain::start().await;
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    for nonce in 0..6 {
        let spec = spec(&nonce.to_string());
        let order = chain.order(nonce, &spec).await;
        chain.open(&order, &spec).await;
        chain.mine(10).await;
        chain.submit(vec![chain.result(&order, 1)]).await;
    }
    chain.mine(SETTLED_DISTANCE).await;
    chain
}

#[tokio::test]
async fn where_long_ranges_are_refused_shorter_ones_are_asked_for() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    for limit in [1, 10] {
        endpoint.log_range.store(limit, SeqCst);
        let before = endpoint.refused.load(SeqCst);
        let mut index = Index::of(&chain).await;
        let steps = index.catch_up().await;
        assert!(steps.iter().all(|step| step.cursor.number - step.step.unwrap().from.number <= limit));
        let (refused, steps) = (endpoint.refused.load(SeqCst) - before, u64::try_from(steps.len()).unwrap());
        assert!(refused > 0 && refused < steps, "{refused} refusals in {steps} steps");
        endpoint.log_range.store(u64::MAX, SeqCst);
        index.assert_equals_a_fresh_index(&chain).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_now_and_then_is_asked_again() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::with_range(&chain, 20).await;
    endpoint.fail_every.store(1, SeqCst);
    let error = index.advance().await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::Retry, "{error}");
    assert!(error.to_string().contains("502"), "{error}");
    endpoint.fail_every.store(3, SeqCst);
    index.catch_up().await;
    endpoint.fail_every.store(0, SeqCst);
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn an_endpoint_that_falls_behind_changes_nothing() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    let before = index.state().await;
    for behind in [1, 5, SETTLED_DISTANCE + 10] {
        endpoint.behind.store(behind, SeqCst);
        assert_eq!(index.advance().await.unwrap().step, None);
    }
    assert_eq!(index.state().await, before);
}

#[tokio::test]
async fn logs_of_another_block_than_was_asked_for_are_refused() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    let foreign = chain.provider.get_block_number().await.unwrap() - SETTLED_DISTANCE;
    endpoint.logs_of.store(foreign, SeqCst);
    chain.mine(1).await;
    let before = index.state().await;
    let error = index.advance().await.unwrap_err();
    assert!(matches!(error, FollowError::Source(SourceError::Inconsistent(_))), "{error}");
    assert_eq!(error.remedy(), Remedy::Retry);
    assert_eq!(index.state().await, before);
    endpoint.logs_of.store(0, SeqCst);
    index.assert_equals_a_fresh_index(&chain).await;
}
