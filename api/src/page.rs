//! Pages of lists: a limit, and a cursor that says where the page before ended, so that what is added or removed meanwhile
//! shifts nothing.

use std::{fmt, str::FromStr};

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, de};

use crate::wire::Hash;

/// Most entries of a page.
pub const MAX_LIMIT: i64 = 200;

/// The end of the year 9999, as far as a time can be told.
const LAST_MICROS: i64 = 253_402_300_799_999_999;

/// How many entries a page has at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub i64);

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match i64::deserialize(deserializer)? {
            limit @ 1..=MAX_LIMIT => Ok(Self(limit)),
            other => Err(de::Error::custom(format!("{other} is not between 1 and {MAX_LIMIT}"))),
        }
    }
}

/// The last entry of a page: what the list is sorted by, and the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub i64, pub B256);

/// Not a [`Cursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not the `next` of an earlier page")]
pub struct CursorError;

impl Cursor {
    /// The cursor at an entry of a list by time.
    #[must_use]
    pub fn at(time: DateTime<Utc>, id: B256) -> Self {
        Self(time.timestamp_micros(), id)
    }

    /// The time and id of the entry, in a list by time. A time that no entry can have is that of the first or last moment
    /// that one can: Postgres knows fewer times than a number of microseconds can name.
    pub fn time(self) -> (DateTime<Utc>, B256) {
        let micros = self.0.clamp(0, LAST_MICROS);
        (DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::UNIX_EPOCH), self.1)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, id) = text.split_once('.').ok_or(CursorError)?;
        let id: Hash = id.parse().map_err(|_| CursorError)?;
        Ok(Self(number.parse().map_err(|_| CursorError)?, id.0))
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The cursor behind `entries`, if the page is full and there may be more.
pub fn next<T>(entries: &[T], limit: Limit, cursor: impl FnOnce(&T) -> String) -> Option<String> {
    let full = i64::try_from(entries.len()).is_ok_and(|length| length >= limit.0);
    entries.last().filter(|_| full).map(cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_the_query_string() {
        let cursor = Cursor(-5, B256::repeat_byte(9));
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "5", "5.", "x.0x00", &format!("{}.{}", "9".repeat(30), B256::ZERO)] {
            assert_eq!(bad.parse::<Cursor>(), Err(CursorError), "{bad}");
        }
    }

    #[test]
    fn a_cursor_never_names_a_time_that_postgres_does_not_know() {
        let at = |micros| Cursor(micros, B256::ZERO).time().0.to_rfc3339();
        for (micros, time) in [
            (i64::MIN, "1970-01-01T00:00:00+00:00"),
            (1_500_000, "1970-01-01T00:00:01.500+00:00"),
            (i64::MAX, "9999-12-31T23:59:59.999999+00:00"),
        ] {
            assert_eq!(at(micros), time);
        }
    }

    #[test]
    fn only_a_full_page_has_a_next_one() {
        assert_eq!(next(&[1, 2], Limit(2), ToString::to_string), Some("2".to_owned()));
        assert_eq!(next(&[1, 2], Limit(3), ToString::to_string), None);
        assert_eq!(next::<i32>(&[], Limit(3), ToString::to_string), None);
    }
}
