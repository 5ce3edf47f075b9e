//! How far a deposit is bound by signed orders, so that no requester promises the same money twice; and the orders and
//! payments that are over. Writes `signed_order.closed_at` and `payment_due.closed_at`, for the API.
//!
//! What a reservation covers is paid from it. The rest of what is promised must fit into the free balance:
//! `Σ max(0, promised(node) − reserved(node)) + promised to whoever comes ≤ free`. Funds on their way out count no more from
//! the moment of the notice, although until its end the contract still pays from them; what came counts once its block is deep
//! enough for it, as that of an opened job must be.

use std::collections::BTreeMap;

use alloy::primitives::{Address, U256};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgConnection;

use super::chain::to_db;
use super::types::{DbAddress, DbAmount};
use crate::Amount;

/// Rows that one statement of a sweep closes at the most.
const SWEEP_BATCH: i64 = 1000;
/// How long after its deadline an order without a result is closed. Longer than any two clocks differ.
const LAPSED_AFTER: TimeDelta = TimeDelta::hours(1);

/// What a requester has in one token, and what that is bound by. Amounts in the token's smallest unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exposure {
    /// The free balance, without what came in blocks that are not deep enough for it.
    pub free: Amount,
    /// On its way out of the account. Counts for nothing.
    pub thawing: Amount,
    /// Set aside for single nodes and not on its way back.
    reserved: BTreeMap<Address, U256>,
    /// By signed orders that are neither paid nor void and by vouchers that were paid in part, by node; nothing where any node
    /// may take the order.
    promised: BTreeMap<Option<Address>, U256>,
}

impl Exposure {
    /// A balance that nothing binds.
    #[must_use]
    pub fn unbound(free: Amount) -> Self {
        Self { free, ..Self::default() }
    }

    /// All that is set aside for nodes.
    #[must_use]
    pub fn reserved(&self) -> Amount {
        Amount(self.reserved.values().fold(U256::ZERO, |sum, amount| sum.saturating_add(*amount)))
    }

    /// All that is promised.
    #[must_use]
    pub fn promised(&self) -> Amount {
        Amount(self.promised.values().fold(U256::ZERO, |sum, amount| sum.saturating_add(*amount)))
    }

    /// What of the free balance nothing binds.
    #[must_use]
    pub fn available(&self) -> Amount {
        Amount(self.free.0.saturating_sub(self.bound()))
    }

    /// What is promised beyond the reservations.
    fn bound(&self) -> U256 {
        let beyond = self.promised.iter().map(|(node, amount)| amount.saturating_sub(self.reserved_for(*node)));
        beyond.fold(U256::ZERO, U256::saturating_add)
    }

    fn reserved_for(&self, node: Option<Address>) -> U256 {
        node.and_then(|node| self.reserved.get(&node)).copied().unwrap_or_default()
    }

    /// Whether there is enough for all that is promised.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.bound() <= self.free.0
    }

    /// What one more order of `price` takes from [`Exposure::available`]: all of it, but for what is set aside for `node`
    /// and promised to nobody.
    #[must_use]
    pub fn required(&self, node: Option<Address>, price: Amount) -> Amount {
        let promised = self.promised.get(&node).copied().unwrap_or_default();
        Amount(price.0.saturating_sub(self.reserved_for(node).saturating_sub(promised)))
    }

    /// Whether there is enough for one more order of `price`.
    #[must_use]
    pub fn fits(&self, node: Option<Address>, price: Amount) -> bool {
        self.required(node, price) <= self.available()
    }

    /// Counts one more order.
    pub fn add(&mut self, node: Option<Address>, price: Amount) {
        let promised = self.promised.entry(node).or_default();
        *promised = promised.saturating_add(price.0);
    }
}

/// Makes others who promise money of the same requester and token wait until the transaction ends. Whoever locks several
/// does it in order of requester and token.
pub async fn lock(db: &mut PgConnection, requester: Address, token: Address) -> Result<(), sqlx::Error> {
    let name = [requester, token].map(|part| part.0.0).concat();
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 8))", name).execute(db).await?;
    Ok(())
}

