//! Realtime tokens: signed, short-lived, and good for the topics they name, nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use market::{
    clock,
    db::{job_view, node_view, secret},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::topic::Topic;
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::Json,
    wire::Hash,
};

/// How long a token is good for.
const TOKEN_LIFE: TimeDelta = TimeDelta::hours(2);
/// Most topics of one token.
const MAX_TOPICS: usize = 256;
/// Whom tokens are for, so that no other signature of the same key is taken for one.
const AUDIENCE: &str = "littoral-realtime";

/// Signs and checks tokens. Every instance has the same key, which lies in Postgres.
#[derive(Clone)]
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    aud: String,
    /// Until when, in unix seconds.
    pub exp: i64,
    /// Who asked for it.
    pub sub: Address,
    /// What it is good for.
    pub topics: BTreeSet<Topic>,
}

impl Claims {
    /// How long the token is good for after `now`.
    #[must_use]
    pub fn left(&self, now: DateTime<Utc>) -> Duration {
        let end = DateTime::<Utc>::from_timestamp(self.exp, 0);
        end.and_then(|end| (end - now).to_std().ok()).unwrap_or_default()
    }
}

impl Tokens {
    /// With the key of this database, which is made if there is none.
    pub async fn load(pool: &sqlx::PgPool) -> Result<Self, sqlx::Error> {
        let key = secret::realtime(&mut *pool.acquire().await?, rand::random()).await?;
        Ok(Self { encoding: EncodingKey::from_secret(&key), decoding: DecodingKey::from_secret(&key) })
    }

    /// A token for `sub`, good for `topics` until `expires_at`. Fails only if they cannot be written as JSON.
    pub fn sign(
        &self,
        sub: Address,
        topics: BTreeSet<Topic>,
        expires_at: DateTime<Utc>,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let claims = Claims { aud: AUDIENCE.to_owned(), exp: expires_at.timestamp(), sub, topics };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
    }

    /// What `token` says, if it is one of ours and has not expired at `now`.
    #[must_use]
    pub fn read(&self, token: &str, now: DateTime<Utc>) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        // Checked below, by the caller's clock.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok()?.claims;
        (claims.exp > now.timestamp()).then_some(claims)
    }
}

/// What to follow.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// Ids of jobs of which the caller is the requester or the node.
    #[serde(default)]
    pub jobs: Vec<Hash>,
    /// Ids of nodes that the caller operates.
    #[serde(default)]
    pub nodes: Vec<Hash>,
}

/// A token to follow with.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenAnswer {
    /// For the handshake of Socket.IO, as `auth: {token}`, or as `?token=` of an event stream.
    pub token: String,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// Get a token to follow jobs and nodes with
#[utoipa::path(
    post, path = "/lit-compute/realtime/token", tag = "realtime", request_body = TokenRequest,
    security(("bearer" = [])),
    responses(
        (status = 200, body = TokenAnswer),
        (status = 403, body = Problem, content_type = "application/problem+json",
         description = "`not_party`: a job or node is not the caller's"),
    )
)]
pub async fn create(
    State(app): State<App>,
    user: SignedIn,
    Json(request): Json<TokenRequest>,
) -> ApiResult<Json<TokenAnswer>> {
    let now = clock::now();
    let count = request.jobs.len() + request.nodes.len();
    if count == 0 || count > MAX_TOPICS {
        let detail = format!("name 1 to {MAX_TOPICS} jobs and nodes, not {count}");
        return Err(ApiError::field(Code::InvalidField, "jobs", detail));
    }
    let mut db = app.db().await?;
    let jobs: Vec<B256> = request.jobs.iter().map(|id| id.0).collect();
    let views = job_view::by_ids(&mut db, &jobs).await?;
    for (index, id) in jobs.iter().enumerate() {
        let is_party = |view: &job_view::JobView| {
            let wallet = user.wallet();
            view.order.requester == wallet || view.order.node == wallet || view.node == Some(wallet)
        };
        // The same answer for what does not exist: no token tells what does.
        if !views.iter().any(|view| view.job_id == *id && is_party(view)) {
            return Err(not_party(format!("jobs[{index}]"), "is no job of which you are the requester or the node"));
        }
    }
    let own = node_view::by_addresses(&mut db, &[user.wallet()]).await?;
    let own = own.first().and_then(|view| view.registration.as_ref()).map(|registration| registration.node_id);
    if let Some(index) = request.nodes.iter().position(|id| Some(id.0) != own) {
        return Err(not_party(format!("nodes[{index}]"), "is no node that you operate"));
    }
    let topics = jobs.into_iter().map(Topic::Job).chain(request.nodes.iter().map(|id| Topic::Node(id.0))).collect();
    let expires_at = now + TOKEN_LIFE;
    let token = app.parts.tokens.sign(user.wallet(), topics, expires_at).map_err(ApiError::internal)?;
    Ok(Json(TokenAnswer { token, expires_at }))
}

fn not_party(field: String, detail: &str) -> ApiError {
    ApiError::field(Code::NotParty, field, detail)
}
