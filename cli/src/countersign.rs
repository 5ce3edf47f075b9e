//! Countersigning: after a node has delivered, its requester signs a voucher that pays for it.
//!
//! The API says what it would like signed; nothing is signed because it says so. The client starts from the best voucher that
//! it knows to be its own, and adds the price of each job of which it has checked everything: that the order is its own, under
//! its own signature; that the receipt is signed by the node, and that the chain pays no other; that the output, fetched and
//! hashed, is what the receipt names, or that its user accepted it unseen. What it arrives at is what it signs, if that is at
//! least what the API asks and otherwise nothing. Every voucher is in the journal before anyone is shown it, and the next one
//! starts from there: an API that forgets, repeats or inflates gains nothing.

mod explain;
mod payee;
mod verify;

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context as _;
use market::abi::Voucher;
use market::{Amount, typed_data};

use crate::api::{Api, ApiError, NextVoucher, VoucherBody, VoucherPost};
use crate::chain::{Chain, now_on_both, time};
use crate::commands::session;
use crate::context::Context;
use crate::error::Failure;
use crate::node::earnings::HeldVoucher;
use crate::node::settle::facts::{Standing, voucher_signer};
use crate::records::{ChannelJournal, Records, SignedEntry};
use explain::{Base, Explained, explain};
pub use payee::payee;
pub use verify::mark;

/// A session key must be good for so long after it has signed.
const SESSION_MARGIN_SECS: u64 = 3600;

/// Who countersigns, and with what.
pub struct Countersigner<'a> {
    context: &'a Context,
    chain: Chain,
    api: Api,
    records: Records,
    requester: Address,
    session: Option<Address>,
    /// One voucher at a time: of jobs that are delivered together, the first one to come covers all.
    turn: tokio::sync::Mutex<()>,
}

/// What came of it.
#[derive(Debug)]
pub enum Countersigned {
    /// A voucher was signed and the API has it.
    Signed(SignedEntry),
    /// The API lacked one that had been signed before, and has it now.
    Sent(SignedEntry),
    /// There is nothing to sign, with what stands in the way if anything does.
    Nothing(Vec<String>),
}

impl<'a> Countersigner<'a> {
    /// For the acting account; vouchers are signed by the session key if one is given.
    pub async fn new(context: &'a Context, session: Option<Address>) -> anyhow::Result<Self> {
        let chain = context.chain().await?;
        let (api, _) = context.market(&chain.deployment).await?;
        let requester = context.signer()?.address();
        let records = context.records(&chain.deployment, requester)?;
        Ok(Self { context, chain, api, records, requester, session, turn: tokio::sync::Mutex::default() })
    }

    /// The acting account's records.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Countersigns for all that `node` has delivered in `token` and that can be explained.
    pub async fn countersign(&self, node: Address, token: Address) -> anyhow::Result<Countersigned> {
        let _turn = self.turn.lock().await;
        let path =
            format!("lit-compute/vouchers/next?node={}&token={}", node.to_checksum(None), token.to_checksum(None));
        let next: NextVoucher = self.api.get_signed_in(&path).await?;
        // Before the lock: outputs may be large.
        let mut verified = Vec::new();
        for job in &next.jobs {
            let checked = verify::job(&self.api, &self.chain, &self.records, (self.requester, node, token), job).await;
            verified.push((job.job_id, checked));
        }
        // Another process may hold it while it talks to the API: whatever else goes on here goes on.
        let records = self.records.clone();
        let journal = tokio::task::spawn_blocking(move || records.journal(node, token)).await??;
        let base = self.base(&journal, &next, node, token).await?;
        let explained = explain(&base, &next, &verified)?;
        match explained {
            Explained::Voucher { cumulative, covered_nonce, jobs, obstacles } => {
                for obstacle in obstacles {
                    self.context.out.note(&obstacle);
                }
                let voucher = Voucher {
                    requester: self.requester,
                    node,
                    token,
                    cumulative: cumulative.to_u128()?,
                    coveredNonce: covered_nonce,
                };
                let (signer, signature) = self.sign(&voucher).await?;
                let signed_at = market::clock::now();
                let entry = SignedEntry { cumulative, covered_nonce, signer, signature, jobs, signed_at };
                journal.append(&entry)?;
                self.post(node, token, &entry).await?;
                Ok(Countersigned::Signed(entry))
            }
            Explained::Nothing { obstacles } => self.send_again(&journal, &next, node, token, obstacles).await,
        }
    }

    /// The best voucher that is known to be the acting account's own, or what the chain paid on one.
    async fn base(
        &self,
        journal: &ChannelJournal,
        next: &NextVoucher,
        node: Address,
        token: Address,
    ) -> anyhow::Result<Base> {
        let mut base = journal.best()?.map(|entry| Base::of(&entry)).unwrap_or_default();
        if let Some(theirs) = next.best.as_ref().filter(|theirs| base.is_below(theirs)) {
            // Signed on another machine, or here before the data directory was lost.
            let signer = self.own_signer(node, token, theirs).await?;
            let entry = SignedEntry {
                cumulative: theirs.cumulative,
                covered_nonce: theirs.covered_nonce,
                signer,
                signature: theirs.signature.clone(),
                jobs: Vec::new(),
                signed_at: market::clock::now(),
            };
            journal.append(&entry)?;
            base = Base::of(&entry);
        }
        let paid = self.chain.escrow().channel(self.requester, node, token).call().await?;
        if paid.coveredNonce > base.covered_nonce {
            // A voucher was redeemed that nobody shows. The chain's word on what it paid is as good.
            let alone =
                verify::paid_alone(&self.chain, &self.records, (self.requester, node, token), paid.coveredNonce)
                    .await?;
            base = Base {
                cumulative: Amount(paid.claimed.saturating_sub(alone)).max(base.cumulative),
                covered_nonce: paid.coveredNonce,
            };
        }
        Ok(base)
    }

