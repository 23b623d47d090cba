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
use tokio::io::copy_bidirectional;

/// What the connection is upgraded to.
const PROTOCOL: &str = "pando-agent";

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
    let (mut guest, id) = fleet.agent(&name).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            // Either side may go away at any time, which is how connections end.
            Ok(client) => {
                let _ = copy_bidirectional(&mut TokioIo::new(client), &mut guest).await;
                // Most connections are for a program.
                fleet.program_ended(&id);
            }
            Err(error) => tracing::info!(%error, "a client did not become a connection to an agent"),
        }
    });
    Ok((StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "Upgrade"), (UPGRADE, PROTOCOL)]))
}

fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    let wanted = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    wanted.is_some_and(|protocol| protocol.eq_ignore_ascii_case(PROTOCOL))
}
