//! Who leads. A Postgres advisory lock elects one process a role; the epoch it takes then fences its writes, so that a
//! leader that was frozen and thaws finds its writes refused.

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Postgres, pool::PoolConnection};

use chrono::{DateTime, Utc};

/// What is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Mirrors the chain.
    Indexer,
    /// Sends payments.
    Settler,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Indexer => "indexer",
            Self::Settler => "settler",
        }
    }

    /// Key of the advisory lock: "litt" and a number.
    fn lock_key(self) -> i64 {
        0x6c69_7474_0000_0000
            + match self {
                Self::Indexer => 1,
                Self::Settler => 2,
            }
    }
}

/// Leadership, held as long as this value and its connection live.
#[derive(Debug)]
pub struct Leadership {
    role: Role,
    epoch: i64,
    lock: PoolConnection<Postgres>,
}

/// Why a leader's write was refused.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Another process leads since.
    #[error("no longer leading as {role}: epoch {held} was overtaken")]
    Deposed {
        /// What was led.
        role: &'static str,
        /// The epoch this process held.
        held: i64,
    },
    /// The database did not answer.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl Leadership {
    /// Takes the lead of `role` if no other process has it. The session's lock is given back by Postgres itself when the
    /// process or its connection dies.
    pub async fn try_acquire(pool: &PgPool, role: Role, now: DateTime<Utc>) -> Result<Option<Self>, sqlx::Error> {
        let mut lock = pool.acquire().await?;
        let locked = sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "locked!""#, role.lock_key())
            .fetch_one(&mut *lock)
            .await?;
        if !locked {
            return Ok(None);
        }
        let epoch = sqlx::query_scalar!(
            "insert into leader (role, epoch, since) values ($1, 1, $2)
             on conflict (role) do update set epoch = leader.epoch + 1, since = excluded.since
             returning epoch",
            role.name(),
            now
        )
        .fetch_one(&mut *lock)
        .await?;
        Ok(Some(Self { role, epoch, lock }))
    }

    /// Grows with every change of leader.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// A fence that writes can check without the lock's own connection.
    #[must_use]
    pub fn fence(&self) -> Fence {
        Fence { role: self.role, epoch: self.epoch }
    }

    /// Errors if the connection that holds the lock is gone, and the lead with it.
    pub async fn check(&mut self) -> Result<(), sqlx::Error> {
        self.lock.ping().await
    }

    /// Gives the lead back.
    pub async fn release(mut self) -> Result<(), sqlx::Error> {
        sqlx::query_scalar!(r#"select pg_advisory_unlock($1) as "unlocked!""#, self.role.lock_key())
            .fetch_one(&mut *self.lock)
            .await?;
        Ok(())
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        // Back in the pool the session would go on holding the lock; closing it gives the lock back.
        self.lock.close_on_drop();
    }
}

/// An epoch of a role, checked inside each transaction of its leader.
#[derive(Debug, Clone, Copy)]
pub struct Fence {
    role: Role,
    epoch: i64,
}

impl Fence {
    /// The epoch it stands for.
    #[must_use]
    pub fn epoch(self) -> i64 {
        self.epoch
    }

    /// Holds the role's row until the transaction ends; errors if another leader has come since.
    pub async fn check(self, db: &mut PgConnection) -> Result<(), FenceError> {
        let current = sqlx::query_scalar!("select epoch from leader where role = $1 for share", self.role.name())
            .fetch_optional(db)
            .await?;
        if current == Some(self.epoch) {
            Ok(())
        } else {
            Err(FenceError::Deposed { role: self.role.name(), held: self.epoch })
        }
    }
}
