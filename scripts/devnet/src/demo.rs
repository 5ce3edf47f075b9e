//! One real job, taken through the marketplace with the command line that people use.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use age::x25519::Identity;
use alloy::primitives::utils::format_units;
use alloy::primitives::{Address, B256, U256};
use anyhow::{Context, bail, ensure};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use devnet::{Chain, Endpoints, Holdings, Keys, Littoral, Manifest, Said};

/// What to show.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The file that the requester has encrypted.
    pub file: PathBuf,
    /// What the job is paid in; the native coin if zero.
    pub token: Address,
    /// What to call that.
    pub symbol: String,
    /// Price of the job in the token's smallest unit.
    pub price: U256,
    /// How long the job may take.
    pub within: Duration,
}

/// A demonstration under way.
pub struct Demo {
    options: DemoOptions,
    chain: Chain,
    keys: Keys,
    api_url: String,
    requester: Littoral,
    operator: Littoral,
    before: Balances,
    steps: Vec<Step>,
}

struct Step {
    title: &'static str,
    gas: u64,
    took: Duration,
}

/// What the two parties hold, in the token of the job.
#[derive(Clone, Copy)]
struct Balances {
    requester: Holdings,
    node: Holdings,
}

/// What `submit` promised the requester.
struct Submitted {
    job_id: B256,
    identity: Identity,
    input: Vec<u8>,
}

impl Demo {
    /// Prepares a demonstration and reads what everyone has before it.
    ///
    /// # Errors
    /// When the command line has not been built or the chain does not answer.
    pub async fn new(at: &Endpoints, manifest: &Manifest, keys: Keys, options: DemoOptions) -> anyhow::Result<Self> {
        let chain = Chain::new(&at.rpc_url, manifest)?;
        let requester = keys.requester.address();
        if !options.token.is_zero()
            && chain.holdings(requester, options.token).await?.wallet < options.price * U256::from(2)
        {
            chain.mint(keys.deployer, options.token, requester, options.price * U256::from(10)).await?;
        }
        let before = balances(&chain, keys, options.token).await?;
        Ok(Self {
            requester: Littoral::new(at, keys.requester)?,
            operator: Littoral::new(at, keys.node)?,
            api_url: at.api_url.clone(),
            chain,
            keys,
            before,
            options,
            steps: Vec::new(),
        })
    }

