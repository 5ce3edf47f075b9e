//! Options of `serve` about who is let in.

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use ipnet::IpNet;
use market::{
    limit::Policy,
    production::{self, EnvironmentArgs, Used},
    settings::Hidden,
    user::UserId,
};

use super::{
    Limits,
    token::{self, SessionSecret},
};
use crate::http::Origin;

/// The option, and what it has to be.
const SESSION_SECRET: &str = "SESSION_SECRET (at least 32 characters, at least 8 of them different)";

/// Options about who is let in.
#[derive(Args, Clone)]
pub struct DoorArgs {
    #[command(flatten)]
    pub(crate) environment: EnvironmentArgs,

    /// Host and port under which clients reach this API, as sign-in messages name it; may be given several times
    #[arg(long, env = "SIGNIN_DOMAIN", value_delimiter = ',')]
    pub(crate) signin_domain: Vec<String>,

    /// Secret with which applications that share sessions sign tokens, 32 characters or more. Several, separated by commas, count
    /// while one takes the place of another. Without, only who signs in here is signed in
    #[arg(long, env = "SESSION_SECRET", hide_env_values = true, value_delimiter = ',')]
    pub(crate) session_secret: Vec<Hidden<SessionSecret>>,

    /// Networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8; none unless given
    #[arg(long, env = "TRUSTED_PROXIES", value_delimiter = ',', value_name = "NETWORK")]
    pub(crate) trusted_proxy: Vec<IpNet>,

    /// Web origins, such as https://app.example, that may call from a browser; none unless given
    #[arg(long, env = "CORS_ORIGINS", value_delimiter = ',')]
    pub(crate) cors_origin: Vec<Origin>,

    /// Requests taken of a user in a second, and of an address that is not signed in and does more than read; 0: any number
    #[arg(long, env = "RATE_LIMIT_BURST", default_value_t = 10)]
    rate_limit_burst: u32,

    /// The same in a minute
    #[arg(long, env = "RATE_LIMIT_SUSTAINED", default_value_t = 100)]
    rate_limit_sustained: u32,

    /// Requests taken of a user in a second for the work of nodes: claims, heartbeats, results, contents; 0: any number
    #[arg(long, env = "NODE_RATE_LIMIT_BURST", default_value_t = 100)]
    node_rate_limit_burst: u32,

    /// The same in a minute
    #[arg(long, env = "NODE_RATE_LIMIT_SUSTAINED", default_value_t = 3_000)]
    node_rate_limit_sustained: u32,

    /// Requests taken in a second of an address that reads without being signed in; 0: any number
    #[arg(long, env = "READER_RATE_LIMIT_BURST", default_value_t = 50)]
    reader_rate_limit_burst: u32,

    /// The same in a minute
    #[arg(long, env = "READER_RATE_LIMIT_SUSTAINED", default_value_t = 1_000)]
    reader_rate_limit_sustained: u32,
}

/// Options of `session-token`.
#[derive(Args, Clone)]
pub struct TokenArgs {
    /// Whose session, as it is named in session:{userId}
    #[arg(long)]
    user_id: UserId,

    /// Seconds that the token lasts
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    ttl_secs: u32,

    /// Secret with which applications that share sessions sign tokens; of several the first one signs
    #[arg(long, env = "SESSION_SECRET", hide_env_values = true, value_delimiter = ',', required = true)]
    session_secret: Vec<Hidden<SessionSecret>>,
}

impl TokenArgs {
    /// The token.
    pub fn token(&self, now: DateTime<Utc>) -> anyhow::Result<String> {
        let secret = self.session_secret.first().context("SESSION_SECRET is not given")?.value(SESSION_SECRET)?;
        Ok(token::sign(secret, &self.user_id, now + TimeDelta::seconds(self.ttl_secs.into())))
    }
}

impl DoorArgs {
    /// Secrets with which applications that share sessions sign tokens.
    pub(crate) fn session_secrets(&self) -> anyhow::Result<Vec<SessionSecret>> {
        self.session_secret.iter().map(|secret| secret.value(SESSION_SECRET).cloned()).collect()
    }

    /// How much is taken of whom.
    pub(crate) fn limits(&self) -> Limits {
        let policy =
            |burst, sustained| (burst > 0 && sustained > 0).then(|| Policy::per_second_and_minute(burst, sustained));
        Limits {
            users: policy(self.rate_limit_burst, self.rate_limit_sustained),
            nodes: policy(self.node_rate_limit_burst, self.node_rate_limit_sustained),
            readers: policy(self.reader_rate_limit_burst, self.reader_rate_limit_sustained),
        }
    }

    /// Refuses what is too weak for production, if that is where it runs.
    pub(crate) async fn check(&self, used: Used<'_>) -> anyhow::Result<()> {
        if !self.environment.environment.is_production() {
            return Ok(());
        }
        let mut weak = production::weaknesses(used).await;
        if self.signin_domain.is_empty() {
            weak.push(
                "SIGNIN_DOMAIN: is not given, so that sign-in messages would name the address it binds".to_owned(),
            );
        }
        if let Some(origin) = self.cors_origin.iter().find(|origin| origin.as_str().starts_with("http://")) {
            weak.push(format!("CORS_ORIGINS: {} is not encrypted", origin.as_str()));
        }
        if let Some(net) = self.trusted_proxy.iter().find(|net| net.prefix_len() == 0) {
            weak.push(format!("TRUSTED_PROXIES: {net} is everyone"));
        }
        production::refuse(&weak)
    }
}
