//! From a raw log of one of our contracts to what it says.
//!
//! The contracts are immutable, so a log of theirs that is not understood means that the wrong contract is indexed or that
//! this code is wrong: an error, never something to skip.

use std::collections::BTreeSet;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::sol_types::{Eip712Domain, SolEvent, SolEventInterface, SolStruct, SolType, sol_data};
use chrono::{DateTime, Utc};

use super::Key;
use crate::abi::{
    IJobEscrow::{self, IJobEscrowEvents},
    INodeRegistry::{self, INodeRegistryEvents},
    IOwnable2Step::{self, IOwnable2StepEvents},
    JobSpec, Order,
};
use crate::confirmation::Policy;
use crate::deployment::Deployment;
use crate::typed_data;

/// A log of the escrow or the registry as a node returned it, and where in the chain it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawLog {
    /// Number of its block.
    pub block_number: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// Timestamp of its block.
    pub mined_at: DateTime<Utc>,
    /// Its transaction.
    pub tx_hash: B256,
    /// Its place in the block.
    pub log_index: u64,
    /// Who emitted it.
    pub contract: Address,
    /// Its topics.
    pub topics: Vec<B256>,
    /// Its data.
    pub data: Bytes,
}

/// The contracts whose logs are read, on their chain.
#[derive(Debug, Clone)]
pub struct Contracts {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// The `JobEscrow`.
    pub escrow: Address,
    /// The `NodeRegistry`.
    pub registry: Address,
    /// EIP-712 domain of the escrow.
    pub domain: Eip712Domain,
    /// When what they say counts.
    pub confirmation: Policy,
}

impl From<&Deployment> for Contracts {
    fn from(deployment: &Deployment) -> Self {
        Self {
            chain_id: deployment.chain_id,
            escrow: deployment.escrow,
            registry: deployment.registry,
            domain: deployment.domain(),
            confirmation: deployment.confirmation.clone(),
        }
    }
}

/// A log and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainEvent {
    /// The log.
    pub log: RawLog,
    /// Its meaning.
    pub event: Event,
}

/// An event of our contracts. Where one carries text, the text has been made fit to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the variants are the events of IJobEscrow.sol and INodeRegistry.sol, documented there
pub enum Event {
    Deposited(IJobEscrow::Deposited),
    Thawing(IJobEscrow::Thawing),
    Withdrawn(IJobEscrow::Withdrawn),
    JobOpened(Box<OpenedJob>),
    ResultSubmitted(IJobEscrow::ResultSubmitted),
    JobPaid(IJobEscrow::JobPaid),
    JobRefunded(IJobEscrow::JobRefunded),
    Skipped(IJobEscrow::Skipped),
    EarnedWithdrawn(IJobEscrow::EarnedWithdrawn),
    ChannelUpdated(IJobEscrow::ChannelUpdated),
    VouchersRedeemed(Redeemed),
    VoucherSkipped(IJobEscrow::VoucherSkipped),
    ReservationChanged(IJobEscrow::ReservationChanged),
    SessionUpdated(IJobEscrow::SessionUpdated),
    SettlerSet(IJobEscrow::SettlerSet),
    JobCancelling(IJobEscrow::JobCancelling),
    JobDisputed(IJobEscrow::JobDisputed),
    JobResolved(IJobEscrow::JobResolved),
    FeeTaken(IJobEscrow::FeeTaken),
    FeesWithdrawn(IJobEscrow::FeesWithdrawn),
    FeeBpsSet(IJobEscrow::FeeBpsSet),
    EscrowPausedSet(IJobEscrow::PausedSet),
    RegistryPausedSet(INodeRegistry::PausedSet),
    MinStakeSet(INodeRegistry::MinStakeSet),
    BondLocked(INodeRegistry::BondLocked),
    BondReleased(INodeRegistry::BondReleased),
    Slashed(INodeRegistry::Slashed),
    OwnershipTransferStarted(IOwnable2Step::OwnershipTransferStarted),
    OwnershipTransferred(IOwnable2Step::OwnershipTransferred),
    NodeUpdated(Box<INodeRegistry::NodeUpdated>),
    Staked(INodeRegistry::Staked),
    Unbonding(INodeRegistry::Unbonding),
    Unbonded(INodeRegistry::Unbonded),
}

