//! Orders that are signed and paid from the deposit: who signed, one by one and in bulk, and who may take them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use alloy::{
    primitives::{Address, B256, Bytes, U256},
    providers::ext::AnvilApi,
    signers::{Signature, SignerSync, local::PrivateKeySigner},
};
use chrono::TimeDelta;
use devnet::{Anvil, AnvilOptions};
use market::{
    abi::{JobSpec, Order, Voucher},
    clock, db,
    fold::{EscrowChannel, EscrowJob, EscrowState},
    typed_data,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::{Api, Reply, User, Wish, deployment, job_id, order, spec, submission};

pub const SUBMIT: &str = "/lit-compute/jobs/submit";
const BULK: &str = "/lit-compute/jobs/submit/bulk";

/// The chain that is asked about contract wallets.
pub async fn anvil() -> &'static Anvil {
    static SHARED: OnceCell<Anvil> = OnceCell::const_new();
    SHARED.get_or_init(|| async { Anvil::start(AnvilOptions::default()).await.unwrap() }).await
}

pub struct Market {
    pub api: Api,
    pub requester: User,
    pub node: User,
    pub spec: JobSpec,
}

/// A requester with a deposit of a million, and an input that a node can work on.
pub async fn market() -> Market {
    let api = Api::with(Wish { rpc_url: Some(anvil().await.rpc_url().to_owned()), ..Wish::default() }).await;
    let node = api.node().await;
    let input = api.blob(b"input").await;
    let requester = api.requester().await;
    Market { api, requester, node, spec: spec(input) }
}

impl Market {
    /// An order of `price` that any node may take.
    pub fn order(&self, nonce: u64, price: u128) -> Order {
        Order { nonce, maxPrice: price, ..order(self.requester.address(), &self.spec) }
    }

    /// An order of `price` for one node.
    pub fn order_for(&self, node: Address, nonce: u64, price: u128) -> Order {
        Order { node, ..self.order(nonce, price) }
    }

    pub fn signed(&self, order: &Order) -> Value {
        signed_by(&self.requester.signer, order, &self.spec)
    }

    pub async fn submit(&self, order: &Order) -> Reply {
        self.api.post(&self.requester, SUBMIT, self.signed(order)).await
    }

    pub async fn status(&self, id: B256) -> String {
        self.api.get(&format!("/lit-compute/jobs/{id}")).await.ok().text("status")
    }

    pub async fn cancel(&self, id: B256) -> Reply {
        self.api.post(&self.requester, &format!("/lit-compute/jobs/{id}/cancel"), json!({})).await
    }

    /// Sets aside `reserved` for the node, of which `thawing` is on its way back.
    pub async fn channel(&self, reserved: u128, thawing: u128, covered_nonce: u64) {
        let key = (self.requester.address(), self.node.address(), Address::ZERO);
        let channel = EscrowChannel {
            reserved: reserved.into(),
            thawing: thawing.into(),
            thaw_end: (thawing > 0).then(|| clock::now() + TimeDelta::hours(1)),
            covered_nonce,
            ..EscrowChannel::default()
        };
        let mut db = self.api.pool.acquire().await.unwrap();
        db::escrow::save_channels(&mut db, &BTreeMap::from([(key, channel)])).await.unwrap();
    }

    /// Sets the indexer's cursor, and finality 64 blocks below.
    pub async fn indexed(&self, number: i64) {
        sqlx::query(
            "insert into chain_cursor (chain_id, escrow, registry, block_number, block_hash, undo_above, epoch, final_number)
             values (31337, $1, $2, $3, $4, 0, 1, $3 - 64)
             on conflict (singleton) do update set block_number = excluded.block_number, final_number = excluded.final_number",
        )
        .bind(deployment().escrow.as_slice())
        .bind(deployment().registry.as_slice())
        .bind(number)
        .bind(B256::ZERO.as_slice())
        .execute(&self.api.pool)
        .await
        .unwrap();
    }

