use alloy::primitives::B256;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Api, MIN_STAKE, OPERATION, Reply, eventually, node_id, registration};

const REGISTER: &str = "/lit-compute/nodes/register";
const HEARTBEAT: &str = "/lit-compute/nodes/heartbeat";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_staked_wallet_registers_and_is_seen_by_id_and_by_address() {
    let api = Api::start().await;
    let node = api.node().await;
    let id = node_id(node.address());
    for name in [id.to_string(), node.name()] {
        let seen = api.get(&format!("/lit-compute/nodes/{name}/status")).await.ok();
        assert_eq!(seen.text("nodeId"), id.to_string());
        assert_eq!(seen.text("walletAddress"), node.name());
        assert_eq!(seen.text("status"), "online");
        assert_eq!(seen.text("stake"), MIN_STAKE.to_string());
        assert_eq!(seen.body["supportedOperations"], json!([OPERATION, "decrypt"]));
        assert_eq!(api.get(&format!("/lit-compute/nodes/{name}/jobs")).await.ok().body["jobs"], json!([]));
        assert_eq!(api.get(&format!("/lit-compute/nodes/{name}/payments")).await.ok().body["payments"], json!([]));
    }
    let listed = api.get("/lit-compute/nodes?limit=1").await.ok();
    assert_eq!(listed.body["nodes"][0]["nodeId"], id.to_string());
    assert_eq!(listed.text("next"), node.name());
    let rest = api.get(&format!("/lit-compute/nodes?cursor={}", node.name())).await.ok();
    assert_eq!(rest.body, json!({ "nodes": [], "next": null }));

    // The projector tells Redis, under the shared names.
    eventually(async || {
        let available = api.in_redis(&api.redis.keys().nodes_available()).await;
        (available == json!([id])).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_a_staked_node_cannot_act_as_one() {
    let api = Api::start().await;
    let user = api.user().await;
    let before = api.written().await;
    let body = registration(user.address());
    let claim = "/lit-compute/jobs/claim";
    for (path, body) in [(REGISTER, &body), (HEARTBEAT, &json!({})), (claim, &json!({}))] {
        api.post(&user, path, body.clone()).await.is_problem(403, "node_not_registered", Some("walletAddress"));
    }
    api.stake(user.address(), MIN_STAKE - 1).await;
    for (path, body) in [(REGISTER, &body), (HEARTBEAT, &json!({})), (claim, &json!({}))] {
        api.post(&user, path, body.clone()).await.is_problem(403, "insufficient_stake", Some("walletAddress"));
    }
    api.stake(user.address(), MIN_STAKE).await;
    for path in [HEARTBEAT, claim] {
        api.post(&user, path, json!({})).await.is_problem(403, "profile_missing", None);
    }
    let other = api.user().await;
    let reply = api.post(&user, REGISTER, registration(other.address())).await;
    reply.is_problem(403, "wallet_mismatch", Some("walletAddress"));
    // The sign-in of `other` is all that was written.
    let mut after = api.written().await;
    after["session"] = json!(1);
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_registration_is_refused_by_field() {
    let api = Api::start().await;
    let user = api.user().await;
    api.stake(user.address(), MIN_STAKE).await;
    let good = registration(user.address());
    let before = api.written().await;
    // The checksum of no address is all upper case and has a letter in every place.
    let wrong_checksum = format!("0x{}", "A".repeat(40));
    let cases: [(&str, Value, &str, &str); 9] = [
        ("/walletAddress", json!("0x1234"), "invalid_field", "walletAddress"),
        ("/walletAddress", json!(wrong_checksum), "invalid_field", "walletAddress"),
        ("/walletAddress", json!(7), "invalid_field", "walletAddress"),
        ("/publicKey", json!("0x12"), "public_key_mismatch", "publicKey"),
        ("/publicKey", json!("age1xyz"), "invalid_field", "publicKey"),
        ("/capabilities/maxConcurrentJobs", json!(0), "invalid_field", "capabilities.maxConcurrentJobs"),
        ("/capabilities/maxConcurrentJobs", json!(1.5), "invalid_field", "capabilities.maxConcurrentJobs"),
        ("/capabilities/supportedOperations", json!([]), "invalid_field", "capabilities.supportedOperations"),
        (
            "/capabilities/supportedOperations",
            json!([OPERATION, "mine"]),
            "invalid_field",
            "capabilities.supportedOperations[1]",
        ),
    ];
    for (pointer, value, code, field) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        api.post(&user, REGISTER, bad).await.is_problem(422, code, Some(field));
    }
    assert_eq!(api.written().await, before);
    let mut lower = good;
    lower["walletAddress"] = json!(user.name().to_lowercase());
    api.post(&user, REGISTER, lower).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_renews_what_the_node_holds_and_tells_what_it_lost() {
    let api = Api::start().await;
    let (node, other) = (api.node().await, api.node().await);
    let (mine, theirs, unclaimed) = (api.open_job().await, api.open_job().await, api.open_job().await);
    let lease = api.claim(&node).await.ok();
    assert_eq!(lease.job_id(), mine);
    assert_eq!(api.claim(&other).await.ok().job_id(), theirs);
    let unknown = B256::repeat_byte(9);
    let leases = [(mine, 1), (theirs, 1), (unclaimed, 1), (unknown, 1)];
    let leases: Vec<Value> = leases.iter().map(|(id, fence)| json!({ "jobId": id, "fence": fence })).collect();
    let reply = api.post(&node, HEARTBEAT, json!({ "leases": leases })).await.ok();
    assert_eq!(reply.text("nodeId"), node_id(node.address()).to_string());
    let renewed = reply.body["renewed"].as_array().unwrap();
    assert_eq!(renewed.len(), 1);
    assert_eq!(renewed[0]["jobId"], mine.to_string());
    assert!(renewed[0]["leaseExpiresAt"].as_str().unwrap() > lease.text("leaseExpiresAt").as_str());
    let mut lost: Vec<(String, String)> = reply.body["lost"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lost| (lost["jobId"].as_str().unwrap().to_owned(), lost["code"].as_str().unwrap().to_owned()))
        .collect();
    lost.sort();
    let mut expected = vec![
        (theirs.to_string(), "not_holder".to_owned()),
        (unclaimed.to_string(), "not_leased".to_owned()),
        (unknown.to_string(), "job_not_found".to_owned()),
    ];
    expected.sort();
    assert_eq!(lost, expected);

    let stale = api.post(&node, HEARTBEAT, json!({ "leases": [{ "jobId": mine, "fence": 0 }] })).await.ok();
    assert_eq!(stale.body["lost"][0]["code"], "stale_fence");
    let malformed = json!({ "leases": [{ "jobId": mine, "fence": 1 }, { "jobId": "0x12", "fence": 1 }] });
    api.post(&node, HEARTBEAT, malformed).await.is_problem(422, "invalid_field", Some("leases[1].jobId"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_names_no_more_leases_than_a_node_can_have() {
    let api = Api::start().await;
    let node = api.node().await;
    let lease = json!({ "jobId": B256::repeat_byte(9), "fence": 1 });
    let before = api.written().await;
    for count in [101, 1001] {
        let reply = api.post(&node, HEARTBEAT, json!({ "leases": vec![lease.clone(); count] })).await;
        reply.is_problem(422, "invalid_field", Some("leases"));
    }
    assert_eq!(api.written().await, before);
    let reply = api.post(&node, HEARTBEAT, json!({ "leases": vec![lease; 100] })).await.ok();
    assert_eq!(reply.body["lost"].as_array().unwrap().len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_offline() {
    let api = Api::start().await;
    let node = api.node().await;
    api.sql("update node_profile set last_heartbeat_at = last_heartbeat_at - interval '6 minutes'").await;
    let path = format!("/lit-compute/nodes/{}/status", node.name());
    assert_eq!(api.get(&path).await.ok().text("status"), "offline");
    api.post(&node, HEARTBEAT, json!({})).await.ok();
    assert_eq!(api.get(&path).await.ok().text("status"), "online");
    api.stake(node.address(), MIN_STAKE - 1).await;
    assert_eq!(api.get(&path).await.ok().text("status"), "unstaked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_nodes_are_not_found_and_malformed_names_are_told() {
    let api = Api::start().await;
    let address = api.user().await.name();
    for name in [address.as_str(), &B256::repeat_byte(5).to_string()] {
        for what in ["status", "jobs", "payments"] {
            api.get(&format!("/lit-compute/nodes/{name}/{what}")).await.is_problem(404, "node_not_found", Some("id"));
        }
    }
    for name in ["12", "0xzz", &"ab".repeat(33)] {
        let reply = api.get(&format!("/lit-compute/nodes/{name}/status")).await;
        reply.is_problem(422, "invalid_parameter", Some("id"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completed_job_shows_among_the_nodes_jobs_and_payments() {
    let api = Api::start().await;
    let node = api.node().await;
    let output = api.blob(b"output").await;
    let mut done = Vec::new();
    for _ in 0..3 {
        let job_id = api.open_job().await;
        let fence = api.claim(&node).await.ok().int("fence");
        let path = format!("/lit-compute/jobs/{job_id}/complete");
        api.post(&node, &path, node.completion(job_id, fence, output, 900)).await.ok();
        done.push(job_id.to_string());
    }
    done.reverse();
    let base = format!("/lit-compute/nodes/{}", node_id(node.address()));
    let jobs = api.get(&format!("{base}/jobs?status=completed")).await.ok();
    let listed: Vec<&str> =
        jobs.body["jobs"].as_array().unwrap().iter().map(|job| job["jobId"].as_str().unwrap()).collect();
    assert_eq!(listed, done);
    let mut path = format!("{base}/payments?limit=2");
    let mut paged = Vec::new();
    loop {
        let page = api.get(&path).await.ok();
        for payment in page.body["payments"].as_array().unwrap() {
            assert_eq!((&payment["amount"], &payment["status"]), (&json!("900"), &json!("due")));
            paged.push(payment["jobId"].as_str().unwrap().to_owned());
        }
        let Some(next) = page.body["next"].as_str() else { break };
        path = format!("{base}/payments?limit=2&cursor={next}");
    }
    assert_eq!(paged, done);
    let unfiltered =
        Reply::of(api.request(Method::GET, "/lit-compute/jobs", None).query(&[("node", node.name())])).await;
    assert_eq!(unfiltered.ok().body["jobs"].as_array().unwrap().len(), 3);
}
