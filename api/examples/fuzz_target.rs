//! An API with something in it, for `scripts/fuzz-api`: prints what a fuzzer needs to know as JSON, serves until its input ends.

// As the tests, whose world this is.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, dead_code)]

#[path = "../tests/http/support.rs"]
mod support;

use std::time::Duration;

use alloy::signers::SignerSync;
use devnet::{Anvil, AnvilOptions};
use market::{
    abi::{JobSpec, Order},
    typed_data,
};
use serde_json::{Value, json};
use support::{Api, User, Wish, deployment, job_id, order, set_cursor, spec, submission};
use tokio::io::AsyncReadExt;

#[tokio::main]
async fn main() {
    let anvil = Anvil::start(AnvilOptions::default()).await.unwrap();
    let wish = Wish {
        rpc_url: Some(anvil.rpc_url().to_owned()),
        settings: Some(|settings| {
            // What the owner holds does not change by itself meanwhile.
            settings.lease = chrono::TimeDelta::hours(1);
            // An answer that is late because the machine is busy is no fault of the API's.
            settings.request_timeout = Duration::from_secs(600);
        }),
        ..Wish::default()
    };
    let api = Api::with(wish).await;
    set_cursor(&api, 0, 1_800_000_000).await;
    let (owner, stranger) = (api.node().await, api.requester().await);
    api.deposit(owner.address(), 1_000_000).await;
    // Orders that can be handed in, by one or the other.
    let orders = [orders_of(&api, &owner).await, orders_of(&api, &stranger).await].concat();
    let told = json!({
        "url": api.url,
        "owner": { "token": owner.token, "address": owner.name(), "nodeId": support::node_id(owner.address()) },
        "stranger": { "token": stranger.token, "address": stranger.name() },
        // What only the owner may change, or even see.
        "jobs": jobs_of(&api, &owner).await,
        "orders": orders,
    });
    println!("{told}");
    let mut rest = Vec::new();
    tokio::io::stdin().read_to_end(&mut rest).await.unwrap();
    // Destructors end the servers.
    drop(api);
    drop(anvil);
}

/// Ten orders of `user`, signed and announced in turn.
async fn orders_of(api: &Api, user: &User) -> Vec<Value> {
    let spec = spec(api.blob(b"input").await);
    let order = |_| order(user.address(), &spec);
    let all = (0..10).map(order).enumerate();
    all.map(|(n, order)| if n % 2 == 0 { signed_submission(user, &order, &spec) } else { submission(&order, &spec) })
        .collect()
}

fn signed_submission(user: &User, order: &Order, spec: &JobSpec) -> Value {
    let digest = typed_data::job_id(order, &deployment().domain());
    let mut body = submission(order, spec);
    body["signature"] = json!(user.signer.sign_hash_sync(&digest).unwrap().to_string());
    body
}

/// Jobs of one who is both requester and node: announced, signed, held and done.
async fn jobs_of(api: &Api, owner: &User) -> Value {
    let spec = spec(api.blob(b"input").await);
    let own = |nonce| Order { nonce, node: owner.address(), ..order(owner.address(), &spec) };
    let announced = own(9);
    api.post(owner, "/lit-compute/jobs/submit", submission(&announced, &spec)).await.ok();
    let mut signed = Vec::new();
    for nonce in 1..=3 {
        let order = own(nonce);
        api.post(owner, "/lit-compute/jobs/submit", signed_submission(owner, &order, &spec)).await.ok();
        signed.push(job_id(&order));
    }
    let (held, done) = (api.claim(owner).await.ok(), api.claim(owner).await.ok());
    let output = api.blob(b"output").await;
    let path = format!("/lit-compute/jobs/{}/complete", done.job_id());
    api.post(owner, &path, owner.completion(done.job_id(), 1, output, 1_000)).await.ok();
    let waiting = signed.iter().find(|id| **id != held.job_id() && **id != done.job_id()).unwrap();
    json!({ "announced": job_id(&announced), "waiting": waiting, "held": held.job_id(), "done": done.job_id() })
}
