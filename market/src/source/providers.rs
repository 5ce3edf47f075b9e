//! The endpoints through which the chain is read: which one to ask, what became of it, and whom to ask instead.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy::providers::DynProvider;
use alloy::transports::{RpcError, TransportError, TransportResult};
use metrics::{counter, gauge, histogram};
use rand::Rng;

use super::SourceError;
use super::refusal::Refusal;

/// An endpoint that takes longer for one answer counts as failing.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often all endpoints are asked before the failure is the step's.
const ROUNDS: u32 = 3;
/// The same where all that is wrong is that they are asked too much.
const BUSY_ROUNDS: u32 = 6;
/// Before endpoints are asked again; longer before the third time.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long an endpoint that says that it is asked too much rests at first, and at most; also the most that is waited for
/// one to have rested.
const SHORTEST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(20);
/// By how much a failure puts an endpoint behind others that do not fail, and how far it can fall.
const DEMERIT: Duration = Duration::from_secs(5);
const MOST_DEMERIT: Duration = Duration::from_secs(300);
/// How long an endpoint that lied is not asked, if there is another.
const BENCH: Duration = Duration::from_secs(120);
/// An endpoint may be so many blocks behind another without being worse for it.
const LAG: u64 = 2;

/// Which endpoint, by its place in the configuration.
pub(super) type Who = usize;

/// The endpoints, the preferred one first.
#[derive(Debug)]
pub(super) struct Providers(Vec<Endpoint>);

#[derive(Debug)]
struct Endpoint {
    /// For logs and metrics; nothing secret.
    name: String,
    provider: DynProvider,
    standing: Mutex<Standing>,
}

/// What is known of an endpoint.
#[derive(Debug, Default, Clone, Copy)]
struct Standing {
    /// The highest block that it has shown.
    head: u64,
    /// Later the more it failed.
    demerit_until: Option<Instant>,
    /// It is asked too much.
    rests_until: Option<Instant>,
    /// Rests since its last answer.
    rests: u32,
    /// It lied.
    benched_until: Option<Instant>,
}

impl Standing {
    fn left(until: Option<Instant>) -> Duration {
        until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default()
    }

    fn is_benched(&self) -> bool {
        !Self::left(self.benched_until).is_zero()
    }

    fn rest(&self) -> Duration {
        Self::left(self.rests_until)
    }

    /// What it is worse by than one that neither fails nor lags.
    fn demerit(&self, best_head: u64) -> Duration {
        let behind = best_head.saturating_sub(self.head).saturating_sub(LAG).min(MOST_DEMERIT.as_secs());
        // One that was not asked yet is not behind.
        let lag = if self.head == 0 { Duration::ZERO } else { Duration::from_secs(behind) };
        Self::left(self.demerit_until) + lag
    }
}

