//! `deposit`, `thaw`, `withdraw` and `balance`: the requester's account at the escrow.

use alloy::primitives::{Address, U256, keccak256};
use alloy::providers::DynProvider;
use alloy::signers::SignerSync;
use alloy::sol_types::SolStruct;
use anyhow::Context as _;
use market::Amount;
use market::abi::{IERC20, IERC20Permit, Permit};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{DepositArgs, ThawArgs, TokenArg, WithdrawArgs};
use crate::chain::{Chain, Mined, NATIVE, Wallet, now_on_both, time, wallet_balance};
use crate::context::{Context, token_address, token_name};
use crate::error::Failure;
use crate::output::{fields, table};

/// How long a permit is good for.
const PERMIT_SECS: u64 = 3600;

/// Pays into the acting account.
pub async fn deposit(context: &Context, args: &DepositArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let token = token_address(&args.token, &chain.deployment)?;
    let amount = checked_amount(args.amount)?;
    let name = token_name(token, &chain.deployment);
    let has = wallet_balance(chain, wallet.address, token).await?;
    anyhow::ensure!(has >= amount, "your wallet has {has} of {name}, less than the {amount} to deposit");
    if args.permit {
        return deposit_with_permit(context, &wallet, token, amount).await;
    }
    if token != NATIVE {
        approve(context, &wallet, token, amount).await?;
    }
    let value = if token == NATIVE { amount } else { U256::ZERO };
    let call = chain.escrow().deposit(token, amount).value(value).into_transaction_request();
    let plan = format!("Depositing {amount} of {name} into the escrow {}", chain.deployment.escrow);
    let mined = wallet.send("deposit", &plan, call).await?;
    report(context, &wallet, "deposit", token, amount, &mined).await
}

/// Lets the escrow take exactly `amount` of `token`, if it may not already.
async fn approve(context: &Context, wallet: &Wallet, token: Address, amount: U256) -> anyhow::Result<()> {
    let chain = &wallet.chain;
    let erc20 = IERC20::new(token, chain.provider.clone());
    if erc20.allowance(wallet.address, chain.deployment.escrow).call().await? >= amount {
        return Ok(());
    }
    let plan = format!("Allowing the escrow {} to take {amount} of token {token}", chain.deployment.escrow);
    let call = erc20.approve(chain.deployment.escrow, amount).into_transaction_request();
    let mined = wallet.send("approve", &plan, call).await?;
    let value = transaction("approve", &mined, json!({ "token": checksum(token), "amount": Amount(amount) }));
    context.out.result(&value, || describe("approved", amount, &token_name(token, &chain.deployment), &mined))
}

/// Deposits an ERC-20 in one transaction, with a permit over exactly `amount` that is good for an hour.
async fn deposit_with_permit(context: &Context, wallet: &Wallet, token: Address, amount: U256) -> anyhow::Result<()> {
    let chain = &wallet.chain;
    if token == NATIVE {
        return Err(Failure::Usage("--permit goes with an ERC-20, not with the native coin".into()).into());
    }
    let name = token_name(token, &chain.deployment);
    let erc20 = IERC20Permit::new(token, chain.provider.clone());
    let unknown = || format!("the token {name} knows no permits (ERC-2612): leave --permit out");
    let permit = Permit {
        owner: wallet.address,
        spender: chain.deployment.escrow,
        value: amount,
        nonce: erc20.nonces(wallet.address).call().await.with_context(unknown)?,
        deadline: U256::from(now_on_both(chain).await?.saturating_add(PERMIT_SECS)),
    };
    let domain = erc20.DOMAIN_SEPARATOR().call().await.with_context(unknown)?;
    let digest = keccak256([&[0x19, 0x01][..], domain.as_slice(), permit.eip712_hash_struct().as_slice()].concat());
    let signature = context.signer()?.sign_hash_sync(&digest)?;
    let plan = format!("Depositing {amount} of {name} into the escrow {} with a permit", chain.deployment.escrow);
    let (r, s) = (signature.r().into(), signature.s().into());
    let call = chain
        .escrow()
        .depositWithPermit(token, amount, permit.deadline, 27 + u8::from(signature.v()), r, s)
        .into_transaction_request();
    let mined = wallet.send("deposit", &plan, call).await?;
    report(context, wallet, "deposit", token, amount, &mined).await
}

/// Begins to take money out.
pub async fn thaw(context: &Context, args: &ThawArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let token = token_address(&args.token, &chain.deployment)?;
    let amount = checked_amount(args.amount)?;
    let plan = format!(
        "Thawing {amount} of {}; all that thaws can leave {} s after this",
        token_name(token, &chain.deployment),
        chain.deployment.escrow_params.thaw_period
    );
    let call = chain.escrow().thaw(token, amount).into_transaction_request();
    let mined = wallet.send("thaw", &plan, call).await?;
    report(context, &wallet, "thaw", token, amount, &mined).await
}

