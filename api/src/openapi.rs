//! The description of the interface, made from the handlers themselves, and completed with what all of them share.

use axum::{Json, Router, routing::get};
use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, HttpMethod, Ref, ResponseBuilder,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::error::{PROBLEM_JSON, Problem, ProblemCode};

/// What is said of the interface as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Littoral",
        description = "The API of a compute job marketplace. Requesters announce orders and pay on the chain; nodes claim \
                       jobs, do them, and are paid in batches. Every error is a `Problem`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(Problem, ProblemCode)),
    tags(
        (name = "auth", description = "Sign-in with Ethereum"),
        (name = "contents", description = "Inputs and outputs, by content id"),
        (name = "jobs", description = "Orders announced, claimed, completed"),
        (name = "nodes", description = "Who does the work"),
        (name = "chain", description = "The chain, as the indexer has read it"),
        (name = "health", description = "Whether the process works")
    )
)]
pub struct Description;

/// Adds the security scheme and the errors that any operation may answer with.
#[must_use]
pub fn complete(mut api: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The token that `POST /lit-compute/auth/verify` gives"))
        .build();
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    for item in api.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.head, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            add_errors(operation);
        }
    }
    api
}

fn add_errors(operation: &mut Operation) {
    let mut add = |status: &str, codes: &str| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(codes).content(PROBLEM_JSON, content).build();
        operation.responses.responses.entry(status.to_owned()).or_insert(response.into());
    };
    if operation.security.is_some() {
        add("401", "`unauthenticated`");
    }
    if operation.request_body.is_some() {
        add("400", "`invalid_json`, `broken_body`");
        add("408", "`body_timeout`");
        add("413", "`body_too_large`");
        add("415", "`unsupported_media_type`");
        add("422", "`invalid_field`");
    }
    if operation.parameters.is_some() {
        add("422", "`invalid_parameter`");
    }
    add("500", "`internal`");
    add("503", "`unavailable`, `timeout`");
}

/// Serves the description.
pub fn routes<S: Clone + Send + Sync + 'static>(api: utoipa::openapi::OpenApi) -> Router<S> {
    Router::new().route("/openapi.json", get(move || std::future::ready(Json(api))))
}

/// Method and path of every operation.
#[must_use]
pub fn operations(api: &utoipa::openapi::OpenApi) -> Vec<(HttpMethod, String)> {
    let mut all = Vec::new();
    for (path, item) in &api.paths.paths {
        for (method, operation) in [
            (HttpMethod::Get, &item.get),
            (HttpMethod::Put, &item.put),
            (HttpMethod::Post, &item.post),
            (HttpMethod::Head, &item.head),
        ] {
            if operation.is_some() {
                all.push((method, path.clone()));
            }
        }
    }
    all
}
