use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::{Address, B256, Bytes, LogData, U256};
use alloy::sol_types::SolEvent;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::abi::{IJobEscrow, INodeRegistry, SkipReason};
use crate::typed_data;

const CHAIN_ID: u64 = 31337;
const ESCROW: Address = Address::repeat_byte(0xe5);
const REGISTRY: Address = Address::repeat_byte(0x4e);

fn contracts() -> Contracts {
    let domain = typed_data::domain(CHAIN_ID, ESCROW);
    Contracts { chain_id: CHAIN_ID, escrow: ESCROW, registry: REGISTRY, domain }
}

/// The log of an event, as number `position` of a chain with three logs a block.
fn log(contract: Address, data: &LogData, position: usize) -> RawLog {
    let position = u64::try_from(position).unwrap();
    RawLog {
        block_number: position / 3,
        block_hash: B256::from(U256::from(position / 3)),
        mined_at: time_of(1_800_000_000 + position / 3),
        tx_hash: B256::from(U256::from(position)),
        log_index: position % 3,
        contract,
        topics: data.topics().to_vec(),
        data: data.data.clone(),
    }
}

fn requester(n: u8) -> Address {
    Address::repeat_byte(0x10 + n)
}

fn node(n: u8) -> Address {
    Address::repeat_byte(0x20 + n)
}

fn token(n: u8) -> Address {
    Address::repeat_byte(n)
}

/// The contracts' balances, as far as it takes to emit only what they could.
#[derive(Default)]
struct Ledger {
    logs: Vec<(Address, LogData)>,
    accounts: BTreeMap<(Address, Address), (u64, u64)>,
    earned: BTreeMap<(Address, Address), u64>,
    stakes: BTreeMap<Address, (u64, u64)>,
    jobs: Vec<LedgerJob>,
}

#[derive(Clone, Copy)]
struct LedgerJob {
    id: B256,
    account: (Address, Address),
    windowed: bool,
    state: EscrowState,
    locked: u64,
    node: Address,
}

/// Something that may happen; what cannot happen in the state met does nothing.
#[derive(Debug, Clone)]
enum Action {
    Deposit(u8, u8, u16),
    Thaw(u8, u8, u16),
    Withdraw(u8, u8),
    Open(u8, u8, u16, bool),
    Submit(Index, u8, u16),
    Finalize(Index),
    Refund(Index),
    Skip(Index),
    WithdrawEarned(u8, u8),
    Register(u8, String),
    Stake(u8, u16),
    Unbond(u8, u16),
    FinishUnbond(u8),
}

fn action() -> impl Strategy<Value = Action> {
    let (who, coin) = (|| 0u8..3, || 0u8..2);
    prop_oneof![
        (who(), coin(), 1u16..).prop_map(|(a, b, c)| Action::Deposit(a, b, c)),
        (who(), coin(), any::<u16>()).prop_map(|(a, b, c)| Action::Thaw(a, b, c)),
        (who(), coin()).prop_map(|(a, b)| Action::Withdraw(a, b)),
        (who(), coin(), 1u16.., any::<bool>()).prop_map(|(a, b, c, d)| Action::Open(a, b, c, d)),
        (any::<Index>(), who(), any::<u16>()).prop_map(|(a, b, c)| Action::Submit(a, b, c)),
        any::<Index>().prop_map(Action::Finalize),
        any::<Index>().prop_map(Action::Refund),
        any::<Index>().prop_map(Action::Skip),
        (who(), coin()).prop_map(|(a, b)| Action::WithdrawEarned(a, b)),
        (who(), ".{0,6}").prop_map(|(a, b)| Action::Register(a, b)),
        (who(), 1u16..).prop_map(|(a, b)| Action::Stake(a, b)),
        (who(), any::<u16>()).prop_map(|(a, b)| Action::Unbond(a, b)),
        who().prop_map(Action::FinishUnbond),
    ]
}

impl Ledger {
    fn escrow(&mut self, event: &impl SolEvent) {
        self.logs.push((ESCROW, event.encode_log_data()));
    }

