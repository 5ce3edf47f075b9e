//! Who is given which waiting job, and in whose turn: with Redis and without it.

use std::collections::HashSet;

use alloy::{
    primitives::{Address, B256},
    signers::SignerSync,
};
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use market::{
    ContentId,
    abi::Order,
    clock,
    db::{self, outbox::Source},
    redis::projector::Projector,
};
use serde_json::{Value, json};

use crate::support::{Api, MIN_STAKE, Reply, User, Wish, eventually, job_id, order, registration, spec, submission};

const BULK_CLAIM: &str = "/lit-compute/jobs/claim/bulk";
const TOKEN: Address = Address::repeat_byte(0x70);

/// An API with Redis, and one without.
async fn both() -> [Api; 2] {
    let without = Wish { redis_url: Some("redis://127.0.0.1:9/".to_owned()), ..Wish::default() };
    let apis = [Api::start().await, Api::with(without).await];
    for api in &apis {
        api.blob(b"input").await;
        api.blob(b"output").await;
    }
    apis
}

async fn try_sign(api: &Api, requester: &User, order: &Order, terms: Value) -> Reply {
    let mut body = submission(order, &spec(ContentId::of(b"input")));
    let signature = requester.signer.sign_hash_sync(&job_id(order)).unwrap();
    body["signature"] = json!(signature.to_string());
    body.as_object_mut().unwrap().extend(terms.as_object().unwrap().clone());
    api.post(requester, "/lit-compute/jobs/submit", body).await
}

/// Hands in an order of one wei, so that there can be many, with what `terms` says beside it.
async fn sign(api: &Api, requester: &User, nonce: u64, terms: Value) -> B256 {
    let order = Order { nonce, maxPrice: 1, ..order(requester.address(), &spec(ContentId::of(b"input"))) };
    try_sign(api, requester, &order, terms).await.ok().job_id()
}

/// Until Redis, where it is up, has `count` jobs in the queue.
async fn queued(api: &Api, count: u64) {
    if api.redis.ping().await.is_ok() {
        // What the chain says is projected by the indexer, which is not here.
        let indexer = Projector::new(api.pool.clone(), api.redis.clone(), Source::Chain);
        indexer.drain(clock::now()).await.unwrap();
        let depth = async || market::redis::queue::depth(&api.redis).await.is_ok_and(|depth| depth == count);
        eventually(async || depth().await.then_some(())).await;
    }
}

async fn give_up(api: &Api, node: &User, lease: &Reply, retryable: bool) -> Reply {
    let body = json!({ "fence": lease.int("fence"), "reason": "cannot", "retryable": retryable });
    api.post(node, &format!("/lit-compute/jobs/{}/fail", lease.job_id()), body).await
}

