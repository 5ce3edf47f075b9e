//! One job or node at a time: the exact keys.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use market::db::outbox::{self, Entity, Source};
use market::redis::apply::{self, Changes};
use market::redis::keys::{COMPLETED_TTL_SECS, NODE_TTL_SECS, line_member, line_name};
use market::redis::{queue, rebuild, sweep};
use serde_json::{Value, json};

use crate::support::{CHAIN_ID, PRICE, World, hash, job, node, node_id, output, requester, spec};

/// Name, without the word `littoral`, of every key there is.
async fn names(world: &World) -> Vec<String> {
    world.dump().await.into_keys().filter(|key| !key.starts_with("littoral:")).collect()
}

fn ms(world: &World, n: i64) -> i64 {
    world.at(n).timestamp_millis()
}

fn payment(world: &World, n: u8, at: i64) -> String {
    format!(
        r#"{{"jobId":"{}","amount":"{PRICE}","timestamp":{},"token":"{}","chainId":{CHAIN_ID}}}"#,
        job(n),
        ms(world, at),
        Address::ZERO
    )
}

#[tokio::test]
async fn a_job_on_its_way_has_exactly_the_keys_of_its_state() {
    let world = World::new().await;
    let (id, by) = (job(1).to_string(), node_id(1).to_string());
    let status_key = format!("job:{id}:status");
    world.register(1, node_id(1), 5, 0).await;

    world.open(1, Address::ZERO, 3600, 1).await;
    world.drain(2).await;
    let mut expected = json!({
        "status": "pending", "state": "pending", "requester": requester().to_checksum(None),
        "operation": "encrypt", "inputCID": spec().inputCID, "token": Address::ZERO.to_string(), "maxPrice": "1000",
        "priority": "100", "deadline": ms(&world, 3600).to_string(), "attempts": "0",
        "openTxHash": hash(0x0e, 1).to_string(), "createdAt": ms(&world, 1).to_string(),
        "chainId": CHAIN_ID.to_string(),
    });
    let line = line_name("encrypt", Address::ZERO, requester());
    let member = line_member(&line, ms(&world, 1), job(1));
    expected["line"] = json!(member);
    assert_eq!(world.status(job(1)).await, expected);
    assert_eq!(names(&world).await, [status_key.as_str(), "jobs:pending"]);
    assert_eq!(world.dump().await["littoral:lines"]["value"], json!([[member, 0.0]]));
    assert_eq!(world.dump().await["jobs:pending"]["value"], json!([[id, world.at(1).timestamp_millis() as f64]]));

    world.claim(1, 1, 3).await;
    world.drain(3).await;
    expected.as_object_mut().unwrap().remove("line");
    assert!(!world.dump().await.contains_key("littoral:lines"));
    let served = world.command(&["ZSCORE", "littoral:turns", &line]).await;
    assert_eq!(redis::from_redis_value::<i64>(served).unwrap(), ms(&world, 3));
    expected["status"] = json!("active");
    expected["state"] = json!("active");
    expected["nodeId"] = json!(by);
    expected["node"] = json!(node(1).to_checksum(None));
    expected["startedAt"] = json!(ms(&world, 3).to_string());
    assert_eq!(world.status(job(1)).await, expected);
    assert_eq!(names(&world).await, [status_key.clone(), format!("jobs:active:{by}")]);
    assert_eq!(world.dump().await[&format!("jobs:active:{by}")]["value"], json!([id]));

    world.complete(1, 1, 7).await;
    world.drain(7).await;
    expected["status"] = json!("completed");
    expected["state"] = json!("completed");
    expected["completedAt"] = json!(ms(&world, 7).to_string());
    expected["outputCID"] = json!(output(1).to_string());
    expected["resultHash"] = json!(output(1).digest().to_string());
    expected["price"] = json!(PRICE.to_string());
    expected["payment"] = json!(payment(&world, 1, 7));
    assert_eq!(world.status(job(1)).await, expected);
    let owed = format!("payments:pending:{by}");
    assert_eq!(names(&world).await, [status_key.clone(), "jobs:completed".to_owned(), owed.clone()]);
    assert_eq!(world.dump().await[&owed]["value"], json!([payment(&world, 1, 7)]));
    assert_eq!(world.dump().await["jobs:completed"]["value"], json!([[id, ms(&world, 7) as f64]]));

    world.settling(1, 8).await;
    world.drain(8).await;
    expected["state"] = json!("settling");
    expected["txHash"] = json!(hash(0xa7, 1).to_string());
    assert_eq!(world.status(job(1)).await, expected);

    world.submitted(1, 1, 20, 9).await;
    world.drain(9).await;
    expected["state"] = json!("challengeable");
    expected["txHash"] = json!(hash(0x5b, 1).to_string());
    assert_eq!(world.status(job(1)).await, expected);
    assert_eq!(world.dump().await[&owed]["value"], json!([payment(&world, 1, 7)]));

    world.paid(1, 1, 21).await;
    world.drain(21).await;
    expected["state"] = json!("paid");
    expected["txHash"] = json!(hash(0xc1, 1).to_string());
    assert_eq!(world.status(job(1)).await, expected);
    let dump = world.dump().await;
    assert_eq!(dump["payments:completed"]["value"], json!([[payment(&world, 1, 7), ms(&world, 21) as f64]]));
    assert_eq!(dump[&status_key]["expiresAt"], json!(ms(&world, 21 + COMPLETED_TTL_SECS.cast_signed())));
    assert_eq!(
        dump.keys().map(String::as_str).collect::<Vec<_>>(),
        [status_key.as_str(), "jobs:completed", "payments:completed"]
    );
}

