//! Vouchers: a requester countersigns what a node has done, one signature for any number of jobs.
//!
//! Whoever redeems a voucher voids the orders that it covers, and only the node or its settler can. So a voucher is kept only
//! if it is good for the node: it pays for every job that it covers, and covers none that the node is still to do.

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use market::{
    Amount,
    abi::Voucher,
    clock,
    db::{
        escrow,
        outbox::{self, Entity, Source},
        voucher::{self, Channel, Signed, Standing},
    },
    order::uint64_text,
    typed_data,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Query},
    wallet,
    wire::{Hash, HexBytes, WalletAddress},
};

/// A session key must be good for as long after it has signed, so that there is time to redeem.
const SESSION_MARGIN: TimeDelta = TimeDelta::hours(1);

/// The escrow's channels count to here: what a voucher says beyond is never paid.
const MAX_CUMULATIVE: u128 = (1 << 96) - 1;

/// The routes of vouchers.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(next_voucher)).routes(routes!(own_vouchers, post_voucher))
}

/// A voucher and its signature.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VoucherBody {
    /// Who pays.
    requester: WalletAddress,
    /// Who is paid.
    node: WalletAddress,
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// All that the channel ever paid, or is to pay, for its signed orders up to `coveredNonce`.
    cumulative: Amount,
    /// Signed orders with a nonce up to it are paid for by the voucher; a decimal string.
    #[serde(with = "uint64_text")]
    #[schema(value_type = String, example = "7")]
    covered_nonce: u64,
    /// The requester, or its session key.
    signer: WalletAddress,
    /// Over the EIP-712 type `Voucher`.
    signature: HexBytes,
    /// When it came.
    created_at: DateTime<Utc>,
}

impl From<Signed> for VoucherBody {
    fn from(signed: Signed) -> Self {
        let Signed { channel, cumulative, covered_nonce, signer, signature, created_at } = signed;
        Self {
            requester: WalletAddress(channel.requester),
            node: WalletAddress(channel.node),
            token: WalletAddress(channel.token),
            cumulative,
            covered_nonce,
            signer: WalletAddress(signer),
            signature: HexBytes(signature),
            created_at,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NextQuery {
    /// Who did the work.
    node: WalletAddress,
    /// In which token; the native coin unless given.
    #[serde(default)]
    #[param(value_type = Option<String>, pattern = "^0x[0-9a-fA-F]{40}$")]
    token: Option<WalletAddress>,
    /// Who pays; the caller unless given. Contract wallets cannot sign in, and session keys ask for whom they sign.
    #[serde(default)]
    #[param(value_type = Option<String>, pattern = "^0x[0-9a-fA-F]{40}$")]
    requester: Option<WalletAddress>,
}

/// What a requester would countersign for a node.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct NextBody {
    /// What the voucher is to say; the best one's if there is nothing new.
    cumulative: Amount,
    /// What the voucher is to say; a decimal string.
    #[serde(with = "uint64_text")]
    #[schema(value_type = String, example = "7")]
    covered_nonce: u64,
    /// What it covers beyond the best voucher; empty if there is nothing to sign.
    jobs: Vec<NextJob>,
    /// The best voucher so far.
    best: Option<VoucherBody>,
}

/// A job that is done and that no voucher covers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct NextJob {
    /// The order's digest.
    job_id: Hash,
    /// The order's nonce; a decimal string.
    #[serde(with = "uint64_text")]
    #[schema(value_type = String, example = "7")]
    nonce: u64,
    /// What it costs, in the token's smallest unit.
    price: Amount,
    /// SHA2-256 of the output, the digest inside its CID.
    result_hash: Hash,
    /// By the node, over the EIP-712 type `Receipt`.
    receipt_signature: HexBytes,
}

/// What to countersign for a node
///
/// Everything that the node has done for the requester on signed orders, below the first order that is still to be done. Check the
/// receipts and the outputs before signing: the API cannot make a client pay, but it can ask.
#[utoipa::path(
    get, path = "/lit-compute/vouchers/next", tag = "vouchers", security(("bearer" = [])), params(NextQuery),
    responses((status = 200, body = NextBody))
)]
async fn next_voucher(
    State(app): State<App>,
    user: SignedIn,
    Query(query): Query<NextQuery>,
) -> ApiResult<Json<NextBody>> {
    let token = query.token.map_or(Address::ZERO, |token| token.0);
    let requester = query.requester.map_or(user.wallet(), |requester| requester.0);
    let channel = Channel { requester, node: query.node.0, token };
    let standing = voucher::standing(&mut *app.db().await?, channel, clock::now()).await?;
    let covered_nonce = standing.next_nonce().unwrap_or_else(|| standing.base_nonce());
    let cumulative = standing.required(covered_nonce);
    let jobs = standing.done.into_iter().filter(|job| job.nonce <= covered_nonce);
    Ok(Json(NextBody {
        cumulative,
        covered_nonce,
        jobs: jobs
            .map(|job| NextJob {
                job_id: Hash(job.job_id),
                nonce: job.nonce,
                price: job.price,
                result_hash: Hash(job.result_hash),
                receipt_signature: HexBytes(job.receipt_signature),
            })
            .collect(),
        best: standing.best.map(VoucherBody::from),
    }))
}

