//! How events change rows.

use alloy::primitives::{Address, U256};

use super::{
    BondRecord, ChainEvent, Dispute, EscrowAccount, EscrowChannel, EscrowJob, EscrowSession, EscrowState, Event,
    FoldError, JobResult, Key, Moment, Opened, OpenedJob, Parameters, RegistryNode, Resolution, Rows, time_of,
};
use crate::Amount;

impl Rows {
    /// Whether there is a row of this key.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        match *key {
            Key::Job(job_id) => self.jobs.contains_key(&job_id),
            Key::Account { owner, token } => self.accounts.contains_key(&(owner, token)),
            Key::Earned { node, token } => self.earned.contains_key(&(node, token)),
            Key::Node(node) => self.nodes.contains_key(&node),
            Key::Channel { requester, node, token } => self.channels.contains_key(&(requester, node, token)),
            Key::Session { requester, key, token } => self.sessions.contains_key(&(requester, key, token)),
            Key::Settler { node, settler } => self.settlers.contains_key(&(node, settler)),
            Key::Fee(token) => self.fees.contains_key(&token),
            Key::Parameters => self.parameters.is_some(),
        }
    }

    /// Changes the rows of all of the event's keys.
    pub fn apply(&mut self, event: &ChainEvent) -> Result<(), FoldError> {
        event.event.keys().into_iter().try_for_each(|key| self.apply_to(key, event))
    }

    fn apply_to(&mut self, key: Key, event: &ChainEvent) -> Result<(), FoldError> {
        match key {
            Key::Job(job_id) => {
                let job = fold_job(self.jobs.remove(&job_id), event)?;
                self.jobs.insert(job_id, job);
            }
            Key::Account { owner, token } => {
                let account = self.accounts.entry((owner, token)).or_default();
                fold_account(account, owner, &event.event);
            }
            Key::Earned { node, token } => {
                let earned = self.earned.entry((node, token)).or_default();
                match &event.event {
                    Event::JobPaid(e) => *earned = Amount(e.earned),
                    Event::JobResolved(e) => *earned = Amount(e.earned),
                    Event::VouchersRedeemed(e) => *earned = Amount(e.earned),
                    Event::EarnedWithdrawn(e) => *earned = Amount(e.earned),
                    _ => {}
                }
            }
            Key::Node(address) => {
                let node = fold_node(self.nodes.remove(&address), event)?;
                self.nodes.insert(address, node);
            }
            Key::Channel { requester, node, token } => {
                fold_channel(self.channels.entry((requester, node, token)).or_default(), requester, &event.event);
            }
            Key::Session { requester, key, token } => {
                if let Event::SessionUpdated(e) = &event.event {
                    let session = EscrowSession { left: Amount(e.left), expires_at: time_of(e.expiry) };
                    self.sessions.insert((requester, key, token), session);
                }
            }
            Key::Settler { node, settler } => {
                if let Event::SettlerSet(e) = &event.event {
                    self.settlers.insert((node, settler), e.allowed);
                }
            }
            Key::Fee(token) => match &event.event {
                Event::FeeTaken(e) => drop(self.fees.insert(token, Amount(e.fees))),
                Event::FeesWithdrawn(_) => drop(self.fees.insert(token, Amount::ZERO)),
                _ => {}
            },
            Key::Parameters => fold_parameters(self.parameters.get_or_insert_default(), event),
        }
        Ok(())
    }
}

