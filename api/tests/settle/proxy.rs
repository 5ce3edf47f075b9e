//! An RPC endpoint between the settler and its node that is as bad as the worst of them: it drops, delays, duplicates and
//! lies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::consensus::{Transaction, TxEnvelope, transaction::SignerRecoverable};
use alloy::eips::eip2718::Decodable2718;
use alloy::primitives::{Address, Bytes, TxHash};
use axum::body::Bytes as Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};

/// What it does to requests. Every count is "every so-manieth of its method"; zero is never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// No answer: the connection is cut before the node is asked.
    pub drop_request: u64,
    /// The node is asked, and its answer is lost.
    pub drop_answer: u64,
    /// The answer comes late.
    pub delay: u64,
    pub delay_by: Duration,
    /// The node is asked twice; the second answer counts.
    pub duplicate: u64,
    /// A transaction is taken, and the answer says it was not.
    pub error_after_send: u64,
    /// The latest count of transactions is as many too low.
    pub stale_count: u64,
    /// There is no receipt.
    pub hide_receipt: u64,
    /// The receipt is of a block that nobody else has.
    pub orphan_receipt: u64,
    /// The receipt says that the transaction reverted.
    pub failed_receipt: u64,
    /// The node does not know a transaction that it has.
    pub hide_transaction: u64,
    /// A replacement has to offer 10 % more of both fees than what came before it, and is refused otherwise.
    pub enforce_replacement: bool,
    /// No transaction reaches the node, though it says so.
    pub swallow: bool,
}

/// What it saw.
#[derive(Debug, Default)]
struct Seen {
    faults: Faults,
    calls: HashMap<String, u64>,
    offers: HashMap<(Address, u64), (TxHash, u128, u128)>,
    refused: u64,
    broken: u64,
}

/// The endpoint; it lives as long as the test's runtime.
#[derive(Clone)]
pub struct Proxy {
    url: String,
    state: Arc<(String, reqwest::Client, Mutex<Seen>)>,
}

impl Proxy {
    pub async fn start(node: &str, faults: Faults) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Seen { faults, ..Seen::default() };
        let proxy = Self { url, state: Arc::new((node.to_owned(), reqwest::Client::new(), Mutex::new(seen))) };
        let router = Router::new().fallback(answer).with_state(proxy.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        proxy
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn set(&self, faults: Faults) {
        self.state.2.lock().unwrap().faults = faults;
    }

    /// How many replacements it refused for offering too little.
    pub fn refused(&self) -> u64 {
        self.state.2.lock().unwrap().refused
    }

    /// How many answers it spoilt.
    pub fn broken(&self) -> u64 {
        self.state.2.lock().unwrap().broken
    }

    async fn node(&self, body: &Body) -> Value {
        let (url, client, _) = &*self.state;
        let sent = client.post(url).header("content-type", "application/json").body(body.clone()).send().await.unwrap();
        serde_json::from_slice(&sent.bytes().await.unwrap()).unwrap()
    }

    /// Whether it is this call's turn for a fault.
    fn turn(&self, method: &str, fault: &str, every: u64) -> bool {
        let mut seen = self.state.2.lock().unwrap();
        let calls = seen.calls.entry(format!("{method} {fault}")).or_default();
        *calls += 1;
        let now = every > 0 && calls.is_multiple_of(every);
        seen.broken += u64::from(now);
        now
    }

    /// The refusal of a replacement that offers too little.
    fn replacement(&self, request: &Value) -> Option<Value> {
        let raw: Bytes = serde_json::from_value(request["params"][0].clone()).unwrap();
        let tx = TxEnvelope::decode_2718(&mut raw.as_ref()).unwrap();
        let key = (tx.recover_signer().unwrap(), tx.nonce());
        let (hash, fee, tip) = (*tx.tx_hash(), tx.max_fee_per_gas(), tx.max_priority_fee_per_gas().unwrap());
        let mut seen = self.state.2.lock().unwrap();
        if let Some((before, old_fee, old_tip)) = seen.offers.get(&key)
            && *before != hash
            && (fee * 100 < old_fee * 110 || tip * 100 < old_tip * 110)
        {
            seen.refused += 1;
            return Some(error(request, "replacement transaction underpriced"));
        }
        seen.offers.insert(key, (hash, fee, tip));
        None
    }
}

fn error(request: &Value, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": request["id"], "error": { "code": -32000, "message": message } })
}

async fn answer(State(proxy): State<Proxy>, body: Body) -> Response {
    let faults = proxy.state.2.lock().unwrap().faults.clone();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let method = request["method"].as_str().unwrap().to_owned();
    let turn = |fault: &str, every| proxy.turn(&method, fault, every);
    if turn("drop_request", faults.drop_request) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    if method == "eth_sendRawTransaction" {
        if faults.enforce_replacement
            && let Some(refusal) = proxy.replacement(&request)
        {
            return Json(refusal).into_response();
        }
        if faults.swallow {
            let raw: Bytes = serde_json::from_value(request["params"][0].clone()).unwrap();
            return Json(json!({ "jsonrpc": "2.0", "id": request["id"], "result": alloy::primitives::keccak256(raw) }))
                .into_response();
        }
    }
    if turn("duplicate", faults.duplicate) {
        proxy.node(&body).await;
    }
    let mut answer = proxy.node(&body).await;
    match method.as_str() {
        "eth_sendRawTransaction" if turn("error_after_send", faults.error_after_send) => {
            answer = error(&request, "internal error");
        }
        "eth_getTransactionCount" if request["params"][1] == "latest" && faults.stale_count > 0 => {
            let count = u64::from_str_radix(answer["result"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
            answer["result"] = json!(format!("0x{:x}", count.saturating_sub(faults.stale_count)));
        }
        "eth_getTransactionReceipt" if !answer["result"].is_null() => {
            if turn("hide_receipt", faults.hide_receipt) {
                answer["result"] = Value::Null;
            } else if turn("orphan_receipt", faults.orphan_receipt) {
                answer["result"]["blockHash"] = json!(format!("0x{}", "ab".repeat(32)));
            } else if turn("failed_receipt", faults.failed_receipt) {
                answer["result"]["status"] = json!("0x0");
            }
        }
        "eth_getTransactionByHash" if turn("hide_transaction", faults.hide_transaction) => {
            answer["result"] = Value::Null;
        }
        _ => {}
    }
    if turn("delay", faults.delay) {
        tokio::time::sleep(faults.delay_by).await;
    }
    if turn("drop_answer", faults.drop_answer) {
        return StatusCode::GATEWAY_TIMEOUT.into_response();
    }
    Json(answer).into_response()
}