    /// The operator registers the node and stakes, unless an earlier run did.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn register_node(&mut self) -> anyhow::Result<()> {
        let node = self.keys.node.address();
        if !self.chain.is_registered(node).await? {
            let args = ["node", "register", "--capacity", "4", "--ops", "encrypt,decrypt,command"];
            let said = self.operator.run(args).await?;
            self.step("node registers", &said).await?;
        }
        let stake = self.chain.min_stake().await?;
        let staked = self.chain.holdings(node, Address::ZERO).await?.staked;
        if staked < stake {
            let missing = (stake - staked).to_string();
            let said = self.operator.run(["node", "stake", &missing]).await?;
            self.step("node stakes", &said).await?;
        }
        Ok(())
    }

    /// The job itself, from the requester's deposit to the node's withdrawal.
    ///
    /// # Errors
    /// When a command fails, the result is not the input encrypted, or the money is not where it belongs.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        self.deposit().await?;
        let job = self.submit().await?;
        let settlement = self.watch(&job).await?;
        self.check_api(&job, settlement).await?;
        self.fetch(&job).await?;
        self.check_payment(job.job_id).await?;
        let token = self.options.token.to_string();
        let mut args = vec!["node", "withdraw"];
        if !self.options.token.is_zero() {
            args.extend(["--token", &token]);
        }
        let said = self.operator.run(args).await?;
        self.step("node withdraws", &said).await?;
        self.check_end().await
    }

    /// Twice the price, so that something is left.
    async fn deposit(&mut self) -> anyhow::Result<()> {
        let amount = (self.options.price * U256::from(2)).to_string();
        let token = self.options.token.to_string();
        let mut args = vec!["deposit", &amount];
        if !self.options.token.is_zero() {
            args.extend(["--token", &token]);
        }
        let said = self.requester.run(args).await?;
        self.step("requester deposits", &said).await
    }

    async fn submit(&mut self) -> anyhow::Result<Submitted> {
        let file = self.options.file.to_str().context("the file's name is not UTF-8")?.to_owned();
        let input = std::fs::read(&self.options.file).with_context(|| format!("reading {file}"))?;
        let identity = Identity::generate();
        let (to, price, token) =
            (identity.to_public().to_string(), self.options.price.to_string(), self.options.token.to_string());
        let node = self.keys.node.address().to_string();
        // Opened, so that every step of the money is a transaction to look at.
        let mut args =
            vec!["submit", &file, "--open", "--op", "encrypt", "--to", &to, "--price", &price, "--node", &node];
        if !self.options.token.is_zero() {
            args.extend(["--token", &token]);
        }
        let said = self.requester.run(args).await?;
        self.step("requester submits the job", &said).await?;
        let job_id = said.text("jobId")?.parse().context("`jobId` is no job id")?;
        println!("     job {job_id}, {} bytes, input {}", input.len(), said.text("inputCID")?);
        Ok(Submitted { job_id, identity, input })
    }

    /// Shows the job's way to its payment; returns the transaction that paid it.
    async fn watch(&mut self, job: &Submitted) -> anyhow::Result<B256> {
        let started = Instant::now();
        let mut last = String::new();
        let id = job.job_id.to_string();
        let watching = self.requester.stream(["watch", &id], |line| {
            if let Some(status) = line["status"].as_str().filter(|status| *status != last) {
                println!("     {:>6.2} s  {status}", started.elapsed().as_secs_f64());
                last = status.to_owned();
            }
        });
        let said = tokio::time::timeout(self.options.within, watching)
            .await
            .with_context(|| format!("the job was not paid within {} s", self.options.within.as_secs()))??;
        let paid = self.chain.events("JobPaid", job.job_id).await?;
        let settlement = match paid.as_slice() {
            [log] => log.transaction_hash.context("the payment's log has no transaction")?,
            logs => bail!("the job was paid {} times", logs.len()),
        };
        self.record("settler pays the node", &[settlement], said.took).await?;
        Ok(settlement)
    }

    /// The API says of the job what the chain says.
    async fn check_api(&self, job: &Submitted, settlement: B256) -> anyhow::Result<()> {
        let url = format!("{}/lit-compute/jobs/{}", self.api_url, job.job_id);
        let answer: serde_json::Value = reqwest::get(&url).await?.error_for_status()?.json().await?;
        ensure!(answer["status"] == "paid", "{url} does not say paid: {answer}");
        ensure!(answer["closedTx"] == settlement.to_string(), "{url} does not name {settlement}: {answer}");
        Ok(())
    }

    async fn fetch(&mut self, job: &Submitted) -> anyhow::Result<()> {
        let scratch = devnet::paths::scratch_dir("demo")?;
        let path = scratch.path().join("output.age");
        let out = path.to_str().context("the scratch directory's name is not UTF-8")?;
        let id = job.job_id.to_string();
        let said = self.requester.run(["fetch", &id, "-o", out]).await?;
        let encrypted = std::fs::read(&path).with_context(|| format!("reading {out}"))?;
        let decrypted = age::decrypt(&job.identity, &encrypted).context("the result does not decrypt with our key")?;
        ensure!(decrypted == job.input, "the result decrypts to something other than the file");
        self.step("requester fetches the result", &said).await?;
        println!("     {} encrypted bytes decrypt to exactly the file", encrypted.len());
        Ok(())
    }

    /// Exactly the price has moved, once.
    async fn check_payment(&self, job_id: B256) -> anyhow::Result<()> {
        let now = balances(&self.chain, self.keys, self.options.token).await?;
        let price = self.options.price;
        let earned = now.node.earned - self.before.node.earned;
        ensure!(earned == price, "the node earned {earned} for job {job_id}, not {price}");
        let left = self.before.requester.deposited + price;
        ensure!(
            now.requester.deposited == left,
            "the requester has {} left in deposit, not {left}",
            now.requester.deposited
        );
        Ok(())
    }

    /// The node has what it earned in its own wallet.
    async fn check_end(&self) -> anyhow::Result<()> {
        let now = balances(&self.chain, self.keys, self.options.token).await?;
        ensure!(now.node.earned.is_zero(), "the node could not withdraw {}", now.node.earned);
        Ok(())
    }

    async fn step(&mut self, title: &'static str, said: &Said) -> anyhow::Result<()> {
        self.record(title, &said.transactions(), said.took).await
    }

    /// Prints a step as it ends, with the gas that the chain, not the command, names.
    async fn record(&mut self, title: &'static str, transactions: &[B256], took: Duration) -> anyhow::Result<()> {
        let mut total = 0;
        println!("{:>3}. {title} ({:.2} s)", self.steps.len() + 1, took.as_secs_f64());
        for hash in transactions {
            let receipt = self.chain.receipt(*hash).await?;
            ensure!(receipt.status(), "transaction {hash} reverted");
            println!("     tx {hash}, gas {}", receipt.gas_used);
            total += receipt.gas_used;
        }
        self.steps.push(Step { title, gas: total, took });
        Ok(())
    }

    /// What everyone has afterwards, and what each step took.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn summary(&self) -> anyhow::Result<String> {
        let after = balances(&self.chain, self.keys, self.options.token).await?;
        let mut money = table(["", &format!("before ({})", self.options.symbol), "after", "change"]);
        let (r0, r1, n0, n1) = (self.before.requester, after.requester, self.before.node, after.node);
        let rows = [
            ("requester, wallet", r0.wallet, r1.wallet),
            ("requester, deposit", r0.deposited, r1.deposited),
            ("node, wallet", n0.wallet, n1.wallet),
            ("node, earned", n0.earned, n1.earned),
            ("node, stake", n0.staked, n1.staked),
        ];
        for (title, before, after) in rows {
            money.add_row([title.to_owned(), amount(before), amount(after), change(before, after)]);
        }
        let mut steps = table(["step", "gas", "seconds"]);
        for step in &self.steps {
            let gas = if step.gas == 0 { String::new() } else { step.gas.to_string() };
            steps.add_row([step.title.to_owned(), gas, format!("{:.2}", step.took.as_secs_f64())]);
        }
        let gas: u64 = self.steps.iter().map(|step| step.gas).sum();
        let took: f64 = self.steps.iter().map(|step| step.took.as_secs_f64()).sum();
        steps.add_row(["all".to_owned(), gas.to_string(), format!("{took:.2}")]);
        Ok(format!("{money}\n\n{steps}\n\nWallets also pay the gas of their own transactions."))
    }
}

