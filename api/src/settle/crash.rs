//! Named moments at which a test can make the process die, as `kill -9` would, or freeze, as a paused machine does.
//!
//! `LITTORAL_ABORT_AT=persist` aborts a debug build at [`Point::Persist`], `LITTORAL_FREEZE_AT=persist` stops it there once,
//! until it gets a SIGCONT. Release builds do neither.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    /// The transaction is being sent: the call is under way, its answer is not read.
    Send,
    /// The node has acknowledged the transaction, which is noted nowhere.
    Acknowledge,
    /// The indexer has seen it mined, nothing of that is noted.
    Receipt,
    /// Its end is written and not committed.
    Ending,
    /// The chain calls it final, which is not noted.
    Finality,
}

/// How long a call that a test wants to be under way gets to leave the process.
const UNDER_WAY: Duration = Duration::from_millis(50);

impl Point {
    fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Nonce => "nonce",
            Self::Sign => "sign",
            Self::Persist => "persist",
            Self::Send => "send",
            Self::Acknowledge => "acknowledge",
            Self::Receipt => "receipt",
            Self::Ending => "ending",
            Self::Finality => "finality",
        }
    }

    fn is_asked_for(self, variable: &str) -> bool {
        cfg!(debug_assertions) && std::env::var(variable).is_ok_and(|name| name == self.name())
    }
}

/// Ends or stops the process if the environment asks for it at this point.
pub fn at(point: Point) {
    static FROZEN: AtomicBool = AtomicBool::new(false);
    if point.is_asked_for("LITTORAL_ABORT_AT") {
        tracing::error!(point = point.name(), "aborting as LITTORAL_ABORT_AT asks");
        std::process::abort();
    }
    if point.is_asked_for("LITTORAL_FREEZE_AT") && !FROZEN.swap(true, Ordering::SeqCst) {
        tracing::error!(point = point.name(), "freezing as LITTORAL_FREEZE_AT asks");
        // All threads stop, in the midst of whatever they do.
        let stopped = std::process::Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
        tracing::warn!(?stopped, point = point.name(), "thawed");
    }
}

/// Sends what `request` sends. At [`Point::Send`] the process ends or stops after that, before the answer is looked at.
pub async fn sending<T>(request: impl Future<Output = T>) -> T {
    let armed = ["LITTORAL_ABORT_AT", "LITTORAL_FREEZE_AT"].iter().any(|variable| Point::Send.is_asked_for(variable));
    if !armed {
        return request.await;
    }
    let mut request = pin!(request);
    let answered = tokio::time::timeout(UNDER_WAY, request.as_mut()).await;
    at(Point::Send);
    match answered {
        Ok(answer) => answer,
        Err(_) => request.await,
    }
}
