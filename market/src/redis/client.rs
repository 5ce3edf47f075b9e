//! The connection to Redis. One TCP connection is shared by all users of a [`Client`] and made again when it breaks.
//!
//! Redis may be down: opening a client connects to nothing, and every command then fails within [`LONGEST_WAIT`].

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::{TcpSettings, socket2};
use redis::{IntoConnectionInfo, RedisResult};

use super::keys::Keys;
use crate::breaker::{Breaker, Broken};

pub use redis::RedisError;

/// How long a connection may take to be made, and a command to be answered.
const TIMEOUT: Duration = Duration::from_secs(1);
/// No command takes longer, whatever state Redis is in: connecting, once more, and the answer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(4);

/// How long what can do without Redis leaves it alone after it did not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// A handle to Redis with the names of its keys. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    manager: ConnectionManager,
    dedicated: redis::Client,
    keys: Keys,
    breaker: Arc<Breaker>,
}

impl std::fmt::Debug for Client {
    // The library's own would show the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Client {
    /// Prepares a connection to `url` (`redis://…` or `rediss://…`) without making it. Errors only if `url` is not one.
    /// Must be called inside a tokio runtime.
    pub fn open(url: &str, keys: Keys) -> Result<Self, RedisError> {
        let info = url.into_connection_info()?.set_tcp_settings(tcp_settings());
        let dedicated = redis::Client::open(info)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            // Callers decide whether to try again; what they want at once is to know.
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_millis(100))
            .set_pipeline_buffer_size(1024);
        let manager = ConnectionManager::new_lazy_with_config(dedicated.clone(), config)?;
        Ok(Self { manager, dedicated, keys, breaker: Arc::new(Breaker::new("redis", PAUSE)) })
    }

    /// Names of the keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whether Redis answers.
    pub async fn ping(&self) -> Result<(), RedisError> {
        redis::cmd("PING").exec_async(&mut self.connection()).await
    }

    /// Makes `call`, to this Redis, for at most `within`, and not at all if Redis did not answer a moment ago: for what can do
    /// without, and must not wait.
    pub async fn within<T>(
        &self,
        within: Duration,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Broken<RedisError>> {
        self.breaker.call(within, call, |error| error.is_io_error() || error.is_timeout()).await
    }

    /// The shared connection.
    pub(super) fn connection(&self) -> ConnectionManager {
        self.manager.clone()
    }

    /// A connection of its own for subscriptions.
    pub(super) async fn pubsub(&self) -> RedisResult<redis::aio::PubSub> {
        self.dedicated.get_async_pubsub().await
    }
}

/// A peer that vanished without a word is noticed within seconds rather than the system's hours.
fn tcp_settings() -> TcpSettings {
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(10));
    settings
}

/// Whether the server at `url` takes commands from whoever has no password. An error if that cannot be told, because it does not
/// answer.
pub async fn takes_anyone(url: &str) -> Result<bool, RedisError> {
    let info = url.into_connection_info()?;
    let anyone = redis::RedisConnectionInfo::default().set_db(info.redis_settings().db());
    let client = redis::Client::open(info.set_redis_settings(anyone).set_tcp_settings(tcp_settings()))?;
    let asking = async {
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("EXISTS").arg("littoral").query_async::<i64>(&mut connection).await
    };
    match tokio::time::timeout(LONGEST_WAIT, asking).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if error.is_io_error() || error.is_timeout() => Err(error),
        Ok(Err(_)) => Ok(false),
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}
