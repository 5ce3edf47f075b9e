//! An RPC endpoint between the settler and its node that is as bad as the worst of them: it drops, delays, duplicates and
//! lies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::consensus::{Transaction, TxEnvelope, transaction::SignerRecoverable};
use alloy::eips::eip2718::Decodable2718;
use alloy::primitives::{Address, Bytes, LogData, TxHash};
use alloy::sol_types::{SolCall, SolEvent};
use market::abi::{IJobEscrow, SkipReason};
use market::typed_data;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it does to requests. Every count is "every so-manieth of its method"; zero is never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// No answer: the socket is closed before the node is asked.
    pub drop_request: u64,
    /// The node is asked, and the socket is closed in the middle of its answer.
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
    /// A transaction is taken from the settler and no answer ever comes.
    pub hold_send: Option<Held>,
    /// What is tried is said to be skipped, each item for a reason that would be for good.
    pub skip_in_trial: bool,
    /// The latest block's header is as many seconds from another time.
    pub head_off_by: i64,
    /// The latest count of transactions is as many too high, …
    pub high_count: u64,
    /// … and so is that of a block by its hash.
    pub high_count_by_hash: u64,
}

/// Which side of the node a call never gets beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    BeforeNode,
    AfterNode,
}

/// What it saw.
#[derive(Debug, Default)]
struct Seen {
    faults: Faults,
    calls: HashMap<String, u64>,
    offers: HashMap<(Address, u64), (TxHash, u128, u128)>,
    refused: u64,
    broken: u64,
    held: u64,
}

/// The endpoint; it lives as long as the test's runtime.
#[derive(Clone)]
pub struct Proxy {
    url: String,
    state: Arc<(String, reqwest::Client, Mutex<Seen>)>,
}

impl Proxy {
    pub async fn start(node: &str, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Seen { faults, ..Seen::default() };
        let proxy = Self { url, state: Arc::new((node.to_owned(), reqwest::Client::new(), Mutex::new(seen))) };
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        proxy
    }

