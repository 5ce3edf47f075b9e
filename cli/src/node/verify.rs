//! What a node checks before it works: that the job is what the API says, is the node's, and that the money is there.

use std::time::Duration;

use alloy::primitives::{Address, B256};
use alloy::sol_types::Eip712Domain;
use market::abi::{JobState, Order};
use market::typed_data;

use crate::api::Lease;
use crate::chain::Chain;
use crate::wallet::is_signed_by;

/// How often the chain is asked before the job is given back.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Why the node does not work on a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Checks all that can be checked without asking anyone. `now` in unix seconds.
pub fn lease(lease: &Lease, me: Address, domain: &Eip712Domain, now: u64) -> Result<Order, Refusal> {
    let order = lease.order.to_order().map_err(|error| Refusal(format!("order.maxPrice {error}")))?;
    let actual = typed_data::job_id(&order, domain);
    if actual != lease.job_id {
        return Err(Refusal(format!("the order is that of job {actual}")));
    }
    let spec_hash = typed_data::spec_hash(&(&lease.spec).into());
    if spec_hash != order.specHash {
        return Err(Refusal(format!("the order's specHash is {}, the spec's hash is {spec_hash}", order.specHash)));
    }
    if order.node.is_zero() {
        assignment(lease, &order, me, domain, now)?;
    } else if order.node != me {
        return Err(Refusal(format!("the order names the node {}", order.node)));
    }
    Ok(order)
}

/// The assigner's word must be the assigner's, name this node, and hold. Warning: an assigner that is a contract wallet
/// (ERC-1271) is not recognised; its orders are left to others.
fn assignment(lease: &Lease, order: &Order, me: Address, domain: &Eip712Domain, now: u64) -> Result<(), Refusal> {
    let Some(assignment) = &lease.assignment else {
        return Err(Refusal("the order names no node and there is no assignment".into()));
    };
    if assignment.expiry < now {
        return Err(Refusal(format!("the assignment expired at {}", crate::chain::time(assignment.expiry))));
    }
    let digest = typed_data::assignment_digest(lease.job_id, me, assignment.expiry, domain);
    match typed_data::recover(&assignment.signature, digest) {
        Ok(signer) if signer == order.assigner => Ok(()),
        Ok(signer) => {
            Err(Refusal(format!("the assignment is signed by {signer}, not by the assigner {}", order.assigner)))
        }
        Err(error) => Err(Refusal(format!("the assignment's signature {error}"))),
    }
}

/// What the node wants to know of the chain before it works.
pub struct Asked<'a> {
    /// The job.
    pub job_id: B256,
    /// Its order.
    pub order: &'a Order,
    /// The requester's, over the order; nothing where it was opened.
    pub signature: Option<&'a [u8]>,
    /// This node.
    pub me: Address,
    /// Unix seconds.
    pub now: u64,
    /// Seconds that must be left to the deadline.
    pub margin: u64,
}

