//! What lies between requesters and nodes, and what the owners set.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::columns;
use crate::Amount;
use crate::db::types::{DbAddress, DbAmount};
use crate::fold::{EscrowChannel, EscrowSession, Parameters};

/// Requester, node or key, and token.
type Triple = (Address, Address, Address);

/// Triples as three arrays, for `unnest`.
fn columns3(triples: impl Iterator<Item = Triple>) -> (Vec<DbAddress>, Vec<DbAddress>, Vec<DbAddress>) {
    triples.map(|(one, two, three)| (DbAddress(one), DbAddress(two), DbAddress(three))).collect()
}

/// The channels among `keys` (requester, node, token) that were ever used.
pub async fn channels(db: &mut PgConnection, keys: &[Triple]) -> Result<BTreeMap<Triple, EscrowChannel>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (requesters, nodes, tokens) = columns3(keys.iter().copied());
    let rows = sqlx::query!(
        r#"select c.requester as "requester: DbAddress", c.node as "node: DbAddress", c.token as "token: DbAddress",
                  c.claimed as "claimed: DbAmount", c.reserved as "reserved: DbAmount",
                  c.covered_nonce as "covered_nonce: DbAmount", c.thawing as "thawing: DbAmount", c.thaw_end
           from escrow_channel c
           join unnest($1::bytea[], $2::bytea[], $3::bytea[]) as k (requester, node, token)
             on c.requester = k.requester and c.node = k.node and c.token = k.token"#,
        &requesters as _,
        &nodes as _,
        &tokens as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let channel = EscrowChannel {
                claimed: row.claimed.0,
                reserved: row.reserved.0,
                covered_nonce: row.covered_nonce.to_u64()?,
                thawing: row.thawing.0,
                thaw_end: row.thaw_end,
            };
            Ok(((row.requester.0, row.node.0, row.token.0), channel))
        })
        .collect()
}