/// Sends what has thawed.
pub async fn withdraw(context: &Context, args: &WithdrawArgs) -> anyhow::Result<()> {
    let wallet = context.wallet().await?;
    let chain = &wallet.chain;
    let token = token_address(&args.token, &chain.deployment)?;
    let to = args.to.unwrap_or(wallet.address);
    let account = chain.escrow().account(wallet.address, token).call().await?;
    anyhow::ensure!(account.thawing != 0, "nothing is thawing: see `littoral thaw`");
    let amount = U256::from(account.thawing);
    let plan = format!("Withdrawing {amount} of {} to {to}", token_name(token, &chain.deployment));
    let call = chain.escrow().withdraw(token, to).into_transaction_request();
    let mined = wallet.send("withdraw", &plan, call).await?;
    report(context, &wallet, "withdraw", token, amount, &mined).await
}

/// Shows wallet and account in every token of the manifest, or in one.
pub async fn balance(context: &Context, args: &TokenArg) -> anyhow::Result<()> {
    let chain = context.chain().await?;
    let owner = context.signer()?.address();
    let tokens = match &args.token {
        Some(_) => vec![token_address(args, &chain.deployment)?],
        None => all_tokens(&chain),
    };
    let mut balances = Vec::new();
    for token in tokens {
        balances.push(Balance::read(&chain, owner, token).await?);
    }
    let value = json!({ "address": checksum(owner), "balances": balances });
    context.out.result(&value, || {
        let rows = balances.iter().map(Balance::row).collect();
        format!("{owner}\n{}", table(&["token", "wallet", "free", "thawing", "thaw end"], rows))
    })
}

/// The native coin and the manifest's tokens.
pub fn all_tokens(chain: &Chain) -> Vec<Address> {
    std::iter::once(NATIVE).chain(chain.deployment.tokens.values().copied()).collect()
}

/// What an account has of one token, in its smallest unit.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Balance {
    #[serde(serialize_with = "market::order::checksummed")]
    token: Address,
    name: String,
    wallet: Amount,
    free: Amount,
    thawing: Amount,
    /// RFC 3339; null when nothing thaws.
    thaw_end: Option<String>,
}

impl Balance {
    /// From the chain.
    pub async fn read(chain: &Chain, owner: Address, token: Address) -> anyhow::Result<Self> {
        let account = chain.escrow().account(owner, token).call().await?;
        Ok(Self {
            token,
            name: token_name(token, &chain.deployment),
            wallet: wallet_balance(chain, owner, token).await?.into(),
            free: account.free.into(),
            thawing: account.thawing.into(),
            thaw_end: (account.thawing != 0).then(|| time(account.thawEnd)),
        })
    }

    /// For a table with token, wallet, free, thawing, thaw end.
    pub fn row(&self) -> Vec<String> {
        let texts = [&self.wallet, &self.free, &self.thawing].map(ToString::to_string);
        let mut row = vec![self.name.clone()];
        row.extend(texts);
        row.push(self.thaw_end.clone().unwrap_or_default());
        row
    }
}

/// An amount that the contract has room for and that is not nothing.
pub fn checked_amount(amount: Amount) -> anyhow::Result<U256> {
    amount.to_u128().map_err(|error| Failure::Usage(format!("the amount {error}")))?;
    if amount == Amount::ZERO {
        return Err(Failure::Usage("the amount is zero".into()).into());
    }
    Ok(amount.0)
}

/// A transaction as JSON: `{command, txHash, blockNumber, gasUsed, seconds, …}`.
pub fn transaction(command: &str, mined: &Mined, more: Value) -> Value {
    let mut value = json!({
        "command": command,
        "txHash": mined.tx_hash,
        "blockNumber": mined.block_number,
        "gasUsed": mined.gas_used,
        "seconds": (mined.seconds * 1000.0).round() / 1000.0,
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    value
}

/// A transaction in a line.
pub fn describe(done: &str, amount: U256, name: &str, mined: &Mined) -> String {
    format!("{done} {amount} {name} in {} (gas {}, {:.1} s)", mined.tx_hash, mined.gas_used, mined.seconds)
}

/// An address as JSON.
pub fn checksum(address: Address) -> String {
    address.to_checksum(None)
}

async fn report(
    context: &Context,
    wallet: &Wallet,
    command: &str,
    token: Address,
    amount: U256,
    mined: &Mined,
) -> anyhow::Result<()> {
    let escrow: market::abi::IJobEscrow::IJobEscrowInstance<DynProvider> = wallet.chain.escrow();
    let account = escrow.account(wallet.address, token).call().await?;
    let thaw_end = (account.thawing != 0).then(|| time(account.thawEnd));
    let (free, thawing) = (Amount::from(account.free), Amount::from(account.thawing));
    let more = json!({
        "token": checksum(token), "amount": Amount(amount), "free": free, "thawing": thawing, "thawEnd": thaw_end,
    });
    context.out.result(&transaction(command, mined, more), || {
        let mut rows = vec![
            (command, format!("{amount} {}", token_name(token, &wallet.chain.deployment))),
            ("transaction", format!("{} (gas {}, {:.1} s)", mined.tx_hash, mined.gas_used, mined.seconds)),
            ("free", free.to_string()),
            ("thawing", thawing.to_string()),
        ];
        rows.extend(thaw_end.clone().map(|end| ("thaw end", end)));
        fields(&rows)
    })
}
