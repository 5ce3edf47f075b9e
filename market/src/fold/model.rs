//! The contracts as far as their events go: what may happen, what is emitted then, and what they return afterwards. Written
//! after the Solidity and not after the fold, so that tests compare two opinions. Built for tests only: those of this crate,
//! and those of others that ask for the feature `model`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::new_without_default)] // it is all test

mod channels;
mod jobs;
mod registry;

pub use jobs::{opened, order};

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, LogData, U256};
use alloy::sol_types::SolEvent;
use proptest::prelude::*;

use super::{ChainEvent, Contracts, RawLog, time_of};
use crate::abi::{IJobEscrow, INodeRegistry, IOwnable2Step, JobState, Order};
use crate::confirmation::Policy;
use crate::typed_data;

pub const CHAIN_ID: u64 = 31337;
pub const ESCROW: Address = Address::repeat_byte(0xe5);
pub const REGISTRY: Address = Address::repeat_byte(0x4e);
pub const MIN_STAKE: u128 = 500;
const BOND: u128 = 300;
const THAW_PERIOD: u64 = 30;
const ARBITER_PERIOD: u64 = 90;
const UNBONDING_PERIOD: u64 = 45;
const DISPUTE_BOND_BPS: u128 = 500;
/// When the contracts are constructed: so far ahead that no server's clock makes a key expire while a test looks at it.
pub const START: u64 = 4_000_000_000;

pub fn contracts() -> Contracts {
    let domain = typed_data::domain(CHAIN_ID, ESCROW);
    Contracts { chain_id: CHAIN_ID, escrow: ESCROW, registry: REGISTRY, domain, confirmation: Policy::local() }
}

pub fn requester(n: u8) -> Address {
    Address::repeat_byte(0x10 + n)
}

/// The first is a requester too: nothing forbids it.
pub fn node(n: u8) -> Address {
    if n == 0 { requester(0) } else { Address::repeat_byte(0x20 + n) }
}

/// The first is the native coin.
pub fn token(n: u8) -> Address {
    Address::repeat_byte(n)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    pub free: u128,
    pub thawing: u128,
    pub thaw_end: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Channel {
    pub claimed: u128,
    pub reserved: u128,
    pub covered_nonce: u64,
    /// As stored: may exceed what is reserved by now.
    pub thawing: u128,
    pub thaw_end: u64,
}

#[derive(Debug, Clone)]
pub struct Job {
    pub state: JobState,
    pub signed: bool,
    pub node: Address,
    pub timer: u64,
    pub amount: u128,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node {
    pub stake: u128,
    pub unbonding: u128,
    pub unbond_end: u64,
    pub bonds: u32,
    pub paid: u32,
    pub disputed: u32,
    pub lost: u32,
}

/// One log, and when it was emitted.
#[derive(Debug, Clone)]
struct Emitted {
    contract: Address,
    data: LogData,
    at: u64,
    action: u64,
}

/// Something that may happen; what the contracts would refuse does nothing.
#[derive(Debug, Clone)]
pub enum Action {
    Deposit(u8, u8, u16),
    Thaw(u8, u8, u16),
    Withdraw(u8, u8),
    Reserve(u8, u8, u8, u16),
    ThawReservation(u8, u8, u8, u16),
    Release(u8, u8, u8),
    /// Requester, key, token, cap.
    Authorize(u8, u8, u8, u16),
    Revoke(u8, u8, u8),
    SetSettler(u8, u8, bool),
    /// Node, token, and vouchers: requester, how much above what was claimed, nonce, by which session key if by one.
    Redeem(u8, u8, Vec<(u8, u16, u8, Option<u8>)>),
    Open(u8, u16),
    Cancel(u8),
    /// Order, node, price asked, and whether the order's signature comes along.
    Submit(u8, u8, u16, bool),
    Finalize(u8),
    Refund(u8),
    Accept(u8),
    Dispute(u8),
    Resolve(u8, u16, u16),
    WithdrawEarned(u8, u8),
    WithdrawFees(u8),
    SetFee(u16),
    Pause(bool, bool),
    SetMinStake(u16),
    TransferOwnership,
    /// Again: an update.
    Register(u8, u8),
    Stake(u8, u16),
    Unbond(u8, u16),
    FinishUnbond(u8),
    Wait(u8),
}

/// How often a property is tried: as `PROPTEST_CASES` says, or else enough to meet everything.
pub fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 96 };
    ProptestConfig::with_cases(cases)
}

