//! A Redis Cluster as one server: the node that has the slot of our keys. All of them are in one slot, since scripts and
//! transactions touch many at once ([`Keys::hash_tag`]), so whatever goes for a single server (timeouts, order of
//! publications, one answer to "does it answer") goes for that node.
//!
//! Which node that is, any other tells. It is asked for anew when the node does not answer, and followed when it says that
//! the slot has moved. While a slot moves, its keys are in two places and no script sees all of them: that counts as Redis being
//! away, as does a slot without a master.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use redis::aio::{ConnectionLike, ConnectionManager};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisResult,
    ServerError, ServerErrorKind, Value,
};
use tokio::time::{Instant, timeout};

use super::client::{LONGEST_WAIT, RedisError, TIMEOUT, manager, tcp_settings};
use super::keys::Keys;

/// How often one request is sent on to another node.
const MOST_REDIRECTIONS: usize = 3;

/// The URLs of the nodes that `url` names: of a cluster, `redis+cluster://user:password@host:port,host:port` or
/// `rediss+cluster://…` for TLS, one for each; of anything else, itself.
#[must_use]
pub fn nodes(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("+cluster://") else { return vec![url.to_owned()] };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let (user, hosts) = authority.rfind('@').map_or(("", authority), |at| authority.split_at(at + 1));
    hosts.split(',').map(|host| format!("{scheme}://{user}{}{rest}", host.trim())).collect()
}

/// Whether `url` names a cluster.
#[must_use]
pub fn is_cluster(url: &str) -> bool {
    url.contains("+cluster://")
}

pub(super) struct Cluster {
    seeds: Vec<ConnectionInfo>,
    /// A key in our slot.
    key: String,
    owner: Mutex<Option<Owner>>,
    /// Held while the owner is looked for, by one for all; when that last failed, and why.
    search: tokio::sync::Mutex<Option<(Instant, RedisError)>>,
}

/// The node that has our slot.
#[derive(Clone)]
pub(super) struct Owner {
    address: ConnectionAddr,
    client: redis::Client,
    manager: ConnectionManager,
    /// It did not answer: another may have its place by now.
    is_lost: Arc<AtomicBool>,
}

impl Owner {
    fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }
}

/// A request under way. Dropped with it, since callers have less patience than connections, it says that there was no answer.
struct Waiting<'a>(&'a Owner);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lose();
    }
}

/// One command, or many that are sent together.
#[derive(Clone, Copy)]
enum Request<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline, usize, usize),
}

/// What an answer says of the node that gave it.
enum Verdict {
    Fine,
    /// The slot is elsewhere, at this address.
    Moved(String),
    /// It cannot serve the slot now.
    Away(String),
}

impl Cluster {
    pub fn open(url: &str, keys: &Keys) -> RedisResult<Self> {
        if keys.hash_tag().is_none() {
            return Err(invalid("a Redis Cluster needs a prefix with a hash tag, such as {littoral}: (REDIS_PREFIX)"));
        }
        let mut seeds = Vec::new();
        for node in nodes(url) {
            let info = node.into_connection_info()?.set_tcp_settings(tcp_settings());
            if info.redis_settings().db() != 0 {
                return Err(invalid("a Redis Cluster has database 0 only"));
            }
            seeds.push(info);
        }
        let (owner, search) = (Mutex::new(None), tokio::sync::Mutex::new(None));
        Ok(Self { seeds, key: keys.generation(), owner, search })
    }

    pub async fn command(&self, command: &Cmd) -> RedisResult<Value> {
        let answers = self.request(Request::Command(command)).await?;
        answers.into_iter().next().ok_or_else(|| away("no answer"))
    }

    pub async fn pipeline(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.request(Request::Pipeline(pipeline, offset, count)).await
    }

    async fn request(&self, request: Request<'_>) -> RedisResult<Vec<Value>> {
        timeout(LONGEST_WAIT, self.send(request)).await.unwrap_or_else(|_| Err(away("no answer in time")))
    }

