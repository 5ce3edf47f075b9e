//! The chain as requesters and operators use it: checked before anything is sent, and what was sent waited for.

use std::time::{Duration, Instant};

use alloy::network::EthereumWallet;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::providers::{DynProvider, PendingTransactionError, Provider, ProviderBuilder};
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{Eip712Domain, SolInterface};
use alloy::transports::TransportError;
use anyhow::Context as _;
use market::abi::IJobEscrow::{IJobEscrowErrors, IJobEscrowInstance};
use market::abi::INodeRegistry::{INodeRegistryErrors, INodeRegistryInstance};
use market::deployment::Deployment;
use market::rpc::RpcError;
use serde::Serialize;
use url::Url;

use crate::output::Out;

/// How long a transaction may take to be mined before the command gives up waiting. The transaction may still be mined
/// afterwards.
const MINED_WITHIN: Duration = Duration::from_secs(180);

/// Why a transaction did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The endpoint is down, or not the one that the manifest means.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The contract refuses; nothing was sent.
    #[error("{what} would fail: {reason}")]
    Refused {
        /// The call.
        what: &'static str,
        /// The contract's error, in words.
        reason: String,
    },
    /// The endpoint did not take the transaction.
    #[error("{what} was not sent: {source}")]
    NotSent {
        /// The call.
        what: &'static str,
        /// The endpoint's reason.
        source: TransportError,
    },
    /// It was sent and is not mined yet.
    #[error("{what} was sent as {tx_hash} and is not mined after {} s; it may still be: look before you repeat it", MINED_WITHIN.as_secs())]
    Timeout {
        /// The call.
        what: &'static str,
        /// The transaction.
        tx_hash: B256,
    },
    /// It was sent and the endpoint cannot say what became of it.
    #[error("{what} was sent as {tx_hash}, but asking for its receipt failed: {reason}; look before you repeat it")]
    Unknown {
        /// The call.
        what: &'static str,
        /// The transaction.
        tx_hash: B256,
        /// The endpoint's reason.
        reason: String,
    },
    /// It was mined and changed nothing.
    #[error("{what} was mined as {tx_hash} but reverted")]
    Reverted {
        /// The call.
        what: &'static str,
        /// The transaction.
        tx_hash: B256,
    },
}

impl ChainError {
    /// A stable word for the error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rpc(RpcError::Transport(_)) => "rpc_unreachable",
            Self::Rpc(RpcError::WrongChain { .. }) => "wrong_chain",
            Self::Rpc(RpcError::NoContract { .. }) => "no_contract",
            Self::Refused { .. } => "contract_refuses",
            Self::NotSent { .. } => "transaction_not_sent",
            Self::Timeout { .. } => "transaction_not_mined",
            Self::Unknown { .. } => "transaction_unknown",
            Self::Reverted { .. } => "transaction_reverted",
        }
    }

    /// The transaction, if one was sent.
    #[must_use]
    pub fn tx_hash(&self) -> Option<B256> {
        match self {
            Self::Timeout { tx_hash, .. } | Self::Unknown { tx_hash, .. } | Self::Reverted { tx_hash, .. } => {
                Some(*tx_hash)
            }
            _ => None,
        }
    }
}

/// A deployment of the contracts, on an endpoint that is known to serve it.
#[derive(Clone)]
pub struct Chain {
    /// Where the contracts are.
    pub deployment: Deployment,
    /// Reads only.
    pub provider: DynProvider,
}

impl Chain {
    /// Connects and checks the chain's id and that there is code where the manifest has the contracts.
    pub async fn connect(rpc_url: &Url, deployment: Deployment) -> Result<Self, ChainError> {
        let provider = market::rpc::connect(std::slice::from_ref(rpc_url), &deployment).await?;
        Ok(Self { deployment, provider })
    }

    /// The escrow, for reading.
    #[must_use]
    pub fn escrow(&self) -> IJobEscrowInstance<DynProvider> {
        IJobEscrowInstance::new(self.deployment.escrow, self.provider.clone())
    }

