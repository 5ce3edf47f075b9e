//! Signatures of contract wallets (ERC-1271), asked of the chain as the contracts ask.

use std::time::Duration;

use alloy::network::TransactionBuilder;
use alloy::primitives::{Address, B256, Bytes};
use alloy::providers::Provider;
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall;
use alloy::transports::TransportError;
use market::abi::IERC1271;
use market::breaker::Broken;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
};

/// Longest signature that is taken: room for a contract wallet with many owners. Whoever settles pays for it as calldata.
pub const MAX_SIGNATURE_BYTES: usize = 4096;
/// Gas that the escrow gives a wallet for one signature.
const WALLET_GAS: u64 = 100_000;
/// How long the chain may take to answer.
const WITHIN: Duration = Duration::from_secs(5);
/// Gas that a node takes off a call before it begins: that of a transaction, and at most so much a byte of its data.
const CALL_GAS: u64 = 21_000;
const BYTE_GAS: u64 = 40;

/// Whether there is code at `wallet`, at this moment.
pub async fn is_contract(app: &App, wallet: Address) -> ApiResult<bool> {
    let asked = async { app.parts.provider.get_code_at(wallet).await };
    ask(app, asked).await.map(|code| !code.is_empty()).map_err(ApiError::unavailable)
}

/// Whether `wallet` is a contract that takes `signature` over `digest` for its own, at this moment and within the gas that
/// the escrow gives it. False for accounts without code.
pub async fn accepts(app: &App, wallet: Address, digest: B256, signature: &[u8]) -> ApiResult<bool> {
    if !is_contract(app, wallet).await? {
        return Ok(false);
    }
    let call = IERC1271::isValidSignatureCall { hash: digest, signature: Bytes::copy_from_slice(signature) };
    let data = call.abi_encode();
    let data_gas = u64::try_from(data.len()).unwrap_or(u64::MAX).saturating_mul(BYTE_GAS);
    let request = TransactionRequest::default()
        .with_to(wallet)
        .with_input(data)
        .with_gas_limit((WALLET_GAS + CALL_GAS).saturating_add(data_gas));
    match ask(app, async { app.parts.provider.call(request).await }).await {
        Ok(answer) => {
            let magic = IERC1271::isValidSignatureCall::SELECTOR;
            Ok(answer.get(..4) == Some(&magic) && answer.get(4..32) == Some(&[0; 28]))
        }
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
