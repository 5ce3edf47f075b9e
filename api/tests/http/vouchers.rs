use std::collections::BTreeMap;

use alloy::{
    primitives::{Address, B256, Bytes},
    providers::ext::AnvilApi,
    signers::{SignerSync, local::PrivateKeySigner},
};
use chrono::TimeDelta;
use devnet::{Anvil, AnvilOptions};
use market::{
    Amount, ContentId,
    abi::{Order, Voucher},
    clock,
    db::{self, order, work},
    fold::{EscrowChannel, EscrowSession},
    job::Work,
    typed_data,
};
use serde_json::{Value, json};

use crate::support::{Api, User, Wish, deployment, spec};

const PRICE: u128 = 100;
const NATIVE: Address = Address::ZERO;

/// A requester, a node, and an API.
struct Pair {
    api: Api,
    requester: User,
    node: User,
}

impl Pair {
    async fn new() -> Self {
        Self::with(Wish::default()).await
    }

    async fn with(wish: Wish) -> Self {
        let api = Api::with(wish).await;
        let (requester, node) = (api.requester().await, api.node().await);
        Self { api, requester, node }
    }

    /// Keeps a signed order of this nonce for the node.
    async fn sign(&self, nonce: u64) -> B256 {
        self.sign_for(self.node.address(), nonce).await
    }

    async fn sign_for(&self, node: Address, nonce: u64) -> B256 {
        let spec = spec(ContentId::of(b"input"));
        let order = Order {
            requester: self.requester.address(),
            node,
            nonce,
            maxPrice: PRICE,
            specHash: typed_data::spec_hash(&spec),
            deadline: u64::try_from((clock::now() + TimeDelta::hours(1)).timestamp()).unwrap(),
            ..Order::default()
        };
        let job_id = typed_data::job_id(&order, &deployment().domain());
        let signature = self.requester.signer.sign_hash_sync(&job_id).unwrap().as_bytes();
        let mut db = self.api.pool.acquire().await.unwrap();
        order::insert_signed(&mut db, job_id, (&order, &spec), &signature, &order::Terms::default(), clock::now())
            .await
            .unwrap();
        job_id
    }

    /// The node has done the job.
    async fn done(&self, job_id: B256) {
        let mut db = self.api.pool.acquire().await.unwrap();
        let now = clock::now();
        let output = ContentId::of(job_id.as_slice());
        let digest = typed_data::receipt_digest(job_id, PRICE, output.digest(), &deployment().domain());
        work::ensure_row(&mut db, job_id, now).await.unwrap();
        let leased = Work::default().claim(self.node.address(), now, TimeDelta::minutes(1)).unwrap();
        work::save(&mut db, job_id, &Work::default(), &leased, None, now).await.unwrap();
        let completed = leased.complete(self.node.address(), leased.fence, now).unwrap();
        work::save(&mut db, job_id, &leased, &completed, None, now).await.unwrap();
        let completion = work::Completion {
            fence: leased.fence,
            node: self.node.address(),
            output_cid: output.to_string(),
            result_hash: output.digest(),
            price: PRICE.into(),
            receipt_signature: self.node.signer.sign_hash_sync(&digest).unwrap().as_bytes().to_vec(),
            assignment_expiry: 0,
            assignment_signature: Vec::new(),
            started_at: now,
            completed_at: now,
        };
        work::insert_completion(&mut db, job_id, NATIVE, &completion).await.unwrap();
    }

    async fn sign_and_do(&self, nonces: std::ops::RangeInclusive<u64>) -> Vec<B256> {
        let mut jobs = Vec::new();
        for nonce in nonces {
            let job_id = self.sign(nonce).await;
            self.done(job_id).await;
            jobs.push(job_id);
        }
        jobs
    }

    async fn next(&self) -> crate::support::Reply {
        let path = format!("/lit-compute/vouchers/next?node={}", self.node.name());
        crate::support::Reply::of(self.api.request(reqwest::Method::GET, &path, Some(&self.requester))).await.ok()
    }

