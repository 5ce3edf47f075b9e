use std::collections::BTreeSet;

use alloy::primitives::{Address, B256, Bytes, LogData, U256};
use alloy::sol_types::SolEvent;
use proptest::prelude::*;
use proptest::sample::Index;

use super::model::{self, ESCROW, Model, ORDERS, REGISTRY, contracts, histories, node, requester, token};
use super::*;
use crate::abi::{INodeRegistry, JobState, SkipReason};

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

fn fold(events: &[ChainEvent]) -> Rows {
    let mut rows = Rows::default();
    events.iter().for_each(|event| rows.apply(event).unwrap());
    rows
}

/// The rows after `events`, and their images before each block above `settled` changed them.
fn fold_with_images(events: &[ChainEvent], settled: u64) -> (Rows, Images) {
    let (mut rows, mut images) = (Rows::default(), Images::default());
    for event in events {
        if event.log.block_number > settled {
            images.keep(event.log.block_number, &event.event.keys(), &rows);
        }
        rows.apply(event).unwrap();
    }
    (rows, images)
}

fn until(amount: u128, end: u64) -> Option<DateTime<Utc>> {
    (amount > 0).then(|| time_of(end))
}

/// Asserts that `rows` are what the contracts return.
fn assert_rows_are_what_the_contracts_return(rows: &Rows, model: &Model) {
    for (owner, token) in (0..3).flat_map(|n| (0..2).map(move |coin| (requester(n), token(coin)))) {
        let account = model.account(owner, token);
        let row = rows.accounts.get(&(owner, token)).copied().unwrap_or_default();
        assert_eq!((row.free, row.thawing), (account.free.into(), account.thawing.into()));
        assert_eq!(row.thaw_end, until(account.thawing, account.thaw_end));
    }
    for n in 0..27 {
        let key = (requester(n / 9), node(n / 3 % 3), token(n % 3));
        let channel = model.channel(key.0, key.1, key.2);
        let row = rows.channels.get(&key).copied().unwrap_or_default();
        let thawing = channel.thawing.min(channel.reserved);
        assert_eq!((row.claimed, row.covered_nonce), (channel.claimed.into(), channel.covered_nonce));
        assert_eq!((row.reserved, row.thawing), (channel.reserved.into(), thawing.into()));
        assert_eq!(row.thaw_end, until(thawing, channel.thaw_end));
    }
    let sessions = model
        .sessions
        .iter()
        .map(|(key, (left, expiry))| (*key, EscrowSession { left: (*left).into(), expires_at: time_of(*expiry) }));
    assert_eq!(rows.sessions, sessions.collect());
    assert_eq!(rows.settlers, model.settlers);
    for (node, token) in (0..3).flat_map(|n| (0..2).map(move |coin| (node(n), token(coin)))) {
        let earned = model.earned.get(&(node, token)).copied().unwrap_or_default();
        assert_eq!(rows.earned.get(&(node, token)).copied().unwrap_or_default(), earned.into());
    }
    for coin in 0..2 {
        let fees = model.fees.get(&token(coin)).copied().unwrap_or_default();
        assert_eq!(rows.fees.get(&token(coin)).copied().unwrap_or_default(), fees.into());
    }
    let parameters = rows.parameters.unwrap_or_default();
    assert_eq!((parameters.escrow_paused, parameters.registry_paused), model.paused);
    assert_eq!(parameters.fee_bps, model.fee_bps);
    let min_stake = match parameters.min_stake {
        Some((amount, since)) if since <= time_of(model.now) => Some(amount),
        _ => parameters.min_stake_before,
    };
    assert_eq!(min_stake.unwrap_or(model::MIN_STAKE.into()), model.min_stake().into());
    assert_nodes_are_what_the_contracts_return(rows, model);
    (0..ORDERS).for_each(|n| assert_job_is_what_the_contracts_return(rows, model, &model::order(n)));
}

fn assert_nodes_are_what_the_contracts_return(rows: &Rows, model: &Model) {
    assert_eq!(rows.nodes.keys().collect::<Vec<_>>(), model.nodes.keys().collect::<Vec<_>>());
    for (address, row) in &rows.nodes {
        let node = model.nodes[address];
        assert_eq!((row.stake, row.unbonding), (node.stake.into(), node.unbonding.into()));
        assert_eq!(row.unbond_end, until(node.unbonding, node.unbond_end));
        let model::Node { bonds, paid, disputed, lost, .. } = node;
        assert_eq!(row.record, BondRecord { bonds, paid, disputed, lost });
    }
}

