//! Jobs whose payment a redeemed voucher changes. The chain tells of channels only; which signed orders those pay for follows
//! from their nonces, so whoever watches a job is told here.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use sqlx::postgres::PgConnection;

use crate::Amount;
use crate::db::outbox::Entity;
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::fold::{EscrowChannel, Rows};

/// What is said of a job that a voucher pays for.
pub(super) const WORDS: [&str; 2] = ["job.paid", "job.covered"];

/// Requester, node and token.
type Channel = (Address, Address, Address);

/// The jobs that one or the other of two states of `channels` pays for, or does not, with what that means for each: a job is
/// paid for once the channel has paid what the least voucher over it is worth.
pub(super) async fn changes(
    db: &mut PgConnection,
    before: &BTreeMap<Channel, EscrowChannel>,
    after: &Rows,
    undone: bool,
) -> Result<Vec<(Entity, &'static str)>, sqlx::Error> {
    let after = |channel: &Channel| after.channels.get(channel).copied().unwrap_or_default();
    let moved = before.iter().filter(|(channel, row)| {
        (row.claimed, row.covered_nonce) != (after(channel).claimed, after(channel).covered_nonce)
    });
    let mut columns = Columns::default();
    for (channel, row) in moved {
        columns.add(*channel, row, &after(channel));
    }
    if columns.requesters.is_empty() {
        return Ok(Vec::new());
    }
    let jobs = columns.jobs(db).await?;
    let word = |paid| match (undone, paid) {
        (true, _) => "job.reorged",
        (false, true) => "job.paid",
        (false, false) => "job.covered",
    };
    Ok(jobs.into_iter().map(|(job_id, paid)| (Entity::Job(job_id), word(paid))).collect())
}

#[derive(Default)]
struct Columns {
    requesters: Vec<DbAddress>,
    nodes: Vec<DbAddress>,
    tokens: Vec<DbAddress>,
    covered: [Vec<DbAmount>; 2],
    claimed: [Vec<DbAmount>; 2],
}

impl Columns {
    fn add(&mut self, (requester, node, token): Channel, before: &EscrowChannel, after: &EscrowChannel) {
        self.requesters.push(DbAddress(requester));
        self.nodes.push(DbAddress(node));
        self.tokens.push(DbAddress(token));
        let nonce = |nonce: u64| DbAmount::from(u128::from(nonce));
        let claimed = |amount: Amount| DbAmount(amount);
        for (column, row) in [before, after].into_iter().enumerate() {
            self.covered[column].push(nonce(row.covered_nonce));
            self.claimed[column].push(claimed(row.claimed));
        }
    }

    /// Jobs that are not closed for good, and whether each is paid for in the later state.
    async fn jobs(&self, db: &mut PgConnection) -> Result<Vec<(B256, bool)>, sqlx::Error> {
        let rows = sqlx::query!(
            r#"select g.job_id as "job_id: DbHash",
                      (g.nonce <= k.covered_after and coalesce(r.cumulative, 0) <= k.claimed_after
                       and c.job_id is not null) as "paid!"
               from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::numeric[], $5::numeric[], $6::numeric[], $7::numeric[])
                   as k (requester, node, token, covered_before, covered_after, claimed_before, claimed_after)
               join signed_order g on g.requester = k.requester and g.token = k.token
                   and g.nonce <= greatest(k.covered_before, k.covered_after)
                   and g.closed_at is null and g.withdrawn_at is null
                   and not exists (select from escrow_job e where e.job_id = g.job_id and e.opened_at is not null)
               left join job_completion c on c.job_id = g.job_id
               cross join lateral (
                   select min(v.cumulative) as cumulative from voucher v
                   where v.requester = k.requester and v.node = k.node and v.token = k.token
                     and v.covered_nonce >= g.nonce
               ) r
               where coalesce(c.node, g.order_node) = k.node
                 and (g.nonce > least(k.covered_before, k.covered_after)
                      or r.cumulative > least(k.claimed_before, k.claimed_after)
                         and r.cumulative <= greatest(k.claimed_before, k.claimed_after))
               order by g.requester, g.nonce, g.job_id"#,
            &self.requesters as _,
            &self.nodes as _,
            &self.tokens as _,
            &self.covered[0] as _,
            &self.covered[1] as _,
            &self.claimed[0] as _,
            &self.claimed[1] as _
        )
        .fetch_all(db)
        .await?;
        Ok(rows.into_iter().map(|row| (row.job_id.0, row.paid)).collect())
    }
}
