use std::{collections::HashSet, time::Duration};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use market::{ContentId, abi::Order, clock, db, job::MAX_ATTEMPTS, typed_data};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Api, User, Wish, assigner, deployment, eventually, in_secs, job_id, order, spec};

const CLAIM: &str = "/lit-compute/jobs/claim";

fn no_redis() -> Wish {
    Wish { redis_url: Some("redis://127.0.0.1:9/".to_owned()), ..Wish::default() }
}

/// Makes every lease end now.
async fn end_leases(api: &Api) {
    api.sql("update job_work set lease_expires_at = now() where state = 'leased'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_has_all_that_the_node_needs() {
    let api = Api::start().await;
    let node = api.node().await;
    let spec = spec(ContentId::of(b"input"));
    let order = order(Address::repeat_byte(0xaa), &spec);
    let job_id = api.open(&order, &spec).await;
    let before = clock::now();
    let lease = api.claim(&node).await.ok();
    assert_eq!(lease.job_id(), job_id);
    assert_eq!((lease.int("fence"), lease.int("attempt")), (1, 1));
    assert_eq!(lease.body["spec"]["inputCID"], spec.inputCID);
    assert_eq!(lease.body["order"]["requester"], order.requester.to_checksum(None));
    let expires: DateTime<Utc> = lease.text("leaseExpiresAt").parse().unwrap();
    assert!((before + TimeDelta::seconds(59)..clock::now() + TimeDelta::seconds(61)).contains(&expires));

    let assignment = &lease.body["assignment"];
    let expiry = assignment["expiry"].as_u64().unwrap();
    assert!(expiry < in_secs(300), "an assignment must not outlast its lease by much");
    let digest = typed_data::assignment_digest(job_id, node.address(), expiry, &deployment().domain());
    let signature = hex::decode(&assignment["signature"].as_str().unwrap()[2..]).unwrap();
    assert_eq!(typed_data::recover(&signature, digest), Ok(assigner().address()));

    let job = api.get(&format!("/lit-compute/jobs/{job_id}")).await.ok();
    assert_eq!((job.text("status"), job.text("node")), ("active".to_owned(), node.name()));
    assert_eq!(api.claim(&node).await.status, 204);
    let key = api.redis.keys().job_status(job_id);
    eventually(async || (api.in_redis(&key).await["status"] == "active").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_given_only_what_is_meant_for_it() {
    let api = Api::start().await;
    let (node, other) = (api.node().await, api.node().await);
    let spec = spec(ContentId::of(b"input"));
    let requester = Address::repeat_byte(0xaa);
    let good = || order(requester, &spec);
    api.open(&Order { node: other.address(), ..good() }, &spec).await;
    api.open(&Order { assigner: Address::repeat_byte(1), ..good() }, &spec).await;
    api.open(&Order { deadline: in_secs(30), ..good() }, &spec).await;
    api.open(&Order { deadline: in_secs(-30), ..good() }, &spec).await;
    let mut unknown = spec.clone();
    unknown.operation = "mine".to_owned();
    api.open(&order(requester, &unknown), &unknown).await;
    assert_eq!(api.claim(&node).await.status, 204);

    let named = Order { node: node.address(), assigner: Address::ZERO, challengeWindow: 0, ..good() };
    let job_id = api.open(&named, &spec).await;
    let lease = api.claim(&node).await.ok();
    assert_eq!((lease.job_id(), &lease.body["assignment"]), (job_id, &Value::Null));

    let theirs = api.claim(&other).await.ok();
    assert_eq!(theirs.body["order"]["node"], other.name());
    assert_eq!(api.claim(&other).await.status, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_holds_no_more_than_its_capacity() {
    let api = Api::start().await;
    let node = api.node().await;
    for _ in 0..6 {
        api.open_job().await;
    }
    let claims = join_all((0..6).map(|_| api.claim(&node))).await;
    assert_eq!(claims.iter().filter(|claim| claim.status == 200).count(), 4);
    let mut fewer = crate::support::registration(node.address());
    fewer["capabilities"]["maxConcurrentJobs"] = json!(1);
    api.post(&node, "/lit-compute/nodes/register", fewer).await.ok();
    end_leases(&api).await;
    eventually(async || (api.claim(&node).await.status == 200).then_some(())).await;
    assert_eq!(api.claim(&node).await.status, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_claim_at_once_get_different_jobs() {
    let api = Api::start().await;
    let (one, other) = (api.node().await, api.node().await);
    let ids = HashSet::from([api.open_job().await, api.open_job().await]);
    let (first, second) = tokio::join!(api.claim(&one), api.claim(&other));
    assert_eq!(HashSet::from([first.ok().job_id(), second.ok().job_id()]), ids);
}

async fn fifty_claimers_share_nothing(api: &Api) {
    let nodes: Vec<User> = join_all((0..50).map(|_| api.node())).await;
    for _ in 0..40 {
        api.open_job().await;
    }
    let claims = join_all(nodes.iter().map(|node| api.post(node, CLAIM, json!({ "waitSecs": 2 })))).await;
    let leased: Vec<B256> = claims.iter().filter(|claim| claim.status == 200).map(|claim| claim.job_id()).collect();
    assert_eq!(leased.len(), 40, "every job must find a node");
    assert_eq!(leased.iter().collect::<HashSet<_>>().len(), 40, "no job may be held twice");
    assert_eq!(claims.iter().filter(|claim| claim.status == 204).count(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_nodes_that_claim_at_once_never_share_a_job() {
    fifty_claimers_share_nothing(&Api::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_need_no_redis() {
    fifty_claimers_share_nothing(&Api::with(no_redis()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priority_goes_first_with_and_without_redis() {
    for wish in [Wish::default(), no_redis()] {
        let api = Api::with(wish).await;
        let node = api.node().await;
        let first = api.open_job().await;
        let spec = spec(ContentId::of(b"input"));
        let order = order(Address::repeat_byte(0xaa), &spec);
        // Announced first: what Redis is told of a job is what Postgres says by then.
        let urgent = job_id(&order);
        sqlx::query(
            "insert into job_submission (job_id, requester, order_json, spec_json, priority, created_at)
             values ($1, decode(repeat('aa', 20), 'hex'), '{}', '{}', 500, now())",
        )
        .bind(urgent.as_slice())
        .execute(&api.pool)
        .await
        .unwrap();
        api.open(&order, &spec).await;
        let claimed = [api.claim(&node).await.ok().job_id(), api.claim(&node).await.ok().job_id()];
        assert_eq!(claimed, [urgent, first]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_returns_the_job_and_its_fence_is_refused() {
    let api = Api::start().await;
    let (slow, quick) = (api.node().await, api.node().await);
    let output = api.blob(b"output").await;
    let job_id = api.open_job().await;
    let stale = api.claim(&slow).await.ok();
    end_leases(&api).await;
    let lease = api.post(&quick, CLAIM, json!({ "waitSecs": 10 })).await.ok();
    assert_eq!((lease.job_id(), lease.int("fence"), lease.int("attempt")), (job_id, 2, 2));

    let before = api.written().await;
    let complete = format!("/lit-compute/jobs/{job_id}/complete");
    let late = slow.completion(job_id, stale.int("fence"), output, 1000);
    api.post(&slow, &complete, late).await.is_problem(403, "not_holder", None);
    assert_eq!(api.written().await, before);

    // The same node may hold it again; its earlier fence stays refused.
    end_leases(&api).await;
    let again = api.post(&slow, CLAIM, json!({ "waitSecs": 10 })).await.ok();
    assert_eq!(again.int("fence"), 3);
    let before = api.written().await;
    for (path, body) in [
        ("complete", slow.completion(job_id, 1, output, 1000)),
        ("renew", json!({ "fence": 1 })),
        ("fail", json!({ "fence": 1, "reason": "late", "retryable": true })),
    ] {
        let reply = api.post(&slow, &format!("/lit-compute/jobs/{job_id}/{path}"), body).await;
        reply.is_problem(409, "stale_fence", Some("fence"));
    }
    assert_eq!(api.written().await, before);
    api.post(&slow, &complete, slow.completion(job_id, 3, output, 1000)).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_leases_all_run_out_has_failed() {
    let api = Api::start().await;
    let node = api.node().await;
    let spec = spec(ContentId::of(b"input"));
    let named = Order { node: node.address(), ..order(Address::repeat_byte(0xaa), &spec) };
    let job_id = api.open(&named, &spec).await;
    for attempt in 1..=MAX_ATTEMPTS {
        let lease = api.post(&node, CLAIM, json!({ "waitSecs": 10 })).await.ok();
        assert_eq!(lease.int("attempt"), i64::from(attempt));
        end_leases(&api).await;
    }
    eventually(async || {
        let job = api.get(&format!("/lit-compute/jobs/{job_id}")).await.ok();
        (job.text("status") == "failed").then_some(())
    })
    .await;
    assert_eq!(api.claim(&node).await.status, 204);
    let node = api.get(&format!("/lit-compute/nodes/{}/status", node.name())).await.ok();
    assert_eq!(node.int("activeJobs"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_returns_as_soon_as_there_is_work() {
    for wish in [Wish::default(), no_redis()] {
        let api = Api::with(wish).await;
        let node = api.node().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let claiming = async {
            let reply = api.post(&node, CLAIM, json!({ "waitSecs": 20 })).await.ok();
            (reply.job_id(), Instant::now())
        };
        let opening = async {
            // Not a multiple of the second after which a waiting claim looks by itself.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            (api.open_job().await, Instant::now())
        };
        let ((claimed, at), (opened, since)) = tokio::join!(claiming, opening);
        assert_eq!(claimed, opened);
        assert!(at - since < Duration::from_millis(250), "{:?}", at - since);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_without_work_ends_in_time_or_when_the_process_stops() {
    let api = Api::start().await;
    let node = api.node().await;
    let started = Instant::now();
    assert_eq!(api.post(&node, CLAIM, json!({ "waitSecs": 1 })).await.status, 204);
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&started.elapsed()));
    let too_long = api.post(&node, CLAIM, json!({ "waitSecs": 31 })).await;
    too_long.is_problem(422, "invalid_field", Some("waitSecs"));

    let started = Instant::now();
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        api.app.shutdown.cancel();
    };
    let (reply, ()) = tokio::join!(api.post(&node, CLAIM, json!({ "waitSecs": 30 })), stopping);
    assert_eq!(reply.status, 204);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_answer_was_lost_is_given_again() {
    let api = Api::start().await;
    let node = api.node().await;
    let (first, second) = (api.open_job().await, api.open_job().await);
    let lost = api.claim(&node).await.ok();
    assert_eq!(lost.job_id(), first);
    // The node never saw it, and says that it holds nothing.
    let again = api.post(&node, CLAIM, json!({ "leases": [] })).await.ok();
    assert_eq!((again.job_id(), again.int("fence"), again.int("attempt")), (first, 1, 1));
    assert!(again.text("leaseExpiresAt") > lost.text("leaseExpiresAt"));
    let known = json!({ "leases": [{ "jobId": first, "fence": 1 }] });
    assert_eq!(api.post(&node, CLAIM, known).await.ok().job_id(), second);
    let known = json!({ "leases": [{ "jobId": first, "fence": 1 }, { "jobId": second, "fence": 1 }] });
    assert_eq!(api.post(&node, CLAIM, known).await.status, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_while_waiting_is_given_nothing() {
    let api = Api::start().await;
    let node = api.node().await;
    let waiting = api.post(&node, CLAIM, json!({ "waitSecs": 30 }));
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let job_id = api.open_job().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let job = api.get(&format!("/lit-compute/jobs/{job_id}")).await.ok();
    assert_eq!(job.text("status"), "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_lease_lasts_longer_and_so_does_its_assignment() {
    let api = Api::start().await;
    let (node, other) = (api.node().await, api.node().await);
    let job_id = api.open_job().await;
    let lease = api.claim(&node).await.ok();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let path = format!("/lit-compute/jobs/{job_id}/renew");
    let renewed = api.post(&node, &path, json!({ "fence": 1 })).await.ok();
    assert!(renewed.text("leaseExpiresAt") > lease.text("leaseExpiresAt"));
    let expiry = |reply: &crate::support::Reply| reply.body["assignment"]["expiry"].as_u64().unwrap();
    assert!(expiry(&renewed) > expiry(&lease));
    api.post(&other, &path, json!({ "fence": 1 })).await.is_problem(403, "not_holder", None);
    let unclaimed = format!("/lit-compute/jobs/{}/renew", api.open_job().await);
    api.post(&node, &unclaimed, json!({ "fence": 1 })).await.is_problem(409, "not_leased", None);
    let unknown = format!("/lit-compute/jobs/{}/renew", B256::repeat_byte(1));
    api.post(&node, &unknown, json!({ "fence": 1 })).await.is_problem(404, "job_not_found", Some("jobId"));
    api.post(&node, "/lit-compute/jobs/0x12/renew", json!({ "fence": 1 })).await.is_problem(
        422,
        "invalid_parameter",
        Some("jobId"),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_given_up_pauses_or_fails() {
    let api = Api::start().await;
    let (node, other) = (api.node().await, api.node().await);
    let job_id = api.open_job().await;
    let path = format!("/lit-compute/jobs/{job_id}/fail");
    api.claim(&node).await.ok();
    let body = json!({ "fence": 1, "reason": "out of memory", "retryable": true });
    api.post(&other, &path, body.clone()).await.is_problem(403, "not_holder", None);
    for reason in ["", "a\0b"] {
        let bad = json!({ "fence": 1, "reason": reason, "retryable": true });
        api.post(&node, &path, bad).await.is_problem(422, "invalid_field", Some("reason"));
    }
    let failed = api.post(&node, &path, body).await.ok();
    assert_eq!((failed.text("status"), failed.int("attempts")), ("pending".to_owned(), 1));
    assert_eq!(api.claim(&other).await.status, 204, "it pauses first");
    let job = api.get(&format!("/lit-compute/jobs/{job_id}")).await.ok();
    assert_eq!((job.text("status"), job.text("lastError")), ("pending".to_owned(), "out of memory".to_owned()));

    let lease = api.post(&other, CLAIM, json!({ "waitSecs": 10 })).await.ok();
    assert_eq!((lease.job_id(), lease.int("fence")), (job_id, 2));
    let body = json!({ "fence": 2, "reason": "the input is no such thing", "retryable": false });
    api.post(&other, &path, body).await.ok();
    let again = api.post(&node, CLAIM, json!({ "waitSecs": 10 })).await.ok();
    assert_eq!((again.job_id(), again.int("fence")), (job_id, 3), "a node that gave it back may try again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_ends_no_job_that_others_could_do() {
    let api = Api::start().await;
    let nodes = join_all((0..MAX_ATTEMPTS).map(|_| api.node())).await;
    let job_id = api.open_job().await;
    let path = format!("/lit-compute/jobs/{job_id}/fail");
    for (node, attempt) in nodes.iter().zip(1..=MAX_ATTEMPTS) {
        let lease = api.post(node, CLAIM, json!({ "waitSecs": 10 })).await.ok();
        assert_eq!(lease.int("attempt"), i64::from(attempt));
        let body = json!({ "fence": attempt, "reason": "no", "retryable": false });
        let failed = api.post(node, &path, body).await.ok();
        assert_eq!(failed.text("status"), if attempt < MAX_ATTEMPTS { "pending" } else { "failed" });
        api.sql("update job_work set not_before = null").await;
        assert_eq!(api.claim(node).await.status, 204, "it is given to others only");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_keeps_losing_a_job_leaves_it_to_others() {
    for wish in [Wish::default(), no_redis()] {
        let api = Api::with(wish).await;
        let node = api.node().await;
        let job_id = api.open_job().await;
        for fence in 1..=3 {
            assert_eq!(api.claim(&node).await.ok().job_id(), job_id);
            let body = json!({ "fence": fence, "reason": "busy", "retryable": true });
            api.post(&node, &format!("/lit-compute/jobs/{job_id}/fail"), body).await.ok();
            api.sql("update job_work set not_before = null").await;
        }
        assert_eq!(api.claim(&node).await.status, 204);
        assert_eq!(api.claim(&api.node().await).await.ok().job_id(), job_id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_named_node_finds_impossible_has_failed() {
    let api = Api::start().await;
    let node = api.node().await;
    let spec = spec(ContentId::of(b"input"));
    let named = Order { node: node.address(), ..order(Address::repeat_byte(0xaa), &spec) };
    let job_id = api.open(&named, &spec).await;
    api.claim(&node).await.ok();
    let body = json!({ "fence": 1, "reason": "the input is no such thing", "retryable": false });
    let failed = api.post(&node, &format!("/lit-compute/jobs/{job_id}/fail"), body).await.ok();
    assert_eq!((failed.text("status"), &failed.body["notBefore"]), ("failed".to_owned(), &Value::Null));
    assert_eq!(api.claim(&node).await.status, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_waits_for_its_input() {
    for wish in [Wish::default(), no_redis()] {
        let api = Api::with(wish).await;
        let node = api.node().await;
        let spec = spec(ContentId::of(b"comes later"));
        let job_id = api.open_without_input(&order(Address::repeat_byte(0xaa), &spec), &spec).await;
        assert_eq!(api.claim(&node).await.status, 204);
        api.blob(b"comes later").await;
        assert_eq!(api.claim(&node).await.ok().job_id(), job_id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_job_a_reorg_took_away_is_not_given_again() {
    let api = Api::start().await;
    let node = api.node().await;
    let gone = api.open_job().await;
    assert_eq!(api.claim(&node).await.ok().job_id(), gone);
    db::escrow::delete_jobs(&mut api.pool.acquire().await.unwrap(), &[gone]).await.unwrap();
    let nothing = json!({ "leases": [] });
    assert_eq!(api.post(&node, CLAIM, nothing.clone()).await.status, 204);
    let next = api.open_job().await;
    assert_eq!(api.post(&node, CLAIM, nothing).await.ok().job_id(), next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_is_renewed_for_ever() {
    let api = Api::start().await;
    let node = api.node().await;
    let job_id = api.open_job().await;
    api.claim(&node).await.ok();
    let path = format!("/lit-compute/jobs/{job_id}/renew");
    api.sql("update job_work set leased_at = now() - interval '24 hours' + interval '20 seconds'").await;
    let renewed = api.post(&node, &path, json!({ "fence": 1 })).await.ok();
    let expires: DateTime<Utc> = renewed.text("leaseExpiresAt").parse().unwrap();
    assert!(expires < clock::now() + TimeDelta::seconds(21), "{expires}");
    api.sql("update job_work set leased_at = now() - interval '24 hours', lease_expires_at = now()").await;
    let refused = api.post(&node, &path, json!({ "fence": 1 })).await;
    assert_eq!(refused.status, 409);
    assert!(["lease_expired", "not_leased"].contains(&refused.text("code").as_str()), "{refused:?}");
}
