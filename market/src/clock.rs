//! The one place that reads the machine's clock. Everything else takes the time as an argument.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

/// Now, in whole microseconds, which is what Postgres keeps: a time that was stored equals the one that was passed in.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn now() -> DateTime<Utc> {
    let now = Utc::now();
    now.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(now)
}