    fn registry(&mut self, event: &impl SolEvent) {
        self.logs.push((REGISTRY, event.encode_log_data()));
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Deposit(..) | Action::Thaw(..) | Action::Withdraw(..) => self.move_account(action),
            Action::Open(..) => self.open(action),
            Action::Submit(..) | Action::Finalize(_) | Action::Refund(_) | Action::Skip(_) => self.settle(action),
            Action::WithdrawEarned(n, coin) => {
                let (node, token) = (node(*n), token(*coin));
                if let Some(amount) = self.earned.insert((node, token), 0).filter(|amount| *amount > 0) {
                    let amount = U256::from(amount);
                    self.escrow(&IJobEscrow::EarnedWithdrawn { node, token, to: node, amount, earned: U256::ZERO });
                }
            }
            _ => self.move_stake(action),
        }
    }

    fn move_account(&mut self, action: &Action) {
        let (Action::Deposit(n, coin, _) | Action::Thaw(n, coin, _) | Action::Withdraw(n, coin)) = action else {
            return;
        };
        let (account, token) = (requester(*n), token(*coin));
        let (mut free, mut thawing) = self.accounts.get(&(account, token)).copied().unwrap_or_default();
        match action {
            Action::Deposit(_, _, amount) => {
                free += u64::from(*amount);
                let (amount, free) = (U256::from(*amount), U256::from(free));
                self.escrow(&IJobEscrow::Deposited { account, token, from: account, amount, free });
            }
            Action::Thaw(_, _, amount) if *amount > 0 && u64::from(*amount) <= free => {
                (free, thawing) = (free - u64::from(*amount), thawing + u64::from(*amount));
                let (free, thawing) = (U256::from(free), U256::from(thawing));
                self.escrow(&IJobEscrow::Thawing { account, token, free, thawing, thawEnd: u64::MAX });
            }
            Action::Withdraw(..) if thawing > 0 => {
                let (amount, thawed) = (U256::from(thawing), U256::ZERO);
                thawing = 0;
                let free = U256::from(free);
                self.escrow(&IJobEscrow::Withdrawn { account, token, to: account, amount, free, thawing: thawed });
            }
            _ => {}
        }
        self.accounts.insert((account, token), (free, thawing));
    }

    fn open(&mut self, action: &Action) {
        let Action::Open(n, coin, price, windowed) = action else { return };
        let (requester, token) = (requester(*n), token(*coin));
        let Some((free, _)) = self.accounts.get_mut(&(requester, token)) else { return };
        if *free < u64::from(*price) {
            return;
        }
        *free -= u64::from(*price);
        let free = U256::from(*free);
        let spec = JobSpec { inputCID: "bafk".into(), operation: "encrypt".into(), params: String::new() };
        let order = Order {
            requester,
            token,
            maxPrice: u128::from(*price),
            node: Address::ZERO,
            assigner: node(9),
            specHash: typed_data::spec_hash(&spec),
            deadline: 1_900_000_000,
            challengeWindow: if *windowed { 60 } else { 0 },
            arbiter: Address::ZERO,
            maxFeeBps: 0,
            nonce: u64::try_from(self.jobs.len()).unwrap(),
        };
        let id = typed_data::job_id(&order, &contracts().domain);
        self.escrow(&opened(&order, spec, free));
        self.jobs.push(LedgerJob {
            id,
            account: (requester, token),
            windowed: *windowed,
            state: EscrowState::Open,
            locked: u64::from(*price),
            node: Address::ZERO,
        });
    }

    fn settle(&mut self, action: &Action) {
        let (Action::Submit(job, _, _) | Action::Finalize(job) | Action::Refund(job) | Action::Skip(job)) = action
        else {
            return;
        };
        if self.jobs.is_empty() {
            return;
        }
        let number = job.index(self.jobs.len());
        let mut job = self.jobs[number];
        let (requester, token) = job.account;
        match (action, job.state) {
            (Action::Submit(_, n, asked), EscrowState::Open) => {
                job.node = node(*n);
                let free = self.unlock(&mut job, u64::from(*asked));
                if job.windowed {
                    job.state = EscrowState::Submitted;
                    self.escrow(&IJobEscrow::ResultSubmitted {
                        jobId: job.id,
                        requester,
                        node: job.node,
                        token,
                        price: u128::from(job.locked),
                        resultHash: B256::ZERO,
                        finalizeAt: 1_800_000_060,
                        free,
                    });
                } else {
                    self.pay(&mut job);
                }
            }
            (Action::Finalize(_), EscrowState::Submitted) => self.pay(&mut job),
            (Action::Refund(_), EscrowState::Open) => {
                job.state = EscrowState::Refunded;
                let amount = u128::from(job.locked);
                let free = self.unlock(&mut job, 0);
                self.escrow(&IJobEscrow::JobRefunded { jobId: job.id, requester, token, amount, free });
            }
            (Action::Skip(_), _) => self.escrow(&IJobEscrow::Skipped { jobId: job.id, reason: SkipReason::Expired }),
            _ => {}
        }
        self.jobs[number] = job;
    }

    /// Gives back all that is locked above `rest`.
    fn unlock(&mut self, job: &mut LedgerJob, rest: u64) -> U256 {
        let rest = rest.min(job.locked);
        let free = &mut self.accounts.get_mut(&job.account).unwrap().0;
        *free += job.locked - rest;
        job.locked = rest;
        U256::from(*free)
    }

    fn pay(&mut self, job: &mut LedgerJob) {
        job.state = EscrowState::Paid;
        let ((requester, token), node) = (job.account, job.node);
        let free = U256::from(self.accounts[&job.account].0);
        let earned = self.earned.entry((node, token)).or_default();
        *earned += job.locked;
        let earned = U256::from(*earned);
        let price = u128::from(job.locked);
        self.escrow(&IJobEscrow::JobPaid {
            jobId: job.id,
            requester,
            node,
            token,
            price,
            resultHash: B256::ZERO,
            free,
            earned,
        });
    }

    fn move_stake(&mut self, action: &Action) {
        let (Action::Register(n, _) | Action::Stake(n, _) | Action::Unbond(n, _) | Action::FinishUnbond(n)) = action
        else {
            return;
        };
        let node = node(*n);
        if let Action::Register(_, uri) = action {
            self.stakes.entry(node).or_default();
            return self.registry(&INodeRegistry::NodeUpdated {
                node,
                nodeId: B256::left_padding_from(node.as_slice()),
                publicKey: vec![1; 32].into(),
                payout: node,
                capacity: 1,
                operations: vec![uri.clone()],
                uri: uri.clone(),
            });
        }
        let Some((mut stake, mut unbonding)) = self.stakes.get(&node).copied() else { return };
        match action {
            Action::Stake(_, amount) => {
                stake += u64::from(*amount);
                let (amount, stake) = (U256::from(*amount), U256::from(stake));
                self.registry(&INodeRegistry::Staked { node, from: node, amount, stake });
            }
            Action::Unbond(_, amount) if *amount > 0 && u64::from(*amount) <= stake => {
                (stake, unbonding) = (stake - u64::from(*amount), unbonding + u64::from(*amount));
                let (stake, unbonding) = (U256::from(stake), U256::from(unbonding));
                self.registry(&INodeRegistry::Unbonding { node, stake, unbonding, unbondEnd: 1_800_000_100 });
            }
            Action::FinishUnbond(_) if unbonding > 0 => {
                let amount = U256::from(std::mem::take(&mut unbonding));
                self.registry(&INodeRegistry::Unbonded { node, to: node, amount, stake: U256::from(stake) });
            }
            _ => {}
        }
        self.stakes.insert(node, (stake, unbonding));
    }
}