    /// Sends it to the owner. A pipeline that met the end of a slot's stay is sent again as a whole: what comes in pipelines
    /// here can be repeated.
    async fn send(&self, request: Request<'_>) -> RedisResult<Vec<Value>> {
        for _ in 0..=MOST_REDIRECTIONS {
            let owner = self.owner().await?;
            let mut manager = owner.manager.clone();
            let waiting = Waiting(&owner);
            let answer = match request {
                Request::Command(command) => manager.req_packed_command(command).await.map(|value| vec![value]),
                Request::Pipeline(pipeline, offset, count) => {
                    manager.req_packed_commands(pipeline, offset, count).await
                }
            };
            std::mem::forget(waiting);
            match verdict(&answer) {
                Verdict::Fine => return answer,
                Verdict::Moved(node) => self.follow(&owner, &node)?,
                Verdict::Away(why) => {
                    owner.lose();
                    return match answer {
                        Err(error) if error.is_io_error() => Err(error),
                        _ => Err(away(&why)),
                    };
                }
            }
        }
        Err(away("its nodes send each to the other"))
    }

    /// The node to which our commands go, if one is known that answers.
    pub fn known(&self) -> Option<Owner> {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        owner.as_ref().filter(|owner| !owner.is_lost.load(Ordering::Relaxed)).cloned()
    }

    /// The same, looked for if there is none.
    async fn owner(&self) -> RedisResult<Owner> {
        if let Some(owner) = self.known() {
            return Ok(owner);
        }
        let asked = Instant::now();
        let mut failed = self.search.lock().await;
        // Another may have looked for it meanwhile, for all who waited.
        if let Some(owner) = self.known() {
            return Ok(owner);
        }
        if let Some((_, error)) = failed.as_ref().filter(|(at, _)| *at > asked) {
            return Err(error.clone());
        }
        match self.find().await.and_then(|address| self.settle(address)) {
            Ok(owner) => Ok(owner),
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Asks every node that is known where our slot is; the first that can say so is believed.
    async fn find(&self) -> RedisResult<ConnectionAddr> {
        let last =
            self.owner.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|owner| owner.address.clone());
        let other = last.filter(|last| self.seeds.iter().all(|seed| seed.addr() != last));
        let other = other.map(|address| self.seeds[0].clone().set_addr(address));
        let mut asked: FuturesUnordered<_> =
            self.seeds.iter().cloned().chain(other).map(|node| self.ask(node)).collect();
        let mut failed = None;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(address) => return Ok(address),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.map_or_else(|| away("it has no nodes"), |error| away(&error.to_string())))
    }

    async fn ask(&self, node: ConnectionInfo) -> RedisResult<ConnectionAddr> {
        let address = node.addr().clone();
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT));
        let config = config.set_response_timeout(Some(TIMEOUT));
        let mut connection = redis::Client::open(node)?.get_multiplexed_async_connection_with_config(&config).await?;
        match redis::cmd("EXISTS").arg(&self.key).query_async::<i64>(&mut connection).await {
            Ok(_) => Ok(address),
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) => {
                let node = error.redirect_node().map(|(node, _)| node);
                node.and_then(|node| address_of(node, &address)).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends what comes from now on to `node`, where `from` says that the slot is.
    fn follow(&self, from: &Owner, node: &str) -> RedisResult<()> {
        // Others may have been sent on already.
        if self.known().is_some_and(|known| known.address != from.address) {
            return Ok(());
        }
        let address = address_of(node, &from.address).ok_or_else(|| away(&format!("moved to {node}")))?;
        self.settle(address).map(|_| ())
    }

    /// Takes `address` for the owner's.
    fn settle(&self, address: ConnectionAddr) -> RedisResult<Owner> {
        let mut current = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = match current.as_ref().filter(|owner| owner.address == address) {
            // Its connection is made again by itself.
            Some(same) => Owner { is_lost: Arc::default(), ..same.clone() },
            None => {
                let client = redis::Client::open(self.seeds[0].clone().set_addr(address.clone()))?;
                Owner { address, manager: manager(&client)?, client, is_lost: Arc::default() }
            }
        };
        *current = Some(owner.clone());
        Ok(owner)
    }

    /// A connection for subscriptions, to the node on which our messages are published: from one to another node they may be
    /// lost without a word.
    pub async fn pubsub(&self) -> RedisResult<(redis::aio::PubSub, ConnectionAddr)> {
        let owner = self.owner().await?;
        let connected = owner.client.get_async_pubsub().await.inspect_err(|_| owner.lose())?;
        Ok((connected, owner.address))
    }

    /// Whether our slot is no more at `address`, as far as is known.
    pub fn has_left(&self, address: &ConnectionAddr) -> bool {
        self.known().is_some_and(|owner| owner.address != *address)
    }
}

