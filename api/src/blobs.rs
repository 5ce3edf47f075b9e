//! Inputs and outputs, by content id.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use market::{ContentId, breaker::Broken, clock, db::blob};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path, Query, next_chunk, too_large},
    store::{Finished, Upload, verified},
};

/// The routes of contents.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(put_blob)).routes(routes!(get_blob, head_blob))
}

/// What the bytes should be.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PutQuery {
    /// The id that the bytes should hash to; nothing is kept if they do not.
    pub cid: Option<ContentId>,
}

/// A content's id in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct CidPath {
    /// CIDv1, codec raw, hash sha2-256.
    pub cid: ContentId,
}

/// A stored content.
#[derive(Debug, Serialize, ToSchema)]
pub struct BlobBody {
    /// Its id.
    pub cid: ContentId,
    /// Its bytes.
    #[schema(example = 1024)]
    pub size: u64,
}

/// Store a content
#[utoipa::path(
    put, path = "/lit-compute/blobs", tag = "contents", security(("bearer" = [])), params(PutQuery),
    request_body(content = Option<Vec<u8>>, content_type = "application/octet-stream", description = "The bytes"),
    responses(
        (status = 201, body = BlobBody),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`body_timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`body_too_large`"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "`cid_mismatch`: the bytes are not what `cid` says, and nothing was kept"),
    )
)]
async fn put_blob(
    State(app): State<App>,
    user: SignedIn,
    Query(query): Query<PutQuery>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<(StatusCode, Json<BlobBody>)> {
    let limit = app.parts.settings.max_blob_bytes;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > limit) {
        return Err(too_large(limit));
    }
    let mut upload = app.parts.store.upload().await.map_err(store_failed)?;
    let within = app.parts.settings.upload_timeout;
    let received = timeout(within, receive(body, &mut upload, limit)).await.unwrap_or_else(|_| {
        let detail = format!("The body did not arrive within {} seconds.", within.as_secs());
        Err(ApiError::new(Code::BodyTimeout, detail))
    });
    if let Err(error) = received {
        if let Err(cause) = upload.abort().await {
            tracing::warn!(%cause, "a refused upload was left for the sweeper");
        }
        return Err(error);
    }
    match upload.finish(query.cid).await.map_err(store_failed)? {
        Finished::Mismatch { actual } => {
            Err(ApiError::field(Code::CidMismatch, "cid", format!("the bytes that came are {actual}")))
        }
        Finished::Stored { cid, size } => {
            let mut db = app.db().await?;
            blob::insert(&mut db, cid, size, user.wallet(), clock::now()).await?;
            metrics::counter!("littoral_blob_stored_bytes_total").increment(size);
            tracing::info!(%cid, size, wallet = %user.wallet(), "content stored");
            Ok((StatusCode::CREATED, Json(BlobBody { cid, size })))
        }
    }
}

async fn receive(body: Body, upload: &mut Upload, limit: usize) -> ApiResult<()> {
    let limit_bytes = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = next_chunk(&mut chunks).await? {
        if upload.size() + u64::try_from(chunk.len()).unwrap_or(u64::MAX) > limit_bytes {
            return Err(too_large(limit));
        }
        upload.write(chunk).await.map_err(ApiError::unavailable)?;
    }
    Ok(())
}

/// Fetch a content
///
/// It is verified while it is sent: if it proves damaged, the connection ends before the last bytes.
#[utoipa::path(
    get, path = "/ipfs/{cid}", tag = "contents", params(CidPath),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The bytes"),
        (status = 304, description = "`If-None-Match` names this content"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`unknown_cid`"),
    )
)]
async fn get_blob(
    State(app): State<App>,
    Path(CidPath { cid }): Path<CidPath>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let size = find(&app, cid).await?;
    if is_cached(&headers, cid) {
        return Ok((StatusCode::NOT_MODIFIED, content_headers(cid)).into_response());
    }
    let stored = app.parts.store.read(cid).await.map_err(store_failed)?;
    let Some(stored) = stored.filter(|stored| stored.size == size) else {
        return Err(ApiError::internal(anyhow::anyhow!("{cid} of {size} bytes is lost or damaged in the store")));
    };
    let chunks = verified(stored.chunks, cid).inspect_err(move |cause| {
        metrics::counter!("littoral_blob_damaged_total").increment(1);
        tracing::error!(%cid, cause = format!("{cause:#}"), "a content was cut short");
    });
    Ok((content_headers(cid), [(header::CONTENT_LENGTH, size.to_string())], Body::from_stream(chunks)).into_response())
}

/// Ask whether a content is stored, and how large it is
#[utoipa::path(
    head, path = "/ipfs/{cid}", tag = "contents", params(CidPath),
    responses((status = 200, description = "`Content-Length` is its size"), (status = 404, description = "Not stored"))
)]
async fn head_blob(State(app): State<App>, Path(CidPath { cid }): Path<CidPath>) -> ApiResult<Response> {
    let size = find(&app, cid).await?;
    Ok((content_headers(cid), [(header::CONTENT_LENGTH, size.to_string())], Body::empty()).into_response())
}

fn store_failed(broken: Broken<object_store::Error>) -> ApiError {
    ApiError::broken("The store of contents", broken)
}

async fn find(app: &App, cid: ContentId) -> ApiResult<u64> {
    blob::size(&mut *app.db().await?, cid)
        .await?
        .ok_or_else(|| ApiError::field(Code::UnknownCid, "cid", format!("{cid} is not stored here")))
}

fn etag(cid: ContentId) -> String {
    format!("\"{cid}\"")
}

fn is_cached(headers: &HeaderMap, cid: ContentId) -> bool {
    let etag = etag(cid);
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

/// A content never changes, so it may be kept for ever. It comes from anyone, so a browser must not take it for a page.
fn content_headers(cid: ContentId) -> [(HeaderName, HeaderValue); 6] {
    // Quotes and base32 are always valid in a header.
    let etag = HeaderValue::from_str(&etag(cid)).unwrap_or_else(|_| HeaderValue::from_static("*"));
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
        (header::ACCEPT_RANGES, HeaderValue::from_static("none")),
        (header::ETAG, etag),
    ]
}
