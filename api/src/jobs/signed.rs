//! Orders that their requester signed: who signed, and whether the deposit is enough for all that it has signed.
//!
//! Two instances that are handed orders of one requester at once take turns, under a lock in Postgres: what each accepts, it
//! accepts on top of what the other did.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use market::{
    abi::Order,
    db::{
        escrow,
        exposure::{self, Exposure},
        job_view,
        order::{self, SignedOrder},
        outbox::{self, Entity, Source},
        voucher,
    },
    fold::{EscrowJob, EscrowState},
    job::JobStatus,
    typed_data,
};
use sqlx::PgConnection;

use super::{
    check::{self, Stored, invalid},
    submit::Draft,
};
use crate::{
    app::App,
    error::{ApiError, ApiResult, Code, DepositFigures},
    wallet,
    wire::WalletAddress,
};

/// An order under a signature.
#[derive(Debug)]
pub struct SignedDraft {
    pub(super) draft: Draft,
    signature: Vec<u8>,
    /// Why it is not the signature of the requester's key; a contract wallet may take it all the same.
    not_by_key: Option<String>,
}

pub(super) fn wallet_mismatch(wallet: Address) -> ApiError {
    ApiError::field(Code::WalletMismatch, "order.requester", format!("is not who signed in, {wallet}"))
}

/// The error if [`keep`] does not answer for a draft, which it does for each.
pub(super) fn unanswered() -> ApiError {
    ApiError::internal(anyhow::anyhow!("a draft was left without an answer"))
}

impl SignedDraft {
    /// Recovers the signer, which takes a moment of computing.
    pub fn read(draft: Draft, signature: Vec<u8>) -> ApiResult<Self> {
        if signature.len() > wallet::MAX_SIGNATURE_BYTES {
            return Err(invalid("signature", format!("must have at most {} bytes", wallet::MAX_SIGNATURE_BYTES)));
        }
        let requester = draft.order.requester;
        let not_by_key = match typed_data::recover(&signature, draft.job_id) {
            Ok(signer) if signer == requester => None,
            Ok(signer) => Some(format!("is by {signer}, not by {requester}, or over another order or domain")),
            Err(error) => Some(error.to_string()),
        };
        Ok(Self { draft, signature, not_by_key })
    }

    fn row(&self) -> SignedOrder<'_> {
        let Draft { job_id, order, spec, terms } = &self.draft;
        SignedOrder { job_id: *job_id, order, spec, signature: &self.signature, terms }
    }

    /// The order's EIP-712 digest.
    #[must_use]
    pub fn job_id(&self) -> B256 {
        self.draft.job_id
    }

    /// The contract wallet that would have to take the signature for its own, if the requester's key did not make it.
    pub(super) fn wallet(&self) -> Option<Address> {
        self.not_by_key.as_ref().map(|_| self.draft.order.requester)
    }

    /// That the order is the caller's own, or of a contract wallet that takes the signature for its own: it cannot sign in.
    /// `is_contract` says whether the requester is one, where that is known.
    pub(super) async fn check_signer(&self, app: &App, caller: Address, is_contract: Option<bool>) -> ApiResult<()> {
        let requester = self.draft.order.requester;
        let is_own = requester == caller;
        let Some(detail) = &self.not_by_key else {
            return if is_own { Ok(()) } else { Err(wallet_mismatch(caller)) };
        };
        if is_contract != Some(false) && wallet::accepts(app, requester, self.draft.job_id, &self.signature).await? {
            return Ok(());
        }
        if !is_own {
            return Err(wallet_mismatch(caller));
        }
        Err(ApiError::field(Code::BadOrderSignature, "signature", detail))
    }
}

/// What one transaction decides upon.
struct Session<'a> {
    app: &'a App,
    now: DateTime<Utc>,
    stored: Stored<'a>,
    /// Where jobs that are known stand, as those that this transaction has kept.
    known: HashMap<B256, JobStatus>,
    /// What the chain says of the others.
    on_chain: BTreeMap<B256, EscrowJob>,
    exposures: HashMap<(Address, Address), Exposure>,
    changes: Vec<(Entity, &'static str)>,
}

