//! A database and a Redis of one test, and the rows that the other processes would write.

use alloy::primitives::{Address, B256, U256};
use chrono::{DateTime, TimeDelta, Utc};
use devnet::{RedisOptions, TestDatabase};
use market::abi::{JobSpec, Order};
use market::db::outbox::{self, Entity, Source};
use market::db::types::{DbAddress, DbHash};
use market::order::{OrderJson, SpecJson};
use market::redis::Client;
use market::redis::keys::Keys;
use market::redis::projector::Projector;
use market::redis::queue;
use market::{ContentId, clock, db};
use serde_json::json;
use sqlx::{PgConnection, PgPool};

pub const CHAIN_ID: u64 = 31337;
pub const PRICE: u64 = 700;

/// What one test has to itself.
pub struct World {
    pub pool: PgPool,
    pub server: devnet::Redis,
    pub redis: Client,
    /// When everything in it begins, in whole milliseconds, as Redis keeps times.
    pub start: DateTime<Utc>,
    database: TestDatabase,
}

pub fn requester() -> Address {
    Address::repeat_byte(0xaa)
}

pub fn node(n: u8) -> Address {
    Address::repeat_byte(n)
}

pub fn node_id(n: u8) -> B256 {
    B256::repeat_byte(0x80 + n)
}

pub fn job(n: u8) -> B256 {
    B256::repeat_byte(n)
}

/// A hash of a transaction or block, told apart by its kind.
pub fn hash(kind: u8, n: u8) -> B256 {
    let mut bytes = [kind; 32];
    bytes[31] = n;
    B256::from(bytes)
}

pub fn output(n: u8) -> ContentId {
    ContentId::of(&[n])
}

pub fn order(named: Address) -> Order {
    Order {
        requester: requester(),
        maxPrice: 1000,
        node: named,
        assigner: Address::repeat_byte(0xee),
        ..Order::default()
    }
}

pub fn spec() -> JobSpec {
    JobSpec { inputCID: ContentId::of(b"in").to_string(), operation: "encrypt".to_owned(), params: String::new() }
}

pub fn secs(n: i64) -> TimeDelta {
    TimeDelta::seconds(n)
}

impl World {
    pub fn url(&self) -> &str {
        self.database.url()
    }

    pub async fn new() -> Self {
        let database = TestDatabase::create().await.unwrap();
        let pool = db::connect(database.url(), 16).await.unwrap();
        db::migrate(&pool).await.unwrap();
        let server = devnet::Redis::start(RedisOptions::default()).await.unwrap();
        let redis = Client::open(server.url(), Keys::default()).unwrap();
        let start = clock::now();
        let start = DateTime::from_timestamp_millis(start.timestamp_millis()).unwrap();
        let world = Self { pool, server, redis, start, database };
        sqlx::query!(
            "insert into chain_cursor (chain_id, escrow, registry, block_number, block_hash, undo_above, epoch, final_number)
             values ($1, $2, $2, 100, $3, 0, 1, 100)",
            CHAIN_ID.cast_signed(),
            DbAddress(Address::repeat_byte(0xe5)) as _,
            DbHash(hash(0xb0, 1)) as _
        )
        .execute(&world.pool)
        .await
        .unwrap();
        world
    }

    /// The time `n` seconds after the start.
    pub fn at(&self, n: i64) -> DateTime<Utc> {
        self.start + secs(n)
    }

    pub fn projector(&self, source: Source) -> Projector {
        Projector::new(self.pool.clone(), self.redis.clone(), source)
    }

    /// Applies both outboxes as at `n` seconds after the start.
    pub async fn drain(&self, n: i64) {
        for source in [Source::Chain, Source::Work] {
            self.projector(source).drain(self.at(n)).await.unwrap();
        }
    }

    /// Runs one Redis command.
    pub async fn command(&self, words: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.unwrap()
    }

    /// What Redis suggests to a node that encrypts, `n` seconds after the start.
    pub async fn suggested(&self, limit: usize, n: i64) -> Vec<B256> {
        let operations = ["encrypt".to_owned()];
        queue::suggest(&self.redis, node(1), &operations, Address::ZERO, limit, self.at(n)).await.unwrap()
    }

    pub async fn dump(&self) -> std::collections::BTreeMap<String, serde_json::Value> {
        market::redis::dump::dump(&self.redis).await.unwrap()
    }

    /// The fields of a job's hash.
    pub async fn status(&self, id: B256) -> serde_json::Value {
        let mut dump = self.dump().await;
        dump.remove(&self.redis.keys().job_status(id)).map_or(json!({}), |mut key| key["value"].take())
    }

    async fn note(&self, db: &mut PgConnection, source: Source, entity: Entity, event: &str, n: i64) {
        outbox::append(db, source, entity, event, self.at(n)).await.unwrap();
    }

    // What the chain says.

    pub async fn open(&self, n: u8, named: Address, deadline: i64, at: i64) {
        self.open_spec(n, named, deadline, at, true).await;
    }