/// Writes channels as folded.
pub async fn save_channels(
    db: &mut PgConnection,
    channels: &BTreeMap<Triple, EscrowChannel>,
) -> Result<(), sqlx::Error> {
    if channels.is_empty() {
        return Ok(());
    }
    let (requesters, nodes, tokens) = columns3(channels.keys().copied());
    let amounts = |pick: fn(&EscrowChannel) -> Amount| -> Vec<DbAmount> {
        channels.values().map(|channel| DbAmount(pick(channel))).collect()
    };
    sqlx::query!(
        "insert into escrow_channel (requester, node, token, claimed, reserved, covered_nonce, thawing, thaw_end)
         select * from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::numeric[], $5::numeric[], $6::numeric[],
                              $7::numeric[], $8::timestamptz[])
         on conflict (requester, node, token) do update set
             claimed = excluded.claimed, reserved = excluded.reserved, covered_nonce = excluded.covered_nonce,
             thawing = excluded.thawing, thaw_end = excluded.thaw_end",
        &requesters as _,
        &nodes as _,
        &tokens as _,
        &amounts(|channel| channel.claimed) as _,
        &amounts(|channel| channel.reserved) as _,
        &channels.values().map(|channel| DbAmount::from(u128::from(channel.covered_nonce))).collect::<Vec<_>>() as _,
        &amounts(|channel| channel.thawing) as _,
        &channels.values().map(|channel| channel.thaw_end).collect::<Vec<_>>() as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes channels that, after a reorg, were never used.
pub async fn delete_channels(db: &mut PgConnection, keys: &[Triple]) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let (requesters, nodes, tokens) = columns3(keys.iter().copied());
    sqlx::query!(
        "delete from escrow_channel c
         using unnest($1::bytea[], $2::bytea[], $3::bytea[]) as k (requester, node, token)
         where c.requester = k.requester and c.node = k.node and c.token = k.token",
        &requesters as _,
        &nodes as _,
        &tokens as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The permissions among `keys` (requester, key, token) that were ever given.
pub async fn sessions(db: &mut PgConnection, keys: &[Triple]) -> Result<BTreeMap<Triple, EscrowSession>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (requesters, session_keys, tokens) = columns3(keys.iter().copied());
    let rows = sqlx::query!(
        r#"select s.requester as "requester: DbAddress", s.session_key as "session_key: DbAddress",
                  s.token as "token: DbAddress", s.amount_left as "amount_left: DbAmount", s.expires_at
           from escrow_session s
           join unnest($1::bytea[], $2::bytea[], $3::bytea[]) as k (requester, session_key, token)
             on s.requester = k.requester and s.session_key = k.session_key and s.token = k.token"#,
        &requesters as _,
        &session_keys as _,
        &tokens as _
    )
    .fetch_all(db)
    .await?;
    let session = |left: DbAmount, expires_at| EscrowSession { left: left.0, expires_at };
    Ok(rows
        .into_iter()
        .map(|row| ((row.requester.0, row.session_key.0, row.token.0), session(row.amount_left, row.expires_at)))
        .collect())
}

/// Writes permissions as folded.
pub async fn save_sessions(
    db: &mut PgConnection,
    sessions: &BTreeMap<Triple, EscrowSession>,
) -> Result<(), sqlx::Error> {
    if sessions.is_empty() {
        return Ok(());
    }
    let (requesters, session_keys, tokens) = columns3(sessions.keys().copied());
    let left: Vec<DbAmount> = sessions.values().map(|session| DbAmount(session.left)).collect();
    let expires_at: Vec<DateTime<Utc>> = sessions.values().map(|session| session.expires_at).collect();
    sqlx::query!(
        "insert into escrow_session (requester, session_key, token, amount_left, expires_at)
         select * from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::numeric[], $5::timestamptz[])
         on conflict (requester, session_key, token) do update set
             amount_left = excluded.amount_left, expires_at = excluded.expires_at",
        &requesters as _,
        &session_keys as _,
        &tokens as _,
        &left as _,
        &expires_at
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes permissions that, after a reorg, were never given.
pub async fn delete_sessions(db: &mut PgConnection, keys: &[Triple]) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let (requesters, session_keys, tokens) = columns3(keys.iter().copied());
    sqlx::query!(
        "delete from escrow_session s
         using unnest($1::bytea[], $2::bytea[], $3::bytea[]) as k (requester, session_key, token)
         where s.requester = k.requester and s.session_key = k.session_key and s.token = k.token",
        &requesters as _,
        &session_keys as _,
        &tokens as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Whether those among `keys` (node, settler) of which the chain has told may redeem.
pub async fn settlers(
    db: &mut PgConnection,
    keys: &[(Address, Address)],
) -> Result<BTreeMap<(Address, Address), bool>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (nodes, settlers) = columns(keys.iter().copied());
    let rows = sqlx::query!(
        r#"select s.node as "node: DbAddress", s.settler as "settler: DbAddress", s.allowed
           from escrow_settler s
           join unnest($1::bytea[], $2::bytea[]) as k (node, settler) on s.node = k.node and s.settler = k.settler"#,
        &nodes as _,
        &settlers as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| ((row.node.0, row.settler.0), row.allowed)).collect())
}

/// Writes who may redeem, as folded.
pub async fn save_settlers(
    db: &mut PgConnection,
    settlers: &BTreeMap<(Address, Address), bool>,
) -> Result<(), sqlx::Error> {
    if settlers.is_empty() {
        return Ok(());
    }
    let (nodes, addresses) = columns(settlers.keys().copied());
    let allowed: Vec<bool> = settlers.values().copied().collect();
    sqlx::query!(
        "insert into escrow_settler (node, settler, allowed)
         select * from unnest($1::bytea[], $2::bytea[], $3::boolean[])
         on conflict (node, settler) do update set allowed = excluded.allowed",
        &nodes as _,
        &addresses as _,
        &allowed
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes settlers that, after a reorg, were never named.
pub async fn delete_settlers(db: &mut PgConnection, keys: &[(Address, Address)]) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let (nodes, settlers) = columns(keys.iter().copied());
    sqlx::query!(
        "delete from escrow_settler s using unnest($1::bytea[], $2::bytea[]) as k (node, settler)
         where s.node = k.node and s.settler = k.settler",
        &nodes as _,
        &settlers as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Fees taken in `tokens` and not withdrawn; a missing one was never taken.
pub async fn fees(db: &mut PgConnection, tokens: &[Address]) -> Result<BTreeMap<Address, Amount>, sqlx::Error> {
    if tokens.is_empty() {
        return Ok(BTreeMap::new());
    }
    let tokens: Vec<DbAddress> = tokens.iter().copied().map(DbAddress).collect();
    let rows = sqlx::query!(
        r#"select token as "token: DbAddress", fees as "fees: DbAmount" from escrow_fee
           where token = any($1::bytea[])"#,
        &tokens as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.token.0, row.fees.0)).collect())
}

/// Writes fees as folded.
pub async fn save_fees(db: &mut PgConnection, fees: &BTreeMap<Address, Amount>) -> Result<(), sqlx::Error> {
    if fees.is_empty() {
        return Ok(());
    }
    let tokens: Vec<DbAddress> = fees.keys().copied().map(DbAddress).collect();
    let amounts: Vec<DbAmount> = fees.values().copied().map(DbAmount).collect();
    sqlx::query!(
        "insert into escrow_fee (token, fees) select * from unnest($1::bytea[], $2::numeric[])
         on conflict (token) do update set fees = excluded.fees",
        &tokens as _,
        &amounts as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes fees that, after a reorg, were never taken.
pub async fn delete_fees(db: &mut PgConnection, tokens: &[Address]) -> Result<(), sqlx::Error> {
    let tokens: Vec<DbAddress> = tokens.iter().copied().map(DbAddress).collect();
    sqlx::query!("delete from escrow_fee where token = any($1::bytea[])", &tokens as _).execute(db).await?;
    Ok(())
}

/// What the owners have set; nothing while all is as constructed.
pub async fn parameters(db: &mut PgConnection) -> Result<Option<Parameters>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select fee_bps, escrow_paused, registry_paused, min_stake as "min_stake?: DbAmount", min_stake_since,
                  min_stake_before as "min_stake_before?: DbAmount"
           from chain_parameter"#
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Parameters {
            fee_bps: u16::try_from(row.fee_bps).map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            escrow_paused: row.escrow_paused,
            registry_paused: row.registry_paused,
            min_stake: row.min_stake.map(Amount::from).zip(row.min_stake_since),
            min_stake_before: row.min_stake_before.map(Amount::from),
        })
    })
    .transpose()
}

/// Writes what the owners have set, as folded.
pub async fn save_parameters(db: &mut PgConnection, parameters: &Parameters) -> Result<(), sqlx::Error> {
    let (min_stake, since) = parameters.min_stake.unzip();
    sqlx::query!(
        "insert into chain_parameter (fee_bps, escrow_paused, registry_paused, min_stake, min_stake_since, min_stake_before)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (singleton) do update set
             fee_bps = excluded.fee_bps, escrow_paused = excluded.escrow_paused,
             registry_paused = excluded.registry_paused, min_stake = excluded.min_stake,
             min_stake_since = excluded.min_stake_since, min_stake_before = excluded.min_stake_before",
        i32::from(parameters.fee_bps),
        parameters.escrow_paused,
        parameters.registry_paused,
        min_stake.map(DbAmount) as _,
        since,
        parameters.min_stake_before.map(DbAmount) as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets what, after a reorg, no owner set.
pub async fn delete_parameters(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from chain_parameter").execute(db).await?;
    Ok(())
}
