//! Calls that happen once, however often they are sent: those under the same `Idempotency-Key` get the first one's answer.
//!
//! Every such call is idempotent by what it is about, too: an order, a lease, a voucher. So a call whose process died before its
//! answer was remembered can be made again. What is remembered is success: a call that was refused has changed nothing.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use chrono::TimeDelta;
use market::{
    clock,
    db::idempotency::{self, Answer, Begun, Call, Owner},
    redis::{self, keys::IDEMPOTENCY_TTL_SECS},
};
use sha2::{Digest, Sha256};
use std::time::Duration;

use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code},
    extract::{BULK_LIMIT, read_body},
};

/// Names a call.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that was remembered.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest key.
const MAX_KEY: usize = 128;
/// Longest answer that is remembered: that to the largest bulk.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// After this a call has ended, or its process has: longer than any may take.
const LOCK: TimeDelta = TimeDelta::seconds(90);
/// How long an answer waits for Redis to be told of it.
const WITHIN: Duration = Duration::from_millis(250);

/// In a word, what a route does that creates a job or moves money; only such calls take a key.
#[must_use]
pub fn operation(method: &Method, route: &str) -> Option<&'static str> {
    if *method != Method::POST {
        return None;
    }
    match route.strip_prefix("/lit-compute")? {
        "/jobs/submit" => Some("submit"),
        "/jobs/submit/bulk" => Some("submit-bulk"),
        "/jobs/{jobId}/cancel" => Some("cancel"),
        "/jobs/{jobId}/redrive" => Some("redrive"),
        "/jobs/{jobId}/complete" => Some("complete"),
        "/jobs/complete/bulk" => Some("complete-bulk"),
        "/vouchers" => Some("voucher"),
        _ => None,
    }
}

/// Answers a call: by its handler or, if it has a key that was answered before, as then.
pub(super) async fn once(
    app: &App,
    user: &SignedIn,
    operation: &'static str,
    request: Request,
    next: Next,
) -> ApiResult<Response> {
    match key_of(request.headers())? {
        None => Ok(next.run(request).await),
        Some(key) => keyed(app, user, operation, key, request, next).await,
    }
}

async fn keyed(
    app: &App,
    user: &SignedIn,
    operation: &'static str,
    key: String,
    request: Request,
    next: Next,
) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(body, BULK_LIMIT).await?;
    let request_hash = hash(&parts.method, parts.uri.path_and_query().map_or("", |path| path.as_str()), &bytes);
    let call = Call { user_id: user.user_id.clone(), operation, key, request_hash };
    let now = clock::now();
    let remembered_until = now + TimeDelta::seconds(IDEMPOTENCY_TTL_SECS.cast_signed());
    let mut db = app.db().await?;
    let begun = idempotency::begin(&mut db, &call, now, now + LOCK, remembered_until).await?;
    drop(db);
    let owner = match begun {
        Begun::Ours(owner) => owner,
        Begun::Answered(answer) => return Ok(replay(answer)),
        Begun::InFlight => {
            let detail = "A call with this Idempotency-Key is under way.";
            return Err(ApiError::field(Code::IdempotencyInFlight, "Idempotency-Key", detail).retry_after(1));
        }
        Begun::Mismatch => {
            let detail = "was sent with another request before; take a new one";
            return Err(ApiError::field(Code::IdempotencyMismatch, "Idempotency-Key", detail));
        }
    };
    let request = Request::from_parts(parts, Body::from(bytes));
    let app = app.clone();
    // Apart from the connection: a client that goes away does not leave the call half remembered.
    let call = tokio::spawn(async move {
        let response = next.run(request).await;
        remember(&app, &call, owner, response).await
    });
    call.await.map_err(ApiError::internal)?
}

/// Remembers what a call was answered, if it did what it should.
async fn remember(app: &App, call: &Call, owner: Owner, response: Response) -> ApiResult<Response> {
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        let mut db = app.db().await?;
        idempotency::release(&mut db, call, owner).await?;
        return Ok(Response::from_parts(parts, body));
    }
    let body = to_bytes(body, MAX_ANSWER).await.map_err(ApiError::internal)?;
    let answer = Answer { status: parts.status.as_u16(), body: body.to_vec() };
    // The call has happened, so its answer goes out whatever becomes of this; sent again, it changes nothing.
    match app.db().await {
        Ok(mut db) => match idempotency::finish(&mut db, call, owner, &answer).await {
            Ok(true) => tell(app, call, &answer).await,
            Ok(false) => tracing::warn!(operation = call.operation, "a call took longer than its key was held for it"),
            Err(error) => tracing::warn!(operation = call.operation, %error, "could not remember an answer"),
        },
        Err(error) => tracing::warn!(operation = call.operation, %error, "could not remember an answer"),
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

async fn tell(app: &App, call: &Call, answer: &Answer) {
    let redis = &app.parts.redis;
    if let Err(error) = redis.within(WITHIN, redis::idempotency::tell(redis, call, answer)).await {
        tracing::debug!(operation = call.operation, %error, "could not tell Redis of an answer");
    }
}

fn replay(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, Body::from(Bytes::from(answer.body))).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// The key, bare or as the quoted string that the header's draft standard has.
fn key_of(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none()).unwrap_or_default().trim();
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.~+/=".contains(&byte);
    if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(fits) {
        let detail = format!("must be one, of 1 to {MAX_KEY} letters, digits and _ - . ~ + / =");
        return Err(ApiError::field(Code::InvalidParameter, "Idempotency-Key", detail));
    }
    Ok(Some(key.to_owned()))
}

fn hash(method: &Method, path: &str, body: &[u8]) -> alloy::primitives::B256 {
    let mut hasher = Sha256::new();
    // Neither a method nor a path has a line end in it.
    hasher.update(format!("{method}\n{path}\n"));
    hasher.update(body);
    alloy::primitives::B256::from_slice(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_str(text).unwrap())]);
        key_of(&headers).ok().flatten()
    }

    #[test]
    fn a_key_is_taken_bare_or_quoted_and_cannot_name_another() {
        assert_eq!(key("8e03978e-40d5").as_deref(), Some("8e03978e-40d5"));
        assert_eq!(key("\"8e03978e-40d5\"").as_deref(), Some("8e03978e-40d5"));
        for bad in ["", "\"\"", "a b", "a:b", "*", "{a}", "a\"b", &"x".repeat(129)] {
            assert_eq!(key(bad), None, "{bad:?}");
        }
        let mut two = HeaderMap::new();
        two.append(IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        two.append(IDEMPOTENCY_KEY, HeaderValue::from_static("b"));
        assert!(key_of(&two).is_err());
        assert_eq!(key_of(&HeaderMap::new()).unwrap(), None);
    }
}