/// Keeps each draft whose signer was checked, in one transaction; none that is refused harms another. Gives where each stands,
/// in their order.
pub async fn keep(app: &App, drafts: &[SignedDraft], now: DateTime<Utc>) -> ApiResult<Vec<ApiResult<JobStatus>>> {
    let mut tx = app.begin().await?;
    lock(&mut tx, drafts).await?;
    let ids: Vec<B256> = drafts.iter().map(|signed| signed.draft.job_id).collect();
    // Announced orders can still be signed.
    let views = job_view::by_ids(&mut tx, &ids).await?.into_iter().filter(|job| job.rail.is_some());
    let mut session = Session {
        app,
        now,
        stored: Stored::new(app),
        known: views.map(|job| (job.job_id, job.status(now))).collect(),
        on_chain: escrow::jobs(&mut tx, &ids).await?,
        exposures: HashMap::new(),
        changes: Vec::new(),
    };
    let (mut answers, mut kept) = (Vec::with_capacity(drafts.len()), Vec::with_capacity(drafts.len()));
    for signed in drafts {
        let is_new = !session.known.contains_key(&signed.draft.job_id);
        match session.accept(&mut tx, signed).await {
            // The transaction is lost, and with it what was kept before.
            Err(error) if error.code().status().is_server_error() => return Err(error),
            answer => {
                if is_new && answer.is_ok() {
                    kept.push(signed.row());
                }
                answers.push(answer);
            }
        }
    }
    order::insert_signed_all(&mut tx, &kept, now).await?;
    outbox::append_many(&mut tx, Source::Work, &session.changes, now).await?;
    tx.commit().await?;
    let kept = u64::try_from(session.changes.len()).unwrap_or(u64::MAX);
    metrics::counter!("littoral_orders_signed_total").increment(kept);
    Ok(answers)
}

/// Deposits before channels, each in order, so that no two of these wait for each other.
async fn lock(db: &mut PgConnection, drafts: &[SignedDraft]) -> Result<(), sqlx::Error> {
    let orders = || drafts.iter().map(|signed| &signed.draft.order);
    let deposits: BTreeSet<_> = orders().map(|order| (order.requester, order.token)).collect();
    for (requester, token) in deposits {
        exposure::lock(db, requester, token).await?;
    }
    let channels: BTreeSet<_> = orders().filter_map(check::channel).collect();
    for channel in channels {
        voucher::lock(db, channel).await?;
    }
    Ok(())
}

impl Session<'_> {
    /// Where the job stands with this order, which is to be kept if the job is new.
    async fn accept(&mut self, db: &mut PgConnection, signed: &SignedDraft) -> ApiResult<JobStatus> {
        let SignedDraft { draft, .. } = signed;
        let Draft { job_id, order, spec, .. } = draft;
        if let Some(status) = self.known.get(job_id) {
            return Ok(*status);
        }
        draft.check(self.app, db, &mut self.stored, self.now).await?;
        self.stored.check_nonce(db, order).await?;
        self.check_chain(*job_id)?;
        self.promise(db, order).await?;
        self.known.insert(*job_id, JobStatus::Pending);
        self.changes.push((Entity::Job(*job_id), "job.signed"));
        tracing::info!(%job_id, requester = %order.requester, operation = spec.operation, "order signed");
        Ok(JobStatus::Pending)
    }

    /// That the chain has not seen the end of the order, which takes signed ones from anyone.
    fn check_chain(&self, job_id: B256) -> ApiResult<()> {
        let Some(job) = self.on_chain.get(&job_id) else { return Ok(()) };
        if job.state == EscrowState::None && job.cancel_at.is_none() {
            return Ok(());
        }
        Err(ApiError::new(Code::NotOpen, "The order was settled or cancelled on the chain."))
    }

    /// Counts the order in if the deposit is enough.
    async fn promise(&mut self, db: &mut PgConnection, order: &Order) -> ApiResult<()> {
        let key = (order.requester, order.token);
        let exposure = match self.exposures.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(exposure::of(db, key.0, key.1, self.now).await?),
        };
        let (node, price) = (check::channel(order).map(|channel| channel.node), order.maxPrice.into());
        check_fits(self.app, exposure, order, node)?;
        exposure.add(node, price);
        Ok(())
    }
}

/// That the deposit is enough for one more `order`, whose node is `node` if it names one.
pub(super) fn check_fits(app: &App, exposure: &Exposure, order: &Order, node: Option<Address>) -> ApiResult<()> {
    let price = order.maxPrice.into();
    if exposure.fits(node, price) {
        return Ok(());
    }
    Err(ApiError::insufficient_deposit(DepositFigures {
        token: WalletAddress(order.token),
        chain_id: app.parts.deployment.chain_id,
        free: exposure.free,
        reserved: exposure.reserved(),
        promised: exposure.promised(),
        available: exposure.available(),
        required: exposure.required(node, price),
    }))
}
