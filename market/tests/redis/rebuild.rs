//! A flushed Redis is filled again, with exactly what was in it.

use alloy::primitives::Address;
use market::db::outbox::Entity;
use market::db::projection;
use market::redis::Client;
use market::redis::keys::Keys;
use market::redis::pubsub::{Signal, Subscription};
use market::redis::{dump, rebuild};

use crate::projection::a_bit_of_everything;
use crate::support::{World, job, node_id};

#[tokio::test]
async fn after_a_flush_a_rebuild_makes_exactly_what_was_there() {
    let world = World::new().await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap(), "an empty Redis is filled");
    assert!(!rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap(), "once");
    a_bit_of_everything(&world).await;
    let before = world.dump().await;
    assert!(before.len() > 15, "{before:?}");
    world.command(&["FLUSHALL"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap());
    assert_eq!(world.dump().await, before);
}

#[tokio::test]
async fn a_redis_of_another_database_is_cleaned_and_what_others_keep_stays() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    rebuild::rebuild(&world.pool, &world.redis, world.at(20)).await.unwrap();
    let before = world.dump().await;
    for (key, value) in [("session:bob:pkp", "1"), ("rl:x:y:z:burst:1", "2"), ("idempotency:a:b", "3")] {
        world.command(&["SET", key, value]).await;
    }
    let keys = world.redis.keys();
    world.command(&["HSET", &keys.job_status(job(99)), "status", "pending"]).await;
    world.command(&["ZADD", "jobs:pending", "1", &job(99).to_string()]).await;
    world.command(&["SADD", &keys.jobs_active(node_id(77)), &job(99).to_string()]).await;
    let mut db = world.pool.acquire().await.unwrap();
    let old = projection::generation(&mut db).await.unwrap();
    let new = projection::renew_generation(&mut db).await.unwrap();
    assert_ne!(old, new);
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap());
    assert_eq!(world.dump().await, before);
    assert_eq!(rebuild::generation(&world.redis).await.unwrap(), Some(new));
    for key in ["session:bob:pkp", "rl:x:y:z:burst:1", "idempotency:a:b"] {
        assert_ne!(world.command(&["GET", key]).await, redis::Value::Nil, "{key}");
    }
}

#[tokio::test]
async fn what_others_left_under_our_names_stops_nothing() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    world.heartbeat(1, 0).await;
    rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap();
    let keys = world.redis.keys();
    for n in 1..=2 {
        world.open(n, Address::ZERO, 3600, 0).await;
        world.claim(n, 1, 1).await;
    }
    world.drain(2).await;
    let owed = keys.payments_pending(node_id(1));
    world.command(&["RPUSH", &owed, "no JSON", r#"{"jobId":"x","amount":"1","timestamp":"soon"}"#]).await;
    world.complete(1, 1, 3).await;
    world.drain(3).await;
    let last: String = redis::from_redis_value(world.command(&["LINDEX", &owed, "-1"]).await).unwrap();
    assert!(last.contains(&job(1).to_string()), "{last}");
    world.command(&["DEL", &owed]).await;
    for key in [
        owed,
        keys.job_status(job(2)),
        keys.jobs_pending(),
        keys.jobs_active(node_id(1)),
        keys.jobs_completed(),
        keys.payments_completed(),
        keys.nodes_available(),
        keys.nodes_heartbeats(),
        keys.session(&"0x1".parse().unwrap()),
    ] {
        world.command(&["DEL", &key]).await;
        world.command(&["SET", &key, "not ours"]).await;
    }
    world.complete(2, 1, 4).await;
    world.heartbeat(1, 4).await;
    world.drain(4).await;
    market::redis::session::write(&world.redis, &"0x1".parse().unwrap(), Address::ZERO, world.at(4)).await.unwrap();
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(4)).await.unwrap(), "keys of all are filled again");
    let mended = world.dump().await;
    world.command(&["FLUSHALL"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(4)).await.unwrap());
    assert_eq!(mended, world.dump().await);
}

#[tokio::test]
async fn many_payments_come_back_in_their_order() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    // Ids ascend, times descend, so the order of ids is not that of the list.
    for n in 1..=40 {
        world.open(n, Address::ZERO, 3600, 0).await;
        world.claim(n, 1, 1).await;
        world.complete(n, 1, 100 - i64::from(n)).await;
    }
    world.drain(100).await;
    let before = world.dump().await;
    world.command(&["FLUSHALL"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(100)).await.unwrap());
    assert_eq!(world.dump().await, before);
}

