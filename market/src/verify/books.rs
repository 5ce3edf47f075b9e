//! What Postgres says against what the chain's events amount to: the events themselves, rows, entries and sums.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use alloy::primitives::{Address, B256, I256};
use futures::{StreamExt, stream};
use sqlx::PgConnection;
use tokio::time::Instant;

use super::contracts::View;
use super::{Report, Truth, Verifier, VerifyError, What, contracts};
use crate::db::audit::{self, job_ids_after};
use crate::db::chain::{self, BlockId};
use crate::db::ledger::{self, Movements};
use crate::fold::{ChainEvent, EscrowJob, Key, RawLog, Rows};
use crate::ledger::{Account, Balances, entries};
use crate::source::{RangeSize, Stretch};

/// Blocks that one query of logs spans at most.
const LOG_RANGE: u64 = 2000;
/// Stored events that are compared at once, unless one block has more.
const EVENTS_AT_ONCE: u64 = 20_000;
/// Rows that are read at once.
const ROWS_AT_ONCE: i64 = 2000;
/// Between two words about progress.
const TOLD_EVERY: Duration = Duration::from_secs(3);

/// Reads the chain's events, stretch by stretch.
pub(super) struct Reading<'a> {
    verifier: &'a Verifier,
    size: RangeSize,
    next: u64,
    tips: Vec<BlockId>,
    told_at: Instant,
}

impl<'a> Reading<'a> {
    pub(super) fn new(verifier: &'a Verifier, from: u64) -> Self {
        Self { verifier, size: RangeSize::up_to(LOG_RANGE), next: from, tips: Vec::new(), told_at: Instant::now() }
    }

    /// Compares the events up to block `to`.
    pub(super) async fn recount(
        &mut self,
        to: u64,
        db: &mut PgConnection,
        report: &mut Report,
    ) -> Result<(), VerifyError> {
        while self.next_stretch(to, db, report).await?.is_some() {}
        Ok(())
    }

    /// As [`Self::recount`], folds the events, and compares their entries. With `letting_go`, jobs that end are compared with
    /// their rows and the contracts at once and are not kept.
    pub(super) async fn fold(
        &mut self,
        truth: &mut Truth,
        to: u64,
        db: &mut PgConnection,
        letting_go: Option<&View<'_>>,
        report: &mut Report,
    ) -> Result<(), VerifyError> {
        while let Some((from, tip, on_chain)) = self.next_stretch(to, db, report).await? {
            let mut expected = BTreeMap::new();
            for event in &on_chain {
                let movements = follow(truth, event)?;
                if !movements.is_empty() {
                    expected.insert((event.log.block_hash, event.log.log_index), movements);
                }
            }
            movements(&expected, &ledger::canonical_between(db, from, tip).await?, report);
            if let Some(view) = letting_go {
                let_go(view, truth, &on_chain, db, report).await?;
            }
        }
        Ok(())
    }

    /// Each stretch is of one chain by itself; all of them are if the last block of each still is on it.
    pub(super) async fn still_holds(&self) -> Result<(), VerifyError> {
        for tip in &self.tips {
            self.verifier.on_chain(*tip).await?;
        }
        Ok(())
    }

