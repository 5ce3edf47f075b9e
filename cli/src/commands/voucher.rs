//! `voucher …`: what this client has promised nodes, and promising more.

use std::collections::BTreeSet;

use alloy::primitives::Address;
use market::Amount;
use market::job::JobStatus;
use serde_json::{Value, json};

use super::account::checksum;
use super::status::own_jobs;
use crate::args::{VoucherCommand, VoucherListArgs, VoucherSignArgs};
use crate::context::{Context, resolve_node, token_address, token_name};
use crate::countersign::{Countersigned, Countersigner, mark};
use crate::output::{fields, table};
use crate::records::{SignedEntry, Verdict};

/// Does what the command line says.
pub async fn run(context: &Context, command: VoucherCommand) -> anyhow::Result<()> {
    match command {
        VoucherCommand::List(args) => list(context, &args).await,
        VoucherCommand::Sign(args) => sign(context, &args).await,
    }
}

/// A voucher as JSON: `{requester?, node, token, cumulative, coveredNonce, signer, signature, jobs, signedAt}`.
pub fn to_json(node: Address, token: Address, entry: &SignedEntry) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(entry)?;
    value["node"] = json!(checksum(node));
    value["token"] = json!(checksum(token));
    value["coveredNonce"] = json!(entry.covered_nonce.to_string());
    Ok(value)
}

async fn list(context: &Context, args: &VoucherListArgs) -> anyhow::Result<()> {
    let chain = context.chain().await?;
    let requester = context.signer()?.address();
    let records = context.records(&chain.deployment, requester)?;
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for (node, token) in records.channels()? {
        let mut entries = records.journal(node, token)?.all()?;
        if !args.all {
            entries.drain(..entries.len().saturating_sub(1));
        }
        let paid = chain.escrow().channel(requester, node, token).call().await?;
        for entry in entries {
            let mut value = to_json(node, token, &entry)?;
            value["claimed"] = json!(Amount(paid.claimed));
            value["redeemed"] = json!(paid.coveredNonce >= entry.covered_nonce);
            values.push(value);
            let name = token_name(token, &chain.deployment);
            let nonce = entry.covered_nonce.to_string();
            rows.push(vec![node.to_string(), name, entry.cumulative.to_string(), nonce, paid.claimed.to_string()]);
        }
    }
    if context.out.is_json() {
        return values.iter().try_for_each(|value| context.out.result(value, String::new));
    }
    context.out.result(&(), || table(&["node", "token", "promised", "up to nonce", "paid by the chain"], rows))
}

async fn sign(context: &Context, args: &VoucherSignArgs) -> anyhow::Result<()> {
    let countersigner = Countersigner::new(context, args.session).await?;
    let chain = context.chain().await?;
    for job_id in &args.accept {
        let known = countersigner.records().order(*job_id)?;
        anyhow::ensure!(known.is_some(), "job {job_id} is not among the orders in your data directory");
        mark(countersigner.records(), *job_id, Verdict::Accepted, None)?;
    }
    let channels = match &args.node {
        Some(text) => [(resolve_node(&chain, text).await?.0, token_address(&args.token, &chain.deployment)?)].into(),
        None => delivered(context, args, &chain.deployment).await?,
    };
    let mut signed = 0_u32;
    for (node, token) in channels {
        let done = countersigner.countersign(node, token).await?;
        if let Countersigned::Nothing(obstacles) = &done {
            obstacles.iter().for_each(|obstacle| context.out.note(obstacle));
        }
        if let Some(entry) = done.entry() {
            signed += 1;
            report(context, node, token, entry, &token_name(token, &chain.deployment))?;
        }
    }
    if signed == 0 {
        context.out.note("There is nothing to countersign");
    }
    Ok(())
}

/// The channels with something delivered and not paid, by the API's word, and those with a voucher that it may lack.
async fn delivered(
    context: &Context,
    args: &VoucherSignArgs,
    deployment: &market::deployment::Deployment,
) -> anyhow::Result<BTreeSet<(Address, Address)>> {
    let requester = context.signer()?.address();
    let only = args.token.token.as_ref().map(|_| token_address(&args.token, deployment)).transpose()?;
    let mut channels: BTreeSet<(Address, Address)> =
        context.records(deployment, requester)?.channels()?.into_iter().collect();
    for job in own_jobs(&context.api()?, requester, Some(JobStatus::Completed), u32::MAX).await? {
        channels.extend(job.node.map(|node| (node, job.order.token)));
    }
    channels.retain(|(_, token)| only.is_none_or(|only| only == *token));
    Ok(channels)
}

/// Tells of a voucher.
pub fn report(context: &Context, node: Address, token: Address, entry: &SignedEntry, name: &str) -> anyhow::Result<()> {
    let mut value = to_json(node, token, entry)?;
    value["command"] = json!("voucher");
    context.out.result(&value, || {
        fields(&[
            ("voucher for", node.to_string()),
            ("promised in all", format!("{} {name}", entry.cumulative)),
            ("up to nonce", entry.covered_nonce.to_string()),
            ("new jobs", entry.jobs.len().to_string()),
            ("signed by", entry.signer.to_string()),
        ])
    })
}
