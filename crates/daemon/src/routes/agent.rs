//! A connection to the agent in a guest, for clients that speak `pando_wire::agent`: the terminal, files, streams.

use super::body::Name;
use super::error::Failure;
use crate::fleet::Fleet;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use hyper_util::rt::TokioIo;
use pando_wire::api::Error;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// What the connection is upgraded to.
const PROTOCOL: &str = "pando-agent";
/// How long a VM does not fall asleep because a client has connected and its agent has not answered anything yet.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Upgrade the connection (`Upgrade: pando-agent`) to one with the agent in a VM, port 1024.
#[utoipa::path(
    get,
    path = "/vms/{name}/agent",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 101, description = "From here on bytes go to and from the agent"),
        (status = 400, body = Error, description = "The request does not ask for the upgrade"),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It does not run, or belongs to another build"),
        (status = 503, body = Error, description = "The agent does not answer"),
    )
)]
pub(super) async fn connect(
    State(fleet): State<Fleet>,
    Name(name): Name,
    mut request: Request,
) -> Result<impl IntoResponse, Failure> {
    if !asks_for_upgrade(request.headers()) {
        return Err(Failure::bad_request(format!(
            "this route wants the headers Connection: Upgrade, Upgrade: {PROTOCOL}"
        )));
    }
    let (guest, id, mut visit) = fleet.agent(&name).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            // Either side may go away at any time, which is how connections end.
            Ok(client) => {
                let _: io::Result<()> = relay(TokioIo::new(client), guest, || visit.is_heard()).await;
                // Most connections are for a program.
                fleet.program_ended(&id);
            }
            Err(error) => tracing::info!(%error, "a client did not become a connection to an agent"),
        }
    });
    Ok((StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "Upgrade"), (UPGRADE, PROTOCOL)]))
}

/// Carries bytes both ways until both sides have ended, or the client cannot be told any more. Calls `is_heard` once the
/// guest has said something, or has had nothing to say for long.
///
/// A guest that takes nothing more may still have said something: the agent ends a connection with its last answer,
/// whatever the client is sending at that moment. So what cannot be carried in does not end what is carried out.
async fn relay(
    client: impl AsyncRead + AsyncWrite,
    guest: impl AsyncRead + AsyncWrite,
    is_heard: impl FnOnce(),
) -> io::Result<()> {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_guest, mut to_guest) = split(guest);
    let inward = async {
        // Either is refused only by a guest that has ended.
        let _: io::Result<u64> = copy(&mut from_client, &mut to_guest).await;
        let _: io::Result<()> = to_guest.shutdown().await;
        Ok(())
    };
    let outward = async {
        let mut first = [0; 4096];
        let answer = timeout(ANSWER_LIMIT, from_guest.read(&mut first)).await;
        is_heard();
        match answer {
            Ok(Ok(0)) => return to_client.shutdown().await,
            Ok(read) => to_client.write_all(&first[..read?]).await?,
            Err(Elapsed { .. }) => (),
        }
        copy(&mut from_guest, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(inward, outward).map(|_| ())
}

fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    let wanted = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    wanted.is_some_and(|protocol| protocol.eq_ignore_ascii_case(PROTOCOL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    const LIMIT: Duration = Duration::from_secs(20);

    /// The last answer of an agent was lost when the client said something more at that moment.
    #[tokio::test]
    async fn what_the_guest_said_arrives_though_it_listens_no_more() {
        let (mut client, client_end) = UnixStream::pair().unwrap();
        let (mut guest, guest_end) = UnixStream::pair().unwrap();
        guest.write_all(b"exited").await.unwrap();
        drop(guest);
        client.write_all(b"no input").await.unwrap();
        let relayed = tokio::spawn(relay(client_end, guest_end, || ()));
        let mut said = String::new();
        timeout(LIMIT, client.read_to_string(&mut said)).await.unwrap().unwrap();
        assert_eq!(said, "exited");
        timeout(LIMIT, relayed).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_an_end_for_the_guest_and_one_that_hears_nothing_too() {
        for unheard in [false, true] {
            let (client, client_end) = UnixStream::pair().unwrap();
            let (mut guest, guest_end) = UnixStream::pair().unwrap();
            let relayed = tokio::spawn(relay(client_end, guest_end, || ()));
            if unheard {
                let client = client.into_std().unwrap();
                client.shutdown(std::net::Shutdown::Read).unwrap();
                guest.write_all(b"output").await.unwrap();
                assert_eq!(timeout(LIMIT, guest.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
                continue; // Its other half is open all along.
            }
            drop(client);
            assert_eq!(timeout(LIMIT, guest.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
            drop(guest);
            timeout(LIMIT, relayed).await.unwrap().unwrap().unwrap();
        }
    }
}
