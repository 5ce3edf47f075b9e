//! The chain's own logs against Postgres, read without the indexer.

use std::collections::{BTreeMap, HashSet};

use alloy::primitives::{Address, B256, U256};
use alloy::providers::{Provider, ProviderBuilder};
use alloy::rpc::types::Filter;
use anyhow::Context;
use devnet::Market;
use futures::{StreamExt, TryStreamExt, stream};
use market::clock;
use market::db::job_view;
use market::fold::{ChainEvent, Contracts, Event, RawLog, time_of};
use market::job::JobStatus;
use sqlx::PgPool;

use super::work::{PRICE, Stored};
use crate::people::People;

/// Most blocks whose logs are asked for at once.
const BLOCKS: u64 = 10;

/// What the chain says of the payments.
pub struct Found {
    /// Payments that are not on the chain, or of which Postgres does not say so.
    pub lost: usize,
    /// Payments that are on the chain more than once.
    pub doubled: usize,
    /// The settler's transactions.
    pub transactions: usize,
    /// What they used together.
    pub gas: u64,
}

/// What was paid, by the logs.
#[derive(Default)]
struct Paid {
    jobs: BTreeMap<B256, usize>,
    /// By requester and node: all the channel paid, and the nonce that its vouchers cover.
    channels: BTreeMap<(Address, Address), (U256, u64)>,
    transactions: HashSet<B256>,
}

pub async fn compare(pool: &PgPool, market: &Market, people: &People, stored: &Stored) -> anyhow::Result<Found> {
    let paid = read(market, people.prepared_at).await?;
    let mut found = Found { lost: 0, doubled: 0, transactions: paid.transactions.len(), gas: 0 };
    let mut owed: BTreeMap<(Address, Address), U256> = BTreeMap::new();
    for job in &stored.jobs {
        let channel = (job.order.requester, job.order.node);
        *owed.entry(channel).or_default() += U256::from(PRICE);
        let alone = paid.jobs.get(&job.id).copied().unwrap_or(0);
        let covered = paid.channels.get(&channel).is_some_and(|(_, nonce)| *nonce >= job.order.nonce);
        match alone + usize::from(covered) {
            0 => found.lost += 1,
            1 => {}
            _ => found.doubled += 1,
        }
    }
    // A channel that paid too little has lost some of its payments, one that paid too much has doubled some.
    for (channel, owed) in owed {
        let claimed = paid.channels.get(&channel).map_or(U256::ZERO, |(claimed, _)| *claimed);
        let price = U256::from(PRICE);
        found.lost += usize::try_from(owed.saturating_sub(claimed).div_ceil(price))?;
        found.doubled += usize::try_from(claimed.saturating_sub(owed).div_ceil(price))?;
    }
    found.lost += unpaid_in_postgres(pool, stored).await?;
    found.gas = gas_of(market, &paid.transactions).await?;
    Ok(found)
}

async fn unpaid_in_postgres(pool: &PgPool, stored: &Stored) -> anyhow::Result<usize> {
    let mut paid = 0;
    for jobs in stored.jobs.chunks(1000) {
        let ids: Vec<B256> = jobs.iter().map(|job| job.id).collect();
        let views = job_view::by_ids(&mut *pool.acquire().await?, &ids).await?;
        paid += views.iter().filter(|job| job.status(clock::now()) == JobStatus::Paid).count();
    }
    Ok(stored.jobs.len() - paid)
}

async fn read(market: &Market, from: u64) -> anyhow::Result<Paid> {
    let deployment = market::deployment::Deployment::read(&market.deployment().path)?;
    let contracts = Contracts::from(&deployment);
    let provider = ProviderBuilder::new().connect_http(market.endpoints().rpc_url.parse()?);
    let head = provider.get_block_number().await?;
    let mut paid = Paid::default();
    let mut block = from;
    while block <= head {
        let last = head.min(block + BLOCKS - 1);
        let filter = Filter::new().address(deployment.escrow).from_block(block).to_block(last);
        for log in provider.get_logs(&filter).await? {
            let raw = RawLog {
                block_number: log.block_number.context("a log without a block")?,
                block_hash: log.block_hash.context("a log without a block")?,
                mined_at: time_of(log.block_timestamp.unwrap_or(0)),
                tx_hash: log.transaction_hash.context("a log without a transaction")?,
                log_index: log.log_index.context("a log without an index")?,
                contract: log.address(),
                topics: log.topics().to_vec(),
                data: log.inner.data.data.clone(),
            };
            paid.add(&ChainEvent::decode(raw, &contracts)?);
        }
        block = last + 1;
    }
    Ok(paid)
}

impl Paid {
    fn add(&mut self, event: &ChainEvent) {
        match &event.event {
            Event::JobPaid(e) => *self.jobs.entry(e.jobId).or_default() += 1,
            Event::ChannelUpdated(e) => self.channels.entry((e.requester, e.node)).or_default().0 = e.claimed,
            Event::VouchersRedeemed(e) => {
                for redemption in &e.redemptions {
                    self.channels
                        .insert((redemption.requester, e.node), (redemption.claimed, redemption.covered_nonce));
                }
            }
            _ => return,
        }
        self.transactions.insert(event.log.tx_hash);
    }
}

async fn gas_of(market: &Market, transactions: &HashSet<B256>) -> anyhow::Result<u64> {
    let provider = &ProviderBuilder::new().connect_http(market.endpoints().rpc_url.parse()?);
    let used = |hash: B256| async move {
        let receipt = provider.get_transaction_receipt(hash).await?.context("a transaction without a receipt")?;
        anyhow::Ok(receipt.gas_used)
    };
    let gas: Vec<u64> = stream::iter(transactions.iter().copied().map(used)).buffer_unordered(8).try_collect().await?;
    Ok(gas.into_iter().sum())
}
