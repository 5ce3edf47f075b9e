//! `reserve`, `thaw-reservation` and `release`: what a requester sets aside for one node.

use alloy::primitives::{Address, U256};
use market::Amount;
use serde_json::json;

use super::account::{checked_amount, checksum, transaction};
use crate::args::{ReleaseArgs, ReserveArgs};
use crate::chain::{Chain, Mined, Wallet, time};
use crate::context::{Context, resolve_node, token_address, token_name};
use crate::output::fields;

/// Sets free funds aside.
pub async fn reserve(context: &Context, args: &ReserveArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let (node, token, amount) = read(chain, args).await?;
    let name = token_name(token, &chain.deployment);
    let free = chain.escrow().account(wallet.address, token).call().await?.free;
    anyhow::ensure!(
        U256::from(free) >= amount,
        "the amount is {amount}, but only {free} of {name} is free in your account: see `littoral deposit`"
    );
    let plan = format!("Reserving {amount} of {name} for the node {node}, out of everybody else's reach");
    let call = chain.escrow().reserve(node, token, amount).into_transaction_request();
    let mined = wallet.send("reserve", &plan, call).await?;
    report(context, &wallet, "reserve", (node, token), amount, &mined).await
}

/// Gives notice that a reservation is to shrink.
pub async fn thaw_reservation(context: &Context, args: &ReserveArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let (node, token, amount) = read(chain, args).await?;
    let plan = format!(
        "Thawing {amount} of {} reserved for the node {node}; it can be released {} s after this, and until then the node \
         can draw on it",
        token_name(token, &chain.deployment),
        chain.deployment.escrow_params.thaw_period
    );
    let call = chain.escrow().thawReservation(node, token, amount).into_transaction_request();
    let mined = wallet.send("thawReservation", &plan, call).await?;
    report(context, &wallet, "thawReservation", (node, token), amount, &mined).await
}

/// Frees what has thawed.
pub async fn release(context: &Context, args: &ReleaseArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let (node, _) = resolve_node(chain, &args.node).await?;
    let token = token_address(&args.token, &chain.deployment)?;
    let thawing = chain.escrow().reservation(wallet.address, node, token).call().await?.thawing;
    anyhow::ensure!(!thawing.is_zero(), "nothing reserved for {node} is thawing: see `littoral thaw-reservation`");
    let plan = format!("Releasing {thawing} of {} reserved for the node {node}", token_name(token, &chain.deployment));
    let call = chain.escrow().releaseReservation(node, token).into_transaction_request();
    let mined = wallet.send("releaseReservation", &plan, call).await?;
    report(context, &wallet, "releaseReservation", (node, token), thawing, &mined).await
}

async fn read(chain: &Chain, args: &ReserveArgs) -> anyhow::Result<(Address, Address, U256)> {
    let amount = checked_amount(args.amount)?;
    let token = token_address(&args.token, &chain.deployment)?;
    Ok((resolve_node(chain, &args.node).await?.0, token, amount))
}

async fn report(
    context: &Context,
    wallet: &Wallet,
    command: &str,
    (node, token): (Address, Address),
    amount: U256,
    mined: &Mined,
) -> anyhow::Result<()> {
    let escrow = wallet.chain.escrow();
    let after = escrow.reservation(wallet.address, node, token).call().await?;
    let free = escrow.account(wallet.address, token).call().await?.free;
    let thaw_end = (!after.thawing.is_zero()).then(|| time(after.thawEnd));
    let more = json!({
        "node": checksum(node), "token": checksum(token), "amount": Amount(amount), "free": Amount::from(free),
        "reserved": Amount(after.reserved), "thawing": Amount(after.thawing), "thawEnd": thaw_end,
    });
    context.out.result(&transaction(command, mined, more), || {
        let mut rows = vec![
            (command, format!("{amount} {}", token_name(token, &wallet.chain.deployment))),
            ("node", node.to_string()),
            ("transaction", format!("{} (gas {}, {:.1} s)", mined.tx_hash, mined.gas_used, mined.seconds)),
            ("free", free.to_string()),
            ("reserved", after.reserved.to_string()),
            ("thawing", after.thawing.to_string()),
        ];
        rows.extend(thaw_end.clone().map(|end| ("thaw end", end)));
        fields(&rows)
    })
}
