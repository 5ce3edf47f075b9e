//! Sending a plan, and telling what became of each item.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rpc::types::TransactionReceipt;
use market::Amount;
use market::abi::IJobEscrow::{JobPaid, JobRefunded, ResultSubmitted, Skipped, VoucherSkipped, VouchersRedeemed};
use market::abi::{Order, Result as JobResult, SignedVoucher};
use market::fold::Redeemed;
use serde::Serialize;
use serde_json::{Value, json};

use super::Snapshot;
use super::plan::{Redemption, Step};
use crate::chain::{Mined, Wallet};
use crate::node::earnings::{Earning, HeldVoucher};

/// What became of one item, or would.
#[derive(Debug, Clone)]
pub struct Outcome {
    about: About,
    result: Ended,
    tx_hash: Option<B256>,
}

#[derive(Debug, Clone)]
enum About {
    Voucher { requester: Address, token: Address, cumulative: Amount, covered_nonce: u64 },
    Job { job_id: B256, requester: Address, token: Address },
}

#[derive(Debug, Clone)]
enum Ended {
    /// Would be sent.
    Planned(&'static str, U256),
    /// The node was credited.
    Paid(U256),
    /// A challenge window runs.
    Submitted,
    /// The lock went back, because a voucher had paid.
    GivenBack,
    /// It had ended before.
    Closed(&'static str),
    Skipped(String),
}

/// How many items ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Credited to the node, or to be.
    pub settled: u64,
    /// Their challenge windows run.
    pub submitted: u64,
    /// Had ended before.
    pub closed: u64,
    /// Left alone, each with its reason.
    pub skipped: u64,
}

impl Tally {
    /// Counts one.
    pub fn add(&mut self, outcome: &Outcome) {
        match &outcome.result {
            Ended::Planned(..) | Ended::Paid(_) => self.settled += 1,
            Ended::Submitted => self.submitted += 1,
            Ended::GivenBack | Ended::Closed(_) => self.closed += 1,
            Ended::Skipped(_) => self.skipped += 1,
        }
    }
}

impl Outcome {
    fn voucher(held: &HeldVoucher, result: Ended, tx_hash: Option<B256>) -> Self {
        let about = About::Voucher {
            requester: held.requester,
            token: held.token,
            cumulative: held.cumulative,
            covered_nonce: held.covered_nonce,
        };
        Self { about, result, tx_hash }
    }

    fn job(earning: &Earning, result: Ended, tx_hash: Option<B256>) -> Self {
        let (requester, token) = (earning.order.requester, earning.order.token);
        Self { about: About::Job { job_id: earning.job_id, requester, token }, result, tx_hash }
    }

    /// `{command, item, …, outcome, amount, reason, txHash}`.
    pub fn to_json(&self) -> Value {
        let mut value = match &self.about {
            About::Voucher { requester, token, cumulative, covered_nonce } => json!({
                "command": "settle", "item": "voucher", "requester": requester.to_checksum(None),
                "token": token.to_checksum(None), "cumulative": cumulative, "coveredNonce": covered_nonce.to_string(),
            }),
            About::Job { job_id, requester, token } => json!({
                "command": "settle", "item": "job", "jobId": job_id, "requester": requester.to_checksum(None),
                "token": token.to_checksum(None),
            }),
        };
        let (word, amount, reason) = self.parts();
        value["outcome"] = json!(word);
        value["amount"] = json!(amount.map(Amount));
        value["reason"] = json!(reason);
        if let Some(hash) = self.tx_hash {
            value["txHash"] = json!(hash);
        }
        value
    }

    fn parts(&self) -> (&'static str, Option<U256>, Option<String>) {
        match &self.result {
            Ended::Planned(call, amount) => ("planned", Some(*amount), Some((*call).to_owned())),
            Ended::Paid(amount) => ("paid", Some(*amount), None),
            Ended::Submitted => ("submitted", None, None),
            Ended::GivenBack => ("closed", None, Some("a voucher had paid for it".to_owned())),
            Ended::Closed(reason) => ("closed", None, Some((*reason).to_owned())),
            Ended::Skipped(reason) => ("skipped", None, Some(reason.clone())),
        }
    }

