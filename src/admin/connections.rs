//! The admin server's connections: accepted, bounded in number and in time, and ended in order.
//!
//! Guarantees: whoever connects and says nothing, says it slowly, or does not read the answer, loses the connection; one whose
//! request is unreasonably long is told so by hyper (431, 414); that no file can be opened any more ends nothing; a shutdown
//! lets requests in flight end. Requests' bodies are bounded in [`super::limits`], the number of connections in [`super::seats`].
//!
//! HTTP/1.1 only: what comes from browsers, programs and proxies is little, and one protocol is less to attack.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::seats::{Kind, Seat, Seats};
use super::tls::Tls;
use crate::metrics::Metrics;

/// From the connection to the end of the first request's headers: before that there is nobody to be patient with.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// The same on a spare connection.
const FIRST_REQUEST_SPARE: Duration = Duration::from_secs(3);
/// From an answer to the end of the next request's headers. Longer than the minute for which load balancers keep a connection.
const NEXT_REQUEST: Duration = Duration::from_secs(75);
/// How long nothing of an answer may be read.
const UNREAD: Duration = Duration::from_secs(20);
/// The request line and all headers.
const HEADERS: usize = 32 << 10;
/// Headers.
const HEADER_COUNT: usize = 100;
/// What is read ahead, and written ahead, of a connection.
const BUFFER: usize = 64 << 10;
/// How long a shutdown waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(7);
/// After an error that is the process's, such as no more open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two words in the log about connections.
const QUIET: Duration = Duration::from_secs(60);

/// Where a request's connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer(pub(super) IpAddr);

/// Accepts until `shutdown`, then waits for requests in flight.
pub(super) async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<Tls>,
    max_connections: u16,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let seats = Seats::new(affordable(max_connections).into());
    let door = Door { app, tls, seats, metrics, shutdown };
    door.accept_until_told(|| listener.accept()).await;
    Ok(())
}

struct Door {
    app: Router,
    tls: Option<Tls>,
    seats: Seats,
    metrics: Metrics,
    shutdown: CancellationToken,
}

impl Door {
    async fn accept_until_told<F>(self, accept: impl Fn() -> F)
    where
        F: Future<Output = io::Result<(TcpStream, SocketAddr)>>,
    {
        let mut open = JoinSet::new();
        let (mut refused, mut failed) = (Quiet::default(), Quiet::default());
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(ended) = open.join_next() => {
                    again_if_it_panicked(ended);
                    continue;
                }
                accepted = accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => match self.seats.take(peer.ip()) {
                    Some(seat) => {
                        let (app, tls) = (self.app.clone(), self.tls.clone());
                        open.spawn(connection(stream, Peer(peer.ip()), seat, tls, app, self.shutdown.clone()));
                    }
                    None => {
                        self.metrics.connection_refused();
                        if refused.may_speak() {
                            tracing::warn!(peer = %peer.ip(), "too many connections to the admin API: one was refused");
                        }
                    }
                },
                Err(error) if is_the_others(&error) => {}
                Err(error) => {
                    if failed.may_speak() {
                        tracing::warn!(%error, "the admin API cannot accept a connection, and tries again");
                    }
                    tokio::select! {
                        () = self.shutdown.cancelled() => break,
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
        let drained = timeout(DRAIN, async {
            while let Some(ended) = open.join_next().await {
                again_if_it_panicked(ended);
            }
        });
        if drained.await.is_err() {
            tracing::warn!("requests were still in flight {DRAIN:?} after the shutdown: cut off");
        }
    }
}

/// One connection, from its beginning to its end; errors are the other side's.
async fn connection(
    stream: TcpStream,
    peer: Peer,
    seat: Seat,
    tls: Option<Tls>,
    app: Router,
    shutdown: CancellationToken,
) {
    let patience = if seat.kind == Kind::Spare { FIRST_REQUEST_SPARE } else { FIRST_REQUEST };
    let until = Instant::now() + patience;
    // Answers are small; a browser is not to wait for them.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    let secured = tokio::select! {
        secured = secure(Box::pin(stream), tls) => secured,
        () = tokio::time::sleep_until(until) => return,
        () = shutdown.cancelled() => return,
    };
    match secured {
        Ok(stream) => http(stream, peer, &seat, until, app, shutdown).await,
        Err(error) => tracing::debug!(%error, peer = %peer.0, "a connection to the admin API came to nothing"),
    }
}

/// What lies between TCP and HTTP: TLS, or nothing. It has as long as the first request has, in a task of its own.
async fn secure(
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    tls: Option<Tls>,
) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
    Ok(match tls {
        Some(tls) => Either::Left(tls.accept(stream).await?),
        None => Either::Right(stream),
    })
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    seat: &Seat,
    until: Instant,
    app: Router,
    shutdown: CancellationToken,
) {
    let kind = seat.kind;
    let asked = Arc::new(AtomicBool::new(false));
    let app = TowerToHyperService::new(app);
    let service = {
        let asked = asked.clone();
        service_fn(move |mut request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(kind);
            app.call(request)
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(if kind == Kind::Spare { FIRST_REQUEST_SPARE } else { NEXT_REQUEST })
        .max_header_size(HEADERS)
        .max_headers(HEADER_COUNT)
        .max_buf_size(BUFFER)
        .keep_alive(kind == Kind::Usual)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let (mut ending, mut waiting) = (false, true);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, peer = %peer.0, "a connection to the admin API ended early");
                }
                return;
            }
            () = shutdown.cancelled(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(until), if waiting => {
                waiting = false;
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

/// Connections must leave files for the databases: half of what this process may open.
fn affordable(max_connections: u16) -> u16 {
    let Ok((files, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) else {
        return max_connections;
    };
    let half = u16::try_from(files / 2).unwrap_or(u16::MAX).max(1);
    if half < max_connections {
        tracing::warn!(
            max_connections = half,
            files,
            "admin.max_connections is lowered to half of the files that this process may open"
        );
    }
    half.min(max_connections)
}

/// Whether only the connection that was about to be accepted is affected.
fn is_the_others(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

/// Connections are ended by nobody here, so a task's error is a panic.
fn again_if_it_panicked(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Lets something be said once a minute.
#[derive(Default)]
struct Quiet(Option<Instant>);

impl Quiet {
    fn may_speak(&mut self) -> bool {
        let now = Instant::now();
        let may = self.0.is_none_or(|last| now.duration_since(last) >= QUIET);
        if may {
            self.0 = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn that_no_file_can_be_opened_neither_ends_the_server_nor_makes_it_spin() {
        const EMFILE: i32 = 24;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let app = Router::new().route("/", get(async || "here"));
        let door =
            Door { app, tls: None, seats: Seats::new(4), metrics: Metrics::default(), shutdown: shutdown.clone() };
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let started = Instant::now();
        let listener = Arc::new(listener);
        let server = tokio::spawn(door.accept_until_told(move || {
            let (listener, failed) = (listener.clone(), counted.fetch_add(1, Ordering::Relaxed) < 3);
            async move { if failed { Err(io::Error::from_raw_os_error(EMFILE)) } else { listener.accept().await } }
        }));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.ends_with("here"), "{said}");
        assert!(started.elapsed() >= 3 * ACCEPT_PAUSE, "it pauses in between");
        shutdown.cancel();
        server.await.unwrap();
    }
}
