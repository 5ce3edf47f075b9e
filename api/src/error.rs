//! What goes wrong, as the client sees it: one type for every handler, one stable code for every cause, RFC 9457 on the wire.

use std::fmt;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use market::{Amount, breaker::Broken, db, job::WorkError};
use serde::Serialize;

use crate::wire::WalletAddress;

/// The media type of every error body.
pub const PROBLEM_JSON: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $status:literal $name:literal,)+) => {
        /// Why a request was refused. The name is part of the interface and never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The status it comes with, always the same.
            #[must_use]
            pub fn status(self) -> StatusCode {
                let number: u16 = match self {
                    $(Self::$variant => $status,)+
                };
                StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// One sentence on what it means, the same for every occurrence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

codes! {
    /// The body is not JSON
    InvalidJson = 400 "invalid_json",
    /// The request's body did not arrive whole
    BrokenBody = 400 "broken_body",
    /// A valid session is needed
    Unauthenticated = 401 "unauthenticated",
    /// The sign-in nonce is unknown, used or expired
    NonceInvalid = 401 "nonce_invalid",
    /// The sign-in message is for another domain
    WrongDomain = 401 "wrong_domain",
    /// The sign-in message is for another chain
    WrongChain = 401 "wrong_chain",
    /// The sign-in message is not valid at this time
    MessageExpired = 401 "message_expired",
    /// The signature is not by the address that signs in
    BadSignature = 401 "bad_signature",
    /// The order's price exceeds the requester's free deposit
    PriceAboveDeposit = 402 "price_above_deposit",
    /// The requester's deposit is bound by other orders
    InsufficientDeposit = 402 "insufficient_deposit",
    /// The session belongs to another wallet
    WalletMismatch = 403 "wallet_mismatch",
    /// The wallet is not registered as a node on the chain
    NodeNotRegistered = 403 "node_not_registered",
    /// The node has less stake than the minimum
    InsufficientStake = 403 "insufficient_stake",
    /// The node has not registered with this API
    ProfileMissing = 403 "profile_missing",
    /// Only who is party to it may follow it
    NotParty = 403 "not_party",
    /// Another node holds the job
    NotHolder = 403 "not_holder",
    /// There is no such route
    NoRoute = 404 "no_route",
    /// There is no such job
    JobNotFound = 404 "job_not_found",
    /// There is no such node
    NodeNotFound = 404 "node_not_found",
    /// No content with this id is stored here
    UnknownCid = 404 "unknown_cid",
    /// The route does not take this method
    MethodNotAllowed = 405 "method_not_allowed",
    /// The request's body took too long to arrive
    BodyTimeout = 408 "body_timeout",
    /// The fence is of an earlier lease
    StaleFence = 409 "stale_fence",
    /// The lease ended before the call
    LeaseExpired = 409 "lease_expired",
    /// No node holds the job
    NotLeased = 409 "not_leased",
    /// The job ended
    JobEnded = 409 "job_ended",
    /// The order's deadline has passed
    DeadlinePassed = 409 "deadline_passed",
    /// The job is not open in the escrow
    NotOpen = 409 "not_open",
    /// Only a signed order that no node ever had can be withdrawn
    NotWithdrawable = 409 "not_withdrawable",
    /// The voucher covers nothing that is not covered already
    VoucherStale = 409 "voucher_stale",
    /// The voucher covers an order that the node has yet to do
    VoucherCoversUnfinished = 409 "voucher_covers_unfinished",
    /// Only a job that failed can be tried anew
    NotFailed = 409 "not_failed",
    /// The job cannot be claimed now
    NotClaimable = 409 "not_claimable",
    /// A call with this Idempotency-Key is under way
    IdempotencyInFlight = 409 "idempotency_in_flight",
    /// The body is larger than is taken
    BodyTooLarge = 413 "body_too_large",
    /// The body's media type is not taken
    UnsupportedMediaType = 415 "unsupported_media_type",
    /// A field of the body is missing, unknown or malformed
    InvalidField = 422 "invalid_field",
    /// A parameter of the path or the query is malformed
    InvalidParameter = 422 "invalid_parameter",
    /// The bytes do not hash to the content id
    CidMismatch = 422 "cid_mismatch",
    /// The input is not stored here
    InputUnknown = 422 "input_unknown",
    /// The output is not stored here
    OutputUnknown = 422 "output_unknown",
    /// The order's specHash is not the hash of the spec
    SpecHashMismatch = 422 "spec_hash_mismatch",
    /// The order's deadline has passed or is too near
    OrderExpired = 422 "order_expired",
    /// The order breaks a rule of the escrow contract
    OrderInvalid = 422 "order_invalid",
    /// The order names another assigner than this API
    WrongAssigner = 422 "wrong_assigner",
    /// The node that the order names is not registered
    OrderNodeNotRegistered = 422 "order_node_not_registered",
    /// The node that the order names has less stake than the minimum
    OrderNodeInsufficientStake = 422 "order_node_insufficient_stake",
    /// No node that could do the job offers the operation
    OperationNotOffered = 422 "operation_not_offered",
    /// The price exceeds the order's maxPrice
    PriceAboveMax = 422 "price_above_max",
    /// The order's nonce is covered by a voucher, so that no one would be paid for it
    NonceCovered = 422 "nonce_covered",
    /// The order's signature is not by the requester
    BadOrderSignature = 422 "bad_order_signature",
    /// The receipt's signature is not by the node
    BadReceiptSignature = 422 "bad_receipt_signature",
    /// The voucher's signature is not by the requester or a session key
    BadVoucherSignature = 422 "bad_voucher_signature",
    /// The voucher is not over what its channel owes
    VoucherMismatch = 422 "voucher_mismatch",
    /// The session key may not spend as much, or not for long enough
    SessionInsufficient = 422 "session_insufficient",
    /// The public key is not the one that is registered on the chain
    PublicKeyMismatch = 422 "public_key_mismatch",
    /// The Idempotency-Key was sent with another request before
    IdempotencyMismatch = 422 "idempotency_mismatch",
    /// There were too many requests
    RateLimited = 429 "rate_limited",
    /// The server failed
    Internal = 500 "internal",
    /// Something that the server needs does not answer
    Unavailable = 503 "unavailable",
    /// Operators have switched it off
    Paused = 503 "paused",
    /// The request took too long
    Timeout = 503 "timeout",
}

/// A refused request.
#[derive(Debug)]
pub struct ApiError {
    pub(crate) code: Code,
    detail: String,
    pub(crate) field: Option<String>,
    deposit: Option<Box<DepositFigures>>,
    /// When to try again, where that is known.
    retry_after_secs: Option<u64>,
    /// What really happened, for the log only.
    cause: Option<anyhow::Error>,
}

/// What an `insufficient_deposit` says besides. Amounts in the token's smallest unit.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DepositFigures {
    /// Zero for the chain's native coin.
    pub token: WalletAddress,
    /// EIP-155 id of the chain on which to deposit.
    pub chain_id: u64,
    /// The free balance, as far as the indexer has read.
    pub free: Amount,
    /// What is set aside for single nodes.
    pub reserved: Amount,
    /// What signed orders that are neither paid nor void have promised.
    pub promised: Amount,
    /// What of the free balance nothing binds.
    pub available: Amount,
    /// What the order needs of it.
    pub required: Amount,
}

/// A handler's result.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with what is particular to this occurrence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), field: None, deposit: None, retry_after_secs: None, cause: None }
    }

    /// An error in the field at the dotted path `field`.
    pub fn field(code: Code, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(code, detail) }
    }

    /// An order for which the deposit that `deposit` describes is not enough.
    pub fn insufficient_deposit(deposit: DepositFigures) -> Self {
        let DepositFigures { free, reserved, promised, available, required, .. } = &deposit;
        let detail = format!(
            "needs {required} of the free deposit of {free}, of which {available} is not bound yet: signed orders have \
             promised {promised}, and {reserved} is set aside for single nodes"
        );
        let error = Self::field(Code::InsufficientDeposit, "order.maxPrice", detail);
        Self { deposit: Some(Box::new(deposit)), ..error }
    }

    /// A failure of the server. The client sees an id, the log has the cause under it.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        let detail = "The server failed; its log has the reason under this id.";
        Self { cause: Some(cause.into()), ..Self::new(Code::Internal, detail) }
    }

    /// A failure that passes: a store that does not answer.
    pub fn unavailable(cause: impl Into<anyhow::Error>) -> Self {
        let detail = "Something that the server needs does not answer. Try again in a moment.";
        Self { cause: Some(cause.into()), ..Self::new(Code::Unavailable, detail) }
    }

    /// The failure of a call to `what`, which is not even made while the last one has just failed.
    pub fn broken<E: Into<Self>>(what: &str, broken: Broken<E>) -> Self {
        match broken {
            Broken::Open => {
                let detail =
                    format!("{what} did not answer a moment ago, and is not asked now. Try again in a moment.");
                Self::new(Code::Unavailable, detail).retry_after(1)
            }
            Broken::Slow => Self::unavailable(anyhow::anyhow!("{what} did not answer in time")),
            Broken::Failed(error) => error.into(),
        }
    }

    /// The error, telling when to try again.
    #[must_use]
    pub fn retry_after(mut self, secs: u64) -> Self {
        self.retry_after_secs = Some(secs);
        self
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What is particular to this occurrence.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.detail)
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(AsRef::as_ref)
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            error if db::is_outage(&error) => Self::unavailable(error),
            // query_canceled: it took longer than the connection's statement_timeout.
            sqlx::Error::Database(cause) if cause.code().as_deref() == Some("57014") => Self::unavailable(cause),
            other => Self::internal(other),
        }
    }
}

