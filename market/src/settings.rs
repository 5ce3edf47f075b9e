//! Command-line options that the processes share. Each is also an environment variable; secrets are best given that way.

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use anyhow::anyhow;
use clap::Args;
use url::Url;

/// Where Postgres and Redis are.
#[derive(Args, Clone)]
pub struct StoreArgs {
    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// Redis, as redis://:password@host:port/ or rediss://… for TLS; redis+cluster://:password@host:port,host:port for a Redis Cluster
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: String,

    /// Text in front of every Redis key; a Redis Cluster needs one with a hash tag, such as {littoral}:
    #[arg(long, env = "REDIS_PREFIX", default_value = "")]
    pub redis_prefix: String,

    /// Most connections to Postgres
    #[arg(long, env = "DATABASE_MAX_CONNECTIONS", default_value_t = 16)]
    pub database_max_connections: u32,
}

/// Which chain, and where its contracts are.
#[derive(Args, Clone)]
pub struct ChainArgs {
    /// JSON-RPC endpoints of the chain, the preferred one first, separated by commas
    #[arg(
        long = "rpc-url",
        env = "RPC_URL",
        value_name = "URL",
        value_delimiter = ',',
        required = true,
        hide_env_values = true
    )]
    pub rpc_urls: Vec<Url>,

    /// Deployments manifest, as scripts/deploy writes it
    #[arg(long, env = "LITTORAL_DEPLOYMENT", value_name = "FILE")]
    pub deployment: PathBuf,
}

/// How to log.
#[derive(Args, Clone)]
pub struct LogArgs {
    /// Write log lines as JSON
    #[arg(long, env = "LOG_JSON")]
    pub log_json: bool,
}

/// The value of an option that nobody may see: a complaint about a bad one would show it, so it is made later, without.
#[derive(Clone)]
pub struct Hidden<T>(Option<T>);

impl<T> Hidden<T> {
    /// The value of `option`, if it is one.
    pub fn value(&self, option: &str) -> anyhow::Result<&T> {
        self.0.as_ref().ok_or_else(|| anyhow!("{option} is not what it should be; it is not shown here"))
    }
}

impl<T: FromStr> FromStr for Hidden<T> {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().parse().ok()))
    }
}

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}
