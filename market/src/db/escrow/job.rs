//! `escrow_job`.

use std::collections::BTreeMap;

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use crate::abi::{JobSpec, Order};
use crate::db::chain::{from_db, to_db};
use crate::db::copy::{Copy, copy_row};
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::fold::{Dispute, EscrowJob, EscrowState, JobResult, Moment, Opened, Resolution, time_of};

struct JobRow {
    job_id: DbHash,
    requester: DbAddress,
    token: Option<DbAddress>,
    max_price: Option<DbAmount>,
    order_node: Option<DbAddress>,
    assigner: Option<DbAddress>,
    spec_hash: Option<DbHash>,
    deadline: Option<DateTime<Utc>>,
    challenge_window_secs: Option<i64>,
    arbiter: Option<DbAddress>,
    max_fee_bps: Option<i32>,
    nonce: Option<DbAmount>,
    input_cid: Option<String>,
    operation: Option<String>,
    params: Option<String>,
    spec_valid: Option<bool>,
    state: String,
    opened_block: Option<i64>,
    opened_tx: Option<DbHash>,
    opened_at: Option<DateTime<Utc>>,
    cancel_at: Option<DateTime<Utc>>,
    node: Option<DbAddress>,
    price: Option<DbAmount>,
    paid_token: Option<DbAddress>,
    result_hash: Option<DbHash>,
    finalize_at: Option<DateTime<Utc>>,
    submitted_tx: Option<DbHash>,
    dispute_bond: Option<DbAmount>,
    decide_by: Option<DateTime<Utc>>,
    disputed_tx: Option<DbHash>,
    resolved_paid: Option<DbAmount>,
    slashed: Option<DbAmount>,
    compensation: Option<DbAmount>,
    closed_block: Option<i64>,
    closed_tx: Option<DbHash>,
    closed_at: Option<DateTime<Utc>>,
}

impl JobRow {
    fn new(job_id: B256, job: &EscrowJob) -> Result<Self, sqlx::Error> {
        let opened = job.opened.as_ref();
        let (order, spec) = (opened.map(|opened| &opened.order), opened.map(|opened| &opened.spec));
        let window = job.result.and_then(|result| result.window);
        Ok(Self {
            job_id: DbHash(job_id),
            requester: DbAddress(job.requester),
            token: order.map(|order| DbAddress(order.token)),
            max_price: order.map(|order| order.maxPrice.into()),
            order_node: order.map(|order| DbAddress(order.node)),
            assigner: order.map(|order| DbAddress(order.assigner)),
            spec_hash: order.map(|order| DbHash(order.specHash)),
            deadline: order.map(|order| time_of(order.deadline)),
            challenge_window_secs: order.map(|order| i64::from(order.challengeWindow)),
            arbiter: order.map(|order| DbAddress(order.arbiter)),
            max_fee_bps: order.map(|order| i32::from(order.maxFeeBps)),
            nonce: order.map(|order| u128::from(order.nonce).into()),
            input_cid: spec.map(|spec| spec.inputCID.clone()),
            operation: spec.map(|spec| spec.operation.clone()),
            params: spec.map(|spec| spec.params.clone()),
            spec_valid: opened.map(|opened| opened.spec_valid),
            state: job.state.name().to_owned(),
            opened_block: opened.map(|opened| to_db(opened.when.block)).transpose()?,
            opened_tx: opened.map(|opened| DbHash(opened.when.tx)),
            opened_at: opened.map(|opened| opened.when.at),
            cancel_at: job.cancel_at,
            node: job.result.map(|result| DbAddress(result.node)),
            price: job.result.map(|result| DbAmount(result.price)),
            paid_token: job.result.map(|result| DbAddress(result.token)),
            result_hash: job.result.map(|result| DbHash(result.result_hash)),
            finalize_at: window.map(|(finalize_at, _)| finalize_at),
            submitted_tx: window.map(|(_, tx)| DbHash(tx)),
            dispute_bond: job.dispute.map(|dispute| DbAmount(dispute.bond)),
            decide_by: job.dispute.map(|dispute| dispute.decide_by),
            disputed_tx: job.dispute.map(|dispute| DbHash(dispute.tx)),
            resolved_paid: job.resolution.map(|resolution| DbAmount(resolution.paid)),
            slashed: job.resolution.map(|resolution| DbAmount(resolution.slashed)),
            compensation: job.resolution.map(|resolution| DbAmount(resolution.compensation)),
            closed_block: job.closed_when.map(|when| to_db(when.block)).transpose()?,
            closed_tx: job.closed_when.map(|when| DbHash(when.tx)),
            closed_at: job.closed_when.map(|when| when.at),
        })
    }

