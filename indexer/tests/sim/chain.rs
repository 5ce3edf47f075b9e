//! The chain: a tree of blocks. What happens in them is what the model of the contracts lets happen, so that every branch is a
//! history that the contracts could have had.

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy::consensus::Header;
use alloy::primitives::{Address, B256, Bloom, BloomInput, Bytes, LogData, U256, keccak256};
use alloy::rpc::types::{self, BlockTransactions};
use market::fold::model::{Action, Model, action, preparations};
use market::fold::{ChainEvent, RawLog, model, time_of};
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Orders that jobs are made of.
const ORDERS: u8 = 24;
/// The deepest reorg.
pub const DEEPEST: u64 = 64;

/// A transaction, which keeps its hash wherever it is mined.
#[derive(Debug, Clone)]
pub struct Transaction {
    hash: B256,
    does: Does,
}

#[derive(Debug, Clone)]
enum Does {
    /// Creates the contracts.
    Deploy,
    /// Calls one of them.
    Act(Action),
    /// Calls a contract that is none of ours, and emits as many logs.
    Other(u8),
}

/// A block.
#[derive(Debug)]
pub struct Block {
    pub number: u64,
    pub hash: B256,
    pub parent: B256,
    /// As a node tells of it.
    pub header: types::Block,
    /// As a node tells of them, those of other contracts too.
    pub logs: Vec<types::Log>,
    /// The contracts after it; nothing before they are there.
    state: Option<Arc<Model>>,
    transactions: Vec<Transaction>,
    time: u64,
}

impl Block {
    /// What an index of it holds.
    pub fn events(&self) -> impl Iterator<Item = ChainEvent> + '_ {
        let ours = |log: &&types::Log| is_ours(log.address());
        self.logs.iter().filter(ours).map(|log| {
            let log = RawLog {
                block_number: self.number,
                block_hash: self.hash,
                mined_at: time_of(self.time),
                tx_hash: log.transaction_hash.unwrap(),
                log_index: log.log_index.unwrap(),
                contract: log.address(),
                topics: log.topics().to_vec(),
                data: log.data().data.clone(),
            };
            ChainEvent::decode(log, &model::contracts()).unwrap()
        })
    }
}

pub fn is_ours(contract: Address) -> bool {
    [model::ESCROW, model::REGISTRY].contains(&contract)
}

/// A branch from the first block to its last.
pub type Branch = Arc<Vec<Arc<Block>>>;

/// All blocks that were ever mined.
pub struct Tree {
    pub blocks: BTreeMap<B256, Arc<Block>>,
    /// The branch that counts.
    pub best: Branch,
    /// The last block that no reorg replaces: the manifest says where the contracts are created.
    pub kept: u64,
    /// Transactions that a reorg threw out and that are not mined again yet.
    pool: Vec<Transaction>,
    actions: BoxedStrategy<Action>,
    runner: TestRunner,
    count: u64,
}

