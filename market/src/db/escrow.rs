//! What the escrow holds, as the chain says: `escrow_job`, `escrow_account`, `escrow_earned`. Writer: the indexer.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::chain::{from_db, to_db};
use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
use crate::abi::{JobSpec, Order};
use crate::fold::{EscrowAccount, EscrowJob, EscrowState, JobResult, Moment, time_of};

struct JobRow {
    job_id: DbHash,
    requester: DbAddress,
    token: DbAddress,
    max_price: DbAmount,
    order_node: DbAddress,
    assigner: DbAddress,
    spec_hash: DbHash,
    deadline: DateTime<Utc>,
    challenge_window_secs: i64,
    arbiter: DbAddress,
    max_fee_bps: i32,
    nonce: DbAmount,
    input_cid: String,
    operation: String,
    params: String,
    spec_valid: bool,
    state: String,
    opened_block: i64,
    opened_tx: DbHash,
    opened_at: DateTime<Utc>,
    node: Option<DbAddress>,
    price: Option<DbAmount>,
    result_hash: Option<DbHash>,
    finalize_at: Option<DateTime<Utc>>,
    submitted_tx: Option<DbHash>,
    closed_block: Option<i64>,
    closed_tx: Option<DbHash>,
    closed_at: Option<DateTime<Utc>>,
}

impl JobRow {
    fn new(job_id: B256, job: &EscrowJob) -> Result<Self, sqlx::Error> {
        let (order, spec) = (&job.order, &job.spec);
        let window = job.result.and_then(|result| result.window);
        Ok(Self {
            job_id: DbHash(job_id),
            requester: DbAddress(order.requester),
            token: DbAddress(order.token),
            max_price: order.maxPrice.into(),
            order_node: DbAddress(order.node),
            assigner: DbAddress(order.assigner),
            spec_hash: DbHash(order.specHash),
            deadline: time_of(order.deadline),
            challenge_window_secs: i64::from(order.challengeWindow),
            arbiter: DbAddress(order.arbiter),
            max_fee_bps: i32::from(order.maxFeeBps),
            nonce: u128::from(order.nonce).into(),
            input_cid: spec.inputCID.clone(),
            operation: spec.operation.clone(),
            params: spec.params.clone(),
            spec_valid: job.spec_valid,
            state: job.state.name().to_owned(),
            opened_block: to_db(job.opened_when.block)?,
            opened_tx: DbHash(job.opened_when.tx),
            opened_at: job.opened_when.at,
            node: job.result.map(|result| DbAddress(result.node)),
            price: job.result.map(|result| DbAmount(result.price)),
            result_hash: job.result.map(|result| DbHash(result.result_hash)),
            finalize_at: window.map(|(finalize_at, _)| finalize_at),
            submitted_tx: window.map(|(_, tx)| DbHash(tx)),
            closed_block: job.closed_when.map(|when| to_db(when.block)).transpose()?,
            closed_tx: job.closed_when.map(|when| DbHash(when.tx)),
            closed_at: job.closed_when.map(|when| when.at),
        })
    }

    fn read(self) -> Result<(B256, EscrowJob), sqlx::Error> {
        let order = Order {
            requester: self.requester.0,
            token: self.token.0,
            maxPrice: self.max_price.0.to_u128().map_err(decode)?,
            node: self.order_node.0,
            assigner: self.assigner.0,
            specHash: self.spec_hash.0,
            deadline: u64::try_from(self.deadline.timestamp()).map_err(decode)?,
            challengeWindow: u32::try_from(self.challenge_window_secs).map_err(decode)?,
            arbiter: self.arbiter.0,
            maxFeeBps: u16::try_from(self.max_fee_bps).map_err(decode)?,
            nonce: u64::try_from(self.nonce.0.0).map_err(decode)?,
        };
        let state = EscrowState::from_name(&self.state)
            .ok_or_else(|| sqlx::Error::Decode(format!("{:?} is not a state of escrow_job", self.state).into()))?;
        let result = match (self.node, self.price, self.result_hash) {
            (Some(node), Some(price), Some(result_hash)) => Some(JobResult {
                node: node.0,
                price: price.0,
                result_hash: result_hash.0,
                window: self.finalize_at.zip(self.submitted_tx.map(|tx| tx.0)),
            }),
            _ => None,
        };
        let closed_when = match (self.closed_block, self.closed_tx, self.closed_at) {
            (Some(block), Some(tx), Some(at)) => Some(Moment { block: from_db(block)?, tx: tx.0, at }),
            _ => None,
        };
        let job = EscrowJob {
            order,
            spec: JobSpec { inputCID: self.input_cid, operation: self.operation, params: self.params },
            spec_valid: self.spec_valid,
            opened_when: Moment { block: from_db(self.opened_block)?, tx: self.opened_tx.0, at: self.opened_at },
            state,
            result,
            closed_when,
        };
        Ok((self.job_id.0, job))
    }
}

