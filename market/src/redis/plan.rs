//! What Redis must hold of a job or a node, worked out from a snapshot of it. Pure: the Lua scripts only carry it out.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::keys::{COMPLETED_TTL_SECS, Keys, NODE_TTL_SECS, PAYMENTS_TTL_SECS, line_member, line_name};
use crate::ContentId;
use crate::db::job_view::JobView;
use crate::db::node_view::NodeView;
use crate::job::JobStatus;

/// Something that happened to an entity, to be told with the state that follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name, such as `job.opened`.
    pub name: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// All keys of a job. Numbers are texts, since Lua would write large ones with an exponent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobPlan {
    /// `job:{id}:status`; no such key if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<BTreeMap<&'static str, String>>,
    /// When that hash goes (unix ms).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<String>,
    /// Score in `jobs:pending`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
    /// Node in whose `jobs:active:{nodeId}` it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<B256>,
    /// Score in `jobs:completed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<String>,
    /// Entry of a `payments:pending:{nodeId}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owed: Option<Owed>,
    /// Entry of `payments:completed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paid: Option<Paid>,
    /// When its status changes by itself (unix ms).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// Its line was served: the job left it for a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<Served>,
    /// Whether the node that held it is to be told if it holds it no more.
    pub tell: bool,
    /// Node that has a lease of it and does not hold it: the one to be told where Redis has forgotten who held it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased: Option<B256>,
    /// Channels and messages.
    pub messages: Vec<(String, String)>,
}

/// A line's turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Served {
    /// [`line_name`].
    pub line: String,
    /// When (unix ms).
    pub at: String,
}

/// A payment that is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owed {
    /// To whom.
    pub node: B256,
    /// When the job was completed (unix ms).
    pub at: String,
    /// The entry.
    pub payment: String,
}

/// A payment that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Paid {
    /// When it was made (unix ms).
    pub score: String,
    /// The entry.
    pub payment: String,
}

/// An entry of `payments:pending:{nodeId}` and `payments:completed`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payment {
    job_id: B256,
    amount: String,
    /// When the job was completed (unix ms), for both keys: the entry stays the same text.
    timestamp: i64,
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain_id: Option<u64>,
}

/// A message on a job's channel and on the global one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobMessage<'a> {
    event: &'a str,
    job_id: B256,
    timestamp: i64,
    /// The precise status, or `removed`.
    state: &'a str,
    #[serde(flatten)]
    fields: BTreeMap<&'static str, &'a str>,
}

/// Fields of the hash that messages repeat.
const TOLD: [&str; 8] = ["status", "requester", "operation", "nodeId", "outputCID", "price", "txHash", "error"];

/// The plan for `job_id`, whose snapshot is `view`; nothing is left of it where that is none.
#[must_use]
pub fn job(job_id: B256, view: Option<&JobView>, events: &[Event], keys: &Keys, now: DateTime<Utc>) -> JobPlan {
    let mut plan = view.map(|view| job_state(view, now)).unwrap_or_default();
    plan.tell = !events.is_empty();
    let state = view.map_or("removed", |view| view.status(now).name());
    for event in events {
        let name = job_word(&event.name, view, now);
        let told = plan.fields.iter().flatten().filter(|(name, _)| TOLD.contains(name));
        let message = JobMessage {
            event: name,
            job_id,
            timestamp: event.at.timestamp_millis(),
            state,
            fields: told.map(|(name, value)| (*name, value.as_str())).collect(),
        };
        let text = json(&message);
        plan.messages.push((keys.channel_job(job_id), text.clone()));
        plan.messages.push((keys.channel_global(), text));
    }
    if let Some((view, node_id)) = view.and_then(|view| Some((view, view.order_node_id?)))
        && plan.tell
        && plan.pending.is_some()
    {
        let command =
            serde_json::json!({ "command": "job.available", "jobId": job_id, "operation": view.spec.operation });
        plan.messages.push((keys.channel_node(node_id), command.to_string()));
    }
    plan
}

/// What a payment or decision is called while it is not final: it is told again, by its name, when it is.
fn job_word<'a>(name: &'a str, view: Option<&JobView>, now: DateTime<Utc>) -> &'a str {
    let is_settling = view.is_some_and(|view| view.status(now) == JobStatus::Settling);
    if is_settling && matches!(name, "job.paid" | "job.resolved") { "job.settling" } else { name }
}

