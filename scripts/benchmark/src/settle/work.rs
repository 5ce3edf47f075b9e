//! Jobs that are done and due, as the API leaves them in Postgres.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Signature, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use chrono::{DateTime, TimeDelta, Utc};
use market::abi::{JobSpec, Order, Voucher};
use market::content::ContentId;
use market::db::work::{self, Completion};
use market::db::{order, voucher};
use market::job::Work;
use market::typed_data;
use sqlx::PgPool;

use crate::people::People;

/// What every job costs, in wei.
pub const PRICE: u128 = 1_000_000_000;

/// A job that is to be paid.
pub struct Job {
    pub id: B256,
    pub order: Order,
}

/// All of the work.
pub struct Stored {
    pub jobs: Vec<Job>,
    pub vouchers: Vec<Voucher>,
}

/// Jobs of a transaction, so that a failure does not hold up everything.
const CHUNK: usize = 500;

pub async fn store(pool: &PgPool, people: &People, payments: usize, now: DateTime<Utc>) -> anyhow::Result<Stored> {
    let deadline = u64::try_from((now + TimeDelta::days(1)).timestamp())?;
    let mut stored = Stored { jobs: Vec::with_capacity(payments), vouchers: Vec::new() };
    let mut vouchers: BTreeMap<(usize, usize), Voucher> = BTreeMap::new();
    let channels = people.requesters.len() * people.nodes.len();
    let spec = JobSpec {
        inputCID: ContentId::of(b"input").to_string(),
        operation: "encrypt".to_owned(),
        params: String::new(),
    };
    let mut tx = pool.begin().await?;
    for n in 0..payments {
        let channel = n % channels;
        let (r, d) = (channel % people.requesters.len(), channel / people.requesters.len());
        let (requester, node) = (&people.requesters[r], &people.nodes[d]);
        let nonce = u64::try_from(n)? + 1;
        let order = Order {
            requester: requester.address(),
            token: Address::ZERO,
            maxPrice: PRICE,
            node: node.address(),
            assigner: Address::ZERO,
            specHash: typed_data::spec_hash(&spec),
            deadline,
            challengeWindow: 0,
            arbiter: Address::ZERO,
            maxFeeBps: 0,
            nonce,
        };
        let id = typed_data::job_id(&order, &people.domain);
        let signature = sign(requester, id)?;
        order::insert_signed(&mut tx, id, (&order, &spec), &signature, &order::Terms::default(), now).await?;
        complete(&mut tx, people, id, node, now).await?;
        // Every second pair of requester and node settles by voucher, the others by each order's signature.
        if channel.is_multiple_of(2) {
            let voucher = vouchers.entry((r, d)).or_insert_with(|| Voucher {
                requester: requester.address(),
                node: node.address(),
                token: Address::ZERO,
                cumulative: 0,
                coveredNonce: 0,
            });
            voucher.cumulative += PRICE;
            voucher.coveredNonce = nonce;
        }
        stored.jobs.push(Job { id, order });
        if (n + 1).is_multiple_of(CHUNK) {
            tx.commit().await?;
            tx = pool.begin().await?;
        }
    }
    for ((r, _), signed) in vouchers {
        let requester = &people.requesters[r];
        let signature = sign(requester, typed_data::voucher_digest(&signed, &people.domain))?;
        voucher::insert(&mut tx, &signed, requester.address(), &signature, now).await?;
        stored.vouchers.push(signed);
    }
    tx.commit().await?;
    Ok(stored)
}

/// The node claims the job, does it and hands in its receipt.
async fn complete(
    db: &mut sqlx::PgConnection,
    people: &People,
    id: B256,
    node: &PrivateKeySigner,
    now: DateTime<Utc>,
) -> anyhow::Result<()> {
    let output = ContentId::of(keccak256(id).as_slice());
    let result_hash = output.digest();
    let receipt = sign(node, typed_data::receipt_digest(id, PRICE, result_hash, &people.domain))?;
    work::ensure_row(db, id, now).await?;
    let queued = Work::default();
    let leased = queued.claim(node.address(), now, TimeDelta::minutes(1))?;
    work::save(db, id, &queued, &leased, None, now).await?;
    let done = leased.complete(node.address(), leased.fence, now)?;
    work::save(db, id, &leased, &done, None, now).await?;
    let completion = Completion {
        fence: done.fence,
        node: node.address(),
        output_cid: output.to_string(),
        result_hash,
        price: PRICE.into(),
        receipt_signature: receipt,
        assignment_expiry: 0,
        assignment_signature: Vec::new(),
        started_at: now,
        completed_at: now,
    };
    Ok(work::insert_completion(db, id, Address::ZERO, &completion).await?)
}

fn sign(signer: &PrivateKeySigner, digest: B256) -> anyhow::Result<Vec<u8>> {
    let signature: Signature = signer.sign_hash_sync(&digest)?;
    Ok(signature.as_bytes().to_vec())
}
