//! What a client can put its name to: its own last voucher, and the jobs it has checked since.

use alloy::primitives::{B256, U256};
use market::Amount;

use crate::api::{NextVoucher, VoucherBody};
use crate::error::Failure;
use crate::records::{CountedJob, SignedEntry};

/// Largest amount that a channel counts.
const MAX_CLAIMED: U256 = U256::from_limbs([u64::MAX, u32::MAX as u64, 0, 0]);

/// Where the next voucher starts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Base {
    /// All that was promised.
    pub cumulative: Amount,
    /// For orders up to this nonce.
    pub covered_nonce: u64,
}

impl Base {
    /// A voucher that was signed.
    pub fn of(entry: &SignedEntry) -> Self {
        Self { cumulative: entry.cumulative, covered_nonce: entry.covered_nonce }
    }

    /// Whether `theirs` says more.
    pub fn is_below(&self, theirs: &VoucherBody) -> bool {
        theirs.cumulative >= self.cumulative
            && theirs.covered_nonce >= self.covered_nonce
            && (theirs.cumulative, theirs.covered_nonce) != (self.cumulative, self.covered_nonce)
    }
}

/// What was found out about a job: what a voucher may count for it, or why it may not.
pub type Checked = anyhow::Result<CountedJob>;

/// What the client arrives at.
#[derive(Debug, PartialEq, Eq)]
pub enum Explained {
    /// A voucher to sign.
    Voucher {
        /// All that the channel is to have paid.
        cumulative: Amount,
        /// For orders up to this nonce.
        covered_nonce: u64,
        /// Why it is more than the last.
        jobs: Vec<CountedJob>,
        /// Why it does not cover all that the API would like.
        obstacles: Vec<String>,
    },
    /// Nothing that could be explained is new.
    Nothing {
        /// What stands in the way.
        obstacles: Vec<String>,
    },
}