/// The best vouchers of some channels.
#[derive(Debug, Serialize, ToSchema)]
pub struct VoucherList {
    /// One for each channel, by requester, node and token.
    pub vouchers: Vec<VoucherBody>,
}

/// The caller's own vouchers
///
/// The best one of each channel in which the caller pays.
#[utoipa::path(
    get, path = "/lit-compute/vouchers", tag = "vouchers", security(("bearer" = [])),
    responses((status = 200, body = VoucherList))
)]
async fn own_vouchers(State(app): State<App>, user: SignedIn) -> ApiResult<Json<VoucherList>> {
    let vouchers = voucher::best_of(&mut *app.db().await?, None, Some(user.wallet())).await?;
    Ok(Json(VoucherList { vouchers: vouchers.into_iter().map(VoucherBody::from).collect() }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PostRequest {
    /// As it was signed.
    voucher: VoucherJson,
    /// Over the EIP-712 type `Voucher`, by the requester or a session key.
    signature: HexBytes,
}

/// The EIP-712 type `Voucher`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VoucherJson {
    /// Who pays.
    requester: WalletAddress,
    /// Who is paid.
    node: WalletAddress,
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// All that the channel ever paid, or is to pay, in the token's smallest unit.
    cumulative: Amount,
    /// Signed orders with a nonce up to it are paid for by the voucher; a decimal string.
    #[serde(with = "uint64_text")]
    #[schema(value_type = String, example = "7")]
    covered_nonce: u64,
}

/// Hand in a voucher
///
/// It must pay for every job that it covers, and cover none that the node has yet to do. The same voucher again changes nothing.
#[utoipa::path(
    post, path = "/lit-compute/vouchers", tag = "vouchers", security(("bearer" = [])), request_body = PostRequest,
    responses(
        (status = 200, body = VoucherBody),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`wallet_mismatch`"),
        (status = 409, body = Problem, content_type = "application/problem+json",
         description = "`voucher_stale`, `voucher_covers_unfinished`"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "`bad_voucher_signature`, `voucher_mismatch`, `session_insufficient`, `invalid_field`"),
    )
)]
async fn post_voucher(
    State(app): State<App>,
    user: SignedIn,
    Json(request): Json<PostRequest>,
) -> ApiResult<Json<VoucherBody>> {
    let now = clock::now();
    let json = &request.voucher;
    let channel = Channel { requester: json.requester.0, node: json.node.0, token: json.token.0 };
    let beyond = |_| ApiError::field(Code::InvalidField, "voucher.cumulative", "must be below 2^128");
    let signed = Voucher {
        requester: channel.requester,
        node: channel.node,
        token: channel.token,
        cumulative: json.cumulative.to_u128().map_err(beyond)?,
        coveredNonce: json.covered_nonce,
    };
    let digest = typed_data::voucher_digest(&signed, &app.domain);
    check_size(&signed, &request.signature.0)?;
    let signer = signer(&app, channel, user.wallet(), digest, &request.signature.0).await?;
    let mut tx = app.begin().await?;
    voucher::lock(&mut tx, channel).await?;
    let standing = voucher::standing(&mut tx, channel, now).await?;
    if let Some(best) = standing.best.as_ref().filter(|best| is_same(best, &signed)) {
        return Ok(Json(best.clone().into()));
    }
    check_standing(&standing, &signed)?;
    if signer != channel.requester {
        check_session(&mut tx, channel, signer, &standing, &signed, now).await?;
    }
    voucher::insert(&mut tx, &signed, signer, &request.signature.0, now).await?;
    outbox::append(&mut tx, Source::Work, Entity::Node(channel.node), "voucher.received", now).await?;
    tx.commit().await?;
    let Channel { requester, node, token } = channel;
    let (cumulative, covered_nonce) = (signed.cumulative, signed.coveredNonce);
    tracing::info!(%requester, %node, %token, cumulative, covered_nonce, "voucher received");
    Ok(Json(VoucherBody::from(Signed {
        channel,
        cumulative: signed.cumulative.into(),
        covered_nonce,
        signer,
        signature: request.signature.0,
        created_at: now,
    })))
}

