//! Signed tokens: how an application that shares sessions tells this one whose request it is. The name of a user is known to
//! many and proves nothing, so the application signs it, with a secret that all of them have: a JSON Web Token (RFC 7519), HS256.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, Mac};
use market::user::UserId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

/// Fewest bytes of a secret.
pub const MIN_SECRET_BYTES: usize = 32;
/// For whom tokens must be: those for other purposes, under the same secret, open nothing.
pub const AUDIENCE: &str = "littoral";
/// How long a token may live: as long as a session does.
const MAX_LIFE: TimeDelta = TimeDelta::hours(24);
/// How far clocks may differ.
const CLOCK_SKEW: TimeDelta = TimeDelta::minutes(1);

/// A secret that applications share. Not shown by anything.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionSecret(String);

/// Not a [`SessionSecret`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have at least {MIN_SECRET_BYTES} characters, and not all the same few")]
pub struct SecretError;

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret")
    }
}

impl FromStr for SessionSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut different: Vec<u8> = text.bytes().collect();
        different.sort_unstable();
        different.dedup();
        if text.len() < MIN_SECRET_BYTES || different.len() < 8 {
            return Err(SecretError);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token, or not signed with one of the secrets.
    #[error("the token is not signed by an application that shares sessions")]
    Unsigned,
    /// It has ended, or lasts too long.
    #[error("the token has expired, or says that it lasts longer than a day")]
    Expired,
    /// It is not for here.
    #[error("the token's aud is not {AUDIENCE}")]
    WrongAudience,
    /// It names no one.
    #[error("the token's sub is no user id")]
    NoUser,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Names `session:{userId}`.
    pub user_id: UserId,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Body {
    sub: String,
    exp: i64,
    nbf: Option<i64>,
    aud: Audience,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Whether `text` looks like a signed token rather than one of ours.
#[must_use]
pub fn is_signed(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// A token for the session of `user_id`.
#[must_use]
pub fn sign(secret: &SessionSecret, user_id: &UserId, expires_at: DateTime<Utc>) -> String {
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({ "alg": "HS256", "typ": "JWT" }));
    let body = encode(json!({ "sub": user_id.as_str(), "aud": AUDIENCE, "exp": expires_at.timestamp() }));
    let signed = format!("{header}.{body}");
    let signature = mac(secret, &signed).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Reads a token that one of `secrets` signed and that counts at `now`.
pub fn read(secrets: &[SessionSecret], text: &str, now: DateTime<Utc>) -> Result<Claims, TokenError> {
    let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Unsigned)?;
    let (header, body) = signed.split_once('.').ok_or(TokenError::Unsigned)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Unsigned);
    let signature = decode(signature)?;
    // Before anything that it says is looked at, and in a time that tells nothing.
    if !secrets.iter().any(|secret| mac(secret, signed).verify_slice(&signature).is_ok()) {
        return Err(TokenError::Unsigned);
    }
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Unsigned)?;
    if header.alg != "HS256" {
        return Err(TokenError::Unsigned);
    }
    let body: Body = serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Unsigned)?;
    let is_for_us = match &body.aud {
        Audience::One(one) => one == AUDIENCE,
        Audience::Many(many) => many.iter().any(|one| one == AUDIENCE),
    };
    if !is_for_us {
        return Err(TokenError::WrongAudience);
    }
    let expires_at = DateTime::from_timestamp(body.exp, 0).ok_or(TokenError::Expired)?;
    let is_early = body.nbf.is_some_and(|start| start > (now + CLOCK_SKEW).timestamp());
    if expires_at <= now || expires_at > now + MAX_LIFE + CLOCK_SKEW || is_early {
        return Err(TokenError::Expired);
    }
    let user_id = body.sub.parse().map_err(|_| TokenError::NoUser)?;
    Ok(Claims { user_id, expires_at })
}

fn mac(secret: &SessionSecret, signed: &str) -> Hmac<Sha256> {
    // HMAC takes keys of any length.
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret.0.as_bytes()).unwrap_or_else(|_| unreachable!());
    mac.update(signed.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SessionSecret {
        format!("{text} and 32 characters at the very least").parse().unwrap()
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn forged(header: serde_json::Value, body: serde_json::Value, by: &SessionSecret) -> String {
        let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(header), encode(body));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac(by, &signed).finalize().into_bytes()))
    }

    #[test]
    fn a_token_names_its_user_under_any_secret_that_counts() {
        let (old, new) = (secret("old"), secret("new"));
        let (user, end) = ("user_123".parse().unwrap(), now() + TimeDelta::hours(1));
        let token = sign(&old, &user, end);
        assert_eq!(read(&[new.clone(), old], &token, now()), Ok(Claims { user_id: user, expires_at: end }));
        assert_eq!(read(&[new], &token, now()), Err(TokenError::Unsigned));
        assert_eq!(read(&[], &token, now()), Err(TokenError::Unsigned));
    }

    #[test]
    fn the_usual_forgeries_open_nothing() {
        let own = secret("own");
        let secrets = [own.clone()];
        let (end, alg) = ((now() + TimeDelta::hours(1)).timestamp(), json!({ "alg": "HS256" }));
        let body = json!({ "sub": "u", "aud": "littoral", "exp": end });
        assert!(read(&secrets, &forged(alg.clone(), body.clone(), &own), now()).is_ok());
        for header in [json!({ "alg": "none" }), json!({ "alg": "HS512" }), json!({}), json!("HS256")] {
            assert_eq!(read(&secrets, &forged(header, body.clone(), &own), now()), Err(TokenError::Unsigned));
        }
        for (key, value, error) in [
            ("exp", json!(now().timestamp()), TokenError::Expired),
            ("exp", json!(i64::MAX), TokenError::Expired),
            ("exp", json!((now() + TimeDelta::days(2)).timestamp()), TokenError::Expired),
            ("exp", json!(null), TokenError::Unsigned),
            ("nbf", json!((now() + TimeDelta::hours(1)).timestamp()), TokenError::Expired),
            ("aud", json!("realtime"), TokenError::WrongAudience),
            ("aud", json!(["a", "b"]), TokenError::WrongAudience),
            ("aud", json!(null), TokenError::Unsigned),
            ("sub", json!("u:wallet"), TokenError::NoUser),
            ("sub", json!("*"), TokenError::NoUser),
            ("sub", json!(7), TokenError::Unsigned),
        ] {
            let mut body = body.clone();
            body[key] = value;
            assert_eq!(read(&secrets, &forged(alg.clone(), body, &own), now()), Err(error), "{key}");
        }
        let token = forged(alg, body, &own);
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        for text in ["", ".", "..", "a.b.c", &unsigned, &format!("{token}A"), &token.replace('.', "..")] {
            assert_eq!(read(&secrets, text, now()), Err(TokenError::Unsigned), "{text}");
        }
    }

    #[test]
    fn secrets_are_long_and_are_not_shown() {
        for bad in ["", "secret", &"x".repeat(64), &"ab".repeat(32)] {
            assert_eq!(bad.parse::<SessionSecret>(), Err(SecretError), "{bad}");
        }
        assert_eq!(format!("{:?}", secret("own")), "SessionSecret");
    }
}
