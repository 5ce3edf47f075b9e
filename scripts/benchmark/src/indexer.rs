//! `indexer`: how fast the chain gets into Postgres, against the node's own speed and against Ponder.
//!
//! For each density of events one Anvil is filled with them and stays up while they are read: thrown away (the ceiling), by our
//! indexer into an empty database, and by Ponder into another one. What ours stored is compared with the chain, which is
//! read again by other code than the indexer's.

mod ceiling;
mod chain;
mod ours;
mod rpc;
mod truth;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use devnet::Postgres;
use serde::Serialize;

use chain::{Chain, Density};
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

    /// Parts to leave out, of every density
    #[arg(long, value_enum, value_delimiter = ',')]
    skip: Vec<Skip>,

    /// How often ceiling and indexer are measured in turn; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Keep the servers' logs in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,

    /// Print nothing but the JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Dense,
    Sparse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Skip {
    /// Reading the logs and throwing them away
    Ceiling,
}

/// What was measured; what was left out is null.
#[derive(Debug, Serialize)]
struct Figures {
    dense: Option<Backfill>,
    sparse: Option<Backfill>,
}

#[derive(Debug, Serialize)]
struct Backfill {
    events: u64,
    ours_events_per_s: f64,
    ceiling_events_per_s: Option<f64>,
    ratio_to_ceiling: Option<f64>,
    peak_rss_mb: u64,
    rows_checked: usize,
}

impl Indexer {
    /// Measures; false never, since a row that is not the chain's is an error.
    pub async fn run(self) -> anyhow::Result<bool> {
        let scratch = tempfile::Builder::new().prefix("littoral-bench").tempdir()?;
        let dir = self.logs.clone().unwrap_or_else(|| scratch.path().to_owned());
        let mut figures = Figures { dense: None, sparse: None };
        if self.only.is_none_or(|part| part == Part::Dense) {
            figures.dense = Some(self.density(&dir.join("dense"), Density::Dense).await?);
        }
        if self.only.is_none_or(|part| part == Part::Sparse) {
            figures.sparse = Some(self.density(&dir.join("sparse"), Density::Sparse).await?);
        }
        println!("{}", serde_json::to_string(&figures)?);
        Ok(true)
    }

    async fn density(&self, dir: &Path, density: Density) -> anyhow::Result<Backfill> {
        let name = density.name();
        self.say(&format!("{name}: filling a chain with {} events", self.events));
        let chain = Chain::generate(dir, density, self.events).await?;
        let head = chain.head().await?;
        let truth = Truth::read(&chain, head, self.events).await?;
        self.say(&format!("{name}: {} events in {head} blocks", truth.events()));
        let way = if self.skip.contains(&Skip::Ceiling) {
            None
        } else {
            let way = ceiling::best(&chain, head, truth.events()).await?;
            self.say(&format!("{name}: the node is fastest by {} blocks, {} at once", way.blocks, way.concurrency));
            Some(way)
        };
        let postgres = Postgres::start(&dir.join("postgres"), None).await?;
        let (mut ceilings, mut ours, mut peak_rss_mb, mut rows_checked) = (Vec::new(), Vec::new(), 0, 0);
        for turn in 0..self.repeat {
            if let Some(way) = way {
                ceilings.push(ceiling::read(&chain, head, way).await?);
                self.say(&format!("{name}: read by nobody in {:.2} s", ceilings[ceilings.len() - 1]));
            }
            let indexed = ours::index(&chain, head, &postgres, dir, &format!("ours_{turn}")).await?;
            let (seconds, projected) = (indexed.seconds, indexed.projected_seconds);
            self.say(&format!("{name}: indexed in {seconds:.2} s, in Redis after {projected:.2} s"));
            ours.push(seconds);
            peak_rss_mb = indexed.peak_rss_mb.max(peak_rss_mb);
            rows_checked = truth.compare(&indexed.pool).await?;
            indexed.pool.close().await;
        }
        let speed = |seconds: f64| quotient(truth.events(), seconds);
        let (ours, ceiling) = (median(ours).map_or(0.0, speed), median(ceilings).map(speed));
        Ok(Backfill {
            events: truth.events(),
            ours_events_per_s: ours.round(),
            ceiling_events_per_s: ceiling.map(f64::round),
            ratio_to_ceiling: ceiling.map(|ceiling| rounded(ours / ceiling)),
            peak_rss_mb,
            rows_checked,
        })
    }

    fn say(&self, what: &str) {
        if !self.json {
            eprintln!("{what}");
        }
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

fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}
