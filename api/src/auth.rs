//! Sign-in with Ethereum (EIP-4361), the same for requesters and nodes: what a wallet may do follows from what it is.
//!
//! Tokens that are given out here are random and opaque. Postgres has their hashes only and is what decides, so that flushing Redis signs no one
//! out; the shared Redis session is written besides, for other applications.

use std::time::Duration;

use alloy::primitives::{Address, eip191_hash_message};
use axum::{
    extract::{FromRequestParts, State},
    http::{StatusCode, request::Parts},
};
use chrono::{DateTime, TimeDelta, Utc};
use market::{
    clock,
    db::session::{self, Session},
    redis::{RedisError, keys::SESSION_TTL_SECS},
    typed_data,
    user::UserId,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    door::{Caller, Known, token_hash},
    error::{ApiError, ApiResult, Code, Problem},
    extract::Json,
    wallet,
    wire::{HexBytes, WalletAddress},
};

/// How long a nonce waits for its signature.
const NONCE_LIFE: TimeDelta = TimeDelta::minutes(10);
/// How far a client's clock may be ahead.
const CLOCK_SKEW: TimeDelta = TimeDelta::minutes(1);
/// Longest message that is parsed.
const MAX_MESSAGE_BYTES: usize = 8 * 1024;
/// How long sign-in waits for Redis, which it can do without.
const REDIS_WAIT: Duration = Duration::from_secs(1);

/// The routes of sign-in.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_nonce))
        .routes(routes!(verify))
        .routes(routes!(logout))
        .routes(routes!(current_session))
}

/// Whoever holds a valid token. As an extractor: refuses those who do not.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// Names the user, here and towards other applications.
    pub user_id: UserId,
    /// Acts for this wallet.
    pub wallet: Address,
    /// Until when.
    pub expires_at: DateTime<Utc>,
    /// How the session came to be.
    pub known: Known,
}

impl SignedIn {
    /// The wallet that signed in.
    #[must_use]
    pub fn wallet(&self) -> Address {
        self.wallet
    }
}

impl FromRequestParts<App> for SignedIn {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Self::Rejection> {
        match parts.extensions.get::<Caller>() {
            Some(Caller::Known(user)) => Ok(user.clone()),
            Some(Caller::Refused(refusal)) => Err((*refusal).into()),
            Some(Caller::Anonymous) | None => {
                let detail = "Send Authorization: Bearer and a token of auth/verify.";
                Err(ApiError::new(Code::Unauthenticated, detail))
            }
        }
    }
}

/// A nonce to be signed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NonceBody {
    /// Goes into the message as it is.
    #[schema(example = "kEWepMt9knR6lWJ6A")]
    pub nonce: String,
    /// Until when it can be used, once.
    pub expires_at: DateTime<Utc>,
}

/// A signed message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The EIP-4361 message.
    #[schema(
        example = "127.0.0.1:3001 wants you to sign in with your Ethereum account:\n0x70997970C51812dc3A010C7d01b50e0d17dc79C8\n\n\nURI: http://127.0.0.1:3001\nVersion: 1\nChain ID: 31337\nNonce: kEWepMt9knR6lWJ6A\nIssued At: 2026-01-01T00:00:00Z"
    )]
    pub message: String,
    /// Its EIP-191 signature (`personal_sign`), 65 bytes; or what a contract wallet takes for its own (ERC-1271).
    pub signature: HexBytes,
}

/// A new session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenBody {
    /// To be sent as `Authorization: Bearer`.
    pub token: String,
    /// Names the user towards other applications; no secret.
    pub user_id: String,
    /// Who signed in.
    pub wallet_address: WalletAddress,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// A session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionBody {
    /// Names the user towards other applications; no secret.
    pub user_id: String,
    /// Who signed in.
    pub wallet_address: WalletAddress,
    /// Since when; `null` for a session that another application made.
    pub created_at: Option<DateTime<Utc>>,
    /// Until when the token counts.
    pub expires_at: DateTime<Utc>,
    /// Tier of the user's token, as another application says.
    pub nft_tier: Option<String>,
    /// Public key that another application made for the user.
    pub pkp_public_key: Option<String>,
}

