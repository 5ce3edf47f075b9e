//! What may be spent on gas, and what it costs.

use alloy::eips::BlockNumberOrTag;
use alloy::primitives::U256;
use alloy::providers::Provider;
use chrono::TimeDelta;
use market::clock;
use market::db::settlement::{self, PendingBatch};

use super::fees::{Fees, TargetFee, percentile};
use super::metrics;
use super::settler::{Condition, Head, RoundError, Settler};

/// Over which a percentile of the base fee is taken; as many as nodes tell of at once.
const FEE_HISTORY_BLOCKS: u64 = 1024;
/// Over which the gas budget is.
const BUDGET_PERIOD: TimeDelta = TimeDelta::hours(24);

/// The account's coins and the operator's budget, in wei, as far as they are not promised to what was sent.
#[derive(Debug, Clone, Copy)]
pub struct Purse {
    balance: U256,
    budget: Option<U256>,
}

impl Settler {
    pub(super) async fn purse(&mut self, pending: &[PendingBatch]) -> Result<Purse, RoundError> {
        let sender = self.signer.address();
        let held = self.ask(self.provider.get_balance(sender).into_future()).await?;
        let promised = pending
            .iter()
            .filter(|batch| batch.sender == sender)
            .filter_map(|batch| batch.attempts.last())
            .map(|attempt| U256::from(attempt.gas_limit) * U256::from(attempt.max_fee_per_gas))
            .fold(U256::ZERO, U256::saturating_add);
        metrics::balance(f64::from(held));
        let budget = match self.options.gas_budget {
            Some(budget) => {
                let since = clock::now() - BUDGET_PERIOD;
                let spent = settlement::spent_since(&mut *self.pool.acquire().await?, sender, since).await?;
                metrics::gas_budget_left(f64::from(budget.saturating_sub(spent)));
                Some(budget.saturating_sub(spent))
            }
            None => None,
        };
        Ok(Purse { balance: held.saturating_sub(promised), budget })
    }

    /// Takes `gas_limit` at `fees` out of the purse, less what was `promised` for it before. False, and nothing taken, if
    /// that is more than there is or than the operator allows.
    pub(super) fn pay(&mut self, purse: &mut Purse, gas_limit: u64, fees: Fees, promised: U256) -> bool {
        let whole = U256::from(gas_limit) * U256::from(fees.max_fee_per_gas);
        let cost = whole.saturating_sub(promised);
        let (sender, balance) = (self.signer.address(), purse.balance);
        let too_low = balance < cost;
        metrics::underfunded(too_low);
        if too_low && self.memory.begins(Condition::Underfunded) {
            tracing::error!(
                %sender, balance_wei = %balance, needed_wei = %cost,
                "the settler's account cannot pay for gas: send coins to it; payments wait until then"
            );
        }
        if !too_low && self.memory.ends(Condition::Underfunded) {
            tracing::info!(%sender, balance_wei = %balance, "the settler's account can pay for gas again");
        }
        let over = whole > self.options.max_tx_cost || purse.budget.is_some_and(|left| left < cost);
        if over && self.memory.begins(Condition::OverBudget) {
            tracing::error!(cost_wei = %whole, left_wei = purse.budget.map(|left| left.to_string()), "over the budget for gas; payments wait");
        }
        if !over && self.memory.ends(Condition::OverBudget) {
            tracing::info!("within the budget for gas again");
        }
        if too_low || over {
            return false;
        }
        purse.balance -= cost;
        purse.budget = purse.budget.map(|left| left - cost);
        true
    }

    /// Fees for new transactions; nothing while the chain asks for more than the caps allow.
    pub(super) async fn affordable_fees(&mut self, head: Head) -> Result<Option<Fees>, RoundError> {
        let caps = self.options.caps;
        if head.base_fee >= caps.max_fee_per_gas {
            if self.memory.begins(Condition::FeesAboveCap) {
                tracing::error!(
                    base_fee = head.base_fee,
                    cap = caps.max_fee_per_gas,
                    "gas costs more than allowed; waiting"
                );
            }
            return Ok(None);
        }
        if self.memory.ends(Condition::FeesAboveCap) {
            tracing::info!(base_fee = head.base_fee, "gas is affordable again");
        }
        Ok(Some(self.suggested_fees(head).await?.capped(caps)))
    }

    /// What the chain asks for a transaction to be mined soon. Asked once a block.
    pub(super) async fn suggested_fees(&mut self, head: Head) -> Result<Fees, RoundError> {
        if let Some((_, fees)) = self.memory.suggested.filter(|(block, _)| *block == head.number) {
            return Ok(fees);
        }
        let suggested = self.ask(self.provider.estimate_eip1559_fees()).await?;
        let fees = Fees {
            max_fee_per_gas: suggested.max_fee_per_gas,
            max_priority_fee_per_gas: suggested.max_priority_fee_per_gas,
        };
        self.memory.suggested = Some((head.number, fees));
        Ok(fees)
    }

    /// Whether gas is dearer than the operator hopes it becomes.
    pub(super) async fn gas_is_dear(&mut self, head: Head) -> Result<bool, RoundError> {
        let target = match self.options.target_fee {
            None => return Ok(false),
            Some(TargetFee::Wei(wei)) => wei,
            Some(TargetFee::Percentile(percent)) => match self.usual_fee(percent).await? {
                Some(fee) => fee,
                None => return Ok(false),
            },
        };
        let dear = head.base_fee > target;
        metrics::waiting_for_gas(dear);
        Ok(dear)
    }

    async fn usual_fee(&mut self, percent: u8) -> Result<Option<u128>, RoundError> {
        let now = clock::now();
        if let Some((fee, _)) = self.memory.target_fee.filter(|(_, until)| *until > now) {
            return Ok(Some(fee));
        }
        let history =
            self.ask(self.provider.get_fee_history(FEE_HISTORY_BLOCKS, BlockNumberOrTag::Latest, &[])).await?;
        let fee = percentile(history.base_fee_per_gas, percent);
        self.memory.target_fee = fee.map(|fee| (fee, now + TimeDelta::minutes(1)));
        Ok(fee)
    }
}