/// What `JobOpened` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedJob {
    /// The order's digest.
    pub job_id: B256,
    /// The whole order; its `specHash` is that of the bytes on the chain.
    pub order: Order,
    /// The spec as it can be stored.
    pub spec: JobSpec,
    /// Whether `spec` is byte for byte what is on the chain.
    pub spec_valid: bool,
    /// The requester's free balance afterwards.
    pub free: U256,
}

/// What `VouchersRedeemed` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeemed {
    /// Who was credited.
    pub node: Address,
    /// Zero for the native coin.
    pub token: Address,
    /// The node's balance afterwards.
    pub earned: U256,
    /// One for each voucher that had effect, in the order of the batch.
    pub redemptions: Vec<Redemption>,
}

/// What one voucher did to its channel. All amounts but `drawn` as they stand afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redemption {
    /// Who pays.
    pub requester: Address,
    /// All that the channel ever paid.
    pub claimed: U256,
    /// Of the requester's account; zero where nothing was drawn.
    pub free: U256,
    /// Of the requester's account; zero where nothing was drawn.
    pub thawing: U256,
    /// What came from the account; the rest came from the reservation.
    pub drawn: U256,
    /// What is left of the reservation.
    pub reserved: U256,
    /// Orders up to this nonce are paid for.
    pub covered_nonce: u64,
}

impl Redemption {
    /// Bytes of one in the event.
    const LENGTH: usize = 96;

    /// Whether it touched the requester's account, so that `free` and `thawing` tell.
    #[must_use]
    pub fn has_drawn(&self) -> bool {
        !self.drawn.is_zero()
    }

    /// Reads one as the event packs it: big-endian, requester (20 bytes), claimed (12), free (16), thawing (16), drawn (12),
    /// reserved (12), coveredNonce (8).
    fn read(packed: &[u8; Self::LENGTH]) -> Self {
        let number = |from: usize, to: usize| U256::from_be_slice(&packed[from..to]);
        Self {
            requester: Address::from_slice(&packed[..20]),
            claimed: number(20, 32),
            free: number(32, 48),
            thawing: number(48, 64),
            drawn: number(64, 76),
            reserved: number(76, 88),
            covered_nonce: number(88, 96).to(),
        }
    }
}

/// Why a log of our contracts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not one of the contract's events, or not encoded as one.
    #[error("log {log_index} of block {block_hash} by {contract} is not an event of that contract: {reason}")]
    Undecodable {
        /// Who emitted it.
        contract: Address,
        /// Its block.
        block_hash: B256,
        /// Its place there.
        log_index: u64,
        /// The decoder's reason.
        reason: String,
    },
    /// The job's id is not the digest of its order: another contract, chain or version of the typed data.
    #[error("log {log_index} of block {block_hash} opens job {job_id}, but its order's digest is {digest}")]
    WrongJobId {
        /// As the event says.
        job_id: B256,
        /// As it follows from the order.
        digest: B256,
        /// The log's block.
        block_hash: B256,
        /// Its place there.
        log_index: u64,
    },
}

/// `JobOpened`'s data with `bytes` where it has `string`: the encoding is the same, and nothing is lost in reading.
type JobOpenedData = (
    sol_data::Address,
    sol_data::Uint<128>,
    sol_data::Address,
    sol_data::Uint<64>,
    sol_data::Uint<32>,
    sol_data::Address,
    sol_data::Uint<16>,
    sol_data::Uint<64>,
    (sol_data::Bytes, sol_data::Bytes, sol_data::Bytes),
    sol_data::Uint<256>,
);

impl ChainEvent {
    /// Reads `log`.
    pub fn decode(log: RawLog, contracts: &Contracts) -> Result<Self, DecodeError> {
        let undecodable = |reason: String| DecodeError::Undecodable {
            contract: log.contract,
            block_hash: log.block_hash,
            log_index: log.log_index,
            reason,
        };
        let event = if log.contract == contracts.escrow {
            decode_escrow(&log).map_err(|error| undecodable(error.to_string()))?
        } else if log.contract == contracts.registry {
            decode_registry(&log).map_err(|error| undecodable(error.to_string()))?
        } else {
            return Err(undecodable("it is neither the escrow nor the registry".to_owned()));
        };
        if let Event::JobOpened(opened) = &event {
            let digest = typed_data::job_id(&opened.order, &contracts.domain);
            if digest != opened.job_id {
                let (block_hash, log_index) = (log.block_hash, log.log_index);
                return Err(DecodeError::WrongJobId { job_id: opened.job_id, digest, block_hash, log_index });
            }
        }
        Ok(Self { log, event })
    }
}