/// Get a nonce for a sign-in message
#[utoipa::path(post, path = "/lit-compute/auth/nonce", tag = "auth", responses((status = 200, body = NonceBody)))]
async fn create_nonce(State(app): State<App>) -> ApiResult<Json<NonceBody>> {
    let nonce = siwe::generate_nonce();
    let expires_at = clock::now() + NONCE_LIFE;
    session::insert_nonce(&mut *app.db().await?, &nonce, expires_at).await?;
    Ok(Json(NonceBody { nonce, expires_at }))
}

/// Sign in with a signed message
///
/// By the wallet's key or, if the wallet is a contract, by whatever it takes for its signature (ERC-1271).
#[utoipa::path(
    post, path = "/lit-compute/auth/verify", tag = "auth", request_body = VerifyRequest,
    responses(
        (status = 200, body = TokenBody),
        (status = 401, body = Problem, content_type = "application/problem+json",
         description = "`nonce_invalid`, `wrong_domain`, `wrong_chain`, `message_expired`, `bad_signature`"),
    )
)]
async fn verify(State(app): State<App>, Json(request): Json<VerifyRequest>) -> ApiResult<Json<TokenBody>> {
    let now = clock::now();
    let message = parse_message(&request.message)?;
    let wallet = check_message(&app, &message, now)?;
    check_signature(&app, &request, wallet).await?;
    let token = hex::encode(rand::random::<[u8; 32]>());
    let user_id = UserId::of(wallet);
    let session = Session {
        token_hash: token_hash(&token),
        user_id: user_id.to_string(),
        wallet,
        created_at: now,
        expires_at: now + TimeDelta::seconds(SESSION_TTL_SECS.cast_signed()),
    };
    if !session::open(&mut *app.db().await?, &message.nonce, &session).await? {
        let detail = "The nonce was not handed out by this API, was used, or has expired. Ask for another.";
        return Err(ApiError::field(Code::NonceInvalid, "message", detail));
    }
    let written = market::redis::session::write(&app.parts.redis, &user_id, wallet, now);
    shared(&app, "write", &user_id, written).await;
    tracing::info!(%wallet, %user_id, "signed in");
    Ok(Json(TokenBody {
        token,
        user_id: session.user_id,
        wallet_address: WalletAddress(wallet),
        expires_at: session.expires_at,
    }))
}

/// That the wallet's key signed the message, or that it is a contract that takes the signature for its own.
async fn check_signature(app: &App, request: &VerifyRequest, wallet: Address) -> ApiResult<()> {
    let (signature, digest) = (&request.signature.0, eip191_hash_message(request.message.as_bytes()));
    if signature.len() > wallet::MAX_SIGNATURE_BYTES {
        let detail = format!("must have at most {} bytes", wallet::MAX_SIGNATURE_BYTES);
        return Err(ApiError::field(Code::InvalidField, "signature", detail));
    }
    let detail = match typed_data::recover(signature, digest) {
        Ok(signer) if signer == wallet => return Ok(()),
        Ok(signer) => format!("is by {signer}, not by {wallet}"),
        Err(error) => error.to_string(),
    };
    if wallet::accepts(app, wallet, digest, signature).await? {
        return Ok(());
    }
    Err(ApiError::field(Code::BadSignature, "signature", detail))
}

/// Does something to the session that other applications see. They do without if Redis is down; so does this one.
async fn shared(app: &App, what: &str, user_id: &UserId, action: impl Future<Output = Result<(), RedisError>>) {
    if let Err(error) = app.parts.redis.within(REDIS_WAIT, action).await {
        tracing::warn!(%user_id, %error, "could not {what} the session in Redis");
    }
}

