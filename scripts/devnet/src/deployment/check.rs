//! Whether a chain has what a manifest and the reviewed parameters say.

use std::fmt;

use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::providers::{DynProvider, Provider};
use alloy::transports::RpcError;

use super::contracts::Addresses;
use super::parameters::ChainParams;
use super::{DeployParams, Manifest};
use crate::chain::{Contract, contract};

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// Everything that is not as it should be; empty when all is well.
    pub differences: Vec<String>,
    /// What is worth knowing and no difference.
    pub notes: Vec<String>,
    compared: usize,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for difference in &self.differences {
            writeln!(f, "difference: {difference}")?;
        }
        write!(f, "{} values compared, {} differ", self.compared, self.differences.len())
    }
}

impl Check {
    /// Reads code, parameters, owners, links and EIP-712 domain of the contracts in `manifest` from the chain and compares
    /// them with it and with `chain`.
    ///
    /// # Errors
    /// When the chain does not answer or forge's build output is missing. What differs is no error.
    pub async fn run(provider: &DynProvider, manifest: &Manifest, chain: &ChainParams) -> anyhow::Result<Self> {
        let mut check = Self::default();
        let chain_id = provider.get_chain_id().await?;
        check.compare("chainId", Some(chain_id), &[("manifest", manifest.chain_id), ("parameters", chain.chain_id)]);
        if chain_id != manifest.chain_id {
            return Ok(check);
        }
        check.addresses(manifest);
        check.code(provider, manifest).await?;
        check.transaction(provider, manifest).await?;
        let registry = contract("NodeRegistry", manifest.registry, provider.clone())?;
        let escrow = contract("JobEscrow", manifest.escrow, provider.clone())?;
        check.links(&registry, &escrow, manifest).await?;
        check.parameters(&registry, &escrow, manifest, chain).await?;
        check.owner("registry", &registry, manifest.registry_params.owner, manifest, chain).await?;
        check.owner("escrow", &escrow, manifest.escrow_params.owner, manifest, chain).await?;
        check.domain(&escrow, manifest).await?;
        let policy = chain.confirmation.policy(&manifest.tokens)?;
        check.compare("confirmation in the manifest", Some(&manifest.confirmation), &[("parameters", &policy)]);
        for (name, token) in &chain.tokens {
            check.compare(
                &format!("tokens.{name} in the manifest"),
                manifest.tokens.get(name),
                &[("parameters", token)],
            );
        }
        Ok(check)
    }

    /// Compares what is, if it could be read, with what each of `sources` says it should be.
    fn compare<T: PartialEq + fmt::Debug>(&mut self, what: &str, actual: Option<T>, sources: &[(&str, T)]) {
        for (source, expected) in sources {
            self.compared += 1;
            match &actual {
                Some(actual) if actual == expected => {}
                Some(actual) => self.differences.push(format!("{what} is {actual:?}, in the {source} {expected:?}")),
                None => self.differences.push(format!("{what} is missing, in the {source} {expected:?}")),
            }
        }
    }

    /// That each address follows from the one before, down to the init code.
    fn addresses(&mut self, manifest: &Manifest) {
        let expected = Addresses::of(manifest.init_code_hash);
        for (what, actual, expected) in [
            ("deployment", manifest.deployment, expected.deployment),
            ("registry", manifest.registry, expected.registry),
            ("escrow", manifest.escrow, expected.escrow),
        ] {
            self.compare(&format!("{what} in the manifest"), Some(actual), &[("deployment of initCodeHash", expected)]);
        }
    }

    async fn code(&mut self, provider: &DynProvider, manifest: &Manifest) -> anyhow::Result<()> {
        let hashes = manifest.code_hashes;
        for (what, address, expected) in [
            ("deployment", manifest.deployment, hashes.deployment),
            ("registry", manifest.registry, hashes.registry),
            ("escrow", manifest.escrow, hashes.escrow),
        ] {
            let hash = keccak256(provider.get_code_at(address).await?);
            self.compare(&format!("the hash of the code at {address} ({what})"), Some(hash), &[("manifest", expected)]);
        }
        Ok(())
    }

    async fn transaction(&mut self, provider: &DynProvider, manifest: &Manifest) -> anyhow::Result<()> {
        let receipt = provider.get_transaction_receipt(manifest.deploy_transaction).await?;
        let block = receipt.filter(|receipt| receipt.status()).and_then(|receipt| receipt.block_number);
        let what = format!("the block of {}", manifest.deploy_transaction);
        self.compare(&what, block, &[("manifest", manifest.deploy_block)]);
        Ok(())
    }

