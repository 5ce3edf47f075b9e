//! What a header's bloom filter says of the logs in its block. Pure.
//!
//! It knows every log's contract and topics, so a log that it does not know was never in the block. It also knows others by
//! chance, the more the more there is in the block, so what it promises may not be there: a filter that is nearly full promises
//! everything, and is not listened to.

use alloy::primitives::{Address, B256, Bloom, BloomInput};

use super::wire::Found;
use crate::abi::{
    IJobEscrow::IJobEscrowEvents, INodeRegistry::INodeRegistryEvents, IOwnable2Step::IOwnable2StepEvents,
};
use crate::fold::Contracts;

/// Bits of a filter. Whatever it knows has set up to three of them.
const BITS: f64 = 2048.0;
/// How probable it may be that a contract without logs seems to have some, and that one seems to have another kind of event
/// than it has, for a filter to be listened to about either.
const MOST_CHANCE: [f64; 2] = [0.3, 0.1];

/// What is looked for in bloom filters: contracts, and the kinds of event that they have.
#[derive(Debug)]
pub(super) struct Promises(Vec<Promise>);

#[derive(Debug)]
struct Promise {
    contract: Address,
    /// The contract's address as bloom filters know it.
    hashed: B256,
    /// The first topic of each kind of event, and the same as bloom filters know it.
    kinds: Vec<(B256, B256)>,
}

impl Promises {
    pub fn of(contracts: &Contracts) -> Self {
        let shared = IOwnable2StepEvents::SELECTORS;
        Self(vec![
            Promise::new(contracts.escrow, &[IJobEscrowEvents::SELECTORS, shared].concat()),
            Promise::new(contracts.registry, &[INodeRegistryEvents::SELECTORS, shared].concat()),
        ])
    }

    /// Whether `bloom` promises a contract's kind of event of which there is no log.
    pub fn are_broken(&self, bloom: &Bloom, logs: &[Found]) -> bool {
        let ones: u32 = bloom.iter().map(|byte| byte.count_ones()).sum();
        let by_chance = (f64::from(ones) / BITS).powi(3);
        self.0.iter().any(|promise| promise.is_broken(bloom, by_chance, logs))
    }
}

impl Promise {
    fn new(contract: Address, selectors: &[[u8; 32]]) -> Self {
        let kinds = selectors.iter().map(|selector| (B256::from(*selector), hashed(selector))).collect();
        Self { contract, hashed: hashed(contract.as_slice()), kinds }
    }

    /// `by_chance` is how probable it is that the filter knows what is not in the block.
    fn is_broken(&self, bloom: &Bloom, by_chance: f64, logs: &[Found]) -> bool {
        let promised = |hashed: B256| bloom.contains_input(BloomInput::Hash(hashed));
        let mut ours = logs.iter().filter(|log| log.contract == self.contract).peekable();
        if ours.peek().is_none() {
            let one_kind = || self.kinds.iter().any(|(_, hashed)| promised(*hashed));
            return by_chance < MOST_CHANCE[0] && promised(self.hashed) && one_kind();
        }
        let another = by_chance * f64::from(u32::try_from(self.kinds.len()).unwrap_or(u32::MAX));
        let has: Vec<Option<&B256>> = ours.map(|log| log.topics.first()).collect();
        another < MOST_CHANCE[1]
            && self.kinds.iter().any(|(kind, hashed)| promised(*hashed) && !has.contains(&Some(kind)))
    }
}

/// Whether a block with this filter can have this log.
pub(super) fn is_possible(bloom: &Bloom, log: &Found) -> bool {
    bloom.contains_input(BloomInput::Raw(log.contract.as_slice()))
        && log.topics.iter().all(|topic| bloom.contains_input(BloomInput::Raw(topic.as_slice())))
}

fn hashed(input: &[u8]) -> B256 {
    alloy::primitives::keccak256(input)
}

#[cfg(test)]
mod tests {
    use alloy::sol_types::{Eip712Domain, SolEvent};

    use super::*;
    use crate::abi::{IJobEscrow, INodeRegistry};
    use crate::confirmation::Policy;
    use crate::db::chain::BlockId;

    const ESCROW: Address = Address::repeat_byte(1);
    const REGISTRY: Address = Address::repeat_byte(2);

    fn promises() -> Promises {
        let (domain, confirmation) = (Eip712Domain::default(), Policy::local());
        Promises::of(&Contracts { chain_id: 1, escrow: ESCROW, registry: REGISTRY, domain, confirmation })
    }

    fn log(contract: Address, topics: &[B256]) -> Found {
        let block = BlockId { number: 1, hash: B256::ZERO };
        Found { block, tx_hash: B256::ZERO, log_index: 0, contract, topics: topics.to_vec(), data: vec![] }
    }

    fn bloom_of(logs: &[Found]) -> Bloom {
        let mut bloom = Bloom::ZERO;
        for log in logs {
            bloom.accrue(BloomInput::Raw(log.contract.as_slice()));
            log.topics.iter().for_each(|topic| bloom.accrue(BloomInput::Raw(topic.as_slice())));
        }
        bloom
    }

    #[test]
    fn a_missing_log_breaks_a_promise() {
        let paid = log(ESCROW, &[IJobEscrow::JobPaid::SIGNATURE_HASH, B256::repeat_byte(9)]);
        let deposited = log(ESCROW, &[IJobEscrow::Deposited::SIGNATURE_HASH]);
        let staked = log(REGISTRY, &[INodeRegistry::Staked::SIGNATURE_HASH]);
        let all = [paid.clone(), deposited.clone(), staked.clone()];
        let bloom = bloom_of(&all);
        assert!(!promises().are_broken(&bloom, &all));
        assert!(promises().are_broken(&bloom, &[]));
        for left in [[paid.clone(), deposited.clone()], [paid.clone(), staked.clone()], [deposited, staked]] {
            assert!(promises().are_broken(&bloom, &left));
        }
        assert!(all.iter().all(|log| is_possible(&bloom, log)));
        let invented = log(ESCROW, &[IJobEscrow::JobPaid::SIGNATURE_HASH, B256::repeat_byte(8)]);
        assert!(!is_possible(&bloom, &invented));
        assert!(!is_possible(&Bloom::ZERO, &paid));
    }

    #[test]
    fn logs_of_other_contracts_promise_nothing() {
        let other = log(Address::repeat_byte(3), &[IJobEscrow::JobPaid::SIGNATURE_HASH]);
        assert!(!promises().are_broken(&bloom_of(&[other]), &[]));
        let unknown = log(ESCROW, &[B256::repeat_byte(7)]);
        assert!(!promises().are_broken(&bloom_of(&[unknown]), &[]));
        assert!(!promises().are_broken(&Bloom::repeat_byte(0xff), &[]), "a full filter says nothing");
    }
}