/// Checks on the chain that the order can still be settled: that its price is locked, or that its requester signed it and
/// has taken nothing of it back; and that there is time left. What the requester has is another question. Asks several times:
/// the node's endpoint may be a block behind the API's, or busy.
pub async fn escrow(chain: &Chain, asked: &Asked<'_>) -> Result<(), Refusal> {
    let mut tries = 1;
    loop {
        match look(chain, asked).await {
            Err(_) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

async fn look(chain: &Chain, asked: &Asked<'_>) -> Result<(), Refusal> {
    let Asked { job_id, order, signature, me, now, margin } = asked;
    let job = chain.escrow().job(*job_id).call().await.map_err(|error| unreadable(&error))?;
    match signature {
        Some(signature) => signed(chain, asked, job.state, signature).await?,
        None if job.state != JobState::Open || job.locked != order.maxPrice => {
            return Err(Refusal(format!(
                "the escrow holds {} for it in state {:?}, not {} in state Open",
                job.locked, job.state, order.maxPrice
            )));
        }
        None => {}
    }
    let now = (*now).max(chain.block_time().await.map_err(|error| unreadable(&error))?);
    if order.deadline < now.saturating_add(*margin) {
        return Err(Refusal(format!("its deadline {} is too near", crate::chain::time(order.deadline))));
    }
    let cancel_at = chain.escrow().cancelAt(*job_id).call().await.map_err(|error| unreadable(&error))?;
    if cancel_at != 0 {
        return Err(Refusal(format!("its requester cancels it {}", crate::chain::time(cancel_at))));
    }
    // A result with a challenge window counts only if its node is staked.
    if order.challengeWindow != 0 {
        let is_staked = chain.registry().isStaked(*me).call().await.map_err(|error| unreadable(&error))?;
        if !is_staked {
            return Err(Refusal("this node's stake is below the minimum".into()));
        }
    }
    Ok(())
}

fn unreadable(error: &dyn std::fmt::Display) -> Refusal {
    Refusal(format!("cannot read the chain: {error}"))
}

/// A signed order must be its requester's, not settled, and not covered by a voucher that was redeemed.
async fn signed(chain: &Chain, asked: &Asked<'_>, state: JobState, signature: &[u8]) -> Result<(), Refusal> {
    let Asked { job_id, order, me, .. } = asked;
    if !matches!(state, JobState::None | JobState::Open) {
        return Err(Refusal(format!("the escrow has it in state {state:?}")));
    }
    if order.nonce == 0 {
        return Err(Refusal("its nonce is 0, which no signed order may have".into()));
    }
    let is_theirs = is_signed_by(chain, order.requester, *job_id, signature).await;
    if !is_theirs.map_err(|error| unreadable(&error))? {
        return Err(Refusal(format!("the order is not signed by its requester {}", order.requester)));
    }
    let channel = chain.escrow().channel(order.requester, *me, order.token).call().await;
    let covered = channel.map_err(|error| unreadable(&error))?.coveredNonce;
    if order.nonce <= covered {
        return Err(Refusal(format!("its nonce {} is covered up to {covered} by a redeemed voucher", order.nonce)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloy::signers::SignerSync;
    use alloy::signers::local::PrivateKeySigner;
    use market::abi::JobSpec;
    use market::order::OrderJson;

    use super::*;
    use crate::api::Assigned;

    const NOW: u64 = 1_800_000_000;

    fn domain() -> Eip712Domain {
        typed_data::domain(31337, Address::repeat_byte(0xee))
    }

    fn make(order: Order, assigner: Option<&PrivateKeySigner>, node: Address, expiry: u64) -> Lease {
        let spec = JobSpec { inputCID: "bafy".into(), operation: "encrypt".into(), params: "{}".into() };
        let order = Order { specHash: typed_data::spec_hash(&spec), ..order };
        let job_id = typed_data::job_id(&order, &domain());
        let assignment = assigner.map(|signer| {
            let digest = typed_data::assignment_digest(job_id, node, expiry, &domain());
            Assigned { expiry, signature: signer.sign_hash_sync(&digest).unwrap().as_bytes().into() }
        });
        Lease {
            job_id,
            fence: market::job::Fence(1),
            lease_expires_at: chrono::DateTime::UNIX_EPOCH,
            order: OrderJson::from(&order),
            spec: (&spec).into(),
            signature: None,
            assignment,
        }
    }

    #[test]
    fn a_job_for_this_node_is_taken_and_anothers_is_not() {
        let me = Address::repeat_byte(1);
        let named = make(Order { node: me, ..Order::default() }, None, me, 0);
        lease(&named, me, &domain(), NOW).unwrap();
        assert!(lease(&named, Address::repeat_byte(2), &domain(), NOW).unwrap_err().0.contains("names the node"));
    }

    #[test]
    fn an_order_or_spec_other_than_the_jobs_is_refused() {
        let me = Address::repeat_byte(1);
        let good = make(Order { node: me, ..Order::default() }, None, me, 0);
        let mut dearer = good.clone();
        dearer.order.max_price = 1_u128.into();
        assert!(lease(&dearer, me, &domain(), NOW).unwrap_err().0.contains("that of job"));
        let mut other = good.clone();
        other.spec.operation = "decrypt".into();
        assert!(lease(&other, me, &domain(), NOW).unwrap_err().0.contains("specHash"));
        let elsewhere = typed_data::domain(1, Address::repeat_byte(0xee));
        assert!(lease(&good, me, &elsewhere, NOW).is_err());
    }

    #[test]
    fn an_open_order_needs_the_assigners_word_for_this_node() {
        let (assigner, thief) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let me = Address::repeat_byte(1);
        let open = || Order { assigner: assigner.address(), ..Order::default() };
        let check = |lease: Lease| super::lease(&lease, me, &domain(), NOW).map_err(|refusal| refusal.0);
        check(make(open(), Some(&assigner), me, NOW)).unwrap();
        assert!(check(make(open(), None, me, NOW)).unwrap_err().contains("no assignment"));
        assert!(check(make(open(), Some(&thief), me, NOW)).unwrap_err().contains("not by the assigner"));
        assert!(check(make(open(), Some(&assigner), Address::repeat_byte(2), NOW)).unwrap_err().contains("not by"));
        assert!(check(make(open(), Some(&assigner), me, NOW - 1)).unwrap_err().contains("expired"));
    }
}
