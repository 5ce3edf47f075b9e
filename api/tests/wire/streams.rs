//! What is told over Server-Sent Events and in Redis Streams, and to whom.

use alloy::primitives::{Address, B256};
use chrono::TimeDelta;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use littoral_api::realtime::Topic;
use serde_json::{Value, json};

use crate::socket::Socket;
use crate::stream::Events;
use crate::support::World;

/// What XREAD answers: for each stream its entries, each an id with its fields.
type Streams = Vec<(String, Vec<(String, Vec<String>)>)>;

const JOB: B256 = B256::repeat_byte(0x11);
const OTHER: B256 = B256::repeat_byte(0x22);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_at_another_instance_where_it_was() {
    let mut world = World::start().await;
    let (mut a, b) = (world.serve().await, world.serve().await);
    let (token, path) = (world.token(&[Topic::Job(JOB)]).await, format!("jobs/{JOB}"));
    let mut first = Events::open(&a.url, &path, &token, None).await.unwrap();
    let begun = first.expect("subscribed").await;
    assert_eq!(begun.data["recovered"], false);
    world.happen(JOB, "job.opened").await;
    let opened = first.expect("job:update").await;
    assert_eq!((&opened.data["event"], &opened.data["jobId"]), (&json!("job.opened"), &json!(JOB)));
    assert_eq!(opened.data["epoch"], begun.data["position"]["epoch"]);
    let last = opened.id.unwrap();
    assert_eq!(last, format!("{}:{}", opened.data["epoch"].as_str().unwrap(), opened.data["offset"]));

    a.process.kill().await.unwrap();
    while first.next().await.is_some() {}
    for n in 0..60 {
        world.happen(JOB, &format!("job.event{n}")).await;
    }
    // Nobody followed meanwhile but in the history.
    let mut second = Events::open(&b.url, &path, &token, Some(&last)).await.unwrap();
    assert_eq!(second.expect("subscribed").await.data["recovered"], true);
    for n in 0..60 {
        let event = second.expect("job:update").await;
        assert_eq!(event.data["event"], format!("job.event{n}"), "once and in order");
    }
    // Another's place, and one that is not of this history.
    for unknown in ["other:3", "0:1"] {
        let mut third = Events::open(&b.url, &path, &token, Some(unknown)).await.unwrap();
        assert_eq!(third.expect("subscribed").await.data["recovered"], false, "{unknown}");
    }
    let wrong = Events::open(&b.url, &path, &token, Some("3")).await.err().expect("no place");
    assert_eq!(wrong.status(), 422);

    // What is too long ago to be known is told as such.
    for n in 0..600 {
        world.happen(JOB, &format!("job.more{n}")).await;
    }
    let mut late = Events::open(&b.url, &path, &token, Some(&last)).await.unwrap();
    assert_eq!(late.expect("subscribed").await.data["recovered"], false);
    world.happen(JOB, "job.last").await;
    // It may have begun before all of the others were told.
    let mut event = late.expect("job:update").await.data["event"].clone();
    while event.as_str().unwrap().starts_with("job.more") {
        event = late.expect("job:update").await.data["event"].clone();
    }
    assert_eq!(event, "job.last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_but_ones_own_that_names_it_opens_anything() {
    let mut world = World::start().await;
    let api = world.serve().await;
    let key = world.token_key().await;
    let claims = |until: TimeDelta, audience: &str| {
        json!({
            "aud": audience, "exp": (market::clock::now() + until).timestamp(), "sub": Address::ZERO, "topics": [Topic::Job(JOB)],
        })
    };
    let hour = TimeDelta::hours(1);
    let sign = |claims: &Value, algorithm, key: &[u8]| {
        jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(key)).unwrap()
    };
    let good = sign(&claims(hour, "littoral-realtime"), Algorithm::HS256, &key);
    let mut parts: Vec<&str> = good.split('.').collect();
    let none = base64_url(&json!({ "alg": "none", "typ": "JWT" }));
    let unsigned = format!("{none}.{}.", parts[1]);
    let keeps_signature = format!("{none}.{}.{}", parts[1], parts[2]);
    let wider = base64_url(&json!({
        "aud": "littoral-realtime", "exp": (market::clock::now() + hour).timestamp(), "sub": Address::ZERO,
        "topics": [Topic::Job(JOB), Topic::Job(OTHER)],
    }));
    parts[1] = &wider;
    let widened = parts.join(".");
    let mut endless = claims(hour, "littoral-realtime");
    endless.as_object_mut().unwrap().remove("exp");
    let refused = [
        ("expired", sign(&claims(TimeDelta::seconds(-1), "littoral-realtime"), Algorithm::HS256, &key)),
        ("of another key", sign(&claims(hour, "littoral-realtime"), Algorithm::HS256, &[7; 32])),
        ("of another algorithm", sign(&claims(hour, "littoral-realtime"), Algorithm::HS512, &key)),
        ("for something else", sign(&claims(hour, "littoral-session"), Algorithm::HS256, &key)),
        ("without an end", sign(&endless, Algorithm::HS256, &key)),
        ("unsigned", unsigned),
        ("unsigned with a signature", keeps_signature),
        ("widened", widened),
        ("empty", String::new()),
        ("no token", "*".to_owned()),
    ];
    for (what, token) in &refused {
        let answer = Events::open(&api.url, &format!("jobs/{JOB}"), token, None).await.err().expect(what);
        assert_eq!(answer.status(), 401, "{what}");
        let error = Socket::connect(&api.url, token).await.err().expect(what);
        assert!(error["message"].as_str().unwrap().starts_with("unauthenticated"), "{what}: {error}");
    }
    // A good one opens what it names: not another's job, not a node of the same id, not everything.
    let answer = Events::open(&api.url, &format!("jobs/{OTHER}"), &good, None).await.err().expect("another's job");
    assert_eq!(answer.status(), 403);
    let answer = Events::open(&api.url, &format!("nodes/{JOB}"), &good, None).await.err().expect("a node");
    assert_eq!(answer.status(), 403);
    let mut socket = Socket::connect(&api.url, &good).await.unwrap();
    for (event, asked, code) in [
        ("subscribe:job", json!(OTHER), "not_permitted"),
        ("subscribe:node", json!(JOB), "not_permitted"),
        ("subscribe:job", json!("*"), "invalid_parameter"),
        ("subscribe:job", json!(format!("{JOB}:updates")), "invalid_parameter"),
        ("subscribe:job", json!({ "jobId": [JOB] }), "invalid_parameter"),
        ("subscribe:job", json!(null), "invalid_parameter"),
        ("presence:update", json!({ "jobId": JOB, "data": 1 }), "not_permitted"),
    ] {
        let answer = socket.ask(event, asked.clone()).await;
        assert_eq!((&answer["ok"], &answer["error"]["code"]), (&json!(false), &json!(code)), "{event} {asked}");
    }
    assert_eq!(socket.ask("subscribe:job", json!(JOB)).await["ok"], true);
    // Clients never publish: what one says in the events' names reaches nobody.
    let mut reader = Socket::connect(&api.url, &good).await.unwrap();
    reader.ask("subscribe:job", json!(JOB)).await;
    socket.say("job:update", json!({ "event": "job.paid", "jobId": JOB })).await;
    world.happen(JOB, "job.opened").await;
    assert_eq!(reader.next().await.unwrap().1["event"], "job.opened");

    // A connection ends with its token.
    let brief = sign(&claims(TimeDelta::seconds(3), "littoral-realtime"), Algorithm::HS256, &key);
    let mut socket = Socket::connect(&api.url, &brief).await.unwrap();
    let mut events = Events::open(&api.url, &format!("jobs/{JOB}"), &brief, None).await.unwrap();
    let (name, error) = socket.next().await.unwrap();
    assert_eq!((name.as_str(), &error["code"]), ("error", &json!("token_expired")));
    assert_eq!(socket.next().await, None);
    events.expect("subscribed").await;
    assert_eq!(events.expect("end").await.data["code"], "token_expired");
    assert_eq!(events.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_replay_everything_from_a_redis_stream() {
    let mut world = World::start().await;
    let _api = world.serve().await;
    for n in 0..5 {
        world.happen(B256::repeat_byte(n), "job.opened").await;
    }
    world.told("channel:global:events:stream", 5).await;
    world.command(&["XGROUP", "CREATE", "channel:global:events:stream", "billing", "0"]).await;
    let mut read = Vec::new();
    for n in 0..5 {
        let answer = world
            .command(&[
                "XREADGROUP",
                "GROUP",
                "billing",
                "one",
                "COUNT",
                "1",
                "STREAMS",
                "channel:global:events:stream",
                ">",
            ])
            .await;
        let streams: Streams = redis::from_redis_value(answer).unwrap();
        let (id, fields) = &streams[0].1[0];
        assert_eq!((fields[0].as_str(), fields[2].as_str()), ("epoch", "message"));
        let message: Value = serde_json::from_str(&fields[3]).unwrap();
        assert_eq!(
            (message["jobId"].clone(), message["event"].clone()),
            (json!(B256::repeat_byte(n)), json!("job.opened"))
        );
        assert_eq!(*id, format!("{}-0", message["offset"]), "its place is its id");
        assert_eq!(message["epoch"].as_str().unwrap(), fields[1]);
        world.command(&["XACK", "channel:global:events:stream", "billing", id]).await;
        read.push(message["offset"].as_u64().unwrap());
    }
    assert!(read.windows(2).all(|pair| pair[1] == pair[0] + 1), "{read:?}");
    // And from anywhere, without a group.
    let answer = world.command(&["XREAD", "STREAMS", "channel:global:events:stream", &format!("{}-0", read[1])]).await;
    let streams: Streams = redis::from_redis_value(answer).unwrap();
    assert_eq!(streams[0].1.len(), 3);
}

/// A part of a token.
fn base64_url(value: &Value) -> String {
    let token = jsonwebtoken::encode(&Header::default(), value, &EncodingKey::from_secret(&[])).unwrap();
    token.split('.').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_application_commands_reaches_the_node_and_nobody_else() {
    let mut world = World::start().await;
    let api = world.serve().await;
    let own = world.token(&[Topic::Node(JOB)]).await;
    let others = world.token(&[Topic::Node(OTHER)]).await;
    let (mut socket, mut other) =
        (Socket::connect(&api.url, &own).await.unwrap(), Socket::connect(&api.url, &others).await.unwrap());
    assert_eq!(socket.ask("subscribe:node", json!(JOB)).await["ok"], true);
    assert_eq!(other.ask("subscribe:node", json!(OTHER)).await["ok"], true);
    let mut events = Events::open(&api.url, &format!("nodes/{JOB}"), &own, None).await.unwrap();
    events.expect("subscribed").await;
    for (node, n) in [(JOB, 1), (OTHER, 2)] {
        let text = json!({ "command": "drain", "n": n }).to_string();
        world.command(&["PUBLISH", &format!("channel:node:{node}:commands"), &text]).await;
    }
    let told = |n: u64| ("node:command".to_owned(), json!("drain"), json!(n));
    for (socket, n) in [(&mut socket, 1), (&mut other, 2)] {
        let (name, data) = socket.next().await.unwrap();
        assert_eq!((name, data["command"].clone(), data["n"].clone()), told(n), "its own and nobody else's");
    }
    assert_eq!(events.expect("node:command").await.data["n"], 1);
}
