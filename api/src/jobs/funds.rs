//! Whether requesters still have enough for what they signed. What is withdrawn or spent on the chain after an order was
//! accepted shows when a node is about to be given the job: it would work for nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use market::db::exposure;
use sqlx::PgConnection;
use tokio::time::Instant;

/// How long a look counts. The indexer is further behind the chain, and a requester with many orders is not counted through
/// for each of its jobs.
const FRESH: Duration = Duration::from_secs(1);

/// What was last seen, by requester and token.
#[derive(Debug, Default)]
pub struct Funds(Mutex<HashMap<(Address, Address), Seen>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    holds: bool,
}

impl Funds {
    /// Whether the deposit of `key` (requester, token) is enough for all that it has promised.
    pub async fn hold(
        &self,
        db: &mut PgConnection,
        key: (Address, Address),
        now: DateTime<Utc>,
    ) -> Result<bool, sqlx::Error> {
        if let Some(seen) = self.fresh().get(&key) {
            return Ok(seen.holds);
        }
        let at = Instant::now();
        let exposure = exposure::of(db, key.0, key.1, now).await?;
        let holds = exposure.holds();
        if !holds {
            let (requester, token, free, promised) = (key.0, key.1, exposure.free, exposure.promised());
            tracing::debug!(%requester, %token, %free, %promised, "signed orders wait: the deposit is not enough");
        }
        self.fresh().insert(key, Seen { at, holds });
        Ok(holds)
    }

    /// Those that lately had too little.
    pub fn short(&self) -> Vec<(Address, Address)> {
        self.fresh().iter().filter(|(_, seen)| !seen.holds).map(|(key, _)| *key).collect()
    }

    /// What counts still; what does not is forgotten.
    fn fresh(&self) -> MutexGuard<'_, HashMap<(Address, Address), Seen>> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, seen| seen.at.elapsed() < FRESH);
        seen
    }
}