#[tokio::test]
async fn a_refund_a_failure_and_a_deadline_end_as_failed() {
    let world = World::new().await;
    for n in 1..=3 {
        world.open(n, Address::ZERO, 30, 0).await;
    }
    world.register(1, node_id(1), 5, 0).await;
    world.claim(1, 1, 1).await;
    world.drain(1).await;
    world.fail(1, None, 2).await;
    world.drain(2).await;
    let status = world.status(job(1)).await;
    assert_eq!((&status["status"], &status["state"]), (&json!("failed"), &json!("failed")));
    assert_eq!((&status["attempts"], &status["error"]), (&json!("1"), &json!("broke")));
    assert_eq!(status.get("nodeId"), None);

    // Nobody writes a row when a deadline passes; it counts itself.
    let sweep = async |n| sweep::sweep(&world.pool, &world.redis, world.at(n)).await.unwrap();
    sweep(30).await;
    assert_eq!(queue::depth(&world.redis).await.unwrap(), 2);
    sweep(31).await;
    assert_eq!(queue::depth(&world.redis).await.unwrap(), 0);
    for n in 1..=3 {
        assert_eq!(world.status(job(n)).await["state"], "expired");
    }
    world.refunded(2, 40).await;
    world.drain(40).await;
    let status = world.status(job(2)).await;
    assert_eq!((&status["status"], &status["state"]), (&json!("failed"), &json!("refunded")));
    assert_eq!(status["txHash"], hash(0xc1, 2).to_string());
    assert!(world.dump().await.keys().all(|key| !key.starts_with("littoral:deadlines")), "nothing more to wait for");
}

#[tokio::test]
async fn a_job_that_is_not_paid_for_has_no_keys() {
    let world = World::new().await;
    world.announce(1, 100, 0).await;
    world.drain(1).await;
    assert_eq!(world.dump().await, BTreeMap::new());
    // Opened, with the priority of its announcement; then taken off the chain again.
    world.announce(2, 150, 0).await;
    world.open(2, Address::ZERO, 3600, 1).await;
    world.drain(2).await;
    assert_eq!(world.status(job(2)).await["priority"], "150");
    world.unopen(2, 3).await;
    world.drain(3).await;
    assert_eq!(world.dump().await, BTreeMap::new());
}

