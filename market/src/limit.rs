//! How often someone may do something: two tiers, a burst and a sustained one, each a sliding window. A window counts what was
//! admitted since it began; of the window before, as much counts as still lies within one window's length of the present.
//! Pure: where the counts are kept is another matter ([`crate::redis::limit`], [`Local`]).

use std::{collections::HashMap, time::Duration};

/// A number of requests in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Most requests in any `window_secs`.
    pub quota: u32,
    /// Length of the window.
    pub window_secs: u32,
}

/// Both tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Over a second or so.
    pub burst: Tier,
    /// Over a minute or so.
    pub sustained: Tier,
}

/// What was admitted in a window and in the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Since the window began.
    pub current: u64,
    /// In the window before.
    pub previous: u64,
}

/// A moment as a window sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// When the window began, in unix seconds.
    pub start_secs: u64,
    /// When the window before began.
    pub before_secs: u64,
    /// Since then.
    pub elapsed_ms: u64,
}

/// What a tier has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The tier.
    pub tier: Tier,
    /// Requests that would be admitted now.
    pub remaining: u64,
    /// Until there is more, rounded up to seconds.
    pub reset_secs: u64,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether both tiers admit it.
    pub admitted: bool,
    /// Once it was counted.
    pub burst: Standing,
    /// Once it was counted.
    pub sustained: Standing,
}

impl Policy {
    /// `burst` a second and `sustained` a minute.
    #[must_use]
    pub fn per_second_and_minute(burst: u32, sustained: u32) -> Self {
        Self { burst: Tier { quota: burst, window_secs: 1 }, sustained: Tier { quota: sustained, window_secs: 60 } }
    }

    /// What follows from counts that have been updated, at `now_ms`.
    #[must_use]
    pub fn verdict(&self, admitted: bool, burst: Counts, sustained: Counts, now_ms: u64) -> Verdict {
        Verdict {
            admitted,
            burst: self.burst.standing(burst, now_ms),
            sustained: self.sustained.standing(sustained, now_ms),
        }
    }
}

impl Verdict {
    /// Seconds after which the same request can be admitted.
    #[must_use]
    pub fn retry_after_secs(&self) -> u64 {
        let wait = |standing: Standing| if standing.remaining == 0 { standing.reset_secs } else { 0 };
        wait(self.burst).max(wait(self.sustained)).max(1)
    }
}

impl Tier {
    /// Length of the window.
    #[must_use]
    pub fn window_ms(self) -> u64 {
        u64::from(self.window_secs.max(1)) * 1000
    }

    /// Where `now_ms`, a unix time, lies.
    #[must_use]
    pub fn position(self, now_ms: u64) -> Position {
        let elapsed_ms = now_ms % self.window_ms();
        let start_secs = (now_ms - elapsed_ms) / 1000;
        Position { start_secs, before_secs: start_secs.saturating_sub(self.window_ms() / 1000), elapsed_ms }
    }

    /// Whether one more request fits. The script in Redis computes the same.
    #[must_use]
    pub fn admits(self, counts: Counts, elapsed_ms: u64) -> bool {
        self.weight(counts, elapsed_ms) + self.window_ms() <= u64::from(self.quota) * self.window_ms()
    }

    /// Requests times milliseconds of the window that counts.
    fn weight(self, counts: Counts, elapsed_ms: u64) -> u64 {
        counts.current * self.window_ms() + counts.previous * self.window_ms().saturating_sub(elapsed_ms)
    }

    fn standing(self, counts: Counts, now_ms: u64) -> Standing {
        let (window, elapsed) = (self.window_ms(), self.position(now_ms).elapsed_ms);
        let left = (u64::from(self.quota) * window).saturating_sub(self.weight(counts, elapsed));
        let remaining = left / window;
        let reset_ms = if remaining > 0 { window - elapsed } else { self.wait_ms(counts, elapsed) };
        Standing { tier: self, remaining, reset_secs: reset_ms.div_ceil(1000).max(1) }
    }

    /// Until one more request fits, if nothing else is admitted meanwhile.
    fn wait_ms(self, counts: Counts, elapsed_ms: u64) -> u64 {
        let window = self.window_ms();
        let quota = u64::from(self.quota);
        // How far into its window a moment must lie for `before` requests of the one before to leave room for one more.
        let room_at = |current: u64, before: u64| {
            let free = quota.checked_sub(current + 1)?;
            Some(if before <= free { 0 } else { (window * (before - free)).div_ceil(before) })
        };
        if let Some(at) = room_at(counts.current, counts.previous) {
            return at.saturating_sub(elapsed_ms);
        }
        window - elapsed_ms + room_at(0, counts.current).unwrap_or(window)
    }
}

/// Counts of this process alone, for when those that all share cannot be had.
#[derive(Debug, Default)]
pub struct Local {
    counts: HashMap<(String, u64), u64>,
    swept_at_secs: u64,
}

/// Counters that are kept. Those who come when there are as many share one.
const MOST_COUNTERS: usize = 20_000;
/// Seconds between two looks for counters that count nothing any more. Longer than any window.
const SWEEP_SECS: u64 = 120;