fn assert_job_is_what_the_contracts_return(rows: &Rows, model: &Model, order: &Order) {
    let id = Model::job_id(order);
    let (row, job) = (rows.jobs.get(&id), model.jobs.get(&id));
    assert_eq!(row.is_some(), job.is_some());
    let (Some(row), Some(job)) = (row, job) else { return };
    let state = match job.state {
        JobState::Open => EscrowState::Open,
        JobState::Submitted => EscrowState::Submitted,
        JobState::Paid => EscrowState::Paid,
        JobState::Refunded => EscrowState::Refunded,
        JobState::Disputed => EscrowState::Disputed,
        JobState::Resolved => EscrowState::Resolved,
        _ => EscrowState::None,
    };
    assert_eq!((row.requester, row.state), (order.requester, state));
    assert_eq!(row.opened.is_some(), !job.signed && state != EscrowState::None);
    assert!(row.opened.as_ref().is_none_or(|opened| opened.order == *order));
    if matches!(state, EscrowState::None | EscrowState::Open) {
        assert_eq!(row.cancel_at, (job.timer != 0).then(|| time_of(job.timer)));
    }
    let timer = match state {
        EscrowState::Submitted => row.result.unwrap().window.unwrap().0,
        EscrowState::Disputed => row.dispute.unwrap().decide_by,
        _ => return assert_eq!(row.closed_when.is_some(), !matches!(state, EscrowState::None | EscrowState::Open)),
    };
    assert_eq!((timer, row.result.unwrap().node), (time_of(job.timer), job.node));
    let bond = row.dispute.map_or(Amount::ZERO, |dispute| dispute.bond);
    assert_eq!(row.result.unwrap().price.0 + bond.0, U256::from(job.amount));
}

proptest! {
    #![proptest_config(model::config())]

    #[test]
    fn whatever_happens_the_rows_are_what_the_contracts_return(model in histories()) {
        assert_rows_are_what_the_contracts_return(&fold(&model.events()), &model);
    }

    #[test]
    fn going_on_from_any_event_is_starting_from_scratch(model in histories(), cut: Index) {
        let events = model.events();
        let mut rows = fold(&events[..cut.index(events.len() + 1)]);
        events[cut.index(events.len() + 1)..].iter().for_each(|event| rows.apply(event).unwrap());
        prop_assert_eq!(rows, fold(&events));
    }

    #[test]
    fn images_take_back_any_block_that_is_not_settled(model in histories(), settled: Index, cut: Index) {
        let events = model.events();
        let last = usize::try_from(events.last().unwrap().log.block_number).unwrap();
        let settled = settled.index(last + 1);
        let ancestor = u64::try_from(settled + cut.index(last - settled + 1)).unwrap();
        let (mut rows, images) = fold_with_images(&events, u64::try_from(settled).unwrap());
        prop_assert_eq!(&rows, &fold(&events), "keeping images changes nothing");
        for (key, row) in images.before(ancestor) {
            prop_assert!(rows.put(key, row));
        }
        let remaining = events.iter().filter(|event| event.log.block_number <= ancestor).cloned().collect::<Vec<_>>();
        prop_assert_eq!(rows, fold(&remaining));
    }

    #[test]
    fn images_survive_being_stored(model in histories()) {
        let (_, images) = fold_with_images(&model.events(), 0);
        for (_, key, row) in images.iter() {
            let stored = serde_json::to_string(&(key, row)).unwrap();
            let (same_key, same_row): (Key, Option<Row>) = serde_json::from_str(&stored).unwrap();
            prop_assert_eq!((&same_key, same_row.as_ref()), (key, row), "{}", stored);
        }
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

/// Every kind of event, and every state of a job on either rail, is met by what the other tests try.
#[test]
fn histories_hold_every_kind_of_event_and_every_end_of_a_job() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut kinds, mut ends, mut reasons) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..200 {
        let model = histories().new_tree(&mut runner).unwrap().current();
        for event in model.events() {
            let kind = event.event.kind();
            kinds.insert(kind);
            match event.event {
                Event::Skipped(e) => drop(reasons.insert(u8::from(e.reason))),
                Event::VoucherSkipped(e) => drop(reasons.insert(u8::from(e.reason))),
                _ => {}
            }
        }
        for row in fold(&model.events()).jobs.values() {
            let had_window = row.result.is_some_and(|result| result.window.is_some());
            ends.insert((row.state.name(), (row.opened.is_some(), had_window, row.dispute.is_some())));
        }
    }
    assert_eq!(kinds.len(), 32, "{kinds:?}");
    assert!(reasons.contains(&u8::from(SkipReason::Covered)), "{reasons:?}");
    // Opened or not, with a window or not, disputed or not.
    for end in [
        ("none", (false, false, false)),
        ("open", (true, false, false)),
        ("submitted", (true, true, false)),
        ("submitted", (false, true, false)),
        ("disputed", (true, true, true)),
        ("disputed", (false, true, true)),
        ("paid", (true, false, false)),
        ("paid", (false, false, false)),
        ("paid", (true, true, true)),
        ("paid", (false, true, true)),
        ("resolved", (true, true, true)),
        ("resolved", (false, true, true)),
        ("refunded", (true, false, false)),
        ("refunded", (false, true, false)),
    ] {
        assert!(ends.contains(&end), "{end:?} is not among {ends:?}");
    }
}

