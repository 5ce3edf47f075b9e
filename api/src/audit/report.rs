//! What an audit found: a verification's findings, and the payments.

use std::fmt;

use market::db::chain::BlockId;
use market::verify::{self, Checked, Difference};

use super::payments::Payments;

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The block audited.
    pub block: BlockId,
    /// What differs. Nothing, if all is well.
    pub differences: Vec<Difference>,
    /// What became of the payments that were due.
    pub payments: Payments,
    /// How much was looked at.
    pub checked: Checked,
    index: verify::Report,
}

impl Report {
    pub(super) fn new(index: verify::Report, payments: Payments) -> Self {
        let (block, checked, differences) = (index.block, index.checked, index.differences.clone());
        Self { block, differences, payments, checked, index }
    }

    /// Whether everything is as it should be: nothing differs, and no payment is lost, doubled or other than was due.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.index.is_clean() && self.payments.is_clean()
    }

    /// The report as one JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        let mut json = self.index.json();
        json["clean"] = self.is_clean().into();
        json["payments"] = serde_json::json!(self.payments);
        json.to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.index.fmt(f)?;
        self.payments.fmt(f)?;
        writeln!(f, "{}", if self.is_clean() { "nothing differs" } else { "the books do not agree" })
    }
}
