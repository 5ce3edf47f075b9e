//! Who leads. A Postgres advisory lock elects one process a role; the epoch it takes then fences its writes, so that a
//! leader that was frozen and thaws finds its writes refused.
//!
//! The lock goes with the session that holds it, at once if the process dies. One that is stopped (or cut off) keeps its
//! session, so a leader also has a lease that it renews all the time: who finds it run out ends the sessions of that
//! leader, and with them its lock and its transactions, and takes the next epoch.

mod lease;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lease::Whom;
pub use lease::{Holder, holder};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Postgres, pool::PoolConnection};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// How long a leader leads on without a sign of life.
pub const LEASE: Duration = Duration::from_secs(3);
/// Signs of life in the time of a lease.
const RENEWALS: u32 = 3;
/// How long to wait for the lock of a leader whose sessions were ended.
const HANDOVER: Duration = Duration::from_millis(500);
/// Pause between two looks at it.
const HANDOVER_LOOK: Duration = Duration::from_millis(10);

/// What is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Mirrors the chain.
    Indexer,
    /// Sends payments.
    Settler,
}

impl Role {
    /// Its name in SQL.
    #[must_use]
    pub fn name(self) -> &'static str {
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

/// Leadership, held as long as this value and its connection live, and its lease is renewed. A task of its own does that.
#[derive(Debug)]
pub struct Leadership {
    role: Role,
    epoch: i64,
    lease: Duration,
    session: Arc<Mutex<Session>>,
    lost: watch::Receiver<Option<Lost>>,
    renewing: JoinHandle<()>,
}

/// The lead is gone, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Lost(String);

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

/// A connection that may hold the lock. Back in the pool it would go on holding it; closed, it gives the lock back.
#[derive(Debug)]
struct Session {
    connection: PoolConnection<Postgres>,
    may_hold: bool,
}

impl Session {
    async fn try_lock(&mut self, role: Role) -> Result<bool, sqlx::Error> {
        self.may_hold = true;
        let locked = sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "locked!""#, role.lock_key())
            .fetch_one(&mut *self.connection)
            .await?;
        self.may_hold = locked;
        Ok(locked)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.may_hold {
            self.connection.close_on_drop();
        }
    }
}

impl Leadership {
    /// Takes the lead of `role` if no other process has it, or if the one that has it gave no sign of life for [`LEASE`].
    /// The session's lock is given back by Postgres itself when the process or its connection dies.
    pub async fn try_acquire(pool: &PgPool, role: Role, now: DateTime<Utc>) -> Result<Option<Self>, sqlx::Error> {
        Self::try_acquire_for(pool, role, LEASE, now).await
    }

    /// As [`Self::try_acquire`]; the others take over when they get no sign of life for `lease`. Of the leader before they
    /// expect what that one promised.
    pub async fn try_acquire_for(
        pool: &PgPool,
        role: Role,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Option<Self>, sqlx::Error> {
        let mut session = Session { connection: pool.acquire().await?, may_hold: false };
        if !session.try_lock(role).await? && !take_over(&mut session, role, Whom::Stale).await? {
            return Ok(None);
        }
        Self::begin(pool, session, role, lease, now).await.map(Some)
    }

    /// Takes the lead of `role` from whoever has it, alive or not.
    pub async fn take(pool: &PgPool, role: Role, now: DateTime<Utc>) -> Result<Self, sqlx::Error> {
        let mut session = Session { connection: pool.acquire().await?, may_hold: false };
        // Another process may be faster than this one each time that the lead is free.
        while !session.try_lock(role).await? && !take_over(&mut session, role, Whom::Any).await? {
            tokio::time::sleep(HANDOVER_LOOK).await;
        }
        Self::begin(pool, session, role, LEASE, now).await
    }

    async fn begin(
        pool: &PgPool,
        mut session: Session,
        role: Role,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Self, sqlx::Error> {
        let epoch = lease::begin(pool, &mut session.connection, role, lease, now).await?;
        let session = Arc::new(Mutex::new(session));
        let (tell, lost) = watch::channel(None);
        let renewed = Arc::clone(&session);
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(lease / RENEWALS).await;
                if let Err(error) = renew(&renewed, role, epoch, lease).await {
                    tell.send_replace(Some(error));
                    return;
                }
            }
        });
        Ok(Self { role, epoch, lease, session, lost, renewing })
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

    /// Gives a sign of life now. Errors if the connection that holds the lock is gone, and the lead with it.
    pub async fn check(&self) -> Result<(), Lost> {
        renew(&self.session, self.role, self.epoch, self.lease).await
    }

    /// Ends when the lead is lost. Work that the leader has under way then is to be dropped: none of it can be written.
    pub async fn lost(&self) -> Lost {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(found) => found.clone().unwrap_or_else(unexplained),
            Err(_) => unexplained(),
        }
    }

    /// Gives the lead back.
    pub async fn release(self) -> Result<(), sqlx::Error> {
        self.renewing.abort();
        let mut session = self.session.lock().await;
        sqlx::query_scalar!(r#"select pg_advisory_unlock($1) as "unlocked!""#, self.role.lock_key())
            .fetch_one(&mut *session.connection)
            .await?;
        Ok(())
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        // The task holds the connection too.
        self.renewing.abort();
    }
}

fn unexplained() -> Lost {
    Lost("the lease is no longer renewed".to_owned())
}

async fn renew(session: &Mutex<Session>, role: Role, epoch: i64, lease: Duration) -> Result<(), Lost> {
    let renewing = async { lease::renew(&mut session.lock().await.connection, role, epoch).await };
    match tokio::time::timeout(lease, renewing).await {
        Ok(renewed) => renewed.map_err(|error| Lost(error.to_string())),
        Err(_) => Err(Lost(format!("Postgres did not answer within {} ms", lease.as_millis()))),
    }
}

/// Ends a leader, and takes its lock. False if there is none to be ended, or if another process was faster.
async fn take_over(session: &mut Session, role: Role, whom: Whom) -> Result<bool, sqlx::Error> {
    let ended = lease::end(&mut session.connection, role, whom).await?;
    if ended == 0 {
        return Ok(false);
    }
    match whom {
        Whom::Stale => tracing::warn!(role = role.name(), ended, "the leader gave no sign of life; ended its sessions"),
        Whom::Any => tracing::warn!(role = role.name(), ended, "ended the leader's sessions"),
    }
    let until = tokio::time::Instant::now() + HANDOVER;
    while !session.try_lock(role).await? {
        if tokio::time::Instant::now() > until {
            return Ok(false);
        }
        tokio::time::sleep(HANDOVER_LOOK).await;
    }
    Ok(true)
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
