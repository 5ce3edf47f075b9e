//! [`Rows`] in their tables.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::{Address, B256};
use sqlx::postgres::PgConnection;

use crate::db::{escrow, registry};
use crate::fold::{EscrowJob, Key, Rows};

/// Keys by table.
#[derive(Default)]
struct Tables {
    jobs: Vec<B256>,
    accounts: Vec<(Address, Address)>,
    earned: Vec<(Address, Address)>,
    nodes: Vec<Address>,
    channels: Vec<(Address, Address, Address)>,
    sessions: Vec<(Address, Address, Address)>,
    settlers: Vec<(Address, Address)>,
    fees: Vec<Address>,
    parameters: bool,
}

impl Tables {
    fn of(keys: impl IntoIterator<Item = Key>) -> Self {
        let mut tables = Self::default();
        for key in keys {
            match key {
                Key::Job(job_id) => tables.jobs.push(job_id),
                Key::Account { owner, token } => tables.accounts.push((owner, token)),
                Key::Earned { node, token } => tables.earned.push((node, token)),
                Key::Node(node) => tables.nodes.push(node),
                Key::Channel { requester, node, token } => tables.channels.push((requester, node, token)),
                Key::Session { requester, key, token } => tables.sessions.push((requester, key, token)),
                Key::Settler { node, settler } => tables.settlers.push((node, settler)),
                Key::Fee(token) => tables.fees.push(token),
                Key::Parameters => tables.parameters = true,
            }
        }
        tables
    }
}

/// The rows of `keys`, as far as there are any.
pub async fn load(db: &mut PgConnection, keys: &BTreeSet<Key>) -> Result<Rows, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Rows::default());
    }
    load_tables(db, &Tables::of(keys.iter().copied())).await
}

async fn load_tables(db: &mut PgConnection, tables: &Tables) -> Result<Rows, sqlx::Error> {
    Ok(Rows {
        jobs: escrow::jobs(db, &tables.jobs).await?,
        accounts: escrow::accounts(db, &tables.accounts).await?,
        earned: escrow::earned(db, &tables.earned).await?,
        nodes: registry::nodes(db, &tables.nodes).await?,
        channels: escrow::channels(db, &tables.channels).await?,
        sessions: escrow::sessions(db, &tables.sessions).await?,
        settlers: escrow::settlers(db, &tables.settlers).await?,
        fees: escrow::fees(db, &tables.fees).await?,
        parameters: if tables.parameters { escrow::parameters(db).await? } else { None },
    })
}

/// All rows there are.
pub async fn all(db: &mut PgConnection) -> Result<Rows, sqlx::Error> {
    every(db, true).await
}

/// All rows there are but those of jobs, of which there are most.
pub async fn all_but_jobs(db: &mut PgConnection) -> Result<Rows, sqlx::Error> {
    every(db, false).await
}

async fn every(db: &mut PgConnection, jobs: bool) -> Result<Rows, sqlx::Error> {
    let keys = sqlx::query!(
        r#"select 'job' as "kind!", job_id as "one!", null::bytea as two, null::bytea as three
           from escrow_job where $1
           union all select 'account', owner, token, null from escrow_account
           union all select 'earned', node, token, null from escrow_earned
           union all select 'node', node, null, null from registry_node
           union all select 'channel', requester, node, token from escrow_channel
           union all select 'session', requester, session_key, token from escrow_session
           union all select 'settler', node, settler, null from escrow_settler
           union all select 'fee', token, null, null from escrow_fee"#,
        jobs
    )
    .fetch_all(&mut *db)
    .await?;
    let address = |bytes: Option<&Vec<u8>>| {
        let bytes = bytes.map_or(&[][..], Vec::as_slice);
        Address::try_from(bytes).map_err(|error| sqlx::Error::Decode(Box::new(error)))
    };
    let mut tables = Tables { parameters: true, ..Tables::default() };
    for row in keys {
        if row.kind == "job" {
            tables.jobs.push(B256::try_from(&row.one[..]).map_err(|error| sqlx::Error::Decode(Box::new(error)))?);
            continue;
        }
        let one = address(Some(&row.one))?;
        let (two, three) = (|| address(row.two.as_ref()), || address(row.three.as_ref()));
        match row.kind.as_str() {
            "account" => tables.accounts.push((one, two()?)),
            "earned" => tables.earned.push((one, two()?)),
            "channel" => tables.channels.push((one, two()?, three()?)),
            "session" => tables.sessions.push((one, two()?, three()?)),
            "settler" => tables.settlers.push((one, two()?)),
            "fee" => tables.fees.push(one),
            _ => tables.nodes.push(one),
        }
    }
    load_tables(db, &tables).await
}

/// Writes those of `rows` that are not in `stored`, which holds what the database has of these keys.
pub(super) async fn save(db: &mut PgConnection, stored: &Rows, rows: &Rows) -> Result<(), sqlx::Error> {
    let (new, changed) = jobs_by_whether_stored(stored, rows);
    escrow::insert_jobs(db, &new).await?;
    escrow::save_jobs(db, &changed).await?;
    escrow::save_accounts(db, &differing(&stored.accounts, &rows.accounts)).await?;
    escrow::save_earned(db, &differing(&stored.earned, &rows.earned)).await?;
    escrow::save_channels(db, &differing(&stored.channels, &rows.channels)).await?;
    escrow::save_sessions(db, &differing(&stored.sessions, &rows.sessions)).await?;
    escrow::save_settlers(db, &differing(&stored.settlers, &rows.settlers)).await?;
    escrow::save_fees(db, &differing(&stored.fees, &rows.fees)).await?;
    if let Some(parameters) = rows.parameters.as_ref().filter(|_| stored.parameters != rows.parameters) {
        escrow::save_parameters(db, parameters).await?;
    }
    registry::save_nodes(db, &differing(&stored.nodes, &rows.nodes)).await
}

type Jobs<'r> = Vec<(B256, &'r EscrowJob)>;

/// Jobs that are not stored, and those that are stored otherwise.
fn jobs_by_whether_stored<'r>(stored: &Rows, rows: &'r Rows) -> (Jobs<'r>, Jobs<'r>) {
    let differing = rows.jobs.iter().filter(|(id, job)| stored.jobs.get(*id) != Some(*job));
    differing.map(|(id, job)| (*id, job)).partition(|(id, _)| !stored.jobs.contains_key(id))
}

fn differing<K: Ord + Copy, V: PartialEq + Clone>(stored: &BTreeMap<K, V>, rows: &BTreeMap<K, V>) -> BTreeMap<K, V> {
    let differing = rows.iter().filter(|(key, row)| stored.get(*key) != Some(*row));
    differing.map(|(key, row)| (*key, row.clone())).collect()
}

/// Removes the rows of those `keys` that `rows` does not have.
pub(super) async fn delete_missing(
    db: &mut PgConnection,
    keys: &BTreeSet<Key>,
    rows: &Rows,
) -> Result<(), sqlx::Error> {
    let missing = Tables::of(keys.iter().copied().filter(|key| !rows.contains(key)));
    escrow::delete_jobs(db, &missing.jobs).await?;
    escrow::delete_accounts(db, &missing.accounts).await?;
    escrow::delete_earned(db, &missing.earned).await?;
    escrow::delete_channels(db, &missing.channels).await?;
    escrow::delete_sessions(db, &missing.sessions).await?;
    escrow::delete_settlers(db, &missing.settlers).await?;
    escrow::delete_fees(db, &missing.fees).await?;
    if missing.parameters {
        escrow::delete_parameters(db).await?;
    }
    registry::delete_nodes(db, &missing.nodes).await
}
