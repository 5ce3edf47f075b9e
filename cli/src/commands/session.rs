//! `session …`: keys that may sign vouchers for the acting account.

use std::path::PathBuf;

use alloy::primitives::{Address, U256};
use alloy::providers::Provider;
use alloy::rpc::types::Filter;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolEvent;
use anyhow::Context as _;
use market::Amount;
use market::abi::IJobEscrow::SessionUpdated;
use serde_json::json;

use super::account::{checked_amount, checksum, transaction};
use crate::args::{SessionAuthorizeArgs, SessionCommand, SessionCreateArgs, SessionRevokeArgs, TokenArg};
use crate::chain::{Chain, Mined, Wallet, time};
use crate::context::{Context, token_address, token_name};
use crate::output::{fields, table};
use crate::{files, keys};

const EXTENSION: &str = "key";

/// Does what the command line says.
pub async fn run(context: &Context, command: SessionCommand) -> anyhow::Result<()> {
    match command {
        SessionCommand::Create(args) => create(context, &args),
        SessionCommand::Authorize(args) => authorize(context, &args).await,
        SessionCommand::Revoke(args) => revoke(context, &args).await,
        SessionCommand::List(args) => list(context, &args).await,
    }
}

/// Where session keys are.
fn dir(context: &Context) -> anyhow::Result<PathBuf> {
    Ok(context.data_dir()?.join("sessions"))
}

fn path_of(context: &Context, key: Address) -> anyhow::Result<PathBuf> {
    Ok(dir(context)?.join(format!("{key:?}.{EXTENSION}")))
}

/// The session key with this address.
pub fn load(context: &Context, key: Address) -> anyhow::Result<PrivateKeySigner> {
    let path = path_of(context, key)?;
    let signer = keys::read_key(&path, || context.passphrase())
        .with_context(|| format!("cannot use the session key {key}: see `littoral session list`"))?;
    anyhow::ensure!(signer.address() == key, "{} holds the key of {}", path.display(), signer.address());
    Ok(signer)
}

fn create(context: &Context, args: &SessionCreateArgs) -> anyhow::Result<()> {
    let passphrase = if args.no_passphrase { None } else { Some(context.passphrase()?) };
    files::private_dir(&context.data_dir()?)?;
    files::private_dir(&dir(context)?)?;
    let signer = PrivateKeySigner::random();
    let path = path_of(context, signer.address())?;
    keys::write_key(&path, &signer, passphrase)?;
    let value = json!({ "key": checksum(signer.address()), "file": path, "encrypted": !args.no_passphrase });
    context.out.result(&value, || {
        fields(&[
            ("session key", signer.address().to_string()),
            ("file", path.display().to_string()),
            ("next", format!("littoral session authorize {} --cap AMOUNT", signer.address())),
        ])
    })
}

async fn authorize(context: &Context, args: &SessionAuthorizeArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let token = token_address(&args.token, &chain.deployment)?;
    let cap = u128::try_from(checked_amount(args.cap)?)?;
    let expiry = crate::chain::now_on_both(chain).await?.saturating_add(args.expires_in);
    let plan = format!(
        "Letting {} sign vouchers for you over at most {cap} of {} until {}",
        args.key,
        token_name(token, &chain.deployment),
        time(expiry)
    );
    let call = chain.escrow().authorizeSession(args.key, token, cap, expiry).into_transaction_request();
    let mined = wallet.send("authorizeSession", &plan, call).await?;
    report(context, &wallet, "authorizeSession", (args.key, token), &mined).await
}

async fn revoke(context: &Context, args: &SessionRevokeArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let token = token_address(&args.token, &chain.deployment)?;
    let plan = format!(
        "Revoking the session key {} {} s after this; what it has signed can be redeemed until then",
        args.key, chain.deployment.escrow_params.thaw_period
    );
    let call = chain.escrow().revokeSession(args.key, token).into_transaction_request();
    let mined = wallet.send("revokeSession", &plan, call).await?;
    report(context, &wallet, "revokeSession", (args.key, token), &mined).await
}

async fn report(
    context: &Context,
    wallet: &Wallet,
    command: &str,
    (key, token): (Address, Address),
    mined: &Mined,
) -> anyhow::Result<()> {
    let after = wallet.chain.escrow().session(wallet.address, key, token).call().await?;
    let more = json!({
        "key": checksum(key), "token": checksum(token), "left": Amount::from(after.left), "expiry": time(after.expiry),
    });
    context.out.result(&transaction(command, mined, more), || {
        fields(&[
            ("session key", key.to_string()),
            ("may spend", format!("{} {}", after.left, token_name(token, &wallet.chain.deployment))),
            ("until", time(after.expiry)),
            ("transaction", format!("{} (gas {})", mined.tx_hash, mined.gas_used)),
        ])
    })
}

/// The keys made here and those that the chain knows of the acting account, with what each may do.
async fn list(context: &Context, args: &TokenArg) -> anyhow::Result<()> {
    let chain = context.chain().await?;
    let owner = context.signer()?.address();
    let only = args.token.as_ref().map(|_| token_address(args, &chain.deployment)).transpose()?;
    let mut rows: Vec<(Address, Address)> = authorized(&chain, owner).await?;
    let stored = stored(context)?;
    rows.retain(|(_, token)| only.is_none_or(|only| only == *token));
    for key in &stored {
        if !rows.iter().any(|(known, _)| known == key) {
            rows.push((*key, only.unwrap_or_default()));
        }
    }
    rows.sort_unstable();
    let mut values = Vec::new();
    let mut lines = Vec::new();
    for (key, token) in rows {
        let session = chain.escrow().session(owner, key, token).call().await?;
        let is_here = stored.contains(&key);
        let expiry = (session.expiry != 0).then(|| time(session.expiry));
        values.push(json!({
            "key": checksum(key), "token": checksum(token), "left": Amount::from(session.left), "expiry": expiry,
            "stored": is_here,
        }));
        let place = if is_here { "here" } else { "elsewhere" };
        let name = token_name(token, &chain.deployment);
        let left = U256::from(session.left).to_string();
        lines.push(vec![key.to_string(), name, left, expiry.unwrap_or_default(), place.to_owned()]);
    }
    context.out.result(&json!({ "address": checksum(owner), "sessions": values }), || {
        table(&["session key", "token", "may spend", "until", "kept"], lines)
    })
}

fn stored(context: &Context) -> anyhow::Result<Vec<Address>> {
    let paths = files::list(&dir(context)?, EXTENSION)?;
    Ok(paths.iter().filter_map(|path| path.file_stem()?.to_str()?.parse().ok()).collect())
}

/// Every key, with its token, that `owner` ever let sign.
async fn authorized(chain: &Chain, owner: Address) -> anyhow::Result<Vec<(Address, Address)>> {
    let filter = Filter::new()
        .address(chain.deployment.escrow)
        .event_signature(SessionUpdated::SIGNATURE_HASH)
        .topic1(owner.into_word())
        .from_block(chain.deployment.deploy_block);
    let logs = chain.provider.get_logs(&filter).await.context("cannot read your session keys from the chain")?;
    let mut found = Vec::new();
    for log in logs {
        let event = log.log_decode::<SessionUpdated>()?.inner.data;
        if !found.contains(&(event.key, event.token)) {
            found.push((event.key, event.token));
        }
    }
    Ok(found)
}
