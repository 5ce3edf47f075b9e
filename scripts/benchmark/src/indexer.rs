//! `indexer`: how fast the chain gets into Postgres, against the node's own speed and against Ponder.
//!
//! For each density of events one Anvil is filled with them and stays up while they are read: thrown away (the ceiling), by our
//! indexer into an empty database, and by Ponder into another one. What ours stored is compared with the chain, which is
//! read again by other code than the indexer's.

mod ceiling;
mod chain;
mod head;
mod ours;
mod ponder;
mod rpc;
mod truth;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use devnet::Postgres;
use serde::Serialize;

use crate::figures::rounded;
use chain::{Chain, Density};
use head::Head;
use ours::{Cpu, Indexed};
use ponder::Cap;
use truth::Truth;

/// Options of `indexer`.
#[derive(Args)]
pub struct Indexer {
    /// Events that the chain is to have, about
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    events: u64,

    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,

    /// Parts to leave out
    #[arg(long, value_enum, value_delimiter = ',')]
    skip: Vec<Skip>,

    /// How often ceiling and indexer are measured in turn; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Blocks by which the latency at the head is measured
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    head_blocks: u32,

    /// Keep the servers' logs in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,

    /// Print nothing but the JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The chain with about 1,000 events a block
    Dense,
    /// The chain with about 30 events a block
    Sparse,
    /// The latency at the head, once the sparse chain is indexed
    Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Skip {
    /// Reading the logs and throwing them away
    Ceiling,
    /// Ponder
    Ponder,
    /// The latency at the head
    Head,
}

/// What was measured; what was left out is null.
#[derive(Debug, Default, Serialize)]
struct Figures {
    dense: Option<Backfill>,
    sparse: Option<Backfill>,
    head: Option<Head>,
}

#[derive(Debug, Serialize)]
struct Backfill {
    events: u64,
    ours_events_per_s: f64,
    ceiling_events_per_s: Option<f64>,
    ratio_to_ceiling: Option<f64>,
    /// The better of the two.
    ponder_events_per_s: Option<f64>,
    ratio_to_ponder: Option<f64>,
    ponder_stock_events_per_s: Option<f64>,
    ponder_uncapped_events_per_s: Option<f64>,
    /// Processor seconds of one run of ours.
    ours_cpu_s: Cpu,
    peak_rss_mb: u64,
    rows_checked: usize,
}

impl Indexer {
    /// Measures; false never, since a row that is not the chain's is an error.
    pub async fn run(self) -> anyhow::Result<bool> {
        let scratch = tempfile::Builder::new().prefix("littoral-bench").tempdir()?;
        let dir = self.logs.clone().unwrap_or_else(|| scratch.path().to_owned());
        let mut figures = Figures::default();
        if self.wants(Part::Dense) {
            let mut stage = Stage::fill(&self, dir.join("dense"), Density::Dense).await?;
            figures.dense = Some(stage.measure(&self).await?.0);
        }
        let wants_head = self.wants(Part::Head) && !self.skip.contains(&Skip::Head);
        if self.wants(Part::Sparse) || wants_head {
            let mut stage = Stage::fill(&self, dir.join("sparse"), Density::Sparse).await?;
            let indexed = if self.wants(Part::Sparse) {
                let (backfill, indexed) = stage.measure(&self).await?;
                figures.sparse = Some(backfill);
                indexed
            } else {
                stage.index(&self, 0).await?
            };
            if wants_head {
                self.say("head: mining and waiting");
                figures.head = Some(head::measure(&mut stage.chain, &indexed, self.head_blocks).await?);
            }
        }
        println!("{}", serde_json::to_string(&figures)?);
        Ok(true)
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    fn say(&self, what: &str) {
        if !self.json {
            eprintln!("{what}");
        }
    }
}

/// A chain full of events, and an empty database server.
struct Stage {
    name: &'static str,
    dir: PathBuf,
    chain: Chain,
    head: u64,
    truth: Truth,
    postgres: Postgres,
}

impl Stage {
    async fn fill(options: &Indexer, dir: PathBuf, density: Density) -> anyhow::Result<Self> {
        let name = density.name();
        options.say(&format!("{name}: filling a chain with {} events", options.events));
        let chain = Chain::generate(&dir, density, options.events).await?;
        let head = chain.head().await?;
        let truth = Truth::read(&chain, head, options.events).await?;
        options.say(&format!("{name}: {} events in {head} blocks", truth.events()));
        let postgres = Postgres::start(&dir.join("postgres"), None).await?;
        Ok(Self { name, dir, chain, head, truth, postgres })
    }

