//! Whom the chain pays for a job, other than by a voucher.

use alloy::primitives::{Address, B256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::{Context as _, bail};
use market::abi::IJobEscrow::{JobPaid, JobResolved};
use market::abi::JobState;

use crate::chain::Chain;

/// The node that the chain has paid for the job, or pays when its window or its dispute is over; nobody while no result came
/// in, or where a voucher took the result's place. It is an error if the job is open: then its price is locked, and no part of
/// any channel.
pub async fn payee(chain: &Chain, job_id: B256) -> anyhow::Result<Option<Address>> {
    let job = chain.escrow().job(job_id).call().await.context("cannot read the job from the chain")?;
    match job.state {
        JobState::Open => bail!("it was opened on the chain, where its price is locked"),
        JobState::Submitted | JobState::Disputed => Ok(Some(job.node)),
        JobState::Paid | JobState::Resolved => paid(chain, job_id).await.map(Some),
        _ => Ok(None),
    }
}

/// A job that ended has its node in the event alone.
async fn paid(chain: &Chain, job_id: B256) -> anyhow::Result<Address> {
    let filter = Filter::new()
        .address(chain.deployment.escrow)
        .event_signature(vec![JobPaid::SIGNATURE_HASH, JobResolved::SIGNATURE_HASH])
        .topic1(job_id)
        .from_block(chain.deployment.deploy_block);
    let logs = chain.provider.get_logs(&filter).await.context("cannot read the job's payment from the chain")?;
    let node = logs.first().and_then(|log| log.topics().get(3)).copied();
    node.map(Address::from_word).context("the chain says that the job is paid, but not to whom")
}
