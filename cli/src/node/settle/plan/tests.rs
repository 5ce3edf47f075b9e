use market::order::OrderJson;

use super::*;
use crate::node::earnings::tests::earning;

const NOW: u64 = 1_800_000_000;
const ME: Address = Address::repeat_byte(0xee);

fn none() -> JobFacts {
    JobFacts { state: JobState::None, finalize_at: 0, node: Address::ZERO, cancel_at: 0 }
}

fn signed(byte: u8, nonce: u64, price: u128) -> Earning {
    let earning = earning(byte, nonce, price);
    let order = OrderJson { deadline: NOW + 100, node: ME, ..earning.order.clone() };
    Earning { order, ..earning }
}

fn voucher(cumulative: u128, covered_nonce: u64) -> HeldVoucher {
    HeldVoucher {
        requester: Address::ZERO,
        token: Address::ZERO,
        cumulative: cumulative.into(),
        covered_nonce,
        signature: vec![1; 65].into(),
    }
}

fn facts(account: u64) -> ChannelFacts {
    ChannelFacts { account: U256::from(account), ..ChannelFacts::default() }
}

struct World {
    open: Vec<Earning>,
    closed: Vec<Earning>,
    vouchers: Vec<HeldVoucher>,
    jobs: BTreeMap<B256, JobFacts>,
    facts: ChannelFacts,
    is_staked: bool,
}

impl World {
    fn new(open: Vec<Earning>, vouchers: Vec<HeldVoucher>, facts: ChannelFacts) -> Self {
        let jobs = open.iter().map(|earning| (earning.job_id, none())).collect();
        Self { open, closed: Vec::new(), vouchers, jobs, facts, is_staked: true }
    }

    fn state(mut self, byte: u8, state: JobState, finalize_at: u64) -> Self {
        self.jobs.insert(B256::repeat_byte(byte), JobFacts { state, finalize_at, ..none() });
        self
    }

    fn plan(&self) -> Plan {
        let channel = Channel { requester: Address::ZERO, token: Address::ZERO };
        let channels = [(channel, self.facts.clone())].into();
        plan(&Asked {
            open: &self.open,
            closed: &self.closed,
            vouchers: &self.vouchers,
            jobs: &self.jobs,
            channels: &channels,
            node: ME,
            is_staked: self.is_staked,
            now: NOW,
        })
        .unwrap()
    }

    fn only_step(&self) -> Step {
        let plan = self.plan();
        assert_eq!(plan.steps.len(), 1);
        plan.steps[0].1.clone()
    }
}

