//! What a second try does not make good.

use std::path::PathBuf;

/// Names a directory in which what failed for good is noted.
const DIR: &str = "LITTORAL_UNFORGIVEN";

/// While it lives, a panic is noted where `scripts/test` looks when all is done: a test that found money lost or doubled fails
/// the run, though it passes when it is tried again.
#[derive(Debug)]
pub struct Unforgiven(&'static str);

impl Unforgiven {
    /// Says what is looked at.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        Self(what)
    }
}

impl Drop for Unforgiven {
    fn drop(&mut self) {
        let Some(dir) = std::env::var_os(DIR).filter(|_| std::thread::panicking()) else { return };
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let note = PathBuf::from(dir).join(std::process::id().to_string());
        if let Err(error) = std::fs::write(&note, format!("{test}: {}\n", self.0)) {
            eprintln!("cannot note in {} that {test} failed for good: {error}", note.display());
        }
    }
}
