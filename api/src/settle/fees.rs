//! What to offer for gas. Pure.

/// Least increase, in percent, of both fees of a replacement. Nodes ask for 10 %; the rest is for those that round.
const BUMP_PERCENT: u128 = 13;

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
