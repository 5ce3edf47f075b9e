//! What a transaction does, and how its call is encoded.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use alloy::sol_types::{SolCall, SolValue};

use crate::abi::{self, IJobEscrow, Order, SignedVoucher, SkipReason};

/// Gas of one result whose signers are keys: more than any was seen to take, storage that is written first included.
const SUBMIT_GAS: u64 = 150_000;
/// As [`SUBMIT_GAS`], for a finalization.
const FINALIZE_GAS: u64 = 80_000;
/// As [`SUBMIT_GAS`], for a voucher signed by a key.
const REDEEM_GAS: u64 = 60_000;
/// As [`SUBMIT_GAS`], for a voucher that a contract wallet signed: the contract allows it 100,000.
const REDEEM_SIGNED_GAS: u64 = 190_000;
/// Gas of one order that was settled ahead of a voucher.
const SETTLED_ABOVE_GAS: u64 = 15_000;
/// The order's, the receipt's and the assignment's signature by keys; what is longer belongs to contract wallets and is
/// counted apart.
const KEY_SIGNATURES_BYTES: usize = 3 * 65;
/// Gas of a byte of call data, at the most that the protocol asks (EIP-7623).
const BYTE_GAS: u64 = 40;
/// Of a voucher in `redeem`: requester (20), cumulative (16), coveredNonce (8), r (32), vs (32).
const PACKED_VOUCHER_BYTES: usize = 108;

/// What a transaction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `submitResults`
    Submit,
    /// `finalize`
    Finalize,
    /// `redeem` or `redeemSigned`
    Redeem,
}

impl Kind {
    /// Its name in SQL, logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Finalize => "finalize",
            Self::Redeem => "redeem",
        }
    }

    /// The kind with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Submit, Self::Finalize, Self::Redeem].into_iter().find(|kind| kind.name() == name)
    }
}

/// What lies between a requester and a node in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel {
    /// Who pays.
    pub requester: Address,
    /// Who is paid.
    pub node: Address,
    /// In which token; zero for the native coin.
    pub token: Address,
}

/// What an item of a batch is about: no two batches on their way are to be about the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A job, by id.
    Job(B256),
    /// All that a channel's voucher covers.
    Channel(Channel),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job {id}"),
            Self::Channel(channel) => {
                write!(f, "channel {} -> {} in {}", channel.requester, channel.node, channel.token)
            }
        }
    }
}

/// A voucher to redeem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// Whose.
    pub channel: Channel,
    /// All that the channel is to have paid.
    pub cumulative: u128,
    /// For signed orders up to it.
    pub covered_nonce: u64,
    /// By the requester or a session key, as it was given.
    pub signature: Bytes,
    /// Whether `signature` is a key's.
    pub by_key: bool,
    /// Orders of the channel that were settled alone and that the voucher does not cover, by ascending job id.
    pub settled_above: Vec<Order>,
    /// What it pays as things stand, in the token's smallest unit.
    pub payable: u128,
}

impl Redemption {
    /// Its form in `redeem`, if it can go there: r and vs of ERC-2098 after the numbers.
    #[must_use]
    pub fn packed(&self) -> Option<[u8; PACKED_VOUCHER_BYTES]> {
        let signature: &[u8; 65] = self.signature.as_ref().try_into().ok()?;
        let odd = signature[64].checked_sub(27).filter(|odd| *odd < 2)?;
        // The top bit of s has to hold the parity.
        if !self.by_key || !self.settled_above.is_empty() || signature[32] >= 0x80 {
            return None;
        }
        let mut packed = [0; PACKED_VOUCHER_BYTES];
        packed[..20].copy_from_slice(self.channel.requester.as_slice());
        packed[20..36].copy_from_slice(&self.cumulative.to_be_bytes());
        packed[36..44].copy_from_slice(&self.covered_nonce.to_be_bytes());
        packed[44..].copy_from_slice(&signature[..64]);
        packed[76] |= odd << 7;
        Some(packed)
    }

    fn signed(&self) -> SignedVoucher {
        SignedVoucher {
            requester: self.channel.requester,
            cumulative: self.cumulative,
            coveredNonce: self.covered_nonce,
            signature: self.signature.clone(),
            settledAbove: self.settled_above.clone(),
        }
    }
}

/// One item of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A result to submit.
    Submit(Box<abi::Result>),
    /// An order whose challenge window has ended, and the price of its result.
    Finalize(Box<Order>, u128),
    /// A voucher to redeem.
    Redeem(Box<Redemption>),
}

/// Items of one call go together, and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// Which call.
    pub kind: Kind,
    /// Node, token and whether packed, of vouchers.
    pub vouchers: Option<(Address, Address, bool)>,
}

