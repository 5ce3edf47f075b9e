//! `session:{userId}`: who is signed in, shared with other applications. Each writes the fields it knows and leaves the
//! others alone, so that a session holds what all of them know.

use alloy::primitives::Address;
use chrono::{DateTime, TimeDelta, Utc};

use super::client::{Client, RedisError};
use super::keys::SESSION_TTL_SECS;
use crate::db::projection::LiveSession;
use crate::user::UserId;

/// The hash. Other applications may have written it, so nothing but the user id is sure to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedSession {
    /// Names it.
    pub user_id: UserId,
    /// The address that signed in; nothing if the field is missing or no address, or if the hash names another user.
    pub wallet_address: Option<Address>,
    /// Tier of the user's token, as another application says.
    pub nft_tier: Option<String>,
    /// Public key that another application made for the user.
    pub pkp_public_key: Option<String>,
    /// When the user last did something.
    pub last_activity: Option<DateTime<Utc>>,
}

/// What is kept beside the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `session:{userId}:pkp`
    Pkp,
    /// `session:{userId}:wallet`
    Wallet,
    /// `session:{userId}:sessionSigs`
    SessionSigs,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Pkp, Self::Wallet, Self::SessionSigs];

    fn name(self) -> &'static str {
        match self {
            Self::Pkp => "pkp",
            Self::Wallet => "wallet",
            Self::SessionSigs => "sessionSigs",
        }
    }
}

/// Notes that `wallet` signed in as `user_id` at `now`. The session ends [`SESSION_TTL_SECS`] later.
pub async fn write(redis: &Client, user_id: &UserId, wallet: Address, now: DateTime<Utc>) -> Result<(), RedisError> {
    put(redis, user_id, wallet, now, end_after(now)).await
}

/// Puts back what Postgres knows of a session, ending when it ends there.
pub(super) async fn restore(redis: &Client, live: &LiveSession) -> Result<(), RedisError> {
    // Names that were not checked once are no reason for all others to wait.
    let Ok(user_id) = live.user_id.parse() else { return Ok(()) };
    put(redis, &user_id, live.wallet, live.created_at, live.expires_at).await
}

async fn put(
    redis: &Client,
    user_id: &UserId,
    wallet: Address,
    active: DateTime<Utc>,
    end: DateTime<Utc>,
) -> Result<(), RedisError> {
    // A key of another type is of no use to anyone; left there, it would keep all sessions from being put back.
    const PUT: &str = "
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'userId', ARGV[1], 'walletAddress', ARGV[2], 'lastActivity', ARGV[3])
redis.call('PEXPIREAT', KEYS[1], ARGV[4])";
    redis::Script::new(PUT)
        .key(redis.keys().session(user_id))
        .arg(user_id.as_str())
        .arg(wallet.to_checksum(None))
        .arg(active.timestamp_millis())
        .arg(end.timestamp_millis())
        .invoke_async(&mut redis.connection())
        .await
}

/// The session of `user_id`, whoever wrote it.
pub async fn read(redis: &Client, user_id: &UserId) -> Result<Option<SharedSession>, RedisError> {
    let fields: Vec<Option<String>> = redis::cmd("HMGET")
        .arg(redis.keys().session(user_id))
        .arg(&["userId", "walletAddress", "nftTier", "pkpPublicKey", "lastActivity"])
        .query_async(&mut redis.connection())
        .await?;
    if fields.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut fields = fields.into_iter();
    let mut next = || fields.next().flatten();
    let (named, wallet, nft_tier, pkp_public_key, activity) = (next(), next(), next(), next(), next());
    // A hash that says it is another's is no one's.
    let wallet = wallet.filter(|_| named.is_none_or(|named| named == user_id.as_str()));
    Ok(Some(SharedSession {
        user_id: user_id.clone(),
        wallet_address: wallet.and_then(|text| text.parse().ok()),
        nft_tier,
        pkp_public_key,
        last_activity: activity.and_then(|text| DateTime::from_timestamp_millis(text.parse().ok()?)),
    }))
}

/// Notes that the user did something at `now`, and lets the session and its parts live another [`SESSION_TTL_SECS`], as those too
/// that were written without an end. Returns false if there is no session.
pub async fn touch(redis: &Client, user_id: &UserId, now: DateTime<Utc>) -> Result<bool, RedisError> {
    // One script: a session that ends between two commands would come back as a hash of one field.
    const TOUCH: &str = "
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'lastActivity', ARGV[1])
for _, key in ipairs(KEYS) do redis.call('PEXPIREAT', key, ARGV[2]) end
return 1";
    let keys = redis.keys();
    let script = redis::Script::new(TOUCH);
    let mut call = script.key(keys.session(user_id));
    for part in Part::ALL {
        call.key(keys.session_part(user_id, part.name()));
    }
    call.arg(now.timestamp_millis()).arg(end_after(now).timestamp_millis()).invoke_async(&mut redis.connection()).await
}

/// Ends the session and removes its parts.
pub async fn remove(redis: &Client, user_id: &UserId) -> Result<(), RedisError> {
    let keys = redis.keys();
    let mut names = vec![keys.session(user_id)];
    names.extend(Part::ALL.map(|part| keys.session_part(user_id, part.name())));
    redis::cmd("DEL").arg(names).exec_async(&mut redis.connection()).await
}

/// Writes a part, to live [`SESSION_TTL_SECS`] from `now`.
pub async fn write_part(
    redis: &Client,
    user_id: &UserId,
    part: Part,
    text: &str,
    now: DateTime<Utc>,
) -> Result<(), RedisError> {
    redis::cmd("SET")
        .arg(redis.keys().session_part(user_id, part.name()))
        .arg(text)
        .arg("PXAT")
        .arg(end_after(now).timestamp_millis())
        .exec_async(&mut redis.connection())
        .await
}

/// Reads a part.
pub async fn read_part(redis: &Client, user_id: &UserId, part: Part) -> Result<Option<String>, RedisError> {
    let key = redis.keys().session_part(user_id, part.name());
    redis::cmd("GET").arg(key).query_async(&mut redis.connection()).await
}

fn end_after(now: DateTime<Utc>) -> DateTime<Utc> {
    now + TimeDelta::seconds(SESSION_TTL_SECS.cast_signed())
}