/// What the contracts might have been through: mostly with money and nodes there from the start.
pub fn histories() -> impl Strategy<Value = Model> {
    let actions = proptest::collection::vec(action(ORDERS), 1..160);
    (proptest::bool::weighted(0.9), actions).prop_map(|(is_prepared, mut actions)| {
        if is_prepared {
            actions.splice(0..0, preparations());
        }
        Model::after(&actions)
    })
}

/// Money in every account and three nodes with a stake, so that jobs get far.
pub fn preparations() -> impl Iterator<Item = Action> {
    let deposits = (0..3).flat_map(|n| (0..2).map(move |coin| Action::Deposit(n, coin, 20_000)));
    deposits.chain((0..3).flat_map(|n| [Action::Register(n, 0), Action::Stake(n, 5000)]))
}

/// On the first `orders` orders, as often as it takes for jobs to get through all of their states.
pub fn action(orders: u8) -> impl Strategy<Value = Action> {
    let (who, coin, job) = (|| 0u8..3, || 0u8..2, move || 0u8..orders);
    let bps = || prop_oneof![Just(0u16), Just(10_000), 0u16..10_000];
    let voucher = (who(), any::<u16>(), 0u8..orders, proptest::option::of(who()));
    let channels = prop_oneof![
        3 => (who(), who(), coin(), 1u16..).prop_map(|(a, b, c, d)| Action::Reserve(a, b, c, d)),
        2 => (who(), who(), coin(), 1u16..).prop_map(|(a, b, c, d)| Action::ThawReservation(a, b, c, d)),
        2 => (who(), who(), coin()).prop_map(|(a, b, c)| Action::Release(a, b, c)),
        2 => (who(), who(), coin(), any::<u16>()).prop_map(|(a, b, c, d)| Action::Authorize(a, b, c, d)),
        1 => (who(), who(), coin()).prop_map(|(a, b, c)| Action::Revoke(a, b, c)),
        1 => (who(), who(), any::<bool>()).prop_map(|(a, b, c)| Action::SetSettler(a, b, c)),
        4 => (who(), coin(), proptest::collection::vec(voucher, 0..4)).prop_map(|(a, b, c)| Action::Redeem(a, b, c)),
    ];
    let jobs = prop_oneof![
        8 => (job(), prop_oneof![Just(0u16), any::<u16>()]).prop_map(|(a, b)| Action::Open(a, b)),
        3 => job().prop_map(Action::Cancel),
        9 => (job(), who(), any::<u16>(), proptest::bool::weighted(0.4)).prop_map(|(a, b, c, d)| Action::Submit(a, b, c, d)),
        3 => job().prop_map(Action::Finalize),
        4 => job().prop_map(Action::Refund),
        2 => job().prop_map(Action::Accept),
        5 => job().prop_map(Action::Dispute),
        5 => (job(), bps(), bps()).prop_map(|(a, b, c)| Action::Resolve(a, b, c)),
    ];
    let money = prop_oneof![
        5 => (who(), coin(), 1u16..).prop_map(|(a, b, c)| Action::Deposit(a, b, c)),
        2 => (who(), coin(), any::<u16>()).prop_map(|(a, b, c)| Action::Thaw(a, b, c)),
        1 => (who(), coin()).prop_map(|(a, b)| Action::Withdraw(a, b)),
        1 => (who(), coin()).prop_map(|(a, b)| Action::WithdrawEarned(a, b)),
        1 => coin().prop_map(Action::WithdrawFees),
    ];
    let owners = prop_oneof![
        3 => (0u16..=500).prop_map(Action::SetFee),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(a, b)| Action::Pause(a, b)),
        2 => (0u16..1000).prop_map(Action::SetMinStake),
        1 => Just(Action::TransferOwnership),
    ];
    let registry = prop_oneof![
        4 => (who(), any::<u8>()).prop_map(|(a, b)| Action::Register(a, b)),
        4 => (who(), 1u16..).prop_map(|(a, b)| Action::Stake(a, b)),
        3 => (who(), any::<u16>()).prop_map(|(a, b)| Action::Unbond(a, b % 2000)),
        3 => who().prop_map(Action::FinishUnbond),
    ];
    let wait = prop_oneof![2 => 0u8..15, 1 => 0u8..=100].prop_map(Action::Wait);
    prop_oneof![4 => money, 5 => channels, 12 => jobs, 1 => owners, 3 => registry, 3 => wait]
}

/// How many different orders there are to try things on.
pub const ORDERS: u8 = 8;