fn opened(order: &Order, spec: JobSpec, free: U256) -> IJobEscrow::JobOpened {
    IJobEscrow::JobOpened {
        jobId: typed_data::job_id(order, &contracts().domain),
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
        free,
    }
}

/// Events that the contracts could have emitted.
fn events() -> impl Strategy<Value = Vec<ChainEvent>> {
    proptest::collection::vec(action(), 1..80).prop_map(|actions| {
        let mut ledger = Ledger::default();
        actions.iter().for_each(|action| ledger.act(action));
        let logs = ledger.logs.iter().enumerate();
        logs.map(|(n, (contract, data))| ChainEvent::decode(log(*contract, data, n), &contracts()).unwrap()).collect()
    })
}

fn fold(events: &[ChainEvent]) -> Rows {
    let mut rows = Rows::default();
    events.iter().for_each(|event| rows.apply(event).unwrap());
    rows
}

/// What db::chain does on a reorg: the rows that the undone events touched are folded again from what remains.
fn roll_back(rows: &mut Rows, remaining: &[ChainEvent], undone: &[ChainEvent]) {
    let keys: BTreeSet<Key> = undone.iter().flat_map(|event| event.event.keys()).collect();
    let mut folded = Rows::default();
    remaining.iter().for_each(|event| folded.apply_within(&keys, event).unwrap());
    for key in keys {
        match key {
            Key::Job(id) => replace(&mut rows.jobs, &folded.jobs, id),
            Key::Account { owner, token } => replace(&mut rows.accounts, &folded.accounts, (owner, token)),
            Key::Earned { node, token } => replace(&mut rows.earned, &folded.earned, (node, token)),
            Key::Node(node) => replace(&mut rows.nodes, &folded.nodes, node),
            Key::Channel { requester, node, token } => {
                replace(&mut rows.channels, &folded.channels, (requester, node, token));
            }
            Key::Session { requester, key, token } => {
                replace(&mut rows.sessions, &folded.sessions, (requester, key, token));
            }
            Key::Settler { node, settler } => replace(&mut rows.settlers, &folded.settlers, (node, settler)),
            Key::Fee(token) => replace(&mut rows.fees, &folded.fees, token),
            Key::Parameters => rows.parameters = folded.parameters,
        }
    }
}

