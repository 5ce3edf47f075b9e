//! A chain, and databases that mirror it.

use std::time::Duration;

use alloy::primitives::B256;
use devnet::TestDatabase;
use littoral_api::audit::{Audit, AuditError, Report, run};
use market::abi::{JobSpec, Order};
use market::clock;
use market::db::chain::{self, Step};
use market::db::leader::{Leadership, Role};
use market::db::{self, confirmation, order};
use market::fold::Contracts;
use market::source::Source;
use sqlx::PgPool;

use crate::chain::Chain;

/// A database that mirrors a chain as far as it was told to.
pub struct Books {
    pub pool: PgPool,
    pub source: Source,
    pub database: TestDatabase,
    leadership: Leadership,
}

impl Books {
    /// Of all that happened on `chain` so far.
    pub async fn of(chain: &Chain) -> Self {
        let database = TestDatabase::create().await.unwrap();
        let pool = db::connect(database.url(), 4).await.unwrap();
        db::migrate(&pool).await.unwrap();
        let source = Source::new(vec![chain.provider.clone()], Contracts::from(&chain.deployment));
        let leadership = Leadership::try_acquire(&pool, Role::Indexer, clock::now()).await.unwrap().unwrap();
        let anchor = source.block(0).await.unwrap().unwrap();
        let mut tx = pool.begin().await.unwrap();
        chain::begin(&mut tx, leadership.fence(), source.contracts(), &anchor).await.unwrap();
        let policy = &source.contracts().confirmation;
        confirmation::adopt(&mut tx, leadership.fence(), policy, clock::now()).await.unwrap();
        tx.commit().await.unwrap();
        let books = Self { pool, source, database, leadership };
        books.index().await;
        books
    }

    /// Goes on to the chain's head.
    pub async fn index(&self) {
        let mut tx = self.pool.begin().await.unwrap();
        let from = chain::cursor(&mut tx).await.unwrap().unwrap().block;
        let head = self.source.head().await.unwrap().block.id.number;
        if head == from.number {
            return;
        }
        let stretch = self.source.range(from.number + 1..=head).await.unwrap();
        let step = Step { from, ancestor: None, blocks: stretch.blocks, events: stretch.events, settled: 0 };
        let (fence, contracts) = (self.leadership.fence(), self.source.contracts());
        chain::apply(&mut tx, fence, contracts, &step, clock::now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub fn audit(&self, chain: &Chain) -> Audit {
        Audit::new(self.pool.clone(), self.source.clone(), chain.deployment.clone()).patience(Duration::ZERO)
    }

    pub async fn audited(&self, chain: &Chain) -> Result<Report, AuditError> {
        run(&self.audit(chain)).await
    }

    /// As the API would, when a node completes a signed order for `price`.
    pub async fn completed(&self, chain: &Chain, order: &Order, spec: &JobSpec, price: u64) -> B256 {
        let id = chain.job_id(order);
        let mut db = self.pool.acquire().await.unwrap();
        let now = clock::now();
        assert!(
            order::insert_signed(&mut db, id, (order, spec), b"signature", &order::Terms::default(), now)
                .await
                .unwrap()
        );
        sqlx::query(
            "with completed as (
                 insert into job_completion (job_id, fence, node, output_cid, result_hash, price, receipt_signature,
                                             assignment_expiry, assignment_signature, started_at, completed_at)
                 values ($1, 1, $2, '', $1, $3::bigint, '', 0, '', $4, $4)
                 returning *)
             insert into payment_due (job_id, node, token, amount, created_at)
             select job_id, node, $5, price, completed_at from completed",
        )
        .bind(id.as_slice())
        .bind(order.node.as_slice())
        .bind(i64::try_from(price).unwrap())
        .bind(now)
        .bind(order.token.as_slice())
        .execute(&mut *db)
        .await
        .unwrap();
        id
    }
}
