//! What Postgres says against what the chain's events amount to: the events themselves, rows, entries and sums.

use std::collections::BTreeMap;
use std::fmt::Debug;

use alloy::primitives::{Address, B256, I256};
use market::db::chain::{self, Block};
use market::db::ledger::{self, Movements};
use market::fold::{ChainEvent, RawLog, Rows};
use market::ledger::{Account, Balances, entries};
use market::source::RangeSize;
use sqlx::PgConnection;

use super::{Audit, AuditError, LOG_RANGE, Report, What};

/// What the chain's events amount to.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub rows: Rows,
    /// Balances by account and token; none that is zero.
    pub sums: BTreeMap<(Account, Address), I256>,
}

impl Truth {
    /// A balance that cannot be negative.
    pub fn balance(&self, account: Account, token: Address) -> I256 {
        self.sums.get(&(account, token)).copied().unwrap_or_default()
    }
}

/// Reads all events from the deployment up to `block`, and compares each stretch of them with what is stored.
pub(super) async fn read(
    audit: &Audit,
    block: &Block,
    db: &mut PgConnection,
    report: &mut Report,
) -> Result<Truth, AuditError> {
    let mut truth = Truth::default();
    let mut size = RangeSize::up_to(LOG_RANGE);
    let mut next = audit.deployment.deploy_block.min(block.id.number);
    let mut tips = Vec::new();
    while next <= block.id.number {
        let stretch = audit.source.next_range(next, block.id.number, &mut size).await?;
        let Some(tip) = stretch.blocks.last().map(|block| block.id) else { break };
        events(&stretch.events, &chain::canonical_between(db, next, tip.number).await?, report);
        let mut expected = BTreeMap::new();
        for event in &stretch.events {
            let movements = follow(&mut truth, event)?;
            if !movements.is_empty() {
                expected.insert((event.log.block_hash, event.log.log_index), movements);
            }
        }
        movements(&expected, &ledger::canonical_between(db, next, tip.number).await?, report);
        report.checked.events += stretch.events.len();
        tracing::info!(
            block = tip.number,
            of = block.id.number,
            events = report.checked.events,
            "read the chain's events"
        );
        tips.push(tip);
        next = tip.number + 1;
    }
    // Each stretch is of one chain by itself; all of them are if the last block of each still is on it.
    for tip in tips {
        super::on_chain(audit, tip).await?;
    }
    for (block_hash, log_index) in ledger::not_taken_back(db).await? {
        let subject = format!("log {log_index} of block {block_hash}");
        let expected = "none, as the block is not on the chain".to_owned();
        report.differs(What::Entry, subject, expected, "entries that were not taken back".to_owned());
    }
    Ok(truth)
}

/// Folds one event, and returns its movements.
fn follow(truth: &mut Truth, event: &ChainEvent) -> Result<Movements, AuditError> {
    let keys = event.event.keys();
    let before = Balances::of(&truth.rows, &keys);
    truth.rows.apply(event)?;
    let mut movements = Movements::new();
    for entry in entries(&event.event, &before, &Balances::of(&truth.rows, &keys)) {
        let account = (entry.account, entry.token);
        movements.insert(account, entry.amount);
        let sum = truth.sums.entry(account).or_default();
        *sum = sum.wrapping_add(entry.amount);
        if sum.is_zero() {
            truth.sums.remove(&account);
        }
    }
    Ok(movements)
}

fn events(on_chain: &[ChainEvent], stored: &[RawLog], report: &mut Report) {
    let mut stored: BTreeMap<(B256, u64), &RawLog> =
        stored.iter().map(|log| ((log.block_hash, log.log_index), log)).collect();
    for event in on_chain {
        let subject =
            || format!("{} (log {} of block {})", event.event.kind(), event.log.log_index, event.log.block_number);
        let found = stored.remove(&(event.log.block_hash, event.log.log_index));
        report.compare(What::Event, subject, &Some(&event.log), &found);
    }
    for log in stored.into_values() {
        let subject = || format!("log {} of block {} ({})", log.log_index, log.block_number, log.block_hash);
        report.compare(What::Event, subject, &None, &Some(log));
    }
}

type ByLog = BTreeMap<(B256, u64), Movements>;

fn movements(expected: &ByLog, found: &ByLog, report: &mut Report) {
    report.checked.entries += expected.values().map(BTreeMap::len).sum::<usize>();
    each(expected, found, |(block_hash, log_index), expected, found| {
        report.compare(What::Entry, || format!("log {log_index} of block {block_hash}"), &expected, &found);
    });
}

/// Visits all keys of both.
fn each<K: Ord, V>(ours: &BTreeMap<K, V>, theirs: &BTreeMap<K, V>, mut visit: impl FnMut(&K, Option<&V>, Option<&V>)) {
    for (key, value) in ours {
        visit(key, Some(value), theirs.get(key));
    }
    for (key, value) in theirs.iter().filter(|(key, _)| !ours.contains_key(*key)) {
        visit(key, None, Some(value));
    }
}

/// Compares the folded rows.
pub(super) async fn rows(truth: &Truth, db: &mut PgConnection, report: &mut Report) -> Result<(), AuditError> {
    let stored = chain::all_rows(db).await?;
    let ours = &truth.rows;
    table("escrow_job", &ours.jobs, &stored.jobs, report);
    table("escrow_account", &ours.accounts, &stored.accounts, report);
    table("escrow_earned", &ours.earned, &stored.earned, report);
    table("registry_node", &ours.nodes, &stored.nodes, report);
    table("escrow_channel", &ours.channels, &stored.channels, report);
    table("escrow_session", &ours.sessions, &stored.sessions, report);
    table("escrow_settler", &ours.settlers, &stored.settlers, report);
    table("escrow_fee", &ours.fees, &stored.fees, report);
    report.compare(What::Row, || "chain_parameter".to_owned(), &ours.parameters, &stored.parameters);
    Ok(())
}

fn table<K: Ord + Debug, V: PartialEq + Debug>(
    name: &str,
    ours: &BTreeMap<K, V>,
    stored: &BTreeMap<K, V>,
    report: &mut Report,
) {
    report.checked.rows += ours.len();
    each(ours, stored, |key, expected, found| {
        report.compare(What::Row, || format!("{name} {key:?}"), &expected, &found);
    });
}

/// Compares the ledger's sums, and finds what no event accounts for.
pub(super) async fn sums(truth: &Truth, db: &mut PgConnection, report: &mut Report) -> Result<(), AuditError> {
    let stored = ledger::balances(db).await?;
    let stored: BTreeMap<_, _> = stored.into_iter().map(|row| ((row.account, row.token), row.amount)).collect();
    report.checked.balances = truth.sums.len();
    each(&truth.sums, &stored, |(account, token), expected, found| {
        report.compare(What::Sum, || format!("{account:?} in {token}"), &expected, &found);
    });
    for ((account, token), amount) in &truth.sums {
        if matches!(account, Account::Suspense | Account::Transit) {
            report.compare(What::Sum, || format!("{account:?} in {token}"), &I256::ZERO, amount);
        }
    }
    Ok(())
}