    async fn links(&mut self, registry: &Contract, escrow: &Contract, manifest: &Manifest) -> anyhow::Result<()> {
        let (escrow_of, registry_of) = (address(registry, "escrow").await?, address(escrow, "registry").await?);
        self.compare("registry.escrow()", escrow_of, &[("manifest", manifest.escrow)]);
        self.compare("escrow.registry()", registry_of, &[("manifest", manifest.registry)]);
        Ok(())
    }

    async fn parameters(
        &mut self,
        registry: &Contract,
        escrow: &Contract,
        manifest: &Manifest,
        chain: &ChainParams,
    ) -> anyhow::Result<()> {
        type Term = fn(DeployParams) -> u128;
        let all: [(&str, &Contract, &str, Term); 6] = [
            ("registry", registry, "minStake", |terms| terms.min_stake_wei),
            ("registry", registry, "bond", |terms| terms.bond_wei),
            ("registry", registry, "unbondingPeriod", |terms| terms.unbonding_period_secs.into()),
            ("escrow", escrow, "thawPeriod", |terms| terms.thaw_period_secs.into()),
            ("escrow", escrow, "maxChallengeWindow", |terms| terms.max_challenge_window_secs.into()),
            ("escrow", escrow, "arbiterPeriod", |terms| terms.arbiter_period_secs.into()),
        ];
        for (name, contract, function, of) in all {
            let actual = read(contract, function).await?.as_ref().and_then(DynSolValue::as_uint);
            let sources = [("manifest", manifest.terms()?), ("parameters", chain.terms())];
            let expected = sources.map(|(source, terms)| (source, U256::from(of(terms))));
            self.compare(&format!("{name}.{function}()"), actual.map(|(value, _)| value), &expected);
        }
        Ok(())
    }

    /// Owned by who the manifest says, or by nobody who can act, and offered to them.
    async fn owner(
        &mut self,
        name: &str,
        contract: &Contract,
        owner: Address,
        manifest: &Manifest,
        chain: &ChainParams,
    ) -> anyhow::Result<()> {
        if !chain.owner.is_zero() {
            self.compare(&format!("{name}Params.owner in the manifest"), Some(owner), &[("parameters", chain.owner)]);
        }
        let (current, pending) = (address(contract, "owner").await?, address(contract, "pendingOwner").await?);
        if current == Some(manifest.deployment) {
            self.compare(&format!("{name}.pendingOwner()"), pending, &[("manifest", owner)]);
            self.notes.push(format!("{owner} has not accepted the {name} yet"));
        } else {
            self.compare(&format!("{name}.owner()"), current, &[("manifest", owner)]);
            self.compare(&format!("{name}.pendingOwner()"), pending, &[("manifest nobody:", Address::ZERO)]);
        }
        Ok(())
    }

    async fn domain(&mut self, escrow: &Contract, manifest: &Manifest) -> anyhow::Result<()> {
        let actual = call(escrow, "eip712Domain").await?.map(|values| values.into_iter().take(6).collect::<Vec<_>>());
        let expected = vec![
            // Name, version, chain and contract; no salt.
            DynSolValue::FixedBytes(B256::right_padding_from(&[0x0f]), 1),
            "Littoral".to_owned().into(),
            "1".to_owned().into(),
            DynSolValue::Uint(U256::from(manifest.chain_id), 256),
            manifest.escrow.into(),
            DynSolValue::FixedBytes(B256::ZERO, 32),
        ];
        self.compare("escrow.eip712Domain()", actual, &[("manifest", expected)]);
        Ok(())
    }
}

async fn address(contract: &Contract, function: &str) -> anyhow::Result<Option<Address>> {
    Ok(read(contract, function).await?.as_ref().and_then(DynSolValue::as_address))
}

async fn read(contract: &Contract, function: &str) -> anyhow::Result<Option<DynSolValue>> {
    Ok(call(contract, function).await?.and_then(|values| values.into_iter().next()))
}

/// What a view function returns; nothing when it reverts or there is no such contract.
async fn call(contract: &Contract, function: &str) -> anyhow::Result<Option<Vec<DynSolValue>>> {
    use alloy::contract::Error;
    match contract.function(function, &[])?.call().await {
        Ok(values) => Ok(Some(values)),
        Err(Error::ZeroData(..) | Error::AbiError(_) | Error::TransportError(RpcError::ErrorResp(_))) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
