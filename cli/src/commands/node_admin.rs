//! `node register|update|stake|unbond|withdraw`: what an operator sends to the chain.

use age::x25519::Identity;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::sol_types::SolEvent;
use anyhow::Context as _;
use market::Amount;
use market::abi::INodeRegistry::NodeUpdated;
use serde_json::{Value, json};

use super::account::{checked_amount, checksum, describe, transaction};
use super::settler::ensure_allowed;
use crate::args::{RegisterArgs, Settler, UnbondArgs, UpdateArgs, WithdrawArgs};
use crate::chain::{Chain, Wallet, time};
use crate::context::{Context, token_address, token_name};
use crate::error::Failure;
use crate::keys;
use crate::output::fields;

/// Registers the acting account, with the key in the node's directory.
pub async fn register(context: &Context, args: &RegisterArgs) -> anyhow::Result<()> {
    let stake = args.stake.to_u128().map_err(|error| Failure::Usage(format!("--stake {error}")))?;
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    // Before a key is made for nothing.
    let known = chain.registry().nodeIdOf(wallet.address).call().await?;
    anyhow::ensure!(
        known.is_zero(),
        "{} is registered already as node {known}; see `littoral node update`",
        wallet.address
    );
    let has = chain.provider.get_balance(wallet.address).await?;
    anyhow::ensure!(has >= U256::from(stake), "your wallet has {has} wei, less than the {stake} to stake");

    let dir = args.dir.path()?;
    let identity = keys::node_identity(&dir, market::clock::now())?;
    let public_key = keys::public_key_bytes(&identity.to_public())?;
    let node_id = args.node_id.unwrap_or_else(|| keys::default_node_id(&public_key));
    let payout = args.payout.unwrap_or(wallet.address);
    let plan = format!(
        "Registering {} as node {node_id} for {} with capacity {} and a stake of {stake} wei; payout to {payout}",
        wallet.address,
        args.ops.join(","),
        args.capacity
    );
    let call = chain
        .registry()
        .register(node_id, Bytes::from(public_key), payout, args.capacity, args.ops.clone(), args.uri.clone())
        .value(U256::from(stake))
        .into_transaction_request();
    let mined = wallet.send("register", &plan, call).await?;
    allow_settler(context, &wallet, args.settler).await;
    let min_stake = U256::from(chain.registry().minStake().call().await?);
    if U256::from(stake) < min_stake {
        context.out.note(&format!("The node gets work once {min_stake} wei are staked: see `littoral node stake`"));
    }
    let more = json!({
        "node": checksum(wallet.address), "nodeId": node_id, "publicKey": Bytes::from(public_key),
        "recipient": identity.to_public().to_string(), "payout": checksum(payout), "capacity": args.capacity,
        "operations": args.ops, "stake": Amount::from(stake), "identity": dir.join(keys::NODE_IDENTITY),
    });
    context.out.result(&transaction("register", &mined, more), || {
        fields(&[
            ("node", wallet.address.to_string()),
            ("node id", node_id.to_string()),
            ("recipient", identity.to_public().to_string()),
            ("identity", dir.join(keys::NODE_IDENTITY).display().to_string()),
            ("stake", format!("{stake} wei")),
            ("transaction", format!("{} (gas {}, {:.1} s)", mined.tx_hash, mined.gas_used, mined.seconds)),
        ])
    })
}

/// Lets the settler redeem the node's vouchers. The node is registered whatever comes of it.
async fn allow_settler(context: &Context, wallet: &Wallet, asked: Settler) {
    let info = match asked {
        // An API that is down is not waited for: `node run` asks again.
        Settler::Api => context.chain_info(&wallet.chain.deployment).await.ok(),
        _ => None,
    };
    match ensure_allowed(wallet, asked, info.as_ref()).await {
        Ok(Some(settler)) => context.out.note(&format!("{settler} may redeem the node's vouchers")),
        Ok(None) => {}
        Err(error) => context.out.note(&format!("No settler may redeem the node's vouchers yet: {error:#}")),
    }
}

/// Changes what is given and keeps the rest. The key is the one in the node's directory.
pub async fn update(context: &Context, args: UpdateArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let now = described(chain, wallet.address).await?;
    let identity: Identity = keys::node_identity(&args.dir.path()?, market::clock::now())?;
    let public_key = Bytes::from(keys::public_key_bytes(&identity.to_public())?);
    if public_key != now.publicKey {
        context.out.note("The node's encryption key changes to the one in its directory");
    }
    let capacity = args.capacity.unwrap_or(now.capacity);
    let operations = args.ops.unwrap_or(now.operations);
    let payout = args.payout.unwrap_or(now.payout);
    let uri = args.uri.unwrap_or(now.uri);
    let plan =
        format!("Updating node {}: {} with capacity {capacity}; payout to {payout}", now.nodeId, operations.join(","));
    let call = chain
        .registry()
        .update(public_key.clone(), payout, capacity, operations.clone(), uri.clone())
        .into_transaction_request();
    let mined = wallet.send("update", &plan, call).await?;
    let more = json!({
        "node": checksum(wallet.address), "nodeId": now.nodeId, "publicKey": public_key, "payout": checksum(payout),
        "capacity": capacity, "operations": operations, "uri": uri,
    });
    context.out.result(&transaction("update", &mined, more), || {
        format!("updated node {} in {} (gas {})", now.nodeId, mined.tx_hash, mined.gas_used)
    })
}