    fn read(self) -> Result<(B256, EscrowJob), sqlx::Error> {
        let state = EscrowState::from_name(&self.state)
            .ok_or_else(|| sqlx::Error::Decode(format!("{:?} is not a state of escrow_job", self.state).into()))?;
        let result = match (self.node, self.price, self.paid_token, self.result_hash) {
            (Some(node), Some(price), Some(token), Some(result_hash)) => Some(JobResult {
                node: node.0,
                price: price.0,
                token: token.0,
                result_hash: result_hash.0,
                window: self.finalize_at.zip(self.submitted_tx.map(|tx| tx.0)),
            }),
            _ => None,
        };
        let dispute = match (self.dispute_bond, self.decide_by, self.disputed_tx) {
            (Some(bond), Some(decide_by), Some(tx)) => Some(Dispute { bond: bond.0, decide_by, tx: tx.0 }),
            _ => None,
        };
        let resolution = match (self.resolved_paid, self.slashed, self.compensation) {
            (Some(paid), Some(slashed), Some(compensation)) => {
                Some(Resolution { paid: paid.0, slashed: slashed.0, compensation: compensation.0 })
            }
            _ => None,
        };
        let closed_when = match (self.closed_block, self.closed_tx, self.closed_at) {
            (Some(block), Some(tx), Some(at)) => Some(Moment { block: from_db(block)?, tx: tx.0, at }),
            _ => None,
        };
        let (job_id, requester, cancel_at) = (self.job_id.0, self.requester.0, self.cancel_at);
        let opened = self.read_opened()?;
        Ok((job_id, EscrowJob { requester, opened, state, cancel_at, result, dispute, resolution, closed_when }))
    }

    /// The order's columns; a check keeps them null together.
    fn read_opened(self) -> Result<Option<Opened>, sqlx::Error> {
        let Some(token) = self.token else { return Ok(None) };
        let order = Order {
            requester: self.requester.0,
            token: token.0,
            maxPrice: known(self.max_price)?.0.to_u128().map_err(decode)?,
            node: known(self.order_node)?.0,
            assigner: known(self.assigner)?.0,
            specHash: known(self.spec_hash)?.0,
            deadline: u64::try_from(known(self.deadline)?.timestamp()).map_err(decode)?,
            challengeWindow: u32::try_from(known(self.challenge_window_secs)?).map_err(decode)?,
            arbiter: known(self.arbiter)?.0,
            maxFeeBps: u16::try_from(known(self.max_fee_bps)?).map_err(decode)?,
            nonce: u64::try_from(known(self.nonce)?.0.0).map_err(decode)?,
        };
        let spec = JobSpec {
            inputCID: known(self.input_cid)?,
            operation: known(self.operation)?,
            params: known(self.params)?,
        };
        let block = from_db(known(self.opened_block)?)?;
        let when = Moment { block, tx: known(self.opened_tx)?.0, at: known(self.opened_at)? };
        Ok(Some(Opened { order, spec, spec_valid: known(self.spec_valid)?, when }))
    }
}

fn known<T>(column: Option<T>) -> Result<T, sqlx::Error> {
    column.ok_or_else(|| sqlx::Error::Decode("escrow_job holds a part of an order".into()))
}

fn decode(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// The jobs among `ids` of which the chain has told, as folded.
pub async fn jobs(db: &mut PgConnection, ids: &[B256]) -> Result<BTreeMap<B256, EscrowJob>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query_as!(
        JobRow,
        r#"select job_id as "job_id: DbHash", requester as "requester: DbAddress", token as "token?: DbAddress",
                  max_price as "max_price?: DbAmount", order_node as "order_node?: DbAddress",
                  assigner as "assigner?: DbAddress", spec_hash as "spec_hash?: DbHash", deadline,
                  challenge_window_secs, arbiter as "arbiter?: DbAddress", max_fee_bps, nonce as "nonce?: DbAmount",
                  input_cid, operation, params, spec_valid, state, opened_block, opened_tx as "opened_tx?: DbHash",
                  opened_at, cancel_at, node as "node?: DbAddress", price as "price?: DbAmount",
                  paid_token as "paid_token?: DbAddress", result_hash as "result_hash?: DbHash", finalize_at,
                  submitted_tx as "submitted_tx?: DbHash", dispute_bond as "dispute_bond?: DbAmount", decide_by,
                  disputed_tx as "disputed_tx?: DbHash", resolved_paid as "resolved_paid?: DbAmount",
                  slashed as "slashed?: DbAmount", compensation as "compensation?: DbAmount", closed_block,
                  closed_tx as "closed_tx?: DbHash", closed_at
           from escrow_job where job_id = any($1::bytea[])"#,
        &ids as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(JobRow::read).collect()
}

/// Writes jobs as folded, of which the chain has not told before.
pub async fn insert_jobs(db: &mut PgConnection, jobs: &[(B256, &EscrowJob)]) -> Result<(), sqlx::Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let mut copy = Copy::begin(
        db,
        "copy escrow_job (
             job_id, requester, token, max_price, order_node, assigner, spec_hash, deadline, challenge_window_secs,
             arbiter, max_fee_bps, nonce, input_cid, operation, params, spec_valid, state, opened_block, opened_tx,
             opened_at, cancel_at, node, price, paid_token, result_hash, finalize_at, submitted_tx, dispute_bond,
             decide_by, disputed_tx, resolved_paid, slashed, compensation, closed_block, closed_tx, closed_at)
         from stdin (format binary)",
    )
    .await?;
    for (id, job) in jobs {
        let row = JobRow::new(*id, job)?;
        copy_row!(
            copy,
            row.job_id,
            row.requester,
            row.token,
            row.max_price,
            row.order_node,
            row.assigner,
            row.spec_hash,
            row.deadline,
            row.challenge_window_secs,
            row.arbiter,
            row.max_fee_bps,
            row.nonce,
            row.input_cid,
            row.operation,
            row.params,
            row.spec_valid,
            row.state,
            row.opened_block,
            row.opened_tx,
            row.opened_at,
            row.cancel_at,
            row.node,
            row.price,
            row.paid_token,
            row.result_hash,
            row.finalize_at,
            row.submitted_tx,
            row.dispute_bond,
            row.decide_by,
            row.disputed_tx,
            row.resolved_paid,
            row.slashed,
            row.compensation,
            row.closed_block,
            row.closed_tx,
            row.closed_at,
        );
    }
    copy.finish().await
}

