//! A node's JSON-RPC: what it answers by its view of the chain, and how that goes wrong.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use alloy::primitives::{Address, B256, Bloom};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{ErrorPayload, RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest};
use alloy::rpc::types::{self, Filter, FilterBlockOption};
use alloy::transports::{TransportError, TransportErrorKind, TransportFut};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::chain::{Block, Branch};

/// How far below its latest block an endpoint calls one finalized.
pub const FINALIZED: u64 = 32;

/// How often, of a thousand requests each, an endpoint goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The connection breaks.
    pub broken: u32,
    /// It says that it is asked too often, or failed.
    pub refused: u32,
    /// The answer takes a while.
    pub slow: u32,
    /// The answer is of a view that it had before, or that another of the nodes behind it has.
    pub other_view: u32,
    /// A block that it has is said not to be there.
    pub no_block: u32,
    /// No logs, though there are some.
    pub no_logs: u32,
    /// Logs are of a block with another hash, or said to be removed.
    pub wrong_log: u32,
    /// A header's hash is not its hash.
    pub wrong_hash: u32,
    /// A header's bloom filter denies or promises everything.
    pub wrong_bloom: u32,
    /// Logs come twice, or in another order.
    pub disorder: u32,
    /// The latest block is the one that was told before, whatever came since.
    pub repeated: u32,
}

/// How the latest block is told twice, for those who count it.
pub const REPEATED: &str = "told the same head again";

impl Faults {
    /// Some of all: seldom, or so often that little gets through. Logs are left out where `omits`, but then the filters of
    /// headers are true: who lies about both, and is alone, is believed.
    pub fn random(rng: &mut StdRng, omits: bool) -> Self {
        let scale = *[1, 4, 4, 15].choose(rng).unwrap();
        let mut one = |most: u32| if rng.random_bool(0.5) { rng.random_range(0..=most * scale) } else { 0 };
        Self {
            broken: one(5),
            refused: one(20),
            slow: one(20),
            other_view: one(30),
            no_block: one(10),
            wrong_log: one(15),
            wrong_hash: one(10),
            no_logs: if omits { one(15).min(15) } else { 0 },
            wrong_bloom: if omits { 0 } else { one(10) },
            disorder: one(30),
            repeated: one(100),
        }
    }
}

/// One endpoint.
#[derive(Clone)]
pub struct Endpoint(Arc<Mutex<State>>);

struct State {
    name: usize,
    view: Branch,
    /// Views it had before.
    former: VecDeque<Branch>,
    faults: Faults,
    /// The latest block that was told last.
    told_head: Option<Arc<Block>>,
    /// Whether anything is answered.
    is_up: bool,
    /// Most blocks, and most logs, that one query may be about.
    limits: (u64, usize),
    /// Whether logs of a block that it does not know are none rather than an error.
    is_ignorant: bool,
    /// Whether there is no other.
    is_alone: bool,
    requests: u64,
    rng: StdRng,
    told: Vec<String>,
}

enum Failure {
    Transport(TransportError),
    Answer(ErrorPayload),
}

fn refusal(code: i64, message: &'static str) -> Failure {
    Failure::Answer(ErrorPayload { code, message: message.into(), data: None })
}