#[derive(Debug, Clone)]
pub struct Model {
    emitted: Vec<Emitted>,
    actions: u64,
    pub now: u64,
    pub accounts: BTreeMap<(Address, Address), Account>,
    pub channels: BTreeMap<(Address, Address, Address), Channel>,
    pub sessions: BTreeMap<(Address, Address, Address), (u128, u64)>,
    pub settlers: BTreeMap<(Address, Address), bool>,
    pub jobs: BTreeMap<B256, Job>,
    pub earned: BTreeMap<(Address, Address), u128>,
    pub fees: BTreeMap<Address, u128>,
    pub nodes: BTreeMap<Address, Node>,
    pub fee_bps: u16,
    pub paused: (bool, bool),
    /// Current, next, and from when on.
    min_stake: (u128, u128, u64),
}

impl Model {
    /// Freshly constructed: what the constructors emit is part of it.
    pub fn new() -> Self {
        let mut model = Self {
            emitted: vec![],
            actions: 0,
            now: START,
            accounts: BTreeMap::new(),
            channels: BTreeMap::new(),
            sessions: BTreeMap::new(),
            settlers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            earned: BTreeMap::new(),
            fees: BTreeMap::new(),
            nodes: BTreeMap::new(),
            fee_bps: 0,
            paused: (false, false),
            min_stake: (0, MIN_STAKE, 0),
        };
        let constructed =
            IOwnable2Step::OwnershipTransferred { previousOwner: Address::ZERO, newOwner: Address::repeat_byte(1) };
        model.registry(&constructed);
        model.escrow(&constructed);
        model
    }

    /// After `actions`, those that are possible.
    pub fn after(actions: &[Action]) -> Self {
        let mut model = Self::new();
        actions.iter().for_each(|action| model.act(action));
        model
    }

    /// All that was emitted, two transactions a block as long as no time passes.
    pub fn events(&self) -> Vec<ChainEvent> {
        let (mut number, mut log_index, mut last) = (0, 0, (0, 0));
        let mut events = vec![];
        for emitted in &self.emitted {
            let place = (emitted.at, emitted.action / 2);
            (number, log_index) = if place == last { (number, log_index + 1) } else { (number + 1, 0) };
            last = place;
            let log = RawLog {
                block_number: number,
                block_hash: B256::from(U256::from(number)),
                mined_at: time_of(emitted.at),
                tx_hash: B256::from(U256::from(emitted.action)),
                log_index,
                contract: emitted.contract,
                topics: emitted.data.topics().to_vec(),
                data: emitted.data.data.clone(),
            };
            events.push(ChainEvent::decode(log, &contracts()).unwrap());
        }
        events
    }

    /// What was emitted since this was asked last, and by which contract.
    pub fn take_logs(&mut self) -> Vec<(Address, LogData)> {
        self.emitted.drain(..).map(|emitted| (emitted.contract, emitted.data)).collect()
    }

    pub fn act(&mut self, action: &Action) {
        self.actions += 1;
        match action {
            Action::Wait(secs) => self.now += u64::from(*secs),
            Action::Deposit(..) | Action::Thaw(..) | Action::Withdraw(..) => self.move_account(action),
            Action::Reserve(..)
            | Action::ThawReservation(..)
            | Action::Release(..)
            | Action::Authorize(..)
            | Action::Revoke(..)
            | Action::SetSettler(..)
            | Action::Redeem(..) => self.use_channel(action),
            Action::Open(..)
            | Action::Cancel(_)
            | Action::Submit(..)
            | Action::Finalize(_)
            | Action::Refund(_)
            | Action::Accept(_)
            | Action::Dispute(_)
            | Action::Resolve(..) => self.use_job(action),
            Action::WithdrawEarned(n, coin) => {
                let (node, token) = (node(*n), token(*coin));
                if let Some(amount) = self.earned.insert((node, token), 0).filter(|amount| *amount > 0) {
                    let amount = U256::from(amount);
                    self.escrow(&IJobEscrow::EarnedWithdrawn { node, token, to: node, amount, earned: U256::ZERO });
                }
            }
            Action::WithdrawFees(coin) => {
                let token = token(*coin);
                if let Some(amount) = self.fees.insert(token, 0).filter(|amount| *amount > 0) {
                    self.escrow(&IJobEscrow::FeesWithdrawn { token, to: node(1), amount: U256::from(amount) });
                }
            }
            Action::SetFee(_) | Action::Pause(..) | Action::SetMinStake(_) | Action::TransferOwnership => {
                self.own(action);
            }
            Action::Register(..) | Action::Stake(..) | Action::Unbond(..) | Action::FinishUnbond(_) => {
                self.move_stake(action);
            }
        }
    }