    /// The registry, for reading.
    #[must_use]
    pub fn registry(&self) -> INodeRegistryInstance<DynProvider> {
        INodeRegistryInstance::new(self.deployment.registry, self.provider.clone())
    }

    /// The EIP-712 domain of the escrow.
    #[must_use]
    pub fn domain(&self) -> Eip712Domain {
        self.deployment.domain()
    }

    /// The time of the latest block, unix seconds.
    pub async fn block_time(&self) -> anyhow::Result<u64> {
        let block = self.provider.get_block(alloy::eips::BlockId::latest()).await?;
        Ok(block.ok_or_else(|| anyhow::anyhow!("the chain has no latest block"))?.header.timestamp)
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mined {
    /// The transaction.
    pub tx_hash: B256,
    /// Its block.
    pub block_number: Option<u64>,
    /// Gas it used.
    pub gas_used: u64,
    /// From sending to the receipt.
    pub seconds: f64,
    /// The whole receipt.
    #[serde(skip)]
    pub receipt: TransactionReceipt,
}

/// An account that sends transactions to one deployment.
pub struct Wallet {
    /// What it sends to.
    pub chain: Chain,
    /// Who sends.
    pub address: Address,
    signing: DynProvider,
    out: Out,
}

impl Wallet {
    /// `signer` on `chain`.
    #[must_use]
    pub fn new(chain: Chain, rpc_url: &Url, signer: PrivateKeySigner, out: Out) -> Self {
        let address = signer.address();
        let signing =
            ProviderBuilder::new().wallet(EthereumWallet::from(signer)).connect_http(rpc_url.clone()).erased();
        signing.client().set_poll_interval(poll_interval(rpc_url));
        Self { chain, address, signing, out }
    }

    /// Says what is about to happen, sends it, and waits until it is mined. A call that would revert is refused by the
    /// endpoint's estimate, and nothing is sent.
    pub async fn send(&self, what: &'static str, plan: &str, call: TransactionRequest) -> Result<Mined, ChainError> {
        self.out.note(&format!("{plan} (chain {}, from {})", self.chain.deployment.chain_id, self.address));
        let started = Instant::now();
        let call = call.from(self.address);
        let pending = self.signing.send_transaction(call).await.map_err(|source| match explain(&source) {
            Some(reason) => ChainError::Refused { what, reason },
            None => ChainError::NotSent { what, source },
        })?;
        let tx_hash = *pending.tx_hash();
        let spinner = self.out.spinner(format!("{what}: waiting for {tx_hash}"));
        let receipt = pending.with_timeout(Some(MINED_WITHIN)).get_receipt().await;
        spinner.finish_and_clear();
        let receipt = receipt.map_err(|error| match error {
            PendingTransactionError::TxWatcher(_) => ChainError::Timeout { what, tx_hash },
            other => ChainError::Unknown { what, tx_hash, reason: other.to_string() },
        })?;
        if !receipt.status() {
            return Err(ChainError::Reverted { what, tx_hash });
        }
        Ok(Mined {
            tx_hash,
            block_number: receipt.block_number,
            gas_used: receipt.gas_used,
            seconds: started.elapsed().as_secs_f64(),
            receipt,
        })
    }
}

/// Local chains mine at once; others every few seconds.
fn poll_interval(rpc_url: &Url) -> Duration {
    let is_local = matches!(rpc_url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    if is_local { Duration::from_millis(100) } else { Duration::from_secs(2) }
}

/// The contract's reason in `error`, if it is one.
fn explain(error: &TransportError) -> Option<String> {
    let response = error.as_error_resp()?;
    let data: Bytes = response.as_revert_data()?;
    Some(explain_revert(&data).unwrap_or_else(|| response.message.to_string()))
}

/// A revert's data in words.
fn explain_revert(data: &[u8]) -> Option<String> {
    if let Ok(error) = IJobEscrowErrors::abi_decode(data) {
        return Some(explain_escrow(&error));
    }
    if let Ok(error) = INodeRegistryErrors::abi_decode(data) {
        return Some(explain_registry(&error));
    }
    alloy::sol_types::decode_revert_reason(data)
}

fn explain_escrow(error: &IJobEscrowErrors) -> String {
    use IJobEscrowErrors as E;
    match error {
        E::Insufficient(e) => format!("the account has {}, {} are needed", e.available, e.needed),
        E::StillThawing(e) => format!("the funds thaw until {}", time(e.thawEnd)),
        E::DeadlinePassed(e) => format!("the deadline {} has passed", time(e.deadline)),
        E::DeadlineTooFar(e) => format!("the deadline must be at most {}", time(e.latest)),
        E::WindowTooLong(e) => format!("the challenge window must be at most {} s", e.longest),
        E::WindowRequired(_) => "an order that names no node needs a challenge window".into(),
        E::JobExists(e) => format!("the job {} was opened before", e.jobId),
        E::NotRequester(e) => format!("the order is by {}, not by {}", e.requester, e.caller),
        E::ZeroAmount(_) => "the amount is zero".into(),
        E::NotSettler(e) => {
            format!("{} may not redeem the vouchers of {}; see `littoral node settler`", e.caller, e.node)
        }
        E::SessionInForce(e) => format!(
            "the key may spend {} until {}, which can be extended but not cut; revoke it first",
            e.left,
            time(e.expiry)
        ),
        E::NotCancellable(e) => format!("the job {} is settled, refunded or cancelled already", e.jobId),
        E::WrongState(e) => format!("the job is in state {:?}", e.state),
        E::TooLate(e) => format!("the time for it ended at {}", time(e.end)),
        E::NoArbiter(_) => "the order names no arbiter".into(),
        E::NotArbiter(e) => format!("the order's arbiter is {}, not {}", e.arbiter, e.caller),
        E::Paused(_) => "deposits and new jobs are paused".into(),
        other => format!("{other:?}"),
    }
}

fn explain_registry(error: &INodeRegistryErrors) -> String {
    use INodeRegistryErrors as E;
    match error {
        E::AlreadyRegistered(e) => format!("{} is registered already; see `littoral node update`", e.node),
        E::NodeIdTaken(e) => format!("the node id {} is taken", e.nodeId),
        E::NotRegistered(e) => format!("{} is not registered; see `littoral node register`", e.node),
        E::InsufficientStake(e) => format!("the stake is {}, {} are needed", e.available, e.needed),
        E::StillUnbonding(e) => format!("the stake unbonds until {}", time(e.unbondEnd)),
        E::NothingUnbonding(_) => "no stake is unbonding".into(),
        E::ZeroCapacity(_) => "the capacity is zero".into(),
        E::TooLong(e) => format!("{} is {} long, at most {} is allowed", e.field, e.length, e.longest),
        other => format!("{other:?}"),
    }
}

/// Unix seconds as RFC 3339.
#[must_use]
pub fn time(unix_secs: u64) -> String {
    i64::try_from(unix_secs)
        .ok()
        .and_then(|secs| chrono::DateTime::from_timestamp(secs, 0))
        .map_or_else(|| unix_secs.to_string(), |time| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
}

/// Unix seconds: the later of this machine's clock and the latest block's, since both judge a deadline.
pub async fn now_on_both(chain: &Chain) -> anyhow::Result<u64> {
    let here = u64::try_from(market::clock::now().timestamp()).context("this machine's clock is before 1970")?;
    Ok(here.max(chain.block_time().await?))
}

/// The native coin's place in the contracts.
pub const NATIVE: Address = Address::ZERO;

/// The wallet's balance of `token`, outside the contracts.
pub async fn wallet_balance(chain: &Chain, owner: Address, token: Address) -> anyhow::Result<U256> {
    if token == NATIVE {
        return Ok(chain.provider.get_balance(owner).await?);
    }
    let token = market::abi::IERC20::new(token, chain.provider.clone());
    Ok(token.balanceOf(owner).call().await?)
}