impl Endpoint {
    pub fn new(name: usize, seed: u64, is_alone: bool, view: Branch) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let limits = [(u64::MAX, usize::MAX), (10, usize::MAX), (u64::MAX, 25), (40, 60), (1, usize::MAX)];
        let limits = *limits.choose(&mut rng).unwrap();
        let is_ignorant = rng.random_bool(0.3);
        Self(Arc::new(Mutex::new(State {
            name,
            view,
            former: VecDeque::new(),
            faults: Faults::default(),
            told_head: None,
            is_up: true,
            limits,
            is_ignorant,
            is_alone,
            requests: 0,
            rng,
            told: vec![],
        })))
    }

    /// An endpoint without any limits.
    pub fn honest(view: Branch) -> Self {
        let endpoint = Self::new(99, 0, true, view);
        endpoint.0.lock().unwrap().limits = (u64::MAX, usize::MAX);
        endpoint
    }

    pub fn show(&self, view: Branch) {
        let mut state = self.0.lock().unwrap();
        let before = std::mem::replace(&mut state.view, view);
        state.former.push_back(before);
        if state.former.len() > 4 {
            state.former.pop_front();
        }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().unwrap().faults = faults;
    }

    pub fn set_up(&self, is_up: bool) {
        self.0.lock().unwrap().is_up = is_up;
    }

    /// Healthy from now on, as far as it was honest at all.
    pub fn heal(&self, view: Branch) {
        let mut state = self.0.lock().unwrap();
        (state.view, state.faults, state.is_up) = (view, Faults::default(), true);
        state.former.clear();
        state.told_head = None;
    }

    pub fn requests(&self) -> u64 {
        self.0.lock().unwrap().requests
    }

    /// What went wrong since this was asked last.
    pub fn take_told(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().told)
    }

    pub fn provider(&self) -> DynProvider {
        let client = RpcClient::new(Wire(self.clone()), true);
        ProviderBuilder::new().disable_recommended_fillers().connect_client(client).erased()
    }

    async fn answer(self, packet: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let pause = self.0.lock().unwrap().pause();
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => tokio::task::yield_now().await,
        }
        let mut state = self.0.lock().unwrap();
        match packet {
            RequestPacket::Single(request) => Ok(ResponsePacket::Single(state.respond(&request)?)),
            RequestPacket::Batch(requests) => {
                let responses = requests.iter().map(|request| state.respond(request));
                Ok(ResponsePacket::Batch(responses.collect::<Result<_, _>>()?))
            }
        }
    }

    /// For one that is asked over HTTP: status and body.
    pub async fn answer_text(self, body: &str) -> (u16, String) {
        let Ok(asked) = serde_json::from_str::<Value>(body) else { return (400, String::new()) };
        let pause = self.0.lock().unwrap().pause();
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let mut state = self.0.lock().unwrap();
        let mut one = |request: &Value| {
            let params = to_raw_value(&request["params"]).unwrap();
            let (name, value) = match state.handle(request["method"].as_str().unwrap(), Some(&params)) {
                Ok(result) => ("result", json!(result)),
                Err(Failure::Answer(error)) => ("error", json!({ "code": error.code, "message": error.message })),
                Err(Failure::Transport(_)) => return None,
            };
            Some(json!({ "jsonrpc": "2.0", "id": request["id"], name: value }))
        };
        let answer = match &asked {
            Value::Array(requests) => requests.iter().map(one).collect::<Option<Vec<_>>>().map(Value::from),
            request => one(request),
        };
        answer.map_or((502, "upstream is gone".to_owned()), |answer| (200, answer.to_string()))
    }
}

impl State {
    fn hit(&mut self, per_mille: u32, what: &str) -> bool {
        let hit = per_mille > 0 && self.rng.random_range(0..1000) < per_mille;
        if hit {
            self.told.push(format!("endpoint {}: {what}", self.name));
        }
        hit
    }

    fn pause(&mut self) -> Option<Duration> {
        let slow = self.faults.slow;
        (slow > 0 && self.rng.random_range(0..1000) < slow).then(|| Duration::from_millis(self.rng.random_range(1..20)))
    }

    fn respond(&mut self, request: &SerializedRequest) -> Result<Response, TransportError> {
        let payload = match self.handle(request.method(), request.params()) {
            Ok(result) => ResponsePayload::Success(result),
            Err(Failure::Answer(error)) => ResponsePayload::Failure(error),
            Err(Failure::Transport(error)) => return Err(error),
        };
        Ok(Response { id: request.id().clone(), payload })
    }

    fn handle(&mut self, method: &str, params: Option<&RawValue>) -> Result<Box<RawValue>, Failure> {
        self.requests += 1;
        if !self.is_up || self.hit(self.faults.broken, "broken connection") {
            return Err(Failure::Transport(TransportErrorKind::custom_str("connection reset by peer")));
        }
        if self.hit(self.faults.refused, "refused") {
            return Err(refusal(-32005, "too many requests"));
        }
        let params: Value = params.map_or(Value::Null, |params| serde_json::from_str(params.get()).unwrap());
        let result = match method {
            "eth_chainId" => json!(format!("{:#x}", market::fold::model::CHAIN_ID)),
            "eth_getCode" => json!("0x60"),
            "eth_blockNumber" => json!(format!("{:#x}", self.latest().number)),
            "eth_getBlockByNumber" if params[0] == "latest" => {
                let head = self.latest();
                self.block(Some(head))
            }
            "eth_getBlockByNumber" => {
                let view = self.seen();
                self.block(by_number(&view, &params[0]))
            }
            "eth_getBlockByHash" => {
                let view = self.seen();
                let hash: B256 = serde_json::from_value(params[0].clone()).unwrap();
                self.block(view.iter().find(|block| block.hash == hash).cloned())
            }
            "eth_getLogs" => self.logs(&serde_json::from_value(params[0].clone()).unwrap())?,
            _ => return Err(refusal(-32601, "the method does not exist")),
        };
        Ok(to_raw_value(&result).unwrap())
    }

