//! `status`, `jobs` and `node status`: what chain and API say.

use alloy::primitives::{Address, B256};
use alloy::providers::Provider;
use market::Amount;
use market::abi::JobState;
use market::job::JobStatus;
use serde_json::{Value, json};

use super::account::{Balance, all_tokens, checksum};
use crate::api::{Api, Job, JobPage, NodeInfo};
use crate::args::JobsArgs;
use crate::chain::{Chain, time};
use crate::context::{Context, resolve_node, token_name, verified_job};
use crate::keys;
use crate::output::{fields, table};

const PAGE: u32 = 100;

/// A job, or the state of everything.
pub async fn status(context: &Context, job: Option<B256>) -> anyhow::Result<()> {
    match job {
        Some(job_id) => one_job(context, job_id).await,
        None => everything(context).await,
    }
}

async fn one_job(context: &Context, job_id: B256) -> anyhow::Result<()> {
    let api = context.api()?;
    let (job, on_chain) = if context.has_chain() {
        let chain = context.chain().await?;
        let job = verified_job(&api, job_id, &chain.deployment).await?;
        (job, Some(chain.escrow().job(job_id).call().await?))
    } else {
        (api.get::<Job>(&format!("lit-compute/jobs/{job_id}")).await?, None)
    };
    let mut value = serde_json::to_value(&job)?;
    if let Some(entry) = &on_chain {
        value["chain"] = json!({
            "state": state_name(entry.state), "locked": Amount::from(entry.locked),
            "finalizeAt": (entry.finalizeAt != 0).then(|| time(entry.finalizeAt)),
        });
    }
    context.out.result(&value, || {
        let mut rows = vec![
            ("job", job.job_id.to_string()),
            ("status", job.status.to_string()),
            ("operation", job.spec.operation.clone()),
            ("input", job.spec.input_cid.clone()),
            ("max price", format!("{} of token {}", job.order.max_price, job.order.token)),
            ("requester", job.order.requester.to_string()),
            ("deadline", time(job.order.deadline)),
        ];
        rows.extend(job.node.map(|node| ("node", node.to_string())));
        rows.extend(job.price.map(|price| ("price", price.to_string())));
        rows.extend(job.output_cid.map(|cid| ("output", cid.to_string())));
        rows.extend(job.last_error.clone().map(|error| ("last error", error)));
        rows.extend(job.opened_tx.map(|tx| ("opened in", tx.to_string())));
        rows.extend(job.closed_tx.map(|tx| ("closed in", tx.to_string())));
        rows.extend(job.confirmation.map(|confirmation| ("confirmation", confirmation.to_string())));
        rows.extend(
            on_chain.map(|entry| ("on chain", format!("{}, {} locked", state_name(entry.state), entry.locked))),
        );
        fields(&rows)
    })
}

/// A job's state on the chain, in a word.
pub fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::None => "none",
        JobState::Open => "open",
        JobState::Submitted => "submitted",
        JobState::Paid => "paid",
        JobState::Refunded => "refunded",
        JobState::Disputed => "disputed",
        JobState::Resolved => "resolved",
        _ => "unknown",
    }
}

/// Account, API and chain, each on its own: one that is down does not hide the others. Fails if any is.
async fn everything(context: &Context) -> anyhow::Result<()> {
    let api = api_health(&context.api()?).await;
    let chain = if context.has_chain() { Some(context.chain().await) } else { None };
    let (mut chain_json, mut account_json) = (Value::Null, Value::Null);
    let mut text = vec![("api", summary(&api))];
    let mut problem = api.as_ref().err().map(ToString::to_string);
    match &chain {
        None => text.push(("chain", "not looked at: give --rpc-url and --deployment".to_owned())),
        Some(Err(error)) => {
            chain_json = json!({ "ok": false, "error": error.to_string() });
            text.push(("chain", error.to_string()));
            problem = problem.or_else(|| Some(error.to_string()));
        }
        Some(Ok(chain)) => {
            let block = chain.provider.get_block_number().await?;
            let deployment = &chain.deployment;
            chain_json = json!({
                "ok": true, "chainId": deployment.chain_id, "blockNumber": block,
                "escrow": checksum(deployment.escrow), "registry": checksum(deployment.registry),
            });
            text.push(("chain", format!("{} at block {block}", deployment.chain_id)));
            text.push(("escrow", deployment.escrow.to_string()));
            if context.has_signer() {
                let (json, table) = account(context, chain).await?;
                account_json = json;
                text.push(("account", table));
            }
        }
    }
    let api_json = api.unwrap_or_else(|error| json!({ "ok": false, "error": error.to_string() }));
    let value = json!({ "api": api_json, "chain": chain_json, "account": account_json });
    context.out.result(&value, || fields(&text))?;
    problem.map_or(Ok(()), |problem| Err(anyhow::anyhow!(problem)))
}

async fn api_health(api: &Api) -> anyhow::Result<Value> {
    let health: Value = api.get("").await?;
    let info: crate::api::ChainInfo = api.get("lit-compute/chain").await?;
    Ok(json!({ "ok": true, "url": api.base(), "health": health, "chain": info }))
}

