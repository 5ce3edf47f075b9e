//! `littoral-indexer status`: how far the index is, as the database tells it. Chain and Redis are asked only if they are named.

use std::fmt::Write as _;

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use market::db::indexing::{self, Reorg, Standing};
use market::db::leader::{self, Holder, Role};
use market::db::outbox::{self, Source as OutboxSource};
use market::db::verification::{self, Run};
use market::db::{self, projection};
use market::redis::client::Client;
use market::redis::keys::Keys;
use market::redis::rebuild;
use market::{clock, rpc};
use serde::Serialize;
use serde_json::json;

/// Reorgs that are told.
const REORGS: i64 = 5;

/// Options of `littoral-indexer status`.
#[derive(Args, Clone)]
pub struct StatusArgs {
    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// JSON-RPC endpoint, to be asked for the latest block instead of telling what the indexer saw last
    #[arg(long, value_name = "URL")]
    pub rpc_url: Option<url::Url>,

    /// Redis, to be asked which database filled it
    #[arg(long, value_name = "URL")]
    pub redis_url: Option<String>,

    /// Text in front of every Redis key
    #[arg(long, env = "REDIS_PREFIX", default_value = "")]
    pub redis_prefix: String,

    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is told.
#[derive(Debug)]
struct Told {
    standing: Option<Standing>,
    /// By the chain itself, if it was asked.
    head: Option<u64>,
    leader: Option<Holder>,
    outbox: (i64, Option<DateTime<Utc>>),
    reorgs: Vec<Reorg>,
    verified: Option<Run>,
    generation: String,
    /// By Redis, if it was asked; nothing in it if none filled it.
    redis: Option<Option<String>>,
    now: DateTime<Utc>,
}

/// Prints it.
pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let told = gather(&args).await?;
    if args.json {
        println!("{}", told.json());
    } else {
        print!("{}", told.text());
    }
    Ok(())
}

async fn gather(args: &StatusArgs) -> anyhow::Result<Told> {
    let pool = db::connect(&args.database_url, 1).await.context("cannot connect to Postgres (--database-url)")?;
    anyhow::ensure!(
        db::missing_migrations(&pool).await.context("is this the indexer's database (--database-url)?")? == 0,
        "the database (--database-url) is of an older version; littoral-indexer run brings it up to date"
    );
    let mut snapshot = db::audit::snapshot(&pool).await?;
    let told = Told {
        standing: indexing::standing(&mut snapshot).await?,
        head: None,
        leader: leader::holder(&mut snapshot, Role::Indexer).await?,
        outbox: outbox::depth(&mut snapshot, OutboxSource::Chain).await?,
        reorgs: indexing::reorgs(&mut snapshot, REORGS).await?,
        verified: verification::last(&mut snapshot).await?,
        generation: projection::generation(&mut snapshot).await?,
        redis: None,
        now: clock::now(),
    };
    let head = match &args.rpc_url {
        Some(url) => Some(rpc::head(&rpc::provider(url)).await.context("cannot ask the chain (--rpc-url)")?),
        None => None,
    };
    let redis = match &args.redis_url {
        Some(url) => {
            let redis =
                Client::open(url, Keys::new(&args.redis_prefix)).context("--redis-url does not name a Redis server")?;
            Some(rebuild::generation(&redis).await.context("cannot ask Redis (--redis-url)")?)
        }
        None => None,
    };
    Ok(Told { head, redis, ..told })
}

/// Blocks of the chain that the index lacks, by how deep they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Lag {
    head: Option<u64>,
    #[serde(rename = "final")]
    finalized: Option<u64>,
}

impl Told {
    fn head(&self) -> Option<u64> {
        self.head.or(self.standing.as_ref().and_then(|standing| standing.head))
    }

    fn lag(&self) -> Lag {
        let behind = |level: Option<u64>| {
            let cursor = self.standing.as_ref().map(|standing| standing.cursor.number);
            level.zip(cursor).map(|(level, cursor)| level.saturating_sub(cursor))
        };
        Lag { head: behind(self.head()), finalized: behind(self.standing.as_ref().and_then(|s| s.finalized)) }
    }

    fn outbox_age_secs(&self) -> i64 {
        self.outbox.1.map_or(0, |oldest| (self.now - oldest).num_seconds().max(0))
    }

    fn json(&self) -> serde_json::Value {
        let standing = self.standing.as_ref().map(|standing| {
            json!({
                "chainId": standing.chain_id,
                "cursor": { "number": standing.cursor.number, "hash": standing.cursor.hash, "minedAt": standing.mined_at },
                "epoch": standing.epoch,
                "final": standing.finalized,
            })
        });
        json!({
            "index": standing,
            "head": self.head(),
            "lag": self.lag(),
            "leader": self.leader,
            "outbox": { "depth": self.outbox.0, "oldestSecs": self.outbox_age_secs() },
            "reorgs": self.reorgs,
            "verification": self.verified,
            "generation": self.generation,
            "redis": self.redis.as_ref().map(|found| json!({
                "generation": found,
                "current": found.as_ref() == Some(&self.generation),
            })),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<13} {value}");
        };
        let number = |number: Option<u64>| number.map_or("not known".to_owned(), |number| number.to_string());
        match &self.standing {
            None => line("index", "nothing is indexed yet".to_owned()),
            Some(standing) => {
                let mined = standing.mined_at.map_or(String::new(), |at| format!(", mined {}", time(at)));
                line("chain", standing.chain_id.to_string());
                line("cursor", format!("block {} ({}){mined}", standing.cursor.number, standing.cursor.hash));
                line("head", number(self.head()));
                line("final", number(standing.finalized));
                let Lag { head, finalized } = self.lag();
                line("lag", format!("{} blocks to the head, {} to what is final", number(head), number(finalized)));
            }
        }
        line("leader", self.leader.as_ref().map_or("there never was one".to_owned(), describe));
        let waits =
            if self.outbox.0 == 0 { String::new() } else { format!(", the oldest for {} s", self.outbox_age_secs()) };
        line("outbox", format!("{} changes wait{waits}", self.outbox.0));
        let verified = self.verified.as_ref().map_or("none yet".to_owned(), |run| {
            let Run { from_block, to_block, verdict, events, finished_at, detail, .. } = run;
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            let at = time(*finished_at);
            format!("{} on {at}, blocks {from_block} to {to_block}, {events} events{detail}", verdict.name())
        });
        line("verification", verified);
        let redis = match &self.redis {
            None => String::new(),
            Some(Some(found)) if *found == self.generation => ", which Redis holds".to_owned(),
            Some(Some(found)) => format!(", but Redis holds {found}"),
            Some(None) => ", but Redis is not filled".to_owned(),
        };
        line("generation", format!("{}{redis}", self.generation));
        for reorg in &self.reorgs {
            let Reorg { at, ancestor, from, to, events_undone } = reorg;
            let (depth, from, to) = (from.number.saturating_sub(*ancestor), from.number, to.number);
            let what = format!("{depth} blocks above {ancestor}, {from} to {to}, {events_undone} events undone");
            line("reorg", format!("{} {what}", time(*at)));
        }
        text
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn describe(holder: &Holder) -> String {
    let Holder { epoch, since, leads, renewed_secs_ago, .. } = holder;
    if *leads {
        format!("epoch {epoch} since {}, gave a sign of life {renewed_secs_ago:.1} s ago", time(*since))
    } else {
        format!("none; the last was epoch {epoch}, from {}", time(*since))
    }
}