fn fold_job(before: Option<EscrowJob>, event: &ChainEvent) -> Result<EscrowJob, FoldError> {
    let when = Moment { block: event.log.block_number, tx: event.log.tx_hash, at: event.log.mined_at };
    let unopened = |requester| EscrowJob {
        requester,
        opened: None,
        state: EscrowState::None,
        cancel_at: None,
        result: None,
        dispute: None,
        resolution: None,
        closed_when: None,
    };
    let refuse = |job: &EscrowJob| Err(out_of_order(event, format!("a job that is {}", job.state.name())));
    match &event.event {
        Event::JobOpened(opened) => {
            let mut job = before.unwrap_or_else(|| unopened(opened.order.requester));
            if job.state != EscrowState::None {
                return refuse(&job);
            }
            (job.state, job.cancel_at) = (EscrowState::Open, None);
            let OpenedJob { order, spec, spec_valid, .. } = opened.as_ref().clone();
            job.opened = Some(Opened { order, spec, spec_valid, when });
            Ok(job)
        }
        Event::JobCancelling(e) => {
            let mut job = before.unwrap_or_else(|| unopened(e.requester));
            if !matches!(job.state, EscrowState::None | EscrowState::Open) {
                return refuse(&job);
            }
            job.cancel_at = Some(time_of(e.cancelAt));
            Ok(job)
        }
        Event::ResultSubmitted(e) => {
            let mut job = before.unwrap_or_else(|| unopened(e.requester));
            if !matches!(job.state, EscrowState::None | EscrowState::Open) {
                return refuse(&job);
            }
            job.state = EscrowState::Submitted;
            let window = Some((time_of(e.finalizeAt), when.tx));
            let (node, price, token, result_hash) = (e.node, e.price.into(), e.token, e.resultHash);
            job.result = Some(JobResult { node, price, token, result_hash, window });
            Ok(job)
        }
        Event::JobPaid(e) => {
            let mut job = before.unwrap_or_else(|| unopened(e.requester));
            if job.closed_when.is_some() {
                return refuse(&job);
            }
            job.state = EscrowState::Paid;
            let window = job.result.and_then(|result| result.window);
            let (node, price, token, result_hash) = (e.node, e.price.into(), e.token, e.resultHash);
            job.result = Some(JobResult { node, price, token, result_hash, window });
            job.closed_when = Some(when);
            Ok(job)
        }
        _ => fold_job_that_is_known(before, event, when),
    }
}

/// The events that only a job can have of which the chain has told before.
fn fold_job_that_is_known(before: Option<EscrowJob>, event: &ChainEvent, when: Moment) -> Result<EscrowJob, FoldError> {
    let Some(mut job) = before else {
        return Err(out_of_order(event, "a job that is not known".to_owned()));
    };
    match &event.event {
        Event::JobRefunded(_) if job.state == EscrowState::Open || job.state.is_waiting() => {
            job.state = EscrowState::Refunded;
            job.closed_when = Some(when);
        }
        Event::JobDisputed(e) if job.state == EscrowState::Submitted => {
            job.state = EscrowState::Disputed;
            job.dispute = Some(Dispute { bond: e.bond.into(), decide_by: time_of(e.decideBy), tx: when.tx });
        }
        Event::JobResolved(e) if job.state == EscrowState::Disputed => {
            job.state = EscrowState::Resolved;
            let (slashed, compensation) = (Amount(e.slashed), Amount(e.compensation));
            job.resolution = Some(Resolution { paid: e.price.into(), slashed, compensation });
            job.closed_when = Some(when);
        }
        _ => return Err(out_of_order(event, format!("a job that is {}", job.state.name()))),
    }
    Ok(job)
}

fn fold_account(account: &mut EscrowAccount, owner: Address, event: &Event) {
    let free = |account: &mut EscrowAccount, free: U256| account.free = Amount(free);
    // The contract's time of a thaw stays behind when nothing thaws any more; here it goes.
    let both = |account: &mut EscrowAccount, free: U256, thawing: U256| {
        let thaw_end = if thawing.is_zero() { None } else { account.thaw_end };
        *account = EscrowAccount { free: Amount(free), thawing: Amount(thawing), thaw_end };
    };
    match event {
        Event::Deposited(e) => free(account, e.free),
        Event::JobOpened(e) => free(account, e.free),
        Event::ResultSubmitted(e) => free(account, e.free),
        Event::JobPaid(e) => free(account, e.free),
        Event::JobRefunded(e) => free(account, e.free),
        Event::JobResolved(e) => free(account, e.free),
        Event::ReservationChanged(e) => free(account, e.free),
        Event::JobDisputed(e) => both(account, e.free, e.thawing),
        Event::ChannelUpdated(e) => both(account, e.free, e.thawing),
        Event::Withdrawn(e) => both(account, e.free, e.thawing),
        Event::Thawing(e) => {
            *account =
                EscrowAccount { free: Amount(e.free), thawing: Amount(e.thawing), thaw_end: Some(time_of(e.thawEnd)) };
        }
        Event::VouchersRedeemed(e) => {
            for redemption in e.redemptions.iter().filter(|r| r.requester == owner && r.has_drawn()) {
                both(account, redemption.free, redemption.thawing);
            }
        }
        _ => {}
    }
}

