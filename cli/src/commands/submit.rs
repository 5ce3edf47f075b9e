//! `submit` and `open`: a file becomes a job that is paid for.
//!
//! `submit` stores the file, announces the order, and sends `openJob`. Everything but the last step costs nothing and can
//! be repeated; what may be left over after an interruption is an announced order without its `openJob`, which `open`
//! sends, after looking at the chain. The escrow opens a job once, whatever is sent how often.

use std::path::Path;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256};
use anyhow::Context as _;
use market::abi::{JobSpec, JobState, Order};
use market::order::{OrderJson, SpecJson};
use market::{ContentId, typed_data};
use serde_json::{Map, Value, json};

use super::account::{checked_amount, checksum, transaction};
use crate::api::{Api, SubmitRequest, Submitted, blobs};
use crate::args::SubmitArgs;
use crate::chain::{Chain, Mined, Wallet};
use crate::context::{Context, resolve_node, token_address, token_name, verified_job};
use crate::error::Failure;
use crate::ops::{self, crypt};
use crate::output::fields;

/// Window of an order that names no node, in seconds, unless told otherwise.
const OPEN_ORDER_WINDOW: u32 = 3600;
/// How long the API may take to hear of a deposit that is on the chain.
const INDEXED_WITHIN: Duration = Duration::from_secs(60);
const INDEXED_POLL: Duration = Duration::from_millis(250);

/// Stores, announces and opens.
pub async fn submit(context: &Context, args: &SubmitArgs) -> anyhow::Result<()> {
    let params = params_of(args)?;
    let wallet = context.wallet().await?;
    let (api, info) = context.market(&wallet.chain.deployment).await?;
    // The order first: what is wrong with it should show before a large file is sent.
    let mut order = plan_order(args, &wallet, info.assigner).await?;
    let input = store(context, &api, &args.file).await?;
    let spec = JobSpec { inputCID: input.to_string(), operation: args.op.clone(), params };
    order.specHash = typed_data::spec_hash(&spec);
    let job_id = identify(&wallet.chain, &order).await?;

    announce(context, &api, &order, &spec, args.priority, job_id).await?;
    context.out.note(&format!("Announced job {job_id}; if this is interrupted: littoral open {job_id}"));
    let mined = send_open(context, &wallet, job_id, &order, &spec).await?;
    report(context, job_id, &order, &spec, Some(&mined))
}

/// Opens an announced job.
pub async fn open(context: &Context, job_id: B256) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let (api, _) = context.market(&wallet.chain.deployment).await?;
    let job = verified_job(&api, job_id, &wallet.chain.deployment).await?;
    let (order, spec) = (job.order.to_order()?, JobSpec::from(&job.spec));
    anyhow::ensure!(
        order.requester == wallet.address,
        "the job is {}'s, not yours ({})",
        order.requester,
        wallet.address
    );
    let state = wallet.chain.escrow().job(job_id).call().await?.state;
    if state != JobState::None {
        context.out.note(&format!("Job {job_id} was opened already; nothing is sent"));
        return report(context, job_id, &order, &spec, None);
    }
    let now = now_on_both(&wallet.chain).await?;
    anyhow::ensure!(order.deadline > now, "the order's deadline has passed: submit the file again");
    check_funds(&wallet, &order).await?;
    let mined = send_open(context, &wallet, job_id, &order, &spec).await?;
    report(context, job_id, &order, &spec, Some(&mined))
}

