//! What the contracts themselves return at one block against what their events amount to.

use std::collections::BTreeSet;

use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, I256, U256};
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};

use super::{Report, Truth, Verifier, VerifyError, What};
use crate::Amount;
use crate::abi::{IERC20, IJobEscrow, INodeRegistry, JobState};
use crate::db::chain::Block;
use crate::fold::{EscrowJob, EscrowState, Parameters, RegistryNode, time_of};
use crate::ledger::Account;
use crate::source::ask;

/// How many answers lie between two words about progress.
const TOLD_EVERY: usize = 2000;

/// The contracts at one block.
pub(super) struct View<'a> {
    provider: &'a DynProvider,
    verifier: &'a Verifier,
    block: &'a Block,
}

/// Something the contracts were asked: what, what their events say, and what they answer.
struct Answer {
    subject: String,
    expected: String,
    found: String,
}

fn answer<T: std::fmt::Debug>(subject: String, expected: &T, found: &T) -> Answer {
    Answer { subject, expected: format!("{expected:?}"), found: format!("{found:?}") }
}

/// When something ends, where there is something.
fn until(amount: impl Into<Amount>, end: u64) -> Option<DateTime<Utc>> {
    (amount.into() != Amount::ZERO).then(|| time_of(end))
}

impl<'a> View<'a> {
    pub(super) fn new(verifier: &'a Verifier, block: &'a Block) -> Self {
        Self { provider: verifier.source.provider(), verifier, block }
    }

    async fn escrow<C: SolCall>(&self, call: C) -> Result<C::Return, VerifyError> {
        self.call(self.verifier.deployment.escrow, call).await
    }

    async fn registry<C: SolCall>(&self, call: C) -> Result<C::Return, VerifyError> {
        self.call(self.verifier.deployment.registry, call).await
    }

    async fn call<C: SolCall>(&self, to: Address, call: C) -> Result<C::Return, VerifyError> {
        let request = TransactionRequest::default().to(to).input(Bytes::from(call.abi_encode()).into());
        let at = BlockId::hash(self.block.id.hash);
        let failed = |error: &_| VerifyError::call(C::SIGNATURE, self.block.id.number, error);
        let returned = ask("eth_call", || async { self.provider.call(request.clone()).block(at).await });
        let returned = returned.await.map_err(|error| failed(&error))?;
        C::abi_decode_returns(&returned).map_err(|error| VerifyError::Call {
            call: C::SIGNATURE,
            block: self.block.id.number,
            error: error.to_string(),
        })
    }

    async fn coins(&self, holder: Address) -> Result<U256, VerifyError> {
        let at = BlockId::hash(self.block.id.hash);
        let balance = ask("eth_getBalance", || async { self.provider.get_balance(holder).block_id(at).await });
        balance.await.map_err(|error| VerifyError::call("eth_getBalance", self.block.id.number, &error))
    }

    async fn account(&self, owner: Address, token: Address, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let row = truth.rows.accounts.get(&(owner, token)).copied().unwrap_or_default();
        let it = self.escrow(IJobEscrow::accountCall { owner, token }).await?;
        let found = (Amount::from(it.free), Amount::from(it.thawing), until(it.thawing, it.thawEnd));
        let subject = format!("account({owner}, {token}): free, thawing, thawEnd");
        Ok(vec![answer(subject, &(row.free, row.thawing, row.thaw_end), &found)])
    }

    async fn earned(&self, node: Address, token: Address, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let row = truth.rows.earned.get(&(node, token)).copied().unwrap_or_default();
        let it = self.escrow(IJobEscrow::earnedCall { node, token }).await?;
        Ok(vec![answer(format!("earned({node}, {token})"), &row, &Amount(it))])
    }

    async fn channel(&self, key: (Address, Address, Address), truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let (requester, node, token) = key;
        let row = truth.rows.channels.get(&key).copied().unwrap_or_default();
        let it = self.escrow(IJobEscrow::channelCall { requester, node, token }).await?;
        let found = (Amount(it.claimed), it.coveredNonce);
        let subject = format!("channel({requester}, {node}, {token}): claimed, coveredNonce");
        let mut answers = vec![answer(subject, &(row.claimed, row.covered_nonce), &found)];
        let it = self.escrow(IJobEscrow::reservationCall { requester, node, token }).await?;
        let found = (Amount(it.reserved), Amount(it.thawing), until(it.thawing, it.thawEnd));
        let subject = format!("reservation({requester}, {node}, {token}): reserved, thawing, thawEnd");
        answers.push(answer(subject, &(row.reserved, row.thawing, row.thaw_end), &found));
        Ok(answers)
    }

    async fn session(&self, key: (Address, Address, Address), truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let (requester, session_key, token) = key;
        let Some(row) = truth.rows.sessions.get(&key) else { return Ok(vec![]) };
        let it = self.escrow(IJobEscrow::sessionCall { requester, key: session_key, token }).await?;
        let left = if row.expires_at >= self.block.mined_at { row.left } else { Amount::ZERO };
        let subject = format!("session({requester}, {session_key}, {token}): left, expiry");
        Ok(vec![answer(subject, &(left, row.expires_at), &(Amount::from(it.left), time_of(it.expiry)))])
    }

