//! One round of the leader, and what it remembers between rounds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::{Address, B256, U256};
use alloy::providers::{DynProvider, Provider};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::Eip712Domain;
use alloy::transports::TransportError;
use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use market::batch::{Channel, Rate};
use market::clock;
use market::db::chain_view;
use market::db::leader::{Fence, FenceError};
use market::db::settlement::{self, Backoff, Filter, PendingBatch};
use market::deployment::Deployment;
use sqlx::PgPool;

use super::fees::{Fees, TargetFee};
use super::put_off::PutOff;
use super::refusal::Refusal;

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
    /// The chain's endpoint kept us waiting.
    #[error("the chain's RPC did not answer in time")]
    Timeout,
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// How to settle; see the command-line options of the same names.
#[derive(Debug, Clone)]
pub struct Options {
    pub max_items: usize,
    pub max_wait: TimeDelta,
    pub voucher_wait: TimeDelta,
    pub max_age: TimeDelta,
    pub urgent_within: TimeDelta,
    pub deadline_margin: TimeDelta,
    pub backoff: Backoff,
    pub filter: Filter,
    pub max_gas_share_bps: Option<u64>,
    pub rates: BTreeMap<Address, Rate>,
    pub target_fee: Option<TargetFee>,
    /// Wei.
    pub max_tx_cost: U256,
    /// Wei in 24 hours.
    pub gas_budget: Option<U256>,
    pub confirmations: u64,
    pub caps: Fees,
    pub bump_after: TimeDelta,
    pub max_pending: usize,
    /// Percent.
    pub block_share: u64,
    pub simulate: bool,
    pub rpc_timeout: Duration,
}

/// The latest block, as it was when the round began.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub number: u64,
    /// The header's timestamp, as the node tells it: for trials, and never a reason to hold a payment.
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
    /// When it last looked whether the node still has it.
    pub looked_at: HashMap<B256, DateTime<Utc>>,
    /// The node's last words on a transaction it refused.
    pub refusals: HashMap<B256, (Refusal, String)>,
    /// What is not to be planned for now.
    pub put_off: PutOff,
    /// Conditions that were logged and still hold.
    pub conditions: HashSet<Condition>,
    /// Every nonce below is a batch's, or known to be foreign.
    pub explained: u64,
    /// Whether vouchers are signed by keys, by channel and amount.
    pub by_key: HashMap<(Channel, u128), bool>,
    /// What the chain asked for at a block.
    pub suggested: Option<(u64, Fees)>,
    /// The base fee that counts as cheap, and until when.
    pub target_fee: Option<(u128, DateTime<Utc>)>,
    /// When to look next for what is final.
    pub next_finality: Option<DateTime<Utc>>,
}

/// What is logged when it begins, not in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The balance does not pay for the next batch.
    Underfunded,
    /// The chain asks for more than the operator allows.
    FeesAboveCap,
    /// The next batch would cost more than the operator allows for one, or in a day.
    OverBudget,
    /// A batch cannot be replaced within the operator's caps.
    BumpAboveCap(i64),
    /// A nonce that no batch has keeps the pending ones from being mined.
    NonceGap,
    /// Nonces were used that no batch had, and the chain's logs are not read that far.
    Quarantined,
    /// The node's latest count of our transactions is below that of a block it knows.
    CountBehind,
    /// The node does not know the block that the indexer is at.
    NodeBehind,
    /// A receipt says what the canonical logs do not.
    ReceiptContradicted(i64),
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
        self.looked_at.retain(|hash, _| hashes.contains(hash));
        self.refusals.retain(|hash, _| hashes.contains(hash));
        self.put_off.forget(now);
        self.conditions.retain(|condition| match condition {
            Condition::BumpAboveCap(id) | Condition::ReceiptContradicted(id) => {
                pending.iter().any(|batch| batch.id == *id)
            }
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
        let nonces = self.nonces().await?;
        let quarantined = self.explain(fence, &nonces).await?;
        self.reopen(fence, &nonces).await?;
        let pending = settlement::pending(&mut *self.pool.acquire().await?).await?;
        let hashes: Vec<_> = pending.iter().flat_map(|batch| &batch.attempts).map(|attempt| attempt.tx_hash).collect();
        let sightings = settlement::sightings(&mut *self.pool.acquire().await?, &hashes).await?;
        self.memory.forget(&pending, clock::now());
        let mut purse = self.purse(&pending).await?;
        let (mut open, mut first_error) = (0, None);
        for batch in &pending {
            let seen = sightings.iter().find(|seen| batch.attempts.iter().any(|it| it.tx_hash == seen.tx_hash));
            let followed = match seen {
                Some(sighting) => self.acknowledge(fence, batch, *sighting, &nonces).await,
                None => self.follow(fence, batch, &nonces, quarantined, head, &mut purse).await,
            };
            match followed {
                Ok(ended) => open += usize::from(!ended),
                Err(error @ RoundError::Fence(_)) => return Err(error),
                // One batch's trouble is not the others'.
                Err(error) => {
                    open += 1;
                    first_error.get_or_insert(error);
                }
            }
        }
        self.finalize(fence).await?;
        if !quarantined {
            open += usize::from(self.fill_gap(fence, &pending, &nonces, head, &mut purse).await?);
            self.dispatch_due(fence, head, &nonces, open, &mut purse).await?;
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn head(&self) -> Result<Head, RoundError> {
        let block = self.ask(self.provider.get_block_by_number(BlockNumberOrTag::Latest).into_future()).await?;
        let header = block.context("the node has no latest block")?.header;
        let time = i64::try_from(header.timestamp).ok().and_then(|secs| DateTime::from_timestamp(secs, 0));
        Ok(Head {
            number: header.number,
            time: time.with_context(|| format!("the timestamp of block {} is out of range", header.number))?,
            gas_limit: header.gas_limit,
            base_fee: header.base_fee_per_gas.map_or(0, u128::from),
        })
    }

    /// Waits for the chain's RPC, but not for ever.
    pub(super) async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, RoundError> {
        match tokio::time::timeout(self.options.rpc_timeout, request).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(RoundError::Timeout),
        }
    }

    /// Marks what is final.
    async fn finalize(&mut self, fence: Fence) -> Result<(), RoundError> {
        let now = clock::now();
        if self.memory.next_finality.is_some_and(|next| now < next) {
            return Ok(());
        }
        self.memory.next_finality = Some(now + TimeDelta::seconds(1));
        let mut db = self.pool.begin().await?;
        let standing = chain_view::standing(&mut db).await?;
        let Some(number) = standing.and_then(|standing| standing.irrevocable) else { return Ok(()) };
        let last = settlement::finalize(&mut db, fence, number, now).await?;
        if !last.is_empty() {
            super::crash::at(super::crash::Point::Finality);
        }
        db.commit().await?;
        for (batch, nonce) in &last {
            super::metrics::finalized();
            tracing::info!(batch, nonce, block = number, "final");
        }
        Ok(())
    }
}
