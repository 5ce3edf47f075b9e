//! Whose signature it is: a key's, or a contract wallet's that the chain knows (ERC-1271).

use alloy::primitives::{Address, B256};
use alloy::providers::Provider;
use anyhow::Context as _;
use market::{typed_data, wallet};

use crate::chain::Chain;

/// Whether `digest` is signed by `signer`, a key or a contract wallet.
pub async fn is_signed_by(chain: &Chain, signer: Address, digest: B256, signature: &[u8]) -> anyhow::Result<bool> {
    if typed_data::recover(signature, digest) == Ok(signer) {
        return Ok(true);
    }
    accepts(chain, signer, digest, signature).await
}

/// Whether `wallet` is a contract that takes the signature for its own, at this moment. False for accounts without code.
pub async fn accepts(chain: &Chain, wallet: Address, digest: B256, signature: &[u8]) -> anyhow::Result<bool> {
    if chain.provider.get_code_at(wallet).await.context("cannot read the chain")?.is_empty() {
        return Ok(false);
    }
    match chain.provider.call(wallet::question(wallet, digest, signature)).await {
        Ok(answer) => Ok(wallet::is_yes(&answer)),
        Err(error) if error.as_error_resp().is_none() => Err(error).with_context(|| format!("cannot ask {wallet}")),
        // It reverted, or ran dry.
        Err(_) => Ok(false),
    }
}