/// The node's latest description. Only the event has all of it.
pub async fn described(chain: &Chain, node: Address) -> anyhow::Result<NodeUpdated> {
    let filter = Filter::new()
        .address(chain.deployment.registry)
        .event_signature(NodeUpdated::SIGNATURE_HASH)
        .topic1(node.into_word())
        .from_block(chain.deployment.deploy_block);
    let logs = chain.provider.get_logs(&filter).await.context("cannot read the node's registration from the chain")?;
    let last = logs.last().ok_or_else(|| anyhow::anyhow!("{node} is not registered; see `littoral node register`"))?;
    Ok(last.log_decode::<NodeUpdated>()?.inner.data)
}

/// Adds to the stake.
pub async fn stake(context: &Context, amount: Amount) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let value = checked_amount(amount)?;
    registered(&wallet).await?;
    let has = chain.provider.get_balance(wallet.address).await?;
    anyhow::ensure!(has >= value, "your wallet has {has} wei, less than the {value} to stake");
    let plan = format!("Staking {value} wei in the registry {}", chain.deployment.registry);
    let call = chain.registry().stake(wallet.address).value(value).into_transaction_request();
    let mined = wallet.send("stake", &plan, call).await?;
    report(context, &wallet, transaction("stake", &mined, json!({ "amount": amount }))).await
}

/// Begins or finishes to take stake out.
pub async fn unbond(context: &Context, args: &UnbondArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let registry = wallet.chain.registry();
    registered(&wallet).await?;
    let Some(amount) = args.amount else {
        let payout = registry.payoutOf(wallet.address).call().await?;
        let unbonding = registry.stakeOf(wallet.address).call().await?.unbonding;
        let plan = format!("Sending {unbonding} wei of unbonded stake to {payout}");
        let call = registry.finishUnbond().into_transaction_request();
        let mined = wallet.send("finishUnbond", &plan, call).await?;
        let more = json!({ "amount": Amount::from(unbonding), "to": checksum(payout) });
        return report(context, &wallet, transaction("finishUnbond", &mined, more)).await;
    };
    let value = checked_amount(amount)?;
    let plan = format!(
        "Unbonding {value} wei; all that unbonds can leave {} s after this",
        wallet.chain.deployment.registry_params.unbonding_period
    );
    let call = registry.startUnbond(value).into_transaction_request();
    let mined = wallet.send("startUnbond", &plan, call).await?;
    report(context, &wallet, transaction("startUnbond", &mined, json!({ "amount": amount }))).await
}

/// Sends what the node has earned.
pub async fn withdraw(context: &Context, args: &WithdrawArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let token = token_address(&args.token, &chain.deployment)?;
    let name = token_name(token, &chain.deployment);
    let amount = chain.escrow().earned(wallet.address, token).call().await?;
    anyhow::ensure!(!amount.is_zero(), "{} has earned no {name} that is not withdrawn", wallet.address);
    let to = match args.to {
        Some(to) => to,
        None => {
            let payout = chain.registry().payoutOf(wallet.address).call().await?;
            if payout.is_zero() { wallet.address } else { payout }
        }
    };
    let plan = format!("Withdrawing {amount} of {name} earned by {} to {to}", wallet.address);
    let call = chain.escrow().withdrawEarned(token, to).into_transaction_request();
    let mined = wallet.send("withdrawEarned", &plan, call).await?;
    let more = json!({ "token": checksum(token), "amount": Amount(amount), "to": checksum(to) });
    let value = transaction("withdrawEarned", &mined, more);
    context.out.result(&value, || describe("withdrew", amount, &name, &mined))
}

async fn registered(wallet: &Wallet) -> anyhow::Result<B256> {
    let node_id = wallet.chain.registry().nodeIdOf(wallet.address).call().await?;
    anyhow::ensure!(!node_id.is_zero(), "{} is not registered; see `littoral node register`", wallet.address);
    Ok(node_id)
}

/// The transaction and the stake as it stands afterwards.
async fn report(context: &Context, wallet: &Wallet, mut value: Value) -> anyhow::Result<()> {
    let after = wallet.chain.registry().stakeOf(wallet.address).call().await?;
    let unbond_end = (after.unbonding != 0).then(|| time(after.unbondEnd));
    value["stake"] = json!(Amount::from(after.stake));
    value["unbonding"] = json!(Amount::from(after.unbonding));
    value["unbondEnd"] = json!(unbond_end);
    context.out.result(&value, || {
        let mut rows = vec![
            ("transaction", format!("{} (gas {})", value["txHash"].as_str().unwrap_or_default(), value["gasUsed"])),
            ("stake", format!("{} wei", after.stake)),
            ("unbonding", format!("{} wei", after.unbonding)),
        ];
        rows.extend(unbond_end.clone().map(|end| ("unbond end", end)));
        fields(&rows)
    })
}
