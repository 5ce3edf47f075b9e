//! The events that make rows again after a reorg.
//!
//! Of a key that many events touch, only the last one of each kind is read (see [`Key::kinds`]), each by one probe of an
//! index from its end: undoing a block costs what is in the block, not what came before it.

use std::collections::BTreeSet;

use sqlx::postgres::PgConnection;

use super::event::LogRow;
use crate::db::types::{DbAddress, DbHash};
use crate::fold::{Key, RawLog};

/// Canonical events that, folded in this order, make the rows of `keys` what all canonical events do. They may touch other
/// rows too, which they do not make.
pub(super) async fn decisive(db: &mut PgConnection, keys: &BTreeSet<Key>) -> Result<Vec<RawLog>, sqlx::Error> {
    let probes = Probes::of(keys);
    let rows = sqlx::query_as!(
        LogRow,
        r#"with decisive as (
               select e.block_hash, e.log_index from chain_event e
               where e.canonical and e.job_id = any($1::bytea[]) and e.kind = any($2::text[])
               union
               select l.block_hash, l.log_index
               from unnest($3::bytea[], $4::bytea[], $5::text[]) as k (owner, token, kind)
               cross join lateral (
                   select e.block_hash, e.log_index from chain_event e
                   where e.canonical and e.account = k.owner and e.token = k.token and e.kind = k.kind
                   order by e.block_number desc, e.log_index desc limit 1
               ) l
               union
               select l.block_hash, l.log_index from unnest($6::bytea[], $7::bytea[]) as k (owner, token)
               cross join lateral (
                   select r.block_hash, r.log_index from chain_redemption r
                   join chain_event e on e.block_hash = r.block_hash and e.log_index = r.log_index and e.canonical
                   where r.requester = k.owner and r.token = k.token and r.drawn
                   order by r.block_number desc, r.log_index desc limit 1
               ) l
               union
               select l.block_hash, l.log_index
               from unnest($8::bytea[], $9::bytea[], $10::bytea[], $11::text[]) as k (owner, node, token, kind)
               cross join lateral (
                   select e.block_hash, e.log_index from chain_event e
                   where e.canonical and e.kind in ('ChannelUpdated', 'ReservationChanged')
                     and e.account = k.owner and e.node = k.node and e.token = k.token and e.kind = k.kind
                   order by e.block_number desc, e.log_index desc limit 1
               ) l
               union
               select l.block_hash, l.log_index
               from unnest($12::bytea[], $13::bytea[], $14::bytea[]) as k (owner, node, token)
               cross join lateral (
                   select r.block_hash, r.log_index from chain_redemption r
                   join chain_event e on e.block_hash = r.block_hash and e.log_index = r.log_index and e.canonical
                   where r.requester = k.owner and r.node = k.node and r.token = k.token
                   order by r.block_number desc, r.log_index desc limit 1
               ) l
               union
               select l.block_hash, l.log_index
               from unnest($15::bytea[], $16::bytea[], $17::bytea[]) as k (owner, key, token)
               cross join lateral (
                   select e.block_hash, e.log_index from chain_event e
                   where e.canonical and e.account = k.owner and e.token = k.token and e.kind = 'SessionUpdated'
                     and substring(e.topics from 77 for 20) = k.key  -- the third topic
                   order by e.block_number desc, e.log_index desc limit 1
               ) l
               union
               select l.block_hash, l.log_index
               from unnest($18::bytea[], $19::bytea[], $20::text[]) as k (node, token, kind)
               cross join lateral (
                   select e.block_hash, e.log_index from chain_event e
                   where e.canonical and e.node = k.node and e.token = k.token and e.kind = k.kind
                   order by e.block_number desc, e.log_index desc limit 1
               ) l
               union
               select l.block_hash, l.log_index from unnest($21::bytea[], $22::text[]) as k (node, kind)
               cross join lateral (
                   select e.block_hash, e.log_index from chain_event e
                   where e.canonical and e.node = k.node and e.token is null and e.kind = k.kind
                   order by e.block_number desc, e.log_index desc limit 1
               ) l
               union
               select l.block_hash, l.log_index from unnest($23::bytea[]) as k (node)
               cross join lateral (
                   select e.block_hash, e.log_index from chain_event e
                   where e.canonical and e.node = k.node and e.token is null and e.kind = 'NodeUpdated'
                   order by e.block_number, e.log_index limit 1
               ) l
               union
               select e.block_hash, e.log_index from unnest($24::bytea[]) as k (node)
               join chain_event e on e.canonical and e.node = k.node and e.token is null and e.kind = 'SettlerSet'
               union
               select l.block_hash, l.log_index from unnest($25::bytea[], $26::text[]) as k (token, kind)
               cross join lateral (
                   select e.block_hash, e.log_index from chain_event e
                   where e.canonical and e.account is null and e.node is null and e.token = k.token and e.kind = k.kind
                   order by e.block_number desc, e.log_index desc limit 1
               ) l
               union
               select e.block_hash, e.log_index from chain_event e
               where e.canonical and e.account is null and e.node is null and e.token is null
                 and e.kind = any($27::text[])
           )
           select e.block_hash as "block_hash: DbHash", e.log_index, e.block_number, b.mined_at,
                  e.tx_hash as "tx_hash: DbHash", e.contract as "contract: DbAddress", e.topics, e.data
           from decisive d
           join chain_event e on e.block_hash = d.block_hash and e.log_index = d.log_index
           join chain_block b on b.hash = e.block_hash
           order by e.block_number, e.log_index"#,
        &probes.jobs as _,
        &probes.job_kinds,
        &probes.accounts.0 as _,
        &probes.accounts.1 as _,
        &probes.accounts.2,
        &probes.drawn_on.0 as _,
        &probes.drawn_on.1 as _,
        &probes.channels.0 as _,
        &probes.channels.1 as _,
        &probes.channels.2 as _,
        &probes.channels.3,
        &probes.redeemed.0 as _,
        &probes.redeemed.1 as _,
        &probes.redeemed.2 as _,
        &probes.sessions.0 as _,
        &probes.sessions.1 as _,
        &probes.sessions.2 as _,
        &probes.earners.0 as _,
        &probes.earners.1 as _,
        &probes.earners.2,
        &probes.nodes.0 as _,
        &probes.nodes.1,
        &probes.registered as _,
        &probes.settled_for as _,
        &probes.fees.0 as _,
        &probes.fees.1,
        &probes.parameter_kinds
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(LogRow::read).collect()
}