    /// In a line.
    pub fn describe(&self, name: impl Fn(Address) -> String) -> String {
        let (about, token) = match &self.about {
            About::Voucher { requester, token, covered_nonce, .. } => {
                (format!("voucher of {requester} up to nonce {covered_nonce}"), *token)
            }
            About::Job { job_id, token, .. } => (format!("job {job_id}"), *token),
        };
        let (word, amount, reason) = self.parts();
        let amount = amount.map(|amount| format!(" {amount} {}", name(token))).unwrap_or_default();
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let tx = self.tx_hash.map(|hash| format!(" in {hash}")).unwrap_or_default();
        format!("{about}: {word}{amount}{reason}{tx}")
    }
}

/// What the plan would do.
pub fn planned(snapshot: &Snapshot) -> Vec<Outcome> {
    let mut outcomes = idle(snapshot);
    for redemption in &snapshot.plan.redemptions {
        let planned = Ended::Planned("redeemSigned", redemption.payable);
        outcomes.push(Outcome::voucher(&redemption.voucher, planned, None));
    }
    for (earning, step) in steps(snapshot) {
        let call = match step {
            Step::Submit => "submitResults",
            Step::Finalize => "finalize",
            _ => continue,
        };
        outcomes.push(Outcome::job(earning, Ended::Planned(call, earning.price.0), None));
    }
    outcomes
}

/// What is left alone: vouchers, and results that have ended or must wait.
fn idle(snapshot: &Snapshot) -> Vec<Outcome> {
    let skipped =
        |(voucher, reason): &(HeldVoucher, String)| Outcome::voucher(voucher, Ended::Skipped(reason.clone()), None);
    let mut outcomes: Vec<Outcome> = snapshot.plan.idle.iter().map(skipped).collect();
    for (earning, step) in steps(snapshot) {
        match step {
            Step::Skip(reason) => outcomes.push(Outcome::job(earning, Ended::Skipped(reason.clone()), None)),
            Step::Closed(reason) => outcomes.push(Outcome::job(earning, Ended::Closed(reason), None)),
            _ => {}
        }
    }
    outcomes
}

fn steps(snapshot: &Snapshot) -> impl Iterator<Item = (&Earning, &Step)> {
    let by_id: BTreeMap<B256, &Earning> = snapshot.open.iter().map(|earning| (earning.job_id, earning)).collect();
    snapshot.plan.steps.iter().filter_map(move |(job_id, step)| Some((*by_id.get(job_id)?, step)))
}

fn with<'a>(snapshot: &'a Snapshot, wanted: &Step) -> Vec<&'a Earning> {
    steps(snapshot).filter(|(_, step)| *step == wanted).map(|(earning, _)| earning).collect()
}

/// Sends the plan, `batch` items to a transaction, and tells `report` of each item.
pub async fn execute(
    wallet: &Wallet,
    snapshot: &Snapshot,
    batch: usize,
    mut report: impl FnMut(Outcome),
) -> anyhow::Result<()> {
    idle(snapshot).into_iter().for_each(&mut report);
    let mut by_token: BTreeMap<Address, Vec<&Redemption>> = BTreeMap::new();
    for redemption in &snapshot.plan.redemptions {
        by_token.entry(redemption.voucher.token).or_default().push(redemption);
    }
    for (token, redemptions) in by_token {
        for chunk in redemptions.chunks(batch) {
            redeem(wallet, token, chunk).await?.into_iter().for_each(&mut report);
        }
    }
    for chunk in with(snapshot, &Step::Submit).chunks(batch) {
        submit(wallet, chunk).await?.into_iter().for_each(&mut report);
    }
    for chunk in with(snapshot, &Step::Finalize).chunks(batch) {
        finalize(wallet, chunk).await?.into_iter().for_each(&mut report);
    }
    Ok(())
}

