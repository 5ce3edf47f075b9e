//! Events as the contracts emit them while many requesters and nodes do business: of 100, 32 jobs opened, 31 paid, half of them
//! after a result that waited, 8 deposits, 6 redemptions of 8 vouchers each, 5 stakes, 3 fees.

use std::collections::VecDeque;

use alloy::primitives::{Address, B256, LogData, U256, keccak256};
use alloy::sol_types::SolEvent;
use chrono::{DateTime, Utc};
use market::abi::{IJobEscrow, INodeRegistry, JobSpec, Order};
use market::confirmation::Policy;
use market::db::chain::{Block, BlockId, Step};
use market::fold::{ChainEvent, Contracts, RawLog, time_of};
use market::typed_data;

const CHAIN_ID: u64 = 31337;
const REQUESTERS: usize = 997;
const NODES: usize = 53;
/// How long a job lies open, in jobs.
const OPEN: usize = 1500;
const PRICE: u128 = 1_000_000_000_000_000;
const VOUCHERS: usize = 8;

/// Makes steps; remembers what stands after each event, since events tell it.
pub struct Traffic {
    pub contracts: Contracts,
    per_block: usize,
    emitted: usize,
    jobs: u64,
    open: VecDeque<(B256, usize, usize)>,
    free: Vec<u128>,
    earned: Vec<u128>,
    claimed: Vec<u128>,
    stake: Vec<u128>,
    fees: u128,
}

fn address(kind: u8, n: usize) -> Address {
    let mut address = Address::repeat_byte(kind);
    address.0[12..].copy_from_slice(&n.to_be_bytes());
    address
}

impl Traffic {
    pub fn new(per_block: usize) -> Self {
        let (escrow, registry) = (Address::repeat_byte(0xe5), Address::repeat_byte(0x4e));
        let domain = typed_data::domain(CHAIN_ID, escrow);
        Self {
            contracts: Contracts { chain_id: CHAIN_ID, escrow, registry, domain, confirmation: Policy::local() },
            per_block,
            emitted: 0,
            jobs: 0,
            open: VecDeque::new(),
            free: vec![0; REQUESTERS],
            earned: vec![0; NODES],
            claimed: vec![0; REQUESTERS],
            stake: vec![0; NODES],
            fees: 0,
        }
    }

    pub fn anchor(&self) -> Block {
        block(0)
    }

    /// About `events` events in steps of about `per_step`.
    pub fn steps(&mut self, events: usize, per_step: usize, unsettled: bool) -> anyhow::Result<Vec<Step>> {
        let mut steps = Vec::new();
        let (mut from, mut made) = (block(0).id, self.preparations()?);
        while self.emitted < events {
            while made.len() < per_step || !self.emitted.is_multiple_of(self.per_block) {
                made.push(self.next()?);
            }
            let events = std::mem::take(&mut made);
            let last = u64::try_from((self.emitted - 1) / self.per_block)? + 1;
            let blocks: Vec<Block> = (from.number + 1..=last).map(block).collect();
            let tip = block(last).id;
            let settled = if unsettled { 0 } else { last };
            steps.push(Step { from, ancestor: None, blocks, events, settled });
            from = tip;
        }
        Ok(steps)
    }

    /// Nodes, and money for everybody.
    fn preparations(&mut self) -> anyhow::Result<Vec<ChainEvent>> {
        let registered = (0..NODES).map(|n| INodeRegistry::NodeUpdated {
            node: address(0x20, n),
            nodeId: B256::left_padding_from(&n.to_be_bytes()),
            publicKey: vec![7; 32].into(),
            payout: address(0x20, n),
            capacity: 8,
            operations: vec!["encrypt".to_owned()],
            uri: "https://node.example".to_owned(),
        });
        let registered: Vec<LogData> = registered.map(|event| event.encode_log_data()).collect();
        let mut events = Vec::new();
        for data in registered {
            events.push(self.event(self.contracts.registry, &data)?);
        }
        for n in 0..REQUESTERS {
            events.push(self.deposit(n, 1_000_000 * PRICE)?);
        }
        Ok(events)
    }

    fn next(&mut self) -> anyhow::Result<ChainEvent> {
        let turn = self.emitted % 100;
        match turn {
            0..8 => self.deposit(self.emitted % REQUESTERS, PRICE),
            8..14 => self.redeem(),
            14..19 => self.stake(),
            19..22 => {
                self.fees += 1;
                let (fee, fees) = (U256::ONE, U256::from(self.fees));
                let job_id = self.open.back().map_or(B256::ZERO, |job| job.0);
                let event = IJobEscrow::FeeTaken { jobId: job_id, token: Address::ZERO, fee, fees };
                self.event(self.contracts.escrow, &event.encode_log_data())
            }
            22..37 => match self.open.get(OPEN / 2 + turn).copied() {
                Some((job_id, requester, node)) => self.submit(job_id, requester, node),
                None => self.open(),
            },
            37..68 if self.open.len() > OPEN => match self.open.pop_front() {
                Some((job_id, requester, node)) => self.pay(job_id, requester, node),
                None => self.open(),
            },
            _ => self.open(),
        }
    }

    fn deposit(&mut self, n: usize, amount: u128) -> anyhow::Result<ChainEvent> {
        self.free[n] += amount;
        let (account, free) = (address(0x10, n), U256::from(self.free[n]));
        let event =
            IJobEscrow::Deposited { account, token: Address::ZERO, from: account, amount: U256::from(amount), free };
        self.event(self.contracts.escrow, &event.encode_log_data())
    }