    fn own(&mut self, action: &Action) {
        match action {
            Action::SetFee(bps) => {
                self.fee_bps = *bps;
                self.escrow(&IJobEscrow::FeeBpsSet { feeBps: *bps });
            }
            Action::Pause(of_escrow, paused) if *of_escrow => {
                self.paused.0 = *paused;
                self.escrow(&IJobEscrow::PausedSet { paused: *paused });
            }
            Action::Pause(_, paused) => {
                self.paused.1 = *paused;
                self.registry(&INodeRegistry::PausedSet { paused: *paused });
            }
            Action::SetMinStake(next) => {
                let (current, next) = (self.min_stake(), u128::from(*next));
                let since = self.now + if next > current { UNBONDING_PERIOD } else { 0 };
                self.min_stake = (current, next, since);
                self.registry(&INodeRegistry::MinStakeSet { minStake: U256::from(next), since });
            }
            _ => {
                let (previous, next) = (Address::repeat_byte(1), Address::repeat_byte(2));
                let started = IOwnable2Step::OwnershipTransferStarted { previousOwner: previous, newOwner: next };
                self.escrow(&started);
                self.registry(&started);
                self.escrow(&IOwnable2Step::OwnershipTransferred { previousOwner: previous, newOwner: next });
            }
        }
    }

    fn move_account(&mut self, action: &Action) {
        let (Action::Deposit(n, coin, _) | Action::Thaw(n, coin, _) | Action::Withdraw(n, coin)) = action else {
            return;
        };
        let (owner, token) = (requester(*n), token(*coin));
        let (now, mut account) = (self.now, self.account(owner, token));
        match action {
            Action::Deposit(_, _, amount) if !self.paused.0 => {
                account.free += u128::from(*amount);
                let (amount, free) = (U256::from(*amount), U256::from(account.free));
                self.escrow(&IJobEscrow::Deposited { account: owner, token, from: node(2), amount, free });
            }
            Action::Thaw(_, _, amount) if *amount > 0 && u128::from(*amount) <= account.free => {
                account.free -= u128::from(*amount);
                account.thawing += u128::from(*amount);
                account.thaw_end = now + THAW_PERIOD;
                let (free, thawing) = (U256::from(account.free), U256::from(account.thawing));
                self.escrow(&IJobEscrow::Thawing { account: owner, token, free, thawing, thawEnd: account.thaw_end });
            }
            Action::Withdraw(..) if account.thawing > 0 && now >= account.thaw_end => {
                let (amount, free) = (U256::from(account.thawing), U256::from(account.free));
                account.thawing = 0;
                let thawing = U256::ZERO;
                self.escrow(&IJobEscrow::Withdrawn { account: owner, token, to: owner, amount, free, thawing });
            }
            _ => return,
        }
        self.accounts.insert((owner, token), account);
    }

    pub fn account(&self, owner: Address, token: Address) -> Account {
        self.accounts.get(&(owner, token)).copied().unwrap_or_default()
    }

    pub fn min_stake(&self) -> u128 {
        if self.now >= self.min_stake.2 { self.min_stake.1 } else { self.min_stake.0 }
    }

    /// What is locked for a job, as the contract returns it.
    pub fn locked(&self, job_id: &B256) -> u128 {
        let live = |job: &&Job| matches!(job.state, JobState::Open | JobState::Submitted | JobState::Disputed);
        self.jobs.get(job_id).filter(live).map_or(0, |job| job.amount)
    }

    pub fn job_id(order: &Order) -> B256 {
        typed_data::job_id(order, &contracts().domain)
    }

    fn escrow(&mut self, event: &impl SolEvent) {
        self.emit(ESCROW, event);
    }

    fn registry(&mut self, event: &impl SolEvent) {
        self.emit(REGISTRY, event);
    }

    fn emit(&mut self, contract: Address, event: &impl SolEvent) {
        let (at, action) = (self.now, self.actions);
        self.emitted.push(Emitted { contract, data: event.encode_log_data(), at, action });
    }

    fn credit(&mut self, owner: Address, token: Address, amount: u128) -> U256 {
        let account = self.accounts.entry((owner, token)).or_default();
        account.free += amount;
        U256::from(account.free)
    }

    /// Takes up to `amount`, free funds first. What was taken, and what is left.
    fn draw(&mut self, owner: Address, token: Address, amount: u128) -> (u128, Account) {
        let account = self.accounts.entry((owner, token)).or_default();
        let from_free = amount.min(account.free);
        let from_thawing = (amount - from_free).min(account.thawing);
        account.free -= from_free;
        account.thawing -= from_thawing;
        (from_free + from_thawing, *account)
    }
}
