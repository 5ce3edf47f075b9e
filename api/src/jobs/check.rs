//! What an order must be like to become a job. Everything that can be known is checked before money moves.

use std::collections::{HashMap, hash_map::Entry};

use alloy::primitives::Address;
use chrono::{DateTime, TimeDelta, Utc};
use market::{
    ContentId,
    abi::{JobSpec, Order},
    db::{
        blob, escrow,
        node_view::{self, NodeView},
        submission,
        voucher::{self, Channel},
    },
    typed_data,
};
use sqlx::PgConnection;

use crate::{
    app::App,
    error::{ApiError, ApiResult, Code},
};

/// `JobEscrow.MAX_DEADLINE`, in seconds.
const MAX_DEADLINE_SECS: u64 = 365 * 24 * 60 * 60;
/// Basis points of the whole.
const BPS: u16 = 10_000;
/// Longest name of an operation: `NodeRegistry.MAX_OPERATION_LENGTH`.
const MAX_OPERATION_BYTES: usize = 64;
/// Longest parameters: they are paid for as calldata and handed to every node that asks.
const MAX_PARAMS_BYTES: usize = 16 * 1024;

pub(super) fn invalid(field: &str, detail: impl Into<String>) -> ApiError {
    ApiError::field(Code::InvalidField, field, detail)
}

/// What the spec says by itself. Returns the input's id.
pub(super) fn spec_by_itself(order: &Order, spec: &JobSpec) -> ApiResult<ContentId> {
    let input = spec.inputCID.parse::<ContentId>().map_err(|error| invalid("spec.inputCID", error.to_string()))?;
    if spec.operation.is_empty() || spec.operation.len() > MAX_OPERATION_BYTES {
        return Err(invalid("spec.operation", format!("must have 1 to {MAX_OPERATION_BYTES} bytes")));
    }
    if spec.params.len() > MAX_PARAMS_BYTES {
        return Err(invalid("spec.params", format!("must have at most {MAX_PARAMS_BYTES} bytes")));
    }
    let is_object = || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&spec.params).is_ok();
    if !spec.params.is_empty() && !is_object() {
        return Err(invalid("spec.params", "must be the text of a JSON object, or empty"));
    }
    // Postgres stores no NUL. JSON that is valid has none in `params`.
    if spec.operation.contains('\0') {
        return Err(invalid("spec.operation", "contains a NUL character"));
    }
    let actual = typed_data::spec_hash(spec);
    if order.specHash != actual {
        return Err(ApiError::field(Code::SpecHashMismatch, "order.specHash", format!("the spec hashes to {actual}")));
    }
    Ok(input)
}

/// What `openJob` would refuse, and what no node would be given.
pub(super) fn order_by_itself(app: &App, order: &Order, now: DateTime<Utc>) -> ApiResult<()> {
    let refuse = |field: &str, detail: String| Err(ApiError::field(Code::OrderInvalid, field, detail));
    let seconds = u64::try_from(now.timestamp()).map_err(ApiError::internal)?;
    let margin = app.parts.settings.deadline_margin;
    if order.deadline < seconds.saturating_add(margin_secs(margin)) {
        let detail = format!("must be at least {} seconds from now, {seconds}", margin.num_seconds());
        return Err(ApiError::field(Code::OrderExpired, "order.deadline", detail));
    }
    if order.deadline > seconds + MAX_DEADLINE_SECS {
        return refuse("order.deadline", format!("must be at most {MAX_DEADLINE_SECS} seconds from now, {seconds}"));
    }
    if order.maxPrice == 0 {
        return refuse("order.maxPrice", "must not be zero".to_owned());
    }
    if order.maxFeeBps > BPS {
        return refuse("order.maxFeeBps", format!("must be at most {BPS}"));
    }
    let max_window = app.parts.deployment.escrow_params.max_challenge_window;
    if order.challengeWindow > max_window {
        return refuse("order.challengeWindow", format!("must be at most {max_window} seconds"));
    }
    if order.node != Address::ZERO {
        return Ok(());
    }
    if order.challengeWindow == 0 {
        return refuse("order.challengeWindow", "must not be zero where the order leaves its node open".to_owned());
    }
    if order.assigner != app.assigner() {
        let detail = format!("must be {} where the order leaves its node open", app.assigner());
        return Err(ApiError::field(Code::WrongAssigner, "order.assigner", detail));
    }
    Ok(())
}

/// That a delayed job can still be given out when its delay is over.
pub(super) fn delay(app: &App, order: &Order, not_before: Option<DateTime<Utc>>) -> ApiResult<()> {
    let Some(not_before) = not_before else { return Ok(()) };
    let margin = app.parts.settings.deadline_margin;
    let seconds = u64::try_from(not_before.timestamp()).unwrap_or(0);
    if seconds.saturating_add(margin_secs(margin)) > order.deadline {
        let detail = format!("must be at least {} seconds before the order's deadline", margin.num_seconds());
        return Err(invalid("notBefore", detail));
    }
    Ok(())
}