/// The operation's parameters as they go into the spec: checked as far as we know the operation.
fn params_of(args: &SubmitArgs) -> anyhow::Result<String> {
    let mut params = match args.params.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => serde_json::from_str::<Map<String, Value>>(text)
            .map_err(|error| Failure::Usage(format!("--params must be a JSON object: {error}")))?,
        None => Map::new(),
    };
    let takes_recipients = matches!(args.op.as_str(), ops::ENCRYPT | ops::DECRYPT);
    if !args.to.is_empty() {
        if !takes_recipients {
            return Err(Failure::Usage(format!("--to goes with encrypt and decrypt, not with {}", args.op)).into());
        }
        params.insert("recipients".into(), json!(args.to));
    }
    let text = if params.is_empty() { String::new() } else { Value::Object(params).to_string() };
    let checked = match args.op.as_str() {
        ops::ENCRYPT => crypt::encrypt_params(&text).map(drop),
        ops::DECRYPT => crypt::decrypt_params(&text).map(drop),
        _ => Ok(()),
    };
    checked.map_err(|error| Failure::Usage(format!("{}: {error}; see --to", args.op)))?;
    Ok(text)
}

/// The order but for its `specHash`. Refuses what the contract would refuse.
async fn plan_order(args: &SubmitArgs, wallet: &Wallet, assigner: Address) -> anyhow::Result<Order> {
    let chain = &wallet.chain;
    let price = checked_amount(args.price)?;
    let node = match &args.node {
        Some(text) => resolve_node(chain, text).await?.0,
        None => Address::ZERO,
    };
    let challenge_window = args.window.unwrap_or(if node.is_zero() { OPEN_ORDER_WINDOW } else { 0 });
    if node.is_zero() && challenge_window == 0 {
        return Err(Failure::Usage("an order that names no node needs a --window above 0".into()).into());
    }
    let order = Order {
        requester: wallet.address,
        token: token_address(&args.token, &chain.deployment)?,
        maxPrice: u128::try_from(price)?,
        node,
        assigner: if node.is_zero() { assigner } else { Address::ZERO },
        specHash: B256::ZERO,
        deadline: now_on_both(chain).await?.saturating_add(args.deadline),
        challengeWindow: challenge_window,
        arbiter: Address::ZERO,
        maxFeeBps: 0,
        nonce: rand::random(),
    };
    check_funds(wallet, &order).await?;
    Ok(order)
}

async fn check_funds(wallet: &Wallet, order: &Order) -> anyhow::Result<()> {
    let free = wallet.chain.escrow().account(wallet.address, order.token).call().await?.free;
    anyhow::ensure!(
        free >= order.maxPrice,
        "the price is {}, but only {free} of {} is free in your account: see `littoral deposit`",
        order.maxPrice,
        token_name(order.token, &wallet.chain.deployment)
    );
    Ok(())
}

/// Unix seconds: the later of this machine's clock and the latest block's, since both judge a deadline.
async fn now_on_both(chain: &Chain) -> anyhow::Result<u64> {
    let here = u64::try_from(market::clock::now().timestamp()).context("this machine's clock is before 1970")?;
    Ok(here.max(chain.block_time().await?))
}

/// Sends the file to the API.
async fn store(context: &Context, api: &Api, file: &Path) -> anyhow::Result<ContentId> {
    let metadata = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    anyhow::ensure!(metadata.is_file(), "{} is not a file", file.display());
    let bar = context.out.bar("hashing", metadata.len());
    let (cid, size) = blobs::identify(file, &bar).await?;
    bar.finish_and_clear();
    let bar = context.out.bar("uploading", size);
    api.put_blob(file, cid, size, &bar).await?;
    bar.finish_and_clear();
    Ok(cid)
}

/// The job's id, ours and the contract's.
async fn identify(chain: &Chain, order: &Order) -> anyhow::Result<B256> {
    let ours = typed_data::job_id(order, &chain.domain());
    let theirs = chain.escrow().jobIdOf(order.clone()).call().await?;
    if ours != theirs {
        return Err(Failure::Unverified(format!("the order's digest is {ours}, the escrow says {theirs}")).into());
    }
    Ok(ours)
}

