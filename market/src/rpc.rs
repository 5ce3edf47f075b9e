//! Connecting to a chain, and making sure that it is the one the manifest means.
//!
//! URLs of endpoints carry keys, so no error and no metric has them: endpoints are known by their hosts.

use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use alloy::primitives::Address;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{RequestPacket, ResponsePacket};
use alloy::transports::http::{Client, Http, reqwest};
use alloy::transports::utils::guess_local_url;
use alloy::transports::{RpcError as JsonRpcError, TransportError, TransportErrorKind, TransportFut};
use tower::Service;
use url::Url;

use crate::deployment::Deployment;

/// An endpoint that takes longer is passed over, if there is another.
const FAILOVER_AFTER: Duration = Duration::from_secs(15);

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// It does not answer, or with an error.
    #[error("the chain's RPC does not answer: {0}")]
    Transport(#[from] TransportError),
    /// It serves another chain.
    #[error("the RPC serves chain {actual}, the deployments manifest is for chain {expected}")]
    WrongChain {
        /// As the manifest has it.
        expected: u64,
        /// As the endpoint says.
        actual: u64,
    },
    /// No contract is where the manifest says.
    #[error("there is no contract at {address}, where the deployments manifest has the {name}")]
    NoContract {
        /// Which contract.
        name: &'static str,
        /// Where it should be.
        address: Address,
    },
}

/// A read-only provider for `rpc_url`, without any checks.
#[must_use]
pub fn provider(rpc_url: &Url) -> DynProvider {
    failover(std::slice::from_ref(rpc_url))
}

/// A read-only provider for all of `rpc_urls`, without any checks: when one cannot be reached, the next is asked.
#[must_use]
pub fn failover(rpc_urls: &[Url]) -> DynProvider {
    let is_local = rpc_urls.iter().all(|url| guess_local_url(url.as_str()));
    let endpoints = rpc_urls.iter().map(Endpoint::new).collect();
    let transport = Failover { endpoints, preferred: Arc::default() };
    ProviderBuilder::new().disable_recommended_fillers().connect_client(RpcClient::new(transport, is_local)).erased()
}

/// One provider each, with a name that has nothing secret in it.
#[must_use]
pub fn providers(rpc_urls: &[Url]) -> Vec<(String, DynProvider)> {
    rpc_urls.iter().enumerate().map(|(i, url)| (format!("{i}:{}", host(url)), provider(url))).collect()
}

/// The number of the latest block.
pub async fn head(provider: &impl Provider) -> Result<u64, RpcError> {
    Ok(provider.get_block_number().await?)
}

/// A read-only provider for `rpc_urls`, after checking that it serves the chain of `deployment` and has its contracts.
pub async fn connect(rpc_urls: &[Url], deployment: &Deployment) -> Result<DynProvider, RpcError> {
    let provider = failover(rpc_urls);
    verify(&provider, deployment).await?;
    Ok(provider)
}

/// Checks that `provider` serves the chain of `deployment` and has its contracts.
pub async fn verify(provider: &impl Provider, deployment: &Deployment) -> Result<(), RpcError> {
    let actual = provider.get_chain_id().await?;
    if actual != deployment.chain_id {
        return Err(RpcError::WrongChain { expected: deployment.chain_id, actual });
    }
    for (name, address) in [("escrow", deployment.escrow), ("registry", deployment.registry)] {
        if provider.get_code_at(address).await?.is_empty() {
            return Err(RpcError::NoContract { name, address });
        }
    }
    Ok(())
}

/// Host and port, which say enough and nothing secret.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or("endpoint");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A transport over several endpoints, tried in turn from the one that answered last.
#[derive(Debug, Clone)]
struct Failover {
    endpoints: Arc<[Endpoint]>,
    preferred: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Endpoint {
    http: Http<Client>,
    host: String,
}

impl Endpoint {
    fn new(url: &Url) -> Self {
        Self { http: Http::new(url.clone()), host: host(url) }
    }

    async fn send(&self, request: RequestPacket) -> Result<ResponsePacket, TransportError> {
        self.http.clone().call(request).await.map_err(|error| without_url(&self.host, error))
    }
}

impl Failover {
    async fn send(self, request: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let (count, first) = (self.endpoints.len(), self.preferred.load(Relaxed));
        let mut tried = 0;
        loop {
            let at = (first + tried) % count;
            tried += 1;
            let sending = self.endpoints[at].send(request.clone());
            let is_last = tried == count;
            let answer = if is_last {
                sending.await
            } else {
                tokio::time::timeout(FAILOVER_AFTER, sending)
                    .await
                    .unwrap_or_else(|_| Err(TransportErrorKind::custom_str("no answer in time")))
            };
            match answer {
                Err(error) if !is_last => {
                    tracing::debug!(%error, provider = self.endpoints[at].host, "asking another endpoint");
                }
                answer => {
                    if answer.is_ok() {
                        self.preferred.store(at, Relaxed);
                    }
                    return answer;
                }
            }
        }
    }
}

impl Service<RequestPacket> for Failover {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RequestPacket) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// The same error, but told without the endpoint's URL.
fn without_url(host: &str, error: TransportError) -> TransportError {
    match error {
        JsonRpcError::Transport(TransportErrorKind::Custom(error)) => match error.downcast::<reqwest::Error>() {
            Ok(error) => TransportErrorKind::custom_str(&reasons(host, &error.without_url())),
            Err(error) => JsonRpcError::Transport(TransportErrorKind::Custom(error)),
        },
        other => other,
    }
}

fn reasons(host: &str, error: &dyn Error) -> String {
    let mut text = format!("{host}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        write!(text, ": {error}").ok();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_do_not_tell_the_urls_secrets() {
        let url: Url = "http://user:hunter2@127.0.0.1:1/v2/s3cr3t?key=t0k3n".parse().unwrap();
        let error = provider(&url).get_chain_id().await.unwrap_err();
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(text.contains("127.0.0.1:1"), "{text}");
            assert!(!["hunter2", "s3cr3t", "t0k3n"].iter().any(|secret| text.contains(secret)), "{text}");
        }
        let (name, _) = providers(&[url]).remove(0);
        assert_eq!(name, "0:127.0.0.1:1");
    }
}
