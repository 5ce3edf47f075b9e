//! What requesters countersigned for a node, with the signatures: enough to redeem without this API.

use axum::extract::State;
use market::db::voucher;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NodePath, address_of};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path},
    vouchers::{VoucherBody, VoucherList},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(node_vouchers))
}

/// The best voucher of each channel of a node
///
/// For the node itself only.
#[utoipa::path(
    get, path = "/lit-compute/nodes/{id}/vouchers", tag = "nodes", security(("bearer" = [])), params(NodePath),
    responses(
        (status = 200, body = VoucherList),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`wallet_mismatch`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`node_not_found`"),
    )
)]
async fn node_vouchers(
    State(app): State<App>,
    user: SignedIn,
    Path(path): Path<NodePath>,
) -> ApiResult<Json<VoucherList>> {
    let mut db = app.db().await?;
    let node = address_of(&mut db, path.id).await?;
    if node != user.wallet() {
        let detail = format!("is not who signed in, {}", user.wallet());
        return Err(ApiError::field(Code::WalletMismatch, "id", detail));
    }
    let vouchers = voucher::best_of(&mut db, Some(node), None).await?;
    Ok(Json(VoucherList { vouchers: vouchers.into_iter().map(VoucherBody::from).collect() }))
}