impl From<object_store::Error> for ApiError {
    fn from(error: object_store::Error) -> Self {
        Self::unavailable(error)
    }
}

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        let (code, field) = match error {
            WorkError::NotClaimable => (Code::NotClaimable, None),
            WorkError::Ended(_) => (Code::JobEnded, None),
            WorkError::NotHolder => (Code::NotHolder, None),
            WorkError::NotLeased => (Code::NotLeased, None),
            WorkError::NotFailed => (Code::NotFailed, None),
            WorkError::StaleFence { .. } => (Code::StaleFence, Some("fence".to_owned())),
            WorkError::LeaseExpired(_) => (Code::LeaseExpired, None),
        };
        Self { field, ..Self::new(code, error.to_string()) }
    }
}

/// The body of every error: RFC 9457, with `code` for programs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "type": "urn:littoral:problem:invalid_field",
    "title": "A field of the body is missing, unknown or malformed",
    "status": 422,
    "detail": "must be an integer in the token's smallest unit, written in decimal digits only",
    "code": "invalid_field",
    "field": "order.maxPrice"
}))]
pub struct Problem {
    /// `urn:littoral:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What is particular to this occurrence.
    pub detail: String,
    /// Stable name of the cause.
    #[schema(value_type = ProblemCode)]
    pub code: &'static str,
    /// Dotted path of the field or parameter that was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub field: Option<String>,
    /// Under which the server's log has the cause of a failure of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// See [`DepositProblem`].
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    deposit: Option<Box<DepositFigures>>,
}