/// What binds the deposit at `now`. Promises whose deadline passed without a result bind nothing. Hold the [`lock`] where
/// something is promised upon it.
pub async fn of(
    db: &mut PgConnection,
    requester: Address,
    token: Address,
    now: DateTime<Utc>,
) -> Result<Exposure, sqlx::Error> {
    // In one statement, and so in one snapshot: a promise that turns into a lower balance must show as one or the other.
    let rows = sqlx::query!(
        r#"select 'account' as "what!", null::bytea as "node?: DbAddress", free as "amount!: DbAmount",
                  thawing as "thawing!: DbAmount"
           from escrow_account where owner = $1 and token = $2
           union all
           -- What came in blocks that are not as deep as its amount asks may go again. Entries of a block that was taken back are
           -- booked the other way round beside them, so each log's are added up.
           select 'shallow', null, coalesce(sum(c.amount), 0), 0
           from (
               select y.block_number as number, sum(y.amount) as amount
               from chain_level l
               join ledger_entry y on y.block_number > l.final_number and y.account = 'free' and y.owner = $1 and y.token = $2
               group by y.block_number, y.block_hash, y.log_index having sum(y.amount) > 0
           ) c
           cross join chain_level l
           where coalesce(l.block_number - c.number < confirmation_depth($2::bytea, c.amount), true)
           union all
           select 'reserved', node, reserved - thawing, 0 from escrow_channel
           where requester = $1 and token = $2 and reserved > thawing
           union all
           select 'promised', p.node, sum(p.amount), 0
           from (
               select node, amount from order_promise
               where requester = $1 and token = $2 and (completed or deadline >= $3)
               union all
               select node, amount from channel_debt where requester = $1 and token = $2
           ) p
           group by p.node"#,
        DbAddress(requester) as _,
        DbAddress(token) as _,
        now
    )
    .fetch_all(db)
    .await?;
    let (mut exposure, mut shallow) = (Exposure::default(), Amount::ZERO);
    for row in rows {
        let (node, amount) = (row.node.map(Address::from), row.amount.0);
        match (row.what.as_str(), node) {
            ("shallow", _) => shallow = amount,
            ("account", _) => (exposure.free, exposure.thawing) = (amount, row.thawing.0),
            ("reserved", Some(node)) => {
                exposure.reserved.insert(node, amount.0);
            }
            _ => {
                exposure.promised.insert(node, amount.0);
            }
        }
    }
    exposure.free = Amount(exposure.free.0.saturating_sub(shallow.0));
    Ok(exposure)
}

/// Closes payments that the chain has settled, one way or another, in or before the block `final_block`. What a voucher
/// covers is settled once the least voucher that covers it has been paid in full. Returns how many it closed; there may be
/// more if that is [`is_full`].
pub async fn close_payments(db: &mut PgConnection, final_block: u64, now: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let closed = sqlx::query!(
        "update payment_due set closed_at = $2 where job_id in (
             select p.job_id from payment_due p
             where p.closed_at is null and (
                 exists (
                     -- A signed order is refunded only when a voucher took its place, and that is paid below.
                     select from escrow_job e
                     where e.job_id = p.job_id and e.closed_block <= $1
                         and (e.state <> 'refunded' or e.opened_at is not null)
                 )
                 or exists (
                     select from signed_order g
                     join chain_redemption r on r.requester = g.requester and r.node = p.node and r.token = g.token
                     join chain_event q on q.block_number = r.block_number and q.log_index = r.log_index
                         and q.block_hash = r.block_hash and q.canonical
                     where g.job_id = p.job_id and r.covered_nonce >= g.nonce and r.block_number <= $1
                         and r.claimed >= coalesce((
                             select min(u.cumulative) from voucher u
                             where u.requester = g.requester and u.node = p.node and u.token = g.token
                                 and u.covered_nonce >= g.nonce
                         ), 0)
                         -- What was opened after all is paid from its lock.
                         and not exists (
                             select from escrow_job e where e.job_id = p.job_id and e.state in ('open', 'submitted', 'disputed')
                         )
                 )
             )
             order by p.created_at, p.job_id
             limit $3
             for update of p skip locked
         )",
        to_db(final_block)?,
        now,
        SWEEP_BATCH
    )
    .execute(db)
    .await?;
    Ok(closed.rows_affected())
}