/// Writes jobs as folded.
pub async fn save_jobs(db: &mut PgConnection, jobs: &[(B256, &EscrowJob)]) -> Result<(), sqlx::Error> {
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
             opened_at, cancel_at, node, price, paid_token, result_hash, finalize_at, submitted_tx, dispute_bond,
             decide_by, disputed_tx, resolved_paid, slashed, compensation, closed_block, closed_tx, closed_at)
         select * from unnest(
             $1::bytea[], $2::bytea[], $3::bytea[], $4::numeric[], $5::bytea[], $6::bytea[], $7::bytea[],
             $8::timestamptz[], $9::bigint[], $10::bytea[], $11::integer[], $12::numeric[], $13::text[],
             $14::text[], $15::text[], $16::boolean[], $17::text[], $18::bigint[], $19::bytea[], $20::timestamptz[],
             $21::timestamptz[], $22::bytea[], $23::numeric[], $24::bytea[], $25::bytea[], $26::timestamptz[],
             $27::bytea[], $28::numeric[], $29::timestamptz[], $30::bytea[], $31::numeric[], $32::numeric[],
             $33::numeric[], $34::bigint[], $35::bytea[], $36::timestamptz[])
         on conflict (job_id) do update set
             token = excluded.token, max_price = excluded.max_price, order_node = excluded.order_node,
             assigner = excluded.assigner, spec_hash = excluded.spec_hash, deadline = excluded.deadline,
             challenge_window_secs = excluded.challenge_window_secs, arbiter = excluded.arbiter,
             max_fee_bps = excluded.max_fee_bps, nonce = excluded.nonce, input_cid = excluded.input_cid,
             operation = excluded.operation, params = excluded.params, spec_valid = excluded.spec_valid,
             state = excluded.state, opened_block = excluded.opened_block, opened_tx = excluded.opened_tx,
             opened_at = excluded.opened_at, cancel_at = excluded.cancel_at, node = excluded.node,
             price = excluded.price, paid_token = excluded.paid_token, result_hash = excluded.result_hash,
             finalize_at = excluded.finalize_at, submitted_tx = excluded.submitted_tx,
             dispute_bond = excluded.dispute_bond, decide_by = excluded.decide_by,
             disputed_tx = excluded.disputed_tx, resolved_paid = excluded.resolved_paid, slashed = excluded.slashed,
             compensation = excluded.compensation, closed_block = excluded.closed_block,
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
        column!(cancel_at) as _,
        column!(node) as _,
        column!(price) as _,
        column!(paid_token) as _,
        column!(result_hash) as _,
        column!(finalize_at) as _,
        column!(submitted_tx) as _,
        column!(dispute_bond) as _,
        column!(decide_by) as _,
        column!(disputed_tx) as _,
        column!(resolved_paid) as _,
        column!(slashed) as _,
        column!(compensation) as _,
        column!(closed_block) as _,
        column!(closed_tx) as _,
        column!(closed_at) as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes jobs that, after a reorg, the chain never told of.
pub async fn delete_jobs(db: &mut PgConnection, ids: &[B256]) -> Result<(), sqlx::Error> {
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    sqlx::query!("delete from escrow_job where job_id = any($1::bytea[])", &ids as _).execute(db).await?;
    Ok(())
}
