//! Rows of the view `job_view`, and how a [`JobView`] is read from one.

use alloy::primitives::{Address, B256};
use bigdecimal::{BigDecimal, ToPrimitive};
use chrono::{DateTime, Utc};
use sqlx::types::Json;

use super::types::{ChainPoint, Completion, Dispute, Due, JobView, Lease, PendingBatch, Settled};
use crate::Amount;
use crate::abi::{JobSpec, Order};
use crate::db::confirmation::Seen;
use crate::db::order::{Rail, Terms};
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::job::{Fence, JobStatus};
use crate::order::{OrderJson, SpecJson};

/// A row of the view `job_view`.
pub(super) struct Row {
    pub(super) job_id: DbHash,
    pub(super) status: String,
    pub(super) listed_at: DateTime<Utc>,
    pub(super) requester: DbAddress,
    pub(super) rail: Option<String>,
    pub(super) token: Option<DbAddress>,
    pub(super) max_price: Option<DbAmount>,
    pub(super) order_node: Option<DbAddress>,
    pub(super) assigner: Option<DbAddress>,
    pub(super) spec_hash: Option<DbHash>,
    pub(super) deadline: DateTime<Utc>,
    pub(super) challenge_window_secs: Option<i64>,
    pub(super) arbiter: Option<DbAddress>,
    pub(super) max_fee_bps: Option<i32>,
    pub(super) nonce: Option<BigDecimal>,
    pub(super) input_cid: Option<String>,
    pub(super) operation: Option<String>,
    pub(super) params: Option<String>,
    pub(super) spec_valid: Option<bool>,
    pub(super) order_json: Option<Json<OrderJson>>,
    pub(super) spec_json: Option<Json<SpecJson>>,
    pub(super) announced_at: Option<DateTime<Utc>>,
    pub(super) priority: i32,
    pub(super) delayed_until: Option<DateTime<Utc>>,
    pub(super) min_reputation: i16,
    pub(super) min_stake: DbAmount,
    pub(super) opened_block: Option<i64>,
    pub(super) opened_tx: Option<DbHash>,
    pub(super) opened_at: Option<DateTime<Utc>>,
    pub(super) cancel_at: Option<DateTime<Utc>>,
    pub(super) settled_node: Option<DbAddress>,
    pub(super) settled_price: Option<DbAmount>,
    pub(super) settled_result_hash: Option<DbHash>,
    pub(super) finalize_at: Option<DateTime<Utc>>,
    pub(super) submitted_tx: Option<DbHash>,
    pub(super) dispute_bond: Option<DbAmount>,
    pub(super) decide_by: Option<DateTime<Utc>>,
    pub(super) resolved_paid: Option<DbAmount>,
    pub(super) closed_block: Option<i64>,
    pub(super) closed_tx: Option<DbHash>,
    pub(super) closed_at: Option<DateTime<Utc>>,
    pub(super) work_state: Option<String>,
    pub(super) fence: Option<i64>,
    pub(super) attempts: Option<i32>,
    pub(super) work_node: Option<DbAddress>,
    pub(super) leased_at: Option<DateTime<Utc>>,
    pub(super) lease_expires_at: Option<DateTime<Utc>>,
    pub(super) not_before: Option<DateTime<Utc>>,
    pub(super) last_error: Option<String>,
    pub(super) completion_fence: Option<i64>,
    pub(super) completion_node: Option<DbAddress>,
    pub(super) output_cid: Option<String>,
    pub(super) result_hash: Option<DbHash>,
    pub(super) price: Option<DbAmount>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) completed_at: Option<DateTime<Utc>>,
    pub(super) due_amount: Option<DbAmount>,
    pub(super) due_at: Option<DateTime<Utc>>,
    pub(super) batch_id: Option<i64>,
    pub(super) batch_tx: Option<DbHash>,
    pub(super) hold_reason: Option<String>,
    pub(super) node: Option<DbAddress>,
    pub(super) node_id: Option<DbHash>,
    pub(super) order_node_id: Option<DbHash>,
    pub(super) chain_id: Option<i64>,
    pub(super) is_confirmed: bool,
    pub(super) seen_block: Option<i64>,
    pub(super) seen_hash: Option<DbHash>,
    pub(super) cursor_block: i64,
    pub(super) final_number: i64,
}

