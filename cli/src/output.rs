//! What people and programs see: results on standard output, everything else on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::error;

/// Where and how results are written.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    json: bool,
}

impl Out {
    /// With `json`, one JSON object per line on both streams; text otherwise.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are JSON.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.json
    }

    /// A result: `value` as a line of JSON, or `text` for people.
    pub fn result(self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(value)? } else { text() };
        let mut stdout = io::stdout().lock();
        // Whoever closed the pipe, such as `head`, has read what was wanted.
        match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Something to know meanwhile, such as what is about to be sent. Not a result.
    pub fn note(self, text: &str) {
        if self.json {
            to_stderr(&json!({ "note": text }).to_string());
        } else {
            to_stderr(text);
        }
    }

    /// Why the command failed: `{"error", "code", …}`, or text.
    pub fn error(self, failure: &anyhow::Error) {
        if self.json {
            to_stderr(&error::to_json(failure).to_string());
        } else {
            to_stderr(&format!("error: {failure:#}"));
        }
    }

    /// A bar for `total` bytes; invisible where nobody watches.
    #[must_use]
    pub fn bar(self, what: &'static str, total: u64) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        }
        let bar = ProgressBar::new(total).with_message(what);
        // The template is a constant; were it wrong, the default style would do.
        if let Ok(style) = ProgressStyle::with_template("{msg:12} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        {
            bar.set_style(style);
        }
        bar
    }

    /// A bar for `total` things; invisible where nobody watches.
    #[must_use]
    pub fn count(self, what: &'static str, total: u64) -> ProgressBar {
        let bar = self.bar(what, total);
        if let Ok(style) = ProgressStyle::with_template("{msg:12} {bar:32} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        bar
    }

    /// A spinner for a wait of unknown length; invisible where nobody watches.
    #[must_use]
    pub fn spinner(self, what: String) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}

fn to_stderr(line: &str) {
    // Nothing is left to say it to when standard error is gone.
    writeln!(io::stderr(), "{line}").ok();
}

/// `name   value` lines, aligned.
#[must_use]
pub fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect::<Vec<_>>().join("\n")
}

/// A table without borders.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_aligned() {
        assert_eq!(fields(&[("job", "0x1".into()), ("status", "paid".into())]), "job     0x1\nstatus  paid");
    }

    #[test]
    fn a_table_has_a_header_and_no_trailing_space() {
        let text = table(&["token", "free"], vec![vec!["native".into(), "5".into()]]);
        assert!(text.lines().next().unwrap().contains("token") && text.contains("native"), "{text}");
        assert!(text.lines().all(|line| line == line.trim_end()), "{text:?}");
    }
}
