//! Vouchers that could be redeemed now.

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::due::interval;
use super::{Backoff, Filter, wei};
use crate::batch::{Call, Candidate, Channel, Kind, Redemption, Subject};
use crate::db::order;
use crate::db::types::{DbAddress, DbAmount, DbHash};

/// Most orders that are shown with one voucher. What is not shown stays claimable.
const MOST_SETTLED_ABOVE: i64 = 200;

/// What a channel and its account hold, for the rule of what a voucher pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// All that the channel ever paid.
    pub claimed: u128,
    /// What was paid for orders settled alone that the voucher does not cover.
    pub settled_above: u128,
    /// Its reservation, and the requester's free and thawing funds.
    pub available: u128,
    /// What a session key may still spend; nothing if the requester signed.
    pub session_left: Option<u128>,
}

impl Sums {
    /// What a voucher over `cumulative` pays now, as the contract would reckon; zero if it would be skipped.
    #[must_use]
    pub fn payable(&self, cumulative: u128) -> u128 {
        // The contract keeps what a channel paid in 96 bits.
        let entitled = cumulative.saturating_add(self.settled_above).min((1 << 96) - 1);
        let due = entitled.saturating_sub(self.claimed);
        if self.session_left.is_some_and(|left| left < due) { 0 } else { due.min(self.available) }
    }
}