fn decode_escrow(log: &RawLog) -> alloy::sol_types::Result<Event> {
    if log.topics.first() == Some(&IJobEscrow::JobOpened::SIGNATURE_HASH) {
        return Ok(Event::JobOpened(Box::new(decode_opened(log)?)));
    }
    if let Some(event) = decode_ownership(log) {
        return event;
    }
    Ok(match IJobEscrowEvents::decode_raw_log(&log.topics, &log.data)? {
        IJobEscrowEvents::Deposited(event) => Event::Deposited(event),
        IJobEscrowEvents::Thawing(event) => Event::Thawing(event),
        IJobEscrowEvents::Withdrawn(event) => Event::Withdrawn(event),
        IJobEscrowEvents::ResultSubmitted(event) => Event::ResultSubmitted(event),
        IJobEscrowEvents::JobPaid(event) => Event::JobPaid(event),
        IJobEscrowEvents::JobRefunded(event) => Event::JobRefunded(event),
        IJobEscrowEvents::Skipped(event) => Event::Skipped(event),
        IJobEscrowEvents::EarnedWithdrawn(event) => Event::EarnedWithdrawn(event),
        IJobEscrowEvents::JobOpened(_) => Event::JobOpened(Box::new(decode_opened(log)?)),
        IJobEscrowEvents::ChannelUpdated(event) => Event::ChannelUpdated(event),
        IJobEscrowEvents::VouchersRedeemed(event) => Event::VouchersRedeemed(event.try_into()?),
        IJobEscrowEvents::VoucherSkipped(event) => Event::VoucherSkipped(event),
        IJobEscrowEvents::ReservationChanged(event) => Event::ReservationChanged(event),
        IJobEscrowEvents::SessionUpdated(event) => Event::SessionUpdated(event),
        IJobEscrowEvents::SettlerSet(event) => Event::SettlerSet(event),
        IJobEscrowEvents::JobCancelling(event) => Event::JobCancelling(event),
        IJobEscrowEvents::JobDisputed(event) => Event::JobDisputed(event),
        IJobEscrowEvents::JobResolved(event) => Event::JobResolved(event),
        IJobEscrowEvents::FeeTaken(event) => Event::FeeTaken(event),
        IJobEscrowEvents::FeesWithdrawn(event) => Event::FeesWithdrawn(event),
        IJobEscrowEvents::FeeBpsSet(event) => Event::FeeBpsSet(event),
        IJobEscrowEvents::PausedSet(event) => Event::EscrowPausedSet(event),
    })
}

/// The events that both contracts have from their owners.
fn decode_ownership(log: &RawLog) -> Option<alloy::sol_types::Result<Event>> {
    let signature = log.topics.first()?;
    IOwnable2StepEvents::SELECTORS.contains(&signature.0).then(|| {
        Ok(match IOwnable2StepEvents::decode_raw_log(&log.topics, &log.data)? {
            IOwnable2StepEvents::OwnershipTransferStarted(event) => Event::OwnershipTransferStarted(event),
            IOwnable2StepEvents::OwnershipTransferred(event) => Event::OwnershipTransferred(event),
        })
    })
}

impl TryFrom<IJobEscrow::VouchersRedeemed> for Redeemed {
    type Error = alloy::sol_types::Error;

    fn try_from(event: IJobEscrow::VouchersRedeemed) -> alloy::sol_types::Result<Self> {
        let (redemptions, rest) = event.redemptions.as_chunks();
        if !rest.is_empty() {
            return Err(alloy::sol_types::Error::custom("redemptions do not have 96 bytes each"));
        }
        let redemptions = redemptions.iter().map(Redemption::read).collect();
        Ok(Self { node: event.node, token: event.token, earned: event.earned, redemptions })
    }
}

