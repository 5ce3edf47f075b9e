//! `settle status`, `settle holds`, `settle release`: an operator's look at the settler, through the database.

use alloy::primitives::{Address, B256};
use anyhow::{Context, ensure};
use clap::Subcommand;
use market::batch::{Channel, Subject};
use market::clock;
use market::db::settlement::{self, Hold, Status};
use sqlx::PgPool;

use super::args::token;

/// One is enough for one command.
const DATABASE_CONNECTIONS: u32 = 1;

/// What to look at, or to change.
#[derive(Subcommand, Clone)]
pub enum AdminCommand {
    /// Say what is due, sent, final and on hold
    Status {
        /// Postgres, as postgres://user:password@host:port/database
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
    },
    /// List payments that are not tried again, with the reason
    Holds {
        /// Postgres, as postgres://user:password@host:port/database
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
        /// Most to list of each rail
        #[arg(long, default_value_t = 1000)]
        limit: i64,
    },
    /// Let a payment on hold be tried again
    Release {
        /// Postgres, as postgres://user:password@host:port/database
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
        /// The job
        #[arg(required_unless_present = "requester", conflicts_with = "requester")]
        job: Option<B256>,
        /// Instead of a job: the vouchers of this requester …
        #[arg(long, requires = "node", value_name = "ADDRESS")]
        requester: Option<Address>,
        /// … to this node …
        #[arg(long, requires = "requester", value_name = "ADDRESS")]
        node: Option<Address>,
        /// … in this token
        #[arg(long, value_parser = token, default_value = "native", value_name = "ADDRESS")]
        token: Address,
    },
}

/// Does what was asked and prints the answer.
pub async fn run(command: AdminCommand) -> anyhow::Result<()> {
    match command {
        AdminCommand::Status { database_url } => {
            let pool = connect(&database_url).await?;
            print!("{}", describe(&settlement::status(&mut *pool.acquire().await?).await?));
        }
        AdminCommand::Holds { database_url, limit } => {
            let pool = connect(&database_url).await?;
            for hold in settlement::holds(&mut *pool.acquire().await?, limit).await? {
                println!("{}", line(&hold));
            }
        }
        AdminCommand::Release { database_url, job, requester, node, token } => {
            let pool = connect(&database_url).await?;
            let mut db = pool.begin().await?;
            if let Some(job) = job {
                ensure!(settlement::release(&mut db, job, clock::now()).await?, "job {job} is not on hold");
                println!("released job {job}");
            }
            if let (Some(requester), Some(node)) = (requester, node) {
                let channel = Channel { requester, node, token };
                let released = settlement::release_voucher(&mut db, channel).await?;
                ensure!(released > 0, "no voucher of {} is on hold", Subject::Channel(channel));
                println!("released {}", Subject::Channel(channel));
            }
            db.commit().await?;
        }
    }
    Ok(())
}

async fn connect(database_url: &str) -> anyhow::Result<PgPool> {
    market::db::connect(database_url, DATABASE_CONNECTIONS).await.context("connecting to Postgres")
}

fn describe(status: &Status) -> String {
    let leader = match status.epoch {
        Some((epoch, since)) => format!("epoch {epoch} since {}", since.to_rfc3339()),
        None => "never led".to_owned(),
    };
    let oldest = status.oldest.map_or(String::new(), |since| format!(", oldest of {}", since.to_rfc3339()));
    let mut text = format!(
        "leader    {leader}\npayments  {} not settled for good{oldest}\non hold   {}\n",
        status.unsettled, status.holds
    );
    for (state, count, last) in &status.batches {
        text.push_str(&format!("batches   {count} {state}, {last} final\n"));
    }
    if status.foreign > 0 {
        text.push_str(&format!("foreign   {} ranges of nonces were used by other transactions\n", status.foreign));
    }
    text
}

fn line(hold: &Hold) -> String {
    let amount = hold.cumulative.map_or(String::new(), |cumulative| format!(" up to {cumulative}"));
    format!("{}  {}{amount}  {}", hold.created_at.to_rfc3339(), hold.subject, hold.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_names_what_it_is_for() {
        let channel = Channel { requester: Address::ZERO, node: Address::repeat_byte(1), token: Address::ZERO };
        let hold = Hold {
            subject: Subject::Channel(channel),
            cumulative: Some(market::Amount::from(5)),
            reason: "BadVoucherSignature".to_owned(),
            created_at: chrono::DateTime::UNIX_EPOCH,
        };
        let line = line(&hold);
        assert!(line.contains(&channel.node.to_string()) && line.contains("up to 5  BadVoucherSignature"), "{line}");
    }
}
