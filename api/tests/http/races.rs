//! Who comes first when money is promised, claimed, done and countersigned at the same moment. Each test holds one side up
//! with a lock of its own at the place where the other side must not slip through.

use alloy::{
    primitives::{Address, B256},
    signers::SignerSync,
};
use market::{
    ContentId,
    abi::{Order, Voucher},
    clock,
    db::{self, voucher::Channel},
    typed_data,
};
use serde_json::{Value, json};

use crate::support::{Api, Reply, User, deployment, job_id, order, spec, submission};

const PRICE: u128 = 1_000;

struct Pair {
    api: Api,
    requester: User,
    node: User,
    output: ContentId,
}

impl Pair {
    async fn new() -> Self {
        let api = Api::start().await;
        let node = api.node().await;
        api.blob(b"input").await;
        let output = api.blob(b"output").await;
        let requester = api.requester().await;
        Self { api, requester, node, output }
    }

    /// Hands in a signed order of this nonce, for `node` or for whoever comes.
    async fn submit(&self, node: Address, nonce: u64) -> B256 {
        self.try_submit(node, nonce).await.ok().job_id()
    }

    async fn try_submit(&self, node: Address, nonce: u64) -> Reply {
        let spec = spec(ContentId::of(b"input"));
        let order = Order { node, nonce, maxPrice: PRICE, ..order(self.requester.address(), &spec) };
        let mut body = submission(&order, &spec);
        let signature = self.requester.signer.sign_hash_sync(&job_id(&order)).unwrap();
        body["signature"] = json!(signature.to_string());
        self.api.post(&self.requester, "/lit-compute/jobs/submit", body).await
    }

    /// The node claims the job and hands its result in.
    async fn complete(&self, lease: &Reply) -> Reply {
        let body = self.node.completion(lease.job_id(), lease.int("fence"), self.output, PRICE);
        self.api.post(&self.node, &format!("/lit-compute/jobs/{}/complete", lease.job_id()), body).await
    }

    fn channel(&self) -> Channel {
        Channel { requester: self.requester.address(), node: self.node.address(), token: Address::ZERO }
    }

    fn voucher(&self, cumulative: u128, covered_nonce: u64) -> Voucher {
        let Channel { requester, node, token } = self.channel();
        Voucher { requester, node, token, cumulative, coveredNonce: covered_nonce }
    }

    fn countersigned(&self, cumulative: u128, covered_nonce: u64) -> Value {
        let digest = typed_data::voucher_digest(&self.voucher(cumulative, covered_nonce), &deployment().domain());
        json!({
            "voucher": {
                "requester": self.requester.name(),
                "node": self.node.name(),
                "token": Address::ZERO.to_checksum(None),
                "cumulative": cumulative.to_string(),
                "coveredNonce": covered_nonce.to_string(),
            },
            "signature": self.requester.signer.sign_hash_sync(&digest).unwrap().to_string(),
        })
    }

    async fn post(&self, cumulative: u128, covered_nonce: u64) -> Reply {
        let body = self.countersigned(cumulative, covered_nonce);
        self.api.post(&self.requester, "/lit-compute/vouchers", body).await
    }

    async fn kept(&self) -> i64 {
        sqlx::query_scalar("select count(*) from voucher").fetch_one(&self.api.pool).await.unwrap()
    }