fn summary(api: &anyhow::Result<Value>) -> String {
    match api {
        Ok(value) => {
            let word = |name: &str| match &value["health"][name] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let block = &value["chain"]["indexed"]["blockNumber"];
            format!("{}, worker {}, redis {}, indexed to block {block}", word("status"), word("worker"), word("redis"))
        }
        Err(error) => error.to_string(),
    }
}

async fn account(context: &Context, chain: &Chain) -> anyhow::Result<(Value, String)> {
    let owner = context.signer()?.address();
    let mut balances = Vec::new();
    for token in all_tokens(chain) {
        balances.push(Balance::read(chain, owner, token).await?);
    }
    let rows = balances.iter().map(Balance::row).collect();
    let text = format!("{owner}\n{}", table(&["token", "wallet", "free", "thawing", "thaw end"], rows));
    Ok((json!({ "address": checksum(owner), "balances": balances }), text))
}

/// The newest jobs of `owner`, at most `limit`.
pub async fn own_jobs(api: &Api, owner: Address, status: Option<JobStatus>, limit: u32) -> anyhow::Result<Vec<Job>> {
    let mut found: Vec<Job> = Vec::new();
    let mut cursor: Option<String> = None;
    let wanted = usize::try_from(limit)?;
    while found.len() < wanted {
        let page: JobPage = api.get(&page_path(owner, status, limit, cursor.as_deref())).await?;
        found.extend(page.jobs);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    found.truncate(wanted);
    Ok(found)
}

/// The acting account's jobs; with `--json` one job a line.
pub async fn jobs(context: &Context, args: &JobsArgs) -> anyhow::Result<()> {
    let found = own_jobs(&context.api()?, context.signer()?.address(), args.status, args.limit).await?;
    if context.out.is_json() {
        return found.iter().try_for_each(|job| context.out.result(job, String::new));
    }
    let rows = found
        .iter()
        .map(|job| {
            let created = job.created_at.map(|at| at.format("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default();
            let price = job.price.unwrap_or(job.order.max_price).to_string();
            vec![job.job_id.to_string(), job.status.to_string(), job.spec.operation.clone(), price, created]
        })
        .collect();
    context.out.result(&(), || table(&["job", "status", "operation", "price", "created (UTC)"], rows))
}

fn page_path(owner: Address, status: Option<JobStatus>, limit: u32, cursor: Option<&str>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("requester", &checksum(owner)).append_pair("limit", &limit.min(PAGE).to_string());
    if let Some(status) = status {
        query.append_pair("status", status.name());
    }
    if let Some(cursor) = cursor {
        query.append_pair("cursor", cursor);
    }
    format!("lit-compute/jobs?{}", query.finish())
}

/// A node, as registry, escrow and API have it.
pub async fn node(context: &Context, node: Option<&str>) -> anyhow::Result<()> {
    let chain = context.chain().await?;
    let text =
        node.map_or_else(|| context.signer().map(|signer| checksum(signer.address())), |text| Ok(text.to_owned()))?;
    let (address, node_id) = resolve_node(&chain, &text).await?;
    let (registry, escrow) = (chain.registry(), chain.escrow());
    let about = super::node_admin::described(&chain, address).await?;
    let stake = registry.stakeOf(address).call().await?;
    let min_stake = registry.minStake().call().await?;
    let mut earned = Vec::new();
    for token in all_tokens(&chain) {
        earned.push((token, escrow.earned(address, token).call().await?));
    }
    let seen: Result<NodeInfo, _> = context.api()?.get(&format!("lit-compute/nodes/{address}/status")).await;
    let is_staked = stake.stake >= min_stake;
    let recipient = keys::recipient_of(&about.publicKey).map(|recipient| recipient.to_string()).ok();
    let value = json!({
        "node": checksum(address), "nodeId": node_id, "publicKey": about.publicKey, "recipient": recipient,
        "payout": checksum(about.payout), "capacity": about.capacity, "operations": about.operations, "uri": about.uri,
        "stake": Amount::from(stake.stake), "minStake": Amount::from(min_stake), "isStaked": is_staked,
        "unbonding": Amount::from(stake.unbonding),
        "unbondEnd": (stake.unbonding != 0).then(|| time(stake.unbondEnd)),
        "earned": earned.iter().map(|(token, amount)| json!({ "token": checksum(*token), "amount": Amount(*amount) }))
            .collect::<Vec<_>>(),
        "api": seen.as_ref().ok(),
    });
    context.out.result(&value, || {
        let staked = if is_staked { "enough" } else { "too little" };
        let mut rows = vec![
            ("node", address.to_string()),
            ("node id", node_id.to_string()),
            ("recipient", recipient.clone().unwrap_or_default()),
            ("payout", about.payout.to_string()),
            ("operations", format!("{} (capacity {})", about.operations.join(","), about.capacity)),
            ("stake", format!("{} wei, {staked} ({min_stake} needed)", stake.stake)),
        ];
        if stake.unbonding != 0 {
            rows.push(("unbonding", format!("{} wei until {}", stake.unbonding, time(stake.unbondEnd))));
        }
        for (token, amount) in &earned {
            rows.push(("earned", format!("{amount} {}", token_name(*token, &chain.deployment))));
        }
        rows.push((
            "api",
            match &seen {
                Ok(info) => format!("{}, {} active job(s)", info.status, info.active_jobs.unwrap_or(0)),
                Err(error) => error.to_string(),
            },
        ));
        fields(&rows)
    })
}
