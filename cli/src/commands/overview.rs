//! `account`: what the acting account has at the escrow, what it has promised, and its channels with nodes.

use std::collections::BTreeSet;

use alloy::primitives::Address;
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::Context as _;
use market::Amount;
use market::abi::IJobEscrow::{ChannelUpdated, ReservationChanged};
use market::order::checksummed;
use serde::Serialize;
use serde_json::json;

use super::account::{Balance, all_tokens, checksum};
use crate::api::AccountInfo;
use crate::args::TokenArg;
use crate::chain::{Chain, time};
use crate::context::{Context, token_address, token_name};
use crate::output::table;
use crate::records::Records;

/// Shows it all, in every token of the manifest or in one. What is promised is the API's word; the rest is the chain's.
pub async fn account(context: &Context, args: &TokenArg) -> anyhow::Result<()> {
    let chain = context.chain().await?;
    let owner = context.signer()?.address();
    let records = context.records(&chain.deployment, owner)?;
    let only = args.token.as_ref().map(|_| token_address(args, &chain.deployment)).transpose()?;
    let channels = channels(&chain, &records, owner, only).await?;
    let mut tokens = only.map_or_else(|| all_tokens(&chain), |token| vec![token]);
    for channel in &channels {
        if !tokens.contains(&channel.token) {
            tokens.push(channel.token);
        }
    }
    let promised = promised(context, &chain, owner).await;
    let (mut values, mut rows) = (Vec::new(), Vec::new());
    for token in tokens {
        let balance = Balance::read(&chain, owner, token).await?;
        let reserved =
            channels.iter().filter(|c| c.token == token).fold(Amount::ZERO, |sum, c| Amount(sum.0 + c.reserved.0));
        let promised = promised.as_ref().map(|info| info.promised(token));
        let mut value = serde_json::to_value(&balance)?;
        value["reserved"] = json!(reserved);
        value["promised"] = json!(promised);
        values.push(value);
        let mut row = balance.row();
        let end = row.pop().unwrap_or_default();
        row.extend([reserved.to_string(), promised.map_or_else(|| "?".to_owned(), |amount| amount.to_string()), end]);
        rows.push(row);
    }
    let value = json!({ "address": checksum(owner), "accounts": values, "channels": channels });
    context.out.result(&value, || {
        let accounts = table(&["token", "wallet", "free", "thawing", "reserved", "promised", "thaw end"], rows);
        let lines = channels.iter().map(|channel| channel.row(&chain)).collect();
        let header = ["node", "token", "reserved", "thawing", "paid", "up to nonce", "voucher over", "up to nonce"];
        format!("{owner}\n{accounts}\n\nchannels\n{}", table(&header, lines))
    })
}

/// What the API counts as promised; nothing if it does not answer.
async fn promised(context: &Context, chain: &Chain, owner: Address) -> Option<AccountInfo> {
    let read = async {
        let (api, _) = context.market(&chain.deployment).await?;
        anyhow::Ok(api.get_signed_in::<AccountInfo>(&format!("lit-compute/accounts/{}", checksum(owner))).await?)
    };
    match read.await {
        Ok(info) => Some(info),
        Err(error) => {
            context.out.note(&format!("What is promised is not known: {error:#}"));
            None
        }
    }
}

/// A channel as chain and journal have it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChannelView {
    #[serde(serialize_with = "checksummed")]
    node: Address,
    #[serde(serialize_with = "checksummed")]
    token: Address,
    reserved: Amount,
    thawing: Amount,
    thaw_end: Option<String>,
    claimed: Amount,
    covered_nonce: String,
    voucher: Option<VoucherView>,
}

/// The last voucher that was signed here.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VoucherView {
    cumulative: Amount,
    covered_nonce: String,
}

impl ChannelView {
    fn row(&self, chain: &Chain) -> Vec<String> {
        let voucher = self.voucher.as_ref();
        vec![
            self.node.to_string(),
            token_name(self.token, &chain.deployment),
            self.reserved.to_string(),
            self.thawing.to_string(),
            self.claimed.to_string(),
            self.covered_nonce.clone(),
            voucher.map(|voucher| voucher.cumulative.to_string()).unwrap_or_default(),
            voucher.map(|voucher| voucher.covered_nonce.clone()).unwrap_or_default(),
        ]
    }
}

async fn channels(
    chain: &Chain,
    records: &Records,
    owner: Address,
    only: Option<Address>,
) -> anyhow::Result<Vec<ChannelView>> {
    let mut known: BTreeSet<(Address, Address)> = records.channels()?.into_iter().collect();
    known.extend(on_chain(chain, owner).await?);
    known.retain(|(_, token)| only.is_none_or(|only| only == *token));
    let escrow = chain.escrow();
    let mut views = Vec::new();
    for (node, token) in known {
        let paid = escrow.channel(owner, node, token).call().await?;
        let reservation = escrow.reservation(owner, node, token).call().await?;
        let best = records.journal(node, token)?.best()?;
        views.push(ChannelView {
            node,
            token,
            reserved: Amount(reservation.reserved),
            thawing: Amount(reservation.thawing),
            thaw_end: (!reservation.thawing.is_zero()).then(|| time(reservation.thawEnd)),
            claimed: Amount(paid.claimed),
            covered_nonce: paid.coveredNonce.to_string(),
            voucher: best.map(|entry| VoucherView {
                cumulative: entry.cumulative,
                covered_nonce: entry.covered_nonce.to_string(),
            }),
        });
    }
    Ok(views)
}

/// Channels in which `owner` reserved something or a signed order was settled.
async fn on_chain(chain: &Chain, owner: Address) -> anyhow::Result<BTreeSet<(Address, Address)>> {
    let filter = |signature| {
        Filter::new()
            .address(chain.deployment.escrow)
            .event_signature(signature)
            .from_block(chain.deployment.deploy_block)
    };
    let cannot = "cannot read your channels from the chain";
    let mut found = BTreeSet::new();
    let reserved = filter(ReservationChanged::SIGNATURE_HASH).topic1(owner.into_word());
    for log in chain.provider.get_logs(&reserved).await.context(cannot)? {
        let event = log.log_decode::<ReservationChanged>()?.inner.data;
        found.insert((event.node, event.token));
    }
    let settled = filter(ChannelUpdated::SIGNATURE_HASH).topic2(owner.into_word());
    for log in chain.provider.get_logs(&settled).await.context(cannot)? {
        let event = log.log_decode::<ChannelUpdated>()?.inner.data;
        found.insert((event.node, event.token));
    }
    Ok(found)
}