fn decode(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// The jobs among `ids` that were opened, as folded.
pub async fn jobs(db: &mut PgConnection, ids: &[B256]) -> Result<BTreeMap<B256, EscrowJob>, sqlx::Error> {
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query_as!(
        JobRow,
        r#"select job_id as "job_id: DbHash", requester as "requester: DbAddress", token as "token: DbAddress",
                  max_price as "max_price: DbAmount", order_node as "order_node: DbAddress",
                  assigner as "assigner: DbAddress", spec_hash as "spec_hash: DbHash", deadline, challenge_window_secs,
                  arbiter as "arbiter: DbAddress", max_fee_bps, nonce as "nonce: DbAmount", input_cid, operation, params,
                  spec_valid, state, opened_block, opened_tx as "opened_tx: DbHash", opened_at,
                  node as "node?: DbAddress", price as "price?: DbAmount", result_hash as "result_hash?: DbHash",
                  finalize_at, submitted_tx as "submitted_tx?: DbHash", closed_block, closed_tx as "closed_tx?: DbHash",
                  closed_at
           from escrow_job where job_id = any($1::bytea[])"#,
        &ids as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(JobRow::read).collect()
}

/// Writes jobs as folded.
pub async fn save_jobs(db: &mut PgConnection, jobs: &BTreeMap<B256, EscrowJob>) -> Result<(), sqlx::Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let rows = jobs.iter().map(|(id, job)| JobRow::new(*id, job)).collect::<Result<Vec<_>, _>>()?;
    macro_rules! column {
        ($field:ident) => {
            &rows.iter().map(|row| row.$field.clone()).collect::<Vec<_>>()
        };
    }
    sqlx::query!(
        "insert into escrow_job (
             job_id, requester, token, max_price, order_node, assigner, spec_hash, deadline, challenge_window_secs,
             arbiter, max_fee_bps, nonce, input_cid, operation, params, spec_valid, state, opened_block, opened_tx,
             opened_at, node, price, result_hash, finalize_at, submitted_tx, closed_block, closed_tx, closed_at)
         select * from unnest(
             $1::bytea[], $2::bytea[], $3::bytea[], $4::numeric[], $5::bytea[], $6::bytea[], $7::bytea[],
             $8::timestamptz[], $9::bigint[], $10::bytea[], $11::integer[], $12::numeric[], $13::text[], $14::text[],
             $15::text[], $16::boolean[], $17::text[], $18::bigint[], $19::bytea[], $20::timestamptz[], $21::bytea[],
             $22::numeric[], $23::bytea[], $24::timestamptz[], $25::bytea[], $26::bigint[], $27::bytea[],
             $28::timestamptz[])
         on conflict (job_id) do update set
             state = excluded.state, opened_block = excluded.opened_block, opened_tx = excluded.opened_tx,
             opened_at = excluded.opened_at, node = excluded.node, price = excluded.price,
             result_hash = excluded.result_hash, finalize_at = excluded.finalize_at,
             submitted_tx = excluded.submitted_tx, closed_block = excluded.closed_block,
             closed_tx = excluded.closed_tx, closed_at = excluded.closed_at",
        column!(job_id) as _,
        column!(requester) as _,
        column!(token) as _,
        column!(max_price) as _,
        column!(order_node) as _,
        column!(assigner) as _,
        column!(spec_hash) as _,
        column!(deadline) as _,
        column!(challenge_window_secs) as _,
        column!(arbiter) as _,
        column!(max_fee_bps) as _,
        column!(nonce) as _,
        column!(input_cid) as _,
        column!(operation) as _,
        column!(params) as _,
        column!(spec_valid) as _,
        column!(state) as _,
        column!(opened_block) as _,
        column!(opened_tx) as _,
        column!(opened_at) as _,
        column!(node) as _,
        column!(price) as _,
        column!(result_hash) as _,
        column!(finalize_at) as _,
        column!(submitted_tx) as _,
        column!(closed_block) as _,
        column!(closed_tx) as _,
        column!(closed_at) as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes jobs that, after a reorg, were never opened.
pub async fn delete_jobs(db: &mut PgConnection, ids: &[B256]) -> Result<(), sqlx::Error> {
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    sqlx::query!("delete from escrow_job where job_id = any($1::bytea[])", &ids as _).execute(db).await?;
    Ok(())
}

/// Pairs as two arrays, for `unnest`.
fn columns(pairs: impl Iterator<Item = (Address, Address)>) -> (Vec<DbAddress>, Vec<DbAddress>) {
    pairs.map(|(one, other)| (DbAddress(one), DbAddress(other))).unzip()
}

/// The accounts among `keys` (owner, token) that ever held anything.
pub async fn accounts(
    db: &mut PgConnection,
    keys: &[(Address, Address)],
) -> Result<BTreeMap<(Address, Address), EscrowAccount>, sqlx::Error> {
    let (owners, tokens) = columns(keys.iter().copied());
    let rows = sqlx::query!(
        r#"select a.owner as "owner: DbAddress", a.token as "token: DbAddress", a.free as "free: DbAmount",
                  a.thawing as "thawing: DbAmount", a.thaw_end
           from escrow_account a
           join unnest($1::bytea[], $2::bytea[]) as k (owner, token) on a.owner = k.owner and a.token = k.token"#,
        &owners as _,
        &tokens as _
    )
    .fetch_all(db)
    .await?;
    let account =
        |free: DbAmount, thawing: DbAmount, thaw_end| EscrowAccount { free: free.0, thawing: thawing.0, thaw_end };
    Ok(rows.into_iter().map(|r| ((r.owner.0, r.token.0), account(r.free, r.thawing, r.thaw_end))).collect())
}

/// Writes accounts as folded.
pub async fn save_accounts(
    db: &mut PgConnection,
    accounts: &BTreeMap<(Address, Address), EscrowAccount>,
) -> Result<(), sqlx::Error> {
    let (owners, tokens) = columns(accounts.keys().copied());
    let free: Vec<DbAmount> = accounts.values().map(|account| DbAmount(account.free)).collect();
    let thawing: Vec<DbAmount> = accounts.values().map(|account| DbAmount(account.thawing)).collect();
    let thaw_end: Vec<Option<DateTime<Utc>>> = accounts.values().map(|account| account.thaw_end).collect();
    sqlx::query!(
        "insert into escrow_account (owner, token, free, thawing, thaw_end)
         select * from unnest($1::bytea[], $2::bytea[], $3::numeric[], $4::numeric[], $5::timestamptz[])
         on conflict (owner, token) do update set
             free = excluded.free, thawing = excluded.thawing, thaw_end = excluded.thaw_end",
        &owners as _,
        &tokens as _,
        &free as _,
        &thawing as _,
        &thaw_end as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes accounts that, after a reorg, never held anything.
pub async fn delete_accounts(db: &mut PgConnection, keys: &[(Address, Address)]) -> Result<(), sqlx::Error> {
    let (owners, tokens) = columns(keys.iter().copied());
    sqlx::query!(
        "delete from escrow_account a using unnest($1::bytea[], $2::bytea[]) as k (owner, token)
         where a.owner = k.owner and a.token = k.token",
        &owners as _,
        &tokens as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What those among `keys` (node, token) have earned and not withdrawn; a missing one never earned anything.
pub async fn earned(
    db: &mut PgConnection,
    keys: &[(Address, Address)],
) -> Result<BTreeMap<(Address, Address), Amount>, sqlx::Error> {
    let (nodes, tokens) = columns(keys.iter().copied());
    let rows = sqlx::query!(
        r#"select e.node as "node: DbAddress", e.token as "token: DbAddress", e.earned as "earned: DbAmount"
           from escrow_earned e
           join unnest($1::bytea[], $2::bytea[]) as k (node, token) on e.node = k.node and e.token = k.token"#,
        &nodes as _,
        &tokens as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| ((row.node.0, row.token.0), row.earned.0)).collect())
}

/// Writes earnings as folded.
pub async fn save_earned(
    db: &mut PgConnection,
    earned: &BTreeMap<(Address, Address), Amount>,
) -> Result<(), sqlx::Error> {
    let (nodes, tokens) = columns(earned.keys().copied());
    let amounts: Vec<DbAmount> = earned.values().copied().map(DbAmount).collect();
    sqlx::query!(
        "insert into escrow_earned (node, token, earned)
         select * from unnest($1::bytea[], $2::bytea[], $3::numeric[])
         on conflict (node, token) do update set earned = excluded.earned",
        &nodes as _,
        &tokens as _,
        &amounts as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes earnings that, after a reorg, never were.
pub async fn delete_earned(db: &mut PgConnection, keys: &[(Address, Address)]) -> Result<(), sqlx::Error> {
    let (nodes, tokens) = columns(keys.iter().copied());
    sqlx::query!(
        "delete from escrow_earned e using unnest($1::bytea[], $2::bytea[]) as k (node, token)
         where e.node = k.node and e.token = k.token",
        &nodes as _,
        &tokens as _
    )
    .execute(db)
    .await?;
    Ok(())
}
