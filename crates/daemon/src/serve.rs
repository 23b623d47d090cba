//! Starting and ending a daemon. The VMs outlive it.

use crate::auth::{self, OwnUser};
use crate::config::Config;
use crate::db::{Db, DbError};
use crate::fleet::Fleet;
use crate::network::Networks;
use crate::paths::Paths;
use crate::previews::{self, Previews};
use crate::routes;
use crate::settings::Settings;
use axum::Router;
use axum::middleware::from_fn;
use axum::serve::ListenerExt;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getpid, getrlimit, set_child_subreaper, setrlimit};
use std::error::Error;
use std::fs::{self, File, Permissions};
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

/// How long requests that go on may take when the daemon is told to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take after that until nothing of it is left.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Why a daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A folder or file of its own is not to be had.
    #[error("cannot use {path}")]
    Path {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Only one daemon may use a state directory, or a runtime directory.
    #[error("another daemon (pid {pid}) uses {dir}")]
    Taken {
        /// Its process id, as far as it could be read.
        pid: String,
        /// The directory.
        dir: PathBuf,
    },
    /// Somebody else listens on the socket.
    #[error("another daemon listens on {socket}")]
    SocketTaken {
        /// The socket.
        socket: PathBuf,
    },
    /// The TCP port is not to be had.
    #[error("cannot listen on {address}")]
    Tcp {
        /// Which.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// No browser takes it for a domain.
    #[error("{0}")]
    Domain(String),
    /// A TCP port without a token would let everybody in.
    #[error("cannot listen on {address}: the token is empty")]
    NoToken {
        /// The port.
        address: SocketAddr,
    },
    /// The kernel does not let it look after orphans or listen for signals.
    #[error("cannot prepare this process")]
    Process(#[source] io::Error),
    /// The database.
    #[error("cannot open the database")]
    Db(#[from] DbError),
    /// The VMs of an earlier daemon cannot be taken over.
    #[error("cannot take over the VMs of an earlier daemon")]
    Adopt(#[source] Box<dyn Error + Send + Sync>),
}

/// Runs a daemon until it gets SIGTERM or SIGINT. Its log goes to whatever `tracing` subscriber there is.
///
/// # Errors
///
/// Fails where its folders, sockets or database are not to be had, above all where another daemon uses them.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Process)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Process)?;
    let told_to_end = async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    };
    serve_until(config, told_to_end).await
}

/// Runs a daemon until `told_to_end`. Requests that go on then are finished, for at most 30 s, and VMs run on.
///
/// # Errors
///
/// As for [`serve`].
pub async fn serve_until(
    config: Config,
    told_to_end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    previews::check_domain(&config.preview_domain).map_err(ServeError::Domain)?;
    let paths = Paths::create(&config).map_err(|(path, source)| ServeError::Path { path, source })?;
    // Held until the end.
    let _state = lock(paths.lock(), &config.state_dir, &config.socket).await?;
    let _runtime = lock(paths.runtime_lock(), &config.runtime_dir, &config.socket).await?;
    set_child_subreaper(Some(getpid())).map_err(|error| ServeError::Process(error.into()))?;
    raise_descriptor_limit();
    // Before anything of an earlier daemon is touched.
    let (unix, tcp) = listen(&config).await?;

    let owner = owner(&paths.owner()).map_err(|source| ServeError::Path { path: paths.owner(), source })?;
    let kept = paths.any_kept().map_err(|source| ServeError::Path { path: config.state_dir.clone(), source })?;
    let db = Db::open(&paths.database(), &owner, kept).await?;
    let (end, ending) = watch::channel(false);
    let (close, closing) = watch::channel(false);
    let settings = Settings::remembered(&db.settings().await?);
    let networks = Networks::new(&owner, config.network_range);
    let fleet = Fleet::new(&config, settings, paths, db.clone(), networks, ending.clone(), closing);
    fleet.adopt().await.map_err(|error| ServeError::Adopt(error.into()))?;

    tracing::info!(socket = %config.socket.display(), pid = std::process::id(), "listening");
    let (preview_listener, front) = previews::listen(config.previews, &config.preview_domain).await;
    let (router, _document) = routes::routes(fleet.clone(), Arc::new(front));
    let tcp = tcp.map(|(listener, token)| (listener, behind(token, router.clone())));
    let over = || {
        let mut ending = ending.clone();
        async move {
            let _ = ending.wait_for(|over| *over).await;
        }
    };
    let Unix { listener, file } = unix;
    let unix_server = axum::serve(OwnUser(listener), router).with_graceful_shutdown(over());
    let tcp_server = async {
        match tcp {
            Some((listener, router)) => {
                axum::serve(listener.tap_io(answer_at_once), router).with_graceful_shutdown(over()).await
            }
            None => Ok(()),
        }
    };
    let preview_server = async {
        match preview_listener {
            Some(listener) => {
                let previews = Previews::new(fleet.clone(), &config.preview_domain);
                previews::serve(listener, previews, ending.clone()).await;
            }
            None => over().await,
        }
    };
    let idle = fleet.clone().watch_idle();
    let published = fleet.ports_ended();
    let servers = async { tokio::join!(unix_server.into_future(), tcp_server, preview_server, published, idle) };
    tokio::pin!(servers);
    tokio::select! {
        _ = &mut servers => (), // None ends before it is told to.
        () = told_to_end => (),
    }
    tracing::info!("ending; the VMs run on");
    end.send_replace(true);
    if timeout(DRAIN_LIMIT, servers).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
    close.send_replace(true);
    // Whoever connects from now on shall hear that there is no daemon.
    drop(file);
    fleet.close_networks().await;
    db.close().await;
    Ok(())
}

/// A typed character must not wait for the next.
fn answer_at_once(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection will be slow");
    }
}

/// `router` for those who have `token`.
fn behind(token: blake3::Hash, router: Router) -> Router {
    router.layer(from_fn(move |request, next| auth::require(token, request, next)))
}

/// Takes `dir` for this daemon alone, by a lock on the file at `path`. Waits while another daemon has it that does not
/// listen on `socket` any more: it is ending.
async fn lock(path: PathBuf, dir: &Path, socket: &Path) -> Result<File, ServeError> {
    let failed = |source| ServeError::Path { path: path.clone(), source };
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    let deadline = Instant::now() + DRAIN_LIMIT + CLOSE_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => (),
            Err(error) => return Err(failed(error.into())),
        }
        if Instant::now() > deadline || is_served(socket).await {
            let pid = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            return Err(ServeError::Taken { pid, dir: dir.to_owned() });
        }
        sleep(Duration::from_millis(50)).await;
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Whether a daemon listens on `socket`. Of one that was killed while it started a monitor, the process that is about to
/// become that monitor keeps locks and sockets for a moment: then somebody listens, but who began to is gone.
async fn is_served(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket).await else { return false };
    let listener = stream.peer_cred().ok().and_then(|peer| peer.pid());
    // Of another PID namespace, its number is 0.
    listener.is_none_or(|pid| pid == 0 || Path::new(&format!("/proc/{pid}")).exists())
}

