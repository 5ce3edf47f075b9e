//! What commands have in common: who acts, on which chain, through which API.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context as _;
use market::deployment::Deployment;
use market::order::parse_address;
use url::Url;

use crate::api::{Api, ChainInfo, Job};
use crate::args::{Global, TokenArg};
use crate::chain::{Chain, NATIVE, Wallet};
use crate::error::Failure;
use crate::keys;
use crate::output::Out;
use crate::records::Records;

const DEPLOYMENTS: &str = "deployments";

/// The options of every command, turned into what they stand for when it is needed.
pub struct Context {
    global: Global,
    /// Where results go.
    pub out: Out,
}

impl Context {
    /// From the command line.
    #[must_use]
    pub fn new(global: Global) -> Self {
        let out = Out::new(global.json);
        Self { global, out }
    }

    /// The account that acts.
    pub fn signer(&self) -> anyhow::Result<PrivateKeySigner> {
        if let Some(path) = self.global.key_file.as_deref().filter(|path| keys::is_exposed(path)) {
            self.out.note(&format!("warning: others can read your key: chmod 600 {}", path.display()));
        }
        let inline = std::env::var("LITTORAL_KEY").ok();
        keys::load_signer(self.global.key_file.as_deref(), inline.as_deref(), || self.passphrase())
    }

    /// The passphrase of encrypted keys.
    pub fn passphrase(&self) -> anyhow::Result<SecretString> {
        if let Some(path) = &self.global.passphrase_file {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read the passphrase file {}", path.display()))?;
            return Ok(SecretString::from(text.trim_end_matches(['\r', '\n']).to_owned()));
        }
        let missing = "this needs the key's passphrase: give --passphrase-file or LITTORAL_PASSPHRASE";
        std::env::var("LITTORAL_PASSPHRASE").map(SecretString::from).map_err(|_| Failure::Usage(missing.into()).into())
    }

    /// Where orders, vouchers and session keys are kept.
    pub fn data_dir(&self) -> anyhow::Result<PathBuf> {
        self.global.data_dir.clone().map_or_else(keys::default_data_dir, Ok)
    }

    /// What `requester` keeps of their dealings with one escrow.
    pub fn records(&self, deployment: &Deployment, requester: Address) -> anyhow::Result<Records> {
        Records::open(&self.data_dir()?, deployment, requester)
    }

    /// Whether the command line says who acts.
    #[must_use]
    pub fn has_signer(&self) -> bool {
        self.global.key_file.is_some() || std::env::var_os("LITTORAL_KEY").is_some()
    }

    /// Whether the command line says which chain to read.
    #[must_use]
    pub fn has_chain(&self) -> bool {
        self.global.rpc_url.is_some() && self.deployment().is_ok()
    }

    /// Where the contracts are.
    pub fn deployment(&self) -> anyhow::Result<Deployment> {
        let path = match &self.global.deployment {
            Some(path) => path.clone(),
            None => only_manifest(Path::new(DEPLOYMENTS))?,
        };
        Ok(Deployment::read(&path)?)
    }

    /// The chain's endpoint.
    pub fn rpc_url(&self) -> anyhow::Result<&Url> {
        let missing = || Failure::Usage("this reads the chain: give --rpc-url or RPC_URL".into());
        Ok(self.global.rpc_url.as_ref().ok_or_else(missing)?)
    }

    /// The chain, after checking that it is the manifest's.
    pub async fn chain(&self) -> anyhow::Result<Chain> {
        Ok(Chain::connect(self.rpc_url()?, self.deployment()?).await?)
    }

    /// The acting account on the chain.
    pub async fn wallet(&self) -> anyhow::Result<Wallet> {
        let signer = self.signer()?;
        let chain = self.chain().await?;
        Ok(Wallet::new(chain, self.rpc_url()?, signer, self.out))
    }

    /// The API, for reading.
    pub fn api(&self) -> anyhow::Result<Api> {
        Api::new(&self.global.api)
    }

