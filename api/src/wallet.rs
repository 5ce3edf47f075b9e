//! Signatures of contract wallets (ERC-1271), asked of the chain through its breaker.

use std::time::Duration;

use alloy::primitives::{Address, B256};
use alloy::providers::Provider;
use alloy::transports::TransportError;
use market::breaker::Broken;
use market::wallet;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
};

/// Longest signature that is taken: room for a contract wallet with many owners. Whoever settles pays for it as calldata.
pub const MAX_SIGNATURE_BYTES: usize = 4096;
/// How long the chain may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// Whether there is code at `wallet`, at this moment.
pub async fn is_contract(app: &App, wallet: Address) -> ApiResult<bool> {
    let asked = async { app.parts.provider.get_code_at(wallet).await };
    ask(app, asked).await.map(|code| !code.is_empty()).map_err(ApiError::unavailable)
}

/// Whether `address` is a contract that takes `signature` over `digest` for its own, at this moment and within the gas that
/// the escrow gives it. False for accounts without code.
pub async fn accepts(app: &App, address: Address, digest: B256, signature: &[u8]) -> ApiResult<bool> {
    if !is_contract(app, address).await? {
        return Ok(false);
    }
    match ask(app, async { app.parts.provider.call(wallet::question(address, digest, signature)).await }).await {
        Ok(answer) => Ok(wallet::is_yes(&answer)),
        // It reverted, or ran dry.
        Err(Broken::Failed(TransportError::ErrorResp(_))) => Ok(false),
        Err(error) => Err(ApiError::unavailable(error)),
    }
}

/// Asks the chain, which may be down: then no one waits for it.
async fn ask<T>(
    app: &App,
    asked: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, Broken<TransportError>> {
    app.chain.call(WITHIN, asked, |error| !matches!(error, TransportError::ErrorResp(_))).await
}