/// `select` of all columns of a [`Row`] with the rest of the statement, so that every query names them once.
macro_rules! select_jobs {
    ($rest:literal, $($arg:expr),*) => {
        sqlx::query_as!(
            Row,
            r#"select j.job_id as "job_id!: DbHash", j.status as "status!", j.listed_at as "listed_at!",
                j.requester as "requester!: DbAddress",
                j.rail as "rail?", j.token as "token?: DbAddress", j.max_price as "max_price?: DbAmount",
                j.order_node as "order_node?: DbAddress", j.assigner as "assigner?: DbAddress",
                j.spec_hash as "spec_hash?: DbHash", j.deadline as "deadline!",
                j.challenge_window_secs as "challenge_window_secs?", j.arbiter as "arbiter?: DbAddress",
                j.max_fee_bps as "max_fee_bps?", j.nonce as "nonce?", j.input_cid as "input_cid?",
                j.operation as "operation?", j.params as "params?", j.spec_valid as "spec_valid?",
                j.order_json as "order_json?: Json<OrderJson>", j.spec_json as "spec_json?: Json<SpecJson>",
                j.announced_at as "announced_at?", j.priority as "priority!",
                j.delayed_until as "delayed_until?", j.min_reputation as "min_reputation!",
                j.min_stake as "min_stake!: DbAmount",
                j.opened_block as "opened_block?", j.opened_tx as "opened_tx?: DbHash", j.opened_at as "opened_at?",
                j.cancel_at as "cancel_at?", j.settled_node as "settled_node?: DbAddress", j.settled_price as "settled_price?: DbAmount",
                j.settled_result_hash as "settled_result_hash?: DbHash", j.finalize_at as "finalize_at?",
                j.submitted_tx as "submitted_tx?: DbHash", j.dispute_bond as "dispute_bond?: DbAmount",
                j.decide_by as "decide_by?", j.resolved_paid as "resolved_paid?: DbAmount",
                j.closed_block as "closed_block?", j.closed_tx as "closed_tx?: DbHash", j.closed_at as "closed_at?",
                j.work_state as "work_state?", j.fence as "fence?", j.attempts as "attempts?",
                j.work_node as "work_node?: DbAddress", j.leased_at as "leased_at?",
                j.lease_expires_at as "lease_expires_at?", j.not_before as "not_before?", j.last_error as "last_error?",
                j.completion_fence as "completion_fence?", j.completion_node as "completion_node?: DbAddress",
                j.output_cid as "output_cid?", j.result_hash as "result_hash?: DbHash", j.price as "price?: DbAmount",
                j.started_at as "started_at?", j.completed_at as "completed_at?",
                j.due_amount as "due_amount?: DbAmount", j.due_at as "due_at?",
                j.batch_id as "batch_id?", j.batch_tx as "batch_tx?: DbHash", j.hold_reason as "hold_reason?",
                j.node as "node?: DbAddress", j.node_id as "node_id?: DbHash",
                j.order_node_id as "order_node_id?: DbHash", j.chain_id as "chain_id?",
                j.is_confirmed as "is_confirmed!", j.seen_block as "seen_block?", j.seen_hash as "seen_hash?: DbHash",
                j.cursor_block as "cursor_block!", j.final_number as "final_number!"
            from job_view j "# + $rest,
            $($arg),*
        )
    };
}
pub(super) use select_jobs;

/// The status that the view names.
pub(super) fn parse_status(text: &str) -> Result<JobStatus, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// All rows, or the first error.
pub(super) fn views(rows: Vec<Row>) -> Result<Vec<JobView>, sqlx::Error> {
    rows.into_iter().map(JobView::try_from).collect()
}

fn decode<T, E: std::error::Error + Send + Sync + 'static>(value: Result<T, E>) -> Result<T, sqlx::Error> {
    value.map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn point(tx: Option<DbHash>, block: Option<i64>, at: Option<DateTime<Utc>>) -> Result<Option<ChainPoint>, sqlx::Error> {
    match (tx, block, at) {
        (Some(tx), Some(block), Some(at)) => {
            Ok(Some(ChainPoint { tx: tx.0, block: decode(u64::try_from(block))?, at }))
        }
        _ => Ok(None),
    }
}