    /// Who of ours signed the voucher that the API calls ours.
    async fn own_signer(&self, node: Address, token: Address, theirs: &VoucherBody) -> anyhow::Result<Address> {
        let held = HeldVoucher {
            requester: self.requester,
            token,
            cumulative: theirs.cumulative,
            covered_nonce: theirs.covered_nonce,
            signature: theirs.signature.clone(),
        };
        let digest = typed_data::voucher_digest(&held.to_voucher(node)?, &self.chain.domain());
        match voucher_signer(&self.chain, node, &held, now_on_both(&self.chain).await?).await? {
            Standing::Flawed(reason) => Err(Failure::Unverified(format!(
                "the API shows a voucher for {node} of {} up to nonce {} as yours: {reason}",
                theirs.cumulative, theirs.covered_nonce
            ))
            .into()),
            _ => Ok(typed_data::recover(&theirs.signature, digest).unwrap_or(self.requester)),
        }
    }

    /// Signs with the account's key, or with a session key that the chain lets sign so much.
    async fn sign(&self, voucher: &Voucher) -> anyhow::Result<(Address, Bytes)> {
        let signer = match self.session {
            None => self.context.signer()?,
            Some(key) => self.session_key(key, voucher).await?,
        };
        let digest = typed_data::voucher_digest(voucher, &self.chain.domain());
        Ok((signer.address(), signer.sign_hash_sync(&digest)?.as_bytes().into()))
    }

    async fn session_key(&self, key: Address, voucher: &Voucher) -> anyhow::Result<PrivateKeySigner> {
        let session = self.chain.escrow().session(self.requester, key, voucher.token).call().await?;
        let claimed = self.chain.escrow().channel(self.requester, voucher.node, voucher.token).call().await?.claimed;
        let due = Amount::from(voucher.cumulative).0.saturating_sub(claimed);
        anyhow::ensure!(
            alloy::primitives::U256::from(session.left) >= due,
            "{due} is due to {}, and the session key {key} may spend {}: see `littoral session authorize`",
            voucher.node,
            session.left
        );
        anyhow::ensure!(
            session.expiry >= now_on_both(&self.chain).await?.saturating_add(SESSION_MARGIN_SECS),
            "the session key {key} expires {}, too soon for the node to redeem what it signs: see `littoral session \
             authorize`",
            time(session.expiry)
        );
        session::load(self.context, key)
    }

    async fn post(&self, node: Address, token: Address, entry: &SignedEntry) -> Result<(), ApiError> {
        let body = VoucherPost::new(self.requester, node, token, entry);
        let _: serde_json::Value = self.api.post("lit-compute/vouchers", &body).await?;
        Ok(())
    }

    /// The last voucher may have been written and not sent.
    async fn send_again(
        &self,
        journal: &ChannelJournal,
        next: &NextVoucher,
        node: Address,
        token: Address,
        obstacles: Vec<String>,
    ) -> anyhow::Result<Countersigned> {
        let known = next.best.as_ref().map_or((Amount::ZERO, 0), |best| (best.cumulative, best.covered_nonce));
        match journal.best()? {
            Some(entry) if (entry.cumulative, entry.covered_nonce) > known => {
                self.post(node, token, &entry).await.context("the voucher that was signed before was not taken")?;
                Ok(Countersigned::Sent(entry))
            }
            _ => Ok(Countersigned::Nothing(obstacles)),
        }
    }

    /// After a job was delivered: countersigns for its node if the job is one of this account's signed orders. Whatever goes
    /// wrong is noted and no more, because the node is paid by the order then.
    pub async fn after(&self, job_id: B256, node: Address) -> Option<Countersigned> {
        let token = match self.records.order(job_id) {
            Ok(Some(record)) if record.signature.is_some() => record.order.token,
            Ok(_) => return None,
            Err(error) => {
                self.context.out.note(&format!("No voucher for job {job_id}: {error:#}"));
                return None;
            }
        };
        match self.countersign(node, token).await {
            Ok(Countersigned::Nothing(obstacles)) => {
                for obstacle in obstacles {
                    self.context.out.note(&obstacle);
                }
                None
            }
            Ok(done) => Some(done),
            Err(error) => {
                self.context.out.note(&format!("No voucher for job {job_id}: {error:#}"));
                None
            }
        }
    }
}

impl Countersigned {
    /// The voucher, if there is one.
    #[must_use]
    pub fn entry(&self) -> Option<&SignedEntry> {
        match self {
            Self::Signed(entry) | Self::Sent(entry) => Some(entry),
            Self::Nothing(_) => None,
        }
    }
}
