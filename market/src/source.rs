//! Reading the chain. Whatever an endpoint returns is checked against what was asked for and against what others say, since
//! endpoints fail, lag, leave out and are often several nodes that do not agree.
//!
//! Everything hangs on hashes: headers follow one another by their parents' hashes, logs name the hash of their block, and
//! ranges of numbers are read only below a block whose hash is the same before and after.

mod backfill;
mod finality;
mod headers;
mod logs;
mod promise;
mod providers;
mod ranges;
mod refusal;
mod wire;

use std::fmt;
use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::providers::DynProvider;
use alloy::transports::{TransportError, TransportResult};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

use crate::db::chain::Block;
use crate::fold::{ChainEvent, Contracts, DecodeError};

pub use backfill::Backfill;
pub use logs::Section;
pub use ranges::RangeSize;
pub use refusal::Allowed;
pub use wire::Header;

use promise::Promises;
use providers::{Providers, Who};

/// The chain, as its endpoints show it.
#[derive(Clone)]
pub struct Source {
    providers: Arc<Providers>,
    contracts: Contracts,
    promises: Arc<Promises>,
    /// Whether endpoints take JSON-RPC batches.
    batches: Arc<AtomicBool>,
    /// When the endpoints that are not preferred were last asked for their latest block.
    looked_at: Arc<Mutex<Option<Instant>>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("providers", &self.providers).finish_non_exhaustive()
    }
}

/// A stretch of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Its blocks in order; those without events may be missing, but not the last.
    pub blocks: Vec<Block>,
    /// All events in it, in order.
    pub events: Vec<ChainEvent>,
}

/// Why the chain could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// An endpoint cannot be reached, or what it sends is no answer.
    #[error("{what} of {provider}: {error}")]
    Rpc {
        /// What was asked.
        what: &'static str,
        /// Who was asked.
        provider: String,
        /// The transport's word.
        error: TransportError,
    },
    /// An endpoint answers with an error.
    #[error("{what} of {provider}: {error}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Who was asked.
        provider: String,
        /// The endpoint's word.
        error: TransportError,
    },
    /// An endpoint wants less to be asked for at once.
    #[error("{what} of {provider} is too much at once: {error}")]
    TooMuch {
        /// What was asked.
        what: &'static str,
        /// Who was asked.
        provider: String,
        /// What would be answered.
        allowed: Allowed,
        /// The endpoint's word.
        error: TransportError,
    },
    /// An endpoint seems to have given a part of what was asked for without saying so.
    #[error("the {logs} logs that {provider} gives are not all")]
    CutOff {
        /// Who was asked.
        provider: String,
        /// How many it gave.
        logs: usize,
        /// What it does give.
        allowed: Allowed,
    },
    /// All endpoints are asked too much.
    #[error("{what} of {provider}: asked too often: {error}")]
    Busy {
        /// What was asked.
        what: &'static str,
        /// Who was asked.
        provider: String,
        /// When to ask again, if the endpoint says.
        retry_after: Option<Duration>,
        /// The endpoint's word.
        error: TransportError,
    },
    /// No answer in time.
    #[error("{what} of {provider}: no answer in time")]
    Timeout {
        /// What was asked.
        what: &'static str,
        /// Who was asked.
        provider: String,
    },
    /// The answers do not fit together: the chain is being reorganised, or an endpoint is several nodes, or wrong.
    #[error("the endpoints contradict themselves or each other: {0}")]
    Inconsistent(String),
    /// While settled blocks were read, the chain branched off below them.
    #[error("block {} ({}) is no longer on the chain", .0.number, .0.hash)]
    Branched(crate::db::chain::BlockId),
    /// A log of our contracts is not understood. Nothing to retry.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A task that reads ended early.
    #[error("reading ended early: {0}")]
    Reader(String),
}

impl Source {
    /// Reads the logs of `contracts` through `providers`, the preferred one first, which logs and metrics number from 0.
    ///
    /// # Panics
    ///
    /// If there is no provider.
    #[must_use]
    pub fn new(providers: Vec<DynProvider>, contracts: Contracts) -> Self {
        Self::named(providers.into_iter().enumerate().map(|(i, one)| (i.to_string(), one)).collect(), contracts)
    }

    /// As [`Self::new`], with names for logs and metrics.
    ///
    /// # Panics
    ///
    /// If there is no provider.
    #[must_use]
    pub fn named(providers: Vec<(String, DynProvider)>, contracts: Contracts) -> Self {
        assert!(!providers.is_empty(), "a chain is read through at least one provider");
        Self {
            providers: Arc::new(Providers::new(providers)),
            promises: Arc::new(Promises::of(&contracts)),
            contracts,
            batches: Arc::new(AtomicBool::new(true)),
            looked_at: Arc::default(),
        }
    }

    /// The endpoint that is best at present.
    #[must_use]
    pub fn provider(&self) -> &DynProvider {
        self.providers.provider(self.providers.ranking().first().copied().unwrap_or_default())
    }

    /// How many endpoints there are.
    #[must_use]
    pub fn provider_count(&self) -> usize {
        self.providers.len()
    }

    /// The contracts.
    #[must_use]
    pub fn contracts(&self) -> &Contracts {
        &self.contracts
    }

    /// `who` gave an answer that cannot be true.
    fn wrong(&self, who: Who, what: String) -> SourceError {
        self.providers.lied(who, &what);
        SourceError::Inconsistent(what)
    }
}

/// Tells Prometheus what the metrics of reading mean; values of `provider` are as in [`Source::named`].
pub fn describe_metrics() {
    describe_counter!("littoral_rpc_requests_total", "requests to an endpoint, by provider, method and outcome");
    describe_histogram!("littoral_rpc_seconds", Unit::Seconds, "time until an endpoint answered");
    describe_gauge!("littoral_rpc_head_block", "the latest block that an endpoint has shown");
    describe_counter!(
        "littoral_rpc_wrong_answers_total",
        "answers of an endpoint that contradict others or cannot be true"
    );
    describe_counter!(
        "littoral_rpc_disagreements_total",
        "times that endpoints had different blocks where one is final"
    );
    describe_counter!(
        "littoral_rpc_broken_promises_total",
        "answers without logs that the block's bloom filter promises"
    );
}

/// Does what would keep other tasks waiting.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| SourceError::Reader(error.to_string()))
}

/// Asks one endpoint up to three times. What it refuses is not asked again.
pub async fn ask<T, A>(what: &'static str, request: impl Fn() -> A) -> Result<T, SourceError>
where
    A: Future<Output = TransportResult<T>>,
{
    providers::ask(what, request).await
}
