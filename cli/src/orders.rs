//! Finding an order by its job's id: here, on the chain, or at the API, whoever is there. It proves itself by its digest.

use std::path::Path;

use alloy::primitives::{Address, B256, Bytes};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::Context as _;
use market::abi::IJobEscrow::JobOpened;
use market::abi::{JobSpec, Order};
use market::order::OrderJson;
use market::typed_data;
use serde::Deserialize;

use crate::args::OrderArg;
use crate::chain::Chain;
use crate::context::{Context, verified_job};
use crate::error::Failure;
use crate::records::Records;

/// An order that has the digest that was asked for.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its digest.
    pub job_id: B256,
    /// What was agreed to.
    pub order: Order,
    /// The requester's signature, if it was signed and that is known.
    pub signature: Option<Bytes>,
}

/// A file with an order: as `orders/*.json` in the data directory, or the order alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum OrderFile {
    Record { order: OrderJson },
    Order(OrderJson),
}

/// The order that the command line names.
pub async fn named(context: &Context, chain: &Chain, arg: &OrderArg) -> anyhow::Result<Found> {
    match &arg.order {
        Some(path) => from_file(chain, arg.job, path),
        None => find(context, chain, arg.job).await,
    }
}

fn from_file(chain: &Chain, job_id: B256, path: &Path) -> anyhow::Result<Found> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: OrderFile = serde_json::from_slice(&text)
        .map_err(|error| Failure::Usage(format!("--order {} is not an order: {error}", path.display())))?;
    let (OrderFile::Record { order } | OrderFile::Order(order)) = file;
    prove(chain, job_id, order.to_order()?, None, "the file")
}

/// The order of the job, from the acting account's records, the chain if it was opened there, or the API.
pub async fn find(context: &Context, chain: &Chain, job_id: B256) -> anyhow::Result<Found> {
    if let Some(found) = here(context, chain, job_id)? {
        return Ok(found);
    }
    if let Some(found) = on_chain(chain, job_id).await? {
        return Ok(found);
    }
    let job = verified_job(&context.api()?, job_id, &chain.deployment).await.with_context(|| {
        format!("the order of job {job_id} is neither in your data directory nor on the chain; --order gives it")
    })?;
    prove(chain, job_id, job.order.to_order()?, None, "the API")
}

fn here(context: &Context, chain: &Chain, job_id: B256) -> anyhow::Result<Option<Found>> {
    if !context.has_signer() {
        return Ok(None);
    }
    let records = context.records(&chain.deployment, context.signer()?.address())?;
    kept(&records, chain, job_id)
}

/// The order, if these records have it.
pub fn kept(records: &Records, chain: &Chain, job_id: B256) -> anyhow::Result<Option<Found>> {
    let Some(record) = records.order(job_id)? else { return Ok(None) };
    prove(chain, job_id, record.order.to_order()?, record.signature, "your data directory").map(Some)
}

/// The order of a job that was opened: the event carries all of it.
async fn on_chain(chain: &Chain, job_id: B256) -> anyhow::Result<Option<Found>> {
    let filter = Filter::new()
        .address(chain.deployment.escrow)
        .event_signature(JobOpened::SIGNATURE_HASH)
        .topic1(job_id)
        .from_block(chain.deployment.deploy_block);
    let logs = chain.provider.get_logs(&filter).await.context("cannot read the job from the chain")?;
    let Some(log) = logs.last() else { return Ok(None) };
    let opened = log.log_decode::<JobOpened>()?.inner.data;
    let (order, _) = opened_order(&opened);
    prove(chain, job_id, order, None, "the chain").map(Some)
}

fn opened_order(event: &JobOpened) -> (Order, JobSpec) {
    let order = Order {
        requester: event.requester,
        token: event.token,
        maxPrice: event.maxPrice,
        node: event.node,
        assigner: event.assigner,
        specHash: typed_data::spec_hash(&event.spec),
        deadline: event.deadline,
        challengeWindow: event.challengeWindow,
        arbiter: event.arbiter,
        maxFeeBps: event.maxFeeBps,
        nonce: event.nonce,
    };
    (order, event.spec.clone())
}

fn prove(chain: &Chain, job_id: B256, order: Order, signature: Option<Bytes>, who: &str) -> anyhow::Result<Found> {
    let actual = typed_data::job_id(&order, &chain.domain());
    if actual != job_id {
        return Err(
            Failure::Unverified(format!("the order that {who} has for job {job_id} is that of {actual}")).into()
        );
    }
    Ok(Found { job_id, order, signature })
}

impl Found {
    /// Fails unless `account` made the order.
    pub fn must_be_by(&self, account: Address) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.order.requester == account,
            "job {} is {}'s, not yours ({account})",
            self.job_id,
            self.order.requester
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opened_order_is_whole_again_from_its_event() {
        let spec = JobSpec { inputCID: "bafy".into(), operation: "encrypt".into(), params: "{}".into() };
        let order = Order {
            requester: Address::with_last_byte(1),
            token: Address::with_last_byte(2),
            maxPrice: 3,
            node: Address::with_last_byte(4),
            assigner: Address::with_last_byte(5),
            specHash: typed_data::spec_hash(&spec),
            deadline: 6,
            challengeWindow: 7,
            arbiter: Address::with_last_byte(8),
            maxFeeBps: 9,
            nonce: 10,
        };
        let event = JobOpened {
            jobId: B256::ZERO,
            requester: order.requester,
            node: order.node,
            token: order.token,
            maxPrice: order.maxPrice,
            assigner: order.assigner,
            deadline: order.deadline,
            challengeWindow: order.challengeWindow,
            arbiter: order.arbiter,
            maxFeeBps: order.maxFeeBps,
            nonce: order.nonce,
            spec: spec.clone(),
            free: alloy::primitives::U256::ZERO,
        };
        assert_eq!(opened_order(&event), (order, spec));
    }

    #[test]
    fn an_order_is_read_alone_or_in_its_record() {
        let order = OrderJson::from(&Order::default());
        for json in [serde_json::json!(order), serde_json::json!({ "order": order, "signature": null, "jobId": "0x" })]
        {
            let file: OrderFile = serde_json::from_value(json).unwrap();
            let (OrderFile::Record { order: read } | OrderFile::Order(read)) = file;
            assert_eq!(read, order);
        }
    }
}