#[tokio::test]
async fn a_job_that_a_reorg_took_away_leaves_no_trace() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    for n in 1..=4 {
        world.open(n, Address::ZERO, 3600, 0).await;
    }
    for n in 2..=4 {
        world.claim(n, 1, 1).await;
    }
    world.complete(3, 1, 2).await;
    world.complete(4, 1, 2).await;
    world.paid(4, 1, 3).await;
    world.drain(3).await;
    assert_eq!(names(&world).await.len(), 4 + 5, "a hash for each, and each kind of collection");
    for n in 1..=4 {
        world.unopen(n, 5).await;
    }
    world.drain(5).await;
    assert_eq!(world.dump().await, BTreeMap::new());
}

#[tokio::test]
async fn a_payment_that_a_reorg_took_away_is_due_again() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    world.open(1, Address::ZERO, 3600, 0).await;
    world.claim(1, 1, 1).await;
    world.complete(1, 1, 2).await;
    world.drain(2).await;
    let before = world.dump().await;
    world.paid(1, 1, 3).await;
    world.drain(3).await;
    assert_ne!(world.dump().await, before);
    world.unpaid(1, 4).await;
    world.drain(4).await;
    assert_eq!(world.dump().await, before);
}

#[tokio::test]
async fn the_queue_holds_what_can_be_claimed_in_the_order_that_postgres_has_too() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    world.announce(3, 110, 0).await;
    world.announce(4, 95, 0).await;
    for (n, at) in [(1, 1), (2, 2), (3, 6), (4, 1), (5, 3), (6, 4)] {
        world.open_spec(n, Address::ZERO, 3600, at, n != 6).await;
    }
    world.claim(5, 1, 5).await;
    world.fail(5, Some(60), 6).await;
    world.drain(7).await;
    // 3 gained 10 s, 4 lost 5 s, 5 pauses, 6 is not what was signed.
    let expected = [3, 1, 2, 4, 5].map(job);
    assert_eq!(world.suggested(10, 7).await, expected);
    assert_eq!(world.suggested(2, 7).await, expected[..2]);
    // Whose pause is far is behind all that can be had.
    assert_eq!(world.suggested(10, -50).await, expected[..4]);
    let unsigned = world.status(job(6)).await;
    assert_eq!((unsigned["specValid"].as_str(), unsigned["status"].as_str()), (Some("false"), Some("failed")));
    let mut db = world.pool.acquire().await.unwrap();
    let pending = market::db::job_view::pending(&mut db, None, 10, world.at(7)).await.unwrap();
    assert_eq!(pending.iter().map(|view| view.job_id).collect::<Vec<_>>(), expected);
    let score = |n: i64| world.at(n).timestamp_millis();
    let rest = market::db::job_view::pending(&mut db, Some((score(2), job(2))), 10, world.at(7)).await.unwrap();
    assert_eq!(rest.iter().map(|view| view.job_id).collect::<Vec<_>>(), expected[3..]);
}

#[tokio::test]
async fn payments_are_listed_by_time_whichever_order_they_are_projected_in() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    let mut entities = Vec::new();
    for (n, at) in [(1, 9), (2, 5), (3, 7), (4, 5), (5, 8)] {
        world.open(n, Address::ZERO, 3600, 0).await;
        world.claim(n, 1, 1).await;
        world.complete(n, 1, at).await;
        entities.push(Entity::Job(job(n)));
    }
    for entity in entities {
        project(&world, &[entity], 10).await;
    }
    let dump = world.dump().await;
    let expected = [(2, 5), (4, 5), (3, 7), (5, 8), (1, 9)].map(|(n, at)| payment(&world, n, at));
    assert_eq!(dump[&world.redis.keys().payments_pending(node_id(1))]["value"], json!(expected));
}

async fn project(world: &World, entities: &[Entity], n: i64) {
    let changes: Changes = entities.iter().map(|entity| (*entity, Vec::new())).collect();
    let mut tx = world.pool.begin().await.unwrap();
    apply::project(&mut tx, &world.redis, &changes, world.at(n)).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn applying_a_snapshot_again_changes_nothing() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    let before = world.dump().await;
    let mut entities: Vec<Entity> = (1..=7).map(|n| Entity::Job(job(n))).collect();
    entities.extend((1..=3).map(|n| Entity::Node(node(n))));
    for _ in 0..2 {
        project(&world, &entities, 20).await;
        assert_eq!(world.dump().await, before);
    }
}

