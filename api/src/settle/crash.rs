//! Named moments at which a test can make the process die, as `kill -9` would.
//!
//! `LITTORAL_ABORT_AT=persist` aborts a debug build at [`Point::Persist`]. Release builds contain none of this.

/// A moment between two steps of the settler, in the order in which a batch comes by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A batch is planned, nothing of it is stored.
    Plan,
    /// Its nonce is taken in a transaction that is not committed.
    Nonce,
    /// Its bytes are signed, in that same transaction.
    Sign,
    /// Nonce and signed bytes are committed, nothing is sent.
    Persist,
    /// The transaction was sent, its fate is unknown.
    Send,
    /// The indexer has seen it mined, nothing of that is noted.
    Receipt,
    /// Its end is written and not committed.
    Acknowledge,
    /// The chain calls it final, which is not noted.
    Finality,
}

impl Point {
    fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Nonce => "nonce",
            Self::Sign => "sign",
            Self::Persist => "persist",
            Self::Send => "send",
            Self::Receipt => "receipt",
            Self::Acknowledge => "acknowledge",
            Self::Finality => "finality",
        }
    }
}

/// Aborts the process if the environment asks for it at this point.
pub fn at(point: Point) {
    if cfg!(debug_assertions) && std::env::var("LITTORAL_ABORT_AT").is_ok_and(|name| name == point.name()) {
        tracing::error!(point = point.name(), "aborting as LITTORAL_ABORT_AT asks");
        std::process::abort();
    }
}