async fn balances(chain: &Chain, keys: Keys, token: Address) -> anyhow::Result<Balances> {
    Ok(Balances {
        requester: chain.holdings(keys.requester.address(), token).await?,
        node: chain.holdings(keys.node.address(), token).await?,
    })
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// With 18 decimals, as the native coin and the test token have, and no zeros at the end.
fn amount(units: U256) -> String {
    let text = format_units(units, 18).unwrap_or_else(|_| units.to_string());
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn change(before: U256, after: U256) -> String {
    match before.cmp(&after) {
        std::cmp::Ordering::Less => format!("+{}", amount(after - before)),
        std::cmp::Ordering::Equal => String::new(),
        std::cmp::Ordering::Greater => format!("-{}", amount(before - after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_exactly_and_without_trailing_zeros() {
        assert_eq!(amount(U256::from(10_000_000_000_000_000_u64)), "0.01");
        assert_eq!(amount(U256::from(1)), "0.000000000000000001");
        assert_eq!(amount(U256::from(20) * U256::from(10).pow(U256::from(18))), "20");
        assert_eq!(change(U256::from(3), U256::from(3)), "");
        assert_eq!(change(U256::ZERO, U256::from(10).pow(U256::from(18))), "+1");
        assert_eq!(change(U256::from(10).pow(U256::from(18)), U256::ZERO), "-1");
    }
}
