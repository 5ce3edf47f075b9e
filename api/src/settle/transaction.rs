//! Signing a batch's transaction, and signing it again with other fees. Pure but for the key.

use alloy::consensus::{SignableTransaction, Transaction, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::{Decodable2718, Encodable2718};
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, TxKind, U256};
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context;
use chrono::{DateTime, Utc};
use market::db::settlement::Attempt;

use super::fees::Fees;

/// A call to be signed.
#[derive(Debug, Clone)]
pub struct Unsigned {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// The contract.
    pub to: Address,
    /// Call data.
    pub input: Vec<u8>,
    /// Gas limit.
    pub gas_limit: u64,
}

/// Signs `call` under `nonce`.
pub fn sign(
    signer: &PrivateKeySigner,
    call: Unsigned,
    nonce: u64,
    fees: Fees,
    now: DateTime<Utc>,
) -> anyhow::Result<Attempt> {
    let transaction = TxEip1559 {
        chain_id: call.chain_id,
        nonce,
        gas_limit: call.gas_limit,
        max_fee_per_gas: fees.max_fee_per_gas,
        max_priority_fee_per_gas: fees.max_priority_fee_per_gas,
        to: TxKind::Call(call.to),
        value: U256::ZERO,
        access_list: Default::default(),
        input: call.input.into(),
    };
    sign_transaction(signer, transaction, now)
}

/// Signs the transaction of `attempt` again, with other fees and nothing else changed.
pub fn sign_again(
    signer: &PrivateKeySigner,
    attempt: &Attempt,
    fees: Fees,
    now: DateTime<Utc>,
) -> anyhow::Result<Attempt> {
    let stored = TxEnvelope::decode_2718(&mut attempt.raw_tx.as_slice())
        .with_context(|| format!("the stored transaction {} cannot be decoded", attempt.tx_hash))?;
    let stored = stored.as_eip1559().with_context(|| format!("{} is not an EIP-1559 transaction", attempt.tx_hash))?;
    let mut transaction = stored.tx().clone();
    transaction.max_fee_per_gas = fees.max_fee_per_gas;
    transaction.max_priority_fee_per_gas = fees.max_priority_fee_per_gas;
    sign_transaction(signer, transaction, now)
}

fn sign_transaction(
    signer: &PrivateKeySigner,
    mut transaction: TxEip1559,
    now: DateTime<Utc>,
) -> anyhow::Result<Attempt> {
    let signature = signer.sign_transaction_sync(&mut transaction).context("signing a transaction")?;
    let envelope = TxEnvelope::from(transaction.into_signed(signature));
    Ok(Attempt {
        tx_hash: *envelope.tx_hash(),
        raw_tx: envelope.encoded_2718(),
        gas_limit: envelope.gas_limit(),
        max_fee_per_gas: envelope.max_fee_per_gas(),
        max_priority_fee_per_gas: envelope.max_priority_fee_per_gas().unwrap_or_default(),
        created_at: now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_again_changes_the_fees_and_nothing_else() {
        let signer = PrivateKeySigner::random();
        let call = Unsigned { chain_id: 1, to: Address::repeat_byte(7), input: vec![1, 2, 3], gas_limit: 50_000 };
        let now = DateTime::UNIX_EPOCH;
        let fees = Fees { max_fee_per_gas: 100, max_priority_fee_per_gas: 1 };
        let first = sign(&signer, call, 9, fees, now).unwrap();
        let more = Fees { max_fee_per_gas: 113, max_priority_fee_per_gas: 2 };
        let second = sign_again(&signer, &first, more, now).unwrap();
        let read = |attempt: &Attempt| {
            let envelope = TxEnvelope::decode_2718(&mut attempt.raw_tx.as_slice()).unwrap();
            assert_eq!(*envelope.tx_hash(), attempt.tx_hash);
            let signed = envelope.as_eip1559().unwrap().clone();
            assert_eq!(signed.recover_signer().unwrap(), signer.address());
            signed.tx().clone()
        };
        assert_ne!(first.tx_hash, second.tx_hash);
        let expected = TxEip1559 { max_fee_per_gas: 113, max_priority_fee_per_gas: 2, ..read(&first) };
        assert_eq!(read(&second), expected);
        assert_eq!((expected.nonce, expected.gas_limit), (9, 50_000));
    }
}
