//! What a deployment would do, found out without doing it.

use std::fmt;

use alloy::consensus::constants::GWEI_TO_WEI;
use alloy::network::TransactionBuilder;
use alloy::primitives::{Address, Bytes, U256, keccak256, utils::format_ether};
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::TransactionRequest;
use anyhow::{Context, bail, ensure};

use super::contracts::{
    Addresses, DETERMINISTIC_DEPLOYER, DETERMINISTIC_DEPLOYER_HASH, MAX_INIT_CODE, creation_call, init_code,
};
use super::parameters::ChainParams;

/// On top of what the node estimates, in percent: fees and state may change until it is mined.
pub(super) const GAS_MARGIN: u64 = 110;

/// A deployment on one chain.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where and with what.
    pub chain: ChainParams,
    /// Who will be offered the contracts.
    pub owner: Address,
    /// Where they will be.
    pub addresses: Addresses,
    /// Whether they are there already.
    pub is_deployed: bool,
    /// What the chain asks for it; `None` when nothing is left to do.
    pub cost: Option<Cost>,
}

/// What creating the contracts takes, by the node's own estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of init code.
    pub init_code: usize,
    /// Gas, as estimated.
    pub gas: u64,
    /// What it may ask for.
    pub gas_limit: u64,
    /// Most that a unit of gas may cost now, in wei.
    pub max_fee_per_gas: u128,
}

impl Cost {
    /// The most that it can cost, in wei.
    #[must_use]
    pub fn wei(&self) -> U256 {
        U256::from(self.gas_limit) * U256::from(self.max_fee_per_gas)
    }
}

impl Plan {
    /// Asks the chain, which simulates the deployment. Sends nothing.
    ///
    /// # Errors
    /// When it is not that chain, or the deployment would fail.
    pub async fn make(
        provider: &DynProvider,
        chain: ChainParams,
        owner: Address,
        sender: Option<Address>,
    ) -> anyhow::Result<Self> {
        require_chain(provider, &chain).await?;
        let code = init_code(owner, chain.terms())?;
        let addresses = Addresses::of(keccak256(&code));
        let is_deployed = !provider.get_code_at(addresses.deployment).await?.is_empty();
        let cost = if is_deployed { None } else { Some(estimate(provider, &chain, &code, sender).await?) };
        Ok(Self { chain, owner, addresses, is_deployed, cost })
    }

    /// Whether `sender` can pay for it and has nothing else under way.
    ///
    /// # Errors
    /// With the reason, when not.
    pub async fn require_funds(&self, provider: &DynProvider, sender: Address) -> anyhow::Result<()> {
        let currency = &self.chain.currency;
        let needed = self.cost.map_or(U256::ZERO, |cost| cost.wei());
        let balance = provider.get_balance(sender).await?;
        ensure!(
            balance >= needed,
            "{sender} has {} {currency}, and up to {} {currency} are needed",
            format_ether(balance),
            format_ether(needed)
        );
        let mined = provider.get_transaction_count(sender).await?;
        let pending = provider.get_transaction_count(sender).pending().await?;
        // A deployment that is under way already would be sent, and paid for, twice.
        ensure!(
            pending <= mined,
            "{sender} has {} transactions that are not mined yet: wait for them, or replace them",
            pending - mined
        );
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chain, terms) = (&self.chain, self.chain.terms());
        writeln!(f, "chain               {} ({}, code for {})", chain.chain_id, chain.hardfork, chain.evm_version)?;
        writeln!(f, "deployment          {}", self.addresses.deployment)?;
        writeln!(f, "registry            {}", self.addresses.registry)?;
        writeln!(f, "escrow              {}", self.addresses.escrow)?;
        writeln!(f, "owner               {}", self.owner)?;
        writeln!(f, "minStake            {} wei", terms.min_stake_wei)?;
        writeln!(f, "bond                {} wei", terms.bond_wei)?;
        writeln!(f, "unbondingPeriod     {} s", terms.unbonding_period_secs)?;
        writeln!(f, "thawPeriod          {} s", terms.thaw_period_secs)?;
        writeln!(f, "maxChallengeWindow  {} s", terms.max_challenge_window_secs)?;
        writeln!(f, "arbiterPeriod       {} s", terms.arbiter_period_secs)?;
        for (name, token) in &chain.tokens {
            writeln!(f, "token               {name} {token}")?;
        }
        let Some(cost) = self.cost else { return write!(f, "deployed already") };
        let gwei = cost.max_fee_per_gas / u128::from(GWEI_TO_WEI);
        let millis = cost.max_fee_per_gas % u128::from(GWEI_TO_WEI) / 1_000_000;
        writeln!(f, "init code           {} of {MAX_INIT_CODE} bytes", cost.init_code)?;
        writeln!(f, "gas                 {}, limit {}", cost.gas, cost.gas_limit)?;
        write!(
            f,
            "cost                at most {} {} at {gwei}.{millis:03} gwei",
            format_ether(cost.wei()),
            chain.currency
        )
    }
}

/// Makes sure that the RPC serves `chain`.
///
/// # Errors
/// When it does not, or does not answer.
pub async fn require_chain(provider: &DynProvider, chain: &ChainParams) -> anyhow::Result<()> {
    let actual = provider.get_chain_id().await.context("the chain's RPC does not answer")?;
    ensure!(actual == chain.chain_id, "the RPC serves chain {actual}, not {}", chain.chain_id);
    Ok(())
}

async fn estimate(
    provider: &DynProvider,
    chain: &ChainParams,
    init_code: &Bytes,
    sender: Option<Address>,
) -> anyhow::Result<Cost> {
    ensure!(init_code.len() <= MAX_INIT_CODE, "{} bytes of init code are more than {MAX_INIT_CODE}", init_code.len());
    let deployer = provider.get_code_at(DETERMINISTIC_DEPLOYER).await?;
    if keccak256(&deployer) != DETERMINISTIC_DEPLOYER_HASH {
        bail!("the chain does not have the deterministic deployer at {DETERMINISTIC_DEPLOYER}");
    }
    let mut call = TransactionRequest::default().with_to(DETERMINISTIC_DEPLOYER).with_input(creation_call(init_code));
    if let Some(sender) = sender {
        call = call.with_from(sender);
    }
    let gas = provider.estimate_gas(call).await.context("the chain refuses the deployment")?;
    let gas_limit = gas * GAS_MARGIN / 100;
    let block = provider.get_block(alloy::eips::BlockId::latest()).await?.context("the chain has no block")?;
    let most = chain.max_transaction_gas.unwrap_or(u64::MAX).min(block.header.gas_limit);
    ensure!(gas_limit <= most, "{gas_limit} gas are more than a transaction may ask for, {most}");
    let fees = provider.estimate_eip1559_fees().await.context("asking for the price of gas")?;
    Ok(Cost { init_code: init_code.len(), gas, gas_limit, max_fee_per_gas: fees.max_fee_per_gas })
}
