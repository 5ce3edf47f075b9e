//! What is not sent for now, and until when: what a trial or a clock says against it may be wrong, or may change. Only in memory:
//! after a restart everything is tried at once.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use market::batch::{Candidate, Channel, Subject};

/// After the first time; doubled with each further one.
const FIRST: TimeDelta = TimeDelta::seconds(2);
/// After any number of times.
const LONGEST: TimeDelta = TimeDelta::minutes(10);
/// Of the time that is left to a payment, no wait takes more than this part …
const SHARE_OF_TIME_LEFT: i32 = 4;
/// … unless it is as short.
const SHORTEST: TimeDelta = TimeDelta::seconds(1);

/// Why a payment is put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The contract would skip it, the node says.
    Skipped,
    /// It would revert, or take more gas than there is, even alone.
    Fails,
    /// Its deadline has passed, or is too near.
    Deadline,
    /// It does not fit into a transaction.
    TooLarge,
    /// What is stored is not the order that the job is named after.
    OtherOrder,
}

impl Why {
    /// As metrics have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Skipped => "skipped_in_trial",
            Self::Fails => "fails_alone",
            Self::Deadline => "deadline",
            Self::TooLarge => "too_large",
            Self::OtherOrder => "other_order",
        }
    }
}

/// A payment, or one voucher of a channel: a better one does not wait for what was said of another.
type Key = (Subject, Option<u128>);

#[derive(Debug, Clone, Copy)]
struct Wait {
    until: DateTime<Utc>,
    length: TimeDelta,
}

/// The payments that wait.
#[derive(Debug, Default)]
pub struct PutOff(HashMap<Key, Wait>);

fn key(item: &Candidate) -> Key {
    (item.subject, item.call.as_redemption().map(|redemption| redemption.cumulative))
}

impl PutOff {
    /// Puts `item` off: each time in a row for twice as long, and never for most of the time that is left to it. Returns until when.
    pub fn put(&mut self, item: &Candidate, now: DateTime<Utc>) -> DateTime<Utc> {
        let longer = self.0.get(&key(item)).map_or(FIRST, |before| (before.length * 2).min(LONGEST));
        let deadline = item.deadline().and_then(|secs| DateTime::from_timestamp(i64::try_from(secs).ok()?, 0));
        let ends_at = [deadline, item.ends_at].into_iter().flatten().filter(|end| *end > now).min();
        let length = ends_at.map_or(longer, |end| longer.min(((end - now) / SHARE_OF_TIME_LEFT).max(SHORTEST)));
        let until = now + length;
        self.0.insert(key(item), Wait { until, length });
        until
    }

    /// Whether `item` is not to be tried at `now`.
    #[must_use]
    pub fn has(&self, item: &Candidate, now: DateTime<Utc>) -> bool {
        self.0.get(&key(item)).is_some_and(|wait| wait.until > now)
    }

    /// `item` is sent: what was said against it counts no more.
    pub fn sent(&mut self, item: &Candidate) {
        self.0.remove(&key(item));
    }

    /// How many wait at `now`.
    #[must_use]
    pub fn len(&self, now: DateTime<Utc>) -> usize {
        self.0.values().filter(|wait| wait.until > now).count()
    }

    /// The vouchers that wait at `now`.
    #[must_use]
    pub fn vouchers(&self, now: DateTime<Utc>) -> Vec<(Channel, u128)> {
        let waiting = self.0.iter().filter(|(_, wait)| wait.until > now);
        let voucher = |((subject, cumulative), _): (&Key, &Wait)| match subject {
            Subject::Channel(channel) => Some((*channel, (*cumulative)?)),
            Subject::Job(_) => None,
        };
        waiting.filter_map(voucher).collect()
    }

    /// Forgets what was due again for so long that it must be gone.
    pub fn forget(&mut self, now: DateTime<Utc>) {
        self.0.retain(|_, wait| wait.until + LONGEST > now);
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{Address, Bytes};
    use market::batch::{Call, Redemption};

    use super::*;

    fn voucher(cumulative: u128, ends_at: Option<DateTime<Utc>>) -> Candidate {
        let channel = Channel { requester: Address::ZERO, node: Address::repeat_byte(1), token: Address::ZERO };
        let redemption = Redemption {
            channel,
            cumulative,
            covered_nonce: 1,
            signature: Bytes::new(),
            by_key: true,
            settled_above: Vec::new(),
            payable: cumulative,
        };
        Candidate {
            subject: Subject::Channel(channel),
            ready_at: DateTime::UNIX_EPOCH,
            ends_at,
            reverts: 0,
            call: Call::Redeem(Box::new(redemption)),
        }
    }

    #[test]
    fn each_wait_in_a_row_is_twice_as_long_up_to_a_bound_and_sending_ends_the_row() {
        let (item, mut put_off, mut now) = (voucher(5, None), PutOff::default(), DateTime::UNIX_EPOCH);
        let mut lengths = Vec::new();
        for _ in 0..11 {
            assert!(!put_off.has(&item, now));
            let until = put_off.put(&item, now);
            assert!(put_off.has(&item, now) && !put_off.has(&item, until));
            lengths.push((until - now).num_seconds());
            now = until;
            put_off.forget(now);
        }
        assert_eq!(lengths, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        put_off.sent(&item);
        assert_eq!(put_off.put(&item, now), now + FIRST);
        put_off.forget(now + FIRST + LONGEST);
        assert_eq!(put_off.len(now), 0);
    }

    #[test]
    fn no_wait_takes_most_of_the_time_that_is_left() {
        let now = DateTime::UNIX_EPOCH;
        let wait = |left: i64| PutOff::default().put(&voucher(5, Some(now + TimeDelta::seconds(left))), now) - now;
        assert_eq!(wait(3600), FIRST);
        assert_eq!(wait(6), TimeDelta::milliseconds(1500));
        assert_eq!(wait(1), SHORTEST);
        assert_eq!(wait(-5), FIRST, "an end that has passed hurries nobody");
    }

    #[test]
    fn a_better_voucher_does_not_wait_for_another() {
        let (mut put_off, now) = (PutOff::default(), DateTime::UNIX_EPOCH);
        put_off.put(&voucher(5, None), now);
        assert!(put_off.has(&voucher(5, None), now) && !put_off.has(&voucher(6, None), now));
        let waiting: Vec<u128> = put_off.vouchers(now).into_iter().map(|(_, cumulative)| cumulative).collect();
        assert_eq!(waiting, [5]);
    }
}