/// Adds up. Jobs count in the order of their nonces up to the first that cannot be explained, because a voucher covers every
/// order up to its nonce. Fails if the API asks for more than all its jobs explain.
pub fn explain(base: &Base, next: &NextVoucher, verified: &[(B256, Checked)]) -> anyhow::Result<Explained> {
    let mut obstacles = Vec::new();
    let mut jobs: Vec<CountedJob> = Vec::new();
    let mut limit = u64::MAX;
    for (job_id, checked) in verified {
        match checked {
            // Twice in the list is once in the sum.
            Ok(job) if jobs.iter().any(|known| known.job_id == job.job_id) => {}
            Ok(job) => jobs.push(job.clone()),
            Err(error) => {
                let nonce = next.jobs.iter().find(|job| job.job_id == *job_id).map_or(0, |job| job.nonce);
                if nonce <= base.covered_nonce {
                    continue;
                }
                limit = limit.min(nonce);
                obstacles.push(format!("Job {job_id} is not countersigned: {error:#}"));
            }
        }
    }
    jobs.retain(|job| job.nonce > base.covered_nonce && job.nonce <= next.covered_nonce && job.nonce < limit);
    jobs.sort_by_key(|job| (job.nonce, job.job_id));
    // No further than the jobs: a voucher that covers nonces to come would shut this node out from orders to come.
    let Some(covered_nonce) = jobs.last().map(|job| job.nonce) else {
        return Ok(Explained::Nothing { obstacles });
    };
    let sum = jobs.iter().fold(base.cumulative.0, |sum, job| sum.saturating_add(job.price.0));
    anyhow::ensure!(sum <= MAX_CLAIMED, "the voucher would be over {sum}, more than a channel counts");
    if obstacles.is_empty() && sum < next.cumulative.0 {
        return Err(Failure::Unverified(format!(
            "the API asks for a voucher of {}, and its jobs explain {sum}: nothing is signed",
            next.cumulative
        ))
        .into());
    }
    Ok(Explained::Voucher { cumulative: Amount(sum), covered_nonce, jobs, obstacles })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::NextJob;

    fn counted(byte: u8, nonce: u64, price: u128) -> CountedJob {
        CountedJob { job_id: B256::repeat_byte(byte), nonce, price: price.into() }
    }

    fn next(cumulative: u128, covered_nonce: u64, jobs: &[CountedJob]) -> NextVoucher {
        let jobs = jobs.iter().map(|job| NextJob { job_id: job.job_id, nonce: job.nonce, ..NextJob::default() });
        NextVoucher { cumulative: cumulative.into(), covered_nonce, jobs: jobs.collect(), best: None }
    }

    fn base(cumulative: u128, covered_nonce: u64) -> Base {
        Base { cumulative: cumulative.into(), covered_nonce }
    }

    fn all_good(jobs: &[CountedJob]) -> Vec<(B256, Checked)> {
        jobs.iter().map(|job| (job.job_id, Ok(job.clone()))).collect()
    }

    fn numbers(explained: Explained) -> (Amount, u64, usize) {
        match explained {
            Explained::Voucher { cumulative, covered_nonce, jobs, .. } => (cumulative, covered_nonce, jobs.len()),
            Explained::Nothing { .. } => panic!("nothing to sign"),
        }
    }

    #[test]
    fn a_voucher_is_the_last_one_and_the_jobs_since() {
        let jobs = [counted(1, 3, 50), counted(2, 5, 60)];
        let explained = explain(&base(100, 2), &next(210, 5, &jobs), &all_good(&jobs)).unwrap();
        assert_eq!(numbers(explained), (210_u128.into(), 5, 2));
    }

    #[test]
    fn an_api_that_asks_for_more_than_its_jobs_explain_gets_nothing() {
        let jobs = [counted(1, 3, 50)];
        let error = explain(&base(100, 2), &next(151, 3, &jobs), &all_good(&jobs)).unwrap_err();
        assert!(error.to_string().contains("asks for a voucher of 151, and its jobs explain 150"), "{error}");
        assert_eq!(crate::error::exit_of(&error), crate::error::Exit::Unverified);
    }

    #[test]
    fn what_a_voucher_covered_before_is_not_counted_again_nor_a_job_twice() {
        let old = counted(1, 2, 50);
        let new = counted(2, 3, 60);
        let jobs = [old.clone(), new.clone(), new];
        let explained = explain(&base(50, 2), &next(110, 3, &jobs), &all_good(&jobs)).unwrap();
        assert_eq!(numbers(explained), (110_u128.into(), 3, 1));
        let mut unreadable = all_good(&jobs);
        unreadable[0].1 = Err(anyhow::anyhow!("gone"));
        let explained = explain(&base(50, 2), &next(110, 3, &jobs), &unreadable).unwrap();
        assert_eq!(numbers(explained), (110_u128.into(), 3, 1), "what is covered needs no explanation any more");
        let only_old =
            explain(&base(50, 2), &next(100, 2, std::slice::from_ref(&old)), &all_good(std::slice::from_ref(&old)))
                .unwrap();
        assert_eq!(only_old, Explained::Nothing { obstacles: vec![] });
    }

    #[test]
    fn a_job_that_fails_its_check_ends_what_is_covered() {
        let jobs = [counted(1, 3, 50), counted(2, 4, 60), counted(3, 5, 70)];
        let mut verified = all_good(&jobs);
        verified[1].1 = Err(anyhow::anyhow!("its output is something else"));
        let explained = explain(&base(0, 0), &next(180, 9, &jobs), &verified).unwrap();
        let Explained::Voucher { obstacles, .. } = &explained else { panic!() };
        assert!(obstacles[0].contains("something else"), "{obstacles:?}");
        assert_eq!(numbers(explained), (50_u128.into(), 3, 1), "and the nonces between are left open");
        verified[0].1 = Err(anyhow::anyhow!("no"));
        assert!(matches!(
            explain(&base(0, 0), &next(180, 9, &jobs), &verified).unwrap(),
            Explained::Nothing { obstacles } if obstacles.len() == 2
        ));
    }

    #[test]
    fn nonces_to_come_are_not_covered_whatever_the_api_asks() {
        let jobs = [counted(1, 3, 50)];
        let explained = explain(&base(0, 0), &next(50, u64::MAX, &jobs), &all_good(&jobs)).unwrap();
        assert_eq!(numbers(explained), (50_u128.into(), 3, 1));
    }

    #[test]
    fn an_api_that_forgot_a_voucher_is_given_the_sum_of_both() {
        let jobs = [counted(2, 4, 60)];
        let explained = explain(&base(100, 3), &next(60, 4, &jobs), &all_good(&jobs)).unwrap();
        assert_eq!(numbers(explained), (160_u128.into(), 4, 1));
    }
}