fn margin_secs(margin: TimeDelta) -> u64 {
    u64::try_from(margin.num_seconds()).unwrap_or(0)
}

/// What is stored here, as far as orders of one transaction depend on it: each thing is looked up once.
pub(super) struct Stored<'a> {
    app: &'a App,
    inputs: HashMap<ContentId, bool>,
    nodes: HashMap<Address, Option<NodeView>>,
    offered: HashMap<String, bool>,
    covered: HashMap<Channel, u64>,
}

impl<'a> Stored<'a> {
    pub(super) fn new(app: &'a App) -> Self {
        Self { app, inputs: HashMap::new(), nodes: HashMap::new(), offered: HashMap::new(), covered: HashMap::new() }
    }

    /// What depends on what is stored here, except the deposit: the input, the nodes.
    pub(super) async fn check(
        &mut self,
        db: &mut PgConnection,
        order: &Order,
        spec: &JobSpec,
        input: ContentId,
    ) -> ApiResult<()> {
        if !self.has(db, input).await? {
            let detail = format!("{input} is not stored here; put it to blobs first");
            return Err(ApiError::field(Code::InputUnknown, "spec.inputCID", detail));
        }
        if order.node == Address::ZERO {
            return self.check_offered(db, &spec.operation).await;
        }
        self.check_node(db, order.node, &spec.operation).await
    }

    async fn has(&mut self, db: &mut PgConnection, input: ContentId) -> ApiResult<bool> {
        Ok(match self.inputs.entry(input) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => *entry.insert(blob::size(db, input).await?.is_some()),
        })
    }

    async fn check_offered(&mut self, db: &mut PgConnection, operation: &str) -> ApiResult<()> {
        let offered = match self.offered.get(operation) {
            Some(offered) => *offered,
            None => {
                let min_stake = self.app.parts.deployment.registry_params.min_stake;
                let offered = submission::is_offered(db, operation, min_stake).await?;
                self.offered.insert(operation.to_owned(), offered);
                offered
            }
        };
        if offered { Ok(()) } else { Err(not_offered(format!("no staked node performs {operation:?}"))) }
    }

    async fn check_node(&mut self, db: &mut PgConnection, address: Address, operation: &str) -> ApiResult<()> {
        let node = match self.nodes.entry(address) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(node_view::by_address(db, address).await?),
        };
        let node = node.as_ref();
        let Some(registration) = node.and_then(|node| node.registration.as_ref()) else {
            let detail = format!("{address} is not registered on the chain");
            return Err(ApiError::field(Code::OrderNodeNotRegistered, "order.node", detail));
        };
        let min_stake = self.app.parts.deployment.registry_params.min_stake;
        if registration.stake < min_stake {
            let detail = format!("has a stake of {}, less than {min_stake}", registration.stake);
            return Err(ApiError::field(Code::OrderNodeInsufficientStake, "order.node", detail));
        }
        let offers = node.is_some_and(|node| node.operations().iter().any(|offered| offered == operation));
        if offers { Ok(()) } else { Err(not_offered(format!("{address} does not perform {operation:?}"))) }
    }

    /// That a signed order's nonce can be paid: not zero, and not covered by a voucher that its node has or has redeemed.
    /// Hold the channel's lock.
    pub(super) async fn check_nonce(&mut self, db: &mut PgConnection, order: &Order) -> ApiResult<()> {
        if order.nonce == 0 {
            let detail = "must be at least 1 in an order that is signed: a voucher covers orders from 1 on";
            return Err(ApiError::field(Code::OrderInvalid, "order.nonce", detail));
        }
        let Some(channel) = channel(order) else { return Ok(()) };
        let covered = match self.covered.entry(channel) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => *entry.insert(covered_nonce(db, channel).await?),
        };
        if order.nonce > covered {
            return Ok(());
        }
        let detail = format!("must be above {covered}, up to which orders for {} are covered by a voucher", order.node);
        Err(ApiError::field(Code::NonceCovered, "order.nonce", detail))
    }
}

fn not_offered(detail: String) -> ApiError {
    ApiError::field(Code::OperationNotOffered, "spec.operation", detail)
}

/// Between the requester and the node that the order names, if it names one.
pub(super) fn channel(order: &Order) -> Option<Channel> {
    let Order { requester, node, token, .. } = *order;
    (node != Address::ZERO).then_some(Channel { requester, node, token })
}

/// Up to which nonce vouchers cover the channel's orders, redeemed or not.
pub(super) async fn covered_nonce(db: &mut PgConnection, channel: Channel) -> ApiResult<u64> {
    let key = (channel.requester, channel.node, channel.token);
    let chain = escrow::channels(db, &[key]).await?.get(&key).map_or(0, |channel| channel.covered_nonce);
    let best = voucher::best(db, channel).await?.map_or(0, |best| best.covered_nonce);
    Ok(chain.max(best))
}