    /// Reads and compares the next stretch: its first and last block, and the chain's events in it. Nothing beyond `to`.
    async fn next_stretch(
        &mut self,
        to: u64,
        db: &mut PgConnection,
        report: &mut Report,
    ) -> Result<Option<(u64, u64, Vec<ChainEvent>)>, VerifyError> {
        let from = self.next;
        if from > to {
            return Ok(None);
        }
        let far = to.min(from.saturating_add(LOG_RANGE - 1));
        let until = audit::stretch_end(db, from, far, EVENTS_AT_ONCE).await?;
        let Stretch { blocks, events } = self.verifier.source.next_range(from, until, &mut self.size).await?;
        let Some(tip) = blocks.last().map(|block| block.id) else { return Ok(None) };
        let stored = chain::canonical_between(db, from, tip.number).await?;
        compare_events(&events, &stored, report);
        report.checked.events += events.len();

        let busy: BTreeSet<B256> = events.iter().map(|event| event.log.block_hash).collect();
        let verifier = self.verifier;
        let mut by_hash = stream::iter(blocks.iter().filter(|block| busy.contains(&block.id.hash)))
            .map(|block| async move { (block.id, verifier.events_by_hash(block.id).await) })
            .buffered(verifier.concurrency);
        let mut by_number = events.iter();
        while let Some((block, logs)) = by_hash.next().await {
            for event in logs? {
                if by_number.next() != Some(&event) {
                    return Err(VerifyError::Contradiction(block.number));
                }
            }
            report.checked.blocks += 1;
        }
        drop(by_hash);
        if let Some(event) = by_number.next() {
            return Err(VerifyError::Contradiction(event.log.block_number));
        }
        if self.told_at.elapsed() > TOLD_EVERY {
            self.told_at = Instant::now();
            tracing::info!(block = tip.number, of = to, events = report.checked.events, "read the chain's events");
        }
        self.tips.push(tip);
        self.next = tip.number + 1;
        Ok(Some((from, tip.number, events)))
    }
}

