//! The API as a client sees it: docs/http.md.

pub mod blobs;
mod types;
mod vouchers;

pub use types::*;
pub use vouchers::*;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait that the API can ask for when there were too many requests: two of its windows.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// Longest silence while a content is sent.
const SILENCE: Duration = Duration::from_secs(60);

/// Why the API did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer, or half of one.
    #[error("the API at {api} does not answer: {}", chain_of(source))]
    Unreachable {
        /// Where it should be.
        api: Url,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// An answer with an error status.
    #[error("the API refuses {method} {path}: {} ({status}{})", problem.text(), problem.code_suffix())]
    Refused {
        /// Of the request.
        method: Method,
        /// Of the request.
        path: String,
        /// Of the answer.
        status: StatusCode,
        /// What the answer says.
        problem: Box<Problem>,
    },
    /// An answer that is not what docs/http.md promises.
    #[error("the API's answer to {method} {path} cannot be read: {reason}")]
    Malformed {
        /// Of the request.
        method: Method,
        /// Of the request.
        path: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

/// An error with what caused it: reqwest's own text stops at "error sending request".
fn chain_of(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

impl ApiError {
    /// The problem's code, or a word of ours.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Unreachable { .. } => "api_unreachable",
            Self::Refused { problem, .. } => problem.code.as_deref().unwrap_or("api_refuses"),
            Self::Malformed { .. } => "api_answer_malformed",
        }
    }

    /// Whether the same call may succeed in a while.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::UNAUTHORIZED
                    )
            }
            Self::Malformed { .. } => false,
        }
    }

    /// What a refusal says.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused { problem, .. } => Some(problem),
            _ => None,
        }
    }

    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A client of one API, signed in at need if it has a key.
#[derive(Clone)]
pub struct Api {
    base: Url,
    http: reqwest::Client,
    account: Option<Arc<Account>>,
}

struct Account {
    signer: PrivateKeySigner,
    chain_id: u64,
    token: Mutex<Option<String>>,
    clock: fn() -> DateTime<Utc>,
}

impl Api {
    /// A client that reads what everyone may read.
    pub fn new(base: &Url) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .user_agent(concat!("littoral/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("setting up HTTP")?;
        let mut base = base.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        Ok(Self { base, http, account: None })
    }

    /// A client that acts for `signer`'s account, on the chain with `chain_id`.
    #[must_use]
    pub fn signed_in(self, signer: PrivateKeySigner, chain_id: u64) -> Self {
        let account = Account { signer, chain_id, token: Mutex::default(), clock: market::clock::now };
        Self { account: Some(Arc::new(account)), ..self }
    }

    /// Where the API is.
    #[must_use]
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let request = self.request(Method::GET, path)?.timeout(ANSWER_WITHIN);
        let answer = self.send(Method::GET, path, request).await?;
        self.read(Method::GET, path, answer).await
    }