    async fn settler(&self, node: Address, settler: Address, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let row = truth.rows.settlers.get(&(node, settler)).copied().unwrap_or_default();
        let it = self.escrow(IJobEscrow::isSettlerCall { node, settler }).await?;
        Ok(vec![answer(format!("isSettler({node}, {settler})"), &row, &it)])
    }

    async fn job(&self, id: B256, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let Some(row) = truth.rows.jobs.get(&id) else { return Ok(vec![]) };
        let it = self.escrow(IJobEscrow::jobCall { jobId: id }).await?;
        let expected = (row.state.name(), locked(id, row, truth), waiting(row));
        let found_waiting = (it.finalizeAt != 0).then(|| (time_of(it.finalizeAt), it.node));
        let found = (state_name(it.state), I256::from_raw(U256::from(it.locked)), found_waiting);
        let mut answers = vec![answer(format!("job({id}): state, locked, finalizeAt, node"), &expected, &found)];
        if matches!(row.state, EscrowState::None | EscrowState::Open) {
            let it = self.escrow(IJobEscrow::cancelAtCall { jobId: id }).await?;
            let found = (it != 0).then(|| time_of(it));
            answers.push(answer(format!("cancelAt({id})"), &row.cancel_at, &found));
        }
        Ok(answers)
    }

    /// Whether the escrow has heard of a job.
    pub(super) async fn knows_job(&self, id: B256) -> Result<bool, VerifyError> {
        Ok(self.escrow(IJobEscrow::jobCall { jobId: id }).await?.state != JobState::None)
    }

    async fn node(&self, node: Address, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let Some(row) = truth.rows.nodes.get(&node) else { return Ok(vec![]) };
        let RegistryNode { stake, unbonding, unbond_end, record, node_id, payout, .. } = row;
        let it = self.registry(INodeRegistry::stakeOfCall { node }).await?;
        let found = (Amount::from(it.stake), Amount::from(it.unbonding), until(it.unbonding, it.unbondEnd));
        let subject = format!("stakeOf({node}): stake, unbonding, unbondEnd");
        let mut answers = vec![answer(subject, &(*stake, *unbonding, *unbond_end), &found)];
        let it = self.registry(INodeRegistry::recordOfCall { node }).await?;
        let expected = (record.bonds, record.paid, record.disputed, record.lost);
        let subject = format!("recordOf({node}): bonds, paid, disputed, lost");
        answers.push(answer(subject, &expected, &(it.bonds, it.paid, it.disputed, it.lost)));
        let found = (
            self.registry(INodeRegistry::nodeIdOfCall { node }).await?,
            self.registry(INodeRegistry::payoutOfCall { node }).await?,
        );
        answers.push(answer(format!("nodeIdOf({node}), payoutOf({node})"), &(*node_id, *payout), &found));
        Ok(answers)
    }

    async fn fee(&self, token: Address, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let row = truth.rows.fees.get(&token).copied().unwrap_or_default();
        let it = self.escrow(IJobEscrow::feesCall { token }).await?;
        Ok(vec![answer(format!("fees({token})"), &row, &Amount(it))])
    }

    async fn parameters(&self, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        let Parameters { fee_bps, escrow_paused, registry_paused, min_stake, min_stake_before } =
            truth.rows.parameters.unwrap_or_default();
        let constructed = self.verifier.deployment.registry_params.min_stake;
        let min_stake = match min_stake {
            Some((amount, since)) if since <= self.block.mined_at => amount,
            _ => min_stake_before.unwrap_or(constructed),
        };
        let found = (
            self.escrow(IJobEscrow::feeBpsCall {}).await?,
            self.escrow(IJobEscrow::pausedCall {}).await?,
            self.registry(INodeRegistry::pausedCall {}).await?,
            Amount::from(self.registry(INodeRegistry::minStakeCall {}).await?),
        );
        let subject = "feeBps(), paused(), registry's paused(), minStake()".to_owned();
        Ok(vec![answer(subject, &(fee_bps, escrow_paused, registry_paused, min_stake), &found)])
    }

    async fn ask(&self, question: Question, truth: &Truth) -> Result<Vec<Answer>, VerifyError> {
        match question {
            Question::Account(owner, token) => self.account(owner, token, truth).await,
            Question::Earned(node, token) => self.earned(node, token, truth).await,
            Question::Channel(key) => self.channel(key, truth).await,
            Question::Session(key) => self.session(key, truth).await,
            Question::Settler(node, settler) => self.settler(node, settler, truth).await,
            Question::Job(id) => self.job(id, truth).await,
            Question::Node(node) => self.node(node, truth).await,
            Question::Fee(token) => self.fee(token, truth).await,
            Question::Parameters => self.parameters(truth).await,
        }
    }
}

/// What the ledger has for a job.
fn locked(id: B256, row: &EscrowJob, truth: &Truth) -> I256 {
    let token = row.opened.as_ref().map(|opened| opened.order.token).or(row.result.map(|result| result.token));
    token.map_or(I256::ZERO, |token| truth.balance(Account::Job(id), token))
}

