//! What the settler counts, and the small server that shows it.

use std::net::SocketAddr;

use anyhow::Context;
use axum::{Router, routing::get};
use market::batch::Kind;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;

/// Serves `GET /metrics` for Prometheus and `GET /live` on `bind` from now on.
pub async fn serve(bind: SocketAddr) -> anyhow::Result<()> {
    let recorder = PrometheusBuilder::new().install_recorder().context("installing the metrics recorder")?;
    describe();
    let router = Router::new()
        .route("/metrics", get(move || std::future::ready(recorder.render())))
        .route("/live", get(|| std::future::ready("ok")));
    let listener = tokio::net::TcpListener::bind(bind).await.with_context(|| format!("binding {bind}"))?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(())
}

fn describe() {
    describe_gauge!("littoral_settler_leading", "1 while this process sends payments, 0 while it stands by");
    describe_gauge!("littoral_settler_balance_wei", "What the settler's account has for gas");
    describe_gauge!("littoral_settler_underfunded", "1 while the account cannot pay for the next batch");
    describe_gauge!("littoral_settler_due_items", "Payments that could be sent and are in no batch");
    describe_gauge!("littoral_settler_pending_batches", "Batches that are not settled yet");
    describe_gauge!("littoral_settler_put_off_items", "Payments that are not tried for now");
    describe_counter!("littoral_settler_put_off_total", "Payments put off for a while, by kind and reason");
    describe_counter!("littoral_settler_batches_total", "Batches by kind and by how they ended");
    describe_counter!("littoral_settler_items_total", "Items of mined batches by what became of them");
    describe_counter!("littoral_settler_gas_used_total", "Gas of mined batches");
    describe_counter!("littoral_settler_sends_total", "Transactions sent, again or for the first time");
    describe_counter!("littoral_settler_fee_bumps_total", "Replacements with higher fees");
    describe_counter!("littoral_settler_refusals_total", "Transactions that the node refused");
    describe_counter!("littoral_settler_stuck_total", "Batches whose fees could not be raised within the caps");
    describe_counter!("littoral_settler_reopened_total", "Ended batches that a reorg has undone");
    describe_counter!("littoral_settler_final_total", "Batches that became final");
    describe_counter!("littoral_settler_foreign_nonces_total", "Nonces that other transactions have used");
    describe_gauge!("littoral_settler_quarantined", "1 while an unexplained nonce keeps everything from being sent");
    describe_gauge!("littoral_settler_waiting_for_gas", "1 while gas is dearer than --target-fee");
    describe_gauge!("littoral_settler_gas_budget_left_wei", "What --gas-budget leaves for these 24 hours");
    describe_counter!("littoral_settler_round_failures_total", "Rounds that ended with an error");
}

/// Whether this process leads.
pub fn leading(leads: bool) {
    gauge!("littoral_settler_leading").set(if leads { 1.0 } else { 0.0 });
}

/// The account's balance.
pub fn balance(wei: f64) {
    gauge!("littoral_settler_balance_wei").set(wei);
}

/// Whether it is too low.
pub fn underfunded(too_low: bool) {
    gauge!("littoral_settler_underfunded").set(if too_low { 1.0 } else { 0.0 });
}

/// What the budget for gas leaves.
pub fn gas_budget_left(wei: f64) {
    gauge!("littoral_settler_gas_budget_left_wei").set(wei);
}

/// Whether payments wait for cheaper gas.
pub fn waiting_for_gas(waits: bool) {
    gauge!("littoral_settler_waiting_for_gas").set(if waits { 1.0 } else { 0.0 });
}

/// Whether an unexplained nonce keeps everything from being sent.
pub fn quarantined(is: bool) {
    gauge!("littoral_settler_quarantined").set(if is { 1.0 } else { 0.0 });
}

/// Nonces were used by others.
pub fn foreign_nonces(count: u64) {
    counter!("littoral_settler_foreign_nonces_total").increment(count);
}

/// A reorg has undone a batch.
pub fn reopened() {
    counter!("littoral_settler_reopened_total").increment(1);
}

/// A batch became final.
pub fn finalized() {
    counter!("littoral_settler_final_total").increment(1);
}

/// The node refused a transaction.
pub fn refused() {
    counter!("littoral_settler_refusals_total").increment(1);
}

/// A batch cannot be replaced.
pub fn stuck() {
    counter!("littoral_settler_stuck_total").increment(1);
}

/// Sizes of the queues.
pub fn queues(due_items: usize, pending_batches: usize, put_off_items: usize) {
    gauge!("littoral_settler_put_off_items").set(u32::try_from(put_off_items).unwrap_or(u32::MAX));
    gauge!("littoral_settler_due_items").set(u32::try_from(due_items).unwrap_or(u32::MAX));
    gauge!("littoral_settler_pending_batches").set(u32::try_from(pending_batches).unwrap_or(u32::MAX));
}

/// A payment is not tried for a while.
pub fn put_off(kind: Kind, why: &'static str) {
    counter!("littoral_settler_put_off_total", "kind" => kind.name(), "why" => why).increment(1);
}

/// A batch was planned, mined, reverted or displaced.
pub fn batch(kind: Kind, event: &'static str) {
    counter!("littoral_settler_batches_total", "kind" => kind.name(), "event" => event).increment(1);
}

/// An item of a mined batch was settled, skipped or held.
pub fn item(kind: Kind, outcome: &'static str) {
    counter!("littoral_settler_items_total", "kind" => kind.name(), "outcome" => outcome).increment(1);
}

/// A mined batch took as much gas.
pub fn gas_used(kind: Kind, gas: u64) {
    counter!("littoral_settler_gas_used_total", "kind" => kind.name()).increment(gas);
}

/// Bytes went to the node.
pub fn sent() {
    counter!("littoral_settler_sends_total").increment(1);
}

/// A replacement was signed.
pub fn fee_bumped() {
    counter!("littoral_settler_fee_bumps_total").increment(1);
}

/// A round failed.
pub fn round_failed() {
    counter!("littoral_settler_round_failures_total").increment(1);
}