fn replace<K: Ord, V: Clone>(rows: &mut BTreeMap<K, V>, folded: &BTreeMap<K, V>, key: K) {
    match folded.get(&key) {
        Some(row) => rows.insert(key, row.clone()),
        None => rows.remove(&key),
    };
}

proptest! {
    #[test]
    fn rolling_back_what_was_applied_changes_nothing(events in events(), cut: Index) {
        let cut = cut.index(events.len() + 1);
        let before = fold(&events[..cut]);
        let mut rows = before.clone();
        events[cut..].iter().for_each(|event| rows.apply(event).unwrap());
        prop_assert_eq!(&rows, &fold(&events), "going on is starting from scratch");
        roll_back(&mut rows, &events[..cut], &events[cut..]);
        prop_assert_eq!(rows, before);
    }

    #[test]
    fn a_spec_is_valid_exactly_if_it_is_stored_as_it_was_signed(input: Vec<u8>, operation: Vec<u8>, params in ".{0,9}") {
        let texts = [&input[..], &operation[..], params.as_bytes()];
        let decoded = ChainEvent::decode(log_with_spec(texts), &contracts()).unwrap();
        let Event::JobOpened(job) = decoded.event else { panic!("opened") };
        let stored = [&job.spec.inputCID, &job.spec.operation, &job.spec.params];
        prop_assert!(stored.iter().all(|text| !text.contains('\0')));
        let same = stored.iter().zip(texts).all(|(stored, signed)| stored.as_bytes() == signed);
        prop_assert_eq!(job.spec_valid, same);
    }
}