fn is_same(best: &Signed, signed: &Voucher) -> bool {
    best.cumulative == signed.cumulative.into() && best.covered_nonce == signed.coveredNonce
}

/// That the contract can pay all of it, and takes the signature.
fn check_size(signed: &Voucher, signature: &[u8]) -> ApiResult<()> {
    if signed.cumulative > MAX_CUMULATIVE {
        let detail = format!("must be at most {MAX_CUMULATIVE}: the escrow pays no channel more by vouchers");
        return Err(ApiError::field(Code::InvalidField, "voucher.cumulative", detail));
    }
    if signature.len() > wallet::MAX_SIGNATURE_BYTES {
        let detail = format!("must have at most {} bytes", wallet::MAX_SIGNATURE_BYTES);
        return Err(ApiError::field(Code::InvalidField, "signature", detail));
    }
    Ok(())
}

/// Who signed: the requester, by its key or as a contract wallet, or one of its session keys. Handed in by the requester or
/// the session key, or, as contract wallets cannot sign in, by anyone for one of those.
async fn signer(app: &App, channel: Channel, caller: Address, digest: B256, signature: &[u8]) -> ApiResult<Address> {
    let recovered = typed_data::recover(signature, digest);
    let mismatch = || {
        let detail = format!("is not who signed in, {caller}");
        Err(ApiError::field(Code::WalletMismatch, "voucher.requester", detail))
    };
    if let Ok(signer) = recovered {
        let key = (channel.requester, signer, channel.token);
        let is_key =
            signer == channel.requester || escrow::sessions(&mut *app.db().await?, &[key]).await?.contains_key(&key);
        if is_key {
            return if caller == channel.requester || caller == signer { Ok(signer) } else { mismatch() };
        }
    }
    if wallet::accepts(app, channel.requester, digest, signature).await? {
        return Ok(channel.requester);
    }
    if caller != channel.requester {
        return mismatch();
    }
    let detail = match recovered {
        Ok(signer) => format!("is by {signer}, which is neither the requester nor a session key of the token"),
        Err(error) => error.to_string(),
    };
    Err(ApiError::field(Code::BadVoucherSignature, "signature", detail))
}

/// That the voucher is worth what it covers, and harms nobody.
fn check_standing(standing: &Standing, signed: &Voucher) -> ApiResult<()> {
    let base = standing.base_nonce();
    if signed.coveredNonce <= base {
        let detail = format!("must be above {base}, up to which orders are covered already");
        return Err(ApiError::field(Code::VoucherStale, "voucher.coveredNonce", detail));
    }
    if standing.done.iter().all(|job| job.nonce > signed.coveredNonce) {
        let detail = format!("covers nothing that is done: the node has done no order from {} to it", base + 1);
        return Err(ApiError::field(Code::VoucherStale, "voucher.coveredNonce", detail));
    }
    if let Some(unfinished) = standing.held_up_by.filter(|nonce| *nonce <= signed.coveredNonce) {
        let detail = format!("must be below {unfinished}: the node has yet to do the order of that nonce");
        return Err(ApiError::field(Code::VoucherCoversUnfinished, "voucher.coveredNonce", detail));
    }
    let required = standing.required(signed.coveredNonce);
    if Amount::from(signed.cumulative) != required {
        let detail = format!("must be {required} for orders up to nonce {}", signed.coveredNonce);
        return Err(ApiError::field(Code::VoucherMismatch, "voucher.cumulative", detail));
    }
    Ok(())
}

/// That the contract would pay the voucher on the session key's word, for some time to come.
async fn check_session(
    db: &mut PgConnection,
    channel: Channel,
    signer: Address,
    standing: &Standing,
    signed: &Voucher,
    now: DateTime<Utc>,
) -> ApiResult<()> {
    let key = (channel.requester, signer, channel.token);
    let Some(session) = escrow::sessions(db, &[key]).await?.remove(&key) else {
        let detail = format!("is by {signer}, which is neither the requester nor a session key of the token");
        return Err(ApiError::field(Code::BadVoucherSignature, "signature", detail));
    };
    let refuse = |detail: String| Err(ApiError::field(Code::SessionInsufficient, "signature", detail));
    if session.expires_at < now + SESSION_MARGIN {
        return refuse(format!("is by the session key {signer}, which ends at {}", session.expires_at));
    }
    let claimed = standing.chain.claimed.0.saturating_sub(standing.paid_alone.0);
    let due = Amount(Amount::from(signed.cumulative).0.saturating_sub(claimed));
    if session.left < due {
        return refuse(format!(
            "is by the session key {signer}, which may still spend {}, and {due} is due",
            session.left
        ));
    }
    Ok(())
}