/// A `Problem` that says what the deposit is bound by.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DepositProblem {
    #[serde(flatten)]
    problem: Problem,
    #[serde(flatten)]
    figures: DepositFigures,
}

/// Schema of [`Problem::code`]: every code there is.
pub struct ProblemCode;

impl utoipa::PartialSchema for ProblemCode {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let table: String = Code::ALL
            .iter()
            .map(|code| format!("- `{}` ({}): {}\n", code.name(), code.status().as_u16(), code.title()))
            .collect();
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .enum_values(Some(Code::ALL.iter().map(|code| code.name())))
            .description(Some(table))
            .into()
    }
}

impl utoipa::ToSchema for ProblemCode {}

impl ApiError {
    /// The body that says so, after the log has been told.
    #[must_use]
    pub fn into_problem(self) -> Problem {
        let status = self.code.status();
        let id = status.is_server_error().then(|| hex::encode(rand::random::<[u8; 8]>()));
        if let Some(id) = &id {
            let cause = self.cause.as_ref().map(|cause| format!("{cause:#}"));
            tracing::error!(error_id = id, code = self.code.name(), cause, "request failed");
        } else {
            tracing::debug!(code = self.code.name(), field = self.field, detail = self.detail, "request refused");
        }
        Problem {
            kind: format!("urn:littoral:problem:{}", self.code.name()),
            title: self.code.title(),
            status: status.as_u16(),
            detail: self.detail,
            code: self.code.name(),
            field: self.field,
            id,
            deposit: self.deposit,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let again = self.retry_after_secs.or((status == StatusCode::SERVICE_UNAVAILABLE).then_some(1));
        let mut response = (status, Json(self.into_problem())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(secs) = again {
            headers.insert(header::RETRY_AFTER, secs.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_a_name_of_its_own_an_error_status_and_a_title() {
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
            assert!(!code.title().is_empty() && !code.title().starts_with(' '), "{code:?}");
        }
    }

    #[tokio::test]
    async fn a_failure_of_the_server_hides_its_cause_behind_an_id() {
        let response = ApiError::internal(anyhow::anyhow!("password=hunter2")).into_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(!json.to_string().contains("hunter2"));
        assert_eq!(json["id"].as_str().unwrap().len(), 16);
        assert_eq!(json["code"], "internal");
    }
}
