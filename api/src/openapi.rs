//! The description of the interface, made from the handlers themselves, and completed with what all of them share.

use axum::{Json, Router, http::Method, routing::get};
use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, HttpMethod, Object, ObjectBuilder, Ref, RefOr, Required, ResponseBuilder, Server, Type,
        header::HeaderBuilder,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::{
    door::{Scope, operation},
    error::{PROBLEM_JSON, Problem, ProblemCode},
};

/// Where people read the description.
pub const PAGE: &str = "/docs";

/// What is said of the interface as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Littoral",
        description = "The API of a compute job marketplace. Requesters announce orders and pay on the chain, or deposit and \
                       sign orders; nodes claim jobs, do them, and are paid in batches.\n\nEvery error is a `Problem` (RFC \
                       9457), and its `code` is what programs look at. Requests are limited in two tiers, told by \
                       `RateLimit` and `RateLimit-Policy`; whoever makes more gets 429 and `Retry-After`. Where the server \
                       needs something that does not answer, it says 503 and `Retry-After`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(Problem, ProblemCode)),
    tags(
        (name = "auth", description = "Sign-in with Ethereum"),
        (name = "contents", description = "Inputs and outputs, by content id"),
        (name = "jobs", description = "Orders announced, claimed, completed"),
        (name = "nodes", description = "Who does the work"),
        (name = "realtime", description = "What happens, as it happens"),
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
        .description(Some(
            "The token that `POST /lit-compute/auth/verify` gives, or one that an application signed with which this one \
             shares sessions",
        ))
        .build();
    let realtime = ApiKeyValue::with_description("token", "The token that `POST /lit-compute/realtime/token` gives");
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components.add_security_scheme("realtime", SecurityScheme::ApiKey(ApiKey::Query(realtime)));
    for (path, item) in &mut api.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::PUT, &mut item.put),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
            (Method::HEAD, &mut item.head),
            (Method::PATCH, &mut item.patch),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                Described { method, path, operation }.complete();
            }
        }
    }
    api.servers = Some(vec![Server::new("/")]);
    api
}

/// A route's method and path, and what is said of it.
struct Described<'a> {
    method: Method,
    path: &'a str,
    operation: &'a mut Operation,
}

impl Described<'_> {
    /// Adds what the door and the extractors may answer before a handler does, and the headers of every answer.
    fn complete(&mut self) {
        let limited = Scope::of(&self.method, self.path).is_some();
        if self.operation.security.is_some() {
            self.add("401", "`unauthenticated`");
        }
        if self.operation.request_body.is_some() {
            self.add("400", "`invalid_json`, `broken_body`");
            self.add("408", "`body_timeout`");
            self.add("413", "`body_too_large`");
            self.add("415", "`unsupported_media_type`");
            self.add("422", "`invalid_field`");
        }
        if self.operation.parameters.is_some() {
            self.add("422", "`invalid_parameter`");
        }
        if operation(&self.method, self.path).is_some() {
            self.operation.parameters.get_or_insert_default().push(RefOr::T(idempotency_key()));
            self.add("409", "`idempotency_in_flight`");
            self.add("422", "`idempotency_mismatch`, `invalid_parameter`");
        }
        if limited {
            self.add("429", "`rate_limited`");
        }
        self.add("500", "`internal`");
        self.add("503", "`unavailable`, `timeout`");
        for (status, response) in &mut self.operation.responses.responses {
            let RefOr::T(response) = response else { continue };
            for (name, description, schema_type) in headers_of(status, limited) {
                let header =
                    HeaderBuilder::new().schema(Some(Object::with_type(schema_type))).description(Some(description));
                response.headers.insert(name.to_owned(), header.build().into());
            }
        }
    }

    /// Adds codes to those that come with `status`.
    fn add(&mut self, status: &str, codes: &str) {
        let responses = &mut self.operation.responses.responses;
        if let Some(RefOr::T(known)) = responses.get_mut(status) {
            let missing: Vec<&str> = codes.split(", ").filter(|code| !known.description.contains(code)).collect();
            if !missing.is_empty() {
                known.description = format!("{}; {}", known.description, missing.join(", "));
            }
            return;
        }
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(codes).content(PROBLEM_JSON, content).build();
        responses.insert(status.to_owned(), response.into());
    }
}

fn headers_of(status: &str, limited: bool) -> Vec<(&'static str, &'static str, Type)> {
    let mut headers = vec![("X-Request-Id", "Names the request in the server's log", Type::String)];
    if limited {
        headers.push(("RateLimit", "What each tier has left, and for how many seconds", Type::String));
        headers.push(("RateLimit-Policy", "How many requests each tier takes in how many seconds", Type::String));
    }
    match status {
        "401" => headers.push(("WWW-Authenticate", "`Bearer`", Type::String)),
        "429" | "503" => headers.push(("Retry-After", "Seconds to wait before trying again", Type::Integer)),
        _ => {}
    }
    headers
}

fn idempotency_key() -> Parameter {
    let key = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[A-Za-z0-9_.~+/=-]{1,128}$"))
        .examples(["8e03978e-40d5-43dd-bc93-6894a57f9324"]);
    let description = "Chosen by the client. For a day, the same call under the same key gets the first one's answer (with \
                       `Idempotent-Replayed: true`), and another call under it is refused";
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(key))
        .build()
}

/// Serves the description, and a page that shows it.
pub fn routes<S: Clone + Send + Sync + 'static>(api: utoipa::openapi::OpenApi) -> Router<S> {
    let page: Router<S> = SwaggerUi::new(PAGE).config(Config::from("/openapi.json")).into();
    page.route("/openapi.json", get(move || std::future::ready(Json(api))))
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
