//! Extractors whose rejections are problems that name the field.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, RawPathParams, Request, rejection::RawPathParamsRejection},
    http::{HeaderMap, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::{
    Serialize,
    de::{DeserializeOwned, value::MapDeserializer},
};

use crate::error::{ApiError, ApiResult, Code};

/// Most bytes of a JSON body.
pub const JSON_LIMIT: usize = 1024 * 1024;

/// Most bytes of a JSON body with many orders.
pub const BULK_LIMIT: usize = 4 * 1024 * 1024;

/// How long a client may pause while it sends a body.
pub const BODY_IDLE: Duration = Duration::from_secs(30);

/// A JSON body, in and out.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

/// A JSON body of many orders, which may be larger than others.
#[derive(Debug, Clone, Copy)]
pub struct BulkJson<T>(pub T);

/// Parameters of the path, as a struct that names them.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

/// Parameters of the query, as a struct that names them.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, Self::Rejection> {
        require_json(request.headers())?;
        let bytes = read_body(request.into_body(), JSON_LIMIT).await?;
        parse_json(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for BulkJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, Self::Rejection> {
        require_json(request.headers())?;
        let bytes = read_body(request.into_body(), BULK_LIMIT).await?;
        parse_json(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        // axum's own Path does not tell which parameter a type of ours has refused.
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|rejection| match rejection {
            RawPathParamsRejection::InvalidUtf8InPathParam(error) => {
                // "Invalid UTF-8 in `jobId`"
                let field = error.body_text().split('`').nth(1).unwrap_or_default().to_owned();
                ApiError::field(Code::InvalidParameter, field, "is not UTF-8")
            }
            other => ApiError::internal(anyhow::anyhow!("{other}")),
        })?;
        let map = MapDeserializer::<_, serde::de::value::Error>::new(params.iter());
        serde_path_to_error::deserialize(map).map(Self).map_err(|error| {
            let path = error.path().to_string();
            named_field(Code::InvalidParameter, &path, &error.into_inner().to_string())
        })
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        axum::extract::Query::try_from_uri(&parts.uri).map(|axum::extract::Query(value)| Self(value)).map_err(|error| {
            // "Failed to deserialize query string: limit: invalid digit found in string"
            let text = error.body_text();
            let reason = text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason);
            match reason.split_once(": ") {
                Some((field, detail)) if !field.contains(' ') => ApiError::field(Code::InvalidParameter, field, detail),
                _ => named_field(Code::InvalidParameter, "", reason),
            }
        })
    }
}

fn require_json(headers: &HeaderMap) -> ApiResult<()> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|essence| essence.trim().to_ascii_lowercase());
    if essence.as_deref() == Some("application/json") {
        return Ok(());
    }
    Err(ApiError::new(Code::UnsupportedMediaType, "Send the body with Content-Type: application/json."))
}

/// Reads a whole body of at most `limit` bytes, however it says it is long.
pub async fn read_body(body: Body, limit: usize) -> ApiResult<Bytes> {
    let mut chunks = body.into_data_stream();
    let mut all = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut chunks).await? {
        if all.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// The next piece of a body, or nothing at its end. Errors when the client stalls or breaks off.
pub async fn next_chunk(chunks: &mut axum::body::BodyDataStream) -> ApiResult<Option<Bytes>> {
    match tokio::time::timeout(BODY_IDLE, chunks.next()).await {
        Err(_) => {
            let detail = format!("Nothing of the body arrived for {} seconds.", BODY_IDLE.as_secs());
            Err(ApiError::new(Code::BodyTimeout, detail))
        }
        Ok(None) => Ok(None),
        Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
        Ok(Some(Err(error))) => Err(ApiError::new(Code::BrokenBody, error.to_string())),
    }
}

/// The error for a body of more than `limit` bytes.
pub fn too_large(limit: usize) -> ApiError {
    ApiError::new(Code::BodyTooLarge, format!("The body may have at most {limit} bytes."))
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        if error.inner().is_data() {
            return invalid_field(error);
        }
        ApiError::new(Code::InvalidJson, error.into_inner().to_string())
    })?;
    json.end().map_err(|error| ApiError::new(Code::InvalidJson, error.to_string()))?;
    Ok(value)
}

/// Reads a part of a body that was read as JSON before. Fields are named from that part on.
pub fn parse_value<T: DeserializeOwned>(value: serde_json::Value) -> ApiResult<T> {
    serde_path_to_error::deserialize(value).map_err(invalid_field)
}

fn invalid_field(error: serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let path = error.path().to_string();
    named_field(Code::InvalidField, &path, &without_position(&error.into_inner().to_string()))
}

/// `detail` without serde_json's " at line 1 column 20".
fn without_position(detail: &str) -> String {
    detail.rfind(" at line ").map_or(detail, |at| &detail[..at]).to_owned()
}

/// The error at `path`, which serde gives as that of the parent where a field is missing or unknown.
fn named_field(code: Code, path: &str, detail: &str) -> ApiError {
    let path = if path == "." { "" } else { path };
    let quoted = detail
        .strip_prefix("missing field `")
        .or_else(|| detail.strip_prefix("unknown field `"))
        .and_then(|rest| rest.split('`').next());
    let last = path.rsplit('.').next().unwrap_or_default();
    let field = match quoted {
        Some(name) if path.is_empty() => name.to_owned(),
        Some(name) if name != last => format!("{path}.{name}"),
        _ => path.to_owned(),
    };
    if field.is_empty() { ApiError::new(code, detail) } else { ApiError::field(code, field, detail) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WalletAddress;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        max_price: market::Amount,
        #[allow(dead_code)]
        wallets: Vec<WalletAddress>,
    }

    fn refusal(json: &str) -> (Code, Option<String>) {
        let error = parse_json::<Outer>(json.as_bytes()).unwrap_err();
        (error.code, error.field)
    }

    #[test]
    fn what_is_wrong_in_a_body_is_named_by_its_path() {
        let price = Some("inner.maxPrice".to_owned());
        for (json, field) in [
            (r#"{"inner":{"maxPrice":"0.1 ETH","wallets":[]}}"#, price.clone()),
            (r#"{"inner":{"maxPrice":5,"wallets":[]}}"#, price.clone()),
            (r#"{"inner":{"wallets":[]}}"#, price),
            (r#"{"inner":{"maxPrice":"5","wallets":["0x12"]}}"#, Some("inner.wallets[0]".to_owned())),
            (r#"{"inner":{"maxPrice":"5","wallets":[],"extra":1}}"#, Some("inner.extra".to_owned())),
            (r#"{"extra":1}"#, Some("extra".to_owned())),
            (r"{}", Some("inner".to_owned())),
            (r"[1]", Some("inner[0]".to_owned())),
        ] {
            let (code, named) = refusal(json);
            assert_eq!(code, Code::InvalidField, "{json}");
            if json != "[1]" {
                assert_eq!(named, field, "{json}");
            }
        }
    }

    #[test]
    fn what_is_not_json_is_told_from_what_is_wrong() {
        for json in ["", "{", "nonsense", r#"{"inner":{"maxPrice":"1","wallets":[]}} trailing"#] {
            assert_eq!(refusal(json), (Code::InvalidJson, None), "{json}");
        }
    }
}