impl Tree {
    /// A chain that begins, and creates the contracts in block `deploy_block`.
    pub fn new(rng: &mut StdRng, deploy_block: u64) -> Self {
        let seed: [u8; 32] = rng.random();
        let runner = TestRunner::new_with_rng(model::config(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
        let mut tree = Self {
            blocks: BTreeMap::new(),
            best: Branch::default(),
            kept: deploy_block,
            pool: vec![],
            actions: action(ORDERS).boxed(),
            runner,
            count: 0,
        };
        for _ in 0..deploy_block {
            tree.mine(rng, vec![]);
        }
        let deploy = tree.transaction(Does::Deploy);
        let first = preparations().map(|action| tree.transaction(Does::Act(action))).collect::<Vec<_>>();
        tree.mine(rng, vec![deploy]);
        tree.mine(rng, first);
        tree
    }

    pub fn head(&self) -> &Arc<Block> {
        self.best.last().unwrap()
    }

    /// Mines `count` blocks of new transactions, and of those that a reorg left over.
    pub fn grow(&mut self, rng: &mut StdRng, count: u64) {
        for _ in 0..count {
            let mut transactions = vec![];
            while !self.pool.is_empty() && rng.random_bool(0.5) {
                transactions.push(self.pool.remove(0));
            }
            let fresh = if rng.random_bool(0.4) { 0 } else { rng.random_range(1..8) };
            for _ in 0..fresh {
                let does = match rng.random_range(0..8) {
                    0 => Does::Other(rng.random_range(0..3)),
                    _ => Does::Act(self.actions.new_tree(&mut self.runner).unwrap().current()),
                };
                transactions.push(self.transaction(does));
            }
            self.mine(rng, transactions);
        }
    }

    /// Replaces the last `depth` blocks by `count` others: most of what was in them is mined again, some of it in the same
    /// place, some elsewhere, and some never.
    pub fn reorg(&mut self, rng: &mut StdRng, depth: u64, count: u64) {
        let keep = self.best.len() - usize::try_from(depth).unwrap();
        let mut branch = self.best.to_vec();
        let orphans = branch.split_off(keep);
        self.best = Arc::new(branch);
        let orphans = orphans.iter().map(|block| block.transactions.clone());
        if rng.random_bool(0.3) {
            // Each in the block that it was in, as far as there are as many.
            let mut left: Vec<Vec<Transaction>> = orphans.collect();
            for _ in 0..count {
                let mut transactions = if left.is_empty() { vec![] } else { left.remove(0) };
                transactions.retain(|_| rng.random_bool(0.9));
                self.mine(rng, transactions);
            }
            self.pool.extend(left.into_iter().flatten());
        } else {
            let mut again: Vec<Transaction> = orphans.flatten().collect();
            let lost = if rng.random_bool(0.2) { 1.0 } else { 0.1 };
            again.retain(|_| !rng.random_bool(lost));
            if rng.random_bool(0.5) {
                again.shuffle(rng);
            }
            self.pool.splice(0..0, again);
            self.grow(rng, count);
        }
    }

    /// The branch that ends in the block with this hash.
    pub fn branch(&self, head: B256) -> Branch {
        let mut blocks = vec![];
        let mut at = self.blocks.get(&head);
        while let Some(block) = at {
            blocks.push(block.clone());
            at = self.blocks.get(&block.parent);
        }
        blocks.reverse();
        Arc::new(blocks)
    }

    fn transaction(&mut self, does: Does) -> Transaction {
        self.count += 1;
        Transaction { hash: keccak256(self.count.to_be_bytes()), does }
    }

    fn mine(&mut self, rng: &mut StdRng, transactions: Vec<Transaction>) {
        let block = Arc::new(mine(self.best.last(), transactions, rng));
        self.blocks.insert(block.hash, block.clone());
        Arc::make_mut(&mut self.best).push(block);
    }
}

/// The next block after `parent`, with these transactions.
fn mine(parent: Option<&Arc<Block>>, transactions: Vec<Transaction>, rng: &mut StdRng) -> Block {
    let number = parent.map_or(0, |parent| parent.number + 1);
    let mut state = parent.and_then(|parent| parent.state.as_deref().cloned());
    let waits = transactions.iter().map(|transaction| match transaction.does {
        Does::Act(Action::Wait(secs)) => u64::from(secs),
        _ => 0,
    });
    let time = parent.map_or(model::START - 1000, |parent| parent.time) + 1 + waits.sum::<u64>();
    let time = if state.is_some() { time.max(model::START) } else { time };
    if let Some(state) = &mut state {
        state.now = time;
    }
    let mut emitted = vec![];
    for (index, transaction) in (0..).zip(&transactions) {
        for (contract, data) in run(&mut state, transaction) {
            emitted.push((index, transaction.hash, contract, data));
        }
    }
    let mut bloom = Bloom::default();
    for (_, _, contract, data) in &emitted {
        bloom.accrue_raw_log(*contract, data.topics());
    }
    if rng.random_bool(0.05) {
        // Bits of others' logs that happen to be those of our contract.
        bloom.accrue(BloomInput::Raw(model::ESCROW.as_slice()));
    }
    let header = Header {
        number,
        parent_hash: parent.map_or(B256::ZERO, |parent| parent.hash),
        timestamp: time,
        logs_bloom: bloom,
        extra_data: Bytes::copy_from_slice(&rng.random::<[u8; 8]>()),
        gas_limit: 30_000_000,
        base_fee_per_gas: Some(7),
        ..Header::default()
    };
    let (hash, parent) = (header.hash_slow(), header.parent_hash);
    let logs = (0..).zip(emitted).map(|(log_index, (tx_index, tx, address, data))| types::Log {
        inner: alloy::primitives::Log { address, data },
        block_hash: Some(hash),
        block_number: Some(number),
        block_timestamp: Some(time),
        transaction_hash: Some(tx),
        transaction_index: Some(tx_index),
        log_index: Some(log_index),
        removed: false,
    });
    let logs = logs.collect();
    let hashes = transactions.iter().map(|transaction| transaction.hash).collect();
    let header = types::Block {
        header: types::Header { hash, inner: header, total_difficulty: Some(U256::ZERO), size: Some(U256::from(600)) },
        uncles: vec![],
        transactions: BlockTransactions::Hashes(hashes),
        withdrawals: None,
    };
    Block { number, hash, parent, header, logs, state: state.map(Arc::new), transactions, time }
}

/// Carries a transaction out, and returns its logs. What the contracts refuse emits nothing.
fn run(state: &mut Option<Model>, transaction: &Transaction) -> Vec<(Address, LogData)> {
    match (&transaction.does, state) {
        (Does::Deploy, state) => {
            let mut created = Model::new();
            let logs = created.take_logs();
            *state = Some(created);
            logs
        }
        (Does::Act(Action::Wait(_)), _) | (Does::Act(_), None) => vec![],
        (Does::Act(action), Some(state)) => {
            state.act(action);
            state.take_logs()
        }
        (Does::Other(logs), _) => {
            let data = LogData::new_unchecked(vec![transaction.hash], Bytes::new());
            vec![(Address::repeat_byte(0xdd), data); usize::from(*logs)]
        }
    }
}