impl Local {
    /// Counts a request of `who` at `now_ms` if `policy` admits it.
    pub fn take(&mut self, who: &str, policy: &Policy, now_ms: u64) -> Verdict {
        self.sweep(now_ms / 1000);
        let crowded = self.counts.len() >= MOST_COUNTERS;
        let name = |tier: Tier| {
            let own = format!("{who}:{}", tier.window_secs);
            let at = tier.position(now_ms);
            let known =
                [at.start_secs, at.before_secs].iter().any(|start| self.counts.contains_key(&(own.clone(), *start)));
            if crowded && !known { format!("*:{}", tier.window_secs) } else { own }
        };
        let tiers = [(policy.burst, name(policy.burst)), (policy.sustained, name(policy.sustained))];
        let admitted = tiers
            .iter()
            .all(|(tier, name)| tier.admits(self.of(name, *tier, now_ms), tier.position(now_ms).elapsed_ms));
        if admitted {
            for (tier, name) in &tiers {
                *self.counts.entry((name.clone(), tier.position(now_ms).start_secs)).or_default() += 1;
            }
        }
        let [burst, sustained] = tiers.map(|(tier, name)| self.of(&name, tier, now_ms));
        policy.verdict(admitted, burst, sustained, now_ms)
    }

    fn of(&self, name: &str, tier: Tier, now_ms: u64) -> Counts {
        let at = tier.position(now_ms);
        let count = |start| self.counts.get(&(name.to_owned(), start)).copied().unwrap_or_default();
        Counts { current: count(at.start_secs), previous: count(at.before_secs) }
    }

    fn sweep(&mut self, now_secs: u64) {
        let full = self.counts.len() >= MOST_COUNTERS;
        if now_secs < self.swept_at_secs + if full { 1 } else { SWEEP_SECS } {
            return;
        }
        self.swept_at_secs = now_secs;
        self.counts.retain(|(name, start), _| {
            let window = name.rsplit(':').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(1);
            start + 2 * window > now_secs
        });
    }
}

/// A length of time as milliseconds.
#[must_use]
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy =
        Policy { burst: Tier { quota: 10, window_secs: 1 }, sustained: Tier { quota: 100, window_secs: 60 } };
    const T: u64 = 1_800_000_000_000;

    #[test]
    fn ten_in_a_second_and_few_more_across_the_edge_of_a_window() {
        let mut local = Local::default();
        let admitted = (0..40).filter(|n| local.take("u", &POLICY, T + 500 + n * 20).admitted).count();
        // What the window before held counts less the longer ago that was, as if it had been spread evenly: two fit by then.
        assert_eq!(admitted, 12, "within 0.8 seconds around an edge");
        let refused = local.take("u", &POLICY, T + 1290);
        assert!(!refused.admitted && refused.burst.remaining == 0 && refused.retry_after_secs() == 1, "{refused:?}");
        assert!(local.take("other", &POLICY, T + 1300).admitted, "each on his own");
    }

    #[test]
    fn a_hundred_in_a_minute() {
        let mut local = Local::default();
        let admitted = (0..500).filter(|n| local.take("u", &POLICY, T + n * 119).admitted).count();
        assert_eq!(admitted, 100);
        let refused = local.take("u", &POLICY, T + 59_600);
        assert!(!refused.admitted && refused.sustained.remaining == 0);
        assert!(refused.retry_after_secs() >= 1 && refused.retry_after_secs() <= 61);
    }

    #[test]
    fn however_many_come_the_counters_stay_bounded() {
        let mut local = Local::default();
        for n in 0..3 * MOST_COUNTERS {
            local.take(&format!("u{n}"), &POLICY, T);
        }
        assert!(local.counts.len() <= MOST_COUNTERS + 4, "{}", local.counts.len());
        assert!(!local.take("late", &POLICY, T).admitted, "those who find no place share one");
        assert!(local.take("late", &POLICY, T + 300_000).admitted, "and have their own when there is room");
    }

    proptest! {
        #[test]
        fn no_window_length_ever_holds_twice_the_quota_and_waiting_as_told_is_enough(
            steps in prop::collection::vec(0_u64..400, 1..300)
        ) {
            let (mut local, mut now, mut admitted) = (Local::default(), T, Vec::new());
            for step in steps {
                now += step;
                let verdict = local.take("u", &POLICY, now);
                if verdict.admitted {
                    admitted.push(now);
                } else {
                    let mut later = Local { counts: local.counts.clone(), swept_at_secs: local.swept_at_secs };
                    let then = now + verdict.retry_after_secs() * 1000;
                    prop_assert!(later.take("u", &POLICY, then).admitted, "{verdict:?}");
                }
            }
            for (tier, slack) in [(POLICY.burst, 2), (POLICY.sustained, 2)] {
                for (n, first) in admitted.iter().enumerate() {
                    let within = admitted[n..].iter().take_while(|at| **at < first + tier.window_ms()).count();
                    prop_assert!(u32::try_from(within).unwrap() < slack * tier.quota);
                }
            }
        }
    }
}