impl Row {
    /// What was opened or signed, or nothing where the job is only announced.
    fn agreed_order(&self) -> Result<Option<(Order, JobSpec)>, sqlx::Error> {
        let (Some(token), Some(max_price), Some(node), Some(assigner), Some(spec_hash), Some(arbiter)) =
            (self.token, self.max_price, self.order_node, self.assigner, self.spec_hash, self.arbiter)
        else {
            return Ok(None);
        };
        let nonce = self.nonce.as_ref().and_then(BigDecimal::to_u64);
        let order = Order {
            requester: self.requester.0,
            token: token.0,
            maxPrice: decode(max_price.0.to_u128())?,
            node: node.0,
            assigner: assigner.0,
            specHash: spec_hash.0,
            deadline: decode(u64::try_from(self.deadline.timestamp()))?,
            challengeWindow: decode(u32::try_from(self.challenge_window_secs.unwrap_or_default()))?,
            arbiter: arbiter.0,
            maxFeeBps: decode(u16::try_from(self.max_fee_bps.unwrap_or_default()))?,
            nonce: nonce.ok_or_else(|| sqlx::Error::Decode("the order's nonce is not a uint64".into()))?,
        };
        let spec = JobSpec {
            inputCID: self.input_cid.clone().unwrap_or_default(),
            operation: self.operation.clone().unwrap_or_default(),
            params: self.params.clone().unwrap_or_default(),
        };
        Ok(Some((order, spec)))
    }

    fn announced_order(&self) -> Result<(Order, JobSpec), sqlx::Error> {
        match (&self.order_json, &self.spec_json) {
            (Some(Json(order)), Some(Json(spec))) => Ok((decode(order.to_order())?, spec.into())),
            _ => Err(sqlx::Error::Decode("a job that is neither opened nor announced".into())),
        }
    }

    fn lease(&self) -> Option<Lease> {
        match (self.work_state.as_deref(), self.work_node, self.leased_at, self.lease_expires_at) {
            (Some("leased"), Some(node), Some(since), Some(expires_at)) => {
                Some(Lease { node: node.0, since, expires_at })
            }
            _ => None,
        }
    }

    fn completion(&self) -> Option<Completion> {
        Some(Completion {
            node: self.completion_node?.0,
            fence: Fence(self.completion_fence?),
            output_cid: self.output_cid.clone()?,
            result_hash: self.result_hash?.0,
            price: self.price?.0,
            started_at: self.started_at?,
            completed_at: self.completed_at?,
        })
    }

    fn settled(&self) -> Option<Settled> {
        Some(Settled {
            node: self.settled_node?.0,
            price: self.settled_price?.0,
            result_hash: self.settled_result_hash?.0,
            tx: self.submitted_tx.map(B256::from),
            finalize_at: self.finalize_at,
        })
    }
}

impl TryFrom<Row> for JobView {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, Self::Error> {
        let (order, spec) = match row.agreed_order()? {
            Some(agreed) => agreed,
            None => row.announced_order()?,
        };
        Ok(Self {
            job_id: row.job_id.0,
            stored_status: parse_status(&row.status)?,
            rail: row.rail.as_deref().map(Rail::parse).transpose()?,
            cancel_at: row.cancel_at,
            dispute: row.dispute_bond.zip(row.decide_by).map(|(bond, decide_by)| Dispute { bond: bond.0, decide_by }),
            resolved_paid: row.resolved_paid.map(Amount::from),
            chain_id: row.chain_id.map(|id| decode(u64::try_from(id))).transpose()?,
            order,
            spec,
            deadline: row.deadline,
            spec_valid: row.spec_valid.unwrap_or(true),
            terms: Terms {
                priority: row.priority,
                not_before: row.delayed_until,
                min_reputation: decode(u8::try_from(row.min_reputation))?,
                min_stake: row.min_stake.0,
            },
            listed_at: row.listed_at,
            announced_at: row.announced_at,
            opened: point(row.opened_tx, row.opened_block, row.opened_at)?,
            node: row.node.map(Address::from),
            node_id: row.node_id.map(B256::from),
            order_node_id: row.order_node_id.map(B256::from),
            fence: Fence(row.fence.unwrap_or_default()),
            attempts: row.attempts.unwrap_or_default(),
            not_before: row.not_before.max(row.delayed_until),
            lease: row.lease(),
            completion: row.completion(),
            due: row.due_amount.zip(row.due_at).map(|(amount, at)| Due { amount: amount.0, at }),
            settled: row.settled(),
            batch: row.batch_id.map(|id| PendingBatch { id, tx: row.batch_tx.map(B256::from) }),
            closed: point(row.closed_tx, row.closed_block, row.closed_at)?,
            hold_reason: row.hold_reason,
            last_error: row.last_error,
            is_confirmed: row.is_confirmed,
            confirmation: Seen { block: row.seen_block, hash: row.seen_hash, is_deep: row.is_confirmed }
                .confirmation(row.cursor_block, row.final_number)?,
        })
    }
}
