//! `rl:{env}:{scope}:{user}:burst|sustained:{window}`: how often someone did something lately, over all instances. `window` is the
//! unix time in seconds at which it began; the string counts what was admitted since.

use super::client::{Client, RedisError};
use crate::limit::{Counts, Policy, Tier, Verdict};

const LIMIT: &str = include_str!("lua/limit.lua");

/// Whose requests to what are counted.
#[derive(Debug, Clone, Copy)]
pub struct Counter<'a> {
    /// The environment, such as `production`.
    pub environment: &'a str,
    /// The group of routes.
    pub scope: &'a str,
    /// A user id, or a word for an address. Must have no colon.
    pub who: &'a str,
}

/// Counts a request at `now_ms` (unix time) if `policy` admits it, in one script.
pub async fn take(redis: &Client, counter: Counter<'_>, policy: &Policy, now_ms: u64) -> Result<Verdict, RedisError> {
    let script = redis::Script::new(LIMIT);
    let mut call = script.prepare_invoke();
    for (name, tier) in [("burst", policy.burst), ("sustained", policy.sustained)] {
        let at = tier.position(now_ms);
        call.key(redis.keys().rate(counter.environment, counter.scope, counter.who, name, at.start_secs));
        call.key(redis.keys().rate(counter.environment, counter.scope, counter.who, name, at.before_secs));
    }
    for tier in [policy.burst, policy.sustained] {
        call.arg(tier.quota).arg(tier.window_ms()).arg(tier.position(now_ms).elapsed_ms);
    }
    let (admitted, burst, burst_before, sustained, sustained_before): (u8, u64, u64, u64, u64) =
        call.invoke_async(&mut redis.connection()).await?;
    let burst = Counts { current: burst, previous: burst_before };
    let sustained = Counts { current: sustained, previous: sustained_before };
    debug_assert!(admitted == 1 || !fits(policy.burst, burst, now_ms) || !fits(policy.sustained, sustained, now_ms));
    Ok(policy.verdict(admitted == 1, burst, sustained, now_ms))
}

fn fits(tier: Tier, counts: Counts, now_ms: u64) -> bool {
    tier.admits(counts, tier.position(now_ms).elapsed_ms)
}
