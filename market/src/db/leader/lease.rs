//! `leader_lease`: the signs of life of whoever leads. A process that is stopped, or cut off from Postgres, keeps its session
//! and the lock in it; that its lease ran out is how the others learn of it. Times are those of Postgres, so the processes'
//! clocks need not agree.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::{PgConnection, PgPool};

use super::{FenceError, Role};

/// How long a takeover waits for transactions that rely on the former epoch, before it ends them.
const BLOCKED_PATIENCE: Duration = Duration::from_secs(1);

/// Takes the next epoch and begins its lease, both on the session that holds the lock. Transactions of the former leader
/// that checked their fence hold this up; those that do not end soon belong to a process that is stopped or cut off, and are
/// ended through another connection of `pool`.
pub(super) async fn begin(
    pool: &PgPool,
    lock: &mut PgConnection,
    role: Role,
    lease: Duration,
    now: DateTime<Utc>,
) -> Result<i64, sqlx::Error> {
    let pid = sqlx::query_scalar!(r#"select pg_backend_pid() as "pid!""#).fetch_one(&mut *lock).await?;
    let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let taking = async {
        let mut tx = sqlx::Connection::begin(lock).await?;
        let epoch = sqlx::query_scalar!(
            "insert into leader (role, epoch, since) values ($1, 1, $2)
             on conflict (role) do update set epoch = leader.epoch + 1, since = excluded.since
             returning epoch",
            role.name(),
            now
        )
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query!(
            "insert into leader_lease (role, epoch, lease_ms, renewed_at, backend_pid, backend_start, session)
             select $1, $2, $3, clock_timestamp(), pid, backend_start, application_name
             from pg_stat_activity where pid = pg_backend_pid()
             on conflict (role) do update
             set epoch = excluded.epoch, lease_ms = excluded.lease_ms, renewed_at = excluded.renewed_at,
                 backend_pid = excluded.backend_pid, backend_start = excluded.backend_start, session = excluded.session",
            role.name(),
            epoch,
            lease_ms
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(epoch)
    };
    tokio::select! {
        epoch = taking => epoch,
        error = end_blockers_of(pool, pid) => Err(error),
    }
}

/// From time to time ends whoever keeps the session `pid` waiting.
async fn end_blockers_of(pool: &PgPool, pid: i32) -> sqlx::Error {
    loop {
        tokio::time::sleep(BLOCKED_PATIENCE).await;
        let ended = async {
            sqlx::query_scalar!(
                r#"select count(pg_terminate_backend(a.pid)) as "ended!"
                   from pg_stat_activity a
                   where a.pid = any(pg_blocking_pids($1)) and a.usename = current_user"#,
                pid
            )
            .fetch_one(&mut *pool.acquire().await?)
            .await
        };
        match ended.await {
            Ok(0) => {}
            Ok(ended) => {
                tracing::warn!(ended, "ended transactions of the former leader, which kept the lead from passing on")
            }
            Err(error) => return error,
        }
    }
}

/// Gives a sign of life. Errors if another leader has come.
pub(super) async fn renew(lock: &mut PgConnection, role: Role, epoch: i64) -> Result<(), FenceError> {
    let renewed = sqlx::query!(
        "update leader_lease set renewed_at = clock_timestamp() where role = $1 and epoch = $2",
        role.name(),
        epoch
    )
    .execute(lock)
    .await?;
    if renewed.rows_affected() == 1 { Ok(()) } else { Err(FenceError::Deposed { role: role.name(), held: epoch }) }
}

/// Which leader is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// One whose lease ran out.
    Stale,
    /// Whoever it is.
    Any,
}

/// Ends the sessions of a leader, and returns how many. The one that holds the lock is known by its
/// process id and start, since such an id is used again; the others by the name that all sessions of a process have. A lease from
/// the future is of a time before Postgres' clock was set back.
pub(super) async fn end(db: &mut PgConnection, role: Role, whom: Whom) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select count(pg_terminate_backend(a.pid)) as "ended!"
           from leader_lease l
           join pg_stat_activity a
               on a.pid = l.backend_pid and a.backend_start = l.backend_start
               or a.application_name = l.session and l.session <> current_setting('application_name')
           where l.role = $1 and a.datname = current_database() and a.usename = current_user and a.pid <> pg_backend_pid()
             and ($2 or abs(extract(epoch from clock_timestamp() - l.renewed_at)) * 1000 > l.lease_ms)"#,
        role.name(),
        whom == Whom::Any
    )
    .fetch_one(db)
    .await
}

/// Who leads, or who did last.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Grows with every change of leader.
    pub epoch: i64,
    /// Since when that epoch is.
    pub since: DateTime<Utc>,
    /// Whether its session still holds the lock.
    pub leads: bool,
    /// Seconds since its last sign of life.
    pub renewed_secs_ago: f64,
    /// Seconds after which a standby takes over without one.
    pub lease_secs: f64,
    /// Process id of the Postgres session that holds the lock.
    pub backend_pid: i32,
}

/// Who leads as `role`, or who did last; nothing if nobody ever did.
pub async fn holder(db: &mut PgConnection, role: Role) -> Result<Option<Holder>, sqlx::Error> {
    sqlx::query_as!(
        Holder,
        r#"select l.epoch, l.since, x.backend_pid, x.lease_ms::double precision / 1000 as "lease_secs!",
                  extract(epoch from clock_timestamp() - x.renewed_at)::double precision as "renewed_secs_ago!",
                  exists (
                      select from pg_locks p join pg_database d on d.oid = p.database
                      where p.locktype = 'advisory' and p.granted and p.pid = x.backend_pid and d.datname = current_database()
                        and p.classid = ($2::bigint >> 32)::oid and p.objid = ($2::bigint & 4294967295)::oid and p.objsubid = 1
                  ) as "leads!"
           from leader l join leader_lease x on x.role = l.role and x.epoch = l.epoch
           where l.role = $1"#,
        role.name(),
        role.lock_key()
    )
    .fetch_optional(db)
    .await
}
