//! Connections in, and how many and how long there may be.

use super::host::Front;
use super::kept::{Kept, MAX_KEPT};
use super::proxy::Caller;
use super::pulse::{Client, Pulse};
use crate::fleet::Fleet;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at a time. As many requests are under way, those of upgraded connections included.
const MAX_CONNECTIONS: usize = 2000;
/// Connections over that limit that are told so at a time; further ones are closed.
const MAX_TURNED_AWAY: usize = 100;
/// How long a client that is told that it has to go may take to go.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// How long answers that are under way may take when the daemon ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The longest head of a request, and how much of a body or an answer waits in one connection, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// Requests under way at a time on one connection, where there can be more than one.
const MAX_STREAMS: u32 = 100;

const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 36\r\nConnection: close\r\n\r\ntoo many previews are looked at now\n";

/// What serves previews.
#[derive(Debug)]
pub(crate) struct Previews {
    pub(super) fleet: Fleet,
    pub(super) domain: String,
    pub(super) requests: Arc<Semaphore>,
    kept: Arc<Semaphore>,
}

impl Previews {
    /// Those of the VMs of `fleet`, below `domain`.
    pub(crate) fn new(fleet: Fleet, domain: &str) -> Self {
        let [requests, kept] = [MAX_CONNECTIONS, MAX_KEPT].map(|count| Arc::new(Semaphore::new(count)));
        Self { fleet, domain: domain.to_owned(), requests, kept }
    }
}

/// Listens for who looks at previews. That it cannot be done is no reason for a daemon to end: it is logged, and said
/// wherever a URL would be.
pub(crate) async fn listen(address: Option<SocketAddr>, domain: &str) -> (Option<TcpListener>, Front) {
    let Some(address) = address else {
        return (
            None,
            Front::new(domain, Err("the daemon serves no previews: it was started with --previews none".into())),
        );
    };
    let bound = TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
    match bound {
        Ok((address, listener)) => {
            tracing::info!(%address, domain, "serving previews");
            (Some(listener), Front::new(domain, Ok(address)))
        }
        Err(error) => {
            let why = format!("the daemon serves no previews: it cannot listen on {address}: {error}");
            tracing::warn!("{why}");
            (None, Front::new(domain, Err(why)))
        }
    }
}

/// Serves previews until the daemon is told to end, and for a moment after that.
pub(crate) async fn serve(listener: TcpListener, previews: Previews, mut ending: watch::Receiver<bool>) {
    let previews = Arc::new(previews);
    let (room, porch) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(Semaphore::new(MAX_TURNED_AWAY)));
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
            _ = ending.wait_for(|ends| *ends) => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no descriptors are left. Connections that end give some back.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match (Arc::clone(&room).try_acquire_owned(), Arc::clone(&porch).try_acquire_owned()) {
            (Ok(place), _) => {
                let client = converse(stream, from.ip(), Arc::clone(&previews), ending.clone());
                clients.spawn(async move {
                    client.await;
                    drop(place);
                });
            }
            (Err(_), Ok(place)) => {
                clients.spawn(async move {
                    let _ = timeout(FAREWELL_LIMIT, turn_away(stream)).await;
                    drop(place);
                });
            }
            (Err(_), Err(_)) => drop(stream),
        }
    }
    drop(listener);
    // Those that are left then are dropped.
    let _ = timeout(DRAIN_LIMIT + FAREWELL_LIMIT, async { while clients.join_next().await.is_some() {} }).await;
}

/// Speaks with one client until it goes, has been quiet for too long, or the daemon ends.
async fn converse(stream: TcpStream, from: IpAddr, previews: Arc<Previews>, mut ending: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true); // It is slower without.
    let pulse = Arc::new(Pulse::new(Instant::now()));
    let io = TokioIo::new(Client::new(stream, Arc::clone(&pulse)));
    let kept = Arc::new(Kept::new(Arc::clone(&previews.kept)));
    let caller = Arc::new(Caller { from, pulse: Arc::clone(&pulse), kept: Arc::clone(&kept) });
    let service = service_fn(move |request| {
        let (previews, caller) = (Arc::clone(&previews), Arc::clone(&caller));
        async move { Ok::<_, Infallible>(previews.answer(request, &caller).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Of how long a head may take the pulse knows, for both versions.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER_BYTES);
    let window = BUFFER_BYTES as u32;
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).max_header_list_size(window);
    builder.http2().initial_stream_window_size(window).max_send_buf_size(BUFFER_BYTES);
    builder.http2().initial_connection_window_size(4 * window);
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = pulse.stops() => None,
        never = kept.tire() => match never {},
        _ = ending.wait_for(|ends| *ends) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match timeout(DRAIN_LIMIT, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => return pulse.cut(), // What is under way is not whole.
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection broke");
    }
}

/// Tells a client that there is no room, and waits until it has heard: with bytes unread, closing would be a reset.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(TURNED_AWAY).await?;
    stream.shutdown().await?;
    while stream.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}