async fn complete(api: &Api, node: &User, lease: &Reply, price: u128) -> Reply {
    let body = node.completion(lease.job_id(), lease.int("fence"), ContentId::of(b"output"), price);
    api.post(node, &format!("/lit-compute/jobs/{}/complete", lease.job_id()), body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_given_nothing_under_its_price_nor_in_a_token_without_one() {
    for api in both().await {
        let node = api.node().await;
        let mut body = registration(node.address());
        let price = |token: Address, amount: &str| json!({ "operation": "encrypt", "token": token, "amount": amount });
        body["capabilities"]["minPrices"] = json!([price(Address::ZERO, "1000")]);
        let registered = api.post(&node, "/lit-compute/nodes/register", body.clone()).await.ok();
        assert_eq!(registered.body["minPrices"][0]["amount"], "1000");

        let spec = spec(ContentId::of(b"input"));
        let good = || order(Address::repeat_byte(0xaa), &spec);
        api.open(&Order { maxPrice: 999, ..good() }, &spec).await;
        api.open(&Order { token: TOKEN, maxPrice: u128::MAX, ..good() }, &spec).await;
        // The order's own choice of node does not bind the node.
        api.open(&Order { node: node.address(), maxPrice: 999, ..good() }, &spec).await;
        queued(&api, 3).await;
        assert_eq!(api.claim(&node).await.status, 204);
        let enough = api.open(&good(), &spec).await;
        assert_eq!(api.claim(&node).await.ok().job_id(), enough);

        body["capabilities"]["minPrices"] = json!([price(Address::ZERO, "1000"), price(TOKEN, "1")]);
        api.post(&node, "/lit-compute/nodes/register", body.clone()).await.ok();
        assert_eq!(api.claim(&node).await.ok().body["order"]["token"], TOKEN.to_checksum(None));
        // What has no price is done for any.
        body["capabilities"]["minPrices"] = json!([]);
        api.post(&node, "/lit-compute/nodes/register", body.clone()).await.ok();
        for _ in 0..2 {
            assert_eq!(api.claim(&node).await.ok().body["order"]["maxPrice"], "999");
        }
        for (prices, field) in [
            (json!([{ "operation": "mine", "token": TOKEN, "amount": "1" }]), "capabilities.minPrices[0].operation"),
            (json!([price(TOKEN, "1"), price(TOKEN, "2")]), "capabilities.minPrices[1].token"),
        ] {
            body["capabilities"]["minPrices"] = prices;
            let refused = api.post(&node, "/lit-compute/nodes/register", body.clone()).await;
            refused.is_problem(422, "invalid_field", Some(field));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_given_to_nodes_of_enough_stake_and_reputation_only() {
    for api in both().await {
        let (poor, rich) = (api.node().await, api.node().await);
        api.stake(rich.address(), MIN_STAKE * 2).await;
        let requester = api.requester().await;
        let first = sign(&api, &requester, 1, json!({ "minStake": (MIN_STAKE * 2).to_string() })).await;
        queued(&api, 1).await;
        assert_eq!(api.claim(&poor).await.status, 204);
        let lease = api.claim(&rich).await.ok();
        assert_eq!(lease.job_id(), first);
        // It fails once: 100 becomes 90.
        give_up(&api, &rich, &lease, false).await.ok();
        for (n, reputation) in [(2, 91), (3, 90)] {
            sign(&api, &requester, n, json!({ "minReputation": reputation })).await;
        }
        queued(&api, 3).await;
        let lease = api.claim(&rich).await.ok();
        assert_eq!(api.get(&format!("/lit-compute/jobs/{}", lease.job_id())).await.int("minReputation"), 90);
        assert_eq!(api.claim(&rich).await.status, 204);
        assert_ne!(api.claim(&poor).await.ok().job_id(), first);
        let order = Order { nonce: 9, maxPrice: 1, ..order(requester.address(), &spec(ContentId::of(b"input"))) };
        let refused = try_sign(&api, &requester, &order, json!({ "minReputation": 101 })).await;
        refused.is_problem(422, "invalid_field", Some("minReputation"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_job_is_given_out_when_its_time_comes_and_not_before() {
    for api in both().await {
        let (node, requester) = (api.node().await, api.requester().await);
        let due = clock::now() + TimeDelta::milliseconds(2500);
        let later = sign(&api, &requester, 1, json!({ "notBefore": due, "priority": 1000 })).await;
        let other = sign(&api, &requester, 2, json!({})).await;
        queued(&api, 2).await;
        assert_eq!(api.claim(&node).await.ok().job_id(), other);
        assert_eq!(api.claim(&node).await.status, 204);
        let lease = api.post(&node, "/lit-compute/jobs/claim", json!({ "waitSecs": 10 })).await.ok();
        assert_eq!(lease.job_id(), later);
        assert!((due..due + TimeDelta::seconds(3)).contains(&clock::now()), "{due} {}", clock::now());

        let late = Order { nonce: 3, maxPrice: 1, ..order(requester.address(), &spec(ContentId::of(b"input"))) };
        let refused =
            try_sign(&api, &requester, &late, json!({ "notBefore": clock::now() + TimeDelta::hours(1) })).await;
        refused.is_problem(422, "invalid_field", Some("notBefore"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_with_many_jobs_delays_one_with_a_single_job_by_one() {
    for api in both().await {
        let node = api.node().await;
        let (many, few, single) = (api.requester().await, api.requester().await, api.requester().await);
        for nonce in 1..=60 {
            sign(&api, &many, nonce, json!({ "priority": 1000 })).await;
        }
        for nonce in 1..=2 {
            sign(&api, &few, nonce, json!({})).await;
        }
        sign(&api, &single, 1, json!({ "priority": 0 })).await;
        queued(&api, 63).await;
        let mut served = Vec::new();
        for _ in 0..8 {
            let lease = api.claim(&node).await.ok();
            served.push(lease.body["order"]["requester"].as_str().unwrap().to_owned());
            complete(&api, &node, &lease, 1).await.ok();
            // Redis hears of the turn a moment later.
            let id = lease.job_id();
            if api.redis.ping().await.is_ok() {
                let key = api.redis.keys().job_status(id);
                eventually(async || (api.in_redis(&key).await["status"] == "completed").then_some(())).await;
            }
        }
        let (many, few, single) = (many.name(), few.name(), single.name());
        let expected = [&many, &few, &single, &many, &few, &many, &many, &many];
        assert_eq!(served.iter().collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_lines_than_one_look_goes_through_are_all_served() {
    for api in both().await {
        let node = api.node().await;
        let spec = spec(ContentId::of(b"input"));
        // Opened ones, since they need no deposit.
        for n in 1..=80 {
            api.open(&order(Address::repeat_byte(n), &spec), &spec).await;
        }
        queued(&api, 80).await;
        let mut served = HashSet::new();
        for _ in 0..80 {
            let lease = api.claim(&node).await.ok();
            served.insert(lease.body["order"]["requester"].to_string());
            complete(&api, &node, &lease, 1000).await.ok();
        }
        assert_eq!(served.len(), 80);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_nobody_can_do_hold_up_no_other() {
    for api in both().await {
        let (node, requester) = (api.node().await, api.requester().await);
        let impossible = (MIN_STAKE * 1000).to_string();
        for nonce in 1..=150 {
            sign(&api, &requester, nonce, json!({ "minStake": impossible, "priority": 1000 })).await;
        }
        let possible = sign(&api, &requester, 151, json!({})).await;
        queued(&api, 151).await;
        assert_eq!(api.claim(&node).await.ok().job_id(), possible);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_claim_gives_what_there_is_room_for_once() {
    for api in both().await {
        let (one, other) = (api.node().await, api.node().await);
        let requester = api.requester().await;
        for nonce in 1..=7 {
            sign(&api, &requester, nonce, json!({})).await;
        }
        queued(&api, 7).await;
        // Both have room for four, whatever they ask for and however often at once.
        let claims =
            [&one, &other, &one, &other].map(|node| api.post(node, BULK_CLAIM, json!({ "count": 50, "waitSecs": 1 })));
        let claims: Vec<Reply> = join_all(claims).await.into_iter().map(Reply::ok).collect();
        let leases = |claim: &Reply| claim.body["leases"].as_array().unwrap().clone();
        let given: Vec<Value> = claims.iter().flat_map(leases).collect();
        let ids: HashSet<String> = given.iter().map(|lease| lease["jobId"].to_string()).collect();
        assert_eq!((given.len(), ids.len()), (7, 7));
        for (node, count) in [(&one, [0, 2]), (&other, [1, 3])] {
            let held: usize = count.iter().map(|index| leases(&claims[*index]).len()).sum();
            assert!(held <= 4, "{} holds {held}", node.name());
        }
        // An answer that was lost is given again.
        let again = api.post(&one, BULK_CLAIM, json!({ "count": 50, "leases": [] })).await.ok();
        let held = leases(&claims[0]).len() + leases(&claims[2]).len();
        assert_eq!(leases(&again).len(), held);
        assert!(leases(&again).iter().all(|lease| lease["fence"] == 1));
        for count in [0, 101] {
            let refused = api.post(&one, BULK_CLAIM, json!({ "count": count })).await;
            refused.is_problem(422, "invalid_field", Some("count"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_job_is_tried_anew_when_its_requester_says_so() {
    for api in both().await {
        let (node, requester) = (api.node().await, api.requester().await);
        let named = Order {
            node: node.address(),
            nonce: 1,
            maxPrice: 600_000,
            ..order(requester.address(), &spec(ContentId::of(b"input")))
        };
        let id = try_sign(&api, &requester, &named, json!({})).await.ok().job_id();
        let redrive = format!("/lit-compute/jobs/{id}/redrive");
        api.post(&requester, &redrive, json!({})).await.is_problem(409, "not_failed", None);
        let lease = api.claim(&node).await.ok();
        give_up(&api, &node, &lease, false).await.ok();
        let dead = api.get(&format!("/lit-compute/jobs?requester={}&status=failed", requester.name())).await.ok();
        assert_eq!(
            (&dead.body["jobs"][0]["jobId"], &dead.body["jobs"][0]["lastError"]),
            (&json!(id), &json!("cannot"))
        );
        api.post(&node, &redrive, json!({})).await.is_problem(403, "wallet_mismatch", None);

        // What it no longer bound was promised elsewhere.
        let other = Order { nonce: 2, ..named.clone() };
        let second = try_sign(&api, &requester, &other, json!({})).await.ok().job_id();
        api.post(&requester, &redrive, json!({})).await.is_problem(402, "insufficient_deposit", Some("order.maxPrice"));
        api.post(&requester, &format!("/lit-compute/jobs/{second}/cancel"), json!({})).await.ok();

        assert_eq!(api.post(&requester, &redrive, json!({})).await.ok().text("status"), "pending");
        api.post(&requester, &redrive, json!({})).await.is_problem(409, "not_failed", None);
        complete(&api, &node, &lease, 1).await.is_problem(409, "not_leased", None);
        let again = api.post(&node, "/lit-compute/jobs/claim", json!({ "waitSecs": 5 })).await.ok();
        assert_eq!((again.job_id(), again.int("fence"), again.int("attempt")), (id, 2, 1));
        complete(&api, &node, &lease, 1).await.is_problem(409, "stale_fence", Some("fence"));
        complete(&api, &node, &again, 1).await.ok();
        api.post(&requester, &redrive, json!({})).await.is_problem(409, "not_failed", None);
    }
}

/// Jobs of one requester in front of the only one of another.
const CROWD: i64 = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_with_very_many_jobs_does_not_keep_another_waiting() {
    for api in both().await {
        let (node, crowd, other) = (api.node().await, api.requester().await, api.requester().await);
        let first = sign(&api, &crowd, 1, json!({})).await;
        sqlx::query(
            "insert into signed_order
             select (jsonb_populate_record(g, jsonb_build_object(
                 'job_id', '\\xcc' || lpad(to_hex(i), 62, '0'), 'nonce', i + 1))).*
             from signed_order g cross join generate_series(1, $2) as i where g.job_id = $1",
        )
        .bind(first.as_slice())
        .bind(CROWD)
        .execute(&api.pool)
        .await
        .unwrap();
        let only = sign(&api, &other, 1, json!({})).await;
        if api.redis.ping().await.is_ok() {
            // Nothing has told of the copies.
            let rebuild = async || market::redis::rebuild::rebuild(&api.pool, &api.redis, clock::now()).await;
            eventually(async || rebuild().await.is_ok_and(|done| done).then_some(())).await;
            queued(&api, u64::try_from(CROWD).unwrap() + 2).await;
        }
        let mut given = Vec::new();
        while given.len() < 3 {
            let lease = api.post(&node, "/lit-compute/jobs/claim", json!({ "waitSecs": 5 })).await.ok();
            given.push(lease.job_id());
            complete(&api, &node, &lease, 1).await.ok();
        }
        assert!(given.contains(&only), "the other's job is not among {given:?}");
        let waiting: i64 = sqlx::query_scalar("select count(*) from job_queue").fetch_one(&api.pool).await.unwrap();
        assert_eq!(waiting, CROWD + 2 - 3);
        // Not left to autovacuum, which is seldom here: Postgres would go through all orders for each job.
        let known = "select reltuples::bigint from pg_class where oid = 'signed_order'::regclass";
        let known = async || sqlx::query_scalar::<_, i64>(known).fetch_one(&api.pool).await.unwrap();
        eventually(async || (known().await > CROWD / 2).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_after_failures_are_not_in_step() {
    let api = Api::start().await;
    api.blob(b"input").await;
    let (node, requester) = (api.node().await, api.requester().await);
    let mut pauses = Vec::new();
    for nonce in 1..=4 {
        sign(&api, &requester, nonce, json!({})).await;
        let lease = api.post(&node, "/lit-compute/jobs/claim", json!({ "waitSecs": 5 })).await.ok();
        let before = clock::now();
        let end: DateTime<Utc> = give_up(&api, &node, &lease, true).await.ok().text("notBefore").parse().unwrap();
        assert!(end >= before + TimeDelta::seconds(1) && end <= clock::now() + TimeDelta::seconds(2));
        pauses.push((end - before).num_milliseconds());
    }
    pauses.dedup();
    assert!(pauses.len() > 1, "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_claim_can_take_any_more_is_swept_from_the_queue() {
    let api = Api::start().await;
    api.open_job().await;
    let rows =
        async || -> i64 { sqlx::query_scalar("select count(*) from job_queue").fetch_one(&api.pool).await.unwrap() };
    assert_eq!(rows().await, 1);
    let mut db = api.pool.acquire().await.unwrap();
    db::queue::sweep(&mut db, clock::now() + TimeDelta::minutes(59)).await.unwrap();
    assert_eq!(rows().await, 1);
    db::queue::sweep(&mut db, clock::now() + TimeDelta::minutes(61)).await.unwrap();
    assert_eq!(rows().await, 0);
}
