//! EIP-712: the domain, the hashes that the contract computes too, and who signed them.

use std::borrow::Cow;

use alloy::primitives::{Address, B256, Signature, U256};
use alloy::sol_types::{Eip712Domain, SolStruct};

use crate::abi::{Assignment, JobSpec, Order, Receipt, Voucher};

/// The domain of one escrow on one chain: name `Littoral`, version `1`.
#[must_use]
pub fn domain(chain_id: u64, escrow: Address) -> Eip712Domain {
    Eip712Domain::new(
        Some(Cow::Borrowed("Littoral")),
        Some(Cow::Borrowed("1")),
        Some(U256::from(chain_id)),
        Some(escrow),
        None,
    )
}

/// Hash of a job's spec, as `Order::specHash` carries it.
#[must_use]
pub fn spec_hash(spec: &JobSpec) -> B256 {
    spec.eip712_hash_struct()
}

/// The job's id: the order's EIP-712 digest.
#[must_use]
pub fn job_id(order: &Order, domain: &Eip712Domain) -> B256 {
    order.eip712_signing_hash(domain)
}

/// What the assigner signs to bind an open order to `node` until `expiry` (unix seconds).
#[must_use]
pub fn assignment_digest(job_id: B256, node: Address, expiry: u64, domain: &Eip712Domain) -> B256 {
    Assignment { jobId: job_id, node, expiry }.eip712_signing_hash(domain)
}

/// What the node signs to ask `price` for the output whose SHA2-256 is `result_hash`.
#[must_use]
pub fn receipt_digest(job_id: B256, price: u128, result_hash: B256, domain: &Eip712Domain) -> B256 {
    Receipt { jobId: job_id, price, resultHash: result_hash }.eip712_signing_hash(domain)
}

/// What a requester, or a session key, signs to promise a node all that `voucher` says.
#[must_use]
pub fn voucher_digest(voucher: &Voucher, domain: &Eip712Domain) -> B256 {
    voucher.eip712_signing_hash(domain)
}

/// Why a signature proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not 65 bytes of r, s and v.
    #[error("must be 65 bytes: r, s and v")]
    Malformed,
    /// The upper half of s, which contracts refuse.
    #[error("has a high s value")]
    HighS,
    /// No key can have made it.
    #[error("is not a valid signature")]
    Unrecoverable,
}

/// The address whose key signed `digest`. Refuses what the contract refuses: other lengths, high s.
pub fn recover(signature: &[u8], digest: B256) -> Result<Address, SignatureError> {
    let bytes: &[u8; 65] = signature.try_into().map_err(|_| SignatureError::Malformed)?;
    if !matches!(bytes[64], 27 | 28) {
        return Err(SignatureError::Malformed);
    }
    let parsed = Signature::from_raw_array(bytes).map_err(|_| SignatureError::Malformed)?;
    if parsed.normalize_s().is_some() {
        return Err(SignatureError::HighS);
    }
    parsed.recover_address_from_prehash(&digest).map_err(|_| SignatureError::Unrecoverable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The same file that the contracts' tests check; its hashes were made by neither side.
    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../contracts/test/vectors/typed_data.json")).unwrap()
    }

    fn read<T: std::str::FromStr<Err: std::fmt::Debug>>(value: &Value) -> T {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned).parse().unwrap()
    }

    fn order_of(json: &Value) -> Order {
        Order {
            requester: read(&json["requester"]),
            token: read(&json["token"]),
            maxPrice: read(&json["maxPrice"]),
            node: read(&json["node"]),
            assigner: read(&json["assigner"]),
            specHash: read(&json["specHash"]),
            deadline: read(&json["deadline"]),
            challengeWindow: read(&json["challengeWindow"]),
            arbiter: read(&json["arbiter"]),
            maxFeeBps: read(&json["maxFeeBps"]),
            nonce: read(&json["nonce"]),
        }
    }

    #[test]
    fn every_hash_is_the_one_that_the_contracts_compute() {
        let v = vectors();
        let domain = domain(read(&v["domain"]["chainId"]), read(&v["domain"]["verifyingContract"]));
        assert_eq!(domain.separator(), read::<B256>(&v["domainSeparator"]));
        let spec = JobSpec {
            inputCID: read(&v["spec"]["inputCID"]),
            operation: read(&v["spec"]["operation"]),
            params: read(&v["spec"]["params"]),
        };
        assert_eq!(spec_hash(&spec), read::<B256>(&v["specHash"]));
        let id = job_id(&order_of(&v["order"]), &domain);
        assert_eq!(id, read::<B256>(&v["jobId"]));
        let assignment = &v["assignment"];
        let digest = assignment_digest(id, read(&assignment["node"]), read(&assignment["expiry"]), &domain);
        assert_eq!(digest, read::<B256>(&assignment["digest"]));
        let receipt = &v["receipt"];
        let digest = receipt_digest(id, read(&receipt["price"]), read(&receipt["resultHash"]), &domain);
        assert_eq!(digest, read::<B256>(&receipt["digest"]));
        let v = &v["voucher"];
        let voucher = Voucher {
            requester: read(&v["requester"]),
            node: read(&v["node"]),
            token: read(&v["token"]),
            cumulative: read(&v["cumulative"]),
            coveredNonce: read(&v["coveredNonce"]),
        };
        assert_eq!(voucher_digest(&voucher, &domain), read::<B256>(&v["digest"]));
    }

    #[test]
    fn a_signature_gives_its_signer_and_its_twin_with_high_s_is_refused() {
        let receipt = &vectors()["receipt"];
        let digest = read::<B256>(&receipt["digest"]);
        let mut signature = read::<alloy::primitives::Bytes>(&receipt["signature"]).to_vec();
        assert_eq!(recover(&signature, digest), Ok(read(&receipt["signer"])));
        assert_ne!(recover(&signature, B256::ZERO), Ok(read(&receipt["signer"])));
        assert_eq!(recover(&signature[..64], digest), Err(SignatureError::Malformed));

        let order = alloy::uint!(0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141_U256);
        let high = order - U256::from_be_slice(&signature[32..64]);
        signature[32..64].copy_from_slice(&high.to_be_bytes::<32>());
        signature[64] ^= 27 ^ 28;
        assert_eq!(recover(&signature, digest), Err(SignatureError::HighS));
    }
}