fn verdict(answer: &RedisResult<Vec<Value>>) -> Verdict {
    let of = |error: &ServerError| match error.kind()? {
        ServerErrorKind::Moved => {
            let node = error.details()?.split_ascii_whitespace().nth(1)?;
            Some(Verdict::Moved(node.to_owned()))
        }
        ServerErrorKind::Ask
        | ServerErrorKind::TryAgain
        | ServerErrorKind::ClusterDown
        | ServerErrorKind::MasterDown
        | ServerErrorKind::ReadOnly => Some(Verdict::Away(error.to_string())),
        _ => None,
    };
    let found = match answer {
        Ok(values) => {
            values.iter().find_map(|value| if let Value::ServerError(error) = value { of(error) } else { None })
        }
        Err(error) if error.is_io_error() => Some(Verdict::Away(error.to_string())),
        Err(error) => error.clone().into_server_errors().and_then(|errors| errors.iter().find_map(|(_, e)| of(e))),
    };
    found.unwrap_or(Verdict::Fine)
}

/// `host:port` as the address of a node, reached as `like` is. Without a host, on the same as that.
fn address_of(node: &str, like: &ConnectionAddr) -> Option<ConnectionAddr> {
    let (named, port) = node.rsplit_once(':')?;
    let (named, port) = (named.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?);
    let or = |host: &str| if named.is_empty() || named == "?" { host.to_owned() } else { named.to_owned() };
    match like {
        ConnectionAddr::Tcp(host, _) => Some(ConnectionAddr::Tcp(or(host), port)),
        ConnectionAddr::TcpTls { host, insecure, tls_params, .. } => {
            Some(ConnectionAddr::TcpTls { host: or(host), port, insecure: *insecure, tls_params: tls_params.clone() })
        }
        _ => None,
    }
}

fn invalid(what: &'static str) -> RedisError {
    (ErrorKind::InvalidClientConfig, what).into()
}

/// Seen from here Redis is away, whatever its nodes say.
fn away(why: &str) -> RedisError {
    std::io::Error::new(std::io::ErrorKind::NotConnected, format!("no node of the cluster serves our slot: {why}"))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_a_cluster_names_its_nodes_with_one_password() {
        assert_eq!(nodes("redis://:a,b@h:1/"), ["redis://:a,b@h:1/"]);
        assert_eq!(
            nodes("rediss+cluster://u:p%40@a:1, b:2,[::1]:3/?protocol=resp3"),
            [
                "rediss://u:p%40@a:1/?protocol=resp3",
                "rediss://u:p%40@b:2/?protocol=resp3",
                "rediss://u:p%40@[::1]:3/?protocol=resp3"
            ]
        );
        assert_eq!(nodes("redis+cluster://a:1"), ["redis://a:1"]);
        assert!(is_cluster("redis+cluster://a:1") && !is_cluster("redis://a:1"));
    }

    #[test]
    fn a_cluster_is_refused_without_a_hash_tag_and_with_another_database() {
        let refusal = |url: &str, prefix: &str| Cluster::open(url, &Keys::new(prefix)).err().map(|e| e.to_string());
        for prefix in ["", "market:", "{}market:", "{market:", "market}:"] {
            assert!(refusal("redis+cluster://a:1,b:2", prefix).unwrap().contains("REDIS_PREFIX"), "{prefix}");
        }
        assert_eq!(refusal("redis+cluster://a:1,b:2/", "test:{market}:"), None);
        assert!(refusal("redis+cluster://a:1,b:2/3", "{market}:").unwrap().contains("database 0"));
        let secret = refusal("redis+cluster://:secret@a:1,b:x", "{market}:").unwrap();
        assert!(!secret.contains("secret"), "{secret}");
    }

    #[test]
    fn a_node_is_reached_as_the_one_that_named_it() {
        let like = ConnectionAddr::Tcp("a".to_owned(), 1);
        assert_eq!(address_of("b:2", &like), Some(ConnectionAddr::Tcp("b".to_owned(), 2)));
        assert_eq!(address_of(":2", &like), Some(ConnectionAddr::Tcp("a".to_owned(), 2)));
        assert_eq!(address_of("::1:2", &like), Some(ConnectionAddr::Tcp("::1".to_owned(), 2)));
        assert_eq!(address_of("b", &like), None);
    }
}
