//! How many requests are taken of whom. Redis counts over all instances; while it does not answer, each instance counts alone.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use market::{
    breaker::Broken,
    clock,
    limit::{Local, Policy, Standing, Verdict},
    redis::limit::{Counter, take as take_shared},
};

use super::{Caller, ClientAddress, only_reads};
use crate::{
    app::App,
    error::{ApiError, Code},
};

/// What each tier has left: `"burst";r=9;t=1, "sustained";r=99;t=42`.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// What the tiers are: `"burst";q=10;w=1, "sustained";q=100;w=60`.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How long a request waits for Redis to count it.
const WITHIN: Duration = Duration::from_millis(250);

/// How much is taken of whom. Nothing: as much as comes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of a user; of an address, what is not signed in and does more than read.
    pub users: Option<Policy>,
    /// Of a user, what nodes do for their work.
    pub nodes: Option<Policy>,
    /// Of an address, reading without being signed in: many may be behind one.
    pub readers: Option<Policy>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            users: Some(Policy::per_second_and_minute(10, 100)),
            nodes: Some(Policy::per_second_and_minute(100, 3_000)),
            readers: Some(Policy::per_second_and_minute(50, 1_000)),
        }
    }
}

/// A group of routes that is counted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Signing in.
    Auth,
    /// Reading.
    Read,
    /// Everything else.
    Write,
    /// What nodes do for their work, contents included.
    Work,
}

impl Scope {
    /// That of a route; nothing for what watches the process and must always be answered.
    #[must_use]
    pub fn of(method: &Method, route: &str) -> Option<Self> {
        let path = route.strip_prefix("/lit-compute").unwrap_or(route);
        match path {
            "/" | "/api/status" | "/metrics" | "/openapi.json" => None,
            _ if route.starts_with("/health/") || route.starts_with("/docs") => None,
            "/auth/nonce" | "/auth/verify" => Some(Self::Auth),
            "/nodes/heartbeat" | "/blobs" | "/ipfs/{cid}" => Some(Self::Work),
            "/jobs/claim" | "/jobs/claim/bulk" | "/jobs/complete/bulk" => Some(Self::Work),
            "/jobs/{jobId}/renew" | "/jobs/{jobId}/complete" | "/jobs/{jobId}/fail" => Some(Self::Work),
            _ if only_reads(method) => Some(Self::Read),
            _ => Some(Self::Write),
        }
    }

    /// As it stands in keys.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Read => "read",
            Self::Write => "write",
            Self::Work => "work",
        }
    }
}

/// Counts while Redis does not.
#[derive(Debug, Default)]
pub struct Limiter(Mutex<Local>);

/// Counts a request, if it is limited.
pub(super) async fn take(
    app: &App,
    scope: Scope,
    method: &Method,
    caller: &Caller,
    address: ClientAddress,
) -> Option<Verdict> {
    let limits = &app.parts.settings.limits;
    let (who, policy) = match caller {
        Caller::Known(user) if scope == Scope::Work => (user.user_id.to_string(), limits.nodes),
        Caller::Known(user) => (user.user_id.to_string(), limits.users),
        _ if only_reads(method) => (address.word(), limits.readers),
        _ => (address.word(), limits.users),
    };
    let policy = policy?;
    let now_ms = u64::try_from(clock::now().timestamp_millis()).unwrap_or_default();
    let environment = app.parts.settings.environment.name();
    let counter = Counter { environment, scope: scope.name(), who: &who };
    let redis = &app.parts.redis;
    let verdict = match redis.within(WITHIN, take_shared(redis, counter, &policy, now_ms)).await {
        Ok(verdict) => verdict,
        Err(broken) => {
            if let Broken::Failed(error) = broken {
                tracing::debug!(%error, "Redis does not count requests; this instance does alone");
            }
            metrics::counter!("littoral_rate_limit_local_total").increment(1);
            let mut local = app.limiter.0.lock().unwrap_or_else(PoisonError::into_inner);
            local.take(&format!("{}:{who}", scope.name()), &policy, now_ms)
        }
    };
    if !verdict.admitted {
        metrics::counter!("littoral_rate_limited_total", "scope" => scope.name()).increment(1);
        tracing::debug!(scope = scope.name(), who, "rate limited");
    }
    Some(verdict)
}

/// The answer to a request that is not taken.
pub(super) fn refusal(verdict: &Verdict) -> ApiError {
    let spent = |name: &str, Standing { tier, remaining, .. }: Standing| {
        (remaining == 0).then(|| format!("{} requests in {} s ({name})", tier.quota, tier.window_secs))
    };
    let spent = spent("burst", verdict.burst).or_else(|| spent("sustained", verdict.sustained));
    let wait = verdict.retry_after_secs();
    let detail = format!("You have made {}. Try again in {wait} s.", spent.unwrap_or_else(|| "too many".to_owned()));
    ApiError::new(Code::RateLimited, detail).retry_after(wait)
}

/// Says in the headers of any answer what is left.
pub(super) fn tell(verdict: &Verdict, headers: &mut HeaderMap) {
    let Verdict { burst, sustained, .. } = verdict;
    let each = |text: fn(&Standing) -> String| {
        HeaderValue::from_str(&format!("\"burst\";{}, \"sustained\";{}", text(burst), text(sustained)))
    };
    if let Ok(left) = each(|standing| format!("r={};t={}", standing.remaining, standing.reset_secs)) {
        headers.insert(RATE_LIMIT, left);
    }
    if let Ok(policy) = each(|standing| format!("q={};w={}", standing.tier.quota, standing.tier.window_secs)) {
        headers.insert(RATE_LIMIT_POLICY, policy);
    }
    if !verdict.admitted {
        headers.insert(header::RETRY_AFTER, verdict.retry_after_secs().into());
    }
}
