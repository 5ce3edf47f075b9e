//! Whether a chain has what a manifest and the reviewed parameters say.

use std::fmt;

use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::providers::{DynProvider, Provider};
use alloy::transports::RpcError;

use super::Manifest;
use super::contracts::Addresses;
use super::parameters::ChainParams;
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
        check.compare("chainId", chain_id, &[("manifest", manifest.chain_id), ("parameters", chain.chain_id)]);
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
        for (name, token) in &chain.tokens {
            check.compare(&format!("tokens.{name}"), Some(token), &[("manifest", manifest.tokens.get(name))]);
        }
        Ok(check)
    }

    /// Compares what is with what each of `sources` says it should be.
    fn compare<T: PartialEq + fmt::Debug>(&mut self, what: &str, actual: T, sources: &[(&str, T)]) {
        for (source, expected) in sources {
            self.compared += 1;
            if actual != *expected {
                self.differences.push(format!("{what} is {actual:?}, in the {source} {expected:?}"));
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
            self.compare(
                &format!("{what} in the manifest"),
                actual,
                &[("addresses that initCodeHash gives", expected)],
            );
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
            self.compare(&format!("the hash of the code at {address} ({what})"), hash, &[("manifest", expected)]);
        }
        Ok(())
    }

    async fn transaction(&mut self, provider: &DynProvider, manifest: &Manifest) -> anyhow::Result<()> {
        let receipt = provider.get_transaction_receipt(manifest.deploy_transaction).await?;
        let block = receipt.filter(|receipt| receipt.status()).and_then(|receipt| receipt.block_number);
        let what = format!("the block of {}", manifest.deploy_transaction);
        self.compare(&what, block, &[("manifest", Some(manifest.deploy_block))]);
        Ok(())
    }

    async fn links(&mut self, registry: &Contract, escrow: &Contract, manifest: &Manifest) -> anyhow::Result<()> {
        let escrow_of = read(registry, "escrow").await?;
        self.compare("registry.escrow()", escrow_of, &[("manifest", Some(manifest.escrow.into()))]);
        let registry_of = read(escrow, "registry").await?;
        self.compare("escrow.registry()", registry_of, &[("manifest", Some(manifest.registry.into()))]);
        Ok(())
    }

    async fn parameters(
        &mut self,
        registry: &Contract,
        escrow: &Contract,
        manifest: &Manifest,
        chain: &ChainParams,
    ) -> anyhow::Result<()> {
        let (terms, of_registry, of_escrow) = (chain.terms(), &manifest.registry_params, manifest.escrow_params);
        let text = |value: u128| value.to_string();
        for (contract, name, function, in_manifest, in_parameters) in [
            (registry, "registry", "minStake", of_registry.min_stake.clone(), text(terms.min_stake_wei)),
            (registry, "registry", "bond", of_registry.bond.clone(), text(terms.bond_wei)),
            (
                registry,
                "registry",
                "unbondingPeriod",
                of_registry.unbonding_period.to_string(),
                terms.unbonding_period_secs.to_string(),
            ),
            (escrow, "escrow", "thawPeriod", of_escrow.thaw_period.to_string(), terms.thaw_period_secs.to_string()),
            (
                escrow,
                "escrow",
                "maxChallengeWindow",
                of_escrow.max_challenge_window.to_string(),
                terms.max_challenge_window_secs.to_string(),
            ),
            (
                escrow,
                "escrow",
                "arbiterPeriod",
                of_escrow.arbiter_period.to_string(),
                terms.arbiter_period_secs.to_string(),
            ),
        ] {
            let actual = read(contract, function).await?;
            let number = actual.as_ref().and_then(DynSolValue::as_uint).map(|(number, _)| number.to_string());
            let expected = [("manifest", Some(in_manifest)), ("parameters", Some(in_parameters))];
            self.compare(&format!("{name}.{function}()"), number, &expected);
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
            self.compare(&format!("{name}Params.owner in the manifest"), owner, &[("parameters", chain.owner)]);
        }
        let (current, pending) = (address(contract, "owner").await?, address(contract, "pendingOwner").await?);
        if current == Some(manifest.deployment) {
            self.compare(&format!("{name}.pendingOwner()"), pending, &[("manifest", Some(owner))]);
            self.notes.push(format!("{owner} has not accepted the {name} yet"));
        } else {
            self.compare(&format!("{name}.owner()"), current, &[("manifest", Some(owner))]);
            let nobody = [("owner's own decision: nobody", Some(Address::ZERO))];
            self.compare(&format!("{name}.pendingOwner()"), pending, &nobody);
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
        self.compare("escrow.eip712Domain()", actual, &[("manifest", Some(expected))]);
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
