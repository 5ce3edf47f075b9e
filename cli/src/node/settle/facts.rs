//! Asking the chain what a settlement turns on.

use std::collections::{BTreeMap, BTreeSet};

use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, U256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use market::abi::IJobEscrow::{ChannelUpdated, JobPaid, JobResolved};
use market::abi::JobState;
use market::typed_data;

use super::plan::{ChannelFacts, JobFacts};
use crate::chain::{Chain, time};
use crate::node::earnings::{Channel, Earning, HeldVoucher};
use crate::wallet;

/// Questions that are under way at once.
const AT_ONCE: usize = 16;

/// What the chain says of these jobs at its latest block.
pub async fn jobs(chain: &Chain, ids: Vec<B256>) -> anyhow::Result<BTreeMap<B256, JobFacts>> {
    let asked = futures::stream::iter(ids).map(|id| async move { anyhow::Ok((id, job(chain, id).await?)) });
    asked.buffer_unordered(AT_ONCE).try_collect().await
}

async fn job(chain: &Chain, job_id: B256) -> anyhow::Result<JobFacts> {
    let escrow = chain.escrow();
    let job = escrow.job(job_id).call().await.context("cannot read a job from the chain")?;
    let cancel_at = match job.state {
        JobState::None | JobState::Open => escrow.cancelAt(job_id).call().await.context("cannot read a job")?,
        _ => 0,
    };
    Ok(JobFacts { state: job.state, finalize_at: job.finalizeAt, node: job.node, cancel_at })
}

/// Those of the jobs that the chain ended, at a block that is not undone any more.
pub async fn ended_for_good(chain: &Chain, ids: &[B256]) -> anyhow::Result<BTreeSet<B256>> {
    let asked = futures::stream::iter(ids.to_vec()).map(|id| async move {
        let job = chain.escrow().job(id).block(BlockId::finalized()).call().await?;
        let ended = matches!(job.state, JobState::Paid | JobState::Refunded | JobState::Resolved);
        anyhow::Ok(ended.then_some(id))
    });
    let found: Vec<Option<B256>> = asked.buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Up to which nonce redeemed vouchers cover the channel, at a block that is not undone any more.
pub async fn covered_for_good(chain: &Chain, node: Address, channel: Channel) -> anyhow::Result<u64> {
    let escrow = chain.escrow();
    let call = escrow.channel(channel.requester, node, channel.token);
    Ok(call.block(BlockId::finalized()).call().await?.coveredNonce)
}

/// What the chain says of one channel. `known` are the signed orders of it that the node remembers.
pub async fn channel(
    chain: &Chain,
    node: Address,
    channel: Channel,
    voucher: Option<&HeldVoucher>,
    known: &[&Earning],
    now: u64,
) -> anyhow::Result<ChannelFacts> {
    let Channel { requester, token } = channel;
    let escrow = chain.escrow();
    let paid = escrow.channel(requester, node, token).call().await.context("cannot read a channel")?;
    let reserved = escrow.reservation(requester, node, token).call().await.context("cannot read a channel")?.reserved;
    let account = escrow.account(requester, token).call().await.context("cannot read an account")?;
    let mut facts = ChannelFacts {
        claimed: paid.claimed,
        covered_nonce: paid.coveredNonce,
        reserved,
        account: U256::from(account.free) + U256::from(account.thawing),
        alone: settled_alone(chain, known).await?,
        ..ChannelFacts::default()
    };
    if let Some(voucher) = voucher {
        match voucher_signer(chain, node, voucher, now).await? {
            Standing::Requester => {}
            Standing::Session(left) => facts.session_left = Some(left),
            Standing::Flawed(reason) => facts.voucher_flaw = Some(reason),
        }
    }
    Ok(facts)
}

/// What the chain paid for each of the orders by itself, on their signature.
async fn settled_alone(chain: &Chain, known: &[&Earning]) -> anyhow::Result<BTreeMap<B256, U256>> {
    let ids: Vec<B256> = known.iter().filter(|earning| earning.is_signed()).map(|earning| earning.job_id).collect();
    let (mut signed, mut paid) = (BTreeSet::new(), BTreeMap::new());
    for ids in ids.chunks(100) {
        let filter = Filter::new()
            .address(chain.deployment.escrow)
            .event_signature(vec![ChannelUpdated::SIGNATURE_HASH, JobPaid::SIGNATURE_HASH, JobResolved::SIGNATURE_HASH])
            .topic1(ids.to_vec())
            .from_block(chain.deployment.deploy_block);
        let logs = chain.provider.get_logs(&filter).await.context("cannot read payments from the chain")?;
        for log in &logs {
            if let Ok(log) = log.log_decode::<ChannelUpdated>() {
                signed.insert(log.inner.jobId);
            } else if let Ok(log) = log.log_decode::<JobPaid>() {
                paid.insert(log.inner.jobId, U256::from(log.inner.price));
            } else if let Ok(log) = log.log_decode::<JobResolved>() {
                paid.insert(log.inner.jobId, U256::from(log.inner.price));
            }
        }
    }
    // A job that was opened after all has its own money and is no part of the channel.
    paid.retain(|job_id, _| signed.contains(job_id));
    Ok(paid)
}

/// What a voucher's signature is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its requester's, by key or by contract wallet.
    Requester,
    /// A session key's that may spend so much.
    Session(U256),
    /// Nobody's that counts.
    Flawed(String),
}

/// Whether the contract would take the voucher's signature at `now` (unix seconds).
pub async fn voucher_signer(chain: &Chain, node: Address, held: &HeldVoucher, now: u64) -> anyhow::Result<Standing> {
    let digest = typed_data::voucher_digest(&held.to_voucher(node)?, &chain.domain());
    let signer = typed_data::recover(&held.signature, digest).ok();
    if signer == Some(held.requester) {
        return Ok(Standing::Requester);
    }
    if let Some(key) = signer {
        let session = chain.escrow().session(held.requester, key, held.token).call().await?;
        if session.expiry >= now {
            return Ok(Standing::Session(U256::from(session.left)));
        }
        if session.expiry != 0 {
            return Ok(Standing::Flawed(format!("its session key {key} expired {}", time(session.expiry))));
        }
    }
    if wallet::accepts(chain, held.requester, digest, &held.signature).await? {
        return Ok(Standing::Requester);
    }
    Ok(Standing::Flawed("it is signed neither by its requester nor by a session key".into()))
}
