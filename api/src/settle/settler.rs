//! One round of the leader, and what it remembers between rounds.

use std::collections::{HashMap, HashSet};

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256};
use alloy::providers::{DynProvider, Provider};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::Eip712Domain;
use alloy::transports::TransportError;
use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use market::batch::{Limits, TRANSACTION_GAS_CAP};
use market::clock;
use market::db::leader::{Fence, FenceError};
use market::db::settlement::{self, PendingBatch};
use market::deployment::Deployment;
use sqlx::PgPool;

use super::fees::Fees;

/// Why a round ended early. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// Another process leads, or the database failed while that was checked.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The database failed.
    #[error("the database: {0}")]
    Sql(#[from] sqlx::Error),
    /// The chain's endpoint failed.
    #[error("the chain's RPC: {0}")]
    Rpc(#[from] TransportError),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// How to settle; see the command-line options of the same names.
#[derive(Debug, Clone)]
pub struct Options {
    pub max_items: usize,
    pub max_wait: TimeDelta,
    pub urgent_within: TimeDelta,
    pub deadline_margin: TimeDelta,
    pub confirmations: u64,
    pub caps: Fees,
    pub bump_after: TimeDelta,
    pub max_pending: usize,
    /// Percent.
    pub block_share: u64,
    pub simulate: bool,
}

/// The latest block, as it was when the round began.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub number: u64,
    /// The header's timestamp.
    pub time: DateTime<Utc>,
    pub gas_limit: u64,
    /// Wei.
    pub base_fee: u128,
}

/// What was noticed in earlier rounds. A restart may forget all of it.
#[derive(Debug, Default)]
pub struct Memory {
    /// When this process last sent a transaction.
    pub sent_at: HashMap<B256, DateTime<Utc>>,
    /// The node's last words on a transaction it refused.
    pub refusals: HashMap<B256, String>,
    /// Jobs not to be planned before a time.
    pub not_before: HashMap<B256, DateTime<Utc>>,
    /// Conditions that were logged and still hold.
    pub conditions: HashSet<Condition>,
}

/// What is logged when it begins, not in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The balance does not pay for the next batch.
    Underfunded,
    /// The chain asks for more than the operator allows.
    FeesAboveCap,
    /// A batch cannot be replaced within the operator's caps.
    BumpAboveCap(i64),
    /// A nonce that no batch has keeps the pending ones from being mined.
    NonceGap,
}

impl Memory {
    /// Whether `condition` begins now.
    pub fn begins(&mut self, condition: Condition) -> bool {
        self.conditions.insert(condition)
    }

    /// Whether `condition` held until now.
    pub fn ends(&mut self, condition: Condition) -> bool {
        self.conditions.remove(&condition)
    }

    fn forget(&mut self, pending: &[PendingBatch], now: DateTime<Utc>) {
        let hashes: HashSet<_> =
            pending.iter().flat_map(|batch| batch.attempts.iter().map(|attempt| attempt.tx_hash)).collect();
        self.sent_at.retain(|hash, _| hashes.contains(hash));
        self.refusals.retain(|hash, _| hashes.contains(hash));
        self.not_before.retain(|_, until| *until > now);
        self.conditions.retain(|condition| match condition {
            Condition::BumpAboveCap(id) => pending.iter().any(|batch| batch.id == *id),
            _ => true,
        });
    }
}

/// Sends payments as long as it leads.
pub struct Settler {
    pub(super) pool: PgPool,
    pub(super) provider: DynProvider,
    pub(super) signer: PrivateKeySigner,
    pub(super) chain_id: u64,
    pub(super) escrow: Address,
    pub(super) domain: Eip712Domain,
    pub(super) options: Options,
    pub(super) memory: Memory,
}