/// Closes signed orders that bind nothing any more, for good: settled or covered by a redeemed voucher in or before the block
/// `final_block`, or past their deadline for an hour without a result. Returns how many it closed; there may be more if that
/// is [`is_full`].
pub async fn close_orders(db: &mut PgConnection, final_block: u64, now: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let closed = sqlx::query!(
        "update signed_order set closed_at = $2 where job_id in (
             select g.job_id from signed_order g
             left join job_completion c on c.job_id = g.job_id
             where g.closed_at is null and g.withdrawn_at is null and (
                 exists (select from escrow_job e where e.job_id = g.job_id and e.closed_block <= $1)
                 -- While it lies in the escrow, that is what counts.
                 or not exists (select from escrow_job e where e.job_id = g.job_id and e.state <> 'none') and (
                     (c.job_id is null and g.deadline < $3)
                     or exists (
                         select from chain_redemption r
                         join chain_event q on q.block_number = r.block_number and q.log_index = r.log_index
                             and q.block_hash = r.block_hash and q.canonical
                         where r.requester = g.requester and r.node = coalesce(c.node, g.order_node) and r.token = g.token
                             and r.covered_nonce >= g.nonce and r.block_number <= $1
                     )
                 )
             )
             order by g.created_at, g.job_id
             limit $4
             for update of g skip locked
         )",
        to_db(final_block)?,
        now,
        now - LAPSED_AFTER,
        SWEEP_BATCH
    )
    .execute(db)
    .await?;
    Ok(closed.rows_affected())
}

/// Whether a sweep that closed so many may have left some.
#[must_use]
pub fn is_full(closed: u64) -> bool {
    i64::try_from(closed).is_ok_and(|closed| closed >= SWEEP_BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Option<Address> = Some(Address::repeat_byte(1));
    const OTHER: Option<Address> = Some(Address::repeat_byte(2));

    fn exposure(free: u128, reserved: u128) -> Exposure {
        let reserved = NODE.into_iter().map(|node| (node, U256::from(reserved))).collect();
        Exposure { free: free.into(), reserved, ..Exposure::default() }
    }

    #[test]
    fn the_last_unit_is_there_to_be_promised_and_no_more() {
        let mut exposure = exposure(100, 0);
        exposure.add(None, 40.into());
        assert!(exposure.fits(OTHER, 60.into()) && !exposure.fits(OTHER, 61.into()));
        exposure.add(OTHER, 60.into());
        assert!(exposure.holds() && exposure.available() == Amount::ZERO && !exposure.fits(None, 1.into()));
        exposure.free = 99.into();
        assert!(!exposure.holds());
    }

    #[test]
    fn a_reservation_pays_for_its_node_first_and_for_no_other() {
        let mut exposure = exposure(10, 100);
        assert!(exposure.fits(NODE, 110.into()) && !exposure.fits(NODE, 111.into()));
        assert!(exposure.fits(OTHER, 10.into()) && !exposure.fits(OTHER, 11.into()) && !exposure.fits(None, 11.into()));
        exposure.add(NODE, 70.into());
        assert_eq!((exposure.available(), exposure.required(NODE, 50.into())), (10.into(), 20.into()));
        exposure.add(NODE, 35.into());
        assert_eq!((exposure.available(), exposure.required(NODE, 50.into())), (5.into(), 50.into()));
        assert!(exposure.holds());
        assert_eq!((exposure.reserved(), exposure.promised()), (100.into(), 105.into()));
    }

    #[test]
    fn funds_that_left_void_no_reservation() {
        let mut exposure = exposure(0, 100);
        exposure.add(None, 1.into());
        assert!(!exposure.holds());
        assert!(exposure.fits(NODE, 100.into()), "what is set aside for the node is there for it");
    }
}