fn skip_reason(step: Step) -> String {
    match step {
        Step::Skip(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_voucher_a_signed_order_is_settled_by_itself_while_its_requester_can_pay() {
    let world = World::new(vec![signed(2, 2, 60), signed(1, 1, 50), signed(3, 3, 50)], vec![], facts(100));
    let plan = world.plan();
    let steps: Vec<(u8, Step)> = plan.steps.iter().map(|(id, step)| (id[0], step.clone())).collect();
    assert_eq!((&steps[0], &steps[2]), (&(1, Step::Submit), &(3, Step::Submit)));
    assert!(skip_reason(steps[1].1.clone()).contains("has 50, less than its price 60"), "in the order of nonces");
    let reserved = ChannelFacts { reserved: U256::from(60), ..facts(100) };
    let world = World { facts: reserved, ..world };
    assert_eq!(world.plan().with(&Step::Submit).len(), 3, "the reservation counts too");
}

#[test]
fn a_voucher_pays_for_what_it_covers_and_the_rest_goes_by_itself() {
    let world = World::new(vec![signed(1, 1, 50), signed(2, 2, 60)], vec![voucher(50, 1)], facts(200));
    let plan = world.plan();
    assert_eq!(plan.redemptions.len(), 1);
    assert_eq!((plan.redemptions[0].due, plan.redemptions[0].payable), (U256::from(50), U256::from(50)));
    assert_eq!(plan.with(&Step::ByVoucher), [B256::repeat_byte(1)]);
    assert_eq!(plan.with(&Step::Submit), [B256::repeat_byte(2)]);

    let poor = World::new(vec![signed(2, 2, 60)], vec![voucher(500, 1)], facts(200)).plan();
    assert_eq!(poor.redemptions[0].payable, U256::from(200), "the rest of it stays claimable");
    assert!(skip_reason(poor.steps[0].1.clone()).contains("has 0"));
}

#[test]
fn a_voucher_that_voids_more_than_it_pays_is_left_alone() {
    let world = World::new(vec![signed(1, 1, 50), signed(2, 2, 60)], vec![voucher(50, 2)], facts(200));
    let plan = world.plan();
    assert!(plan.redemptions.is_empty());
    assert!(plan.idle[0].1.contains("void orders worth 110 and pay 50"), "{}", plan.idle[0].1);
    assert_eq!(plan.with(&Step::Submit).len(), 2);
    // Of what could not be settled any more nothing is lost.
    let mut late = signed(2, 2, 60);
    late.order.deadline = NOW - 1;
    let world = World::new(vec![signed(1, 1, 50), late], vec![voucher(50, 2)], facts(200));
    assert_eq!(world.plan().redemptions.len(), 1);
}

#[test]
fn orders_settled_ahead_of_their_voucher_are_shown_to_the_contract() {
    let mut facts = ChannelFacts { claimed: U256::from(60), ..facts(200) };
    facts.alone.insert(B256::repeat_byte(2), U256::from(60));
    let mut world = World::new(vec![signed(1, 1, 50)], vec![voucher(50, 1)], facts);
    assert!(world.plan().redemptions.is_empty(), "nothing is due as long as nobody remembers the order");
    world.closed = vec![signed(2, 2, 60)];
    let plan = world.plan();
    assert_eq!(plan.redemptions[0].due, U256::from(50));
    assert_eq!(plan.redemptions[0].settled_above, [world.closed[0].order().unwrap()]);
    // An order that the voucher covers is counted in it.
    world.vouchers = vec![voucher(110, 2)];
    let plan = world.plan();
    assert_eq!((plan.redemptions[0].due, plan.redemptions[0].settled_above.len()), (U256::from(50), 0));
}

#[test]
fn vouchers_without_effect_say_why() {
    let idle = |facts: ChannelFacts| World::new(vec![], vec![voucher(50, 1)], facts).plan().idle[0].1.clone();
    assert!(idle(ChannelFacts { claimed: U256::from(50), ..facts(9) }).contains("no more than was paid"));
    assert!(idle(facts(0)).contains("50 is due, and the requester has nothing"));
    assert_eq!(idle(ChannelFacts { voucher_flaw: Some("no key".into()), ..facts(99) }), "no key");
    assert!(idle(ChannelFacts { session_left: Some(U256::from(49)), ..facts(99) }).contains("may spend 49"));
}

#[test]
fn every_state_of_a_job_has_its_step() {
    let world = || World::new(vec![signed(1, 1, 50)], vec![], facts(100));
    assert_eq!(world().state(1, JobState::Paid, 0).only_step(), Step::Closed("paid"));
    assert_eq!(world().state(1, JobState::Submitted, NOW).only_step(), Step::Finalize);
    assert!(skip_reason(world().state(1, JobState::Submitted, NOW + 1).only_step()).contains("window ends"));
    assert_eq!(world().state(1, JobState::Disputed, NOW).only_step(), Step::Finalize);
    assert!(skip_reason(world().state(1, JobState::Disputed, NOW + 1).only_step()).contains("in dispute"));
    assert_eq!(world().state(1, JobState::Open, 0).only_step(), Step::Submit);

    let mut cancelled = world();
    cancelled.jobs.insert(B256::repeat_byte(1), JobFacts { cancel_at: NOW, ..none() });
    assert_eq!(cancelled.only_step(), Step::Closed("its requester cancelled it"));
    let covered = World { facts: ChannelFacts { covered_nonce: 1, ..facts(100) }, ..world() };
    assert_eq!(covered.only_step(), Step::Closed("covered by a redeemed voucher"));
    let mut opened = world();
    opened.open[0].order_signature = None;
    assert!(skip_reason(opened.only_step()).contains("not open"));
    assert_eq!(opened.state(1, JobState::Open, 0).only_step(), Step::Submit);
    let mut late = world();
    late.open[0].order.deadline = NOW - 1;
    assert_eq!(late.only_step(), Step::Closed("its deadline has passed"));
}

#[test]
fn what_the_contract_would_skip_is_not_sent() {
    let world = || World::new(vec![signed(1, 1, 50)], vec![], facts(100));
    let mut unseen = world();
    unseen.open[0].acknowledged_at = None;
    assert!(skip_reason(unseen.only_step()).contains("not known to have arrived"));
    let mut open = world();
    (open.open[0].order.node, open.open[0].order.challenge_window) = (Address::ZERO, 60);
    assert!(skip_reason(open.only_step()).contains("no assignment"));
    open.open[0].assignment = Some(crate::api::Assigned { expiry: NOW - 1, signature: vec![1].into() });
    assert!(skip_reason(open.only_step()).contains("assignment expired"));
    open.open[0].assignment = Some(crate::api::Assigned { expiry: NOW, signature: vec![1].into() });
    assert_eq!(open.only_step(), Step::Submit);
    open.is_staked = false;
    assert!(skip_reason(open.only_step()).contains("stake"));
    let other = open.state(1, JobState::Submitted, 0);
    assert_eq!(other.only_step(), Step::Closed("another node's result is in"));
}

#[test]
fn what_is_owed_counts_each_order_once() {
    let earnings = [signed(1, 1, 50), signed(2, 2, 60), signed(3, 3, 70)];
    let owed = |claimed: u64, held: Option<HeldVoucher>, settled: &[u8]| {
        let is_settled = |id: B256| settled.contains(&id[0]);
        owed((U256::from(claimed), 0), held.as_ref(), &earnings, is_settled)
    };
    assert_eq!(owed(0, None, &[]), U256::from(180));
    assert_eq!(owed(0, Some(voucher(110, 2)), &[]), U256::from(180));
    assert_eq!(owed(110, Some(voucher(110, 2)), &[]), U256::from(70));
    assert_eq!(owed(70, Some(voucher(110, 2)), &[3]), U256::from(110), "what was settled alone is not taken off");
    assert_eq!(owed(180, Some(voucher(180, 3)), &[]), U256::ZERO);
}