#[tokio::test]
async fn a_snapshot_that_comes_late_does_not_overwrite_a_newer_one() {
    let world = World::new().await;
    world.open(1, Address::ZERO, 3600, 0).await;
    world.drain(1).await;
    let before = world.dump().await;
    // As if a newer snapshot had been applied.
    let key = world.redis.keys().version(&job(1).to_string());
    world.command(&["SET", &key, "1000000"]).await;
    world.refunded(1, 2).await;
    world.drain(2).await;
    assert_eq!(world.dump().await, before);
}

#[tokio::test]
async fn a_node_has_exactly_the_keys_of_its_state() {
    let world = World::new().await;
    let id = node_id(1).to_string();
    // Nobody knows a node by its id until it is registered on the chain.
    world.heartbeat(1, 0).await;
    world.drain(0).await;
    assert_eq!(world.dump().await, BTreeMap::new());
    world.register(1, node_id(1), 5, 1).await;
    world.heartbeat(1, 2).await;
    world.drain(2).await;
    let dump = world.dump().await;
    assert_eq!(
        dump[&format!("nodes:{id}:status")],
        json!({
            "type": "hash",
            "value": {
                "nodeId": id, "walletAddress": node(1).to_checksum(None), "capacity": "3", "reputation": "100",
                "status": "online", "lastHeartbeat": ms(&world, 2).to_string(), "operations": r#"["encrypt"]"#,
                "publicKey": "0x07", "stake": "5",
            },
            "expiresAt": ms(&world, 2 + NODE_TTL_SECS.cast_signed()),
        })
    );
    assert_eq!(dump["nodes:available"]["value"], json!([id]));
    assert_eq!(dump["nodes:heartbeats"]["value"], json!([[id, ms(&world, 2) as f64]]));

    // Silent for five minutes.
    sweep::sweep(&world.pool, &world.redis, world.at(301)).await.unwrap();
    assert_eq!(world.dump().await, dump);
    sweep::sweep(&world.pool, &world.redis, world.at(302)).await.unwrap();
    assert_eq!(world.dump().await, BTreeMap::new());
}

#[tokio::test]
async fn a_node_without_stake_is_not_available() {
    let world = World::new().await;
    world.register(1, node_id(1), 0, 0).await;
    world.heartbeat(1, 1).await;
    world.drain(1).await;
    let dump = world.dump().await;
    assert_eq!(dump[&world.redis.keys().node_status(node_id(1))]["value"]["status"], "offline");
    assert!(!dump.contains_key("nodes:available"));
}

#[tokio::test]
async fn a_node_that_a_reorg_renames_takes_its_jobs_and_payments_along() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    world.heartbeat(1, 0).await;
    world.open(1, Address::ZERO, 3600, 0).await;
    world.open(2, Address::ZERO, 3600, 0).await;
    world.claim(1, 1, 1).await;
    world.claim(2, 1, 1).await;
    world.complete(2, 1, 2).await;
    world.drain(2).await;
    world.unregister(1, 3).await;
    world.drain(3).await;
    let gone = node_id(1).to_string();
    assert!(names(&world).await.iter().all(|key| !key.contains(&gone)), "{:?}", names(&world).await);
    world.register(1, node_id(9), 5, 4).await;
    world.drain(4).await;
    let (dump, id) = (world.dump().await, node_id(9));
    let keys = world.redis.keys();
    assert_eq!(dump[&keys.jobs_active(id)]["value"], json!([job(1).to_string()]));
    assert_eq!(dump[&keys.payments_pending(id)]["value"], json!([payment(&world, 2, 2)]));
    assert_eq!(dump["nodes:available"]["value"], json!([id.to_string()]));
    assert!(dump.values().all(|value| !value.to_string().contains(&gone)));
}