/// A `JobOpened` whose spec is of these bytes. Built with `bytes` in place of `string`, whose encoding is the same.
fn log_with_spec(texts: [&[u8]; 3]) -> RawLog {
    use alloy::sol_types::SolValue;
    let mut order = Order { requester: requester(1), maxPrice: 5, deadline: u64::MAX, ..Order::default() };
    let type_hash = alloy::primitives::keccak256("JobSpec(string inputCID,string operation,string params)");
    let [a, b, c] = texts.map(alloy::primitives::keccak256);
    order.specHash = alloy::primitives::keccak256([type_hash.0, a.0, b.0, c.0].concat());
    let topics = opened(&order, JobSpec::default(), U256::ZERO).encode_log_data().topics().to_vec();
    let [a, b, c] = texts.map(Bytes::copy_from_slice);
    let data = (
        (order.token, order.maxPrice, order.assigner, order.deadline, order.challengeWindow),
        (order.arbiter, U256::from(order.maxFeeBps), order.nonce, (a, b, c), U256::ZERO),
    );
    let ((t, m, asg, d, w), (arb, f, n, spec, free)) = data;
    let data = (t, m, asg, d, w, arb, f, n, spec, free).abi_encode_sequence();
    RawLog { topics, data: data.into(), ..log(ESCROW, &LogData::default(), 0) }
}

#[test]
fn text_that_is_no_text_marks_the_spec_and_keeps_the_job() {
    for bad in [&b"a\0b"[..], b"\xff\xfe", b"\xed\xa0\x80"] {
        let event = ChainEvent::decode(log_with_spec([b"bafk", b"encrypt", bad]), &contracts()).unwrap();
        let row = fold(std::slice::from_ref(&event)).jobs.into_values().next().unwrap().opened.unwrap();
        assert!(!row.spec_valid);
        assert_eq!(row.spec.operation, "encrypt");
        assert!(row.spec.params.contains('\u{FFFD}'), "{:?}", row.spec.params);
    }
    // A replacement character that was signed is text like any other.
    let event = ChainEvent::decode(log_with_spec([b"bafk", "\u{FFFD}".as_bytes(), b""]), &contracts()).unwrap();
    assert!(fold(&[event]).jobs.values().next().unwrap().opened.as_ref().unwrap().spec_valid);
}

#[test]
fn a_log_that_is_not_understood_is_an_error() {
    let staked = INodeRegistry::Staked { node: node(1), from: node(1), amount: U256::ONE, stake: U256::ONE };
    let data = staked.encode_log_data();
    assert!(ChainEvent::decode(log(REGISTRY, &data, 0), &contracts()).is_ok());
    let wrong_contract = ChainEvent::decode(log(ESCROW, &data, 0), &contracts());
    assert!(matches!(wrong_contract, Err(DecodeError::Undecodable { .. })), "{wrong_contract:?}");
    assert!(ChainEvent::decode(log(node(7), &data, 0), &contracts()).is_err());
    let mut short = log(REGISTRY, &data, 0);
    short.data = short.data.slice(..32);
    assert!(ChainEvent::decode(short, &contracts()).is_err());
    let mut unknown = log(REGISTRY, &data, 0);
    unknown.topics[0] = B256::repeat_byte(1);
    assert!(ChainEvent::decode(unknown, &contracts()).is_err());
    let mut bare = log(REGISTRY, &data, 0);
    bare.topics.clear();
    assert!(ChainEvent::decode(bare, &contracts()).is_err());
}

#[test]
fn a_job_whose_id_is_not_its_orders_digest_is_an_error() {
    let mut tampered = log_with_spec([b"bafk", b"encrypt", b""]);
    tampered.topics[1] = B256::repeat_byte(1);
    assert!(matches!(ChainEvent::decode(tampered, &contracts()), Err(DecodeError::WrongJobId { .. })));
}

#[test]
fn an_event_that_cannot_follow_is_an_error_that_names_it() {
    let staked = INodeRegistry::Staked { node: node(1), from: node(1), amount: U256::ONE, stake: U256::ONE };
    let event = ChainEvent::decode(log(REGISTRY, &staked.encode_log_data(), 4), &contracts()).unwrap();
    let error = Rows::default().apply(&event).unwrap_err().to_string();
    assert!(error.contains("Staked (log 1 of block 1") && error.contains("never registered"), "{error}");
}

#[test]
fn times_beyond_what_can_be_written_are_the_latest_that_can() {
    assert_eq!(time_of(u64::MAX).to_rfc3339(), "9999-12-31T23:59:59+00:00");
    assert_eq!(time_of(0), DateTime::UNIX_EPOCH);
}
