//! Arithmetic of what is printed.

use std::time::Duration;

use anyhow::Context;

/// The time, in milliseconds, that `share` of the `times` are within.
pub fn quantile(times: &[Duration], share: f64) -> anyhow::Result<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (0..sorted.len()).find(|index| quotient(index + 1, quotient(sorted.len(), 1.0)) >= share);
    Ok(sorted.get(place.context("nothing was timed")?).context("nothing was timed")?.as_secs_f64() * 1000.0)
}

/// `count` by something.
pub fn quotient(count: usize, by: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / by
}

/// To two decimals.
pub fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}