impl Providers {
    pub fn new(providers: Vec<(String, DynProvider)>) -> Self {
        let endpoint = |(name, provider)| Endpoint { name, provider, standing: Mutex::default() };
        Self(providers.into_iter().map(endpoint).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn name(&self, who: Who) -> &str {
        &self.0[who].name
    }

    pub fn provider(&self, who: Who) -> &DynProvider {
        &self.0[who].provider
    }

    /// Whether it has said that it is asked too much, a moment ago.
    pub fn rests(&self, who: Who) -> bool {
        !self.standing(who).rest().is_zero()
    }

    /// All that are asked at present, the best first; all there are if none is.
    pub fn ranking(&self) -> Vec<Who> {
        let standings: Vec<Standing> = (0..self.len()).map(|who| self.standing(who)).collect();
        let best_head = standings.iter().filter(|one| !one.is_benched()).map(|one| one.head).max().unwrap_or_default();
        let mut order: Vec<Who> = (0..self.len()).filter(|who| !standings[*who].is_benched()).collect();
        if order.is_empty() {
            order = (0..self.len()).collect();
        }
        order.sort_by_cached_key(|who| (!standings[*who].rest().is_zero(), standings[*who].demerit(best_head), *who));
        order
    }

    /// All but `who`, the best first, also those that are not asked otherwise at present.
    pub fn others(&self, who: Who) -> Vec<Who> {
        let mut order = self.ranking();
        order.extend((0..self.len()).filter(|one| !order.contains(one)).collect::<Vec<_>>());
        order.retain(|one| *one != who);
        order
    }

    /// The answer to `request`, by whoever gives one, and who it was. `others_than` are asked last.
    pub async fn ask<T, A>(
        &self,
        what: &'static str,
        others_than: &[Who],
        request: impl Fn(DynProvider) -> A,
    ) -> Result<(T, Who), SourceError>
    where
        A: Future<Output = TransportResult<T>>,
    {
        let mut round = 1;
        loop {
            let mut order = self.ranking();
            order.sort_by_key(|who| others_than.contains(who));
            let mut failure = None;
            for who in order {
                if failure.is_some() && self.rests(who) {
                    continue;
                }
                match self.ask_one(who, what, &request).await {
                    Ok(answer) => return Ok((answer, who)),
                    // It is the request that is at fault.
                    Err(error @ SourceError::TooMuch { .. }) => return Err(error),
                    Err(error) => failure = Some(error),
                }
            }
            let Some(failure) = failure else { return Err(SourceError::Inconsistent("no endpoint".to_owned())) };
            let rounds = if matches!(failure, SourceError::Busy { .. }) { BUSY_ROUNDS } else { ROUNDS };
            if round >= rounds || matches!(failure, SourceError::Refused { .. }) {
                return Err(failure);
            }
            tracing::debug!(error = %failure, round, "asking again");
            tokio::time::sleep(self.pause(round)).await;
            round += 1;
        }
    }

    /// The answer of one endpoint, asked once.
    pub async fn ask_one<T, A>(
        &self,
        who: Who,
        what: &'static str,
        request: &impl Fn(DynProvider) -> A,
    ) -> Result<T, SourceError>
    where
        A: Future<Output = TransportResult<T>>,
    {
        let endpoint = &self.0[who];
        let rest = self.standing(who).rest();
        if !rest.is_zero() {
            tokio::time::sleep(rest.min(LONGEST_REST)).await;
        }
        let asked_at = Instant::now();
        let answer = tokio::time::timeout(TIMEOUT, request(endpoint.provider.clone())).await;
        let error = match answer {
            Ok(Ok(answer)) => {
                self.change(who, |standing| standing.rests = 0);
                self.tell(who, what, "ok", asked_at);
                return Ok(answer);
            }
            Ok(Err(error)) => SourceError::of(what, &endpoint.name, error),
            Err(_) => SourceError::Timeout { what, provider: endpoint.name.clone() },
        };
        self.blame(who, &error);
        self.tell(who, what, error.outcome(), asked_at);
        Err(error)
    }

    fn blame(&self, who: Who, error: &SourceError) {
        self.change(who, |standing| match error {
            SourceError::TooMuch { .. } => {}
            SourceError::Busy { retry_after, .. } => {
                let growing = SHORTEST_REST.saturating_mul(1 << standing.rests.min(10)).min(LONGEST_REST);
                standing.rests += 1;
                let rest = retry_after.map_or(growing, |wish| wish.min(LONGEST_REST));
                standing.rests_until = Some(Instant::now() + rest + jitter(rest / 4));
            }
            _ => standing.fail(DEMERIT),
        });
    }

    /// `who` gave an answer that does not fit what it or the chain says otherwise: it is put behind the others.
    pub fn contradicted(&self, who: Who) {
        counter!("littoral_rpc_wrong_answers_total", "provider" => self.name(who).to_owned(), "kind" => "contradiction")
            .increment(1);
        self.change(who, |standing| standing.fail(DEMERIT));
    }

    /// `who` gave an answer that cannot be true: it is not asked for a while, if there is another.
    pub fn lied(&self, who: Who, what: &str) {
        let provider = self.name(who);
        counter!("littoral_rpc_wrong_answers_total", "provider" => provider.to_owned(), "kind" => "lie").increment(1);
        let mut news = false;
        self.change(who, |standing| {
            news = !standing.is_benched();
            standing.benched_until = Some(Instant::now() + BENCH);
        });
        if news {
            tracing::warn!(provider, what, "an endpoint gives wrong answers; others are asked instead");
        }
    }

    /// `who` has shown this block.
    pub fn has_shown(&self, who: Who, number: u64) {
        self.change(who, |standing| standing.head = number);
        gauge!("littoral_rpc_head_block", "provider" => self.name(who).to_owned()).set(approximate(number));
    }

    fn pause(&self, round: u32) -> Duration {
        let rest = (0..self.len()).map(|who| self.standing(who).rest()).min().unwrap_or_default();
        let pause = (RETRY_PAUSE * round).max(rest.min(LONGEST_REST));
        pause + jitter(pause / 4)
    }

    fn tell(&self, who: Who, what: &'static str, outcome: &'static str, asked_at: Instant) {
        let provider = self.name(who).to_owned();
        counter!("littoral_rpc_requests_total", "provider" => provider.clone(), "method" => what, "outcome" => outcome)
            .increment(1);
        histogram!("littoral_rpc_seconds", "provider" => provider, "method" => what)
            .record(asked_at.elapsed().as_secs_f64());
    }

    fn standing(&self, who: Who) -> Standing {
        *self.0[who].standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, who: Who, change: impl FnOnce(&mut Standing)) {
        change(&mut self.0[who].standing.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Standing {
    fn fail(&mut self, by: Duration) {
        let left = (Self::left(self.demerit_until) + by).min(MOST_DEMERIT);
        self.demerit_until = Some(Instant::now() + left);
    }
}

impl SourceError {
    /// What an endpoint's `error` means.
    pub(super) fn of(what: &'static str, provider: &str, error: TransportError) -> Self {
        let provider = provider.to_owned();
        let retry_after = match &error {
            RpcError::Transport(kind) => {
                let status = kind.as_http_error().map(|error| error.status);
                if status == Some(413) {
                    return Self::TooMuch { what, provider, allowed: Default::default(), error };
                }
                if status != Some(429) && !(status == Some(503) && kind.retry_after().is_some()) {
                    return Self::Rpc { what, provider, error };
                }
                kind.retry_after()
            }
            RpcError::ErrorResp(refused) => match Refusal::of(refused) {
                Refusal::TooMuch(allowed) => return Self::TooMuch { what, provider, allowed, error },
                Refusal::Other => return Self::Refused { what, provider, error },
                Refusal::Busy => None,
            },
            _ => return Self::Rpc { what, provider, error },
        };
        Self::Busy { what, provider, retry_after, error }
    }

    fn outcome(&self) -> &'static str {
        match self {
            Self::TooMuch { .. } => "too_much",
            Self::Busy { .. } => "busy",
            Self::Refused { .. } => "refused",
            Self::Timeout { .. } => "timeout",
            _ => "failed",
        }
    }
}

/// So that those who wait do not all come back at once.
fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::rng().random())
}

/// Gauges are floating point; beyond 2^53 nobody reads the last digit.
fn approximate(value: u64) -> f64 {
    let [high, low] = [value >> 32, value & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

/// Asks up to three times, for as long as the failure is not the endpoint's own word.
pub(super) async fn ask<T, A>(what: &'static str, request: impl Fn() -> A) -> Result<T, SourceError>
where
    A: Future<Output = TransportResult<T>>,
{
    let provider = "the endpoint";
    let mut round = 1;
    loop {
        let error = match tokio::time::timeout(TIMEOUT, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => SourceError::of(what, provider, error),
            Err(_) => SourceError::Timeout { what, provider: provider.to_owned() },
        };
        if round == ROUNDS || matches!(error, SourceError::Refused { .. } | SourceError::TooMuch { .. }) {
            return Err(error);
        }
        let rest = if let SourceError::Busy { retry_after, .. } = &error { *retry_after } else { None };
        tokio::time::sleep((RETRY_PAUSE * round).max(rest.unwrap_or_default().min(LONGEST_REST))).await;
        round += 1;
    }
}