fn fold_channel(channel: &mut EscrowChannel, requester: Address, event: &Event) {
    match event {
        Event::ChannelUpdated(e) => (channel.claimed, channel.reserved) = (Amount(e.claimed), Amount(e.reserved)),
        Event::VouchersRedeemed(e) => {
            for redemption in e.redemptions.iter().filter(|r| r.requester == requester) {
                channel.claimed = Amount(redemption.claimed);
                channel.reserved = Amount(redemption.reserved);
                channel.covered_nonce = redemption.covered_nonce;
            }
        }
        Event::ReservationChanged(e) => {
            channel.reserved = Amount(e.reserved);
            channel.thawing = Amount(e.thawing);
            channel.thaw_end = if e.thawing.is_zero() { None } else { Some(time_of(e.thawEnd)) };
        }
        _ => {}
    }
    // The node may have drawn on what was on its way back.
    channel.thawing = channel.thawing.min(channel.reserved);
    if channel.thawing == Amount::ZERO {
        channel.thaw_end = None;
    }
}

fn fold_parameters(parameters: &mut Parameters, event: &ChainEvent) {
    match &event.event {
        Event::FeeBpsSet(e) => parameters.fee_bps = e.feeBps,
        Event::EscrowPausedSet(e) => parameters.escrow_paused = e.paused,
        Event::RegistryPausedSet(e) => parameters.registry_paused = e.paused,
        Event::MinStakeSet(e) => {
            if let Some((amount, _)) = parameters.min_stake.filter(|(_, since)| *since <= event.log.mined_at) {
                parameters.min_stake_before = Some(amount);
            }
            parameters.min_stake = Some((Amount(e.minStake), time_of(e.since)));
        }
        _ => {}
    }
}

fn fold_node(before: Option<RegistryNode>, event: &ChainEvent) -> Result<RegistryNode, FoldError> {
    match (&event.event, before) {
        (Event::NodeUpdated(e), before) => {
            let (stake, unbonding, unbond_end, record) = before
                .map_or((Amount::ZERO, Amount::ZERO, None, BondRecord::default()), |node| {
                    (node.stake, node.unbonding, node.unbond_end, node.record)
                });
            Ok(RegistryNode {
                node_id: e.nodeId,
                public_key: e.publicKey.to_vec(),
                payout: e.payout,
                capacity: e.capacity,
                operations: e.operations.clone(),
                uri: e.uri.clone(),
                stake,
                unbonding,
                unbond_end,
                record,
            })
        }
        (Event::Staked(e), Some(mut node)) => {
            node.stake = Amount(e.stake);
            Ok(node)
        }
        (Event::Unbonding(e), Some(mut node)) => {
            node.stake = Amount(e.stake);
            node.unbonding = Amount(e.unbonding);
            node.unbond_end = Some(time_of(e.unbondEnd));
            Ok(node)
        }
        (Event::Unbonded(e), Some(mut node)) => {
            node.stake = Amount(e.stake);
            node.unbonding = Amount::ZERO;
            node.unbond_end = None;
            Ok(node)
        }
        (Event::Slashed(e), Some(mut node)) => {
            (node.stake, node.unbonding) = (Amount(e.stake), Amount(e.unbonding));
            if e.unbonding.is_zero() {
                node.unbond_end = None;
            }
            Ok(node)
        }
        (Event::BondLocked(e), Some(mut node)) => {
            node.record.bonds = e.bonds;
            Ok(node)
        }
        (Event::BondReleased(e), Some(mut node)) => {
            node.record = BondRecord { bonds: e.bonds, paid: e.paid, disputed: e.disputed, lost: e.lost };
            Ok(node)
        }
        (_, _) => Err(out_of_order(event, "a node that never registered".to_owned())),
    }
}

fn out_of_order(event: &ChainEvent, before: String) -> FoldError {
    FoldError {
        kind: event.event.kind(),
        block_number: event.log.block_number,
        block_hash: event.log.block_hash,
        log_index: event.log.log_index,
        before,
    }
}