    fn voucher(&self, cumulative: u128, covered_nonce: u64) -> Voucher {
        let (requester, node) = (self.requester.address(), self.node.address());
        Voucher { requester, node, token: NATIVE, cumulative, coveredNonce: covered_nonce }
    }

    /// Posts a voucher, signed by `signer`.
    async fn post(&self, signer: &PrivateKeySigner, cumulative: u128, nonce: u64) -> crate::support::Reply {
        self.post_as(&self.requester, signer, cumulative, nonce).await
    }

    /// As [`Pair::post`], handed in by `caller`.
    async fn post_as(
        &self,
        caller: &User,
        signer: &PrivateKeySigner,
        cumulative: u128,
        nonce: u64,
    ) -> crate::support::Reply {
        let digest = typed_data::voucher_digest(&self.voucher(cumulative, nonce), &deployment().domain());
        let signature = signer.sign_hash_sync(&digest).unwrap().to_string();
        self.post_raw(caller, cumulative, nonce, &signature).await
    }

    async fn post_raw(&self, caller: &User, cumulative: u128, nonce: u64, signature: &str) -> crate::support::Reply {
        let voucher = json!({
            "requester": self.requester.name(),
            "node": self.node.name(),
            "token": NATIVE.to_checksum(None),
            "cumulative": cumulative.to_string(),
            "coveredNonce": nonce.to_string(),
        });
        let body = json!({ "voucher": voucher, "signature": signature });
        self.api.post(caller, "/lit-compute/vouchers", body).await
    }

    async fn kept(&self) -> i64 {
        sqlx::query_scalar("select count(*) from voucher").fetch_one(&self.api.pool).await.unwrap()
    }

    async fn channel(&self, channel: EscrowChannel) {
        let key = (self.requester.address(), self.node.address(), NATIVE);
        let rows = BTreeMap::from([(key, channel)]);
        db::escrow::save_channels(&mut self.api.pool.acquire().await.unwrap(), &rows).await.unwrap();
    }

