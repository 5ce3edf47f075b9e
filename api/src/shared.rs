//! State that all instances share besides jobs and nodes: the leaderboard, and features that operators switch.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use axum::extract::State;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use market::{
    clock,
    db::{
        self,
        flag::{self, Flag},
        leaderboard::{self, Leader},
    },
    redis::{self, Client, cache::Life, keys::Keys},
    settings::StoreArgs,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    error::{ApiError, ApiResult, Code},
    extract::{Json, Query},
    page::Limit,
    wire::{Hash, WalletAddress},
};

/// Names of cached values.
const LEADERS: &str = "leaderboard";
const FLAGS: &str = "flags";
/// How old the leaderboard may be.
const LEADERS_LIFE: Life = Life { shared: Duration::from_secs(10), local: Duration::from_secs(2) };
/// How old what is known of the switches may be where no message came.
const FLAGS_LIFE: Life = Life { shared: Duration::from_secs(30), local: Duration::from_secs(5) };
/// Seconds after which to try again what is switched off.
const PAUSED_SECS: u64 = 30;

/// A feature that can be switched off in a running market.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// New orders are taken.
    Submissions,
    /// Jobs are handed out.
    Claims,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 2] = [Self::Submissions, Self::Claims];

    /// As it stands in keys.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Submissions => "submissions",
            Self::Claims => "claims",
        }
    }

    /// What a route needs.
    #[must_use]
    pub fn of(route: &str) -> Option<Self> {
        match route.strip_prefix("/lit-compute/jobs/")? {
            "submit" | "submit/bulk" => Some(Self::Submissions),
            "claim" | "claim/bulk" => Some(Self::Claims),
            _ => None,
        }
    }
}

/// The routes of what is shared.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(leaders)).routes(routes!(features))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LeadersQuery {
    /// Most entries, 1 to 200.
    #[serde(default)]
    #[param(value_type = Option<i64>, minimum = 1, maximum = 200)]
    limit: Limit,
}

/// The nodes that have done most.
#[derive(Debug, Serialize, ToSchema)]
struct Leaderboard {
    /// The first one has done most.
    leaders: Vec<LeaderBody>,
}

/// A node's place.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LeaderBody {
    /// From 1 on.
    #[schema(example = 1)]
    rank: usize,
    /// Its id.
    node_id: Hash,
    /// Its operator.
    wallet_address: WalletAddress,
    /// Results that it has handed in.
    #[schema(example = 12)]
    completed_jobs: i64,
    /// When it handed the latest in.
    last_completed_at: DateTime<Utc>,
}

/// What is switched on.
#[derive(Debug, Serialize, ToSchema)]
struct Features {
    /// By name. What is off here is answered with 503 `paused`.
    #[schema(example = json!({ "submissions": true, "claims": true }))]
    features: BTreeMap<String, bool>,
}

/// List the nodes that have completed most jobs
///
/// May be some seconds old.
#[utoipa::path(
    get, path = "/lit-compute/leaderboard", tag = "nodes", params(LeadersQuery),
    responses((status = 200, body = Leaderboard))
)]
async fn leaders(State(app): State<App>, Query(query): Query<LeadersQuery>) -> ApiResult<Json<Leaderboard>> {
    let most = usize::try_from(query.limit.0).unwrap_or(usize::MAX);
    let leaders = leaders_of(&app).await?.into_iter().take(most).enumerate().map(|(n, leader)| LeaderBody {
        rank: n + 1,
        node_id: Hash(leader.node_id),
        wallet_address: WalletAddress(leader.node),
        completed_jobs: leader.completed_jobs,
        last_completed_at: leader.last_completed_at,
    });
    Ok(Json(Leaderboard { leaders: leaders.collect() }))
}

/// Tell what operators have switched on and off
#[utoipa::path(get, path = "/lit-compute/features", tag = "chain", responses((status = 200, body = Features)))]
async fn features(State(app): State<App>) -> ApiResult<Json<Features>> {
    let mut features: BTreeMap<_, _> = Feature::ALL.map(|feature| (feature.name().to_owned(), true)).into();
    features.extend(flags_of(&app).await?.into_iter().map(|flag| (flag.name, flag.enabled)));
    Ok(Json(Features { features }))
}