    /// Answers what comes on a connection, until a fault or the client closes it.
    async fn serve(self, mut stream: TcpStream) {
        let mut unread = Vec::new();
        while let Some(body) = request(&mut stream, &mut unread).await {
            let (answer, whole) = match answer(&self, &body).await {
                Answer::Whole(answer) => (answer, true),
                Answer::Half(answer) => (answer, false),
                Answer::Nothing => return,
            };
            let body = answer.to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            let sent = if whole { body.as_str() } else { &body[..body.len() / 2] };
            if stream.write_all([head.as_bytes(), sent.as_bytes()].concat().as_slice()).await.is_err() || !whole {
                return;
            }
        }
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

    /// How many transactions it holds.
    pub fn held(&self) -> u64 {
        self.state.2.lock().unwrap().held
    }

    async fn hold(&self) -> Answer {
        self.state.2.lock().unwrap().held += 1;
        std::future::pending().await
    }

    async fn node(&self, body: &[u8]) -> Value {
        let (url, client, _) = &*self.state;
        let sent =
            client.post(url).header("content-type", "application/json").body(body.to_vec()).send().await.unwrap();
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

/// The body of the next request on a connection; nothing once the client has closed it.
async fn request(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(head) = unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&unread[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:")).unwrap();
            let end = head + 4 + length.trim().parse::<usize>().unwrap();
            if unread.len() >= end {
                return Some(unread.drain(..end).skip(head + 4).collect());
            }
        }
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
}

/// What the client gets to see.
enum Answer {
    Whole(Value),
    Half(Value),
    Nothing,
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

async fn answer(proxy: &Proxy, body: &[u8]) -> Answer {
    let faults = proxy.state.2.lock().unwrap().faults.clone();
    let request: Value = serde_json::from_slice(body).unwrap();
    let method = request["method"].as_str().unwrap().to_owned();
    let turn = |fault: &str, every| proxy.turn(&method, fault, every);
    if turn("drop_request", faults.drop_request) {
        return Answer::Nothing;
    }
    if method == "eth_sendRawTransaction" {
        if faults.enforce_replacement
            && let Some(refusal) = proxy.replacement(&request)
        {
            return Answer::Whole(refusal);
        }
        if faults.swallow {
            let raw: Bytes = serde_json::from_value(request["params"][0].clone()).unwrap();
            let hash = alloy::primitives::keccak256(raw);
            return Answer::Whole(json!({ "jsonrpc": "2.0", "id": request["id"], "result": hash }));
        }
        if faults.hold_send == Some(Held::BeforeNode) {
            return proxy.hold().await;
        }
    }
    if turn("duplicate", faults.duplicate) {
        proxy.node(body).await;
    }
    let mut answer = proxy.node(body).await;
    if method == "eth_sendRawTransaction" && faults.hold_send == Some(Held::AfterNode) {
        return proxy.hold().await;
    }
    match method.as_str() {
        "eth_sendRawTransaction" if turn("error_after_send", faults.error_after_send) => {
            answer = error(&request, "internal error");
        }
        "eth_getTransactionCount" if answer["result"].is_string() => {
            let latest = request["params"][1] == "latest" || request["params"][1].is_null();
            let more = if latest { faults.high_count } else { faults.high_count_by_hash };
            let less = if latest { faults.stale_count } else { 0 };
            let count = number(&answer["result"]).saturating_add(more).saturating_sub(less);
            turn("count", u64::from(more + less > 0));
            answer["result"] = json!(format!("0x{count:x}"));
        }
        "eth_getBlockByNumber" if turn("head", u64::from(faults.head_off_by != 0)) => {
            let time = number(&answer["result"]["timestamp"]).saturating_add_signed(faults.head_off_by);
            answer["result"]["timestamp"] = json!(format!("0x{time:x}"));
        }
        "eth_simulateV1" if turn("trial", u64::from(faults.skip_in_trial)) => {
            skip_all(&request["params"][0]["blockStateCalls"][0]["calls"][0], &mut answer["result"][0]["calls"][0]);
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
    if turn("drop_answer", faults.drop_answer) { Answer::Half(answer) } else { Answer::Whole(answer) }
}

/// Has what came of `call` say that the contract skips all of it, in the contract's own words.
fn skip_all(call: &Value, outcome: &mut Value) {
    let input: Bytes = serde_json::from_value(call.get("input").or(call.get("data")).unwrap().clone()).unwrap();
    let escrow: Address = serde_json::from_value(call["to"].clone()).unwrap();
    let domain = typed_data::domain(31337, escrow);
    let mut events: Vec<LogData> = Vec::new();
    let mut skip_job = |order: &market::abi::Order| {
        let reason = SkipReason::BadReceiptSignature;
        events.push(IJobEscrow::Skipped { jobId: typed_data::job_id(order, &domain), reason }.encode_log_data());
    };
    if let Ok(call) = IJobEscrow::submitResultsCall::abi_decode(&input) {
        call.results.iter().for_each(|result| skip_job(&result.order));
    } else if let Ok(call) = IJobEscrow::finalizeCall::abi_decode(&input) {
        call.orders.iter().for_each(skip_job);
    } else {
        // Packed: requester (20), cumulative (16) and the rest in 108 bytes.
        let call = IJobEscrow::redeemCall::abi_decode(&input).unwrap();
        for voucher in call.vouchers.chunks(108) {
            let skipped = IJobEscrow::VoucherSkipped {
                requester: Address::from_slice(&voucher[..20]),
                node: call.node,
                token: call.token,
                cumulative: alloy::primitives::U256::from_be_slice(&voucher[20..36]),
                reason: SkipReason::BadVoucherSignature,
            };
            events.push(skipped.encode_log_data());
        }
    }
    let some_log = outcome["logs"][0].clone();
    let log = |event: LogData| {
        let mut log = some_log.clone();
        log["address"] = json!(escrow);
        log["topics"] = json!(event.topics());
        log["data"] = json!(event.data);
        log
    };
    outcome["logs"] = events.into_iter().map(log).collect();
}