    /// The view that is answered by.
    fn seen(&mut self) -> Branch {
        if !self.former.is_empty() && self.hit(self.faults.other_view, "answered by another view") {
            return self.former[self.rng.random_range(0..self.former.len())].clone();
        }
        self.view.clone()
    }

    fn latest(&mut self) -> Arc<Block> {
        let head = self.seen().last().unwrap().clone();
        match self.told_head.clone() {
            Some(told) if told.hash != head.hash && self.hit(self.faults.repeated, REPEATED) => told,
            _ => {
                self.told_head = Some(head.clone());
                head
            }
        }
    }

    fn block(&mut self, block: Option<Arc<Block>>) -> Value {
        let Some(block) = block.filter(|_| !self.hit(self.faults.no_block, "said that a block is not there")) else {
            return Value::Null;
        };
        let mut told = block.header.clone();
        if self.hit(self.faults.wrong_hash, &format!("wrong hash of block {}", block.number)) {
            told.header.hash = B256::from(self.rng.random::<[u8; 32]>());
        }
        if self.hit(self.faults.wrong_bloom, &format!("wrong bloom filter of block {}", block.number)) {
            let bits = if self.rng.random_bool(0.5) { 0 } else { 0xff };
            told.header.inner.logs_bloom = Bloom::repeat_byte(bits);
        }
        json!(told)
    }

    fn logs(&mut self, filter: &Filter) -> Result<Value, Failure> {
        let view = self.seen();
        let blocks: Vec<Arc<Block>> = match filter.block_option {
            FilterBlockOption::AtBlockHash(hash) => {
                let block = view.iter().rev().find(|block| block.hash == hash).cloned();
                if block.is_none() && !self.is_ignorant {
                    return Err(refusal(-32000, "unknown block"));
                }
                block.into_iter().collect()
            }
            FilterBlockOption::Range { from_block, to_block } => {
                let at = |tag: Option<alloy::eips::BlockNumberOrTag>| tag.and_then(|tag| tag.as_number()).unwrap();
                let (from, to) = (at(from_block), at(to_block));
                if to - from >= self.limits.0 {
                    return Err(refusal(-32005, "query exceeds the range allowed"));
                }
                view.iter().filter(|block| (from..=to).contains(&block.number)).cloned().collect()
            }
        };
        let wanted: Vec<Address> = filter.address.iter().copied().collect();
        let mut found: Vec<types::Log> = blocks
            .iter()
            .flat_map(|block| &block.logs)
            .filter(|log| wanted.is_empty() || wanted.contains(&log.address()))
            .cloned()
            .collect();
        if found.len() > self.limits.1 && blocks.len() > 1 {
            return Err(refusal(-32005, "query returns more than the results allowed"));
        }
        self.spoil(&mut found, blocks.len());
        Ok(json!(found))
    }

    fn spoil(&mut self, logs: &mut Vec<types::Log>, blocks: usize) {
        if logs.is_empty() {
            return;
        }
        let any = self.rng.random_range(0..logs.len());
        // Of a range, one endpoint alone is believed.
        if (blocks == 1 || !self.is_alone)
            && self.hit(self.faults.no_logs, &format!("no logs of {blocks} blocks that have {}", logs.len()))
        {
            logs.clear();
            return;
        }
        let number = logs[any].block_number.unwrap();
        if self.hit(self.faults.wrong_log, &format!("wrong log of block {number}")) {
            match self.rng.random_range(0..3) {
                0 => logs[any].removed = true,
                1 => logs[any].block_hash = Some(B256::from(self.rng.random::<[u8; 32]>())),
                _ => logs[any].block_number = Some(number + 1),
            }
        }
        if self.hit(self.faults.disorder, "logs in disorder") {
            if self.rng.random_bool(0.5) {
                logs.reverse();
            } else {
                logs.push(logs[any].clone());
            }
        }
    }
}

fn by_number(view: &Branch, tag: &Value) -> Option<Arc<Block>> {
    let last = view.last()?.number;
    let number = match tag.as_str()? {
        "latest" | "pending" => last,
        "safe" | "finalized" => last.saturating_sub(FINALIZED),
        "earliest" => 0,
        hex => u64::from_str_radix(hex.trim_start_matches("0x"), 16).ok()?,
    };
    view.get(usize::try_from(number).ok()?).cloned()
}

/// The way to an endpoint within the process.
#[derive(Clone)]
struct Wire(Endpoint);

impl tower_service::Service<RequestPacket> for Wire {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        Box::pin(self.0.clone().answer(packet))
    }
}