    async fn session(&self, key: Address, left: u128, lasts: TimeDelta) {
        let session = EscrowSession { left: left.into(), expires_at: clock::now() + lasts };
        let rows = BTreeMap::from([((self.requester.address(), key, NATIVE), session)]);
        db::escrow::save_sessions(&mut self.api.pool.acquire().await.unwrap(), &rows).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_be_countersigned_is_told_and_taken_once() {
    let pair = Pair::new().await;
    let jobs = pair.sign_and_do(1..=3).await;
    let next = pair.next().await;
    assert_eq!((next.text("cumulative"), next.text("coveredNonce")), ("300".to_owned(), "3".to_owned()));
    let told: Vec<_> = next.body["jobs"].as_array().unwrap().iter().map(|job| job["jobId"].clone()).collect();
    assert_eq!(told, jobs.iter().map(|id| json!(id)).collect::<Vec<_>>());
    for job in next.body["jobs"].as_array().unwrap() {
        let id: B256 = job["jobId"].as_str().unwrap().parse().unwrap();
        let hash: B256 = job["resultHash"].as_str().unwrap().parse().unwrap();
        let signature: alloy::primitives::Bytes = job["receiptSignature"].as_str().unwrap().parse().unwrap();
        let digest = typed_data::receipt_digest(id, PRICE, hash, &deployment().domain());
        assert_eq!(typed_data::recover(&signature, digest), Ok(pair.node.address()));
    }

    let taken = pair.post(&pair.requester.signer, 300, 3).await.ok();
    assert_eq!(pair.post(&pair.requester.signer, 300, 3).await.ok().body, taken.body);
    assert_eq!(pair.kept().await, 1);
    let after = pair.next().await;
    assert_eq!((after.text("cumulative"), after.text("coveredNonce")), ("300".to_owned(), "3".to_owned()));
    assert_eq!(after.body["jobs"], json!([]));
    assert_eq!(after.body["best"], taken.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_voucher_stops_below_what_is_still_to_be_done() {
    let pair = Pair::new().await;
    pair.sign_and_do(1..=2).await;
    let waiting = pair.sign(3).await;
    pair.sign_and_do(4..=4).await;
    assert_eq!(pair.next().await.text("coveredNonce"), "2");
    // The node could be given no order that the voucher covers, so it must not cover the third.
    pair.post(&pair.requester.signer, 300, 4).await.is_problem(
        409,
        "voucher_covers_unfinished",
        Some("voucher.coveredNonce"),
    );
    pair.post(&pair.requester.signer, 200, 2).await.ok();
    pair.done(waiting).await;
    assert_eq!(pair.next().await.text("coveredNonce"), "4");
    pair.post(&pair.requester.signer, 400, 4).await.ok();
    assert_eq!(pair.kept().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_any_node_may_take_is_left_out_of_the_next_voucher_but_voids_nothing() {
    let pair = Pair::new().await;
    pair.sign_for(Address::ZERO, 1).await;
    pair.sign_and_do(2..=2).await;
    assert_eq!(pair.next().await.body["jobs"], json!([]));
    pair.post(&pair.requester.signer, 100, 2).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_over_too_little_too_much_or_nothing_new_is_refused() {
    let pair = Pair::new().await;
    pair.sign_and_do(1..=3).await;
    for wrong in [0, 299, 301, (1 << 96) - 1] {
        let reply = pair.post(&pair.requester.signer, wrong, 3).await;
        reply.is_problem(422, "voucher_mismatch", Some("voucher.cumulative"));
    }
    for beyond in [1 << 96, u128::MAX] {
        let reply = pair.post(&pair.requester.signer, beyond, 3).await;
        reply.is_problem(422, "invalid_field", Some("voucher.cumulative"));
    }
    pair.post(&pair.requester.signer, 0, 0).await.is_problem(409, "voucher_stale", Some("voucher.coveredNonce"));
    pair.post(&pair.requester.signer, 200, 2).await.ok();
    for nonce in [1, 2] {
        let reply = pair.post(&pair.requester.signer, 300, nonce).await;
        reply.is_problem(409, "voucher_stale", Some("voucher.coveredNonce"));
    }
    pair.post(&pair.requester.signer, 300, 3).await.ok();
    // Over no more than before, up to a nonce of which nothing is done.
    let empty = pair.post(&pair.requester.signer, 300, 4).await;
    empty.is_problem(409, "voucher_stale", Some("voucher.coveredNonce"));
    assert_eq!(pair.kept().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_alone_counts_as_the_chain_has_it() {
    let pair = Pair::new().await;
    let jobs = pair.sign_and_do(1..=2).await;
    // The second was settled by its signature: the channel has paid 100 for it, which the first must not be taken off.
    let statement =
        "insert into escrow_job (job_id, requester, state, node, price, paid_token, result_hash, closed_block,
                         closed_tx, closed_at)
                     select job_id, $2, 'paid', node, price, $3, result_hash, 5, job_id, now()
                     from job_completion where job_id = $1";
    sqlx::query(statement)
        .bind(jobs[1].as_slice())
        .bind(pair.requester.address().as_slice())
        .bind(NATIVE.as_slice())
        .execute(&pair.api.pool)
        .await
        .unwrap();
    pair.channel(EscrowChannel { claimed: PRICE.into(), ..EscrowChannel::default() }).await;
    pair.post(&pair.requester.signer, 100, 2).await.is_problem(422, "voucher_mismatch", Some("voucher.cumulative"));
    assert_eq!(pair.next().await.text("cumulative"), "200");
    pair.post(&pair.requester.signer, 100, 1).await.ok();
    pair.post(&pair.requester.signer, 200, 2).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_requester_or_its_session_key_signs() {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let pair = Pair::with(Wish { rpc_url: Some(anvil.rpc_url().to_owned()), ..Wish::default() }).await;
    pair.sign_and_do(1..=1).await;
    let stranger = PrivateKeySigner::random();
    let refused = |reply: crate::support::Reply| reply.is_problem(422, "bad_voucher_signature", Some("signature"));
    refused(pair.post(&stranger, 100, 1).await);
    refused(pair.post(&pair.node.signer, 100, 1).await);
    refused(pair.post_raw(&pair.requester, 100, 1, "0x").await);
    refused(pair.post_raw(&pair.requester, 100, 1, &format!("0x{}", "11".repeat(65))).await);
    // Another escrow's.
    let other = typed_data::domain(1, deployment().escrow);
    let digest = typed_data::voucher_digest(&pair.voucher(100, 1), &other);
    refused(
        pair.post_raw(&pair.requester, 100, 1, &pair.requester.signer.sign_hash_sync(&digest).unwrap().to_string())
            .await,
    );

    pair.session(stranger.address(), 99, TimeDelta::days(1)).await;
    pair.post(&stranger, 100, 1).await.is_problem(422, "session_insufficient", Some("signature"));
    pair.session(stranger.address(), 100, TimeDelta::minutes(59)).await;
    pair.post(&stranger, 100, 1).await.is_problem(422, "session_insufficient", Some("signature"));
    assert_eq!(pair.kept().await, 0);
    pair.session(stranger.address(), 100, TimeDelta::days(1)).await;
    // The key's owner signs in as itself, and asks for whom it signs.
    let key = pair.api.sign_in(stranger).await;
    let path = format!("/lit-compute/vouchers/next?node={}&requester={}", pair.node.name(), pair.requester.name());
    let asked = crate::support::Reply::of(pair.api.request(reqwest::Method::GET, &path, Some(&key))).await.ok();
    assert_eq!((asked.text("cumulative"), asked.text("coveredNonce")), ("100".to_owned(), "1".to_owned()));
    assert_eq!(pair.post_as(&key, &key.signer, 100, 1).await.ok().text("signer"), key.name());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_wallet_countersigns_through_whoever_signs_in() {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let pair = Pair::with(Wish { rpc_url: Some(anvil.rpc_url().to_owned()), ..Wish::default() }).await;
    let owner = pair.api.user().await;
    // It takes everything for its own: PUSH4 0x1626ba7e PUSH1 0xe0 SHL PUSH1 0 MSTORE PUSH1 32 PUSH1 0 RETURN.
    let code = "0x631626ba7e60e01b60005260206000f3".parse::<Bytes>().unwrap();
    let rpc = market::rpc::provider(&anvil.rpc_url().parse().unwrap());
    rpc.anvil_set_code(pair.requester.address(), code).await.unwrap();
    pair.sign_and_do(1..=1).await;
    let taken = pair.post_raw(&owner, 100, 1, "0x0123").await.ok();
    assert_eq!((taken.text("signer"), taken.text("signature")), (pair.requester.name(), "0x0123".to_owned()));
    // Without its code it is a key like any other.
    rpc.anvil_set_code(pair.requester.address(), Bytes::new()).await.unwrap();
    pair.sign_and_do(2..=2).await;
    let refused = pair.post_raw(&owner, 200, 2, "0x0123").await;
    refused.is_problem(403, "wallet_mismatch", Some("voucher.requester"));
    let long = format!("0x{}", "00".repeat(4097));
    pair.post_raw(&owner, 200, 2, &long).await.is_problem(422, "invalid_field", Some("signature"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_tells_which_voucher_pays_for_it() {
    let pair = Pair::new().await;
    let jobs = pair.sign_and_do(1..=3).await;
    pair.post(&pair.requester.signer, 200, 2).await.ok();
    let covered_by =
        async |job: B256| pair.api.get(&format!("/lit-compute/jobs/{job}")).await.ok().body["coveredBy"].clone();
    let cover = json!({ "cumulative": "200", "coveredNonce": "2" });
    assert_eq!([covered_by(jobs[0]).await, covered_by(jobs[1]).await], [cover.clone(), cover.clone()]);
    assert_eq!(covered_by(jobs[2]).await, Value::Null);
    pair.post(&pair.requester.signer, 300, 3).await.ok();
    assert_eq!(covered_by(jobs[0]).await, cover, "the first one that does");
    let listed = pair.api.get(&format!("/lit-compute/jobs?requester={}", pair.requester.name())).await.ok();
    assert_eq!(listed.body["jobs"][0]["coveredBy"], json!({ "cumulative": "300", "coveredNonce": "3" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vouchers_are_handed_in_by_who_pays_and_shown_to_who_is_paid() {
    let pair = Pair::new().await;
    pair.sign_and_do(1..=1).await;
    let reply = pair.post_as(&pair.node, &pair.requester.signer, 100, 1).await;
    reply.is_problem(403, "wallet_mismatch", Some("voucher.requester"));

    let taken = pair.post(&pair.requester.signer, 100, 1).await.ok();
    let path = format!("/lit-compute/nodes/{}/vouchers", pair.node.name());
    let get = |user| crate::support::Reply::of(pair.api.request(reqwest::Method::GET, &path, Some(user)));
    assert_eq!(get(&pair.node).await.ok().body, json!({ "vouchers": [taken.body] }));
    get(&pair.requester).await.is_problem(403, "wallet_mismatch", Some("id"));
    let own = pair.api.request(reqwest::Method::GET, "/lit-compute/vouchers", Some(&pair.requester));
    assert_eq!(crate::support::Reply::of(own).await.ok().body, json!({ "vouchers": [taken.body] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_shows_what_binds_its_deposit() {
    let pair = Pair::new().await;
    let free = 1_000_000;
    let jobs = pair.sign_and_do(1..=2).await;
    pair.sign_for(Address::ZERO, 3).await;
    let reserved = Amount::from(150_u128);
    pair.channel(EscrowChannel { reserved, ..EscrowChannel::default() }).await;
    let account = pair.api.get(&format!("/lit-compute/accounts/{}", pair.requester.name())).await.ok();
    let native = &account.body["accounts"][0];
    assert_eq!(native["promised"], "300", "{native}");
    // The reservation covers 150 of the node's 200; the rest and the open order bind the free balance.
    assert_eq!(native["available"], (free - 150).to_string(), "{native}");
    assert_eq!(native["channels"][1]["completed"], "200", "{native}");
    // What is on its way back covers nothing, here as where orders are handed in.
    let thawing = EscrowChannel { reserved, thawing: 50.into(), ..EscrowChannel::default() };
    pair.channel(thawing).await;
    let account = pair.api.get(&format!("/lit-compute/accounts/{}", pair.requester.name())).await.ok();
    let native = &account.body["accounts"][0];
    assert_eq!((&native["reserved"], &native["available"]), (&json!("100"), &json!((free - 200).to_string())));

    // A redeemed voucher has paid for the first.
    let paid = EscrowChannel { claimed: PRICE.into(), covered_nonce: 1, ..EscrowChannel::default() };
    pair.channel(paid).await;
    let account = pair.api.get(&format!("/lit-compute/accounts/{}", pair.requester.name())).await.ok();
    assert_eq!(account.body["accounts"][0]["promised"], "200");
    assert_eq!(pair.api.get(&format!("/lit-compute/jobs/{}", jobs[0])).await.ok().text("status"), "paid");
    assert_eq!(pair.api.get(&format!("/lit-compute/jobs/{}", jobs[1])).await.ok().text("status"), "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_vouchers_at_once_leave_one_best_one() {
    let pair = Pair::new().await;
    pair.sign_and_do(1..=2).await;
    let signer = &pair.requester.signer;
    let (one, two) = tokio::join!(pair.post(signer, 100, 1), pair.post(signer, 200, 2));
    assert!(two.status.is_success(), "{two:?}");
    assert!(one.status.is_success() || one.body["code"] == "voucher_stale", "{one:?}");
    assert_eq!(pair.next().await.body["best"]["cumulative"], Value::from("200"));
}
