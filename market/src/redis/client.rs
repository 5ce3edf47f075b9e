//! The connection to Redis, a single server or the node of a cluster that has our keys. One TCP connection is shared by all users
//! of a [`Client`] and made again when it breaks.
//!
//! Redis may be down: opening a client connects to nothing, and every command then fails within [`LONGEST_WAIT`].

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::{TcpSettings, socket2};
use redis::{Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisFuture, RedisResult, Value};

use super::cluster::{self, Cluster};
use super::keys::Keys;
use crate::breaker::{Breaker, Broken};

pub use redis::RedisError;

/// How long a connection may take to be made, and a command to be answered.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);
/// No command takes longer, whatever state Redis is in: connecting, once more, and the answer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(4);

/// How long what can do without Redis leaves it alone after it did not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// A handle to Redis with the names of its keys. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    server: Server,
    keys: Keys,
    breaker: Arc<Breaker>,
}

#[derive(Clone)]
enum Server {
    Single { manager: ConnectionManager, dedicated: Arc<redis::Client> },
    Cluster(Arc<Cluster>),
}

/// What commands are sent over.
pub(super) enum Connection {
    Single(ConnectionManager),
    Cluster(Arc<Cluster>),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(manager) => manager.req_packed_command(command),
            Self::Cluster(cluster) => Box::pin(cluster.command(command)),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(manager) => manager.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => Box::pin(cluster.pipeline(pipeline, offset, count)),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(manager) => manager.get_db(),
            Self::Cluster(_) => 0,
        }
    }
}

impl std::fmt::Debug for Client {
    // The library's own would show the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Client {
    /// Prepares a connection to `url` (`redis://…`, `rediss://…`, or a cluster's, see [`cluster::nodes`]) without making it. Errors
    /// only if `url` is not one, or names a cluster for which the prefix of `keys` has no hash tag. Must be called inside a tokio
    /// runtime.
    pub fn open(url: &str, keys: Keys) -> Result<Self, RedisError> {
        let server = if cluster::is_cluster(url) {
            Server::Cluster(Arc::new(Cluster::open(url, &keys)?))
        } else {
            let info = url.into_connection_info()?.set_tcp_settings(tcp_settings());
            let dedicated = Arc::new(redis::Client::open(info)?);
            Server::Single { manager: manager(&dedicated)?, dedicated }
        };
        Ok(Self { server, keys, breaker: Arc::new(Breaker::new("redis", PAUSE)) })
    }

    /// Names of the keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whether Redis answers, about our keys: a node of a cluster answers a `PING` also without having them.
    pub async fn ping(&self) -> Result<(), RedisError> {
        redis::cmd("EXISTS").arg(self.keys.generation()).exec_async(&mut self.connection()).await
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
    pub(super) fn connection(&self) -> Connection {
        match &self.server {
            Server::Single { manager, .. } => Connection::Single(manager.clone()),
            Server::Cluster(cluster) => Connection::Cluster(Arc::clone(cluster)),
        }
    }

    /// A connection of its own for subscriptions, and to which node of a cluster.
    pub(super) async fn pubsub(&self) -> RedisResult<(redis::aio::PubSub, Option<ConnectionAddr>)> {
        match &self.server {
            Server::Single { dedicated, .. } => Ok((dedicated.get_async_pubsub().await?, None)),
            Server::Cluster(cluster) => cluster.pubsub().await.map(|(connected, node)| (connected, Some(node))),
        }
    }

    /// Whether our keys are no more at `node`, which [`Client::pubsub`] has named.
    pub(super) fn has_left(&self, node: Option<&ConnectionAddr>) -> bool {
        match (&self.server, node) {
            (Server::Cluster(cluster), Some(node)) => cluster.has_left(node),
            _ => false,
        }
    }
}

/// A connection to the server of `client` that is made when it is needed, and again when it breaks.
pub(super) fn manager(client: &redis::Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT))
        // Callers decide whether to try again; what they want at once is to know.
        .set_number_of_retries(1)
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_millis(100))
        .set_pipeline_buffer_size(1024);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// A peer that vanished without a word is noticed within seconds rather than the system's hours.
pub(super) fn tcp_settings() -> TcpSettings {
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(10));
    settings
}

/// Whether the server at `url`, or any of a cluster's, takes commands from whoever has no password. An error if that cannot be told,
/// because one does not answer.
pub async fn takes_anyone(url: &str) -> Result<bool, RedisError> {
    let mut unknown = None;
    for node in cluster::nodes(url) {
        match node_takes_anyone(&node).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => unknown = Some(error),
        }
    }
    unknown.map_or(Ok(false), Err)
}

async fn node_takes_anyone(url: &str) -> Result<bool, RedisError> {
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
        // It would have done it, were the key its own: a node of a cluster asks for the password first.
        Ok(Err(error)) => Ok(error.is_cluster_error()),
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}