    fn stake(&mut self) -> anyhow::Result<ChainEvent> {
        let n = self.emitted % NODES;
        self.stake[n] += PRICE;
        let (node, stake) = (address(0x20, n), U256::from(self.stake[n]));
        let event = INodeRegistry::Staked { node, from: node, amount: U256::from(PRICE), stake };
        self.event(self.contracts.registry, &event.encode_log_data())
    }

    fn open(&mut self) -> anyhow::Result<ChainEvent> {
        self.jobs += 1;
        let n = usize::try_from(self.jobs)?;
        let (requester, node) = (n % REQUESTERS, n % NODES);
        let spec = JobSpec {
            inputCID: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku".to_owned(),
            operation: "encrypt".to_owned(),
            params: r#"{"recipient":"age1example"}"#.to_owned(),
        };
        let order = Order {
            requester: address(0x10, requester),
            maxPrice: PRICE,
            node: address(0x20, node),
            specHash: typed_data::spec_hash(&spec),
            deadline: 1_900_000_000,
            challengeWindow: 60,
            nonce: self.jobs,
            ..Order::default()
        };
        self.free[requester] -= PRICE;
        let job_id = typed_data::job_id(&order, &self.contracts.domain);
        let event = IJobEscrow::JobOpened {
            jobId: job_id,
            requester: order.requester,
            node: order.node,
            token: order.token,
            maxPrice: order.maxPrice,
            assigner: order.assigner,
            deadline: order.deadline,
            challengeWindow: order.challengeWindow,
            arbiter: order.arbiter,
            maxFeeBps: order.maxFeeBps,
            nonce: order.nonce,
            spec,
            free: U256::from(self.free[requester]),
        };
        self.open.push_back((job_id, requester, node));
        self.event(self.contracts.escrow, &event.encode_log_data())
    }

    fn submit(&mut self, job_id: B256, requester: usize, node: usize) -> anyhow::Result<ChainEvent> {
        self.open.retain(|job| job.0 != job_id);
        self.open.push_front((job_id, requester, node));
        let event = IJobEscrow::ResultSubmitted {
            jobId: job_id,
            requester: address(0x10, requester),
            node: address(0x20, node),
            token: Address::ZERO,
            price: PRICE,
            resultHash: job_id,
            finalizeAt: 1_850_000_000,
            free: U256::from(self.free[requester]),
        };
        self.event(self.contracts.escrow, &event.encode_log_data())
    }

    fn pay(&mut self, job_id: B256, requester: usize, node: usize) -> anyhow::Result<ChainEvent> {
        self.earned[node] += PRICE;
        let event = IJobEscrow::JobPaid {
            jobId: job_id,
            requester: address(0x10, requester),
            node: address(0x20, node),
            token: Address::ZERO,
            price: PRICE,
            resultHash: job_id,
            free: U256::from(self.free[requester]),
            earned: U256::from(self.earned[node]),
        };
        self.event(self.contracts.escrow, &event.encode_log_data())
    }

    /// Always of one node, and each requester's channel with it.
    fn redeem(&mut self) -> anyhow::Result<ChainEvent> {
        let mut redemptions = Vec::new();
        for n in 0..VOUCHERS {
            let n = (self.emitted * VOUCHERS + n) % REQUESTERS;
            self.claimed[n] += PRICE;
            self.free[n] -= PRICE;
            self.earned[0] += PRICE;
            redemptions.extend_from_slice(address(0x10, n).as_slice());
            redemptions.extend_from_slice(&self.claimed[n].to_be_bytes()[4..]);
            redemptions.extend_from_slice(&self.free[n].to_be_bytes());
            redemptions.extend_from_slice(&[0; 16]);
            redemptions.extend_from_slice(&PRICE.to_be_bytes()[4..]);
            redemptions.extend_from_slice(&[0; 12]);
            redemptions.extend_from_slice(&self.jobs.to_be_bytes());
        }
        let (node, earned) = (address(0x20, 0), U256::from(self.earned[0]));
        let event =
            IJobEscrow::VouchersRedeemed { node, token: Address::ZERO, earned, redemptions: redemptions.into() };
        self.event(self.contracts.escrow, &event.encode_log_data())
    }

    fn event(&mut self, contract: Address, data: &LogData) -> anyhow::Result<ChainEvent> {
        let (number, log_index) = (self.emitted / self.per_block, self.emitted % self.per_block);
        let block = block(u64::try_from(number)? + 1);
        let log = RawLog {
            block_number: block.id.number,
            block_hash: block.id.hash,
            mined_at: block.mined_at,
            // A transaction of ours has some ten logs.
            tx_hash: keccak256((self.emitted / 10).to_be_bytes()),
            log_index: u64::try_from(log_index)?,
            contract,
            topics: data.topics().to_vec(),
            data: data.data.clone(),
        };
        self.emitted += 1;
        Ok(ChainEvent::decode(log, &self.contracts)?)
    }
}

fn block(number: u64) -> Block {
    let hash = |number: u64| keccak256(number.to_be_bytes());
    let mined_at: DateTime<Utc> = time_of(1_800_000_000 + number);
    let id = BlockId { number, hash: hash(number) };
    Block { id, parent_hash: hash(number.saturating_sub(1)), mined_at }
}
