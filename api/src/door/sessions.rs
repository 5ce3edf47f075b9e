//! Whose a token is. Own tokens are random and their hashes are in Postgres, which alone decides on them. Tokens that another
//! application signed name a session in Redis that it, or any other, wrote; if Redis cannot be asked, they open nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use alloy::primitives::{Address, B256};
use axum::http::{HeaderMap, header};
use chrono::{DateTime, TimeDelta, Utc};
use market::{clock, db::session, redis, user::UserId};
use sha2::{Digest, Sha256};

use super::{Caller, token};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code},
};

/// Longest token that is looked at.
const MAX_TOKEN: usize = 4096;
/// How long a request waits for Redis to tell of a session, or to be told of one.
const WITHIN: Duration = Duration::from_secs(1);
/// How often it is noted that a user does something.
const NOTE_EVERY: TimeDelta = TimeDelta::minutes(1);
/// Users of whom it is remembered when that was noted last.
const MOST_NOTED: usize = 10_000;

/// Why a token opens nothing. An [`ApiError`] cannot be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    code: Code,
    detail: &'static str,
}

/// How a session came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// By signing in here, at this time, for a token with this hash.
    Here {
        /// SHA2-256 of the token.
        token_hash: B256,
        /// Since when.
        created_at: DateTime<Utc>,
    },
    /// By another application.
    Elsewhere,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.detail)
    }
}

const UNKNOWN: Refusal =
    Refusal { code: Code::Unauthenticated, detail: "The token is unknown or has expired. Sign in again." };
const NO_SESSION: Refusal =
    Refusal { code: Code::Unauthenticated, detail: "The token's user has no session with a wallet. Sign in again." };
const UNAVAILABLE: Refusal =
    Refusal { code: Code::Unavailable, detail: "Where sessions are kept does not answer. Try again in a moment." };

/// Who calls, by the request's headers.
pub(super) async fn caller(app: &App, headers: &HeaderMap) -> Caller {
    let Some(token) = bearer(headers) else { return Caller::Anonymous };
    match look_up(app, token).await {
        Ok(user) => Caller::Known(user),
        Err(refusal) => Caller::Refused(refusal),
    }
}

/// Whose `token` is, for what takes tokens elsewhere than in a header.
pub async fn authenticate(app: &App, token: &str) -> ApiResult<SignedIn> {
    Ok(look_up(app, token).await?)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

async fn look_up(app: &App, token: &str) -> Result<SignedIn, Refusal> {
    let now = clock::now();
    if token.len() > MAX_TOKEN {
        return Err(UNKNOWN);
    }
    let is_shared = !app.parts.settings.session_secrets.is_empty() && token::is_signed(token);
    if is_shared { shared(app, token, now).await } else { own(app, token, now).await }
}

async fn own(app: &App, token: &str, now: DateTime<Utc>) -> Result<SignedIn, Refusal> {
    let token_hash = hash(token);
    let found = async { Ok::<_, ApiError>(session::find(&mut *app.db().await?, token_hash, now).await?) };
    let session = found.await.map_err(|error| {
        tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "could not look a session up");
        UNAVAILABLE
    })?;
    let session = session.ok_or(UNKNOWN)?;
    let known = Known::Here { token_hash, created_at: session.created_at };
    let user_id = session.user_id.parse().unwrap_or_else(|_| UserId::of(session.wallet));
    Ok(SignedIn { user_id, wallet: session.wallet, expires_at: session.expires_at, known })
}

async fn shared(app: &App, token: &str, now: DateTime<Utc>) -> Result<SignedIn, Refusal> {
    let claims = token::read(&app.parts.settings.session_secrets, token, now).map_err(|error| {
        tracing::debug!(%error, "a signed token is refused");
        UNKNOWN
    })?;
    let redis = &app.parts.redis;
    let found = redis.within(WITHIN, redis::session::read(redis, &claims.user_id)).await;
    let session = found.map_err(|error| {
        tracing::warn!(user_id = %claims.user_id, %error, "could not look a shared session up");
        UNAVAILABLE
    })?;
    let wallet = session.and_then(|session| session.wallet_address).filter(|wallet| *wallet != Address::ZERO);
    let wallet = wallet.ok_or(NO_SESSION)?;
    Ok(SignedIn { user_id: claims.user_id, wallet, expires_at: claims.expires_at, known: Known::Elsewhere })
}

/// What is stored of a token.
pub(crate) fn hash(token: &str) -> B256 {
    B256::from_slice(&Sha256::digest(token.as_bytes()))
}

/// When it was last noted, for all applications, that a user did something.
#[derive(Debug, Default)]
pub struct Activity(Mutex<HashMap<UserId, DateTime<Utc>>>);

impl Activity {
    /// Notes that `user` did something at `now`, unless that was noted a moment ago. Does not keep anyone waiting.
    pub(super) fn note(&self, app: &App, user: &SignedIn, now: DateTime<Utc>) {
        if !self.is_due(&user.user_id, now) {
            return;
        }
        let (redis, user_id) = (app.parts.redis.clone(), user.user_id.clone());
        tokio::spawn(async move {
            if let Err(error) = redis.within(WITHIN, redis::session::touch(&redis, &user_id, now)).await {
                tracing::debug!(%user_id, %error, "could not note that the user is active");
            }
        });
    }

    fn is_due(&self, user_id: &UserId, now: DateTime<Utc>) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.get(user_id).is_some_and(|at| now - *at < NOTE_EVERY) {
            return false;
        }
        if noted.len() >= MOST_NOTED {
            noted.retain(|_, at| now - *at < NOTE_EVERY);
        }
        // With still as many, the others are noted each time.
        if noted.len() < MOST_NOTED {
            noted.insert(user_id.clone(), now);
        }
        true
    }
}
