//! Ten thousand payments due beside a hundred thousand that are settled: finding and planning them takes no time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alloy::primitives::Address;
use chrono::TimeDelta;
use devnet::TestDatabase;
use market::batch::{self, Kind, Limits};
use market::clock;
use market::db::settlement::{self, Backoff, Filter};
use market::db::types::DbAddress;
use sqlx::PgPool;

const DUE: i32 = 10_000;
const SETTLED: i32 = 100_000;
const CHANNELS: i32 = 100;
const SETTLER: Address = Address::repeat_byte(0x5e);

/// Signed orders of as many channels, the first of them settled for good. Every other channel has a voucher over all.
async fn fill(pool: &PgPool) {
    let mut db = pool.begin().await.unwrap();
    let now = clock::now();
    sqlx::query!(
        r"insert into signed_order (
              job_id, requester, token, max_price, order_node, assigner, spec_hash, deadline, challenge_window_secs,
              arbiter, max_fee_bps, nonce, input_cid, operation, params, signature, priority, created_at, closed_at)
          select sha256(int4send(n)), substr(sha256(int4send(-1 - n % $2::int)), 1, 20), decode(repeat('00', 20), 'hex'), 100,
                 substr(sha256(int4send(-1000 - n % $2::int)), 1, 20), decode(repeat('00', 20), 'hex'), sha256('spec'),
                 $4::timestamptz + interval '1 day', 0, decode(repeat('00', 20), 'hex'), 0, n, 'cid', 'encrypt', '',
                 decode(repeat('11', 65), 'hex'), 100, $4::timestamptz - interval '1 hour',
                 case when n <= $3::int then $4::timestamptz end
          from generate_series(1, $1::int + $3::int) n",
        DUE,
        CHANNELS,
        SETTLED,
        now
    )
    .execute(&mut *db)
    .await
    .unwrap();
    sqlx::query!(
        "insert into job_completion (job_id, fence, node, output_cid, result_hash, price, receipt_signature,
             assignment_expiry, assignment_signature, started_at, completed_at)
         select job_id, 1, order_node, 'cid', sha256('result'), 100, decode(repeat('11', 65), 'hex'), 0, '', created_at,
                created_at
         from signed_order"
    )
    .execute(&mut *db)
    .await
    .unwrap();
    sqlx::query!(
        "insert into payment_due (job_id, node, token, amount, created_at, closed_at)
         select job_id, order_node, token, 100, created_at, closed_at from signed_order"
    )
    .execute(&mut *db)
    .await
    .unwrap();
    sqlx::query!(
        "insert into voucher (requester, node, token, cumulative, covered_nonce, signer, signature, created_at)
         select requester, order_node, token, 100 * count(*), max(nonce), requester, decode(repeat('11', 65), 'hex'), $2
         from signed_order where nonce % $1 % 2 = 0
         group by requester, order_node, token",
        sqlx::types::BigDecimal::from(CHANNELS),
        now
    )
    .execute(&mut *db)
    .await
    .unwrap();
    sqlx::query!(
        "insert into escrow_settler (node, settler, allowed) select distinct order_node, $1::bytea, true from signed_order",
        DbAddress(SETTLER) as _
    )
    .execute(&mut *db)
    .await
    .unwrap();
    sqlx::query!(
        "insert into escrow_account (owner, token, free, thawing)
         select distinct requester, token, 1000000000, 0 from signed_order"
    )
    .execute(&mut *db)
    .await
    .unwrap();
    db.commit().await.unwrap();
    // What autovacuum does within a minute.
    sqlx::query!("analyze").execute(pool).await.unwrap();
}

#[tokio::test]
async fn ten_thousand_payments_are_found_and_planned_in_a_moment() {
    let database = TestDatabase::create().await.unwrap();
    let pool = settlement::connect(database.url(), 2).await.unwrap();
    market::db::migrate(&pool).await.unwrap();
    fill(&pool).await;
    let now = clock::now();
    let backoff = Backoff {
        first: TimeDelta::seconds(5),
        longest: TimeDelta::hours(1),
        voucher_grace: TimeDelta::minutes(10),
        urgent_within: TimeDelta::minutes(10),
    };
    let started = Instant::now();
    let mut db = settlement::snapshot(&pool).await.unwrap();
    let filter = Filter::default();
    let results = settlement::due_results(&mut db, SETTLER, &filter, backoff, &[], now, i64::from(DUE)).await.unwrap();
    let found_results = started.elapsed();
    let vouchers = settlement::redeemable(&mut db, SETTLER, &filter, backoff, now, i64::from(DUE)).await.unwrap();
    let found = started.elapsed();
    assert_eq!(results.len(), 5_000, "those that no voucher covers");
    assert_eq!(vouchers.len(), 50);
    let candidates: Vec<_> = results.into_iter().chain(vouchers.into_iter().map(|(item, _)| item)).collect();
    let limits = Limits {
        max_items: 128,
        max_gas: 15_000_000,
        min_items: 128,
        max_wait: TimeDelta::zero(),
        voucher_wait: TimeDelta::zero(),
        max_age: TimeDelta::hours(1),
        urgent_within: TimeDelta::minutes(10),
        deadline_margin: TimeDelta::zero(),
        gas_price: 1,
        gas_is_dear: false,
        max_gas_share_bps: None,
        rates: BTreeMap::new(),
    };
    let plan = batch::plan(candidates, &limits, now);
    let all = started.elapsed();
    println!("results {found_results:?}, with vouchers {found:?}, planned {all:?}");
    let planned: usize = plan.batches.iter().filter(|batch| batch.kind == Kind::Submit).map(|b| b.items.len()).sum();
    assert_eq!(planned, 5_000);
    assert!(all < Duration::from_secs(10), "results {found_results:?}, with vouchers {found:?}, planned {all:?}");
}