/// Whose time runs: until when, and whose result it is.
fn waiting(row: &EscrowJob) -> Option<(DateTime<Utc>, Address)> {
    let until = match row.state {
        EscrowState::Submitted => row.result?.window?.0,
        EscrowState::Disputed => row.dispute?.decide_by,
        _ => return None,
    };
    Some((until, row.result?.node))
}

fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::None => EscrowState::None.name(),
        JobState::Open => EscrowState::Open.name(),
        JobState::Submitted => EscrowState::Submitted.name(),
        JobState::Paid => EscrowState::Paid.name(),
        JobState::Refunded => EscrowState::Refunded.name(),
        JobState::Disputed => EscrowState::Disputed.name(),
        JobState::Resolved => EscrowState::Resolved.name(),
        _ => "unknown",
    }
}

/// What can be asked of the contracts.
#[derive(Debug, Clone, Copy)]
enum Question {
    Account(Address, Address),
    Earned(Address, Address),
    Channel((Address, Address, Address)),
    Session((Address, Address, Address)),
    Settler(Address, Address),
    Job(B256),
    Node(Address),
    Fee(Address),
    Parameters,
}

fn questions(truth: &Truth) -> Vec<Question> {
    let rows = &truth.rows;
    let mut questions = vec![Question::Parameters];
    questions.extend(rows.accounts.keys().map(|(owner, token)| Question::Account(*owner, *token)));
    questions.extend(rows.earned.keys().map(|(node, token)| Question::Earned(*node, *token)));
    questions.extend(rows.channels.keys().copied().map(Question::Channel));
    questions.extend(rows.sessions.keys().copied().map(Question::Session));
    questions.extend(rows.settlers.keys().map(|(node, settler)| Question::Settler(*node, *settler)));
    questions.extend(rows.jobs.keys().copied().map(Question::Job));
    questions.extend(rows.nodes.keys().copied().map(Question::Node));
    questions.extend(rows.fees.keys().copied().map(Question::Fee));
    questions
}

/// Compares everything that the contracts return about what their events tell of.
pub(super) async fn compare(view: &View<'_>, truth: &Truth, report: &mut Report) -> Result<(), VerifyError> {
    put(view, questions(truth), truth, report).await
}

/// Compares what the escrow returns about some jobs.
pub(super) async fn jobs(
    view: &View<'_>,
    ids: &BTreeSet<B256>,
    truth: &Truth,
    report: &mut Report,
) -> Result<(), VerifyError> {
    put(view, ids.iter().copied().map(Question::Job).collect(), truth, report).await
}

async fn put(view: &View<'_>, questions: Vec<Question>, truth: &Truth, report: &mut Report) -> Result<(), VerifyError> {
    let all = questions.len();
    let mut asked = 0;
    let mut answers =
        stream::iter(questions).map(|question| view.ask(question, truth)).buffer_unordered(view.verifier.concurrency);
    while let Some(some) = answers.try_next().await? {
        asked += 1;
        if asked % TOLD_EVERY == 0 {
            tracing::info!(asked, of = all, "asked the contracts");
        }
        report.checked.calls += some.len();
        for Answer { subject, expected, found } in some {
            if expected != found {
                report.differs(What::Contract, subject, expected, found);
            }
        }
    }
    Ok(())
}

/// Compares what the contracts hold with what they owe.
pub(super) async fn solvency(view: &View<'_>, truth: &Truth, report: &mut Report) -> Result<(), VerifyError> {
    let deployment = &view.verifier.deployment;
    let tokens: BTreeSet<Address> = truth.sums.keys().map(|(_, token)| *token).chain([Address::ZERO]).collect();
    for token in tokens {
        let of_token = || truth.sums.iter().filter(|((_, of), _)| *of == token);
        let staked = |account: &Account| matches!(account, Account::Stake(_) | Account::Unbonding(_));
        let outside = |account: &Account| matches!(account, Account::World | Account::Transit | Account::Suspense);
        let owed: I256 = of_token().filter(|((a, _), _)| !staked(a) && !outside(a)).map(|(_, sum)| *sum).sum();
        let held = if token.is_zero() {
            let stakes: I256 = of_token().filter(|((a, _), _)| staked(a)).map(|(_, sum)| *sum).sum();
            holds(report, "the registry", deployment.registry, token, stakes, view.coins(deployment.registry).await?);
            view.coins(deployment.escrow).await?
        } else {
            view.call(token, IERC20::balanceOfCall { owner: deployment.escrow }).await?
        };
        report.checked.calls += 1;
        holds(report, "the escrow", deployment.escrow, token, owed, held);
    }
    Ok(())
}

fn holds(report: &mut Report, name: &str, address: Address, token: Address, owed: I256, held: U256) {
    if I256::from_raw(held) < owed {
        let subject = format!("{name} {address} in {token}");
        report.differs(What::Solvency, subject, format!("at least {owed}"), held.to_string());
    }
}