/// Folds one event, and returns its movements.
fn follow(truth: &mut Truth, event: &ChainEvent) -> Result<Movements, VerifyError> {
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

/// Compares the jobs that ended with these events, and forgets those that are as they should be. Nothing that comes later
/// changes a job that ended.
async fn let_go(
    view: &View<'_>,
    truth: &mut Truth,
    events: &[ChainEvent],
    db: &mut PgConnection,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let ended: BTreeSet<B256> = events
        .iter()
        .filter_map(|event| event.event.job_id())
        .filter(|id| truth.rows.jobs.get(id).is_some_and(|job| job.closed_when.is_some()))
        .collect();
    contracts::jobs(view, &ended, truth, report).await?;
    let stored = chain::rows_of(db, &ended.iter().copied().map(Key::Job).collect()).await?;
    for id in ended {
        // One whose stored row is another stays, and is told with the other rows.
        if truth.rows.jobs.get(&id) == stored.jobs.get(&id) {
            truth.rows.jobs.remove(&id);
            truth.let_go += 1;
            report.checked.rows += 1;
        }
    }
    Ok(())
}

fn compare_events(on_chain: &[ChainEvent], stored: &[RawLog], report: &mut Report) {
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

/// Entries of blocks that are not on the chain and were not taken back.
pub(super) async fn not_taken_back(db: &mut PgConnection, report: &mut Report) -> Result<(), VerifyError> {
    for (block_hash, log_index) in ledger::not_taken_back(db).await? {
        let subject = format!("log {log_index} of block {block_hash}");
        let expected = "none, as the block is not on the chain".to_owned();
        report.differs(What::Entry, subject, expected, "entries that were not taken back".to_owned());
    }
    Ok(())
}

/// Compares the folded rows.
pub(super) async fn rows(
    view: &View<'_>,
    truth: &Truth,
    db: &mut PgConnection,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let stored = chain::all_rows_but_jobs(db).await?;
    let ours = &truth.rows;
    table("escrow_account", &ours.accounts, &stored.accounts, report);
    table("escrow_earned", &ours.earned, &stored.earned, report);
    table("registry_node", &ours.nodes, &stored.nodes, report);
    table("escrow_channel", &ours.channels, &stored.channels, report);
    table("escrow_session", &ours.sessions, &stored.sessions, report);
    table("escrow_settler", &ours.settlers, &stored.settlers, report);
    table("escrow_fee", &ours.fees, &stored.fees, report);
    report.compare(What::Row, || "chain_parameter".to_owned(), &ours.parameters, &stored.parameters);
    jobs(view, truth, db, report).await
}

fn table<K: Ord + Debug, V: PartialEq + Debug>(
    name: &str,
    ours: &BTreeMap<K, V>,
    stored: &BTreeMap<K, V>,
    report: &mut Report,
) {
    report.checked.rows += ours.len();
    each(ours, stored, |key, expected, found| row(name, key, expected, found, report));
}

fn row<K: Debug, V: PartialEq + Debug>(
    name: &str,
    key: &K,
    expected: Option<&V>,
    found: Option<&V>,
    report: &mut Report,
) {
    report.compare(What::Row, || format!("{name} {key:?}"), &expected, &found);
}

/// Compares `escrow_job`, a part at a time.
async fn jobs(view: &View<'_>, truth: &Truth, db: &mut PgConnection, report: &mut Report) -> Result<(), VerifyError> {
    let (mut met, mut ended) = (BTreeSet::new(), 0);
    let mut after = None;
    while let Some(stored) = next_jobs(db, &mut after).await? {
        for (id, found) in &stored {
            match truth.rows.jobs.get(id) {
                None if truth.let_go > 0 && found.closed_when.is_some() => ended += 1,
                expected => row("escrow_job", id, expected, Some(found), report),
            }
        }
        met.extend(stored.into_keys().filter(|id| truth.rows.jobs.contains_key(id)));
    }
    for (id, expected) in truth.rows.jobs.iter().filter(|(id, _)| !met.contains(*id)) {
        row("escrow_job", id, Some(expected), None, report);
    }
    report.checked.rows += truth.rows.jobs.len();
    if ended != truth.let_go {
        surplus_jobs(view, truth, db, report).await?;
    }
    Ok(())
}

/// There are more ended jobs than the chain tells of: finds out which, by what the contract does not know.
async fn surplus_jobs(
    view: &View<'_>,
    truth: &Truth,
    db: &mut PgConnection,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let mut after = None;
    while let Some(stored) = next_jobs(db, &mut after).await? {
        let ended = stored.iter().filter(|(id, job)| job.closed_when.is_some() && !truth.rows.jobs.contains_key(*id));
        for (id, job) in ended {
            if !view.knows_job(*id).await? {
                row("escrow_job", id, None, Some(job), report);
            }
        }
    }
    Ok(())
}

async fn next_jobs(
    db: &mut PgConnection,
    after: &mut Option<B256>,
) -> Result<Option<BTreeMap<B256, EscrowJob>>, VerifyError> {
    let ids = job_ids_after(db, *after, ROWS_AT_ONCE).await?;
    let Some(last) = ids.last() else { return Ok(None) };
    *after = Some(*last);
    Ok(Some(chain::rows_of(db, &ids.into_iter().map(Key::Job).collect()).await?.jobs))
}

/// The rows that the stored events of these blocks changed, as they are now; at most `most`, of the first events.
pub(super) async fn touched(
    verifier: &Verifier,
    db: &mut PgConnection,
    (from, to): (u64, u64),
    most: usize,
) -> Result<Rows, VerifyError> {
    let until = audit::stretch_end(db, from, to, EVENTS_AT_ONCE).await?;
    let mut keys = BTreeSet::new();
    for log in chain::canonical_between(db, from, until).await? {
        // One that cannot be decoded differs from the chain, and was told.
        let Ok(event) = ChainEvent::decode(log, verifier.source.contracts()) else { continue };
        for key in event.event.keys() {
            if keys.len() < most {
                keys.insert(key);
            }
        }
    }
    Ok(chain::rows_of(db, &keys).await?)
}

/// Compares the ledger's sums, and finds what no event accounts for.
pub(super) async fn sums(truth: &Truth, db: &mut PgConnection, report: &mut Report) -> Result<(), VerifyError> {
    let stored = ledger::balances(db).await?;
    let stored: BTreeMap<_, _> = stored.into_iter().map(|row| ((row.account, row.token), row.amount)).collect();
    report.checked.balances = truth.sums.len();
    each(&truth.sums, &stored, |(account, token): &(Account, Address), expected, found| {
        report.compare(What::Sum, || format!("{account:?} in {token}"), &expected, &found);
    });
    for ((account, token), amount) in &truth.sums {
        if matches!(account, Account::Suspense | Account::Transit) {
            report.compare(What::Sum, || format!("{account:?} in {token}"), &I256::ZERO, amount);
        }
    }
    Ok(())
}
