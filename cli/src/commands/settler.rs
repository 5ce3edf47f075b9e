//! `node settler …`: who may redeem the acting node's vouchers.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::Context as _;
use market::abi::IJobEscrow::SettlerSet;
use serde_json::json;

use super::account::{checksum, transaction};
use crate::api::ChainInfo;
use crate::args::{Settler, SettlerCommand};
use crate::chain::{Chain, Mined, Wallet};
use crate::context::Context;
use crate::error::Failure;
use crate::output::table;

/// Does what the command line says.
pub async fn run(context: &Context, command: SettlerCommand) -> anyhow::Result<()> {
    match command {
        SettlerCommand::Allow(args) => set(context, args.settler, true).await,
        SettlerCommand::Deny(args) => set(context, args.settler, false).await,
        SettlerCommand::List => list(context).await,
    }
}

async fn set(context: &Context, settler: Settler, allowed: bool) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let settler = match settler {
        Settler::Account(address) => address,
        Settler::Api => {
            let info = context.chain_info(&wallet.chain.deployment).await?;
            info.settler.ok_or_else(|| anyhow::anyhow!("the API names no settler: give its address"))?
        }
        Settler::None => return Err(Failure::Usage("`none` is no settler: give an address, or `api`".into()).into()),
    };
    let is_allowed = wallet.chain.escrow().isSettler(wallet.address, settler).call().await?;
    if is_allowed == allowed {
        let value =
            json!({ "command": "setSettler", "settler": checksum(settler), "allowed": allowed, "txHash": null });
        return context.out.result(&value, || format!("{settler} {} already", word(allowed)));
    }
    let mined = send(&wallet, settler, allowed).await?;
    let more = json!({ "settler": checksum(settler), "allowed": allowed });
    context.out.result(&transaction("setSettler", &mined, more), || {
        format!("{settler} {} in {} (gas {})", word(allowed), mined.tx_hash, mined.gas_used)
    })
}

fn word(allowed: bool) -> &'static str {
    if allowed { "may redeem this node's vouchers" } else { "may not redeem this node's vouchers" }
}

async fn send(wallet: &Wallet, settler: Address, allowed: bool) -> anyhow::Result<Mined> {
    let plan = format!("{settler} {} from now on", word(allowed));
    let call = wallet.chain.escrow().setSettler(settler, allowed).into_transaction_request();
    Ok(wallet.send("setSettler", &plan, call).await?)
}

/// Lets whom `asked` names redeem the node's vouchers, unless that is nobody or they may already. Returns who may.
pub async fn ensure_allowed(
    wallet: &Wallet,
    asked: Settler,
    info: Option<&ChainInfo>,
) -> anyhow::Result<Option<Address>> {
    let settler = match asked {
        Settler::None => None,
        Settler::Account(address) => Some(address),
        Settler::Api => info.and_then(|info| info.settler),
    };
    let Some(settler) = settler else { return Ok(None) };
    if !wallet.chain.escrow().isSettler(wallet.address, settler).call().await? {
        send(wallet, settler, true).await?;
    }
    Ok(Some(settler))
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let chain = context.chain().await?;
    let node = context.signer()?.address();
    let settlers = allowed(&chain, node).await?;
    let texts: Vec<String> = settlers.iter().map(|settler| checksum(*settler)).collect();
    context.out.result(&json!({ "node": checksum(node), "settlers": texts }), || {
        table(&["settler"], texts.iter().map(|text| vec![text.clone()]).collect())
    })
}

/// Who may redeem the node's vouchers, by the chain's events.
async fn allowed(chain: &Chain, node: Address) -> anyhow::Result<Vec<Address>> {
    let filter = Filter::new()
        .address(chain.deployment.escrow)
        .event_signature(SettlerSet::SIGNATURE_HASH)
        .topic1(node.into_word())
        .from_block(chain.deployment.deploy_block);
    let logs = chain.provider.get_logs(&filter).await.context("cannot read the node's settlers from the chain")?;
    let mut settlers = BTreeMap::new();
    for log in logs {
        let event = log.log_decode::<SettlerSet>()?.inner.data;
        settlers.insert(event.settler, event.allowed);
    }
    Ok(settlers.into_iter().filter(|(_, allowed)| *allowed).map(|(settler, _)| settler).collect())
}
