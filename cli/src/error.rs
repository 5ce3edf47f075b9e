//! Why a command fails, as exit code and as JSON.

use serde_json::{Value, json};

use crate::api::ApiError;
use crate::chain::ChainError;

/// Exit code of a command. The numbers are documented in docs/cli.md and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Refused, unreachable or broken; standard error says why.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The job failed, or expired without a result.
    JobFailed = 3,
    /// The job's money went back to the requester.
    Refunded = 4,
    /// What was waited for did not happen in time.
    Timeout = 5,
    /// What came back is not what was asked for: bytes, ids, chain or contracts do not match.
    Unverified = 6,
}

/// A failure that has an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// Something came back that is not what was asked for.
    #[error("{0}")]
    Unverified(String),
    /// A wait ended.
    #[error("{0}")]
    Timeout(String),
    /// The job ended without a result.
    #[error("{0}")]
    JobFailed(String),
    /// The job's money went back.
    #[error("{0}")]
    Refunded(String),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Unverified(_) => Exit::Unverified,
            Self::Timeout(_) => Exit::Timeout,
            Self::JobFailed(_) => Exit::JobFailed,
            Self::Refunded(_) => Exit::Refunded,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::Unverified(_) => "unverified",
            Self::Timeout(_) => "timeout",
            Self::JobFailed(_) => "job_failed",
            Self::Refunded(_) => "refunded",
        }
    }
}

/// The exit code for `error`.
#[must_use]
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.exit();
    }
    match error.downcast_ref::<ChainError>() {
        Some(ChainError::Rpc(market::rpc::RpcError::Transport(_))) | None => Exit::Failure,
        Some(ChainError::Rpc(_)) => Exit::Unverified,
        Some(ChainError::Timeout { .. }) => Exit::Timeout,
        Some(_) => Exit::Failure,
    }
}

/// `error` as the JSON object that `--json` puts on standard error: `error` is the message, `code` a stable word; what
/// the API refused carries its `status` and, if it names one, the `field`.
#[must_use]
pub fn to_json(error: &anyhow::Error) -> Value {
    let message = format!("{error:#}");
    if let Some(api) = error.downcast_ref::<ApiError>() {
        let mut json = json!({ "error": message, "code": api.code() });
        if let ApiError::Refused { status, problem, .. } = api {
            json["status"] = json!(status.as_u16());
            if let Some(field) = &problem.field {
                json["field"] = json!(field);
            }
        }
        return json;
    }
    let code = error
        .downcast_ref::<Failure>()
        .map(Failure::code)
        .or_else(|| error.downcast_ref::<ChainError>().map(ChainError::code))
        .unwrap_or("failed");
    let mut json = json!({ "error": message, "code": code });
    if let Some(hash) = error.downcast_ref::<ChainError>().and_then(ChainError::tx_hash) {
        json["txHash"] = json!(hash);
    }
    json
}
