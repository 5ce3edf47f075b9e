//! What a verification found.

use std::fmt;

use serde::Serialize;
use serde_json::json;

use crate::db::chain::BlockId;

/// Differences that are told one by one; of more only the number is.
const TOLD: usize = 1000;

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A log of the chain is missing in `chain_event`, is another there, or there is one that the chain does not have.
    Event,
    /// A folded row is not what the events amount to.
    Row,
    /// The entries of one log are not the movements that it tells of.
    Entry,
    /// A sum of the ledger is not the balance that the events amount to.
    Sum,
    /// A contract returns something else than its own events amount to.
    Contract,
    /// A contract holds less than it owes.
    Solvency,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What kind of thing differs.
    pub what: What,
    /// Which one.
    pub subject: String,
    /// By the chain's events.
    pub expected: String,
    /// By what was held against them.
    pub found: String,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Checked {
    /// Logs of the chain.
    pub events: usize,
    /// Blocks with logs, each asked for them by its hash.
    pub blocks: usize,
    /// Rows that they amount to.
    pub rows: usize,
    /// Entries of the ledger that they bring about.
    pub entries: usize,
    /// Balances of the ledger that are not zero.
    pub balances: usize,
    /// Answers of the contracts.
    pub calls: usize,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// First block whose events were read.
    pub from: u64,
    /// The block at which the contracts were asked, or up to which events were recounted.
    pub block: BlockId,
    /// Where the indexer stood.
    pub cursor: BlockId,
    /// What differs. Nothing, if all is well.
    pub differences: Vec<Difference>,
    /// Differences beyond those.
    pub more: usize,
    /// How much was looked at.
    pub checked: Checked,
}

impl Report {
    pub(super) fn at(block: BlockId, cursor: BlockId) -> Self {
        Self { from: 0, block, cursor, differences: Vec::new(), more: 0, checked: Checked::default() }
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty()
    }

    /// Notes a difference unless the two are the same.
    pub(super) fn compare<T: PartialEq + fmt::Debug>(
        &mut self,
        what: What,
        subject: impl FnOnce() -> String,
        expected: &T,
        found: &T,
    ) {
        if expected != found {
            let (expected, found) = changes(&format!("{expected:?}"), &format!("{found:?}"));
            self.differs(what, subject(), expected, found);
        }
    }

    /// Notes a difference between two that were put into words.
    pub(super) fn differs(&mut self, what: What, subject: String, expected: String, found: String) {
        if self.differences.len() < TOLD {
            self.differences.push(Difference { what, subject, expected, found });
        } else {
            self.more += 1;
        }
    }

    /// The report as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        json!({
            "clean": self.is_clean(),
            "from": self.from,
            "block": self.block,
            "cursor": self.cursor,
            "checked": self.checked,
            "differences": self.differences,
            "more": self.more,
        })
    }
}

/// The fields in which two values, written out, differ.
fn changes(expected: &str, found: &str) -> (String, String) {
    let (ours, theirs) = (fields(expected), fields(found));
    let only = |these: &[&str], others: &[&str]| {
        let fields: Vec<&str> = these.iter().filter(|field| !others.contains(field)).copied().collect();
        fields.join(", ")
    };
    match (only(&ours, &theirs), only(&theirs, &ours)) {
        // One has nothing of its own, or the same in another order: tell all.
        (a, b) if a.is_empty() || b.is_empty() => (expected.to_owned(), found.to_owned()),
        (a, b) => (a, b),
    }
}

/// `Some(Row { a: 1, b: 2 })` as `a: 1` and `b: 2`.
fn fields(text: &str) -> Vec<&str> {
    text.split(", ")
        .map(|part| part.rsplit("{ ").next().unwrap_or(part).trim_end_matches(" })").trim_end_matches(" }"))
        .collect()
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, subject, expected, found } = self;
        write!(f, "{what:?} {subject}: {found} instead of {expected}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Checked { events, blocks, rows, entries, balances, calls } = self.checked;
        writeln!(f, "block {} ({}), indexed up to {}", self.block.number, self.block.hash, self.cursor.number)?;
        writeln!(
            f,
            "{events} events in {blocks} blocks, {rows} rows, {entries} entries, {balances} balances, {calls} contract calls"
        )?;
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        if self.more > 0 {
            writeln!(f, "and {} more", self.more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn only_what_differs_is_told() {
        let (one, other) =
            ("Some(Row { a: 1, b: X { c: 2, d: 3 }, e: 4 })", "Some(Row { a: 1, b: X { c: 5, d: 3 }, e: 4 })");
        assert_eq!(changes(one, other), ("c: 2".to_owned(), "c: 5".to_owned()));
        assert_eq!(changes("None", "Some(Row { a: 1, b: 2 })").1, "a: 1, b: 2");
        // Nothing of its own: all of it.
        assert_eq!(changes("[1, 2", "[1, 2, 3"), ("[1, 2".to_owned(), "[1, 2, 3".to_owned()));
    }
}