/// What to look for, as arrays for `unnest`: one element for each key, or for each key and kind of event.
#[derive(Default)]
struct Probes {
    jobs: Vec<DbHash>,
    job_kinds: Vec<String>,
    accounts: (Vec<DbAddress>, Vec<DbAddress>, Vec<String>),
    drawn_on: (Vec<DbAddress>, Vec<DbAddress>),
    channels: (Vec<DbAddress>, Vec<DbAddress>, Vec<DbAddress>, Vec<String>),
    redeemed: (Vec<DbAddress>, Vec<DbAddress>, Vec<DbAddress>),
    sessions: (Vec<DbAddress>, Vec<DbAddress>, Vec<DbAddress>),
    earners: (Vec<DbAddress>, Vec<DbAddress>, Vec<String>),
    nodes: (Vec<DbAddress>, Vec<String>),
    registered: Vec<DbAddress>,
    settled_for: Vec<DbAddress>,
    fees: (Vec<DbAddress>, Vec<String>),
    parameter_kinds: Vec<String>,
}

impl Probes {
    fn of(keys: &BTreeSet<Key>) -> Self {
        let mut probes = Self::default();
        keys.iter().for_each(|key| probes.add(*key));
        probes
    }

    fn add(&mut self, key: Key) {
        match key {
            Key::Job(job_id) => {
                self.jobs.push(DbHash(job_id));
                self.job_kinds = owned(key.kinds());
            }
            Key::Account { owner, token } => {
                each_kind(key, |kind| self.accounts.extend([(DbAddress(owner), DbAddress(token), kind)]));
                self.drawn_on.extend([(DbAddress(owner), DbAddress(token))]);
            }
            Key::Channel { requester, node, token } => {
                let row = (DbAddress(requester), DbAddress(node), DbAddress(token));
                each_kind(key, |kind| self.channels.extend([(row.0, row.1, row.2, kind)]));
                self.redeemed.extend([row]);
            }
            Key::Session { requester, key, token } => {
                self.sessions.extend([(DbAddress(requester), DbAddress(key), DbAddress(token))]);
            }
            Key::Earned { node, token } => {
                each_kind(key, |kind| self.earners.extend([(DbAddress(node), DbAddress(token), kind)]));
            }
            Key::Node(node) => {
                each_kind(key, |kind| self.nodes.extend([(DbAddress(node), kind)]));
                self.registered.push(DbAddress(node));
            }
            Key::Settler { node, .. } => self.settled_for.push(DbAddress(node)),
            Key::Fee(token) => each_kind(key, |kind| self.fees.extend([(DbAddress(token), kind)])),
            Key::Parameters => self.parameter_kinds = owned(key.kinds()),
        }
    }
}

fn each_kind(key: Key, mut add: impl FnMut(String)) {
    owned(key.kinds()).into_iter().for_each(&mut add);
}

fn owned(kinds: &[&str]) -> Vec<String> {
    kinds.iter().map(|kind| (*kind).to_owned()).collect()
}
