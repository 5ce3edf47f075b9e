//! What was published on a channel can be had afterwards: once, in order, or not at all.

use alloy::primitives::Address;
use market::db::outbox::{self, Entity, Source};
use market::redis::history::{self, History, Position};
use market::redis::rebuild;
use serde_json::Value;

use crate::support::{World, job};

/// The names of what happened to the first job since `since`; nothing if that is not known.
async fn missed(world: &World, since: &Position) -> (Position, Option<Vec<String>>) {
    let channel = world.redis.keys().channel_job(job(1));
    let History { head, missed } = history::watch(&world.redis, &channel, Some(since)).await.unwrap();
    let name = |text: &str| serde_json::from_str::<Value>(text).unwrap()["event"].as_str().unwrap().to_owned();
    (head, missed.map(|missed| missed.iter().map(|message| name(&message.text)).collect()))
}

async fn begin(world: &World) -> Position {
    assert!(rebuild::ensure(&world.pool, &world.redis, world.at(0)).await.unwrap());
    let channel = world.redis.keys().channel_job(job(1));
    history::watch(&world.redis, &channel, None).await.unwrap().head
}

async fn happen(world: &World, names: impl Iterator<Item = String>) {
    let names: Vec<String> = names.collect();
    let changes: Vec<(Entity, &str)> = names.iter().map(|name| (Entity::Job(job(1)), name.as_str())).collect();
    let mut db = world.pool.acquire().await.unwrap();
    outbox::append_many(&mut db, Source::Work, &changes, world.at(0)).await.unwrap();
}

#[tokio::test]
async fn a_batch_that_is_repeated_is_told_once_whatever_became_visible_since() {
    let world = World::new().await;
    let start = begin(&world).await;
    happen(&world, (0..140).map(|n| format!("job.event{n}"))).await;
    // The first row is not visible yet, and those of the second batch are not there.
    let hide = "create table rows as select * from work_outbox;
                delete from work_outbox where event = 'job.event0' or seq > (select min(seq) + 128 from work_outbox)";
    sqlx::raw_sql(hide).execute(&world.pool).await.unwrap();
    world.drain(1).await;
    let first: Vec<String> = (1..=128).map(|n| format!("job.event{n}")).collect();
    assert_eq!(missed(&world, &start).await.1.unwrap(), first);

    // Whoever applied them died before it could commit.
    let undo = "insert into work_outbox select * from rows;
                update projection_progress set batch = batch - 1 where source = 'work'";
    sqlx::raw_sql(undo).execute(&world.pool).await.unwrap();
    world.drain(2).await;
    let rest = ["job.event0".to_owned()].into_iter().chain((129..140).map(|n| format!("job.event{n}")));
    assert_eq!(missed(&world, &start).await.1.unwrap(), first.into_iter().chain(rest).collect::<Vec<_>>());
    let left = sqlx::query_scalar::<_, i64>("select count(*) from work_outbox").fetch_one(&world.pool).await.unwrap();
    assert_eq!(left, 0);
    assert!(!rebuild::ensure(&world.pool, &world.redis, world.at(2)).await.unwrap(), "nothing is lost");
}

#[tokio::test]
async fn a_redis_that_forgot_what_it_had_told_begins_another_history() {
    let world = World::new().await;
    let start = begin(&world).await;
    for n in 0..3 {
        happen(&world, std::iter::once(format!("job.event{n}"))).await;
        world.drain(1).await;
    }
    let (third, all) = missed(&world, &start).await;
    assert_eq!((all.unwrap().len(), third.offset), (3, start.offset + 3));

    // As after a restart without its last second, in which two more were told.
    let applied = world.redis.keys().applied("work");
    let batch: i64 = redis::from_redis_value(world.command(&["HGET", &applied, "batch"]).await).unwrap();
    world.command(&["HSET", &applied, "batch", &(batch - 2).to_string()]).await;
    let told = Position { offset: third.offset + 2, ..third.clone() };
    happen(&world, (3..9).map(|n| format!("job.event{n}"))).await;
    world.drain(2).await;
    let (head, unknown) = missed(&world, &told).await;
    assert_eq!(unknown, None, "what stands there now is not what was told");
    assert_ne!(head.epoch, told.epoch);
    assert_eq!(head.offset, 6, "what happened since is in the new one");
    let anew = Position { offset: 1, ..head };
    assert_eq!(missed(&world, &anew).await.1.unwrap().len(), 5);
}

#[tokio::test]
async fn of_a_long_absence_it_is_told_that_it_cannot_be_had() {
    let world = World::new().await;
    let start = begin(&world).await;
    happen(&world, (0..60).map(|n| format!("job.event{n}"))).await;
    world.drain(1).await;
    assert_eq!(missed(&world, &start).await.1.unwrap().len(), 60);
    happen(&world, (60..700).map(|n| format!("job.event{n}"))).await;
    world.drain(1).await;
    let (head, unknown) = missed(&world, &start).await;
    assert_eq!((unknown, head.offset), (None, start.offset + 700));
    let recent = Position { offset: head.offset - 256, ..head.clone() };
    assert_eq!(missed(&world, &recent).await.1.unwrap().len(), 256, "as many are kept at least");
    for wrong in
        [Position { offset: head.offset + 1, ..head.clone() }, Position { epoch: "0".to_owned(), ..head.clone() }]
    {
        assert_eq!(missed(&world, &wrong).await.1, None);
    }
    assert_eq!(missed(&world, &head).await.1.unwrap().len(), 0);
    // A job that nobody follows has no history.
    world.open(2, Address::ZERO, 3600, 0).await;
    world.drain(1).await;
    let stream = format!("{}:stream", world.redis.keys().channel_job(job(2)));
    let exists: bool = redis::from_redis_value(world.command(&["EXISTS", &stream]).await).unwrap();
    assert!(!exists);
}