/// The best voucher of each channel that has unsettled payments, if `sender` may redeem it and it pays something now, and
/// if neither it nor a signed order of its channel is in a pending batch, on hold, or backing off at `now`. Oldest payment
/// first, at most `limit`. Whether the signature is a key's is left to the caller (`by_key` is false). Run it in a
/// [`super::snapshot`].
pub async fn redeemable(
    db: &mut PgConnection,
    sender: Address,
    filter: &Filter,
    backoff: Backoff,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<(Candidate, Address)>, sqlx::Error> {
    let (tokens, least_tokens, least) = filter.columns();
    let rows = sqlx::query!(
        r#"with channel as (
               select g.requester, p.node, p.token,
                      min(p.created_at) filter (where g.nonce > coalesce(x.covered_nonce, 0)) as since
               from payment_due p
               join signed_order g on g.job_id = p.job_id
               left join escrow_channel x on x.requester = g.requester and x.node = p.node and x.token = p.token
               where p.closed_at is null and (cardinality($7::bytea[]) = 0 or p.token = any($7))
               group by g.requester, p.node, p.token
           )
           select c.requester as "requester!: DbAddress", c.node as "node!: DbAddress", c.token as "token!: DbAddress",
                  coalesce(c.since, v.created_at) as "ready_at!", v.cumulative as "cumulative!: DbAmount",
                  v.covered_nonce as "covered_nonce!: DbAmount", v.signer as "signer!: DbAddress", v.signature as "signature!",
                  coalesce(x.claimed, 0) as "claimed!: DbAmount", above.amount as "above!: DbAmount",
                  above.jobs as "above_jobs!: Vec<DbHash>",
                  coalesce(x.reserved, 0) + coalesce(a.free, 0) + coalesce(a.thawing, 0) as "available!: DbAmount",
                  s.amount_left as "left?: DbAmount", h.reverts as "reverts!",
                  least(x.thaw_end, a.thaw_end, s.expires_at) as ends_at,
                  coalesce((
                      select max(m.amount) from unnest($8::bytea[], $9::numeric[]) as m (token, amount)
                      where m.token = c.token
                  ), 0) as "least!: DbAmount"
           from channel c
           join lateral (
               select v.cumulative, v.covered_nonce, v.signer, v.signature, v.created_at
               from voucher v
               where v.requester = c.requester and v.node = c.node and v.token = c.token
               order by v.covered_nonce desc, v.cumulative desc
               limit 1
           ) v on v.cumulative < power(2::numeric, 128)
           left join escrow_channel x on x.requester = c.requester and x.node = c.node and x.token = c.token
           left join escrow_account a on a.owner = c.requester and a.token = c.token
           left join escrow_session s
               on v.signer <> c.requester and s.requester = c.requester and s.session_key = v.signer and s.token = c.token
                   and s.expires_at > $1
           cross join lateral (
               select coalesce(sum(u.amount), 0) as amount, coalesce(array_agg(u.job_id), '{}') as jobs
               from (
                   select e.job_id, case e.state when 'paid' then e.price else e.resolved_paid end as amount
                   from signed_order g
                   join escrow_job e on e.job_id = g.job_id
                   where g.requester = c.requester and g.token = c.token and g.nonce > v.covered_nonce
                       and g.order_node in (c.node, '\x0000000000000000000000000000000000000000')
                       and e.node = c.node and e.state in ('paid', 'resolved') and e.opened_at is null
                   order by 2 desc, 1
                   limit $6
               ) u
           ) above
           cross join lateral (
               select count(*) filter (where b.state <> 'pending') as ended,
                      count(*) filter (where b.state = 'reverted')::int as reverts,
                      max(b.ended_at) as last_ended
               from settlement_voucher u
               join settlement_batch b on b.id = u.batch_id
               where u.requester = c.requester and u.cumulative = v.cumulative and b.node = c.node and b.token = c.token
           ) h
           where (c.node = $5 or exists (
                     select from escrow_settler t where t.node = c.node and t.settler = $5 and t.allowed
                 ))
             and (v.signer = c.requester or s.amount_left is not null)
             and v.cumulative + above.amount > coalesce(x.claimed, 0)
             and coalesce(x.reserved, 0) + coalesce(a.free, 0) + coalesce(a.thawing, 0) > 0
             and not exists (
                 select from voucher_hold held
                 where held.requester = c.requester and held.node = c.node and held.token = c.token
                     and held.cumulative = v.cumulative
             )
             and not exists (
                 select from settlement_batch b
                 join settlement_voucher u on u.batch_id = b.id
                 where b.state = 'pending' and b.node = c.node and b.token = c.token and u.requester = c.requester
             )
             and not exists (
                 select from settlement_batch b
                 join settlement_item i on i.batch_id = b.id
                 join signed_order g on g.job_id = i.job_id
                 join job_completion w on w.job_id = i.job_id
                 where b.state = 'pending' and b.kind = $10 and g.requester = c.requester and g.token = c.token
                     and w.node = c.node
             )
             and (h.ended = 0 or h.last_ended + least($3::interval, $2::interval * power(2, least(h.ended, 30) - 1)) <= $1)
           order by 4, 1, 2, 3
           limit $4"#,
        now,
        interval(backoff.first)?,
        interval(backoff.longest)?,
        limit,
        DbAddress(sender) as _,
        MOST_SETTLED_ABOVE,
        &tokens as _,
        &least_tokens as _,
        &least as _,
        Kind::Submit.name()
    )
    .fetch_all(&mut *db)
    .await?;
    let above: Vec<B256> = rows.iter().flat_map(|row| row.above_jobs.iter().map(|id| id.0)).collect();
    let orders = order::agreed(db, &above).await?;
    let mut candidates = Vec::with_capacity(rows.len());
    for row in rows {
        let cumulative = wei(row.cumulative)?;
        let sums = Sums {
            claimed: wei(row.claimed)?,
            settled_above: wei(row.above)?,
            available: row.available.0.to_u128().unwrap_or(u128::MAX),
            session_left: row.left.map(|left| left.0.to_u128().unwrap_or(u128::MAX)),
        };
        let payable = sums.payable(cumulative);
        if payable == 0 || payable < wei(row.least)? {
            continue;
        }
        let mut ids: Vec<B256> = row.above_jobs.iter().map(|id| id.0).collect();
        ids.sort();
        let channel = Channel { requester: row.requester.0, node: row.node.0, token: row.token.0 };
        let redemption = Redemption {
            channel,
            cumulative,
            covered_nonce: row.covered_nonce.to_u64()?,
            signature: Bytes::from(row.signature),
            by_key: false,
            settled_above: ids.iter().filter_map(|id| orders.get(id)).map(|agreed| agreed.order.clone()).collect(),
            payable,
        };
        let candidate = Candidate {
            subject: Subject::Channel(channel),
            ready_at: row.ready_at,
            ends_at: row.ends_at,
            reverts: u32::try_from(row.reverts).unwrap_or(0),
            call: Call::Redeem(Box::new(redemption)),
        };
        candidates.push((candidate, row.signer.0));
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::Sums;

    #[test]
    fn a_voucher_pays_what_is_due_as_far_as_the_funds_reach() {
        let sums = Sums { claimed: 100, settled_above: 0, available: 1000, session_left: None };
        assert_eq!(sums.payable(150), 50);
        assert_eq!(sums.payable(100), 0);
        assert_eq!(sums.payable(90), 0);
        assert_eq!(Sums { available: 20, ..sums }.payable(150), 20);
        assert_eq!(Sums { settled_above: 30, ..sums }.payable(90), 20, "what was settled alone counts on top");
        assert_eq!(Sums { session_left: Some(50), ..sums }.payable(150), 50);
        assert_eq!(Sums { session_left: Some(49), ..sums }.payable(150), 0, "a session key pays all or nothing");
        let full = Sums { claimed: (1 << 96) - 1, available: 9, ..sums };
        assert_eq!(full.payable(u128::MAX), 0);
    }
}