fn decode_registry(log: &RawLog) -> alloy::sol_types::Result<Event> {
    if let Some(event) = decode_ownership(log) {
        return event;
    }
    Ok(match INodeRegistryEvents::decode_raw_log(&log.topics, &log.data)? {
        INodeRegistryEvents::NodeUpdated(mut event) => {
            event.uri = storable(&event.uri);
            event.operations.iter_mut().for_each(|operation| *operation = storable(operation));
            Event::NodeUpdated(Box::new(event))
        }
        INodeRegistryEvents::Staked(event) => Event::Staked(event),
        INodeRegistryEvents::Unbonding(event) => Event::Unbonding(event),
        INodeRegistryEvents::Unbonded(event) => Event::Unbonded(event),
        INodeRegistryEvents::BondLocked(event) => Event::BondLocked(event),
        INodeRegistryEvents::BondReleased(event) => Event::BondReleased(event),
        INodeRegistryEvents::Slashed(event) => Event::Slashed(event),
        INodeRegistryEvents::MinStakeSet(event) => Event::MinStakeSet(event),
        INodeRegistryEvents::PausedSet(event) => Event::RegistryPausedSet(event),
    })
}

fn decode_opened(log: &RawLog) -> alloy::sol_types::Result<OpenedJob> {
    let (_, job_id, requester, node) = IJobEscrow::JobOpened::decode_topics(&log.topics)?;
    let (token, max_price, assigner, deadline, window, arbiter, max_fee_bps, nonce, spec, free) =
        JobOpenedData::abi_decode_sequence(&log.data)?;
    let spec_hash = raw_spec_hash([&spec.0, &spec.1, &spec.2]);
    let [input_cid, operation, params] =
        [&spec.0, &spec.1, &spec.2].map(|text| storable(&String::from_utf8_lossy(text)));
    let spec = JobSpec { inputCID: input_cid, operation, params };
    let order = Order {
        requester,
        token,
        maxPrice: max_price,
        node,
        assigner,
        specHash: spec_hash,
        deadline,
        challengeWindow: window,
        arbiter,
        maxFeeBps: max_fee_bps,
        nonce,
    };
    let spec_valid = typed_data::spec_hash(&spec) == spec_hash;
    Ok(OpenedJob { job_id, order, spec, spec_valid, free })
}

/// EIP-712 hash of a `JobSpec` whose strings are these bytes, valid UTF-8 or not.
fn raw_spec_hash(texts: [&Bytes; 3]) -> B256 {
    // The type's hash does not depend on the value.
    let type_hash = JobSpec::default().eip712_type_hash();
    let words = [type_hash, keccak256(texts[0]), keccak256(texts[1]), keccak256(texts[2])];
    keccak256(words.map(|word| word.0).concat())
}

/// Text that Postgres takes: it refuses NUL.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

