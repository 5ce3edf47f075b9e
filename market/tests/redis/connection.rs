use std::time::{Duration, Instant};

use devnet::TestDatabase;
use market::db;
use sqlx::Executor;

#[tokio::test]
async fn a_bounded_connection_gives_long_statements_up_and_stays_usable() {
    let database = TestDatabase::create().await.unwrap();
    let pool = db::connect_bounded(database.url(), 1, Duration::from_millis(300)).await.unwrap();
    let started = Instant::now();
    let error = pool.execute("select pg_sleep(20)").await.unwrap_err();
    assert_eq!(error.as_database_error().and_then(|cause| cause.code()).as_deref(), Some("57014"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    pool.execute("select pg_sleep(0)").await.unwrap();
    let unbounded = db::connect(database.url(), 1).await.unwrap();
    unbounded.execute("select pg_sleep(0.6)").await.unwrap();
}