/// Tells the API of the order. The chain has just said that the money is there (`check_funds`); that the API does not know
/// it yet means that the indexer has not come to the deposit's block.
async fn announce(
    context: &Context,
    api: &Api,
    order: &Order,
    spec: &JobSpec,
    priority: Option<u16>,
    job_id: B256,
) -> Result<(), anyhow::Error> {
    let body = SubmitRequest { order: OrderJson::from(order), spec: SpecJson::from(spec), priority };
    let started = Instant::now();
    let mut is_noted = false;
    let submitted: Submitted = loop {
        match api.post_once("lit-compute/jobs/submit", &body, &job_id.to_string()).await {
            Err(error) if error.code() == "price_above_deposit" && started.elapsed() < INDEXED_WITHIN => {
                if !std::mem::replace(&mut is_noted, true) {
                    context.out.note("The API has not seen your deposit yet; waiting for it");
                }
                tokio::time::sleep(INDEXED_POLL).await;
            }
            answer => break answer?,
        }
    };
    if submitted.job_id != job_id {
        return Err(Failure::Unverified(format!("the API calls job {job_id} {}", submitted.job_id)).into());
    }
    Ok(())
}

async fn send_open(
    context: &Context,
    wallet: &Wallet,
    job_id: B256,
    order: &Order,
    spec: &JobSpec,
) -> anyhow::Result<Mined> {
    let chain = &wallet.chain;
    let whose = if order.node.is_zero() { "any staked node".to_owned() } else { order.node.to_string() };
    let plan = format!(
        "Opening job {job_id}: locks {} of {} for {} by {whose} until {}",
        order.maxPrice,
        token_name(order.token, &chain.deployment),
        spec.operation,
        crate::chain::time(order.deadline)
    );
    let call = chain.escrow().openJob(order.clone(), spec.clone()).into_transaction_request();
    let sent = wallet.send("openJob", &plan, call).await;
    if sent.is_err() {
        context
            .out
            .note(&format!("Job {job_id} is announced but not known to be open; try again: littoral open {job_id}"));
    }
    let mined = sent?;
    let opened = mined.receipt.decoded_log::<market::abi::IJobEscrow::JobOpened>();
    if opened.is_none_or(|log| log.jobId != job_id) {
        return Err(Failure::Unverified(format!("transaction {} did not open job {job_id}", mined.tx_hash)).into());
    }
    Ok(mined)
}

fn report(context: &Context, job_id: B256, order: &Order, spec: &JobSpec, mined: Option<&Mined>) -> anyhow::Result<()> {
    let more = json!({
        "jobId": job_id,
        "inputCID": spec.inputCID,
        "operation": spec.operation,
        "token": checksum(order.token),
        "maxPrice": order.maxPrice.to_string(),
        "node": checksum(order.node),
        "deadline": crate::chain::time(order.deadline),
        "challengeWindow": order.challengeWindow,
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
        rows.extend(mined.map(|m| ("transaction", format!("{} (gas {}, {:.1} s)", m.tx_hash, m.gas_used, m.seconds))));
        rows.push(("next", format!("littoral watch {job_id}")));
        fields(&rows)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn params(more: &[&str]) -> anyhow::Result<String> {
        let args = ["littoral", "submit", "file", "--price", "1"].iter().chain(more);
        match Cli::try_parse_from(args)?.command {
            Command::Submit(args) => params_of(&args),
            other => anyhow::bail!("{other:?}"),
        }
    }

    #[test]
    fn recipients_become_params_and_mistakes_are_found_before_anything_is_sent() {
        let key = age::x25519::Identity::generate().to_public().to_string();
        assert_eq!(params(&["--to", &key]).unwrap(), format!(r#"{{"recipients":["{key}"]}}"#));
        assert_eq!(params(&["--op", "decrypt"]).unwrap(), "");
        assert_eq!(params(&["--op", "command", "--params", r#"{ "a": 1 }"#]).unwrap(), r#"{"a":1}"#);
        for bad in [
            &["--op", "encrypt"][..],
            &["--to", "age1nonsense"],
            &["--to", &key, "--params", "{}"],
            &["--op", "command", "--to", &key],
            &["--op", "command", "--params", "[1]"],
            &["--op", "encrypt", "--params", r#"{"recipient":"x"}"#],
        ] {
            assert!(params(bad).is_err(), "{bad:?}");
        }
    }
}