async fn leaders_of(app: &App) -> ApiResult<Vec<Leader>> {
    let count = || async { Ok(leaderboard::leaders(&mut *app.db().await?).await?) };
    app.cache.get_or_compute(LEADERS, LEADERS_LIFE, count).await
}

async fn flags_of(app: &App) -> ApiResult<Vec<Flag>> {
    let read = || async { Ok(flag::all(&mut *app.db().await?).await?) };
    app.cache.get_or_compute(FLAGS, FLAGS_LIFE, read).await
}

/// Refuses what is switched off.
pub(crate) async fn check(app: &App, feature: Feature) -> ApiResult<()> {
    if flags_of(app).await?.iter().all(|flag| flag.enabled || flag.name != feature.name()) {
        return Ok(());
    }
    let detail = format!("Operators have switched {} off for a while.", feature.name());
    Err(ApiError::new(Code::Paused, detail).retry_after(PAUSED_SECS))
}

/// Tells other applications, by way of Redis.
pub(crate) async fn tell(app: &App) -> anyhow::Result<()> {
    let redis = &app.parts.redis;
    let (leaders, flags) = (leaders_of(app).await?, flags_of(app).await?);
    redis::leaderboard::tell(redis, &leaders).await?;
    redis::flag::tell(redis, &flags).await?;
    Ok(())
}

/// Options of `flag`.
#[derive(Args, Clone)]
pub struct FlagArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(subcommand)]
    command: FlagCommand,
}

#[derive(Subcommand, Clone)]
enum FlagCommand {
    /// List what was ever switched
    List,
    /// Switch a feature on or off: `submissions` and `claims` stop the market, other names are for other applications
    Set {
        /// Lower-case letters, digits and underscores
        #[arg(value_parser = flag_name)]
        name: String,
        /// `on` or `off`
        // A `bool` is taken for a switch without a value otherwise.
        #[arg(value_parser = on_or_off, action = clap::ArgAction::Set)]
        state: bool,
    },
}

fn flag_name(text: &str) -> Result<String, &'static str> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let is_name = !text.is_empty() && text.len() <= 64 && text.bytes().all(fits);
    is_name.then(|| text.to_owned()).ok_or("must have 1 to 64 lower-case letters, digits and underscores")
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be on or off"),
    }
}

/// Lists or sets switches. A running market follows at once, and within half a minute where Redis is down.
pub async fn run(args: FlagArgs) -> anyhow::Result<()> {
    let pool = db::connect(&args.store.database_url, 1).await.context("connecting to Postgres")?;
    let mut db = pool.acquire().await?;
    match args.command {
        FlagCommand::List => {
            for Flag { name, enabled, updated_at } in flag::all(&mut db).await? {
                println!("{name} {} {updated_at}", if enabled { "on" } else { "off" });
            }
        }
        FlagCommand::Set { name, state } => {
            let now = clock::now();
            flag::set(&mut db, &name, state, now).await?;
            let redis = Client::open(&args.store.redis_url, Keys::new(args.store.redis_prefix.as_str()))
                .context("REDIS_URL is not usable")?;
            let told = async {
                redis::flag::tell(&redis, &[Flag { name, enabled: state, updated_at: now }]).await?;
                redis::cache::invalidate(&redis, FLAGS).await
            };
            if let Err(error) = told.await {
                eprintln!("Redis was not told ({error}): running instances follow within half a minute");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: FlagArgs,
    }

    #[test]
    fn a_feature_is_switched_by_a_word() {
        let set = |word| {
            let stores = ["flag", "--database-url", "postgres:///m", "--redis-url", "redis://r/"];
            Line::try_parse_from([&stores[..], &["set", "claims", word]].concat()).map(|line| line.args.command)
        };
        assert!(matches!(set("on").unwrap(), FlagCommand::Set { state: true, .. }));
        assert!(matches!(set("off").unwrap(), FlagCommand::Set { state: false, .. }));
        assert!(set("maybe").is_err());
    }
}
