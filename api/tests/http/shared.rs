use serde_json::json;

use crate::support::{Api, eventually, node_id};
use market::{clock, db};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_ranked_by_what_they_have_done() {
    let api = Api::start().await;
    let (first, second) = (api.node().await, api.node().await);
    let output = api.blob(b"output").await;
    for node in [&first, &second, &first] {
        api.open_job().await;
        let lease = api.claim(node).await.ok();
        let path = format!("/lit-compute/jobs/{}/complete", lease.job_id());
        api.post(node, &path, node.completion(lease.job_id(), lease.int("fence"), output, 10)).await.ok();
    }
    let board = eventually(async || {
        let board = api.get("/lit-compute/leaderboard?limit=2").await.ok();
        (board.body["leaders"][0]["completedJobs"] == 2).then_some(board)
    })
    .await;
    assert_eq!(board.body["leaders"][0]["walletAddress"], first.name());
    assert_eq!(board.body["leaders"][1]["nodeId"], json!(node_id(second.address())));
    assert_eq!((&board.body["leaders"][1]["rank"], &board.body["leaders"][1]["completedJobs"]), (&json!(2), &json!(1)));
    api.get("/lit-compute/leaderboard?limit=0").await.is_problem(422, "invalid_parameter", Some("limit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_switch_off_says_so_and_comes_back() {
    let api = Api::start().await;
    let node = api.node().await;
    let switch = async |on: bool| {
        let mut connection = api.pool.acquire().await.unwrap();
        db::flag::set(&mut connection, "claims", on, clock::now()).await.unwrap();
        market::redis::cache::invalidate(&api.redis, "flags").await.unwrap();
    };
    assert_eq!(api.claim(&node).await.status, 204);
    assert_eq!(
        api.get("/lit-compute/features").await.ok().body["features"],
        json!({ "submissions": true, "claims": true })
    );
    switch(false).await;
    let refused = eventually(async || {
        let reply = api.claim(&node).await;
        (reply.status != 204).then_some(reply)
    })
    .await;
    refused.is_problem(503, "paused", None);
    assert_eq!(refused.headers["retry-after"], "30");
    let bulk = api.post(&node, "/lit-compute/jobs/claim/bulk", json!({ "count": 2 })).await;
    bulk.is_problem(503, "paused", None);
    // Only that.
    api.post(&node, "/lit-compute/jobs/submit", json!({})).await.is_problem(422, "invalid_field", Some("order"));
    switch(true).await;
    eventually(async || (api.claim(&node).await.status == 204).then_some(())).await;
}
