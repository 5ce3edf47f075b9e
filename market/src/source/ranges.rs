//! How many blocks one query of logs spans. Pure.

use std::ops::RangeInclusive;

use super::refusal::Allowed;

/// Logs that an answer should have: fewer waste round trips, and many providers refuse more than 10,000.
const AIM: u64 = 5000;
/// Before anything is known about the chain, so that the first answer is not huge.
const FIRST: u64 = 64;
/// Most by which one answer lets it grow: what comes next may be denser.
const GROWTH: u64 = 4;
/// Answers after which an endpoint's limit is tested a little.
const PATIENCE: u32 = 32;

/// How many blocks one query of logs spans: as many as give a good number of logs, fewer where the endpoint refuses.
#[derive(Debug, Clone, Copy)]
pub struct RangeSize {
    now: u64,
    /// What the endpoint takes, as far as is known.
    limit: u64,
    max: u64,
    answers: u32,
}

impl RangeSize {
    /// At most `max` blocks, which must not be zero.
    #[must_use]
    pub fn up_to(max: u64) -> Self {
        let max = max.max(1);
        Self { now: max.min(FIRST), limit: max, max, answers: 0 }
    }

    /// The next range from block `from` on, up to `to` at most.
    #[must_use]
    pub fn next(&self, from: u64, to: u64) -> RangeInclusive<u64> {
        from..=to.min(from.saturating_add(self.now - 1))
    }

    /// The endpoint refused as many as `asked`. False if less cannot be asked for.
    pub fn refused(&mut self, asked: &RangeInclusive<u64>, allowed: &Allowed) -> bool {
        let blocks = length(asked);
        if blocks <= 1 {
            return false;
        }
        let suggested = allowed.range.as_ref().filter(|range| range.start() == asked.start()).map(length);
        let less = |wish: &u64| (1..blocks).contains(wish);
        let wish = suggested.filter(less).or(allowed.blocks.filter(less)).unwrap_or(blocks / 2);
        // Others under way may have been refused before.
        self.now = self.now.min(wish);
        self.answers = 0;
        if suggested.is_none() {
            self.limit = self.limit.min(wish);
        }
        true
    }

    /// The endpoint answered `asked` with so many logs.
    pub fn answered(&mut self, asked: &RangeInclusive<u64>, logs: usize) {
        let blocks = length(asked);
        let logs = u64::try_from(logs).unwrap_or(u64::MAX);
        let fitting = blocks.saturating_mul(AIM).checked_div(logs).unwrap_or(u64::MAX).max(1);
        self.answers += 1;
        if self.answers >= PATIENCE {
            self.limit = self.limit.saturating_add(self.limit / 8 + 1).min(self.max);
            self.answers = 0;
        }
        let target = fitting.min(blocks.saturating_mul(GROWTH)).min(self.limit);
        // The last range before an end is short for another reason.
        self.now = if blocks < self.now { self.now.min(fitting.max(1)) } else { target };
    }
}

fn length(range: &RangeInclusive<u64>) -> u64 {
    (range.end() - range.start()).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads `blocks` blocks with `density` logs each from an endpoint that allows a range and a number of logs. The
    /// answers' numbers of logs, and the number of refusals.
    fn read(blocks: u64, density: u64, max: u64, most_blocks: u64, most_logs: u64) -> (Vec<u64>, usize) {
        let (mut size, mut next, mut answers, mut refusals) = (RangeSize::up_to(max), 0, Vec::new(), 0);
        while next < blocks {
            let range = size.next(next, blocks - 1);
            let (span, logs) = (length(&range), length(&range) * density);
            if span > most_blocks || (logs > most_logs && span > 1) {
                assert!(size.refused(&range, &Allowed::default()));
                refusals += 1;
            } else {
                size.answered(&range, usize::try_from(logs).unwrap());
                answers.push(logs);
                next = range.end() + 1;
            }
        }
        (answers, refusals)
    }

    #[test]
    fn dense_and_sparse_chains_both_give_full_answers() {
        for density in [1000, 30] {
            let (answers, refusals) = read(40_000, density, 2000, u64::MAX, u64::MAX);
            assert_eq!(refusals, 0);
            let settled = &answers[3..answers.len() - 1];
            assert!(settled.iter().all(|logs| (4000..=6000).contains(logs)), "{density}: {settled:?}");
            assert!(answers.iter().all(|logs| *logs <= AIM.max(FIRST * density)));
        }
        let (answers, _) = read(100_000, 0, 2000, u64::MAX, u64::MAX);
        assert!(answers.len() < 60, "{} answers for an empty chain", answers.len());
    }

    #[test]
    fn limits_are_found_and_seldom_run_into() {
        let (answers, refusals) = read(10_000, 1, 2000, 10, u64::MAX);
        assert!(refusals * 20 < answers.len(), "{refusals} refusals for {} answers", answers.len());
        let (answers, refusals) = read(10_000, 100, 2000, u64::MAX, 1000);
        assert!(refusals * 20 < answers.len(), "{refusals} refusals for {} answers", answers.len());
    }

    #[test]
    fn what_is_suggested_is_taken_up() {
        let mut size = RangeSize::up_to(2000);
        size.answered(&(0..=2000), 0);
        let asked = size.next(100, u64::MAX);
        assert!(size.refused(&asked, &Allowed { range: Some(100..=149), blocks: None }));
        assert_eq!(size.next(100, u64::MAX), 100..=149);
        assert!(size.refused(&(100..=149), &Allowed { range: None, blocks: Some(7) }));
        assert_eq!(size.next(100, u64::MAX), 100..=106);
        // Nonsense is not.
        for allowed in [Allowed { range: Some(0..=2), blocks: Some(0) }, Allowed { range: None, blocks: Some(900) }] {
            let before = size.now;
            assert!(size.refused(&size.next(100, u64::MAX), &allowed));
            assert_eq!(size.now, before / 2);
        }
        assert!(!size.refused(&(5..=5), &Allowed::default()));
    }

    proptest! {
        #[test]
        fn every_block_is_read_once(blocks in 1_u64..3000, density in 0_u64..50, max in 1_u64..500, limit in 1_u64..100) {
            let (answers, _) = read(blocks, density, max, limit, 200);
            prop_assert_eq!(answers.iter().sum::<u64>(), blocks * density);
        }
    }
}