#[tokio::test]
async fn a_prefix_goes_in_front_of_every_key_and_two_markets_share_a_redis() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    let plain = world.dump().await;
    let tagged = Client::open(world.server.url(), Keys::new("{m}:")).unwrap();
    rebuild::rebuild(&world.pool, &tagged, world.at(20)).await.unwrap();
    let with_prefix = dump::dump(&tagged).await.unwrap();
    assert_eq!(with_prefix, plain.iter().map(|(key, value)| (format!("{{m}}:{key}"), value.clone())).collect());
    rebuild::rebuild(&world.pool, &tagged, world.at(20)).await.unwrap();
    assert_eq!(world.dump().await, plain, "cleaning one market leaves the other alone");
}

/// 300 jobs in the queue, ten of them held by a node and as many owed to it.
async fn a_full_queue(world: &World) {
    world.register(1, node_id(1), 5, 0).await;
    for n in 1..=20 {
        world.open(n, Address::ZERO, 3600, 0).await;
        world.claim(n, 1, 1).await;
    }
    for n in 1..=10 {
        world.complete(n, 1, 2).await;
    }
    sqlx::query(
        "insert into escrow_job
         select (jsonb_populate_record(e, jsonb_build_object('job_id', '\\xee' || lpad(to_hex(i), 62, '0')))).*
         from escrow_job e cross join generate_series(1, 300) as i where e.job_id = $1",
    )
    .bind(job(20).as_slice())
    .execute(&world.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn readers_never_see_an_empty_or_a_half_queue_while_it_is_rebuilt() {
    let world = World::new().await;
    a_full_queue(&world).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(5)).await.unwrap());
    let before = world.dump().await;
    let keys = world.redis.keys();
    let counts = async || {
        let count = async |command: &str, key: String| -> i64 {
            redis::from_redis_value(world.command(&[command, &key]).await).unwrap()
        };
        (
            count("ZCARD", keys.jobs_pending()).await,
            count("SCARD", keys.jobs_active(node_id(1))).await,
            count("LLEN", keys.payments_pending(node_id(1))).await,
            count("HLEN", keys.job_status(job(1))).await > 5,
        )
    };
    assert_eq!(counts().await, (300, 10, 10, true));
    let done = std::sync::atomic::AtomicBool::new(false);
    let poll = async {
        let mut looks = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            assert_eq!(counts().await, (300, 10, 10, true), "after {looks} looks");
            looks += 1;
        }
        looks
    };
    let rebuild = async {
        for anew in [true, false] {
            if !anew {
                projection::renew_generation(&mut world.pool.acquire().await.unwrap()).await.unwrap();
            }
            assert!(rebuild::rebuild(&world.pool, &world.redis, world.at(5)).await.unwrap());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (looks, ()) = tokio::join!(poll, rebuild);
    assert!(looks > 5, "{looks}");
    assert_eq!(world.dump().await, before);
    let left: Vec<String> = redis::from_redis_value(world.command(&["KEYS", "littoral:staging:*"]).await).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn what_changes_during_a_rebuild_is_there_after_it() {
    let world = World::new().await;
    a_full_queue(&world).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(5)).await.unwrap());
    let change = async {
        for n in 30..=50 {
            world.open(n, Address::ZERO, 3600, 0).await;
            world.claim(n, 1, 1).await;
            world.drain(5).await;
            if n % 2 == 0 {
                world.unopen(n, 5).await;
            } else {
                world.complete(n, 1, 3).await;
            }
            world.drain(5).await;
        }
    };
    let rebuild = rebuild::rebuild(&world.pool, &world.redis, world.at(5));
    let ((), rebuilt) = tokio::join!(change, rebuild);
    assert!(rebuilt.unwrap());
    let live = world.dump().await;
    world.command(&["FLUSHALL"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(5)).await.unwrap());
    assert_eq!(live, world.dump().await);
}

#[tokio::test]
async fn a_redis_that_lost_changes_notices_and_is_filled_anew() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap());
    assert!(!rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap(), "all is there");
    let before = world.dump().await;
    let applied = world.redis.keys().applied("chain");
    let batch: i64 = redis::from_redis_value(world.command(&["HGET", &applied, "batch"]).await).unwrap();

    // As after a restart from an older copy of its memory: nothing new happens, and yet it shows.
    world.command(&["HSET", &applied, "batch", &(batch - 1).to_string()]).await;
    world.command(&["DEL", "jobs:pending"]).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap());
    assert_eq!(world.dump().await, before);

    // Or the next batch comes first, and finds one missing before it.
    world.command(&["HSET", &applied, "batch", &(batch - 1).to_string()]).await;
    world.open(90, Address::ZERO, 3600, 20).await;
    world.drain(20).await;
    assert_eq!(rebuild::generation(&world.redis).await.unwrap(), None, "a gap");
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(20)).await.unwrap());
}

