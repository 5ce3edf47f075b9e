//! From the command line to a node that can run.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Bytes;
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::accept::Accepted;
use super::earnings::Earnings;
use super::held::Held;
use super::ledger::Ledger;
use super::store::Store;
use super::{Limits, Node};
use crate::api::ChainInfo;
use crate::args::{RunArgs, Settler};
use crate::chain::{Chain, Wallet};
use crate::commands::node_admin::described;
use crate::commands::settler::ensure_allowed;
use crate::context::Context;
use crate::error::Failure;
use crate::keys;
use crate::ops::command::CommandSpec;
use crate::ops::{COMMAND, DECRYPT, ENCRYPT, Operations};

const WORK: &str = "work";

/// Checks chain, registration, key and options, and locks the work directory. Sends nothing.
pub async fn node(context: &Context, args: RunArgs) -> anyhow::Result<Node> {
    let command = args
        .command
        .as_deref()
        .map(|line| CommandSpec::parse(line, Duration::from_secs(args.command_timeout)))
        .transpose()
        .map_err(|error| Failure::Usage(format!("--command {error}")))?;
    let signer = context.signer()?;
    let address = signer.address();
    let chain = context.chain().await?;
    let registered = described(&chain, address).await?;

    let node_dir = args.dir.path()?;
    let path = node_dir.join(keys::NODE_IDENTITY);
    let identity = keys::read_identity(&path)?;
    let public_key = Bytes::from(keys::public_key_bytes(&identity.to_public())?);
    anyhow::ensure!(
        public_key == registered.publicKey,
        "{} is not the key that is registered: give the right --node-dir, or change it with `littoral node update`",
        path.display()
    );

    let names = offered(args.ops, command.is_some(), &registered.operations)?;
    let unable: Vec<&String> = registered.operations.iter().filter(|name| !names.contains(name)).collect();
    if !unable.is_empty() {
        tracing::warn!(node = %address, ?unable, "the registry lists operations that this process does not offer");
    }
    let (api, info) = loop_until_api(context, &chain.deployment).await?;
    let rpc_url = context.rpc_url()?.clone();
    authorise(context, &chain, args.settler, &info, signer.clone()).await?;
    let ledger = Ledger::new(Earnings::open(&node_dir, &chain.deployment)?, chain.clone(), address, args.max_unsettled);
    let work_dir = args.work_dir.unwrap_or_else(|| node_dir.join(WORK));
    Ok(Node {
        api,
        store: Store::open(&work_dir)?,
        operations: Operations { names, identity: Arc::new(identity), command, max_output: args.max_output },
        limits: Limits {
            min_time_left: args.min_time_left,
            max_input: args.max_input,
            price: args.price,
            accepted: Accepted::new(&args.accept, &chain.deployment)?,
            concurrency: args.concurrency.unwrap_or(registered.capacity).min(registered.capacity),
            shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
            settle_before: args.settle_before,
            no_settle: args.no_settle,
        },
        ledger,
        rpc_url,
        chain,
        signer,
        address,
        public_key,
        held: Held::default(),
        stop: CancellationToken::new(),
        abort: CancellationToken::new(),
        out: context.out,
    })
}

/// Lets the settler redeem the node's vouchers, as far as that was asked for. A node without gas money works all the same.
async fn authorise(
    context: &Context,
    chain: &Chain,
    asked: Settler,
    info: &ChainInfo,
    signer: PrivateKeySigner,
) -> anyhow::Result<()> {
    let address = signer.address();
    let wallet = Wallet::new(chain.clone(), context.rpc_url()?, signer, context.out);
    match ensure_allowed(&wallet, asked, Some(info)).await {
        Ok(Some(settler)) => tracing::info!(node = %address, %settler, "the settler may redeem the node's vouchers"),
        Ok(None) if asked == Settler::Api => {
            tracing::warn!(node = %address, "the API names no settler: redeem vouchers with `littoral node settle`");
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(node = %address, error = format!("{error:#}"), "the settler may not redeem the node's vouchers");
        }
    }
    Ok(())
}

/// What this process offers: what it can do, of what was asked for and is registered.
fn offered(asked: Option<Vec<String>>, has_command: bool, registered: &[String]) -> anyhow::Result<Vec<String>> {
    let mut able = vec![ENCRYPT, DECRYPT];
    able.extend(has_command.then_some(COMMAND));
    if let Some(name) = asked.iter().flatten().find(|name| !able.contains(&name.as_str())) {
        let hint = if name == COMMAND { ": give --command" } else { "" };
        return Err(Failure::Usage(format!("this node cannot do {name:?}{hint}")).into());
    }
    let is_asked = |name: &str| asked.as_ref().is_none_or(|asked| asked.iter().any(|other| other == name));
    let names: Vec<String> = able
        .into_iter()
        .filter(|name| is_asked(name) && registered.iter().any(|other| other == name))
        .map(str::to_owned)
        .collect();
    anyhow::ensure!(
        !names.is_empty(),
        "the node is registered for {}, none of which it would offer: see `littoral node update --ops`",
        registered.join(",")
    );
    Ok(names)
}

/// The API, as soon as it answers.
async fn loop_until_api(
    context: &Context,
    deployment: &market::deployment::Deployment,
) -> anyhow::Result<(crate::api::Api, crate::api::ChainInfo)> {
    let mut tries = 1;
    loop {
        match context.market(deployment).await {
            Err(error) if error.downcast_ref::<crate::api::ApiError>().is_some_and(|error| error.is_transient()) => {
                tracing::warn!(%error, "waiting for the API");
                tokio::time::sleep(super::pause_after(tries)).await;
                tries += 1;
            }
            other => return other.context("cannot use the API"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_node_offers_what_it_can_do_and_is_registered_for() {
        let all = names(&["encrypt", "decrypt", "command", "render"]);
        assert_eq!(offered(None, false, &all).unwrap(), ["encrypt", "decrypt"]);
        assert_eq!(offered(None, true, &all).unwrap(), ["encrypt", "decrypt", "command"]);
        assert_eq!(offered(Some(names(&["decrypt"])), true, &all).unwrap(), ["decrypt"]);
        assert_eq!(offered(None, true, &names(&["encrypt"])).unwrap(), ["encrypt"]);
        let error = offered(Some(names(&["command"])), false, &all).unwrap_err().to_string();
        assert!(error.contains("--command"), "{error}");
        assert!(offered(None, false, &names(&["render"])).is_err());
    }
}
