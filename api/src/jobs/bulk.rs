//! Many signed orders at once: signatures are checked on all cores, off the threads that answer, and what is good is kept in
//! one transaction.

use std::{
    collections::{HashMap, HashSet},
    num::NonZero,
    thread,
};

use alloy::primitives::{Address, B256};
use axum::extract::State;
use futures::{StreamExt, stream};
use market::{clock, job::JobStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    check::invalid,
    signed::{self, SignedDraft},
    submit::{Draft, SubmitRequest},
};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Problem},
    extract::{BulkJson, Json, parse_value},
    wallet,
    wire::Hash,
};

/// Most orders in a request.
const MAX_ORDERS: usize = 1000;
/// Most threads that check signatures of one request.
const MAX_THREADS: usize = 8;
/// Questions to the chain that one request may have under way.
const WALLETS_AT_ONCE: usize = 4;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(submit_jobs))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BulkRequest {
    /// Signed orders, at most a thousand. What is wrong with one of them is answered for that one.
    #[schema(value_type = Vec<SubmitRequest>, max_items = 1000)]
    jobs: Vec<Value>,
}

/// What became of each order.
#[derive(Debug, Serialize, ToSchema)]
struct BulkBody {
    /// One for each, in their order.
    jobs: Vec<BulkItem>,
}

/// What became of one order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BulkItem {
    /// Which, from 0.
    index: usize,
    /// The order's EIP-712 digest, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    job_id: Option<Hash>,
    /// Where the job stands, if the order was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    status: Option<JobStatus>,
    /// Why it was not: as `jobs/submit` would answer. `field` is a path inside the order's item.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    problem: Option<Problem>,
}

/// An order that could be read, or why it could not; with its id as soon as that is known.
struct Item {
    job_id: Option<B256>,
    draft: ApiResult<SignedDraft>,
}

/// Hand in many signed orders
///
/// Each is answered by itself, as `jobs/submit` answers it; a bad one harms no other. The body may have 4 MiB.
#[utoipa::path(
    post, path = "/lit-compute/jobs/submit/bulk", tag = "jobs", security(("bearer" = [])), request_body = BulkRequest,
    responses((status = 200, body = BulkBody))
)]
async fn submit_jobs(
    State(app): State<App>,
    user: SignedIn,
    BulkJson(request): BulkJson<BulkRequest>,
) -> ApiResult<Json<BulkBody>> {
    if request.jobs.len() > MAX_ORDERS {
        return Err(invalid("jobs", format!("must be at most {MAX_ORDERS}")));
    }
    let reader = app.clone();
    let read = tokio::task::spawn_blocking(move || read_all(&reader, request.jobs));
    let items = read.await.map_err(ApiError::internal)?;
    let caller = user.wallet();
    let contracts = contracts(&app, &items).await;
    let items: Vec<Item> = stream::iter(items)
        .map(|item| check_signer(&app, caller, &contracts, item))
        .buffered(WALLETS_AT_ONCE)
        .collect()
        .await;

    let (mut answers, mut drafts, mut places) = (Vec::with_capacity(items.len()), Vec::new(), Vec::new());
    for (index, item) in items.into_iter().enumerate() {
        let mut answer = BulkItem { index, job_id: item.job_id.map(Hash), status: None, problem: None };
        match item.draft {
            Ok(draft) => {
                places.push(index);
                drafts.push(draft);
            }
            Err(error) => answer.problem = Some(error.into_problem()),
        }
        answers.push(answer);
    }
    let kept = signed::keep(&app, &drafts, clock::now()).await?;
    for (index, outcome) in places.into_iter().zip(kept) {
        let Some(answer) = answers.get_mut(index) else { continue };
        match outcome {
            Ok(status) => answer.status = Some(status),
            Err(error) => answer.problem = Some(error.into_problem()),
        }
    }
    Ok(Json(BulkBody { jobs: answers }))
}

/// Reads the orders and recovers their signers, on several threads.
fn read_all(app: &App, jobs: Vec<Value>) -> Vec<Item> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let share = jobs.len().div_ceil(threads).max(1);
    let mut jobs = jobs.into_iter();
    thread::scope(|scope| {
        let shares: Vec<Vec<Value>> = (0..threads).map(|_| jobs.by_ref().take(share).collect()).collect();
        let work = |share: Vec<Value>| move || share.into_iter().map(|value| read(app, value)).collect::<Vec<_>>();
        let workers: Vec<_> = shares.into_iter().map(|share| scope.spawn(work(share))).collect();
        let read =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        read.flatten().collect()
    })
}

fn read(app: &App, value: Value) -> Item {
    let draft = parse_value::<SubmitRequest>(value).and_then(|mut request| {
        let signature = request.take_signature();
        Draft::read(app, &request).map(|draft| (draft, signature))
    });
    match draft {
        Ok((draft, signature)) => {
            let job_id = Some(draft.job_id);
            let missing = || invalid("signature", "is needed here; orders to be opened are announced one by one");
            Item { job_id, draft: signature.ok_or_else(missing).and_then(|bytes| SignedDraft::read(draft, bytes)) }
        }
        Err(error) => Item { job_id: None, draft: Err(error) },
    }
}

/// Which requesters whose keys did not sign are contracts, as far as the chain answers. Usually there is one requester, and it
/// is none: then the chain is asked once.
async fn contracts(app: &App, items: &[Item]) -> HashMap<Address, bool> {
    let wallets: HashSet<Address> =
        items.iter().filter_map(|item| item.draft.as_ref().ok()).filter_map(SignedDraft::wallet).collect();
    let answers =
        stream::iter(wallets).map(|wallet| async move { (wallet, wallet::is_contract(app, wallet).await.ok()) });
    let answers: Vec<_> = answers.buffer_unordered(WALLETS_AT_ONCE).collect().await;
    answers.into_iter().filter_map(|(wallet, is_contract)| Some((wallet, is_contract?))).collect()
}

async fn check_signer(app: &App, caller: Address, contracts: &HashMap<Address, bool>, item: Item) -> Item {
    let Item { job_id, draft } = item;
    let draft = match draft {
        Ok(draft) => {
            let is_contract = draft.wallet().and_then(|wallet| contracts.get(&wallet).copied());
            draft.check_signer(app, caller, is_contract).await.map(|()| draft)
        }
        Err(error) => Err(error),
    };
    Item { job_id, draft }
}
