use std::collections::BTreeSet;

use alloy::primitives::Address;
use devnet::{Anvil, AnvilOptions};
use littoral_api::openapi::operations;
use reqwest::Method;
use serde_json::{Value, json};
use utoipa::openapi::HttpMethod;

use crate::support::{Api, Reply, Wish, assigner, set_cursor};

/// Every route there is. Written out, so that none comes or goes unnoticed.
const ROUTES: [&str; 43] = [
    "GET /",
    "GET /api/status",
    "GET /health/live",
    "GET /health/ready",
    "GET /ipfs/{cid}",
    "GET /lit-compute/accounts/{address}",
    "GET /lit-compute/auth/session",
    "GET /lit-compute/chain",
    "GET /lit-compute/features",
    "GET /lit-compute/jobs",
    "GET /lit-compute/jobs/pending/list",
    "GET /lit-compute/jobs/stats",
    "GET /lit-compute/jobs/{jobId}",
    "GET /lit-compute/jobs/{jobId}/events",
    "GET /lit-compute/leaderboard",
    "GET /lit-compute/nodes",
    "GET /lit-compute/nodes/{id}/jobs",
    "GET /lit-compute/nodes/{id}/payments",
    "GET /lit-compute/nodes/{id}/status",
    "GET /lit-compute/nodes/{id}/vouchers",
    "GET /lit-compute/nodes/{nodeId}/events",
    "GET /lit-compute/vouchers",
    "GET /lit-compute/vouchers/next",
    "GET /metrics",
    "HEAD /ipfs/{cid}",
    "POST /lit-compute/auth/logout",
    "POST /lit-compute/auth/nonce",
    "POST /lit-compute/auth/verify",
    "POST /lit-compute/jobs/claim",
    "POST /lit-compute/jobs/claim/bulk",
    "POST /lit-compute/jobs/complete/bulk",
    "POST /lit-compute/jobs/submit",
    "POST /lit-compute/jobs/submit/bulk",
    "POST /lit-compute/jobs/{jobId}/cancel",
    "POST /lit-compute/jobs/{jobId}/complete",
    "POST /lit-compute/jobs/{jobId}/fail",
    "POST /lit-compute/jobs/{jobId}/redrive",
    "POST /lit-compute/jobs/{jobId}/renew",
    "POST /lit-compute/nodes/heartbeat",
    "POST /lit-compute/nodes/register",
    "POST /lit-compute/realtime/token",
    "POST /lit-compute/vouchers",
    "PUT /lit-compute/blobs",
];