impl Event {
    /// The event's name in the contracts.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deposited(_) => "Deposited",
            Self::Thawing(_) => "Thawing",
            Self::Withdrawn(_) => "Withdrawn",
            Self::JobOpened(_) => "JobOpened",
            Self::ResultSubmitted(_) => "ResultSubmitted",
            Self::JobPaid(_) => "JobPaid",
            Self::JobRefunded(_) => "JobRefunded",
            Self::Skipped(_) => "Skipped",
            Self::EarnedWithdrawn(_) => "EarnedWithdrawn",
            Self::ChannelUpdated(_) => "ChannelUpdated",
            Self::VouchersRedeemed(_) => "VouchersRedeemed",
            Self::VoucherSkipped(_) => "VoucherSkipped",
            Self::ReservationChanged(_) => "ReservationChanged",
            Self::SessionUpdated(_) => "SessionUpdated",
            Self::SettlerSet(_) => "SettlerSet",
            Self::JobCancelling(_) => "JobCancelling",
            Self::JobDisputed(_) => "JobDisputed",
            Self::JobResolved(_) => "JobResolved",
            Self::FeeTaken(_) => "FeeTaken",
            Self::FeesWithdrawn(_) => "FeesWithdrawn",
            Self::FeeBpsSet(_) => "FeeBpsSet",
            Self::EscrowPausedSet(_) | Self::RegistryPausedSet(_) => "PausedSet",
            Self::MinStakeSet(_) => "MinStakeSet",
            Self::BondLocked(_) => "BondLocked",
            Self::BondReleased(_) => "BondReleased",
            Self::Slashed(_) => "Slashed",
            Self::OwnershipTransferStarted(_) => "OwnershipTransferStarted",
            Self::OwnershipTransferred(_) => "OwnershipTransferred",
            Self::NodeUpdated(_) => "NodeUpdated",
            Self::Staked(_) => "Staked",
            Self::Unbonding(_) => "Unbonding",
            Self::Unbonded(_) => "Unbonded",
        }
    }

    /// The job that the event is about, whether or not it changes it.
    #[must_use]
    pub fn job_id(&self) -> Option<B256> {
        match self {
            Self::JobOpened(event) => Some(event.job_id),
            Self::ResultSubmitted(event) => Some(event.jobId),
            Self::JobPaid(event) => Some(event.jobId),
            Self::JobRefunded(event) => Some(event.jobId),
            Self::Skipped(event) => Some(event.jobId),
            Self::ChannelUpdated(event) => Some(event.jobId),
            Self::JobCancelling(event) => Some(event.jobId),
            Self::JobDisputed(event) => Some(event.jobId),
            Self::JobResolved(event) => Some(event.jobId),
            Self::FeeTaken(event) => Some(event.jobId),
            _ => None,
        }
    }

    /// The rows that the event changes, each once.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        let account = |owner, token| Key::Account { owner, token };
        let earned = |node, token| Key::Earned { node, token };
        let channel = |requester, node, token| Key::Channel { requester, node, token };
        match self {
            Self::Deposited(e) => vec![account(e.account, e.token)],
            Self::Thawing(e) => vec![account(e.account, e.token)],
            Self::Withdrawn(e) => vec![account(e.account, e.token)],
            Self::JobOpened(e) => vec![Key::Job(e.job_id), account(e.order.requester, e.order.token)],
            Self::ResultSubmitted(e) => vec![Key::Job(e.jobId), account(e.requester, e.token)],
            Self::JobPaid(e) => vec![Key::Job(e.jobId), account(e.requester, e.token), earned(e.node, e.token)],
            Self::JobRefunded(e) => vec![Key::Job(e.jobId), account(e.requester, e.token)],
            Self::JobCancelling(e) => vec![Key::Job(e.jobId)],
            Self::JobDisputed(e) => vec![Key::Job(e.jobId), account(e.requester, e.token)],
            Self::JobResolved(e) => vec![Key::Job(e.jobId), account(e.requester, e.token), earned(e.node, e.token)],
            Self::ChannelUpdated(e) => vec![account(e.requester, e.token), channel(e.requester, e.node, e.token)],
            Self::VouchersRedeemed(e) => e.keys(),
            Self::ReservationChanged(e) => vec![account(e.requester, e.token), channel(e.requester, e.node, e.token)],
            Self::SessionUpdated(e) => vec![Key::Session { requester: e.requester, key: e.key, token: e.token }],
            Self::SettlerSet(e) => vec![Key::Settler { node: e.node, settler: e.settler }],
            Self::FeeTaken(e) => vec![Key::Fee(e.token)],
            Self::FeesWithdrawn(e) => vec![Key::Fee(e.token)],
            Self::FeeBpsSet(_) | Self::EscrowPausedSet(_) | Self::RegistryPausedSet(_) | Self::MinStakeSet(_) => {
                vec![Key::Parameters]
            }
            Self::Skipped(_)
            | Self::VoucherSkipped(_)
            | Self::OwnershipTransferStarted(_)
            | Self::OwnershipTransferred(_) => vec![],
            Self::EarnedWithdrawn(e) => vec![earned(e.node, e.token)],
            Self::NodeUpdated(e) => vec![Key::Node(e.node)],
            Self::Staked(e) => vec![Key::Node(e.node)],
            Self::Unbonding(e) => vec![Key::Node(e.node)],
            Self::Unbonded(e) => vec![Key::Node(e.node)],
            Self::BondLocked(e) => vec![Key::Node(e.node)],
            Self::BondReleased(e) => vec![Key::Node(e.node)],
            Self::Slashed(e) => vec![Key::Node(e.node)],
        }
    }
}

impl Redeemed {
    fn keys(&self) -> Vec<Key> {
        let mut keys = BTreeSet::from([Key::Earned { node: self.node, token: self.token }]);
        for redemption in &self.redemptions {
            let (requester, token) = (redemption.requester, self.token);
            keys.insert(Key::Channel { requester, node: self.node, token });
            if redemption.has_drawn() {
                keys.insert(Key::Account { owner: requester, token });
            }
        }
        keys.into_iter().collect()
    }
}