    pub async fn is_closed(&self, id: B256) -> bool {
        sqlx::query_scalar("select closed_at is not null from signed_order where job_id = $1")
            .bind(id.as_slice())
            .fetch_one(&self.api.pool)
            .await
            .unwrap()
    }

    /// The node claims whatever there is and completes it for `price`.
    pub async fn work(&self, price: u128) -> B256 {
        let lease = self.api.claim(&self.node).await.ok();
        let output = self.api.blob(b"output").await;
        let body = self.node.completion(lease.job_id(), lease.int("fence"), output, price);
        let path = format!("/lit-compute/jobs/{}/complete", lease.job_id());
        self.api.post(&self.node, &path, body).await.ok().job_id()
    }
}

pub fn signed_by(signer: &PrivateKeySigner, order: &Order, spec: &JobSpec) -> Value {
    with_signature(order, spec, &signer.sign_hash_sync(&job_id(order)).unwrap().as_bytes())
}

fn with_signature(order: &Order, spec: &JobSpec, signature: &[u8]) -> Value {
    let mut body = submission(order, spec);
    body["signature"] = json!(format!("0x{}", hex::encode(signature)));
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_order_is_a_job_at_once_and_once_however_often_it_is_sent() {
    let m = market().await;
    let order = m.order(1, 1_000);
    let body = m.signed(&order);
    for _ in 0..2 {
        let reply = m.api.post(&m.requester, SUBMIT, body.clone()).await.ok();
        assert_eq!(reply.body, json!({ "jobId": job_id(&order), "status": "pending" }));
    }
    let job = m.api.get(&format!("/lit-compute/jobs/{}", job_id(&order))).await.ok();
    assert_eq!((job.text("rail"), job.body.get("signature")), ("signed".to_owned(), None), "{job:?}");
    assert_eq!(job.body["order"], body["order"]);

    let lease = m.api.claim(&m.node).await.ok();
    assert_eq!((lease.job_id(), lease.text("signature")), (job_id(&order), body["signature"].as_str().unwrap().into()));
    assert!(lease.body["assignment"]["signature"].is_string());
    let again = m.api.post(&m.requester, SUBMIT, body).await.ok();
    assert_eq!(again.text("status"), "active");
    let opened = m.api.open_job().await;
    let job = m.api.get(&format!("/lit-compute/jobs/{opened}")).await.ok();
    assert_eq!(job.text("rail"), "opened");
    assert_eq!(m.api.claim(&m.node).await.ok().body["signature"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_order_can_still_be_signed() {
    let m = market().await;
    let order = m.order(1, 1_000);
    let reply = m.api.post(&m.requester, SUBMIT, submission(&order, &m.spec)).await.ok();
    assert_eq!(reply.text("status"), "awaiting_escrow");
    assert_eq!(m.submit(&order).await.ok().text("status"), "pending");
    assert_eq!(m.status(job_id(&order)).await, "pending");
    let announced = m.api.post(&m.requester, SUBMIT, submission(&order, &m.spec)).await.ok();
    assert_eq!(announced.text("status"), "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_requesters_own_signature_over_this_order_counts() {
    let m = market().await;
    let order = m.order(1, 1_000);
    let other = PrivateKeySigner::random();
    let good = m.requester.signer.sign_hash_sync(&job_id(&order)).unwrap();
    let elsewhere = typed_data::domain(1, deployment().escrow);
    let sign = |digest: B256| m.requester.signer.sign_hash_sync(&digest).unwrap().as_bytes().to_vec();
    let group: U256 = "0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141".parse().unwrap();
    let cases = [
        ("another's", other.sign_hash_sync(&job_id(&order)).unwrap().as_bytes().to_vec()),
        ("high s", Signature::new(good.r(), group - good.s(), !good.v()).as_bytes().to_vec()),
        ("another chain's", sign(typed_data::job_id(&order, &elsewhere))),
        ("another order's", sign(job_id(&m.order(2, 1_000)))),
        ("cut short", good.as_bytes()[..64].to_vec()),
        ("nothing", Vec::new()),
        ("noise", vec![0x5a; 65]),
    ];
    let stranger = m.api.user().await;
    let before = m.api.written().await;
    for (what, signature) in cases {
        println!("{what}");
        let reply = m.api.post(&m.requester, SUBMIT, with_signature(&order, &m.spec, &signature)).await;
        reply.is_problem(422, "bad_order_signature", Some("signature"));
    }
    let long = with_signature(&order, &m.spec, &[0; 5000]);
    m.api.post(&m.requester, SUBMIT, long).await.is_problem(422, "invalid_field", Some("signature"));
    let mut malformed = m.signed(&order);
    malformed["signature"] = json!("0x123");
    m.api.post(&m.requester, SUBMIT, malformed).await.is_problem(422, "invalid_field", Some("signature"));
    // Someone else hands in what the requester signed.
    let reply = m.api.post(&stranger, SUBMIT, m.signed(&order)).await;
    reply.is_problem(403, "wallet_mismatch", Some("order.requester"));
    assert_eq!(m.api.written().await, before);
    m.api.get(&format!("/lit-compute/jobs/{}", job_id(&order))).await.is_problem(404, "job_not_found", Some("jobId"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_wallet_says_itself_what_it_signed() {
    let m = market().await;
    let rpc = market::rpc::provider(&anvil().await.rpc_url().parse().unwrap());
    // PUSH4 0x1626ba7e PUSH1 0xe0 SHL PUSH1 0 MSTORE PUSH1 32 PUSH1 0 RETURN: takes everything for its own.
    let yes = "0x631626ba7e60e01b60005260206000f3";
    // The same, but for the last byte of the word.
    let no = "0x631626ba7f60e01b60005260206000f3";
    // Spends gas for ever.
    let greedy = "0x5b600056";
    for (code, taken) in [(yes, true), (no, false), (greedy, false)] {
        let wallet = Address::from(rand::random::<[u8; 20]>());
        rpc.anvil_set_code(wallet, code.parse::<Bytes>().unwrap()).await.unwrap();
        m.api.deposit(wallet, 1_000).await;
        let order = Order { nonce: 1, ..order(wallet, &m.spec) };
        let reply = m.api.post(&m.requester, SUBMIT, with_signature(&order, &m.spec, b"owners agree")).await;
        if taken {
            assert_eq!(reply.ok().text("status"), "pending");
        } else {
            reply.is_problem(403, "wallet_mismatch", Some("order.requester"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_that_no_voucher_can_pay_is_refused() {
    let m = market().await;
    m.submit(&m.order(0, 10)).await.is_problem(422, "order_invalid", Some("order.nonce"));
    m.channel(0, 0, 5).await;
    let node = m.node.address();
    m.submit(&m.order_for(node, 5, 10)).await.is_problem(422, "nonce_covered", Some("order.nonce"));
    m.submit(&m.order_for(node, 6, 10)).await.ok();
    let voucher =
        Voucher { requester: m.requester.address(), node, token: Address::ZERO, cumulative: 10, coveredNonce: 8 };
    let mut db = m.api.pool.acquire().await.unwrap();
    db::voucher::insert(&mut db, &voucher, m.requester.address(), &[1; 65], clock::now()).await.unwrap();
    m.submit(&m.order_for(node, 8, 10)).await.is_problem(422, "nonce_covered", Some("order.nonce"));
    m.submit(&m.order_for(node, 9, 10)).await.ok();
    // Another node's orders count by themselves, and so do those that any node may take.
    m.submit(&m.order(1, 10)).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_the_requesters_notice_overtakes_is_not_published() {
    let m = market().await;
    m.submit(&m.order(1, 1_000)).await.ok();
    let lease = m.api.claim(&m.node).await.ok();
    let output = m.api.blob(b"output").await;
    let path = format!("/lit-compute/jobs/{}/complete", lease.job_id());
    let body = || m.node.completion(lease.job_id(), 1, output, 1_000);
    let notice = async |secs: i64| {
        let job = EscrowJob {
            requester: m.requester.address(),
            opened: None,
            state: EscrowState::None,
            cancel_at: Some(clock::now() + TimeDelta::seconds(secs)),
            result: None,
            dispute: None,
            resolution: None,
            closed_when: None,
        };
        m.api.save_job(lease.job_id(), job).await;
    };
    for secs in [-1, 25] {
        notice(secs).await;
        m.api.post(&m.node, &path, body()).await.is_problem(409, "not_open", None);
    }
    notice(60).await;
    m.api.post(&m.node, &path, body()).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_bulk_each_order_stands_by_itself() {
    let m = market().await;
    let known = m.order(1, 100_000);
    m.submit(&known).await.ok();
    let (good, large, rest) = (m.order(2, 500_000), m.order(3, 400_001), m.order(4, 400_000));
    let mut unsigned = m.signed(&m.order(5, 1));
    unsigned.as_object_mut().unwrap().remove("signature");
    let mut malformed = m.signed(&m.order(6, 1));
    malformed["order"]["maxPrice"] = json!("much");
    let forged = signed_by(&PrivateKeySigner::random(), &m.order(7, 1), &m.spec);
    let jobs = json!({ "jobs": [
        m.signed(&known), m.signed(&good), m.signed(&good), unsigned, malformed, forged, "order", m.signed(&large),
        m.signed(&rest), m.signed(&m.order(8, 1)), m.signed(&m.order(0, 1)),
    ] });
    for _ in 0..2 {
        let reply = m.api.post(&m.requester, BULK, jobs.clone()).await.ok();
        let items = reply.body["jobs"].as_array().unwrap();
        let expected = [
            (Some(&known), "pending", None),
            (Some(&good), "pending", None),
            (Some(&good), "pending", None),
            (Some(&m.order(5, 1)), "invalid_field", Some("signature")),
            (None, "invalid_field", Some("order.maxPrice")),
            (Some(&m.order(7, 1)), "bad_order_signature", Some("signature")),
            (None, "invalid_field", None),
            (Some(&large), "insufficient_deposit", Some("order.maxPrice")),
            (Some(&rest), "pending", None),
            (Some(&m.order(8, 1)), "insufficient_deposit", Some("order.maxPrice")),
            (Some(&m.order(0, 1)), "order_invalid", Some("order.nonce")),
        ];
        assert_eq!(items.len(), expected.len());
        for (index, (item, (order, outcome, field))) in items.iter().zip(expected).enumerate() {
            assert_eq!(item["index"], index);
            // The deadline of an order that is made anew may differ by a second.
            if let Some(order) = order.filter(|order| order.nonce < 5 && order.nonce > 0) {
                assert_eq!(item["jobId"], json!(job_id(order)), "{item}");
            }
            let actual = item["status"].as_str().or(item["problem"]["code"].as_str());
            assert_eq!(actual, Some(outcome), "{index}: {item}");
            assert_eq!(item["problem"]["field"].as_str(), field, "{index}: {item}");
        }
        assert_eq!(items[9]["problem"]["available"], "0");
    }
    let listed = m.api.get(&format!("/lit-compute/jobs?requester={}", m.requester.name())).await.ok();
    assert_eq!(listed.body["jobs"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_of_a_thousand_is_taken_and_one_more_is_not() {
    let mut m = market().await;
    m.spec.params = format!("{{\"pad\":\"{}\"}}", "x".repeat(1_000));
    let mut jobs: Vec<Value> = (1..=1000).map(|nonce| m.signed(&m.order(nonce, 1_000))).collect();
    let body = json!({ "jobs": jobs });
    assert!(body.to_string().len() > 1_500_000, "it is larger than other bodies may be");
    let reply = m.api.post(&m.requester, BULK, body).await.ok();
    let items = reply.body["jobs"].as_array().unwrap();
    assert_eq!(items.iter().filter(|item| item["status"] == "pending").count(), 1000);
    assert_eq!(items.iter().map(|item| &item["jobId"]).map(Value::to_string).collect::<BTreeSet<_>>().len(), 1000);
    m.submit(&m.order(1001, 1)).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
    jobs.push(m.signed(&m.order(1001, 1)));
    let reply = m.api.post(&m.requester, BULK, json!({ "jobs": jobs })).await;
    reply.is_problem(422, "invalid_field", Some("jobs"));
    let request = m.api.request(Method::POST, BULK, Some(&m.requester)).header("content-type", "application/json");
    Reply::of(request.body(" ".repeat(5 << 20))).await.is_problem(413, "body_too_large", None);
    assert_eq!(m.api.post(&m.requester, BULK, json!({ "jobs": [] })).await.ok().body, json!({ "jobs": [] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_node_had_can_be_taken_back() {
    let m = market().await;
    let order = m.order(1, 1_000_000);
    let id = m.submit(&order).await.ok().job_id();
    let path = format!("/lit-compute/jobs/{id}/cancel");
    let stranger = m.api.user().await;
    m.api.post(&stranger, &path, json!({})).await.is_problem(403, "wallet_mismatch", None);
    for _ in 0..2 {
        assert_eq!(m.cancel(id).await.ok().body, json!({ "jobId": id, "status": "cancelled" }));
    }
    assert_eq!(m.status(id).await, "cancelled");
    assert_eq!(m.api.claim(&m.node).await.status, 204);
    assert_eq!(m.submit(&order).await.ok().text("status"), "cancelled", "it does not come back");
    // Its money is free again.
    let next = m.submit(&m.order(2, 1_000_000)).await.ok().job_id();
    m.api.claim(&m.node).await.ok();
    m.cancel(next).await.is_problem(409, "not_withdrawable", None);
    // Nor once the node has given it back: it has the signature.
    let failed = json!({ "fence": 1, "reason": "power cut", "retryable": true });
    m.api.post(&m.node, &format!("/lit-compute/jobs/{next}/fail"), failed).await.ok();
    let refused = m.cancel(next).await;
    refused.is_problem(409, "not_withdrawable", None);
    assert!(refused.text("detail").contains("cancelJob"));

    let opened = m.order(3, 1_000);
    m.api.open(&opened, &m.spec).await;
    m.cancel(job_id(&opened)).await.is_problem(409, "not_withdrawable", None);
    let unknown = B256::repeat_byte(9);
    m.cancel(unknown).await.is_problem(404, "job_not_found", Some("jobId"));
    m.api.post(&m.requester, "/lit-compute/jobs/x/cancel", json!({})).await.is_problem(
        422,
        "invalid_parameter",
        Some("jobId"),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_claim_and_a_withdrawal_at_once_one_succeeds() {
    let m = market().await;
    let (mut leased, mut withdrawn) = (0, 0);
    for nonce in 1..=24 {
        let id = m.submit(&m.order(nonce, 1_000)).await.ok().job_id();
        let late = Duration::from_millis(nonce % 8);
        let withdraw = async {
            tokio::time::sleep(late).await;
            m.cancel(id).await
        };
        let (lease, cancelled) = tokio::join!(m.api.claim(&m.node), withdraw);
        match (lease.status.as_u16(), cancelled.status.as_u16()) {
            (200, 409) => {
                leased += 1;
                assert_eq!((lease.job_id(), m.status(id).await), (id, "active".to_owned()));
                let failed = json!({ "fence": lease.int("fence"), "reason": "test", "retryable": false });
                m.api.post(&m.node, &format!("/lit-compute/jobs/{id}/fail"), failed).await.ok();
            }
            (204, 200) => {
                withdrawn += 1;
                assert_eq!(m.status(id).await, "cancelled");
            }
            other => panic!("{other:?}: {lease:?} {cancelled:?}"),
        }
    }
    println!("{leased} leased, {withdrawn} withdrawn");
    assert_eq!(leased + withdrawn, 24);
}