impl Settler {
    /// A settler that pays with `signer`'s coins.
    pub fn new(
        pool: PgPool,
        provider: DynProvider,
        signer: PrivateKeySigner,
        deployment: &Deployment,
        options: Options,
    ) -> Self {
        Self {
            pool,
            provider,
            signer,
            chain_id: deployment.chain_id,
            escrow: deployment.escrow,
            domain: deployment.domain(),
            options,
            memory: Memory::default(),
        }
    }

    /// Follows up what was sent, then sends what is due.
    pub async fn round(&mut self, fence: Fence) -> Result<(), RoundError> {
        let head = self.head().await?;
        let count = self.reopen(fence).await?;
        let pending = settlement::pending(&mut *self.pool.acquire().await?).await?;
        self.memory.forget(&pending, clock::now());
        self.watch_for_gap(&pending, count);
        let (mut open, mut first_error) = (0, None);
        for batch in &pending {
            match self.follow(fence, batch, head).await {
                Ok(ended) => open += usize::from(!ended),
                Err(error @ RoundError::Fence(_)) => return Err(error),
                // One batch's trouble is not the others'.
                Err(error) => {
                    open += 1;
                    first_error.get_or_insert(error);
                }
            }
        }
        self.dispatch_due(fence, head, open).await?;
        first_error.map_or(Ok(()), Err)
    }

    async fn head(&self) -> Result<Head, RoundError> {
        let block = self.provider.get_block_by_number(BlockNumberOrTag::Latest).await?;
        let header = block.context("the node has no latest block")?.header;
        let time = i64::try_from(header.timestamp).ok().and_then(|secs| DateTime::from_timestamp(secs, 0));
        Ok(Head {
            number: header.number,
            time: time.with_context(|| format!("the timestamp of block {} is out of range", header.number))?,
            gas_limit: header.gas_limit,
            base_fee: header.base_fee_per_gas.map_or(0, u128::from),
        })
    }

    /// Takes up again the batches whose nonces a reorg has freed: their bytes are as good as before. Returns the number of
    /// the sender's mined transactions.
    async fn reopen(&mut self, fence: Fence) -> Result<u64, RoundError> {
        let sender = self.signer.address();
        let count = self.provider.get_transaction_count(sender).await?;
        let mut db = self.pool.begin().await?;
        let reopened = settlement::reopen(&mut db, fence, sender, count, clock::now()).await?;
        db.commit().await?;
        for batch in reopened {
            tracing::warn!(batch, "a reorg has freed the nonce of a batch that had ended; sending it again");
        }
        Ok(count)
    }

    /// A reorg can undo a foreign transaction below our nonces. The next batch fills the gap; until then nothing is mined.
    fn watch_for_gap(&mut self, pending: &[PendingBatch], count: u64) {
        let own = pending.iter().filter(|batch| batch.sender == self.signer.address());
        let gap = own.map(|batch| batch.nonce).min().is_some_and(|lowest| lowest > count);
        if !gap {
            self.memory.ends(Condition::NonceGap);
        } else if self.memory.begins(Condition::NonceGap) {
            tracing::error!(nonce = count, "no batch has the nonce that must be mined next; the next payment takes it");
        }
    }

    /// What bounds a batch on the chain as it is.
    pub(super) fn limits(&self, head: Head) -> Limits {
        let share = head.gas_limit / 100 * self.options.block_share;
        Limits {
            max_items: self.options.max_items,
            max_gas: share.min(TRANSACTION_GAS_CAP),
            min_items: self.options.max_items,
            max_wait: self.options.max_wait,
            urgent_within: self.options.urgent_within,
            deadline_margin: self.options.deadline_margin,
        }
    }

    /// What the chain asks for a transaction to be mined soon.
    pub(super) async fn suggested_fees(&self) -> Result<Fees, RoundError> {
        let suggested = self.provider.estimate_eip1559_fees().await?;
        Ok(Fees {
            max_fee_per_gas: suggested.max_fee_per_gas,
            max_priority_fee_per_gas: suggested.max_priority_fee_per_gas,
        })
    }
}