    pub async fn open_spec(&self, n: u8, named: Address, deadline: i64, at: i64, spec_valid: bool) {
        let (order, spec, mut tx) = (order(named), spec(), self.pool.begin().await.unwrap());
        sqlx::query!(
            "insert into escrow_job (job_id, requester, token, max_price, order_node, assigner, spec_hash, deadline,
                challenge_window_secs, arbiter, max_fee_bps, nonce, input_cid, operation, params, spec_valid, state,
                opened_block, opened_tx, opened_at)
             values ($1, $2, $3, 1000, $4, $5, $6, $7, 0, $3, 0, $8, $9, $10, '', $11, 'open', 1, $12, $13)",
            DbHash(job(n)) as _,
            DbAddress(order.requester) as _,
            DbAddress(Address::ZERO) as _,
            DbAddress(named) as _,
            DbAddress(order.assigner) as _,
            DbHash(hash(0x55, n)) as _,
            self.at(deadline),
            bigdecimal::BigDecimal::from(n),
            spec.inputCID,
            spec.operation,
            spec_valid,
            DbHash(hash(0x0e, n)) as _,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Chain, Entity::Job(job(n)), "job.opened", at).await;
        tx.commit().await.unwrap();
    }

    /// A reorg takes the `openJob` away.
    pub async fn unopen(&self, n: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!("delete from escrow_job where job_id = $1", DbHash(job(n)) as _).execute(&mut *tx).await.unwrap();
        self.note(&mut tx, Source::Chain, Entity::Job(job(n)), "job.reorged", at).await;
        tx.commit().await.unwrap();
    }

    /// The result is on the chain and waits until `finalize_at`.
    pub async fn submitted(&self, n: u8, by: u8, finalize_at: i64, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "update escrow_job set state = 'submitted', node = $2, price = $3, paid_token = token, result_hash = $4, finalize_at = $5,
                submitted_tx = $6
             where job_id = $1",
            DbHash(job(n)) as _,
            DbAddress(node(by)) as _,
            bigdecimal::BigDecimal::from(PRICE),
            DbHash(output(n).digest()) as _,
            self.at(finalize_at),
            DbHash(hash(0x5b, n)) as _
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Chain, Entity::Job(job(n)), "job.submitted", at).await;
        tx.commit().await.unwrap();
    }

    pub async fn paid(&self, n: u8, by: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "update escrow_job set state = 'paid', node = $2, price = $3, paid_token = token, result_hash = $4, closed_block = 9,
                closed_tx = $5, closed_at = $6
             where job_id = $1",
            DbHash(job(n)) as _,
            DbAddress(node(by)) as _,
            bigdecimal::BigDecimal::from(PRICE),
            DbHash(output(n).digest()) as _,
            DbHash(hash(0xc1, n)) as _,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Chain, Entity::Job(job(n)), "job.paid", at).await;
        tx.commit().await.unwrap();
    }

    /// A reorg takes the payment away.
    pub async fn unpaid(&self, n: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "update escrow_job set state = 'open', node = null, price = null, paid_token = null, result_hash = null, closed_block = null,
                closed_tx = null, closed_at = null, finalize_at = null, submitted_tx = null
             where job_id = $1",
            DbHash(job(n)) as _
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Chain, Entity::Job(job(n)), "job.reorged", at).await;
        tx.commit().await.unwrap();
    }

    pub async fn refunded(&self, n: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "update escrow_job set state = 'refunded', closed_block = 9, closed_tx = $2, closed_at = $3
             where job_id = $1",
            DbHash(job(n)) as _,
            DbHash(hash(0xc1, n)) as _,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Chain, Entity::Job(job(n)), "job.refunded", at).await;
        tx.commit().await.unwrap();
    }

    pub async fn register(&self, n: u8, id: B256, stake: u64, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "insert into registry_node (node, node_id, public_key, payout, capacity, operations, uri, stake, unbonding,
                                        bonds, bonded_paid, bonded_disputed, bonded_lost)
             values ($1, $2, '\\x07', $1, 4, '{encrypt,decrypt}', '', $3, 0, 0, 0, 0, 0)",
            DbAddress(node(n)) as _,
            DbHash(id) as _,
            bigdecimal::BigDecimal::from(stake)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Chain, Entity::Node(node(n)), "node.registered", at).await;
        tx.commit().await.unwrap();
    }

    /// A reorg takes the registration away.
    pub async fn unregister(&self, n: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!("delete from registry_node where node = $1", DbAddress(node(n)) as _)
            .execute(&mut *tx)
            .await
            .unwrap();
        self.note(&mut tx, Source::Chain, Entity::Node(node(n)), "node.reorged", at).await;
        tx.commit().await.unwrap();
    }

    // What the API decides.

    pub async fn announce(&self, n: u8, priority: i32, at: i64) {
        let order = Order { deadline: self.at(3600).timestamp().unsigned_abs(), ..order(Address::ZERO) };
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "insert into job_submission (job_id, requester, order_json, spec_json, priority, created_at)
             values ($1, $2, $3, $4, $5, $6)",
            DbHash(job(n)) as _,
            DbAddress(requester()) as _,
            json!(OrderJson::from(&order)),
            json!(SpecJson::from(&spec())),
            priority,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Work, Entity::Job(job(n)), "job.announced", at).await;
        tx.commit().await.unwrap();
    }

    pub async fn heartbeat(&self, n: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "insert into node_profile (node, public_key, max_concurrent_jobs, operations, registered_at,
                last_heartbeat_at)
             values ($1, '\\x07', 3, '{encrypt}', $2, $2)
             on conflict (node) do update set last_heartbeat_at = excluded.last_heartbeat_at",
            DbAddress(node(n)) as _,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Work, Entity::Node(node(n)), "node.heartbeat", at).await;
        tx.commit().await.unwrap();
    }

    pub async fn claim(&self, n: u8, by: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "insert into job_work (job_id, state, fence, attempts, node, leased_at, lease_expires_at, updated_at)
             values ($1, 'leased', 1, 0, $2, $3, $4, $3)
             on conflict (job_id) do update set state = 'leased', fence = job_work.fence + 1, node = $2, leased_at = $3,
                lease_expires_at = $4, not_before = null, updated_at = $3",
            DbHash(job(n)) as _,
            DbAddress(node(by)) as _,
            self.at(at),
            self.at(at + 60)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query!(
            "insert into job_attempt (job_id, fence, node, leased_at)
             select job_id, fence, node, leased_at from job_work where job_id = $1",
            DbHash(job(n)) as _
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Work, Entity::Job(job(n)), "job.claimed", at).await;
        tx.commit().await.unwrap();
    }

    /// The attempt fails; it may be tried again from `not_before` on, or not at all.
    pub async fn fail(&self, n: u8, not_before: Option<i64>, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        let state = if not_before.is_some() { "queued" } else { "failed" };
        sqlx::query!(
            "update job_attempt a set ended_at = $2, outcome = 'failed', error = 'broke'
             from job_work w where w.job_id = $1 and a.job_id = $1 and a.fence = w.fence",
            DbHash(job(n)) as _,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query!(
            "update job_work set state = $2, attempts = attempts + 1, node = null, leased_at = null,
                lease_expires_at = null, not_before = $3, last_error = 'broke', updated_at = $4
             where job_id = $1",
            DbHash(job(n)) as _,
            state,
            not_before.map(|n| self.at(n)),
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Work, Entity::Job(job(n)), "job.failed", at).await;
        tx.commit().await.unwrap();
    }

    pub async fn complete(&self, n: u8, by: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        sqlx::query!(
            "update job_attempt set ended_at = $2, outcome = 'completed' where job_id = $1 and ended_at is null",
            DbHash(job(n)) as _,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query!(
            "insert into job_completion (job_id, fence, node, output_cid, result_hash, price, receipt_signature,
                assignment_expiry, assignment_signature, started_at, completed_at)
             select job_id, fence, node, $2, $3, $4, '\\x01', 0, '', leased_at, $5 from job_work where job_id = $1",
            DbHash(job(n)) as _,
            output(n).to_string(),
            DbHash(output(n).digest()) as _,
            bigdecimal::BigDecimal::from(PRICE),
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query!(
            "insert into payment_due (job_id, node, token, amount, created_at) values ($1, $2, $3, $4, $5)",
            DbHash(job(n)) as _,
            DbAddress(node(by)) as _,
            DbAddress(Address::ZERO) as _,
            bigdecimal::BigDecimal::from(PRICE),
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query!(
            "update job_work set state = 'completed', lease_expires_at = null, updated_at = $2 where job_id = $1",
            DbHash(job(n)) as _,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Work, Entity::Job(job(n)), "job.completed", at).await;
        tx.commit().await.unwrap();
    }

    // What the settler sends.

    pub async fn settling(&self, n: u8, at: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        let batch = sqlx::query_scalar!(
            "insert into settlement_batch (kind, sender, nonce, state, epoch, created_at)
             values ('submit', $1, $2, 'pending', 1, $3) returning id",
            DbAddress(Address::repeat_byte(0x5e)) as _,
            i64::from(n),
            self.at(at)
        )
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        sqlx::query!(
            "insert into settlement_item (batch_id, job_id, position) values ($1, $2, 0)",
            batch,
            DbHash(job(n)) as _
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query!(
            "insert into settlement_attempt (tx_hash, batch_id, raw_tx, gas_limit, max_fee_per_gas,
                max_priority_fee_per_gas, created_at)
             values ($1, $2, '\\x02', 21000, 1, 1, $3)",
            DbHash(hash(0xa7, n)) as _,
            batch,
            self.at(at)
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        self.note(&mut tx, Source::Work, Entity::Job(job(n)), "job.settling", at).await;
        tx.commit().await.unwrap();
    }
}

/// An amount, as views show it.
pub fn amount(n: u64) -> market::Amount {
    U256::from(n).into()
}