fn method_of(method: &HttpMethod) -> Method {
    match method {
        HttpMethod::Put => Method::PUT,
        HttpMethod::Post => Method::POST,
        HttpMethod::Head => Method::HEAD,
        _ => Method::GET,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_lists_every_route_and_every_route_is_served() {
    let api = Api::start().await;
    let described: BTreeSet<String> = operations(&api.router_description)
        .iter()
        .map(|(method, path)| format!("{} {path}", method_of(method)))
        .collect();
    assert_eq!(described, ROUTES.iter().map(|route| (*route).to_owned()).collect());
    for (method, path) in operations(&api.router_description) {
        let path = path
            .replace("{jobId}", "x")
            .replace("{id}", "x")
            .replace("{nodeId}", "x")
            .replace("{cid}", "x")
            .replace("{address}", "x");
        let reply = Reply::of(api.request(method_of(&method), &path, None)).await;
        assert_ne!(reply.status, 405, "{path}");
        assert_ne!(reply.body["code"], "no_route", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_whole() {
    let api = Api::start().await;
    let document = api.get("/openapi.json").await.ok().body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    let codes = document["components"]["schemas"]["ProblemCode"]["enum"].as_array().unwrap();
    assert!(codes.contains(&json!("stale_fence")) && codes.contains(&json!("price_above_deposit")));
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is referred to and not there");
    }
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("500"), "{method} {path}");
            let takes_json = operation["requestBody"]["content"].get("application/json").is_some();
            assert!(!takes_json || responses.contains_key("422"), "{method} {path}");
            assert_eq!(
                operation.get("security").is_some(),
                responses.contains_key("401") && path != "/lit-compute/auth/verify",
                "{method} {path}"
            );
        }
    }
    let submit = &document["paths"]["/lit-compute/jobs/submit"]["post"];
    assert_eq!(submit["parameters"][0]["name"], "Idempotency-Key");
    let refused = &submit["responses"]["429"];
    assert_eq!(refused["content"]["application/problem+json"]["schema"]["$ref"], "#/components/schemas/Problem");
    for header in ["RateLimit", "RateLimit-Policy", "Retry-After"] {
        assert!(refused["headers"][header].is_object(), "{header}");
    }
    assert!(submit["responses"]["409"]["description"].as_str().unwrap().contains("`idempotency_in_flight`"));
    assert!(document["paths"]["/health/live"]["get"]["responses"].get("429").is_none());
    assert_eq!(
        document["components"]["schemas"]["Order"]["properties"]["maxPrice"]["$ref"],
        "#/components/schemas/Amount"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_shown_on_a_page_that_needs_no_other_server() {
    let api = Api::start().await;
    let page = async |path: &str| {
        let answer = api.request(Method::GET, path, None).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.text().await.unwrap()
    };
    let html = page("/docs/").await;
    assert!(html.contains("swagger-ui") && !html.contains("https://"), "{html}");
    assert!(page("/docs/swagger-initializer.js").await.contains("\"/openapi.json\""));
    assert!(page("/docs/swagger-ui-bundle.js").await.len() > 100_000);
    assert!(page("/docs").await.contains("swagger-ui"), "without the slash too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_is_a_problem() {
    let api = Api::start().await;
    let user = api.user().await;
    api.get("/nowhere").await.is_problem(404, "no_route", None);
    api.get("/lit-compute/nowhere").await.is_problem(404, "no_route", None);
    let wrong = Reply::of(api.request(Method::DELETE, "/lit-compute/jobs", None)).await;
    wrong.is_problem(405, "method_not_allowed", None);
    assert_eq!(wrong.headers["allow"], "GET,HEAD");

    let register = || api.request(Method::POST, "/lit-compute/nodes/register", Some(&user));
    let typed = |kind: &'static str, body: &'static str| register().header("content-type", kind).body(body);
    Reply::of(typed("text/plain", "{}")).await.is_problem(415, "unsupported_media_type", None);
    Reply::of(register().body("{}")).await.is_problem(415, "unsupported_media_type", None);
    Reply::of(typed("application/json", "{\"wallet")).await.is_problem(400, "invalid_json", None);
    Reply::of(typed("application/json", "")).await.is_problem(400, "invalid_json", None);
    Reply::of(typed("application/json; charset=utf-8", "{}")).await.is_problem(
        422,
        "invalid_field",
        Some("walletAddress"),
    );
    Reply::of(typed("application/json", "[1]")).await.is_problem(422, "invalid_field", Some("[0]"));
    let large = format!("{{\"walletAddress\":\"{}\"}}", "x".repeat(2_000_000));
    let large = register().header("content-type", "application/json").body(large);
    Reply::of(large).await.is_problem(413, "body_too_large", None);

    let job = "/lit-compute/jobs";
    api.get(&format!("{job}/0x12")).await.is_problem(422, "invalid_parameter", Some("jobId"));
    api.get(&format!("{job}/{}", "ab".repeat(32))).await.is_problem(422, "invalid_parameter", Some("jobId"));
    api.get(&format!("{job}/%ff")).await.is_problem(422, "invalid_parameter", Some("jobId"));
    let unknown = format!("{job}/0x{}", "ab".repeat(32));
    api.get(&unknown).await.is_problem(404, "job_not_found", Some("jobId"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_shows_what_the_indexer_has_read() {
    let api = Api::start().await;
    let owner = api.requester().await;
    let account = api.get(&format!("/lit-compute/accounts/{}", owner.name())).await.ok();
    let zero = Address::ZERO.to_checksum(None);
    let balance = json!({ "token": zero, "free": "1000000", "thawing": "0", "thawEnd": null, "confirmation": null });
    let bound = json!({ "token": zero, "promised": "0", "reserved": "0", "available": "1000000", "channels": [] });
    assert_eq!(
        account.body,
        json!({ "address": owner.name(), "balances": [balance], "earned": [], "accounts": [bound] })
    );
    for bad in ["0x12", "vitalik.eth", &format!("0x{}", "A".repeat(40))] {
        let reply = api.get(&format!("/lit-compute/accounts/{bad}")).await;
        reply.is_problem(422, "invalid_parameter", Some("address"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chain_is_described() {
    let api = Api::start().await;
    let chain = api.get("/lit-compute/chain").await.ok();
    assert_eq!(chain.int("chainId"), 31337);
    assert_eq!(chain.text("assigner"), assigner().address().to_checksum(None));
    assert_eq!((chain.text("minStake"), &chain.body["indexed"]), ("1000".to_owned(), &Value::Null));
}

fn check<'a>(reply: &'a Reply, name: &str) -> &'a Value {
    reply.body["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_says_what_is_wrong() {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let api = Api::with(Wish { rpc_url: Some(anvil.rpc_url().to_owned()), ..Wish::default() }).await;
    assert_eq!(api.get("/health/live").await.status, 200);

    let ready = api.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    assert_eq!(check(&ready, "indexer")["detail"], "has not begun");
    assert_eq!(check(&ready, "postgres")["ok"], true);

    // A quiet chain: the last block is old, and nothing is missing.
    set_cursor(&api, 0, 1_000_000_000).await;
    let ready = api.get("/health/ready").await;
    assert_eq!(ready.status, 200, "{ready:?}");

    let provider = market::rpc::provider(&anvil.rpc_url().parse().unwrap());
    alloy::providers::ext::AnvilApi::anvil_mine(&provider, Some(3), None).await.unwrap();
    assert_eq!(api.get("/health/ready").await.status, 200, "blocks of this moment are no lag");
    alloy::providers::ext::AnvilApi::anvil_set_time(&provider, 1_000_000).await.ok();

    api.sql("delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)").await;
    let ready = api.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    assert_eq!(check(&ready, "postgres")["detail"], "1 migrations are not applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexer_that_is_behind_makes_the_api_unready() {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let wish = Wish {
        rpc_url: Some(anvil.rpc_url().to_owned()),
        settings: Some(|settings| settings.max_index_lag = chrono::TimeDelta::seconds(1)),
        ..Wish::default()
    };
    let api = Api::with(wish).await;
    set_cursor(&api, 0, 1_000_000_000).await;
    let provider = market::rpc::provider(&anvil.rpc_url().parse().unwrap());
    alloy::providers::ext::AnvilApi::anvil_mine(&provider, Some(1), None).await.unwrap();
    crate::support::eventually(async || {
        let ready = api.get("/health/ready").await;
        (ready.status == 503 && check(&ready, "indexer")["ok"] == false).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_tells_whether_redis_is_there() {
    let api = Api::start().await;
    let root = api.get("/").await.ok();
    assert_eq!((root.text("redis"), root.int("worker")), ("connected".to_owned(), std::process::id().into()));
    let status = api.get("/api/status").await.ok();
    assert_eq!(status.body["redis"], true);
    assert!(status.body["uptime"].as_f64().unwrap() >= 0.0);

    let without = Api::with(Wish { redis_url: Some("redis://127.0.0.1:9/".to_owned()), ..Wish::default() }).await;
    assert_eq!(without.get("/").await.ok().text("redis"), "disconnected");
    assert_eq!(without.get("/api/status").await.ok().body["redis"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_measured_and_named() {
    let api = Api::start().await;
    let named = Reply::of(api.request(Method::GET, "/health/live", None).header("x-request-id", "abc-1")).await;
    assert_eq!(named.headers["x-request-id"], "abc-1");
    for bad in ["", "a b", &"x".repeat(65)] {
        let reply = Reply::of(api.request(Method::GET, "/health/live", None).header("x-request-id", bad)).await;
        assert_eq!(reply.headers["x-request-id"].len(), 16, "{bad:?}");
    }
    let metrics = api.request(Method::GET, "/metrics", None).send().await.unwrap().text().await.unwrap();
    let line = "littoral_http_request_seconds_count{method=\"GET\",route=\"/health/live\",status=\"200\"}";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_origins_that_were_named_may_call_from_a_browser() {
    let origin = "https://app.example";
    let api = Api::with_settings(|settings| settings.cors_origins = vec!["https://app.example".parse().unwrap()]).await;
    let ask = |api: &Api, origin: &'static str| {
        Reply::of(api.request(Method::GET, "/health/live", None).header("origin", origin))
    };
    assert_eq!(ask(&api, origin).await.headers["access-control-allow-origin"], origin);
    assert!(!ask(&api, "https://evil.example").await.headers.contains_key("access-control-allow-origin"));
    let closed = Api::start().await;
    assert!(!ask(&closed, origin).await.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_too_long_is_ended() {
    let api = Api::with_settings(|settings| settings.request_timeout = std::time::Duration::from_millis(200)).await;
    // The count waits for this lock, however fast the machine is.
    let mut lock = api.pool.begin().await.unwrap();
    sqlx::query("lock table escrow_job in access exclusive mode").execute(&mut *lock).await.unwrap();
    let reply = api.get("/lit-compute/jobs/stats").await;
    reply.is_problem(503, "timeout", None);
    assert_eq!(reply.headers["retry-after"], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgres_nothing_opens_and_the_reason_stays_inside() {
    let api = Api::start().await;
    let user = api.user().await;
    let signer = user.signer.clone();
    let message = api.message(&signer).await.to_string();
    api.pool.close().await;
    api.verify(&message, &signer).await.is_problem(503, "unavailable", None);
    let session = Reply::of(api.request(Method::GET, "/lit-compute/auth/session", Some(&user))).await;
    session.is_problem(503, "unavailable", None);
    assert!(session.body["id"].is_string());
    let ready = api.get("/health/ready").await;
    assert_eq!((ready.status.as_u16(), &check(&ready, "postgres")["ok"]), (503, &json!(false)));
    assert_eq!(api.get("/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_too_shallow_for_its_price_is_shown_and_not_offered() {
    let api = Api::start().await;
    let id = api.open_job().await;
    set_cursor(&api, 3, 1_800_000_000).await;
    sqlx::query("update chain_cursor set final_number = 0").execute(&api.pool).await.unwrap();
    let pending = async || api.get("/lit-compute/jobs/pending/list").await.ok().body["jobs"].as_array().unwrap().len();
    let job = async || api.get(&format!("/lit-compute/jobs/{id}")).await.ok();
    assert_eq!(job().await.text("status"), "pending");
    assert_eq!(job().await.body["confirmation"], json!({ "blockNumber": 1, "depth": 2, "level": "pending" }));
    assert_eq!(pending().await, 0);

    let step = "insert into confirmation_step (token, up_to, depth) values (decode(repeat('00', 20), 'hex'), 1000, 2)";
    sqlx::query(step).execute(&api.pool).await.unwrap();
    assert_eq!(job().await.body["confirmation"]["level"], "confirmed");
    assert_eq!(pending().await, 1);
    sqlx::query("update chain_cursor set final_number = 1").execute(&api.pool).await.unwrap();
    assert_eq!(job().await.body["confirmation"]["level"], "final");
    assert_eq!(api.get("/lit-compute/chain").await.ok().int("finalBlock"), 1);
}