impl Call {
    /// Which call it is an item of.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Submit(_) => Kind::Submit,
            Self::Finalize(..) => Kind::Finalize,
            Self::Redeem(_) => Kind::Redeem,
        }
    }

    /// With what it can share a transaction.
    #[must_use]
    pub fn lane(&self) -> Lane {
        let vouchers = self.as_redemption().map(|r| (r.channel.node, r.channel.token, r.packed().is_some()));
        Lane { kind: self.kind(), vouchers }
    }

    /// The order it settles; a voucher pays for many.
    #[must_use]
    pub fn order(&self) -> Option<&Order> {
        match self {
            Self::Submit(result) => Some(&result.order),
            Self::Finalize(order, _) => Some(order),
            Self::Redeem(_) => None,
        }
    }

    /// The channel that it draws on: a voucher's, or that of a signed order.
    #[must_use]
    pub fn channel(&self) -> Option<Channel> {
        match self {
            Self::Submit(result) if !result.orderSignature.is_empty() => {
                Some(Channel { requester: result.order.requester, node: result.node, token: result.order.token })
            }
            Self::Redeem(redemption) => Some(redemption.channel),
            Self::Submit(_) | Self::Finalize(..) => None,
        }
    }

    /// In which token it pays, and how much of the smallest unit.
    #[must_use]
    pub fn payment(&self) -> (Address, u128) {
        match self {
            Self::Submit(result) => (result.order.token, result.price),
            Self::Finalize(order, price) => (order.token, *price),
            Self::Redeem(redemption) => (redemption.channel.token, redemption.payable),
        }
    }

    /// Gas to allow for it.
    #[must_use]
    pub fn gas(&self) -> u64 {
        match self {
            Self::Submit(result) => {
                let signatures =
                    result.receiptSignature.len() + result.assignmentSignature.len() + result.orderSignature.len();
                let beyond = u64::try_from(signatures.saturating_sub(KEY_SIGNATURES_BYTES)).unwrap_or(u64::MAX);
                SUBMIT_GAS.saturating_add(beyond.saturating_mul(BYTE_GAS))
            }
            Self::Finalize(..) => FINALIZE_GAS,
            Self::Redeem(redemption) if redemption.packed().is_some() => REDEEM_GAS,
            Self::Redeem(redemption) => {
                let above = u64::try_from(redemption.settled_above.len()).unwrap_or(u64::MAX);
                let bytes = u64::try_from(redemption.signature.len()).unwrap_or(u64::MAX);
                REDEEM_SIGNED_GAS
                    .saturating_add(above.saturating_mul(SETTLED_ABOVE_GAS))
                    .saturating_add(bytes.saturating_mul(BYTE_GAS))
            }
        }
    }

    pub(super) fn calldata_bytes(&self) -> usize {
        match self {
            Self::Submit(result) => result.abi_encoded_size(),
            Self::Finalize(order, _) => order.abi_encoded_size(),
            Self::Redeem(redemption) if redemption.packed().is_some() => PACKED_VOUCHER_BYTES,
            Self::Redeem(redemption) => redemption.signed().abi_encoded_size(),
        }
    }

    pub(super) fn as_result(&self) -> Option<&abi::Result> {
        match self {
            Self::Submit(result) => Some(result),
            _ => None,
        }
    }

    /// The voucher, if it is one.
    #[must_use]
    pub fn as_redemption(&self) -> Option<&Redemption> {
        match self {
            Self::Redeem(redemption) => Some(redemption),
            _ => None,
        }
    }
}

/// The data of the one call that does all of `items`, which share a lane of `kind`.
pub(super) fn encode<'a>(kind: Kind, items: impl Iterator<Item = &'a Call>) -> Vec<u8> {
    match kind {
        Kind::Submit => {
            IJobEscrow::submitResultsCall { results: items.filter_map(Call::as_result).cloned().collect() }.abi_encode()
        }
        Kind::Finalize => {
            IJobEscrow::finalizeCall { orders: items.filter_map(Call::order).cloned().collect() }.abi_encode()
        }
        Kind::Redeem => encode_redemptions(&items.filter_map(Call::as_redemption).collect::<Vec<_>>()),
    }
}

fn encode_redemptions(redemptions: &[&Redemption]) -> Vec<u8> {
    let (node, token) = redemptions.first().map(|r| (r.channel.node, r.channel.token)).unwrap_or_default();
    match redemptions.iter().map(|r| r.packed()).collect::<Option<Vec<_>>>() {
        Some(packed) => IJobEscrow::redeemCall { node, token, vouchers: Bytes::from(packed.concat()) }.abi_encode(),
        None => {
            let vouchers = redemptions.iter().map(|r| r.signed()).collect();
            IJobEscrow::redeemSignedCall { node, token, vouchers }.abi_encode()
        }
    }
}

/// Whether an item that was skipped for `reason` would be skipped at any later time too.
#[must_use]
pub fn is_permanent(reason: SkipReason) -> bool {
    match reason {
        SkipReason::Expired
        | SkipReason::WrongNode
        | SkipReason::AssignmentExpired
        | SkipReason::BadAssignmentSignature
        | SkipReason::BadReceiptSignature
        | SkipReason::PriceAboveMax
        | SkipReason::Cancelled
        | SkipReason::Covered
        | SkipReason::WindowRequired
        | SkipReason::WindowTooLong
        | SkipReason::BadOrderSignature
        | SkipReason::BadVoucherSignature => true,
        // The job's state, the requester's funds and the node's stake change; the rest are of calls that time alone puts
        // right.
        SkipReason::NotOpen
        | SkipReason::InsufficientFunds
        | SkipReason::NothingDue
        | SkipReason::SessionCapExceeded
        | SkipReason::NotStaked
        | SkipReason::NotExpired
        | SkipReason::NotSubmitted
        | SkipReason::WindowOpen
        | SkipReason::__Invalid => false,
    }
}
