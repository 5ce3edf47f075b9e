//! Not waiting for what does not answer: once a call to a dependency has failed or taken too long, further ones are refused at
//! once for a moment, then one is let through to see whether it answers again.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};

/// One dependency's.
#[derive(Debug)]
pub struct Breaker {
    /// For the log.
    name: &'static str,
    /// How long calls are refused after one has failed.
    pause: Duration,
    open_until: Mutex<Option<Instant>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Broken<E> {
    /// It was not asked: a call has failed a moment ago.
    #[error("it did not answer a moment ago")]
    Open,
    /// It took longer than the call may.
    #[error("it did not answer in time")]
    Slow,
    /// It said so.
    #[error(transparent)]
    Failed(#[from] E),
}

impl Breaker {
    /// A closed one, which lets calls through.
    #[must_use]
    pub fn new(name: &'static str, pause: Duration) -> Self {
        Self { name, pause, open_until: Mutex::new(None) }
    }

    /// Whether calls are being refused.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Makes `call` unless one has failed a moment ago, for at most `within`. Of its errors, those count against the dependency
    /// of which `is_outage` says that it was not there.
    pub async fn call<T, E>(
        &self,
        within: Duration,
        call: impl Future<Output = Result<T, E>>,
        is_outage: impl FnOnce(&E) -> bool,
    ) -> Result<T, Broken<E>> {
        self.admit(within)?;
        match timeout(within, call).await {
            Err(_) => {
                self.open("took too long");
                Err(Broken::Slow)
            }
            Ok(Err(error)) if is_outage(&error) => {
                self.open("failed");
                Err(Broken::Failed(error))
            }
            Ok(answer) => {
                self.close();
                answer.map_err(Broken::Failed)
            }
        }
    }

    fn admit<E>(&self, within: Duration) -> Result<(), Broken<E>> {
        let mut open_until = self.lock();
        let Some(end) = *open_until else { return Ok(()) };
        let now = Instant::now();
        if now < end {
            return Err(Broken::Open);
        }
        // This call is the one that finds out. If it is dropped, another will.
        *open_until = Some(now + within);
        Ok(())
    }

    fn open(&self, why: &'static str) {
        let before = self.lock().replace(Instant::now() + self.pause);
        metrics::gauge!("littoral_breaker_open", "dependency" => self.name).set(1.0);
        if before.is_none() {
            tracing::warn!(dependency = self.name, why, "does not answer; going on without it");
        }
    }

    fn close(&self) {
        if self.lock().take().is_some() {
            metrics::gauge!("littoral_breaker_open", "dependency" => self.name).set(0.0);
            tracing::info!(dependency = self.name, "answers again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.open_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use super::*;

    const PAUSE: Duration = Duration::from_millis(400);
    const WITHIN: Duration = Duration::from_millis(100);

    async fn ask(breaker: &Breaker, answer: Result<u8, &'static str>) -> Result<u8, Broken<&'static str>> {
        breaker.call(WITHIN, async { answer }, |error| *error == "gone").await
    }

    #[tokio::test]
    async fn what_failed_is_left_alone_for_a_moment_and_then_asked_by_one() {
        let breaker = Breaker::new("it", PAUSE);
        assert!(matches!(ask(&breaker, Err("gone")).await, Err(Broken::Failed("gone"))));
        assert!(matches!(ask(&breaker, Ok(1)).await, Err(Broken::Open)));
        tokio::time::sleep(PAUSE).await;
        let slow = breaker.call(WITHIN, pending::<Result<u8, Infallible>>(), |_| true);
        let (slow, other) = tokio::join!(slow, async {
            tokio::task::yield_now().await;
            ask(&breaker, Ok(1)).await
        });
        assert!(matches!(slow, Err(Broken::Slow)) && matches!(other, Err(Broken::Open)), "only one finds out");
        tokio::time::sleep(PAUSE).await;
        assert_eq!(ask(&breaker, Ok(2)).await.unwrap(), 2);
        assert!(!breaker.is_open());
        assert_eq!(ask(&breaker, Ok(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn an_answer_that_refuses_is_an_answer() {
        let breaker = Breaker::new("it", PAUSE);
        assert!(matches!(ask(&breaker, Err("no")).await, Err(Broken::Failed("no"))));
        assert!(!breaker.is_open());
    }

    #[tokio::test]
    async fn whoever_finds_out_and_is_dropped_keeps_no_one_from_it() {
        let breaker = Breaker::new("it", PAUSE);
        ask(&breaker, Err("gone")).await.unwrap_err();
        tokio::time::sleep(PAUSE).await;
        let dropped = breaker.call(PAUSE, pending::<Result<u8, Infallible>>(), |_| true);
        assert!(timeout(WITHIN, dropped).await.is_err());
        tokio::time::sleep(2 * PAUSE).await;
        assert_eq!(ask(&breaker, Ok(1)).await.unwrap(), 1);
    }
}