    /// The API, signed in as the acting account, after checking that it serves the same contracts on the same chain.
    pub async fn market(&self, deployment: &Deployment) -> anyhow::Result<(Api, ChainInfo)> {
        let api = self.api()?.signed_in(self.signer()?, deployment.chain_id);
        let info = self.chain_info(deployment).await?;
        Ok((api, info))
    }

    /// What the API says of its chain, after checking that it is this one.
    pub async fn chain_info(&self, deployment: &Deployment) -> anyhow::Result<ChainInfo> {
        let api = self.api()?;
        let info: ChainInfo = api.get("lit-compute/chain").await?;
        let ours = (deployment.chain_id, deployment.escrow, deployment.registry);
        if (info.chain_id, info.escrow, info.registry) != ours {
            return Err(Failure::Unverified(format!(
                "the API at {} serves escrow {} and registry {} on chain {}; your deployments manifest has {}, {} and {}",
                api.base(),
                info.escrow,
                info.registry,
                info.chain_id,
                ours.1,
                ours.2,
                ours.0
            ))
            .into());
        }
        Ok(info)
    }
}

/// The one manifest in `dir`, where each is called after its chain's id.
fn only_manifest(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    let is_chain_id = |stem: &OsStr| stem.to_str().is_some_and(|stem| stem.parse::<u64>().is_ok());
    found.retain(|path| path.extension() == Some(OsStr::new("json")) && path.file_stem().is_some_and(is_chain_id));
    found.sort();
    let hint = "give --deployment or LITTORAL_DEPLOYMENT";
    match found.as_slice() {
        [path] => Ok(path.clone()),
        [] => Err(Failure::Usage(format!("there is no deployments manifest in {}: {hint}", dir.display())).into()),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Failure::Usage(format!("there are several deployments manifests, {hint}: {}", names.join(", "))).into())
        }
    }
}

/// The token's contract: an address, a name from the manifest, or the native coin.
pub fn token_address(arg: &TokenArg, deployment: &Deployment) -> anyhow::Result<Address> {
    arg.token.as_deref().map_or(Ok(NATIVE), |text| token_named("--token", text, deployment))
}

/// The contract of the token that `text`, the value of `option`, names.
pub fn token_named(option: &str, text: &str, deployment: &Deployment) -> anyhow::Result<Address> {
    if text == "native" {
        return Ok(NATIVE);
    }
    if let Some(address) = deployment.tokens.get(text) {
        return Ok(*address);
    }
    parse_address(text).map_err(|error| {
        let known: Vec<&str> = deployment.tokens.keys().map(String::as_str).collect();
        Failure::Usage(format!("{option} {text:?} {error}, or one of: native {}", known.join(" "))).into()
    })
}

/// What to call a token.
#[must_use]
pub fn token_name(token: Address, deployment: &Deployment) -> String {
    if token == NATIVE {
        return "native".into();
    }
    let known = deployment.tokens.iter().find(|(_, address)| **address == token);
    known.map_or_else(|| token.to_string(), |(name, _)| name.clone())
}

/// The registered node that `text`, an address or a node id, names.
pub async fn resolve_node(chain: &Chain, text: &str) -> anyhow::Result<(Address, B256)> {
    let registry = chain.registry();
    let unknown = || Failure::Usage(format!("no node {text} is registered at {}", chain.deployment.registry));
    if let Ok(node_id) = text.parse::<B256>() {
        let node = registry.nodeOf(node_id).call().await.context("cannot read the registry")?;
        return if node.is_zero() { Err(unknown().into()) } else { Ok((node, node_id)) };
    }
    let node = parse_address(text).map_err(|error| Failure::Usage(format!("{text:?} {error}, or a node id")))?;
    let node_id = registry.nodeIdOf(node).call().await.context("cannot read the registry")?;
    if node_id.is_zero() { Err(unknown().into()) } else { Ok((node, node_id)) }
}

