//! Vouchers, session keys and reservations.

use alloy::primitives::{Address, Bytes, U256};

use super::{Action, Channel, Model, THAW_PERIOD, node, requester, token};
use crate::abi::{IJobEscrow, SkipReason};

impl Model {
    pub(super) fn use_channel(&mut self, action: &Action) {
        match action {
            Action::Reserve(..) | Action::ThawReservation(..) | Action::Release(..) => self.reserve(action),
            Action::Authorize(n, key, coin, cap) => {
                let (requester, key, token) = (requester(*n), node(*key), token(*coin));
                let (left, until) = self.sessions.get(&(requester, key, token)).copied().unwrap_or_default();
                let (cap, expiry) = (u128::from(*cap), self.now + 60);
                if until < self.now || (cap >= left && expiry >= until) {
                    self.set_session((requester, key, token), (cap, expiry));
                }
            }
            Action::Revoke(n, key, coin) => {
                let id = (requester(*n), node(*key), token(*coin));
                let (left, until) = self.sessions.get(&id).copied().unwrap_or_default();
                self.set_session(id, (left, until.min(self.now + THAW_PERIOD)));
            }
            Action::SetSettler(n, settler, allowed) => {
                let (node, settler, allowed) = (node(*n), requester(*settler), *allowed);
                self.settlers.insert((node, settler), allowed);
                self.escrow(&IJobEscrow::SettlerSet { node, settler, allowed });
            }
            Action::Redeem(n, coin, vouchers) => self.redeem(node(*n), token(*coin), vouchers),
            _ => {}
        }
    }

    fn set_session(&mut self, id: (Address, Address, Address), (left, expiry): (u128, u64)) {
        self.sessions.insert(id, (left, expiry));
        let (requester, key, token) = id;
        self.escrow(&IJobEscrow::SessionUpdated { requester, key, token, left: U256::from(left), expiry });
    }

    fn reserve(&mut self, action: &Action) {
        let (Action::Reserve(n, m, coin, _) | Action::ThawReservation(n, m, coin, _) | Action::Release(n, m, coin)) =
            action
        else {
            return;
        };
        let (requester, node, token) = (requester(*n), node(*m), token(*coin));
        let (now, mut account) = (self.now, self.account(requester, token));
        let mut channel = self.channel(requester, node, token);
        match action {
            Action::Reserve(.., amount) if u128::from(*amount) <= account.free => {
                account.free -= u128::from(*amount);
                channel.reserved += u128::from(*amount);
                channel.thawing = 0;
                self.tell_reservation((requester, node, token), (channel.reserved, 0, 0), account.free);
            }
            Action::ThawReservation(.., amount) if u128::from(*amount) <= channel.reserved => {
                (channel.thawing, channel.thaw_end) = (u128::from(*amount), now + THAW_PERIOD);
                let row = (channel.reserved, channel.thawing, channel.thaw_end);
                self.tell_reservation((requester, node, token), row, account.free);
            }
            Action::Release(..) if channel.thawing.min(channel.reserved) > 0 && now >= channel.thaw_end => {
                let released = channel.thawing.min(channel.reserved);
                account.free += released;
                channel.reserved -= released;
                channel.thawing = 0;
                self.tell_reservation((requester, node, token), (channel.reserved, 0, 0), account.free);
            }
            _ => return,
        }
        self.accounts.insert((requester, token), account);
        self.channels.insert((requester, node, token), channel);
    }

    pub(super) fn tell_reservation(
        &mut self,
        (requester, node, token): (Address, Address, Address),
        (reserved, thawing, thaw_end): (u128, u128, u64),
        free: u128,
    ) {
        let (reserved, thawing, free) = (U256::from(reserved), U256::from(thawing), U256::from(free));
        self.escrow(&IJobEscrow::ReservationChanged {
            requester,
            node,
            token,
            reserved,
            thawing,
            thawEnd: thaw_end,
            free,
        });
    }

    fn redeem(&mut self, node: Address, token: Address, vouchers: &[(u8, u16, u8, Option<u8>)]) {
        let mut redemptions = vec![];
        let mut total = 0;
        for (n, above, nonce, key) in vouchers {
            let requester = requester(*n);
            let cumulative = self.channel(requester, node, token).claimed + u128::from(*above);
            let key = key.map(super::node).filter(|key| *key != requester);
            match self.redeem_one((requester, node, token), u128::from(*above), u64::from(*nonce), key) {
                Ok((packed, paid)) => {
                    redemptions.extend_from_slice(&packed);
                    total += paid;
                }
                Err(reason) => {
                    let cumulative = U256::from(cumulative);
                    self.escrow(&IJobEscrow::VoucherSkipped { requester, node, token, cumulative, reason });
                }
            }
        }
        if !redemptions.is_empty() {
            let earned = self.earned.entry((node, token)).or_default();
            *earned += total;
            let earned = U256::from(*earned);
            self.escrow(&IJobEscrow::VouchersRedeemed { node, token, earned, redemptions: Bytes::from(redemptions) });
        }
    }

    /// What is told of a voucher that is worth `due` more than was claimed, and what it paid.
    fn redeem_one(
        &mut self,
        id: (Address, Address, Address),
        due: u128,
        nonce: u64,
        key: Option<Address>,
    ) -> Result<(Vec<u8>, u128), SkipReason> {
        let (requester, _, token) = id;
        let mut channel = self.channels.get(&id).copied().unwrap_or_default();
        if due == 0 {
            return Err(SkipReason::NothingDue);
        }
        let session = key.map(|key| (requester, key, token));
        let permission = session.map(|session| self.sessions.get(&session).copied().unwrap_or_default());
        if let Some((left, expiry)) = permission {
            if expiry < self.now {
                return Err(SkipReason::BadVoucherSignature);
            }
            if left < due {
                return Err(SkipReason::SessionCapExceeded);
            }
        }
        let from_reserved = due.min(channel.reserved);
        let (drawn, account) = self.draw(requester, token, due - from_reserved);
        let paid = from_reserved + drawn;
        if paid == 0 {
            return Err(SkipReason::InsufficientFunds);
        }
        channel.reserved -= from_reserved;
        channel.claimed += paid;
        channel.covered_nonce = channel.covered_nonce.max(nonce);
        self.channels.insert(id, channel);
        if let (Some(session), Some((left, expiry))) = (session, permission) {
            self.set_session(session, (left - paid, expiry));
        }
        let (free, thawing) = if drawn == 0 { (0, 0) } else { (account.free, account.thawing) };
        let mut packed = requester.to_vec();
        packed.extend_from_slice(&channel.claimed.to_be_bytes()[4..]);
        packed.extend_from_slice(&free.to_be_bytes());
        packed.extend_from_slice(&thawing.to_be_bytes());
        packed.extend_from_slice(&drawn.to_be_bytes()[4..]);
        packed.extend_from_slice(&channel.reserved.to_be_bytes()[4..]);
        packed.extend_from_slice(&channel.covered_nonce.to_be_bytes());
        Ok((packed, paid))
    }

    pub fn channel(&self, requester: Address, node: Address, token: Address) -> Channel {
        self.channels.get(&(requester, node, token)).copied().unwrap_or_default()
    }
}
