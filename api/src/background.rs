//! What the process does besides answering. Every task is safe with any number of instances running it.

use std::{future::Future, time::Duration};

use chrono::TimeDelta;
use market::{
    clock,
    db::{chain_view, exposure, idempotency, outbox::Source, queue, session, statistics, work},
    redis::{lock, projector::Projector},
};
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::{app::App, jobs, shared, store};

/// How often leases that ended are taken back.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// How often expired nonces, sessions and remembered answers are forgotten.
const SESSIONS_EVERY: Duration = Duration::from_secs(60);
/// How often abandoned uploads are looked for.
const UPLOADS_EVERY: Duration = Duration::from_secs(15 * 60);

/// How often other applications are told of what is worked out for them.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long a task waits for Redis where it can do without.
const REDIS_WAIT: Duration = Duration::from_secs(1);

/// How often what the chain has settled for good is closed.
const CLOSE_EVERY: Duration = Duration::from_secs(15);

/// How often tables that have grown are looked for.
const STATISTICS_EVERY: Duration = Duration::from_secs(2);

/// Starts all tasks. They end when the app shuts down.
pub fn spawn(app: &App) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(every(app.clone(), "taking back expired leases", EXPIRE_EVERY, expire_leases));
    tasks.spawn(every(app.clone(), "forgetting expired sessions", SESSIONS_EVERY, sweep_sessions));
    tasks.spawn(every(app.clone(), "sweeping abandoned uploads", UPLOADS_EVERY, sweep_uploads));
    tasks.spawn(every(app.clone(), "closing what is settled for good", CLOSE_EVERY, close_settled));
    tasks.spawn(every(app.clone(), "telling of leaders and features", TELL_EVERY, tell_shared));
    tasks.spawn(follow_cache(app.clone()));
    tasks.spawn(every(app.clone(), "sweeping the queue", CLOSE_EVERY, sweep_queue));
    tasks.spawn(every(app.clone(), "looking at what has grown", STATISTICS_EVERY, refresh_statistics));
    tasks.spawn(wake_claims(app.clone()));
    let projector = Projector::new(app.parts.pool.clone(), app.parts.redis.clone(), Source::Work);
    tasks.spawn(app.hub.presence().run(app.parts.redis.clone(), app.shutdown.clone()));
    tasks.spawn(projector.run(app.shutdown.clone().cancelled_owned()));
    tasks
}

/// Does `action` every `period`. A failure is logged when it begins, not again and again.
async fn every<F, A>(app: App, what: &'static str, period: Duration, action: A)
where
    F: Future<Output = anyhow::Result<()>> + Send,
    A: Fn(App) -> F + Send,
{
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match action(app.clone()).await {
            Ok(()) if failing => {
                failing = false;
                tracing::info!(what, "works again");
            }
            Ok(()) => {}
            Err(error) if failing => tracing::debug!(what, error = format!("{error:#}"), "still fails"),
            Err(error) => {
                failing = true;
                tracing::error!(what, error = format!("{error:#}"), "fails; going on trying");
            }
        }
    }
}

async fn expire_leases(app: App) -> anyhow::Result<()> {
    while jobs::expire_leases(&app, clock::now()).await? > 0 {}
    Ok(())
}

async fn sweep_sessions(app: App) -> anyhow::Result<()> {
    let mut db = app.parts.pool.acquire().await?;
    session::sweep(&mut db, clock::now()).await?;
    idempotency::sweep(&mut db, clock::now()).await?;
    Ok(())
}

async fn sweep_uploads(app: App) -> anyhow::Result<()> {
    let swept = app.parts.store.sweep(clock::now() - TimeDelta::from_std(store::ABANDONED_AFTER)?).await?;
    if swept > 0 {
        tracing::info!(swept, "abandoned uploads removed");
    }
    Ok(())
}

async fn sweep_queue(app: App) -> anyhow::Result<()> {
    while queue::sweep(&mut *app.parts.pool.acquire().await?, clock::now()).await? {}
    Ok(())
}

async fn refresh_statistics(app: App) -> anyhow::Result<()> {
    statistics::refresh(&mut *app.parts.pool.acquire().await?).await?;
    Ok(())
}

/// Tells other applications of the leaderboard and of what is switched, if no other instance is at it. Where Redis is down there
/// is no one to tell.
async fn tell_shared(app: App) -> anyhow::Result<()> {
    let redis = &app.parts.redis;
    // Not given back: it keeps the others from doing the same until it is time again.
    match redis.within(REDIS_WAIT, lock::take(redis, "tell-shared", TELL_EVERY)).await {
        Ok(Some(_)) => shared::tell(&app).await,
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Forgets what other instances have invalidated.
async fn follow_cache(app: App) {
    tokio::select! {
        () = app.shutdown.cancelled() => {}
        () = app.cache.follow() => {}
    }
}

/// Closes payments and signed orders of which the chain has had its last word, so that what is asked of the open ones stays
/// cheap.
pub async fn close_settled(app: App) -> anyhow::Result<()> {
    let standing = chain_view::standing(&mut *app.parts.pool.acquire().await?).await?;
    let Some(final_block) = standing.and_then(|standing| standing.irrevocable) else { return Ok(()) };
    let now = clock::now();
    loop {
        let mut db = app.parts.pool.acquire().await?;
        let payments = exposure::close_payments(&mut db, final_block, now).await?;
        let orders = exposure::close_orders(&mut db, final_block, now).await?;
        if payments + orders > 0 {
            tracing::debug!(payments, orders, final_block, "closed what is settled for good");
        }
        if !exposure::is_full(payments) && !exposure::is_full(orders) {
            return Ok(());
        }
    }
}

/// Wakes the claims that wait whenever a job may have become claimable.
async fn wake_claims(app: App) {
    let listening = async {
        loop {
            if let Err(error) = listen(&app).await {
                tracing::warn!(%error, "claims are not notified of new jobs; they look every second");
            }
            tokio::time::sleep(work::LISTEN_RETRY).await;
        }
    };
    tokio::select! {
        () = app.shutdown.cancelled() => {}
        () = listening => {}
    }
}

async fn listen(app: &App) -> Result<(), sqlx::Error> {
    let mut listener = work::listen(&app.parts.pool).await?;
    loop {
        // Nothing means that the connection was lost and made again: something may have been missed.
        listener.try_recv().await?;
        app.wake.send_modify(|count| *count = count.wrapping_add(1));
    }
}
