//! What to offer for gas. Pure.

/// Least increase, in percent, of both fees of a replacement. Nodes ask for 10 %; the rest is for those that round.
const BUMP_PERCENT: u128 = 13;

/// Above which base fee gas is dearer than it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetFee {
    /// Wei.
    Wei(u128),
    /// Percent of the latest blocks that asked for less.
    Percentile(u8),
}

impl std::str::FromStr for TargetFee {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "must be an amount of wei, or a percentile from p1 to p99";
        match text.strip_prefix('p') {
            Some(percent) => {
                let percent = percent.parse().ok().filter(|percent| (1..=99).contains(percent));
                percent.map(Self::Percentile).ok_or_else(|| wrong.to_owned())
            }
            None => text.parse().map(Self::Wei).map_err(|_| wrong.to_owned()),
        }
    }
}

/// The lowest of `fees` that `percent` of them do not exceed. Nothing if there are none.
#[must_use]
pub fn percentile(mut fees: Vec<u128>, percent: u8) -> Option<u128> {
    fees.sort_unstable();
    let rank = (fees.len() * usize::from(percent)).div_ceil(100).max(1);
    fees.get(rank - 1).copied()
}

/// EIP-1559 fees in wei per gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    /// Most that is paid, base fee and priority fee together.
    pub max_fee_per_gas: u128,
    /// Most of it that goes to the block's builder.
    pub max_priority_fee_per_gas: u128,
}

impl Fees {
    /// These fees, lowered to `caps` where they exceed them.
    #[must_use]
    pub fn capped(self, caps: Fees) -> Self {
        let max_fee_per_gas = self.max_fee_per_gas.min(caps.max_fee_per_gas);
        let priority = self.max_priority_fee_per_gas.min(caps.max_priority_fee_per_gas);
        Self { max_fee_per_gas, max_priority_fee_per_gas: priority.min(max_fee_per_gas) }
    }

    /// What a transaction with these fees is replaced with: at least 13 % more of both, `suggested` where that is more
    /// still. Nothing if `caps` do not allow the increase.
    #[must_use]
    pub fn bumped(self, suggested: Fees, caps: Fees) -> Option<Self> {
        let least = Self {
            max_fee_per_gas: raise(self.max_fee_per_gas),
            max_priority_fee_per_gas: raise(self.max_priority_fee_per_gas),
        };
        let wanted = Self {
            max_fee_per_gas: least.max_fee_per_gas.max(suggested.max_fee_per_gas),
            max_priority_fee_per_gas: least.max_priority_fee_per_gas.max(suggested.max_priority_fee_per_gas),
        };
        let offered = wanted.capped(caps);
        let enough = offered.max_fee_per_gas >= least.max_fee_per_gas
            && offered.max_priority_fee_per_gas >= least.max_priority_fee_per_gas;
        enough.then_some(offered)
    }
}

fn raise(fee: u128) -> u128 {
    fee.saturating_mul(100 + BUMP_PERCENT).div_ceil(100).max(fee.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPS: Fees = Fees { max_fee_per_gas: 1000, max_priority_fee_per_gas: 100 };

    fn fees(max_fee_per_gas: u128, max_priority_fee_per_gas: u128) -> Fees {
        Fees { max_fee_per_gas, max_priority_fee_per_gas }
    }

    #[test]
    fn a_bump_raises_both_fees_or_does_not_happen() {
        assert_eq!(fees(100, 10).bumped(fees(1, 1), CAPS), Some(fees(113, 12)));
        assert_eq!(fees(100, 10).bumped(fees(500, 50), CAPS), Some(fees(500, 50)));
        assert_eq!(fees(100, 10).bumped(fees(5000, 500), CAPS), Some(CAPS));
        assert_eq!(fees(900, 10).bumped(fees(1, 1), CAPS), None, "the cap leaves less than 13 %");
        assert_eq!(fees(100, 0).bumped(fees(1, 0), CAPS), Some(fees(113, 1)));
    }

    #[test]
    fn a_percentile_is_one_of_the_fees() {
        assert_eq!(percentile(vec![], 50), None);
        assert_eq!(percentile(vec![9], 1), Some(9));
        assert_eq!(percentile(vec![40, 10, 30, 20], 50), Some(20));
        assert_eq!(percentile(vec![40, 10, 30, 20], 99), Some(40));
        assert_eq!("p30".parse(), Ok(TargetFee::Percentile(30)));
        assert_eq!("3000".parse(), Ok(TargetFee::Wei(3000)));
        assert!("p0".parse::<TargetFee>().is_err() && "p100".parse::<TargetFee>().is_err());
    }

    proptest! {
        #[test]
        fn no_fee_exceeds_its_cap_or_the_whole(a in 0u128..2000, b in 0u128..200, c in 0u128..2000, d in 0u128..200) {
            let first = fees(a, b).capped(CAPS);
            for offered in [Some(first), first.bumped(fees(c, d), CAPS)].into_iter().flatten() {
                prop_assert!(offered.max_fee_per_gas <= CAPS.max_fee_per_gas);
                prop_assert!(offered.max_priority_fee_per_gas <= CAPS.max_priority_fee_per_gas);
                prop_assert!(offered.max_priority_fee_per_gas <= offered.max_fee_per_gas);
            }
        }
    }
}
