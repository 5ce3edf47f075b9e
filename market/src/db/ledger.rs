//! The ledger: `ledger_entry`, append-only. Writer: the indexer. The database itself refuses entries that do not balance, and
//! any change of entries that were written.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, I256};
use sqlx::postgres::PgConnection;

use super::chain::{from_db, to_db};
use super::copy::{Copy, copy_row};
use super::types::{DbAddress, DbHash, DbSigned};
use crate::fold::RawLog;
use crate::ledger::{Account, Entry};

/// An entry and the log that it follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Booked {
    block_number: u64,
    block_hash: B256,
    log_index: u64,
    entry: Entry,
}

impl Booked {
    /// `entry` as `log` brought it about.
    #[must_use]
    pub fn new(log: &RawLog, entry: Entry) -> Self {
        Self { block_number: log.block_number, block_hash: log.block_hash, log_index: log.log_index, entry }
    }
}

/// Writes entries. All those of one log must be among them.
pub(super) async fn append(db: &mut PgConnection, book: &[Booked]) -> Result<(), sqlx::Error> {
    if book.is_empty() {
        return Ok(());
    }
    let mut copy = Copy::begin(
        db,
        "copy ledger_entry (block_number, block_hash, log_index, reversal, account, owner, node, job_id, token, amount)
         from stdin (format binary)",
    )
    .await?;
    for row in book {
        let account = row.entry.account;
        let (node, job_id) = match account {
            Account::Reserved { node, .. } => (Some(DbAddress(node)), None),
            Account::Job(job_id) => (None, Some(DbHash(job_id))),
            _ => (None, None),
        };
        copy_row!(
            copy,
            to_db(row.block_number)?,
            DbHash(row.block_hash),
            to_db(row.log_index)?,
            false,
            account.name(),
            account.owner().map(DbAddress),
            node,
            job_id,
            DbAddress(row.entry.token),
            DbSigned(row.entry.amount),
        );
    }
    copy.finish().await
}

/// Takes back what the logs of `blocks`, all above number `ancestor`, brought about. A block that comes back is entered again.
pub(super) async fn reverse(db: &mut PgConnection, ancestor: u64, blocks: &[B256]) -> Result<(), sqlx::Error> {
    let blocks: Vec<DbHash> = blocks.iter().copied().map(DbHash).collect();
    sqlx::query!(
        "insert into ledger_entry (block_number, block_hash, log_index, reversal, account, owner, node, job_id, token, amount)
         select block_number, block_hash, log_index, true, account, owner, node, job_id, token, -sum(amount)
         from ledger_entry
         where block_number > $1 and block_hash = any($2::bytea[])
         group by block_number, block_hash, log_index, account, owner, node, job_id, token
         having sum(amount) <> 0
         order by block_number, log_index",
        to_db(ancestor)?,
        &blocks as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What an account holds by the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Which account.
    pub account: Account,
    /// Zero for the native coin.
    pub token: Address,
    /// In the token's smallest unit; negative for the world, which gave what the contracts hold.
    pub amount: I256,
}

/// The balances of all accounts that are not empty.
pub async fn balances(db: &mut PgConnection) -> Result<Vec<Balance>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select account, owner as "owner?: DbAddress", node as "node?: DbAddress", job_id as "job_id?: DbHash",
                  token as "token: DbAddress", sum(amount) as "amount!: DbSigned"
           from ledger_entry
           group by account, owner, node, job_id, token
           having sum(amount) <> 0
           order by account, owner, node, job_id, token"#
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let account = read_account(
                &row.account,
                row.owner.map(Address::from),
                row.node.map(Address::from),
                row.job_id.map(B256::from),
            )?;
            Ok(Balance { account, token: row.token.0, amount: row.amount.0 })
        })
        .collect()
}

/// What is locked for each of `jobs`, by account and token; none that is zero.
pub async fn job_balances(db: &mut PgConnection, jobs: &[B256]) -> Result<Movements, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select job_id as "job_id!: DbHash", token as "token: DbAddress", sum(amount) as "amount!: DbSigned"
           from ledger_entry where job_id = any($1::bytea[]) group by job_id, token having sum(amount) <> 0"#,
        &jobs.iter().copied().map(DbHash).collect::<Vec<_>>() as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| ((Account::Job(row.job_id.0), row.token.0), row.amount.0)).collect())
}

/// What is left of a log's entries once reversals are taken off, by account and token.
pub type Movements = BTreeMap<(Account, Address), I256>;

/// The movements of the canonical blocks `from` to `to`, by block and log.
pub async fn canonical_between(
    db: &mut PgConnection,
    from: u64,
    to: u64,
) -> Result<BTreeMap<(B256, u64), Movements>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select l.block_hash as "block_hash: DbHash", l.log_index, l.account, l.owner as "owner?: DbAddress",
                  l.node as "node?: DbAddress", l.job_id as "job_id?: DbHash", l.token as "token: DbAddress",
                  sum(l.amount) as "amount!: DbSigned"
           from chain_block b
           join ledger_entry l on l.block_number = b.number and l.block_hash = b.hash
           where b.canonical and b.number between $1 and $2
           group by l.block_hash, l.log_index, l.account, l.owner, l.node, l.job_id, l.token
           having sum(l.amount) <> 0"#,
        to_db(from)?,
        to_db(to)?
    )
    .fetch_all(db)
    .await?;
    let mut movements: BTreeMap<_, Movements> = BTreeMap::new();
    for row in rows {
        let (owner, node) = (row.owner.map(Address::from), row.node.map(Address::from));
        let account = read_account(&row.account, owner, node, row.job_id.map(B256::from))?;
        let log = movements.entry((row.block_hash.0, from_db(row.log_index)?)).or_default();
        log.insert((account, row.token.0), row.amount.0);
    }
    Ok(movements)
}

/// Logs of blocks that are not canonical, or not known, whose entries were not taken back.
pub async fn not_taken_back(db: &mut PgConnection) -> Result<Vec<(B256, u64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select distinct s.block_hash as "block_hash!: DbHash", s.log_index as "log_index!"
           from (
               select l.block_hash, l.log_index
               from ledger_entry l
               left join chain_block b on b.hash = l.block_hash
               where b.hash is null or not b.canonical
               group by l.block_hash, l.log_index, l.account, l.owner, l.node, l.job_id, l.token
               having sum(l.amount) <> 0
           ) s"#
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|row| Ok((row.block_hash.0, from_db(row.log_index)?))).collect()
}

fn read_account(
    name: &str,
    owner: Option<Address>,
    node: Option<Address>,
    job_id: Option<B256>,
) -> Result<Account, sqlx::Error> {
    match (name, owner, node, job_id) {
        ("world", ..) => Ok(Account::World),
        ("free", Some(owner), ..) => Ok(Account::Free(owner)),
        ("thawing", Some(owner), ..) => Ok(Account::Thawing(owner)),
        ("reserved", Some(requester), Some(node), _) => Ok(Account::Reserved { requester, node }),
        ("job", _, _, Some(job_id)) => Ok(Account::Job(job_id)),
        ("earned", Some(node), ..) => Ok(Account::Earned(node)),
        ("fee", ..) => Ok(Account::Fee),
        ("stake", Some(node), ..) => Ok(Account::Stake(node)),
        ("unbonding", Some(node), ..) => Ok(Account::Unbonding(node)),
        ("transit", ..) => Ok(Account::Transit),
        ("suspense", ..) => Ok(Account::Suspense),
        _ => Err(sqlx::Error::Decode(format!("{name:?} is not an account of the ledger").into())),
    }
}