/// Hashes of jobs name their node for as long as they are kept, also those of jobs that are closed.
#[tokio::test]
async fn a_node_that_a_reorg_renames_takes_its_closed_jobs_along() {
    let world = World::new().await;
    let day = 24 * 3600;
    world.register(1, node_id(1), 5, 0).await;
    for n in 1..=5 {
        world.open(n, Address::ZERO, 3600, 0).await;
    }
    // Paid without the API, paid after it was done there, done and then refunded, objected to, and paid long ago.
    world.paid(1, 1, 3).await;
    for n in 2..=3 {
        world.claim(n, 1, 1).await;
        world.complete(n, 1, 2).await;
    }
    world.paid(2, 1, 3).await;
    world.refunded(3, 3).await;
    world.submitted(4, 1, 3000, 3).await;
    world.paid(5, 1, -8 * day).await;
    world.drain(3).await;
    let by = async |n| world.status(job(n)).await["nodeId"].clone();
    let named = async || [by(1).await, by(2).await, by(3).await, by(4).await];
    assert_eq!(named().await, [(); 4].map(|()| json!(node_id(1))));
    assert_eq!(world.status(job(5)).await, json!({}), "its hash is kept for a week");

    world.unregister(1, 4).await;
    world.drain(4).await;
    let gone = node_id(1).to_string();
    assert!(world.dump().await.iter().all(|(key, value)| !key.contains(&gone) && !value.to_string().contains(&gone)));
    world.register(1, node_id(9), 5, 5).await;
    world.drain(5).await;
    assert_eq!(named().await, [(); 4].map(|()| json!(node_id(9))));
    let dump = world.dump().await;
    rebuild::rebuild(&world.pool, &world.redis, world.at(5)).await.unwrap();
    assert_eq!(dump, world.dump().await, "as if filled anew");
}

#[tokio::test]
async fn what_is_kept_for_days_is_trimmed() {
    let world = World::new().await;
    let day = 24 * 3600;
    world.register(1, node_id(1), 5, -40 * day).await;
    for (n, paid_at) in [(1, -31 * day), (2, -8 * day), (3, -day)] {
        world.open(n, Address::ZERO, 3600, paid_at - 100).await;
        world.claim(n, 1, paid_at - 60).await;
        world.complete(n, 1, paid_at - 30).await;
        world.paid(n, 1, paid_at).await;
    }
    world.drain(0).await;
    let members = |dump: &BTreeMap<String, Value>, key: &str| dump[key]["value"].as_array().unwrap().len();
    let dump = world.dump().await;
    assert_eq!((members(&dump, "jobs:completed"), members(&dump, "payments:completed")), (1, 2));
    assert!(dump.contains_key(&world.redis.keys().job_status(job(3))));
    assert!(!dump.contains_key(&world.redis.keys().job_status(job(2))), "its hash went after a week");
    sweep::sweep(&world.pool, &world.redis, world.at(7 * day)).await.unwrap();
    let dump = world.dump().await;
    assert!(!dump.contains_key("jobs:completed"));
    assert_eq!(members(&dump, "payments:completed"), 2);
    sweep::sweep(&world.pool, &world.redis, world.at(40 * day)).await.unwrap();
    assert!(!world.dump().await.contains_key("payments:completed"));
}

/// Jobs 1 to 7 in as many states, and nodes 1 to 3, all projected.
pub async fn a_bit_of_everything(world: &World) {
    for n in 1..=3 {
        world.register(n, node_id(n), 5, 0).await;
        world.heartbeat(n, i64::from(n)).await;
    }
    for n in 1..=7 {
        let named = if n == 2 { node(2) } else { Address::ZERO };
        world.open(n, named, 3600, i64::from(n)).await;
    }
    world.announce(8, 100, 8).await;
    for n in 3..=7 {
        world.claim(n, n % 3 + 1, 10).await;
    }
    for n in 4..=7 {
        world.complete(n, n % 3 + 1, 20 - i64::from(n)).await;
    }
    world.settling(5, 18).await;
    world.submitted(6, 1, 60, 18).await;
    world.paid(7, 2, 19).await;
    for n in 1..=3 {
        world.heartbeat(n, 19).await;
    }
    world.drain(20).await;
    let mut db = world.pool.acquire().await.unwrap();
    for source in [Source::Chain, Source::Work] {
        assert_eq!(outbox::depth(&mut db, source).await.unwrap(), (0, None));
    }
}