fn job_state(view: &JobView, now: DateTime<Utc>) -> JobPlan {
    let status = view.status(now);
    // What is only announced has no place in the queue, nor has what was taken off the chain again.
    let Some(word) = status.public_word() else { return JobPlan::default() };
    let payment = payment(view, status);
    let completed_at = completed_at(view).filter(|_| word == "completed");
    let hash_end = view.closed.map(|closed| closed.at + secs(COMPLETED_TTL_SECS));
    let mut plan = JobPlan {
        expire_at: hash_end.map(millis),
        pending: view.is_queued(now).then(|| view.queue_score().to_string()),
        active: view.node_id.filter(|_| status == JobStatus::Active),
        completed: completed_at.filter(|at| *at > now - secs(COMPLETED_TTL_SECS)).map(millis),
        deadline: (view.stored_status.at(view.deadline, view.deadline + secs(1)) != status)
            .then(|| millis(view.deadline)),
        served: view
            .lease
            .filter(|_| status == JobStatus::Active)
            .map(|lease| Served { line: line_of(view), at: millis(lease.since) }),
        ..JobPlan::default()
    };
    let mut fields = job_fields(view, status, word, payment.as_deref());
    if plan.pending.is_some() {
        fields.insert("line", line_member(&line_of(view), view.queue_score(), view.job_id));
    }
    plan.fields = hash_end.is_none_or(|end| end > now).then_some(fields);
    match (payment, view.paid(), view.node_id) {
        (Some(payment), Some((_, closed)), _) if closed.at > now - secs(PAYMENTS_TTL_SECS) => {
            plan.paid = Some(Paid { score: millis(closed.at), payment });
        }
        (Some(payment), None, Some(node)) => {
            plan.owed = completed_at.map(|at| Owed { node, at: millis(at), payment });
        }
        _ => {}
    }
    plan
}

fn line_of(view: &JobView) -> String {
    line_name(&view.spec.operation, view.order.node, view.order.requester)
}

/// When the result came: to the API, or where it went to the chain without it, there.
fn completed_at(view: &JobView) -> Option<DateTime<Utc>> {
    let here = view.completion.as_ref().map(|completion| completion.completed_at);
    let window = TimeDelta::seconds(i64::from(view.order.challengeWindow));
    let on_chain = || view.settled.and_then(|settled| settled.finalize_at.map(|end| end - window));
    here.or_else(on_chain).or_else(|| view.paid().map(|(_, closed)| closed.at))
}

/// The entry for what the job's node is owed or was paid.
fn payment(view: &JobView, status: JobStatus) -> Option<String> {
    let amount = match status {
        JobStatus::Challengeable | JobStatus::Paid => view.settled?.price,
        // What is on the chain and not final yet is owed as the chain has it.
        JobStatus::Completed | JobStatus::Settling => {
            view.settled.map(|settled| settled.price).or(view.due.map(|due| due.amount))?
        }
        _ => return None,
    };
    Some(json(&Payment {
        job_id: view.job_id,
        amount: amount.to_string(),
        timestamp: completed_at(view)?.timestamp_millis(),
        token: view.order.token.to_checksum(None),
        chain_id: view.chain_id,
    }))
}

