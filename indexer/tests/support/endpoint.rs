//! An endpoint in front of a chain's own that fails, refuses, lags, leaves out and lies, as it is told to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::providers::{DynProvider, Provider};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use market::rpc;
use serde_json::{Value, json};

use super::Chain;

/// What is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The most blocks that a query of logs may span; zero for any.
    pub log_range: u64,
    /// The most logs that an answer may have; zero for any.
    pub log_count: usize,
    /// Refusals of too many logs say which range would do.
    pub suggests: bool,
    /// Answers are cut off after as many logs; zero for never.
    pub cuts_off: usize,
    /// Every how many-th request fails; zero for none.
    pub fail_every: u64,
    /// So many requests are answered with "too many requests" before others are.
    pub busy: u64,
    /// Seconds that those who are told so are to wait; a second if zero.
    pub rest_secs: u64,
    /// How many blocks the latest block is behind.
    pub behind: u64,
    /// Block whose logs are given for every block asked for by hash; zero for none.
    pub logs_of: u64,
    /// There are no logs, in any answer or in so many.
    pub no_logs: Option<u64>,
    /// The last log of every answer is missing.
    pub loses_last: bool,
    /// Blocks from here on have another hash than they have; zero for none.
    pub forked_at: u64,
    /// Batches are refused.
    pub no_batches: bool,
    /// Every answer comes so much later.
    pub delay: Duration,
}

/// What it was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub requests: u64,
    pub logs: u64,
    pub refused: u64,
    pub busy: u64,
    pub headers: u64,
}

/// The endpoint; it lives as long as the test's runtime.
pub struct Endpoint {
    chain: DynProvider,
    state: Mutex<(Faults, Seen)>,
}

impl Endpoint {
    /// A good one, and a provider that asks it.
    pub async fn of(chain: &Chain) -> (Arc<Self>, DynProvider) {
        let endpoint = Arc::new(Self { chain: chain.provider.clone(), state: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let app = Router::new().route("/", post(answer)).with_state(endpoint.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (endpoint, rpc::provider(&url))
    }

    /// In front of what indexes of `chain` read through.
    pub async fn before(chain: &mut Chain) -> Arc<Self> {
        let (endpoint, provider) = Self::of(chain).await;
        chain.read_through(vec![provider]);
        endpoint
    }

    /// Two, the first of which is preferred.
    pub async fn two_before(chain: &mut Chain) -> [Arc<Self>; 2] {
        let ((first, one), (second, other)) = (Self::of(chain).await, Self::of(chain).await);
        chain.read_through(vec![one, other]);
        [first, second]
    }

    pub fn set(&self, faults: Faults) {
        self.state.lock().unwrap().0 = faults;
    }

    pub fn seen(&self) -> Seen {
        self.state.lock().unwrap().1
    }

    fn faults(&self) -> Faults {
        self.state.lock().unwrap().0.clone()
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.state.lock().unwrap().1);
    }

    async fn latest(&self) -> u64 {
        self.chain.get_block_number().await.unwrap().saturating_sub(self.faults().behind)
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        self.chain.raw_request::<_, Value>(method.to_owned().into(), params).await.unwrap()
    }

    /// Result or error of one request.
    async fn one(&self, method: &str, mut params: Value) -> Result<Value, Value> {
        let faults = self.faults();
        match method {
            "eth_getBlockByNumber" => {
                self.note(|seen| seen.headers += 1);
                if params[0] == "latest" {
                    params[0] = json!(format!("{:#x}", self.latest().await));
                } else if let Some(number) = number(&params[0])
                    && number > self.latest().await
                {
                    return Ok(Value::Null);
                }
                let mut block = self.ask(method, params).await;
                if faults.forked_at > 0 && number(&block["number"]).is_some_and(|number| number >= faults.forked_at) {
                    for key in ["hash", "parentHash"] {
                        let hash = block[key].as_str().unwrap();
                        block[key] = json!(format!("0xdead{}", &hash[6..]));
                    }
                }
                Ok(block)
            }
            "eth_getLogs" => self.logs(&faults, params).await,
            _ => Ok(self.ask(method, params).await),
        }
    }

    async fn logs(&self, faults: &Faults, mut params: Value) -> Result<Value, Value> {
        self.note(|seen| seen.logs += 1);
        let refuse = |message: String| {
            self.note(|seen| seen.refused += 1);
            Err(json!({ "code": -32005, "message": message }))
        };
        let range = number(&params[0]["fromBlock"]).zip(number(&params[0]["toBlock"]));
        if let Some((from, to)) = range
            && faults.log_range > 0
            && to - from + 1 > faults.log_range
        {
            return refuse("query exceeds the range allowed".to_owned());
        }
        if range.is_none() && faults.logs_of > 0 {
            let block = json!(format!("{:#x}", faults.logs_of));
            params[0]["fromBlock"] = block.clone();
            params[0]["toBlock"] = block;
            params[0].as_object_mut().unwrap().remove("blockHash");
        }
        let mut logs = self.ask("eth_getLogs", params).await.as_array().unwrap().clone();
        if let Some((from, _)) = range
            && faults.log_count > 0
            && logs.len() > faults.log_count
            && logs.first().unwrap()["blockNumber"] != logs.last().unwrap()["blockNumber"]
        {
            // The last block that fits whole.
            let fits = number(&logs[faults.log_count]["blockNumber"]).unwrap().saturating_sub(1).max(from);
            let suggestion = format!(". Try with this block range [{from:#x}, {fits:#x}].");
            let suggestion = if faults.suggests { suggestion } else { String::new() };
            return refuse(format!("query returned more than {} results{suggestion}", faults.log_count));
        }
        match faults.no_logs {
            None => {}
            Some(0) => {}
            Some(left) => {
                logs.clear();
                self.state.lock().unwrap().0.no_logs = Some(left.saturating_sub(u64::from(left < u64::MAX)));
            }
        }
        if faults.loses_last {
            logs.pop();
        }
        if faults.cuts_off > 0 {
            logs.truncate(faults.cuts_off);
        }
        Ok(json!(logs))
    }
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

async fn answer(State(endpoint): State<Arc<Endpoint>>, Json(request): Json<Value>) -> Response {
    let faults = endpoint.faults();
    endpoint.note(|seen| seen.requests += 1);
    tokio::time::sleep(faults.delay).await;
    if faults.fail_every > 0 && endpoint.seen().requests.is_multiple_of(faults.fail_every) {
        return (StatusCode::BAD_GATEWAY, "upstream is gone").into_response();
    }
    if faults.busy > 0 {
        endpoint.state.lock().unwrap().0.busy -= 1;
        endpoint.note(|seen| seen.busy += 1);
        let rest = faults.rest_secs.max(1).to_string();
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, rest)], "slow down").into_response();
    }
    let Some(batch) = request.as_array() else { return Json(reply(&endpoint, &request).await).into_response() };
    if faults.no_batches {
        let error = json!({ "code": -32600, "message": "batches are not supported" });
        return Json(json!({ "jsonrpc": "2.0", "id": null, "error": error })).into_response();
    }
    let mut answers = vec![];
    for request in batch {
        answers.push(reply(&endpoint, request).await);
    }
    Json(answers).into_response()
}

async fn reply(endpoint: &Endpoint, request: &Value) -> Value {
    match endpoint.one(request["method"].as_str().unwrap(), request["params"].clone()).await {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }),
        Err(error) => json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }),
    }
}
