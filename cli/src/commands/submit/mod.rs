//! `submit` and `open`: files become jobs that are paid for, on one of two rails.
//!
//! **Signed**, unless told otherwise: each order is signed against the deposit, kept in the data directory, and handed to the
//! API. Nothing is sent to the chain. **Opened** (`--open`): each order is announced, and `openJob` locks its price. Everything
//! but that last step costs nothing and can be repeated; what may be left over after an interruption is an announced order
//! without its `openJob`, which `open` sends, after looking at the chain. The escrow opens a job once, whatever is sent how
//! often.

mod opened;
mod plan;
mod signed;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use alloy::primitives::{Address, B256};
use anyhow::Context as _;
use market::ContentId;
use market::abi::{JobSpec, Order};
use serde_json::{Value, json};

use super::account::{checksum, transaction};
use super::watch;
use crate::api::{Api, Terms, blobs};
use crate::args::SubmitArgs;
use crate::chain::Mined;
use crate::context::{Context, token_name};
use crate::countersign::Countersigner;
use crate::error::Failure;
use crate::output::fields;
pub use opened::open;
use plan::Template;

/// A job to be.
#[derive(Debug, Clone)]
struct Draft {
    job_id: B256,
    order: Order,
    spec: JobSpec,
}

/// Stores the files, and signs or opens an order on each.
pub async fn submit(context: &Context, args: &SubmitArgs) -> anyhow::Result<()> {
    let files = inputs(args)?;
    let params = plan::params_of(args)?;
    let terms = plan::terms_of(args, market::clock::now())?;
    let wallet = context.wallet().await?;
    let (api, info) = context.market(&wallet.chain.deployment).await?;
    let records = context.records(&wallet.chain.deployment, wallet.address)?;
    // The order first: what is wrong with it should show before large files are sent.
    let template = Template::new(args, &wallet, info.assigner, files.len()).await?;
    if template.trusts_assigner() {
        context.out.note(
            "no --node and no --arbiter: whoever holds the API's assigner key decides which staked node is paid, and \
             nobody can dispute the result",
        );
    }
    let mut specs = Vec::new();
    for file in &files {
        let input = store(context, &api, file).await?;
        specs.push(JobSpec { inputCID: input.to_string(), operation: args.op.clone(), params: params.clone() });
    }
    let drafts = template.drafts(&wallet.chain, &records, specs).await?;
    let submission = Submission { context, api: &api, terms };
    let jobs = if args.open {
        opened::submit(&submission, &wallet, &records, drafts).await?
    } else {
        signed::submit(&submission, &wallet.chain, &records, &context.signer()?, drafts).await?
    };
    if args.wait { wait(context, args, &jobs).await } else { Ok(()) }
}

/// What both rails need.
struct Submission<'a> {
    context: &'a Context,
    api: &'a Api,
    /// Worked out once: a request that is repeated must be the same.
    terms: Terms,
}

/// The files that the command line names.
fn inputs(args: &SubmitArgs) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = args.files.clone();
    if let Some(list) = &args.files_from {
        let cannot = || format!("cannot read --files-from {}", list.display());
        let reader: Box<dyn BufRead> = if list.as_os_str() == "-" {
            Box::new(BufReader::new(std::io::stdin()))
        } else {
            Box::new(BufReader::new(std::fs::File::open(list).with_context(cannot)?))
        };
        for line in reader.lines() {
            let line = line.with_context(cannot)?;
            files.extend((!line.is_empty()).then(|| PathBuf::from(line)));
        }
    }
    if files.is_empty() {
        return Err(Failure::Usage("there is no file to submit".into()).into());
    }
    for file in &files {
        let metadata = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        anyhow::ensure!(metadata.is_file(), "{} is not a file", file.display());
    }
    Ok(files)
}

/// Sends the file to the API.
async fn store(context: &Context, api: &Api, file: &Path) -> anyhow::Result<ContentId> {
    let metadata = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    let bar = context.out.bar("hashing", metadata.len());
    let (cid, size) = blobs::identify(file, &bar).await?;
    bar.finish_and_clear();
    let bar = context.out.bar("uploading", size);
    api.put_blob(file, cid, size, &bar).await?;
    bar.finish_and_clear();
    Ok(cid)
}

/// Follows the jobs until each has delivered, and countersigns.
async fn wait(context: &Context, args: &SubmitArgs, jobs: &[B256]) -> anyhow::Result<()> {
    let countersigner =
        if args.signing.no_voucher { None } else { Some(Countersigner::new(context, args.signing.session).await?) };
    let following = watch::follow_all(context, jobs, countersigner.as_ref());
    match args.timeout {
        None => following.await,
        Some(secs) => tokio::time::timeout(std::time::Duration::from_secs(secs), following)
            .await
            .unwrap_or_else(|_| Err(Failure::Timeout(format!("not every job has delivered within {secs} s")).into())),
    }
}

/// Tells of a job that was submitted.
fn report(
    context: &Context,
    draft: &Draft,
    rail: &str,
    mined: Option<&Mined>,
    status: Option<&str>,
) -> anyhow::Result<()> {
    let Draft { job_id, order, spec } = draft;
    let more = json!({
        "jobId": job_id,
        "rail": rail,
        "status": status,
        "inputCID": spec.inputCID,
        "operation": spec.operation,
        "token": checksum(order.token),
        "maxPrice": order.maxPrice.to_string(),
        "node": checksum(order.node),
        "deadline": crate::chain::time(order.deadline),
        "challengeWindow": order.challengeWindow,
        "nonce": order.nonce.to_string(),
    });
    let mut value = match mined {
        Some(mined) => transaction("submit", mined, more),
        None => more,
    };
    if mined.is_none() {
        (value["command"], value["txHash"]) = (json!("submit"), Value::Null);
    }
    context.out.result(&value, || {
        let mut rows = vec![("job", job_id.to_string()), ("input", spec.inputCID.clone())];
        match mined {
            Some(mined) => {
                rows.push(("opened in", format!("{} (gas {}, {:.1} s)", mined.tx_hash, mined.gas_used, mined.seconds)));
            }
            None => rows.push(("rail", format!("{rail}, paid from your deposit"))),
        }
        rows.push(("next", format!("littoral watch {job_id}")));
        fields(&rows)
    })
}

/// What an order costs and whom, in a sentence.
fn describe(order: &Order, operation: &str, deployment: &market::deployment::Deployment) -> String {
    let whose = if order.node == Address::ZERO { "any staked node".to_owned() } else { order.node.to_string() };
    format!(
        "{} of {} for {operation} by {whose} until {}",
        order.maxPrice,
        token_name(order.token, deployment),
        crate::chain::time(order.deadline)
    )
}