    /// Figures, and the indexer of the last turn, which goes on.
    async fn measure(&mut self, options: &Indexer) -> anyhow::Result<(Backfill, Indexed)> {
        let way = self.fastest_way(options).await?;
        let (mut ceilings, mut ours) = (Vec::new(), Vec::new());
        let mut peak_rss_mb = 0;
        for turn in 1..options.repeat {
            ceilings.extend(self.ceiling(options, way).await?);
            let indexed = self.index(options, turn).await?;
            ours.push(indexed.seconds);
            peak_rss_mb = indexed.peak_rss_mb.max(peak_rss_mb);
            indexed.pool.close().await;
        }
        let (stock, uncapped) = self.ponder(options).await?;
        ceilings.extend(self.ceiling(options, way).await?);
        let indexed = self.index(options, 0).await?;
        ours.push(indexed.seconds);
        let rows_checked = self.truth.compare(&indexed.pool).await?;
        let speed = |seconds: f64| quotient(self.truth.events(), seconds);
        let (ours, ceiling) = (median(ours).map_or(0.0, speed), median(ceilings).map(speed));
        let (stock, uncapped) = (stock.map(speed), uncapped.map(speed));
        let ponder = stock.map(|stock| uncapped.map_or(stock, |uncapped| stock.max(uncapped)));
        let backfill = Backfill {
            events: self.truth.events(),
            ours_events_per_s: ours.round(),
            ceiling_events_per_s: ceiling.map(f64::round),
            ratio_to_ceiling: ceiling.map(|ceiling| rounded(ours / ceiling)),
            ponder_events_per_s: ponder.map(f64::round),
            ratio_to_ponder: ponder.map(|ponder| rounded(ours / ponder)),
            ponder_stock_events_per_s: stock.map(f64::round),
            ponder_uncapped_events_per_s: uncapped.map(f64::round),
            ours_cpu_s: indexed.cpu,
            peak_rss_mb: indexed.peak_rss_mb.max(peak_rss_mb),
            rows_checked,
        };
        Ok((backfill, indexed))
    }

    async fn fastest_way(&self, options: &Indexer) -> anyhow::Result<Option<ceiling::Way>> {
        if options.skip.contains(&Skip::Ceiling) {
            return Ok(None);
        }
        let way = ceiling::best(&self.chain, self.head, self.truth.events()).await?;
        let (name, blocks, concurrency) = (self.name, way.blocks, way.concurrency);
        options.say(&format!("{name}: the node is fastest by {blocks} blocks a request, {concurrency} at once"));
        Ok(Some(way))
    }

    async fn ceiling(&self, options: &Indexer, way: Option<ceiling::Way>) -> anyhow::Result<Option<f64>> {
        let Some(way) = way else { return Ok(None) };
        let seconds = ceiling::read(&self.chain, self.head, way).await?;
        options.say(&format!("{}: read and thrown away in {seconds:.2} s", self.name));
        Ok(Some(seconds))
    }

    async fn index(&mut self, options: &Indexer, turn: u32) -> anyhow::Result<Indexed> {
        let name = format!("ours_{turn}");
        let indexed = ours::index(&self.chain, self.head, &mut self.postgres, &self.dir, &name).await?;
        let (seconds, projected, rss) = (indexed.seconds, indexed.projected_seconds, indexed.peak_rss_mb);
        options.say(&format!("{}: indexed in {seconds:.2} s, in Redis after {projected:.2} s, {rss} MiB", self.name));
        options.say(&format!("{}: {:?}", self.name, indexed.cpu));
        Ok(indexed)
    }

    /// Seconds as published, and with the cap on requests lifted.
    async fn ponder(&self, options: &Indexer) -> anyhow::Result<(Option<f64>, Option<f64>)> {
        if options.skip.contains(&Skip::Ponder) {
            return Ok((None, None));
        }
        let mut seconds = Vec::new();
        for cap in [Cap::Stock, Cap::Lifted] {
            let blocks = (self.chain.deployment.manifest.deploy_block, self.head - chain::EMPTY_BLOCKS);
            let events = self.truth.events();
            let measured = ponder::index(&self.chain, blocks, events, &self.postgres, &self.dir, cap).await?;
            let (name, cap, took, rss) = (self.name, cap.name(), measured.seconds, measured.peak_rss_mb);
            options.say(&format!("{name}: indexed by Ponder ({cap}) in {took:.2} s, {rss} MiB"));
            seconds.push(took);
        }
        Ok((seconds.first().copied(), seconds.last().copied()))
    }
}

/// Nothing of nothing.
fn median(mut of: Vec<f64>) -> Option<f64> {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied()
}

fn quotient(count: u64, by: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / by
}