    /// `GET path` with a session, retried once with a new session if this one has ended.
    pub async fn get_signed_in<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let answer = self
            .with_session(|token| async move {
                let request = self.request(Method::GET, path)?.bearer_auth(token).timeout(ANSWER_WITHIN);
                self.send(Method::GET, path, request).await
            })
            .await?;
        self.read(Method::GET, path, answer).await
    }

    /// `POST path` with a session, retried once with a new session if this one has ended.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let answer = self.post_raw(path, body, ANSWER_WITHIN, None).await?;
        self.read(Method::POST, path, answer).await
    }

    /// As [`Self::post`]; the API remembers `key` for a day and does the thing once.
    pub async fn post_once<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        key: &str,
    ) -> Result<T, ApiError> {
        let answer = self.post_raw(path, body, ANSWER_WITHIN, Some(key)).await?;
        self.read(Method::POST, path, answer).await
    }

    /// As [`Self::post`], waiting up to `within`; nothing where the answer is 204.
    pub async fn poll<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<Option<T>, ApiError> {
        let answer = self.post_raw(path, body, within, None).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        self.read(Method::POST, path, answer).await.map(Some)
    }

    async fn post_raw(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
        key: Option<&str>,
    ) -> Result<Response, ApiError> {
        self.with_session(|token| async move {
            let mut request = self.request(Method::POST, path)?.bearer_auth(token).json(body).timeout(within);
            if let Some(key) = key {
                request = request.header("idempotency-key", key);
            }
            self.send(Method::POST, path, request).await
        })
        .await
    }

    /// Makes `call` with a session, and once more with a new one if the API does not know it any more.
    async fn with_session<T, F>(&self, call: impl Fn(String) -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        match call(self.session(None).await?).await {
            Err(ApiError::Refused { status: StatusCode::UNAUTHORIZED, .. }) => {}
            other => return other,
        }
        let stale = self.account.as_ref().and_then(|account| lock(&account.token).clone());
        call(self.session(stale).await?).await
    }

    /// A session's token that is not `stale`, signing in if there is none.
    async fn session(&self, stale: Option<String>) -> Result<String, ApiError> {
        let Some(account) = &self.account else { return Ok(String::new()) };
        let known = lock(&account.token).clone();
        if let Some(token) = known.filter(|token| stale.as_ref() != Some(token)) {
            return Ok(token);
        }
        let token = self.sign_in(account).await?;
        *lock(&account.token) = Some(token.clone());
        Ok(token)
    }

    /// Signs in with Ethereum (EIP-4361).
    async fn sign_in(&self, account: &Account) -> Result<String, ApiError> {
        let (nonce_path, verify_path) = ("lit-compute/auth/nonce", "lit-compute/auth/verify");
        let request = self.request(Method::POST, nonce_path)?.timeout(ANSWER_WITHIN);
        let answer = self.send(Method::POST, nonce_path, request).await?;
        let nonce: Nonce = self.read(Method::POST, nonce_path, answer).await?;

        let malformed =
            |reason: String| ApiError::Malformed { method: Method::POST, path: nonce_path.to_owned(), reason };
        let message = self.sign_in_message(account, &nonce.nonce).map_err(|error| malformed(error.to_string()))?;
        let signature =
            account.signer.sign_message_sync(message.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        let body = VerifyRequest { message, signature: signature.as_bytes().into() };
        let request = self.request(Method::POST, verify_path)?.json(&body).timeout(ANSWER_WITHIN);
        let answer = self.send(Method::POST, verify_path, request).await?;
        let session: Session = self.read(Method::POST, verify_path, answer).await?;
        tracing::debug!(wallet = %account.signer.address(), "signed in");
        Ok(session.token)
    }

    /// The text to sign. Its domain is the API that is really being talked to, so that it is of no use anywhere else.
    fn sign_in_message(&self, account: &Account, nonce: &str) -> anyhow::Result<String> {
        let message = siwe::Message {
            domain: self.base.authority().parse()?,
            address: account.signer.address().into_array(),
            statement: None,
            uri: self.base.as_str().parse()?,
            version: siwe::Version::V1,
            chain_id: account.chain_id,
            nonce: nonce.to_owned(),
            issued_at: (account.clock)().to_rfc3339_opts(SecondsFormat::Millis, true).parse()?,
            expiration_time: None,
            not_before: None,
            request_id: None,
            resources: Vec::new(),
        };
        Ok(message.to_string())
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, ApiError> {
        let url = self.base.join(path).map_err(|error| ApiError::Malformed {
            method: method.clone(),
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(self.http.request(method, url))
    }

    /// Sends, and once more after as long as the API asks for where there were too many requests; an error status becomes an
    /// error.
    async fn send(&self, method: Method, path: &str, request: RequestBuilder) -> Result<Response, ApiError> {
        let again = request.try_clone();
        let mut answer = request.send().await.map_err(|source| self.unreachable(source))?;
        if let (Some(again), Some(wait)) = (again, wait_asked(&answer)) {
            tracing::debug!(path, wait_secs = wait.as_secs(), "too many requests; waiting");
            tokio::time::sleep(wait).await;
            answer = again.send().await.map_err(|source| self.unreachable(source))?;
        }
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.unwrap_or_default();
        let problem = serde_json::from_str(&text).unwrap_or_else(|_| Problem {
            detail: (!text.is_empty()).then(|| text.chars().take(300).collect()),
            ..Problem::default()
        });
        Err(ApiError::Refused { method, path: path.to_owned(), status, problem: Box::new(problem) })
    }

    async fn read<T: DeserializeOwned>(&self, method: Method, path: &str, answer: Response) -> Result<T, ApiError> {
        let bytes = answer.bytes().await.map_err(|source| self.unreachable(source))?;
        serde_json::from_slice(&bytes).map_err(|error| ApiError::Malformed {
            method,
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    fn unreachable(&self, source: reqwest::Error) -> ApiError {
        ApiError::Unreachable { api: self.base.clone(), source: source.without_url() }
    }
}

/// How long the API asks to wait before the same request is sent again, because there were too many.
fn wait_asked(answer: &Response) -> Option<Duration> {
    if answer.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let secs: u64 = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(secs)).filter(|wait| *wait <= LONGEST_WAIT)
}

/// The token behind a lock that no panic can poison: nothing that can panic runs under it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_in_message_names_the_api_that_is_talked_to() {
        let signer = PrivateKeySigner::random();
        let api =
            Api::new(&"https://api.example:8443/market".parse().unwrap()).unwrap().signed_in(signer.clone(), 31337);
        let text = api.sign_in_message(api.account.as_ref().unwrap(), "abcdefgh12345678").unwrap();
        let message: siwe::Message = text.parse().unwrap();
        assert_eq!(message.domain.as_str(), "api.example:8443");
        assert_eq!(message.address, signer.address().into_array());
        assert_eq!((message.chain_id, message.nonce.as_str()), (31337, "abcdefgh12345678"));
        assert_eq!(
            api.request(Method::GET, "lit-compute/chain").unwrap().build().unwrap().url().path(),
            "/market/lit-compute/chain"
        );
    }

    #[tokio::test]
    async fn an_api_that_is_not_there_is_named_in_the_error() {
        let api = Api::new(&"http://127.0.0.1:1".parse().unwrap()).unwrap();
        let error = api.get::<serde_json::Value>("lit-compute/chain").await.unwrap_err();
        assert!(error.is_transient());
        let text = error.to_string();
        assert!(text.contains("http://127.0.0.1:1/") && text.contains("refused"), "{text}");
    }
}