/// Sign out: the token is worthless from now on
///
/// A session that another application made ends for all applications.
#[utoipa::path(
    post, path = "/lit-compute/auth/logout", tag = "auth", security(("bearer" = [])),
    responses((status = 204, description = "Signed out"))
)]
async fn logout(State(app): State<App>, user: SignedIn) -> ApiResult<StatusCode> {
    let SignedIn { user_id, known, .. } = user;
    let redis = &app.parts.redis;
    let Known::Here { token_hash, .. } = known else {
        // Nothing else has it: if it does not go from there, the user is still signed in, and is told so.
        redis
            .within(REDIS_WAIT, market::redis::session::remove(redis, &user_id))
            .await
            .map_err(ApiError::unavailable)?;
        return Ok(StatusCode::NO_CONTENT);
    };
    let mut db = app.db().await?;
    let signed_in_elsewhere = session::close(&mut db, token_hash, user_id.as_str(), clock::now()).await?;
    if !signed_in_elsewhere {
        shared(&app, "remove", &user_id, market::redis::session::remove(redis, &user_id)).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Whom the token belongs to
#[utoipa::path(
    get, path = "/lit-compute/auth/session", tag = "auth", security(("bearer" = [])),
    responses((status = 200, body = SessionBody))
)]
async fn current_session(State(app): State<App>, user: SignedIn) -> Json<SessionBody> {
    let redis = &app.parts.redis;
    let shared = redis.within(REDIS_WAIT, market::redis::session::read(redis, &user.user_id)).await.ok().flatten();
    let (nft_tier, pkp_public_key) = shared.map_or((None, None), |shared| (shared.nft_tier, shared.pkp_public_key));
    Json(SessionBody {
        user_id: user.user_id.to_string(),
        wallet_address: WalletAddress(user.wallet),
        created_at: match user.known {
            Known::Here { created_at, .. } => Some(created_at),
            Known::Elsewhere => None,
        },
        expires_at: user.expires_at,
        nft_tier,
        pkp_public_key,
    })
}

fn parse_message(text: &str) -> ApiResult<siwe::Message> {
    if text.len() > MAX_MESSAGE_BYTES {
        let detail = format!("is longer than {MAX_MESSAGE_BYTES} bytes");
        return Err(ApiError::field(Code::InvalidField, "message", detail));
    }
    let parsed = text.parse::<siwe::Message>();
    parsed
        .map_err(|error| ApiError::field(Code::InvalidField, "message", format!("is not an EIP-4361 message: {error}")))
}

/// Everything about the message but nonce and signature. Returns who it says signs in.
fn check_message(app: &App, message: &siwe::Message, now: DateTime<Utc>) -> ApiResult<Address> {
    let refuse = |code, detail: String| Err(ApiError::field(code, "message", detail));
    let domains = &app.parts.settings.signin_domains;
    if !domains.iter().any(|domain| domain == message.domain.as_str()) {
        return refuse(Code::WrongDomain, format!("is for {}; this API is {}", message.domain, domains.join(" or ")));
    }
    let chain_id = app.parts.deployment.chain_id;
    if message.chain_id != chain_id {
        return refuse(
            Code::WrongChain,
            format!("is for chain {}; this API is for chain {chain_id}", message.chain_id),
        );
    }
    let secs = now.timestamp();
    let issued_at = message.issued_at.as_ref().unix_timestamp();
    if issued_at > secs + CLOCK_SKEW.num_seconds()
        || issued_at < secs - NONCE_LIFE.num_seconds() - CLOCK_SKEW.num_seconds()
    {
        return refuse(Code::MessageExpired, format!("was issued at {}, the time is {now}", message.issued_at));
    }
    if let Some(end) = message.expiration_time.as_ref().filter(|end| end.as_ref().unix_timestamp() <= secs) {
        return refuse(Code::MessageExpired, format!("expired at {end}"));
    }
    if let Some(start) = message.not_before.as_ref().filter(|start| start.as_ref().unix_timestamp() > secs) {
        return refuse(Code::MessageExpired, format!("is not valid before {start}"));
    }
    Ok(Address::from(message.address))
}
