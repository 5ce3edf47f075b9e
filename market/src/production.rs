//! What must not be so where it counts: in the environment `production` a process does not start with stores that take anyone or
//! secrets that everyone knows.

use std::{fmt, str::FromStr};

use alloy::primitives::{Address, address};
use clap::Args;
use url::Url;

use crate::redis::{client, cluster};

/// The environment in which nothing weak is taken.
pub const PRODUCTION: &str = "production";
/// Longest name of an environment.
const MAX_NAME: usize = 32;
/// Fewest characters of a password: it can be tried as often as one likes.
const MIN_PASSWORD: usize = 12;

/// Accounts of Anvil and Hardhat, whose keys are printed in every tutorial.
const KNOWN_ACCOUNTS: [Address; 10] = [
    address!("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
    address!("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"),
    address!("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
    address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906"),
    address!("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65"),
    address!("0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"),
    address!("0x976EA74026E726554dB657fA54763abd0C3a0aa9"),
    address!("0x14dC79964da2C08b23698B3D3cc7Ca32193d9955"),
    address!("0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f"),
    address!("0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"),
];

/// Passwords that are tried first.
const KNOWN_PASSWORDS: [&str; 12] = [
    "password",
    "postgres",
    "redis",
    "secret",
    "changeme",
    "change-me",
    "default",
    "admin",
    "littoral",
    "foobared",
    "your_password",
    "example",
];

/// Where the process runs.
#[derive(Args, Debug, Clone)]
pub struct EnvironmentArgs {
    /// Name of the environment; it is part of some Redis keys. In `production`, stores without a password and secrets that
    /// everyone knows are refused
    #[arg(long = "env", env = "LITTORAL_ENV", default_value = "development", value_name = "NAME")]
    pub environment: Environment,
}

/// The name of an environment: 1 to 32 lower-case letters, digits and dashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment(String);

/// Not an [`Environment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {MAX_NAME} lower-case letters, digits and dashes")]
pub struct EnvironmentError;

impl Environment {
    /// As it stands in keys.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether nothing weak is taken.
    #[must_use]
    pub fn is_production(&self) -> bool {
        self.0 == PRODUCTION
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self("development".to_owned())
    }
}

impl FromStr for Environment {
    type Err = EnvironmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(fits) {
            return Err(EnvironmentError);
        }
        // Whoever means production gets it.
        Ok(Self(if text == "prod" { PRODUCTION.to_owned() } else { text.to_owned() }))
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a process is about to use.
#[derive(Clone, Copy, Default)]
pub struct Used<'a> {
    /// `DATABASE_URL`
    pub database_url: Option<&'a str>,
    /// `REDIS_URL`
    pub redis_url: Option<&'a str>,
    /// Options with private keys, and the accounts of these.
    pub accounts: &'a [(&'a str, Address)],
}

/// What of it is weak, in words that name the option and give no secret away. Asks Redis whether it takes anyone; if it does not
/// answer, its URL alone decides.
pub async fn weaknesses(used: Used<'_>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(url) = used.database_url {
        // Without a password Postgres may trust the socket or a certificate; one that everyone knows is worse than none.
        if let Some(why) = password_of(url).as_deref().and_then(weak_password) {
            found.push(format!("DATABASE_URL: the password {why}"));
        }
    }
    if let Some(url) = used.redis_url {
        // Nodes of a cluster have one password.
        match cluster::nodes(url).first().and_then(|node| password_of(node)) {
            None => found.push("REDIS_URL: has no password".to_owned()),
            Some(password) => {
                found.extend(weak_password(&password).map(|why| format!("REDIS_URL: the password {why}")))
            }
        }
        match client::takes_anyone(url).await {
            Ok(true) => found.push("REDIS_URL: the server takes commands from whoever has no password".to_owned()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "could not ask Redis whether it takes anyone"),
        }
    }
    for (option, account) in used.accounts {
        if KNOWN_ACCOUNTS.contains(account) {
            found.push(format!("{option}: is the key of {account}, which everyone knows"));
        }
    }
    found
}

/// An error that names all of `weaknesses`, if there are any.
pub fn refuse(weaknesses: &[String]) -> anyhow::Result<()> {
    anyhow::ensure!(weaknesses.is_empty(), "not fit for production (LITTORAL_ENV):\n- {}", weaknesses.join("\n- "));
    Ok(())
}

fn password_of(url: &str) -> Option<String> {
    let url: Url = url.parse().ok()?;
    let in_query = url.query_pairs().find(|(name, _)| name == "password").map(|(_, value)| value.into_owned());
    url.password().map(str::to_owned).or(in_query).filter(|password| !password.is_empty())
}

fn weak_password(password: &str) -> Option<&'static str> {
    if KNOWN_PASSWORDS.contains(&password.to_ascii_lowercase().as_str()) {
        return Some("is one that everyone tries");
    }
    (password.len() < MIN_PASSWORD).then_some("has fewer than 12 characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: &str = "127.0.0.1:9";

    async fn found(database: &str, redis: &str, account: Address) -> Vec<String> {
        let accounts = [("ASSIGNER_KEY", account)];
        weaknesses(Used { database_url: Some(database), redis_url: Some(redis), accounts: &accounts }).await
    }

    #[tokio::test]
    async fn what_is_weak_is_named_and_not_shown() {
        let own = Address::repeat_byte(7);
        let good = format!("redis://:correct-horse-battery@{CLOSED}/");
        assert_eq!(found("postgres:///market", &good, own).await, Vec::<String>::new());
        for (database, redis, account, what) in [
            ("postgres://u:Postgres@db/m", good.as_str(), own, "DATABASE_URL: the password is one that everyone tries"),
            ("postgres://u@db/m?password=short", &good, own, "DATABASE_URL: the password has fewer than 12 characters"),
            ("postgres://u@db/m", &format!("redis://{CLOSED}/"), own, "REDIS_URL: has no password"),
            ("postgres://u@db/m", &format!("redis://:@{CLOSED}/"), own, "REDIS_URL: has no password"),
            ("postgres://u@db/m", &format!("redis://:changeme@{CLOSED}/"), own, "REDIS_URL: the password is one that"),
            (
                "postgres://u@db/m",
                &format!("redis+cluster://:changeme@{CLOSED},{CLOSED}/"),
                own,
                "REDIS_URL: the password is",
            ),
            ("postgres://u@db/m", &format!("redis+cluster://{CLOSED},{CLOSED}"), own, "REDIS_URL: has no password"),
            ("postgres://u@db/m", &good, KNOWN_ACCOUNTS[3], "ASSIGNER_KEY: is the key of 0x90F7"),
        ] {
            let weak = found(database, redis, account).await;
            assert!(weak.len() == 1 && weak[0].starts_with(what), "{weak:?}");
            assert!(!weak[0].contains("short") && !weak[0].contains("changeme"), "{weak:?}");
        }
    }

    #[test]
    fn an_environment_is_a_plain_word_and_prod_is_production() {
        assert!("prod".parse::<Environment>().unwrap().is_production());
        assert!("production".parse::<Environment>().unwrap().is_production());
        assert!(!Environment::default().is_production());
        for bad in ["", "Production", "a:b", "a b", "é", &"x".repeat(33)] {
            assert_eq!(bad.parse::<Environment>(), Err(EnvironmentError), "{bad}");
        }
    }
}