#[tokio::test]
async fn a_batch_whose_commit_was_lost_is_not_told_twice() {
    let world = World::new().await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap());
    let mut told = Subscription::open(world.redis.clone(), vec![world.redis.keys().channel_global()]);
    assert_eq!(told.next().await, Signal::Resumed);
    world.open(1, Address::ZERO, 3600, 0).await;
    let rows = "create table rows as select * from chain_outbox";
    sqlx::raw_sql(rows).execute(&world.pool).await.unwrap();
    world.drain(1).await;
    let before = world.dump().await;

    // The process died after Redis had it and before Postgres did; then one more change came.
    sqlx::raw_sql("insert into chain_outbox select * from rows; update projection_progress set batch = batch - 1 where source = 'chain'")
        .execute(&world.pool)
        .await
        .unwrap();
    world.open(2, Address::ZERO, 3600, 2).await;
    world.drain(2).await;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        if let Signal::Message { payload, .. } = told.next().await {
            heard.push(payload);
        }
    }
    assert!(heard[0].contains(&job(1).to_string()) && heard[1].contains(&job(2).to_string()), "{heard:?}");
    assert!(world.dump().await.len() > before.len());
    assert!(!rebuild::ensure(&world.pool, &world.redis, world.at(2)).await.unwrap(), "nothing is lost");
}

#[tokio::test]
async fn a_database_that_lost_commits_or_a_leader_of_an_earlier_epoch_changes_nothing_without_a_rebuild() {
    for lost in [
        "update projection_progress set batch = 0",
        "insert into leader (role, epoch, since) values ('indexer', 1, now())",
    ] {
        let world = World::new().await;
        assert!(rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap());
        for n in 1..=3 {
            world.open(n, Address::ZERO, 3600, 0).await;
            world.drain(1).await;
        }
        world.command(&["HSET", &world.redis.keys().applied("chain"), "epoch", "7"]).await;
        if lost.starts_with("update") {
            world.command(&["HSET", &world.redis.keys().applied("chain"), "epoch", "0"]).await;
        }
        sqlx::raw_sql(lost).execute(&world.pool).await.unwrap();
        let old = rebuild::generation(&world.redis).await.unwrap();
        world.open(4, Address::ZERO, 3600, 0).await;
        world.drain(2).await;
        assert!(rebuild::ensure(&world.pool, &world.redis, world.at(2)).await.unwrap(), "{lost}: another generation");
        assert_ne!(rebuild::generation(&world.redis).await.unwrap(), old);
        assert!(!rebuild::ensure(&world.pool, &world.redis, world.at(2)).await.unwrap());
        assert_eq!(market::redis::queue::depth(&world.redis).await.unwrap(), 4);
    }
}

/// Until Redis has a rebuild's token, and someone waits for an entity's lock in this database.
async fn rebuilding(world: &World) {
    for _ in 0..600 {
        let token = world.command(&["EXISTS", &world.redis.keys().rebuilding()]).await;
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_locks where locktype = 'advisory' and not granted
                 and database = (select oid from pg_database where datname = current_database()))",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        if token == redis::Value::Int(1) && waits {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("no rebuild is under way");
}

#[tokio::test]
async fn a_flush_in_the_middle_of_a_rebuild_is_noticed_at_once_and_it_begins_again() {
    let world = World::new().await;
    a_full_queue(&world).await;
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(5)).await.unwrap());
    let before = world.dump().await;
    // Who works on these jobs makes the rebuild wait: at the first of its batches, and at the last.
    let mut last = [0; 32];
    (last[0], last[30], last[31]) = (0xee, 0x01, 0x2c);
    let (mut early, mut late) = (world.pool.begin().await.unwrap(), world.pool.begin().await.unwrap());
    projection::lock(&mut early, &[Entity::Job(job(1))]).await.unwrap();
    projection::lock(&mut late, &[Entity::Job(last.into())]).await.unwrap();
    let (pool, client, at) = (world.pool.clone(), world.redis.clone(), world.at(5));
    let rebuild = tokio::spawn(async move { rebuild::rebuild(&pool, &client, at).await });
    rebuilding(&world).await;
    world.command(&["FLUSHALL"]).await;
    early.rollback().await.unwrap();
    // It has not come to its end, where it would have noticed in any case.
    rebuilding(&world).await;
    assert!(!rebuild.is_finished());
    late.rollback().await.unwrap();
    assert!(rebuild.await.unwrap().unwrap());
    assert_eq!(world.dump().await, before);
    assert!(!rebuild::ensure(&world.pool, &world.redis, world.at(5)).await.unwrap(), "nothing is left to do");
}
