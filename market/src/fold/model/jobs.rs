//! Jobs, from order to end.

use alloy::primitives::{Address, B256, U256};

use super::{ARBITER_PERIOD, Action, BOND, DISPUTE_BOND_BPS, Job, Model, START, THAW_PERIOD, node, requester, token};
use crate::abi::{IJobEscrow, JobSpec, JobState, Order, SkipReason};
use crate::typed_data;

pub fn spec() -> JobSpec {
    JobSpec { inputCID: "bafk".into(), operation: "encrypt".into(), params: String::new() }
}

/// Number `n` of the orders: all kinds are among them.
pub fn order(n: u8) -> Order {
    let window = if n.is_multiple_of(3) { 0 } else { 60 };
    let open = n % 4 == 1 && window != 0;
    Order {
        requester: requester(n % 3),
        token: token(n / 2 % 2),
        maxPrice: 1000 + u128::from(n),
        node: if open { Address::ZERO } else { node(n % 2) },
        assigner: if open { Address::repeat_byte(7) } else { Address::ZERO },
        specHash: typed_data::spec_hash(&spec()),
        deadline: START + 1000,
        challengeWindow: window,
        arbiter: if n.is_multiple_of(5) { Address::ZERO } else { Address::repeat_byte(8) },
        maxFeeBps: if n.is_multiple_of(2) { 300 } else { 0 },
        nonce: u64::from(n) + 1,
    }
}

