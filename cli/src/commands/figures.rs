//! What everyone may know of the market as a whole: `stats`, `leaderboard` and `features`.

use crate::api::{Features, JobStats, Leaderboard};
use crate::args::LeaderboardArgs;
use crate::context::Context;
use crate::output::{fields, table};

/// Jobs by status.
pub async fn stats(context: &Context) -> anyhow::Result<()> {
    let stats: JobStats = context.api()?.get("lit-compute/jobs/stats").await?;
    context.out.result(&stats, || {
        let mut rows = vec![("total", stats.total.to_string())];
        rows.extend(stats.by_status.iter().map(|(status, jobs)| (status.as_str(), jobs.to_string())));
        fields(&rows)
    })
}

/// The nodes that have completed most jobs.
pub async fn leaderboard(context: &Context, args: &LeaderboardArgs) -> anyhow::Result<()> {
    let board: Leaderboard = context.api()?.get(&format!("lit-compute/leaderboard?limit={}", args.limit)).await?;
    context.out.result(&board, || {
        let row = |leader: &crate::api::Leader| {
            let last = leader.last_completed_at.format("%Y-%m-%d %H:%M:%S").to_string();
            vec![leader.rank.to_string(), leader.wallet_address.to_string(), leader.completed_jobs.to_string(), last]
        };
        table(&["rank", "node", "jobs", "latest (UTC)"], board.leaders.iter().map(row).collect())
    })
}

/// What operators have switched on and off.
pub async fn features(context: &Context) -> anyhow::Result<()> {
    let features: Features = context.api()?.get("lit-compute/features").await?;
    context.out.result(&features, || {
        let state = |on: &bool| if *on { "on" } else { "off" }.to_owned();
        fields(&features.features.iter().map(|(name, on)| (name.as_str(), state(on))).collect::<Vec<_>>())
    })
}
