use alloy::{
    primitives::{Address, B256, Bytes},
    providers::ext::AnvilApi,
    signers::local::PrivateKeySigner,
};
use market::{
    ContentId, clock,
    db::{escrow, work},
    fold::{EscrowState, JobResult, Moment},
    typed_data,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    signed::anvil,
    support::{Api, MIN_STAKE, Reply, User, Wish, assigner, deployment, order, registration, spec},
};

/// An API that asks a chain about contract wallets.
async fn with_chain() -> Api {
    Api::with(Wish { rpc_url: Some(anvil().await.rpc_url().to_owned()), ..Wish::default() }).await
}

/// A node that holds a job, and an output.
async fn at_work() -> (Api, User, B256, ContentId) {
    let api = with_chain().await;
    let node = api.node().await;
    let output = api.blob(b"output").await;
    let job_id = api.open_job().await;
    assert_eq!(api.claim(&node).await.ok().job_id(), job_id);
    (api, node, job_id, output)
}

fn path(job_id: B256) -> String {
    format!("/lit-compute/jobs/{job_id}/complete")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_completes_the_job_and_makes_its_payment_due_once() {
    let (api, node, job_id, output) = at_work().await;
    let mut body = node.completion(job_id, 1, output, 900);
    body["resultHash"] = json!(output.digest());
    let done = api.post(&node, &path(job_id), body.clone()).await.ok();
    assert_eq!(done.text("status"), "completed");
    assert_eq!(done.body["payment"], json!({ "token": Address::ZERO.to_checksum(None), "amount": "900" }));

    let stored = work::completion(&mut api.pool.acquire().await.unwrap(), job_id).await.unwrap().unwrap();
    let jobs = escrow::jobs(&mut api.pool.acquire().await.unwrap(), &[job_id]).await.unwrap();
    assert_eq!(stored.assignment_expiry, jobs[&job_id].opened.as_ref().unwrap().order.deadline);
    let domain = deployment().domain();
    let digest = typed_data::assignment_digest(job_id, node.address(), stored.assignment_expiry, &domain);
    assert_eq!(typed_data::recover(&stored.assignment_signature, digest), Ok(assigner().address()));
    let receipt = typed_data::receipt_digest(job_id, 900, output.digest(), &domain);
    assert_eq!(typed_data::recover(&stored.receipt_signature, receipt), Ok(node.address()));

    let before = api.written().await;
    assert_eq!(before["payment_due"].as_array().unwrap().len(), 1);
    let again = api.post(&node, &path(job_id), body).await.ok();
    assert_eq!(again.body, done.body);
    let other = api.post(&node, &path(job_id), node.completion(job_id, 1, output, 901)).await;
    other.is_problem(409, "job_ended", None);
    assert_eq!(api.written().await, before);

    let job = api.get(&format!("/lit-compute/jobs/{job_id}")).await.ok();
    assert_eq!(job.text("status"), "completed");
    assert_eq!((job.text("outputCID"), job.text("price")), (output.to_string(), "900".to_owned()));
    assert_eq!((job.text("node"), job.text("resultHash")), (node.name(), output.digest().to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_completions_at_once_make_one_payment() {
    let (api, node, job_id, output) = at_work().await;
    let body = node.completion(job_id, 1, output, 900);
    let path = path(job_id);
    let replies = futures::future::join_all((0..10).map(|_| api.post(&node, &path, body.clone()))).await;
    for reply in replies {
        assert_eq!(reply.ok().text("status"), "completed");
    }
    let written = api.written().await;
    assert_eq!(written["payment_due"].as_array().unwrap().len(), 1);
    assert_eq!(written["job_attempt"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_result_is_told_and_changes_nothing() {
    let (api, node, job_id, output) = at_work().await;
    let other = api.node().await;
    let before = api.written().await;
    let missing = ContentId::of(b"never stored");
    let stranger = User { token: node.token.clone(), signer: PrivateKeySigner::random() };
    let good = node.completion(job_id, 1, output, 900);
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    let short = json!("0x1234");
    let cases = [
        (&other, other.completion(job_id, 1, output, 900), 403, "not_holder", None),
        (&node, node.completion(job_id, 0, output, 900), 409, "stale_fence", Some("fence")),
        (&node, node.completion(job_id, 2, output, 900), 409, "stale_fence", Some("fence")),
        (&node, node.completion(job_id, 1, output, 1_001), 422, "price_above_max", Some("price")),
        (&node, node.completion(job_id, 1, missing, 900), 422, "output_unknown", Some("outputCID")),
        (&node, stranger.completion(job_id, 1, output, 900), 422, "bad_receipt_signature", Some("receiptSignature")),
        (&node, with("price", json!("899")), 422, "bad_receipt_signature", Some("receiptSignature")),
        (&node, with("receiptSignature", short), 422, "bad_receipt_signature", Some("receiptSignature")),
        (&node, with("receiptSignature", json!("mine")), 422, "invalid_field", Some("receiptSignature")),
        (&node, with("resultHash", json!(missing.digest())), 422, "invalid_field", Some("resultHash")),
        (&node, with("price", json!("0.1 ETH")), 422, "invalid_field", Some("price")),
        (&node, with("price", json!(u128::MAX.to_string() + "0")), 422, "invalid_field", Some("price")),
        (&node, with("outputCID", json!("Qm")), 422, "invalid_field", Some("outputCID")),
        (&node, with("fence", json!("1")), 422, "invalid_field", Some("fence")),
    ];
    for (user, body, status, code, field) in cases {
        println!("{code} {field:?}");
        api.post(user, &path(job_id), body).await.is_problem(status, code, field);
    }
    let unknown = B256::repeat_byte(1);
    let reply = api.post(&node, &path(unknown), node.completion(unknown, 1, output, 900)).await;
    reply.is_problem(404, "job_not_found", Some("jobId"));
    let unclaimed = api.open_job().await;
    let reply = api.post(&node, &path(unclaimed), node.completion(unclaimed, 1, output, 900)).await;
    reply.is_problem(409, "not_leased", None);
    assert_eq!(api.written().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_orders_deadline_no_result_is_taken() {
    let (api, node, job_id, output) = at_work().await;
    api.sql("update escrow_job set deadline = now() - interval '1 second'").await;
    let before = api.written().await;
    let reply = api.post(&node, &path(job_id), node.completion(job_id, 1, output, 900)).await;
    reply.is_problem(409, "deadline_passed", None);
    assert_eq!(api.written().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_could_not_be_settled_in_time_is_refused() {
    let (api, node, job_id, output) = at_work().await;
    let body = node.completion(job_id, 1, output, 900);
    api.sql("update escrow_job set deadline = now() + interval '29 seconds'").await;
    let before = api.written().await;
    api.post(&node, &path(job_id), body.clone()).await.is_problem(409, "deadline_passed", None);
    assert_eq!(api.written().await, before);
    let job = api.get(&format!("/lit-compute/jobs/{job_id}")).await.ok();
    assert_eq!((job.text("status"), &job.body["outputCID"]), ("active".to_owned(), &Value::Null));

    api.sql("update escrow_job set deadline = now() + interval '45 seconds'").await;
    let done = api.post(&node, &path(job_id), body.clone()).await.ok();
    // What was taken stays taken: a repeat is answered whatever the time.
    api.sql("update escrow_job set deadline = now() - interval '1 second'").await;
    assert_eq!(api.post(&node, &path(job_id), body).await.ok().body, done.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_completes_nothing_even_before_it_is_taken_back() {
    let (api, node, job_id, output) = at_work().await;
    api.sql("update job_work set lease_expires_at = now()").await;
    let reply = api.post(&node, &path(job_id), node.completion(job_id, 1, output, 900)).await;
    assert!(["lease_expired", "not_leased"].contains(&reply.text("code").as_str()), "{reply:?}");
    assert_eq!(api.written().await["payment_due"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_settled_or_gone_takes_no_result() {
    let (api, node, job_id, output) = at_work().await;
    let mut jobs = escrow::jobs(&mut api.pool.acquire().await.unwrap(), &[job_id]).await.unwrap();
    let mut job = jobs.remove(&job_id).unwrap();
    job.state = EscrowState::Refunded;
    job.closed_when = Some(Moment { block: 2, tx: B256::repeat_byte(2), at: clock::now() });
    api.save_job(job_id, job.clone()).await;
    let body = node.completion(job_id, 1, output, 900);
    api.post(&node, &path(job_id), body.clone()).await.is_problem(409, "not_open", None);

    escrow::delete_jobs(&mut api.pool.acquire().await.unwrap(), &[job_id]).await.unwrap();
    api.post(&node, &path(job_id), body).await.is_problem(404, "job_not_found", Some("jobId"));
    assert_eq!(api.written().await["payment_due"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paid_job_shows_the_transaction() {
    let (api, node, job_id, output) = at_work().await;
    api.post(&node, &path(job_id), node.completion(job_id, 1, output, 900)).await.ok();
    let mut jobs = escrow::jobs(&mut api.pool.acquire().await.unwrap(), &[job_id]).await.unwrap();
    let mut job = jobs.remove(&job_id).unwrap();
    let paid = B256::repeat_byte(0x9a);
    job.state = EscrowState::Paid;
    job.result = Some(JobResult {
        node: node.address(),
        price: 900_u128.into(),
        token: Address::ZERO,
        result_hash: output.digest(),
        window: None,
    });
    job.closed_when = Some(Moment { block: 3, tx: paid, at: clock::now() });
    api.save_job(job_id, job).await;
    let seen = api.get(&format!("/lit-compute/jobs/{job_id}")).await.ok();
    assert_eq!((seen.text("status"), seen.text("closedTx")), ("paid".to_owned(), paid.to_string()));
    let payments = api.get(&format!("/lit-compute/nodes/{}/payments", node.name())).await.ok();
    assert_eq!(payments.body["payments"][0]["status"], "paid");
    assert_eq!(payments.body["payments"][0]["tx"], paid.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_names_its_node_needs_no_assignment() {
    let api = Api::start().await;
    let node = api.node().await;
    let output = api.blob(b"output").await;
    let spec = spec(ContentId::of(b"input"));
    let mut order = order(Address::repeat_byte(0xaa), &spec);
    (order.node, order.challengeWindow) = (node.address(), 0);
    let job_id = api.open(&order, &spec).await;
    api.claim(&node).await.ok();
    let done = api.post(&node, &path(job_id), node.completion(job_id, 1, output, 1_000)).await.ok();
    assert_eq!(done.body["assignment"], Value::Null);
    let stored = work::completion(&mut api.pool.acquire().await.unwrap(), job_id).await.unwrap().unwrap();
    assert_eq!((stored.assignment_expiry, stored.assignment_signature), (0, Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_wallet_says_itself_whether_a_receipt_is_its_own() {
    // PUSH4 0x1626ba7e PUSH1 0xe0 SHL PUSH1 0 MSTORE PUSH1 32 PUSH1 0 RETURN: takes everything for its own.
    let yes = "0x631626ba7e60e01b60005260206000f3";
    // The same, but for the last byte of the word.
    let no = "0x631626ba7f60e01b60005260206000f3";
    // Spends gas for ever.
    let greedy = "0x5b600056";
    let api = with_chain().await;
    let rpc = market::rpc::provider(&anvil().await.rpc_url().parse().unwrap());
    let wallet = Address::from(rand::random::<[u8; 20]>());
    let becomes = async |code: &str| rpc.anvil_set_code(wallet, code.parse::<Bytes>().unwrap()).await.unwrap();

    becomes(yes).await;
    let mut message = api.message(&PrivateKeySigner::random()).await;
    message.address = wallet;
    let body = json!({ "message": message.to_string(), "signature": "0x1234" });
    let signed_in = Reply::of(api.request(Method::POST, "/lit-compute/auth/verify", None).json(&body)).await.ok();
    let node = User { token: signed_in.text("token"), signer: PrivateKeySigner::random() };
    api.stake(wallet, MIN_STAKE).await;
    api.post(&node, "/lit-compute/nodes/register", registration(wallet)).await.ok();
    let output = api.blob(b"output").await;
    let mut jobs = Vec::new();
    for price in [1_000, 999, 998] {
        let spec = spec(ContentId::of(b"input"));
        jobs.push(
            api.open(&market::abi::Order { maxPrice: price, ..order(Address::repeat_byte(0xaa), &spec) }, &spec).await,
        );
        api.claim(&node).await.ok();
    }
    let result = |job: B256, signature: &[u8]| {
        json!({
            "jobId": job, "fence": 1, "outputCID": output, "price": "900",
            "receiptSignature": format!("0x{}", hex::encode(signature)),
        })
    };
    let complete = async |job: B256, signature: &[u8]| {
        let mut body = result(job, signature);
        body.as_object_mut().unwrap().remove("jobId");
        api.post(&node, &path(job), body).await
    };
    let before = api.written().await;
    for code in [no, greedy, "0x"] {
        becomes(code).await;
        let reply = complete(jobs[0], b"owners agree").await;
        reply.is_problem(422, "bad_receipt_signature", Some("receiptSignature"));
    }
    becomes(yes).await;
    let long = complete(jobs[0], &[1; 5000]).await;
    long.is_problem(422, "invalid_field", Some("receiptSignature"));
    assert_eq!(api.written().await, before);

    assert_eq!(complete(jobs[0], b"owners agree").await.ok().text("status"), "completed");
    let stored = work::completion(&mut api.pool.acquire().await.unwrap(), jobs[0]).await.unwrap().unwrap();
    assert_eq!((stored.node, stored.receipt_signature.as_slice()), (wallet, b"owners agree".as_slice()));
    let results = json!({ "results": [result(jobs[1], b"they do"), result(jobs[2], &[])] });
    let done = api.post(&node, "/lit-compute/jobs/complete/bulk", results).await.ok();
    for answer in done.body["results"].as_array().unwrap() {
        assert_eq!(answer["completed"]["status"], "completed", "{answer}");
    }
}
