//! Who may use the API: on the Unix socket this user and root, on TCP whoever has the token.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::Listener;
use std::io;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream, unix};

/// A Unix listener that drops whoever is neither this user nor root.
#[derive(Debug)]
pub(crate) struct OwnUser(pub(crate) UnixListener);

impl Listener for OwnUser {
    type Io = UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (UnixStream, unix::SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if is_welcome(peer.uid()) => return (stream, address),
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "turned away"),
                    Err(error) => tracing::warn!(%error, "turned away somebody unknown"),
                },
                Err(error) => {
                    // Most likely no descriptors are left. Requests that end give some back.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        self.0.local_addr()
    }
}

fn is_welcome(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Lets a request through that carries `token`.
pub(crate) async fn require(token: blake3::Hash, request: Request, next: Next) -> Result<Response, Unauthorized> {
    if has_token(request.headers(), token) { Ok(next.run(request).await) } else { Err(Unauthorized) }
}

/// A request had no token, or a wrong one.
#[derive(Debug, thiserror::Error)]
#[error("a valid bearer token is needed")]
pub(crate) struct Unauthorized;

/// Whether `headers` carry the token that hashes to `token`. Hashes are compared, in constant time, so that nothing
/// about the token can be learned from how long it takes.
fn has_token(headers: &HeaderMap, token: blake3::Hash) -> bool {
    let sent = headers.get(AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let Some((scheme, sent)) = sent.split_at_checked("Bearer ".len()) else { return false };
    // `blake3::Hash` compares in constant time.
    scheme.eq_ignore_ascii_case(b"Bearer ") && blake3::hash(sent) == token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = blake3::hash(b"secret");
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            has_token(&headers, token)
        };
        assert!(check("Bearer secret"));
        assert!(check("bearer secret"));
        for wrong in ["", "secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret"] {
            assert!(!check(wrong), "{wrong}");
        }
        assert!(!has_token(&HeaderMap::new(), token));
    }

    #[test]
    fn other_users_are_strangers() {
        let own = rustix::process::geteuid().as_raw();
        assert!(is_welcome(own) && is_welcome(0));
        assert!(!is_welcome(own + 1));
    }
}