/// The job as the API has it, after checking that its order really is the one with this id and its spec the order's.
pub async fn verified_job(api: &Api, job_id: B256, deployment: &Deployment) -> anyhow::Result<Job> {
    let job: Job = api.get(&format!("lit-compute/jobs/{job_id}")).await?;
    verify_job(&job, job_id, deployment)?;
    Ok(job)
}

fn verify_job(job: &Job, job_id: B256, deployment: &Deployment) -> anyhow::Result<()> {
    let order = job.order.to_order()?;
    let actual = market::typed_data::job_id(&order, &deployment.domain());
    if job.job_id != job_id || actual != job_id {
        return Err(
            Failure::Unverified(format!("the order that the API has for job {job_id} is that of {actual}")).into()
        );
    }
    if market::typed_data::spec_hash(&(&job.spec).into()) != order.specHash {
        return Err(
            Failure::Unverified(format!("the spec that the API has for job {job_id} is not its order's")).into()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Deployment {
        serde_json::from_str(
            r#"{"chainId":1,"escrow":"0x0000000000000000000000000000000000000001","registry":
            "0x0000000000000000000000000000000000000002","deployBlock":0,"escrowParams":{"thawPeriod":1,
            "owner":"0x0000000000000000000000000000000000000009","maxChallengeWindow":3600,"arbiterPeriod":1},
            "registryParams":{"minStake":"1","unbondingPeriod":3602,"bond":"1",
            "owner":"0x0000000000000000000000000000000000000009"},
            "tokens":{"TEST":"0x0000000000000000000000000000000000000003"}}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_manifest_is_only_taken_when_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(only_manifest(&dir.path().join("none")).unwrap_err().to_string().contains("no deployments"));
        fs::write(dir.path().join("1.json"), "{}").unwrap();
        for other in ["notes.txt", "1.txt", "parameters.json", "1.sources.json"] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        assert_eq!(only_manifest(dir.path()).unwrap(), dir.path().join("1.json"));
        fs::write(dir.path().join("2.json"), "{}").unwrap();
        let error = only_manifest(dir.path()).unwrap_err().to_string();
        assert!(error.contains("1.json") && error.contains("2.json"), "{error}");
    }

    #[test]
    fn tokens_go_by_name_or_address() {
        let of = |text: Option<&str>| token_address(&TokenArg { token: text.map(str::to_owned) }, &deployment());
        assert_eq!(of(None).unwrap(), NATIVE);
        assert_eq!(of(Some("native")).unwrap(), NATIVE);
        assert_eq!(of(Some("TEST")).unwrap(), Address::with_last_byte(3));
        assert_eq!(of(Some("0x0000000000000000000000000000000000000009")).unwrap(), Address::with_last_byte(9));
        let error = of(Some("USDC")).unwrap_err().to_string();
        assert!(error.contains("TEST"), "{error}");
        assert_eq!(token_name(Address::with_last_byte(3), &deployment()), "TEST");
    }

    #[test]
    fn an_order_or_spec_that_the_api_changed_is_noticed() {
        use market::abi::{JobSpec, Order};
        let spec = JobSpec { inputCID: "bafy".into(), operation: "encrypt".into(), params: String::new() };
        let order = Order { specHash: market::typed_data::spec_hash(&spec), maxPrice: 5, ..Order::default() };
        let job_id = market::typed_data::job_id(&order, &deployment().domain());
        let json = serde_json::json!({
            "jobId": job_id, "status": "pending", "order": market::order::OrderJson::from(&order),
            "spec": market::order::SpecJson::from(&spec),
        });
        let good: Job = serde_json::from_value(json).unwrap();
        verify_job(&good, job_id, &deployment()).unwrap();
        let mut dearer = good.clone();
        dearer.order.max_price = 6_u128.into();
        assert!(verify_job(&dearer, job_id, &deployment()).is_err());
        let mut other = good.clone();
        other.spec.params = "{}".into();
        assert!(verify_job(&other, job_id, &deployment()).unwrap_err().to_string().contains("spec"));
        assert!(verify_job(&good, B256::ZERO, &deployment()).is_err());
    }
}