pub fn opened(order: &Order, spec: JobSpec, free: U256) -> IJobEscrow::JobOpened {
    IJobEscrow::JobOpened {
        jobId: Model::job_id(order),
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

fn dispute_bond(order: &Order) -> u128 {
    order.maxPrice * DISPUTE_BOND_BPS / 10_000
}

fn is_waiting(state: JobState) -> bool {
    matches!(state, JobState::Submitted | JobState::Disputed)
}

impl Model {
    pub(super) fn use_job(&mut self, action: &Action) {
        let (Action::Open(n, _)
        | Action::Cancel(n)
        | Action::Submit(n, ..)
        | Action::Finalize(n)
        | Action::Refund(n)
        | Action::Accept(n)
        | Action::Dispute(n)
        | Action::Resolve(n, ..)) = action
        else {
            return;
        };
        let order = order(*n);
        let id = Self::job_id(&order);
        let none = Job { state: JobState::None, signed: false, node: Address::ZERO, timer: 0, amount: 0 };
        let job = self.jobs.get(&id).cloned().unwrap_or(none);
        match action {
            Action::Open(_, value) => self.open(id, &order, &job, u128::from(*value)),
            Action::Cancel(_) => self.cancel(id, &order, job),
            Action::Submit(_, by, price, signed) => {
                let by = if order.node.is_zero() { node(*by) } else { order.node };
                let price = u128::from(*price) % (order.maxPrice + 1);
                if let Err(reason) = self.submit(id, &order, &job, by, price, *signed) {
                    self.escrow(&IJobEscrow::Skipped { jobId: id, reason });
                }
            }
            Action::Finalize(_) => match (is_waiting(job.state), self.now < job.timer) {
                (false, _) => self.escrow(&IJobEscrow::Skipped { jobId: id, reason: SkipReason::NotSubmitted }),
                (_, true) => self.escrow(&IJobEscrow::Skipped { jobId: id, reason: SkipReason::WindowOpen }),
                _ => self.settle(id, &order, job),
            },
            Action::Refund(_) => self.refund(id, &order, job),
            Action::Accept(_) if is_waiting(job.state) => self.settle(id, &order, job),
            Action::Dispute(_) => self.dispute(id, &order, job),
            Action::Resolve(_, pay, slash) if job.state == JobState::Disputed && self.now < job.timer => {
                if job.signed && self.is_covered(&order, job.node) {
                    self.settle(id, &order, job);
                } else {
                    self.resolve(id, &order, job, u128::from(*pay), u128::from(*slash));
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, id: B256, order: &Order, job: &Job, value: u128) {
        let (requester, token) = (order.requester, order.token);
        let account = self.account(requester, token);
        let refused = job.state != JobState::None || self.paused.0 || self.now > order.deadline;
        if refused || (value > 0 && !token.is_zero()) || account.free + value < order.maxPrice {
            return;
        }
        if value > 0 {
            let (amount, free) = (U256::from(value), U256::from(account.free + value));
            self.escrow(&IJobEscrow::Deposited { account: requester, token, from: requester, amount, free });
        }
        let free = account.free + value - order.maxPrice;
        self.accounts.insert((requester, token), super::Account { free, ..account });
        self.jobs.insert(id, Job { state: JobState::Open, timer: 0, amount: order.maxPrice, ..job.clone() });
        self.escrow(&opened(order, spec(), U256::from(free)));
    }

    fn cancel(&mut self, id: B256, order: &Order, job: Job) {
        if !matches!(job.state, JobState::None | JobState::Open) || job.timer != 0 {
            return;
        }
        let timer = self.now + THAW_PERIOD;
        self.jobs.insert(id, Job { timer, ..job });
        self.escrow(&IJobEscrow::JobCancelling { jobId: id, requester: order.requester, cancelAt: timer });
    }

    fn refund(&mut self, id: B256, order: &Order, job: Job) {
        let over = job.timer != 0 && self.now >= job.timer;
        if job.state != JobState::Open {
            return self.escrow(&IJobEscrow::Skipped { jobId: id, reason: SkipReason::NotOpen });
        }
        if self.now <= order.deadline && !over {
            return self.escrow(&IJobEscrow::Skipped { jobId: id, reason: SkipReason::NotExpired });
        }
        self.jobs.insert(id, Job { state: JobState::Refunded, timer: 0, amount: 0, ..job });
        let free = self.credit(order.requester, order.token, order.maxPrice);
        let (requester, token, amount) = (order.requester, order.token, order.maxPrice);
        self.escrow(&IJobEscrow::JobRefunded { jobId: id, requester, token, amount, free });
    }

    fn submit(
        &mut self,
        id: B256,
        order: &Order,
        job: &Job,
        node: Address,
        price: u128,
        with_signature: bool,
    ) -> Result<(), SkipReason> {
        let signed = job.state == JobState::None && with_signature;
        let (requester, token) = (order.requester, order.token);
        let channel = self.channel(requester, node, token);
        let account = self.account(requester, token);
        if job.state != JobState::Open && !signed {
            return Err(SkipReason::NotOpen);
        }
        if self.now > order.deadline {
            return Err(SkipReason::Expired);
        }
        if job.timer != 0 && self.now >= job.timer {
            return Err(SkipReason::Cancelled);
        }
        if signed && order.nonce <= channel.covered_nonce {
            return Err(SkipReason::Covered);
        }
        if signed && channel.reserved + account.free + account.thawing < price {
            return Err(SkipReason::InsufficientFunds);
        }
        if order.challengeWindow != 0 {
            let bonded = !order.arbiter.is_zero();
            if !(if bonded { self.lock_bond(node) } else { self.is_staked(node) }) {
                return Err(SkipReason::NotStaked);
            }
        }
        let at_once = order.challengeWindow == 0;
        let free = if signed {
            self.draw_for_order(id, order, node, price, at_once)
        } else {
            self.credit(requester, token, order.maxPrice - price)
        };
        if at_once {
            let amount = if signed { price } else { 0 };
            self.jobs.insert(id, Job { state: JobState::Paid, signed, node, timer: 0, amount });
            self.pay(id, order, node, price, free);
        } else {
            let timer = self.now + u64::from(order.challengeWindow);
            self.jobs.insert(id, Job { state: JobState::Submitted, signed, node, timer, amount: price });
            self.escrow(&IJobEscrow::ResultSubmitted {
                jobId: id,
                requester,
                node,
                token,
                price,
                resultHash: B256::ZERO,
                finalizeAt: timer,
                free,
            });
        }
        Ok(())
    }

    fn draw_for_order(&mut self, id: B256, order: &Order, node: Address, price: u128, claim: bool) -> U256 {
        let key = (order.requester, node, order.token);
        let mut channel = self.channel(key.0, key.1, key.2);
        let from_reserved = price.min(channel.reserved);
        channel.reserved -= from_reserved;
        channel.claimed += if claim { price } else { 0 };
        self.channels.insert(key, channel);
        self.draw(order.requester, order.token, price - from_reserved);
        self.tell_channel(id, order, node)
    }

    fn tell_channel(&mut self, id: B256, order: &Order, node: Address) -> U256 {
        let (requester, token) = (order.requester, order.token);
        let (account, channel) = (self.account(requester, token), self.channel(requester, node, token));
        let free = U256::from(account.free);
        self.escrow(&IJobEscrow::ChannelUpdated {
            jobId: id,
            requester,
            node,
            token,
            free,
            thawing: U256::from(account.thawing),
            reserved: U256::from(channel.reserved),
            claimed: U256::from(channel.claimed),
        });
        free
    }

    fn is_covered(&self, order: &Order, node: Address) -> bool {
        order.nonce <= self.channel(order.requester, node, order.token).covered_nonce
    }

    /// As `Jobs._settle`.
    fn settle(&mut self, id: B256, order: &Order, job: Job) {
        let (node, mut price) = (job.node, job.amount);
        let key = (order.requester, node, order.token);
        if !order.arbiter.is_zero() {
            let disputed = job.state == JobState::Disputed;
            if disputed {
                price -= dispute_bond(order);
                self.credit(order.requester, order.token, dispute_bond(order));
            }
            self.release_bond(node, disputed, false, 0, 0);
        }
        if job.signed && self.is_covered(order, node) {
            self.jobs.insert(id, Job { state: JobState::Refunded, timer: 0, amount: 0, ..job });
            let channel = self.channels.entry(key).or_default();
            channel.reserved += price;
            self.tell_channel(id, order, node);
            let channel = self.channels.entry(key).or_default();
            channel.thawing = 0;
            let reserved = channel.reserved;
            let free = self.account(order.requester, order.token).free;
            self.tell_reservation(key, (reserved, 0, 0), free);
            let (requester, token, free) = (order.requester, order.token, U256::from(free));
            return self.escrow(&IJobEscrow::JobRefunded { jobId: id, requester, token, amount: price, free });
        }
        let signed = job.signed;
        let amount = if signed { price } else { 0 };
        self.jobs.insert(id, Job { state: JobState::Paid, timer: 0, amount, ..job });
        if signed {
            self.channels.entry(key).or_default().claimed += price;
            self.tell_channel(id, order, node);
        }
        let free = U256::from(self.account(order.requester, order.token).free);
        self.pay(id, order, node, price, free);
    }

    fn take_fee(&mut self, id: B256, order: &Order, price: u128) -> u128 {
        let fee = price * u128::from(self.fee_bps.min(order.maxFeeBps)) / 10_000;
        if fee > 0 {
            let total = self.fees.entry(order.token).or_default();
            *total += fee;
            let (fee, fees, token) = (U256::from(fee), U256::from(*total), order.token);
            self.escrow(&IJobEscrow::FeeTaken { jobId: id, token, fee, fees });
        }
        fee
    }

    fn earn(&mut self, node: Address, token: Address, amount: u128) -> U256 {
        let earned = self.earned.entry((node, token)).or_default();
        *earned += amount;
        U256::from(*earned)
    }

    fn pay(&mut self, id: B256, order: &Order, node: Address, price: u128, free: U256) {
        let fee = self.take_fee(id, order, price);
        let earned = self.earn(node, order.token, price - fee);
        let (requester, token) = (order.requester, order.token);
        self.escrow(&IJobEscrow::JobPaid {
            jobId: id,
            requester,
            node,
            token,
            price,
            resultHash: B256::ZERO,
            free,
            earned,
        });
    }

    fn dispute(&mut self, id: B256, order: &Order, job: Job) {
        let (requester, token, bond) = (order.requester, order.token, dispute_bond(order));
        let account = self.account(requester, token);
        let refused = job.state != JobState::Submitted || order.arbiter.is_zero() || self.now >= job.timer;
        if refused || account.free + account.thawing < bond {
            return;
        }
        let (_, account) = self.draw(requester, token, bond);
        let (timer, node, amount) = (self.now + ARBITER_PERIOD, job.node, job.amount + bond);
        self.jobs.insert(id, Job { state: JobState::Disputed, timer, amount, ..job });
        let (free, thawing) = (U256::from(account.free), U256::from(account.thawing));
        self.escrow(&IJobEscrow::JobDisputed {
            jobId: id,
            requester,
            node,
            token,
            bond,
            decideBy: timer,
            free,
            thawing,
        });
    }

    fn resolve(&mut self, id: B256, order: &Order, job: Job, pay_bps: u128, slash_bps: u128) {
        let (node, bond, signed) = (job.node, dispute_bond(order), job.signed);
        let price = job.amount - bond;
        let paid = price * pay_bps / 10_000;
        let lost = pay_bps != 10_000;
        let amount = if signed { paid } else { 0 };
        self.jobs.insert(id, Job { state: JobState::Resolved, timer: 0, amount, ..job });
        let most = if order.token.is_zero() { price } else { 0 };
        let (slashed, compensation) = self.release_bond(node, true, lost, BOND * slash_bps / 10_000, most);
        let back = price - paid + compensation + if lost { bond } else { 0 };
        let free = self.credit(order.requester, order.token, back);
        if signed {
            self.channels.entry((order.requester, node, order.token)).or_default().claimed += paid;
            self.tell_channel(id, order, node);
        }
        let bond_to_node = if lost { 0 } else { bond };
        let fee = self.take_fee(id, order, paid);
        let earned = self.earn(node, order.token, paid - fee + bond_to_node);
        self.escrow(&IJobEscrow::JobResolved {
            jobId: id,
            requester: order.requester,
            node,
            token: order.token,
            price: paid,
            bond: bond_to_node,
            slashed: U256::from(slashed),
            compensation: U256::from(compensation),
            free,
            earned,
        });
    }
}
