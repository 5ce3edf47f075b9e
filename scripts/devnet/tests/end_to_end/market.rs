//! What the command line tells of the market, and asks of it.

use serde_json::{Value, json};

use crate::stage::Stage;

#[tokio::test]
async fn a_failed_job_is_tried_anew_and_everyone_sees_how_the_market_does() {
    let stage = Stage::new().await;
    // Nothing that a key was made for, so no node will ever decrypt it.
    let job = stage.submit("decrypt", b"not encrypted", &["--min-reputation", "1", "--not-before", "1"]).await;
    let job = job.to_string();
    let failed = async || loop {
        let answer = stage.get(&format!("/lit-compute/jobs/{job}")).await.unwrap_or_default();
        if answer["status"] == "failed" {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let told = failed().await;
    assert_eq!(told["minReputation"], 1);
    assert!(told["notBefore"].is_string(), "{told}");

    // The node has said what it does not work for.
    let node = stage.get(&format!("/lit-compute/nodes/{}/status", stage.node())).await.unwrap();
    let prices = node["minPrices"].as_array().unwrap();
    let native = |price: &&Value| price["token"] == "0x0000000000000000000000000000000000000000";
    let operations: Vec<_> =
        prices.iter().filter(native).map(|price| (&price["operation"], &price["amount"])).collect();
    assert_eq!(operations.len(), 3, "{prices:?}");
    assert!(operations.iter().all(|(_, amount)| **amount == "1"), "{prices:?}");

    let dead = stage.requester.run(["jobs", "--status", "failed"]).await.unwrap();
    assert_eq!(dead.text("jobId").unwrap(), job);
    let refused = stage.operator.run(["redrive", &job]).await.unwrap_err().to_string();
    assert!(refused.contains("wallet_mismatch"), "{refused}");
    let again = stage.requester.run(["redrive", &job]).await.unwrap();
    assert_eq!(again.result().unwrap(), &json!({ "command": "redrive", "jobId": job, "status": "pending" }));
    assert_eq!(failed().await["jobId"], job);

    let unknown = format!("0x{}", "11".repeat(32));
    let refused = stage.requester.run(["redrive", &unknown, &job]).await.unwrap_err().to_string();
    assert!(
        refused.contains("job_not_found"),
        "one refusal is the command's, whatever becomes of the others: {refused}"
    );
    assert_eq!(failed().await["jobId"], job);
    stage.encrypt(b"well", &["--node", &stage.node().to_string()]).await;

    let stats = stage.requester.run(["stats"]).await.unwrap();
    assert!(stats.result().unwrap()["total"].as_i64().unwrap() >= 2, "{stats:?}");
    let mut board = Value::Null;
    for _ in 0..200 {
        board = stage.requester.run(["leaderboard", "--limit", "1"]).await.unwrap().result().unwrap().clone();
        if !board["leaders"].as_array().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(board["leaders"][0]["walletAddress"], stage.node().to_string());
    let features = stage.requester.run(["features"]).await.unwrap();
    assert_eq!(features.result().unwrap(), &json!({ "features": { "claims": true, "submissions": true } }));
}
