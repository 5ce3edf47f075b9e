//! Connecting to a chain, and making sure that it is the one the manifest means.

use alloy::primitives::Address;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::transports::TransportError;
use url::Url;

use crate::deployment::Deployment;

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
    ProviderBuilder::new().disable_recommended_fillers().connect_http(rpc_url.clone()).erased()
}

/// A read-only provider for `rpc_url`, after checking that it serves the chain of `deployment` and has its contracts.
pub async fn connect(rpc_url: &Url, deployment: &Deployment) -> Result<DynProvider, RpcError> {
    let provider = provider(rpc_url);
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
