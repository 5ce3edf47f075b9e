//! The router: all routes, and around them what every request goes through.

use std::{any::Any, str::FromStr, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tokio::time::{Instant, timeout};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use tracing::Instrument;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    app::App,
    auth, blobs, chain, door,
    error::{ApiError, Code},
    health, jobs, nodes, openapi, realtime, shared, vouchers,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a client.
const MAX_REQUEST_ID: usize = 64;

/// Everything that is served, and its description.
pub fn router(app: App) -> anyhow::Result<(Router, utoipa::openapi::OpenApi)> {
    let quick = OpenApiRouter::with_openapi(openapi::Description::openapi())
        .merge(health::routes())
        .merge(auth::routes())
        .merge(chain::routes())
        .merge(nodes::routes())
        .merge(jobs::routes())
        .merge(vouchers::routes())
        .merge(shared::routes())
        .merge(realtime::routes())
        .layer(from_fn_with_state(app.clone(), in_time));
    let (routes, api) =
        quick.merge(blobs::routes()).merge(jobs::waiting_routes()).merge(realtime::streams()).split_for_parts();
    let api = openapi::complete(api);
    let mut routes = routes
        .merge(openapi::routes(api.clone()))
        .fallback(no_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(app.clone(), door::enter))
        .layer(CatchPanicLayer::custom(panicked));
    let (sockets, io) = realtime::layer(app.clone());
    routes = routes.layer(sockets).layer(from_fn_with_state(app.clone(), door::greet));
    let stop = app.shutdown.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        io.close().await;
    });
    let origins = &app.parts.settings.cors_origins;
    if !origins.is_empty() {
        routes = routes.layer(cors(origins)?);
    }
    Ok((routes.layer(from_fn(observe)).with_state(app), api))
}

async fn no_route(request: Request) -> ApiError {
    ApiError::new(Code::NoRoute, format!("There is no {}.", request.uri().path()))
}

async fn method_not_allowed(method: Method, request: Request) -> ApiError {
    ApiError::new(Code::MethodNotAllowed, format!("{} does not take {method}.", request.uri().path()))
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    ApiError::internal(anyhow::anyhow!("a handler panicked: {}", text.unwrap_or("for an unknown reason")))
        .into_response()
}

fn cors(origins: &[Origin]) -> anyhow::Result<CorsLayer> {
    let origins = origins.iter().map(|origin| HeaderValue::from_str(origin.as_str())).collect::<Result<Vec<_>, _>>()?;
    Ok(CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, REQUEST_ID, door::IDEMPOTENCY_KEY])
        .expose_headers([
            header::ETAG,
            header::RETRY_AFTER,
            REQUEST_ID,
            door::RATE_LIMIT,
            door::RATE_LIMIT_POLICY,
            door::REPLAYED,
        ])
        .max_age(Duration::from_secs(600)))
}

/// A web origin, exactly as browsers send it: scheme, host, and port where it is not the scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

/// Not an [`Origin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an origin such as https://app.example, without a path, in lower case, and no pattern")]
pub struct OriginError;

impl Origin {
    /// As browsers send it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url: url::Url = text.parse().map_err(|_| OriginError)?;
        let is_web = matches!(url.scheme(), "http" | "https");
        // What the parser would have put right, a browser never sends: it would not be found equal.
        if !is_web || url.origin().ascii_serialization() != text || text.contains('*') {
            return Err(OriginError);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Ends a request that takes too long.
async fn in_time(State(app): State<App>, request: Request, next: Next) -> Response {
    let limit = app.parts.settings.request_timeout;
    match timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("The request took longer than {} seconds.", limit.as_secs());
            ApiError::new(Code::Timeout, detail).into_response()
        }
    }
}

/// Gives each request an id, a span that carries it into every log line, and its measurements.
async fn observe(mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", request_id = id, %method, path = request.uri().path());
    let started = Instant::now();
    // It is checked or made of what a header can hold.
    let header = HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("invalid"));
    request.headers_mut().insert(REQUEST_ID, header.clone());
    let mut response: Response<Body> = next.run(request).instrument(span.clone()).await;
    let elapsed = started.elapsed();
    let status = response.status();
    span.in_scope(|| tracing::debug!(status = status.as_u16(), elapsed_ms = elapsed.as_millis(), "answered"));
    let labels =
        [("method", method_label(&method).to_owned()), ("route", route), ("status", status.as_u16().to_string())];
    metrics::histogram!("littoral_http_request_seconds", &labels).record(elapsed.as_secs_f64());
    response.headers_mut().insert(REQUEST_ID, header);
    response
}

/// The method's name for the measurements. Clients may make names up, and every name is kept for good.
fn method_label(method: &Method) -> &'static str {
    const SERVED: [(Method, &str); 5] = [
        (Method::GET, "GET"),
        (Method::HEAD, "HEAD"),
        (Method::POST, "POST"),
        (Method::PUT, "PUT"),
        (Method::OPTIONS, "OPTIONS"),
    ];
    SERVED.iter().find(|(served, _)| served == method).map_or("other", |(_, name)| name)
}

/// The client's id for the request if it is a plain one, so that its logs and ours can be joined; otherwise a new one.
fn request_id(request: &Request) -> String {
    request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID)
        .filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'))
        .map_or_else(|| hex::encode(rand::random::<[u8; 8]>()), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{http::StatusCode, routing::get};

    #[test]
    fn methods_that_clients_make_up_are_measured_as_one() {
        for name in ["GET", "HEAD", "POST", "PUT", "OPTIONS"] {
            assert_eq!(method_label(&name.parse().unwrap()), name);
        }
        for name in ["BREW1", "BREW2", "get", "DELETE"] {
            assert_eq!(method_label(&name.parse().unwrap()), "other");
        }
    }

    #[test]
    fn an_origin_is_what_browsers_send_and_nothing_else() {
        for good in ["https://app.example", "http://localhost:5173", "https://xn--bcher-kva.example:8443"] {
            assert_eq!(good.parse::<Origin>().unwrap().as_str(), good);
        }
        for bad in [
            "*",
            "null",
            "",
            "app.example",
            "https://*.example",
            "https://app.example/",
            "https://App.example",
            "https://app.example:443",
            "https://u@app.example",
            "ftp://app.example",
            "https://app.example/path",
        ] {
            assert_eq!(bad.parse::<Origin>(), Err(OriginError), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_harms_no_other_request() {
        async fn panics() -> &'static str {
            panic!("the secret is 42")
        }
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/works", get(async || "well"))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn(observe));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let answer = reqwest::get(format!("{url}/panics")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = answer.text().await.unwrap();
        assert!(body.contains("\"code\":\"internal\"") && !body.contains("42"), "{body}");
        assert_eq!(reqwest::get(format!("{url}/works")).await.unwrap().text().await.unwrap(), "well");
        server.abort();
    }
}
