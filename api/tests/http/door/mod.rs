//! Attacks on what stands before the handlers.

mod idempotency;
mod limits;
mod single_sign_on;
mod wallets;

use littoral_api::door::token::{self, SessionSecret};
use market::{clock, user::UserId};

use crate::support::{Api, Wish};

pub const SECRET: &str = "a secret that applications share, 0123456789";

pub fn secret() -> SessionSecret {
    SECRET.parse().unwrap()
}

/// An API that takes tokens of other applications.
pub async fn sharing() -> Api {
    Api::with(Wish { settings: Some(|settings| settings.session_secrets = vec![secret()]), ..Wish::default() }).await
}

/// A token as another application makes it.
pub fn token_of(user: &str) -> String {
    let user: UserId = user.parse().unwrap();
    token::sign(&secret(), &user, clock::now() + chrono::TimeDelta::hours(1))
}