/// Who this daemon is: made up once, kept for good.
fn owner(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let id = Uuid::try_parse(text.trim());
            return id.map(|id| id.to_string()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    let id = Uuid::now_v7().to_string();
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    Ok(id)
}

/// A fork into hundreds of children holds a few descriptors for each, and the usual limit is 1024. More than the hard
/// limit cannot be had, and then a large fork says so.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "cannot raise the limit of open files");
    }
}

/// A socket that is listened on, and its file.
struct Unix {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket of ours. It goes when this does.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens on the Unix socket, and on TCP if that is asked for.
async fn listen(config: &Config) -> Result<(Unix, Option<(TcpListener, blake3::Hash)>), ServeError> {
    let tcp = match &config.tcp {
        None => None,
        Some((address, token)) if token.is_empty() => return Err(ServeError::NoToken { address: *address }),
        Some((address, token)) => {
            let bound = TcpListener::bind(address).await;
            let listener = bound.map_err(|source| ServeError::Tcp { address: *address, source })?;
            Some((listener, blake3::hash(token.as_bytes())))
        }
    };
    let socket = &config.socket;
    let failed = |source| ServeError::Path { path: socket.clone(), source };
    if let Some(dir) = socket.parent() {
        // Its owner is not looked at: the socket may be put where others have theirs.
        fs::create_dir_all(dir).map_err(failed)?;
    }
    if is_served(socket).await {
        return Err(ServeError::SocketTaken { socket: socket.clone() });
    }
    match fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and no socket")));
        }
        Ok(_) => fs::remove_file(socket).map_err(failed)?, // Nobody listened on it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(failed(error)),
    }
    // Whoever is faster than the change of its mode is turned away by who they are.
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let file = SocketFile(socket.clone());
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((Unix { listener, file }, tcp))
}