    /// Waits until a statement of this test's database waits for a lock.
    async fn someone_waits(&self) {
        crate::support::eventually(async || {
            let waiting: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
            )
            .fetch_one(&self.api.pool)
            .await
            .unwrap();
            (waiting > 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_given_an_order_that_a_voucher_covers_at_that_moment() {
    let pair = Pair::new().await;
    pair.submit(Address::ZERO, 1).await;
    // A voucher is being handed in: it has the channel, and is about to be kept.
    let mut posting = pair.api.pool.begin().await.unwrap();
    db::voucher::lock(&mut posting, pair.channel()).await.unwrap();
    let claiming = pair.api.claim(&pair.node);
    let keeping = async {
        pair.someone_waits().await;
        let signer = pair.requester.address();
        db::voucher::insert(&mut posting, &pair.voucher(PRICE, 1), signer, &[1; 65], clock::now()).await.unwrap();
        posting.commit().await.unwrap();
    };
    let (claimed, ()) = tokio::join!(claiming, keeping);
    assert_eq!(claimed.status, 204, "it would have worked for nothing: {claimed:?}");
    // Another node can have it.
    let other = pair.api.node().await;
    assert_eq!(pair.api.claim(&other).await.ok().int("fence"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_waits_for_a_claim_under_way_and_then_finds_the_order_in_the_nodes_hands() {
    let pair = Pair::new().await;
    let done = pair.submit(pair.node.address(), 2).await;
    let lease = pair.api.claim(&pair.node).await.ok();
    assert_eq!(lease.job_id(), done);
    pair.complete(&lease).await.ok();
    pair.submit(Address::ZERO, 1).await;
    // A claim is under way: it has the channel, and its lease is not committed.
    let mut claiming = pair.api.pool.begin().await.unwrap();
    db::voucher::lock(&mut claiming, pair.channel()).await.unwrap();
    let posting = pair.post(PRICE, 2);
    let leasing = async {
        pair.someone_waits().await;
        sqlx::query(
            "insert into job_work (job_id, state, fence, attempts, node, leased_at, lease_expires_at, updated_at)
             select job_id, 'leased', 1, 0, $1, now(), now() + interval '1 minute', now()
             from signed_order where nonce = 1
             on conflict (job_id) do update set state = 'leased', fence = 1, node = excluded.node,
                 leased_at = excluded.leased_at, lease_expires_at = excluded.lease_expires_at",
        )
        .bind(pair.node.address().as_slice())
        .execute(&mut *claiming)
        .await
        .unwrap();
        claiming.commit().await.unwrap();
    };
    let (posted, ()) = tokio::join!(posting, leasing);
    posted.is_problem(409, "voucher_covers_unfinished", Some("voucher.coveredNonce"));
    assert_eq!(pair.kept().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_completed_while_a_voucher_is_weighed_is_not_covered_for_nothing() {
    let pair = Pair::new().await;
    for nonce in 1..=2 {
        pair.submit(pair.node.address(), nonce).await;
    }
    let first = pair.api.claim(&pair.node).await.ok();
    pair.complete(&first).await.ok();
    let second = pair.api.claim(&pair.node).await.ok();
    // Whoever looks at what is unfinished waits here, until the second job is done.
    let mut completing = pair.api.pool.begin().await.unwrap();
    sqlx::query("lock table job_work in access exclusive mode").execute(&mut *completing).await.unwrap();
    let posting = pair.post(PRICE, 2);
    let finishing = async {
        pair.someone_waits().await;
        sqlx::query(
            "update job_work set state = 'completed', lease_expires_at = null, leased_at = null where job_id = $1",
        )
        .bind(second.job_id().as_slice())
        .execute(&mut *completing)
        .await
        .unwrap();
        let completion = db::work::Completion {
            fence: market::job::Fence(1),
            node: pair.node.address(),
            output_cid: pair.output.to_string(),
            result_hash: pair.output.digest(),
            price: PRICE.into(),
            receipt_signature: vec![1; 65],
            assignment_expiry: 0,
            assignment_signature: Vec::new(),
            started_at: clock::now(),
            completed_at: clock::now(),
        };
        db::work::insert_completion(&mut completing, second.job_id(), Address::ZERO, &completion).await.unwrap();
        completing.commit().await.unwrap();
    };
    let (posted, ()) = tokio::join!(posting, finishing);
    posted.is_problem(422, "voucher_mismatch", Some("voucher.cumulative"));
    assert_eq!(pair.kept().await, 0);
    pair.post(2 * PRICE, 2).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_for_a_node_and_a_voucher_over_its_nonce_take_turns() {
    for _ in 0..4 {
        let pair = Pair::new().await;
        pair.submit(pair.node.address(), 3).await;
        let lease = pair.api.claim(&pair.node).await.ok();
        pair.complete(&lease).await.ok();
        let (submitted, posted) = tokio::join!(pair.try_submit(pair.node.address(), 2), pair.post(PRICE, 3));
        match (submitted.status.as_u16(), posted.status.as_u16()) {
            (200, 409) => posted.is_problem(409, "voucher_covers_unfinished", Some("voucher.coveredNonce")),
            (422, 200) => submitted.is_problem(422, "nonce_covered", Some("order.nonce")),
            other => panic!("{other:?}: {submitted:?} {posted:?}"),
        }
    }
}
