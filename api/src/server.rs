//! The HTTP server under the router: bounded in connections, and in the time that each may take to say what it wants.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Extension, Router, middleware::AddExtension, serve::Listener};
use hyper::server::conn::http1::Builder;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tower::Layer;

use crate::door::Peer;

/// Most bytes of a request's line and header.
const MAX_HEAD: usize = 64 * 1024;
/// How long a client may leave what it was sent unacknowledged, or its window closed, before its connection is broken.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// What clients may use up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait until one ends.
    pub max_connections: usize,
    /// How long a request's header may take from when the connection is ready for it. A connection without requests ends
    /// after as long.
    pub header_timeout: Duration,
}

/// Serves until `stop` is cancelled, then takes no more requests and lets those under way end, and what became of them.
pub async fn serve(mut listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    // Hyper's own builder: the one that finds out the version of HTTP lets a silent connection stay for as long as it likes.
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(MAX_HEAD);
    let builder = Arc::new(builder);
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            // Repeats what fails for want of file descriptors.
            (Listener::accept(&mut listener).await, slot)
        };
        let ((stream, peer), slot) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection cannot be set up");
        }
        let connection = Connection { stream, _slot: slot, _tracked: connections.token() };
        let service = Extension(Peer(peer)).layer(router.clone());
        tokio::spawn(handle(Arc::clone(&builder), connection, service, stop.clone()));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What is small is sent at once, and a client that takes nothing does not keep what waits for it for good.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// A connection counts for as long as it is open, also when it is a WebSocket by then.
struct Connection {
    stream: TcpStream,
    _slot: Result<OwnedSemaphorePermit, tokio::sync::AcquireError>,
    _tracked: TaskTrackerToken,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn handle(
    builder: Arc<Builder>,
    connection: Connection,
    service: AddExtension<Router, Peer>,
    stop: CancellationToken,
) {
    let served = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(service));
    let mut connection = pin!(served.with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
        time::{Instant, sleep, timeout},
    };

    use super::*;

    const HEADER: Duration = Duration::from_millis(400);
    const REQUEST: &[u8] = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";

    async fn start(max_connections: usize) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let slow = async || {
            sleep(2 * HEADER).await;
            "well"
        };
        let router = Router::new().route("/slow", get(slow));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let limits = Limits { max_connections, header_timeout: HEADER };
        (address, stop.clone(), tokio::spawn(serve(listener, router, limits, stop)))
    }

    async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// All that comes until the server ends the connection.
    async fn rest(mut stream: TcpStream) -> String {
        let mut all = Vec::new();
        timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await.expect("the connection stays").unwrap();
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn who_sends_half_a_header_or_nothing_is_cut_off_and_who_waits_for_an_answer_is_not() {
        let (address, ..) = start(10).await;
        let started = Instant::now();
        let half = send(address, b"GET /slow HTTP/1.1\r\nhost: ").await;
        let silent = send(address, b"").await;
        let whole = send(address, REQUEST).await;
        for text in [rest(half).await, rest(silent).await] {
            assert!(!text.contains("200 OK"), "{text}");
        }
        assert!((HEADER..5 * HEADER).contains(&started.elapsed()), "{:?}", started.elapsed());
        let answer = rest(whole).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("well"), "{answer}");
    }

    #[tokio::test]
    async fn connections_over_the_most_wait_for_one_to_end() {
        let (address, ..) = start(1).await;
        let started = Instant::now();
        let _first = send(address, b"GET").await;
        let second = rest(send(address, REQUEST).await).await;
        assert!(second.starts_with("HTTP/1.1 200 OK"), "{second}");
        assert!(started.elapsed() >= 3 * HEADER, "the second did not wait: {:?}", started.elapsed());
    }

    #[tokio::test]
    async fn told_to_stop_it_answers_what_is_under_way_and_ends() {
        let (address, stop, server) = start(10).await;
        let busy = send(address, REQUEST).await;
        let idle = send(address, b"").await;
        sleep(HEADER / 4).await;
        stop.cancel();
        assert!(rest(busy).await.ends_with("well"));
        assert_eq!(rest(idle).await, "");
        timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
