//! Signatures of contract wallets (ERC-1271), asked of the chain as the escrow asks (`contracts/src/SignatureLib.sol`).
//!
//! What a wallet takes for its own may change at any time: an answer holds for the block that it was asked at.

use alloy::network::TransactionBuilder;
use alloy::primitives::{Address, B256, Bytes};
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall;

use crate::abi::IERC1271;

/// Gas that the escrow gives a wallet for one signature.
const WALLET_GAS: u64 = 100_000;
/// Gas that a node takes off a call before it begins: that of a transaction, and at most so much a byte of its data.
const CALL_GAS: u64 = 21_000;
const BYTE_GAS: u64 = 40;

/// The call that asks `wallet` whether `signature` over `digest` is its own, with the gas that the escrow gives it. An account
/// without code answers nothing.
#[must_use]
pub fn question(wallet: Address, digest: B256, signature: &[u8]) -> TransactionRequest {
    let call = IERC1271::isValidSignatureCall { hash: digest, signature: Bytes::copy_from_slice(signature) };
    let data = call.abi_encode();
    let data_gas = u64::try_from(data.len()).unwrap_or(u64::MAX).saturating_mul(BYTE_GAS);
    TransactionRequest::default()
        .with_to(wallet)
        .with_input(data)
        .with_gas_limit((WALLET_GAS + CALL_GAS).saturating_add(data_gas))
}

/// Whether what a wallet returned to [`question`] means yes. One that reverts, or runs out of gas, means no.
#[must_use]
pub fn is_yes(answer: &[u8]) -> bool {
    answer.get(..4) == Some(&IERC1271::isValidSignatureCall::SELECTOR) && answer.get(4..32) == Some(&[0; 28])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_with_the_selector_in_front_means_yes() {
        let word = |tail: &[u8]| [&IERC1271::isValidSignatureCall::SELECTOR[..], tail].concat();
        assert!(is_yes(&word(&[0; 28])));
        // The escrow reads one word, whatever comes after it.
        assert!(is_yes(&word(&[0; 60])));
        let mut dirty = word(&[0; 28]);
        dirty[31] = 1;
        for no in [dirty, word(&[0; 27]), word(&[]), vec![], vec![0; 32], vec![0xff; 32]] {
            assert!(!is_yes(&no), "{no:?}");
        }
    }
}