#[test]
fn a_lock_whose_job_a_voucher_paid_for_goes_back_into_the_reservation_even_from_a_dispute() {
    use model::Action;
    let start = [Action::Deposit(2, 1, 9000), Action::Register(0, 0), Action::Stake(0, 5000)];
    let course = [Action::Submit(2, 0, 700, true), Action::Dispute(2), Action::Redeem(0, 1, vec![(2, 100, 5, None)])];
    for end in [Action::Resolve(2, 0, 10_000), Action::Accept(2)] {
        let actions: Vec<_> = start.iter().chain(&course).chain([&end]).cloned().collect();
        let model = Model::after(&actions);
        let rows = fold(&model.events());
        assert_rows_are_what_the_contracts_return(&rows, &model);
        let row = &rows.jobs[&Model::job_id(&model::order(2))];
        assert_eq!((row.state, row.dispute.is_some(), row.opened.is_some()), (EscrowState::Refunded, true, false));
        let channel = rows.channels[&(requester(2), node(0), token(1))];
        assert_eq!((channel.claimed, channel.reserved), (Amount::from(100), Amount::from(700)));
        assert_eq!(rows.nodes[&node(0)].record, BondRecord { bonds: 0, paid: 1, disputed: 1, lost: 0 });
    }
}

/// A `JobOpened` whose spec is of these bytes. Built with `bytes` in place of `string`, whose encoding is the same.
fn log_with_spec(texts: [&[u8]; 3]) -> RawLog {
    use alloy::sol_types::SolValue;
    let mut order = Order { requester: requester(1), maxPrice: 5, deadline: u64::MAX, ..Order::default() };
    let type_hash = alloy::primitives::keccak256("JobSpec(string inputCID,string operation,string params)");
    let [a, b, c] = texts.map(alloy::primitives::keccak256);
    order.specHash = alloy::primitives::keccak256([type_hash.0, a.0, b.0, c.0].concat());
    let topics = model::opened(&order, JobSpec::default(), U256::ZERO).encode_log_data().topics().to_vec();
    let [a, b, c] = texts.map(Bytes::copy_from_slice);
    let data = (
        (order.token, order.maxPrice, order.assigner, order.deadline, order.challengeWindow),
        (order.arbiter, U256::from(order.maxFeeBps), order.nonce, (a, b, c), U256::ZERO),
    );
    let ((t, m, asg, d, w), (arb, f, n, spec, free)) = data;
    let data = (t, m, asg, d, w, arb, f, n, spec, free).abi_encode_sequence();
    RawLog { topics, data: data.into(), ..log(ESCROW, &LogData::default(), 0) }
}

/// What no history of the model holds: numbers and times as large as they get, and text that JSON has to escape.
#[test]
fn images_of_rows_at_their_limits_survive_being_stored() {
    let order =
        Order { requester: requester(1), maxPrice: u128::MAX, deadline: u64::MAX, nonce: u64::MAX, ..Order::default() };
    let when = Moment { block: u64::MAX, tx: B256::repeat_byte(0xff), at: time_of(u64::MAX) };
    let spec =
        JobSpec { inputCID: "\u{FFFD}\"\\\u{1}".into(), operation: String::new(), params: "\u{10FFFF}\n".into() };
    let most = Amount(U256::MAX);
    let job = EscrowJob {
        requester: requester(1),
        opened: Some(Opened { order, spec, spec_valid: false, when }),
        state: EscrowState::Resolved,
        cancel_at: Some(time_of(0)),
        result: None,
        dispute: Some(Dispute { bond: most, decide_by: time_of(1), tx: B256::ZERO }),
        resolution: Some(Resolution { paid: most, slashed: Amount::ZERO, compensation: most }),
        closed_when: Some(when),
    };
    let node = RegistryNode {
        node_id: B256::ZERO,
        public_key: (0..=255).collect(),
        payout: Address::ZERO,
        capacity: u32::MAX,
        operations: vec![String::new(), "\u{0}".into()],
        uri: "'".into(),
        stake: most,
        unbonding: most,
        unbond_end: Some(time_of(u64::MAX)),
        record: BondRecord { bonds: u32::MAX, paid: 1, disputed: 2, lost: 3 },
    };
    let mut parameters = Parameters { fee_bps: u16::MAX, min_stake: Some((most, time_of(5))), ..Parameters::default() };
    parameters.min_stake_before = Some(most);
    for row in [Row::Job(Box::new(job)), Row::Node(Box::new(node)), Row::Parameters(parameters)] {
        let stored = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<Row>(&stored).unwrap(), row, "{stored}");
    }
}

#[test]
fn an_image_of_another_table_is_refused() {
    let mut rows = Rows::default();
    assert!(!rows.put(Key::Fee(token(1)), Some(Row::Earned(Amount::from(5)))));
    assert!(!rows.put(Key::Parameters, Some(Row::Settler(true))));
    assert_eq!(rows, Rows::default());
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