async fn redeem(wallet: &Wallet, token: Address, chunk: &[&Redemption]) -> anyhow::Result<Vec<Outcome>> {
    let escrow = wallet.chain.escrow();
    let mut vouchers = Vec::new();
    let mut claimed = Vec::new();
    for redemption in chunk {
        let held = &redemption.voucher;
        claimed.push(escrow.channel(held.requester, wallet.address, token).call().await?.claimed);
        vouchers.push(SignedVoucher {
            requester: held.requester,
            cumulative: held.cumulative.to_u128()?,
            coveredNonce: held.covered_nonce,
            signature: held.signature.clone(),
            settledAbove: redemption.settled_above.clone(),
        });
    }
    let plan = format!("Redeeming {} voucher(s) for {}", vouchers.len(), wallet.address);
    let call = escrow.redeemSigned(wallet.address, token, vouchers).into_transaction_request();
    let mined = wallet.send("redeemSigned", &plan, call).await?;
    let mut redeemed: BTreeMap<Address, U256> = BTreeMap::new();
    if let Some(log) = mined.receipt.decoded_log::<VouchersRedeemed>() {
        let event = Redeemed::try_from(log.data)?;
        redeemed.extend(event.redemptions.iter().map(|redemption| (redemption.requester, redemption.claimed)));
    }
    let skipped: BTreeMap<Address, String> =
        decoded::<VoucherSkipped>(&mined.receipt).map(|log| (log.requester, format!("{:?}", log.reason))).collect();
    let outcomes = chunk.iter().zip(claimed).map(|(redemption, before)| {
        let held = &redemption.voucher;
        let result = match (redeemed.get(&held.requester), skipped.get(&held.requester)) {
            (Some(after), _) => Ended::Paid(after.saturating_sub(before)),
            (None, reason) => Ended::Skipped(reason.cloned().unwrap_or_else(|| "without a reason".to_owned())),
        };
        Outcome::voucher(held, result, Some(mined.tx_hash))
    });
    Ok(outcomes.collect())
}

async fn submit(wallet: &Wallet, chunk: &[&Earning]) -> anyhow::Result<Vec<Outcome>> {
    let results: Vec<JobResult> =
        chunk.iter().map(|earning| result_of(earning, wallet.address)).collect::<Result<_, _>>()?;
    let plan = format!("Submitting {} result(s) of {}", results.len(), wallet.address);
    let call = wallet.chain.escrow().submitResults(results).into_transaction_request();
    let mined = wallet.send("submitResults", &plan, call).await?;
    Ok(outcomes(chunk, &mined))
}

async fn finalize(wallet: &Wallet, chunk: &[&Earning]) -> anyhow::Result<Vec<Outcome>> {
    let orders: Vec<Order> = chunk.iter().map(|earning| earning.order()).collect::<Result<_, _>>()?;
    let plan = format!("Finalizing {} result(s) of {}", orders.len(), wallet.address);
    let call = wallet.chain.escrow().finalize(orders).into_transaction_request();
    let mined = wallet.send("finalize", &plan, call).await?;
    Ok(outcomes(chunk, &mined))
}

fn result_of(earning: &Earning, node: Address) -> anyhow::Result<JobResult> {
    let (expiry, assignment) = match &earning.assignment {
        Some(assigned) if earning.order.node.is_zero() => (assigned.expiry, assigned.signature.clone()),
        _ => (0, Bytes::new()),
    };
    Ok(JobResult {
        order: earning.order()?,
        node,
        assignmentExpiry: expiry,
        price: earning.price.to_u128()?,
        resultHash: earning.result_hash,
        assignmentSignature: assignment,
        receiptSignature: earning.receipt_signature.clone(),
        orderSignature: earning.order_signature.clone().unwrap_or_default(),
    })
}

fn outcomes(chunk: &[&Earning], mined: &Mined) -> Vec<Outcome> {
    let mut results: BTreeMap<B256, Ended> = BTreeMap::new();
    for log in decoded::<Skipped>(&mined.receipt) {
        results.insert(log.jobId, Ended::Skipped(format!("{:?}", log.reason)));
    }
    for log in decoded::<ResultSubmitted>(&mined.receipt) {
        results.insert(log.jobId, Ended::Submitted);
    }
    for log in decoded::<JobRefunded>(&mined.receipt) {
        results.insert(log.jobId, Ended::GivenBack);
    }
    for log in decoded::<JobPaid>(&mined.receipt) {
        results.insert(log.jobId, Ended::Paid(U256::from(log.price)));
    }
    let missing = || Ended::Skipped("without a reason".to_owned());
    let of = |earning: &&Earning| {
        Outcome::job(earning, results.get(&earning.job_id).cloned().unwrap_or_else(missing), Some(mined.tx_hash))
    };
    chunk.iter().map(of).collect()
}

/// The receipt's events of one kind. Whatever tokens emit, only the escrow is called.
fn decoded<E: alloy::sol_types::SolEvent>(receipt: &TransactionReceipt) -> impl Iterator<Item = E> {
    receipt.logs().iter().filter_map(|log| Some(log.log_decode::<E>().ok()?.inner.data))
}