fn job_fields(view: &JobView, status: JobStatus, word: &str, payment: Option<&str>) -> BTreeMap<&'static str, String> {
    let completion = view.completion.as_ref();
    let settled = view.settled;
    // The chain's word on the result counts, should it differ from what was handed in here.
    let result_hash = settled.map(|s| s.result_hash).or(completion.map(|c| c.result_hash));
    let price = settled.map(|s| s.price).or(completion.map(|c| c.price));
    let started_at = completion.map(|c| c.started_at).or(view.lease.map(|lease| lease.since));
    let tx = view.closed.map(|closed| closed.tx).or(settled.and_then(|s| s.tx)).or(view.batch.and_then(|b| b.tx));
    let optional = [
        ("openTxHash", view.opened.map(|opened| opened.tx.to_string())),
        ("createdAt", view.opened.map(|opened| millis(opened.at))),
        ("chainId", view.chain_id.map(|id| id.to_string())),
        ("nodeId", view.node_id.map(|id| id.to_string())),
        ("node", view.node.map(|node| node.to_checksum(None))),
        ("startedAt", started_at.map(millis)),
        ("completedAt", completed_at(view).map(millis)),
        ("outputCID", result_hash.map(|hash| ContentId::from_digest(hash).to_string())),
        ("resultHash", result_hash.map(|hash| hash.to_string())),
        ("price", price.map(|price| price.to_string())),
        ("payment", payment.map(str::to_owned)),
        ("txHash", tx.map(|tx| tx.to_string())),
        ("error", view.last_error.clone().or(view.hold_reason.clone())),
        ("specValid", (!view.spec_valid).then(|| "false".to_owned())),
    ];
    let mut fields = BTreeMap::from([
        ("status", word.to_owned()),
        ("state", status.name().to_owned()),
        ("requester", view.order.requester.to_checksum(None)),
        ("operation", view.spec.operation.clone()),
        ("inputCID", view.spec.inputCID.clone()),
        ("token", view.order.token.to_checksum(None)),
        ("maxPrice", view.order.maxPrice.to_string()),
        ("priority", view.terms.priority.to_string()),
        ("deadline", millis(view.deadline)),
        ("attempts", view.attempts.to_string()),
    ]);
    fields.extend(optional.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))));
    fields
}

/// All keys of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    /// Its id; nothing that is not registered on the chain has keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<B256>,
    /// `nodes:{nodeId}:status`; no such key, and none of the others, if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<BTreeMap<&'static str, String>>,
    /// When that hash goes (unix ms).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<String>,
    /// Score in `nodes:heartbeats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<String>,
    /// Whether it is in `nodes:available`.
    pub available: bool,
    /// Channels and messages.
    pub messages: Vec<(String, String)>,
}

/// The plan for a node, whose snapshot is `view`; nothing is left of it where that is none. A silent node has no hash: it
/// expired. A node without any stake can be given nothing and is shown as offline.
#[must_use]
pub fn node(address: Address, view: Option<&NodeView>, events: &[Event], keys: &Keys, now: DateTime<Utc>) -> NodePlan {
    let registration = view.and_then(|view| view.registration.as_ref());
    let mut plan = NodePlan { node_id: registration.map(|r| r.node_id), ..NodePlan::default() };
    if let (Some(view), Some(registration)) = (view.filter(|view| view.is_online(now)), registration)
        && let Some(profile) = &view.profile
    {
        plan.available = !registration.stake.0.is_zero();
        plan.expire_at = Some(millis(profile.last_heartbeat_at + secs(NODE_TTL_SECS)));
        plan.heartbeat = Some(millis(profile.last_heartbeat_at));
        plan.fields = Some(BTreeMap::from([
            ("nodeId", registration.node_id.to_string()),
            ("walletAddress", address.to_checksum(None)),
            ("capacity", view.capacity().to_string()),
            ("reputation", view.reputation.to_string()),
            ("status", if plan.available { "online" } else { "offline" }.to_owned()),
            ("lastHeartbeat", millis(profile.last_heartbeat_at)),
            ("operations", json(&view.operations())),
            ("publicKey", alloy::hex::encode_prefixed(&registration.public_key)),
            ("stake", registration.stake.to_string()),
        ]));
    }
    let is_slashing = view.is_some_and(|view| !view.slashing.0.is_zero());
    for event in events {
        let message = serde_json::json!({
            "event": if event.name == "node.slashed" && is_slashing { "node.slashing" } else { &event.name },
            "timestamp": event.at.timestamp_millis(),
            "walletAddress": address.to_checksum(None),
            "nodeId": plan.node_id,
            "status": if plan.available { "online" } else { "offline" },
        });
        plan.messages.push((keys.channel_global(), message.to_string()));
    }
    plan
}

fn millis(at: DateTime<Utc>) -> String {
    at.timestamp_millis().to_string()
}

fn secs(secs: u64) -> TimeDelta {
    TimeDelta::seconds(secs.cast_signed())
}

pub(super) fn json(value: &impl Serialize) -> String {
    // Structs of texts and integers always have a JSON form.
    serde_json::to_string(value).unwrap_or_default()
}
