use alloy::primitives::{Address, B256};
use market::{ContentId, abi::Order, typed_data};
use serde_json::{Value, json};

use crate::support::{Api, MIN_STAKE, User, in_secs, job_id, order, spec, submission};

const SUBMIT: &str = "/lit-compute/jobs/submit";

/// A requester with a deposit, and an input that some node can work on.
async fn market() -> (Api, User, User, ContentId) {
    let api = Api::start().await;
    let node = api.node().await;
    let input = api.blob(b"input").await;
    let requester = api.requester().await;
    (api, requester, node, input)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_announced_once_however_often_it_is_sent() {
    let (api, requester, _, input) = market().await;
    let spec = spec(input);
    let order = order(requester.address(), &spec);
    let id = job_id(&order);
    let mut body = submission(&order, &spec);
    body["priority"] = json!(150);
    for _ in 0..2 {
        let reply = api.post(&requester, SUBMIT, body.clone()).await.ok();
        assert_eq!(reply.body, json!({ "jobId": id, "status": "awaiting_escrow" }));
    }
    let job = api.get(&format!("/lit-compute/jobs/{id}")).await.ok();
    assert_eq!((job.text("status"), job.int("priority")), ("awaiting_escrow".to_owned(), 150));
    assert_eq!(job.body["order"], body["order"]);
    assert_eq!(job.body["spec"], body["spec"]);
    assert_eq!(job.body["openedTx"], Value::Null);

    api.open(&order, &spec).await;
    let job = api.get(&format!("/lit-compute/jobs/{id}")).await.ok();
    assert_eq!((job.text("status"), job.int("priority")), ("pending".to_owned(), 150));
    assert!(job.body["openedTx"].is_string());
    // The deposit is locked by now; the same announcement is still answered.
    api.deposit(requester.address(), 0).await;
    let again = api.post(&requester, SUBMIT, body).await.ok();
    assert_eq!(again.text("status"), "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_opened_without_announcement_is_as_good() {
    let (api, _, _, _) = market().await;
    let id = api.open_job().await;
    let job = api.get(&format!("/lit-compute/jobs/{id}")).await.ok();
    assert_eq!((job.text("status"), job.int("priority")), ("pending".to_owned(), 100));
}

/// Something wrong with an order, and how it is refused.
struct Bad {
    what: &'static str,
    change: fn(&mut Order),
    status: u16,
    code: &'static str,
    field: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_cannot_become_a_job_is_refused_by_field() {
    let (api, requester, _, input) = market().await;
    let cases = [
        Bad {
            what: "more than the deposit",
            change: |order| order.maxPrice = 1_000_001,
            status: 402,
            code: "price_above_deposit",
            field: "order.maxPrice",
        },
        Bad {
            what: "a token without deposit",
            change: |order| order.token = Address::repeat_byte(1),
            status: 402,
            code: "price_above_deposit",
            field: "order.maxPrice",
        },
        Bad {
            what: "nothing to pay",
            change: |order| order.maxPrice = 0,
            status: 422,
            code: "order_invalid",
            field: "order.maxPrice",
        },
        Bad {
            what: "expired",
            change: |order| order.deadline = in_secs(-1),
            status: 422,
            code: "order_expired",
            field: "order.deadline",
        },
        Bad {
            what: "too near",
            change: |order| order.deadline = in_secs(30),
            status: 422,
            code: "order_expired",
            field: "order.deadline",
        },
        Bad {
            what: "too far",
            change: |order| order.deadline = u64::MAX,
            status: 422,
            code: "order_invalid",
            field: "order.deadline",
        },
        Bad {
            what: "open without a window",
            change: |order| order.challengeWindow = 0,
            status: 422,
            code: "order_invalid",
            field: "order.challengeWindow",
        },
        Bad {
            what: "too long a window",
            change: |order| order.challengeWindow = 31 * 24 * 3600,
            status: 422,
            code: "order_invalid",
            field: "order.challengeWindow",
        },
        Bad {
            what: "too high a fee",
            change: |order| order.maxFeeBps = 10_001,
            status: 422,
            code: "order_invalid",
            field: "order.maxFeeBps",
        },
        Bad {
            what: "another assigner",
            change: |order| order.assigner = Address::repeat_byte(2),
            status: 422,
            code: "wrong_assigner",
            field: "order.assigner",
        },
        Bad {
            what: "another spec",
            change: |order| order.specHash = B256::repeat_byte(3),
            status: 422,
            code: "spec_hash_mismatch",
            field: "order.specHash",
        },
        Bad {
            what: "an unregistered node",
            change: |order| order.node = Address::repeat_byte(4),
            status: 422,
            code: "order_node_not_registered",
            field: "order.node",
        },
        Bad {
            what: "someone else's",
            change: |order| order.requester = Address::repeat_byte(5),
            status: 403,
            code: "wallet_mismatch",
            field: "order.requester",
        },
    ];
    let spec = spec(input);
    let before = api.written().await;
    for Bad { what, change, status, code, field } in cases {
        let mut order = order(requester.address(), &spec);
        change(&mut order);
        let reply = api.post(&requester, SUBMIT, submission(&order, &spec)).await;
        println!("{what}");
        reply.is_problem(status, code, Some(field));
        api.get(&format!("/lit-compute/jobs/{}", job_id(&order))).await.is_problem(404, "job_not_found", Some("jobId"));
    }
    assert_eq!(api.written().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spec_that_no_one_can_work_on_is_refused_by_field() {
    let (api, requester, node, input) = market().await;
    let cases = [
        ("inputCID", ContentId::of(b"unknown").to_string(), "input_unknown", "spec.inputCID"),
        ("inputCID", "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR".to_owned(), "invalid_field", "spec.inputCID"),
        ("inputCID", String::new(), "invalid_field", "spec.inputCID"),
        ("operation", String::new(), "invalid_field", "spec.operation"),
        ("operation", "x".repeat(65), "invalid_field", "spec.operation"),
        ("operation", "a\0b".to_owned(), "invalid_field", "spec.operation"),
        ("operation", "mine".to_owned(), "operation_not_offered", "spec.operation"),
        ("params", "not json".to_owned(), "invalid_field", "spec.params"),
        ("params", "[]".to_owned(), "invalid_field", "spec.params"),
        ("params", format!("{{\"x\":\"{}\"}}", "y".repeat(20_000)), "invalid_field", "spec.params"),
    ];
    let before = api.written().await;
    for named in [Address::ZERO, node.address()] {
        for (part, text, code, field) in &cases {
            let mut spec = spec(input);
            match *part {
                "inputCID" => spec.inputCID.clone_from(text),
                "operation" => spec.operation.clone_from(text),
                _ => spec.params.clone_from(text),
            }
            let order = Order { node: named, ..order(requester.address(), &spec) };
            api.post(&requester, SUBMIT, submission(&order, &spec)).await.is_problem(422, code, Some(field));
        }
    }
    api.stake(node.address(), MIN_STAKE - 1).await;
    let spec = spec(input);
    let order = Order { node: node.address(), ..order(requester.address(), &spec) };
    let reply = api.post(&requester, SUBMIT, submission(&order, &spec)).await;
    reply.is_problem(422, "order_node_insufficient_stake", Some("order.node"));
    assert_eq!(api.written().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_malformed_is_named_by_its_path() {
    let (api, requester, _, input) = market().await;
    let spec = spec(input);
    let good = submission(&order(requester.address(), &spec), &spec);
    let before = api.written().await;
    let cases = [
        ("/order/maxPrice", json!("0.1 ETH"), "order.maxPrice"),
        ("/order/maxPrice", json!("-1"), "order.maxPrice"),
        ("/order/maxPrice", json!(1000), "order.maxPrice"),
        ("/order/maxPrice", json!((u128::MAX.to_string() + "0")), "order.maxPrice"),
        ("/order/requester", json!("0x12"), "order.requester"),
        ("/order/requester", json!("vitalik.eth"), "order.requester"),
        ("/order/token", json!(format!("0x{}", "A".repeat(40))), "order.token"),
        ("/order/specHash", json!("0x12"), "order.specHash"),
        ("/order/deadline", json!("tomorrow"), "order.deadline"),
        ("/order/deadline", json!(-1), "order.deadline"),
        ("/order/challengeWindow", json!(u64::MAX), "order.challengeWindow"),
        ("/order/nonce", json!(7), "order.nonce"),
        ("/order/nonce", json!("1e3"), "order.nonce"),
        ("/spec/params", Value::Null, "spec.params"),
        ("/spec", json!([]), "spec"),
    ];
    for (pointer, value, field) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        let reply = api.post(&requester, SUBMIT, bad).await;
        println!("{pointer}");
        reply.is_problem(422, "invalid_field", Some(field));
    }
    let mut extra = good.clone();
    extra["order"]["tip"] = json!("1");
    api.post(&requester, SUBMIT, extra).await.is_problem(422, "invalid_field", Some("order.tip"));
    let mut missing = good.clone();
    missing["order"].as_object_mut().unwrap().remove("deadline");
    api.post(&requester, SUBMIT, missing).await.is_problem(422, "invalid_field", Some("order.deadline"));
    for priority in [-1, 1001] {
        let mut bad = good.clone();
        bad["priority"] = json!(priority);
        api.post(&requester, SUBMIT, bad).await.is_problem(422, "invalid_field", Some("priority"));
    }
    assert_eq!(api.written().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_node_needs_neither_window_nor_assigner() {
    let (api, requester, node, input) = market().await;
    let spec = spec(input);
    let order = Order {
        node: node.address(),
        assigner: Address::ZERO,
        challengeWindow: 0,
        ..order(requester.address(), &spec)
    };
    let reply = api.post(&requester, SUBMIT, submission(&order, &spec)).await.ok();
    assert_eq!(reply.job_id(), typed_data::job_id(&order, &crate::support::deployment().domain()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_listed_page_by_page_and_counted() {
    let (api, requester, _, input) = market().await;
    let mut expected = Vec::new();
    for _ in 0..5 {
        let spec = spec(input);
        let order = order(requester.address(), &spec);
        api.post(&requester, SUBMIT, submission(&order, &spec)).await.ok();
        expected.push(job_id(&order).to_string());
    }
    api.open_job().await;
    expected.reverse();
    let base = format!("/lit-compute/jobs?requester={}&status=awaiting_escrow&limit=2", requester.name());
    let (mut path, mut listed) = (base.clone(), Vec::new());
    loop {
        let page = api.get(&path).await.ok();
        listed
            .extend(page.body["jobs"].as_array().unwrap().iter().map(|job| job["jobId"].as_str().unwrap().to_owned()));
        let Some(next) = page.body["next"].as_str() else { break };
        path = format!("{base}&cursor={next}");
    }
    assert_eq!(listed, expected);

    let stats = api.get("/lit-compute/jobs/stats").await.ok();
    assert_eq!(stats.int("total"), 6);
    assert_eq!(stats.body["byStatus"]["awaiting_escrow"], 5);
    assert_eq!(stats.body["byStatus"]["pending"], 1);
    assert_eq!(stats.body["byStatus"]["refunded"], 0);

    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=many", "limit"),
        ("cursor=x", "cursor"),
        ("status=done", "status"),
        ("requester=0x12", "requester"),
        ("node=me", "node"),
        ("color=red", "color"),
    ] {
        let reply = api.get(&format!("/lit-compute/jobs?{query}")).await;
        println!("{query}");
        reply.is_problem(422, "invalid_parameter", Some(field));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_jobs_are_listed_in_the_order_of_the_queue() {
    let (api, requester, _, input) = market().await;
    let mut ids = Vec::new();
    for priority in [100, 50, 900, 100] {
        let spec = spec(input);
        let order = order(requester.address(), &spec);
        let mut body = submission(&order, &spec);
        body["priority"] = json!(priority);
        api.post(&requester, SUBMIT, body).await.ok();
        ids.push(api.open(&order, &spec).await.to_string());
    }
    let expected = [&ids[2], &ids[0], &ids[3], &ids[1]];
    let (mut path, mut listed) = ("/lit-compute/jobs/pending/list?limit=3".to_owned(), Vec::new());
    loop {
        let page = api.get(&path).await.ok();
        listed
            .extend(page.body["jobs"].as_array().unwrap().iter().map(|job| job["jobId"].as_str().unwrap().to_owned()));
        let Some(next) = page.body["next"].as_str() else { break };
        path = format!("/lit-compute/jobs/pending/list?limit=3&cursor={next}");
    }
    assert_eq!(listed.iter().collect::<Vec<_>>(), expected);
}
