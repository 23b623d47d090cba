//! Ports of VMs that can be seen from outside. What serves them is in `previews` and `publish`.

use super::body::{Body, Name};
use super::error::{Failure, Json};
use super::{nothing, to_its_end};
use crate::db::{OpenPort, Record};
use crate::fleet::Fleet;
use crate::previews::Front;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::{Extension, extract::rejection::PathRejection};
use pando_wire::api::{Error, Port, PortRequest, Published};
use std::sync::Arc;

/// The ports of a VM that can be seen from outside, opened or published, in order.
#[utoipa::path(
    get,
    path = "/vms/{name}/ports",
    params(("name" = String, Path, description = "Its name or id")),
    responses((status = 200, body = [Port]), (status = 404, body = Error, description = "There is no such VM"))
)]
pub(super) async fn list(
    State(fleet): State<Fleet>,
    Extension(front): Extension<Arc<Front>>,
    Name(name): Name,
) -> Result<Json<Vec<Port>>, Failure> {
    let (vm, ports) = fleet.ports(&name).await?;
    let published = fleet.published(&vm.id).await?.into_iter().map(|port| show_published(&vm, port));
    let mut all: Vec<_> = ports.into_iter().map(|port| show(&front, &vm, port)).chain(published).collect();
    all.sort_by_key(|port| port.port);
    Ok(Json(all))
}

/// Let a port of a VM be seen from outside, or change by whom. A fork's child has none of its parent's.
#[utoipa::path(
    put,
    path = "/vms/{name}/ports/{port}",
    params(
        ("name" = String, Path, description = "The VM's name or id"),
        ("port" = u16, Path, description = "The port in the VM, 1 to 65535"),
    ),
    request_body = PortRequest,
    responses(
        (status = 200, body = Port),
        (status = 400, body = Error, description = "There can be no such port"),
        (status = 404, body = Error, description = "There is no such VM"),
    )
)]
pub(super) async fn open(
    State(fleet): State<Fleet>,
    Extension(front): Extension<Arc<Front>>,
    PortOf(name, port): PortOf,
    Body(request): Body<PortRequest>,
) -> Result<Json<Port>, Failure> {
    let (vm, port) = to_its_end(async move { fleet.open_port(&name, port, request.public).await }).await?;
    Ok(Json(show(&front, &vm, port)))
}

/// Let a port of a VM be seen no more. Its URL lets nobody in again, also when it is opened anew.
#[utoipa::path(
    delete,
    path = "/vms/{name}/ports/{port}",
    params(
        ("name" = String, Path, description = "The VM's name or id"),
        ("port" = u16, Path, description = "The port in the VM, 1 to 65535"),
    ),
    responses(
        (status = 204, description = "Nobody sees it"),
        (status = 400, body = Error, description = "There can be no such port"),
        (status = 404, body = Error, description = "There is no such VM, or the port cannot be seen"),
    )
)]
pub(super) async fn close(
    State(fleet): State<Fleet>,
    PortOf(name, port): PortOf,
) -> Result<impl IntoResponse, Failure> {
    to_its_end(async move { fleet.close_port(&name, port).await }).await?;
    Ok(nothing())
}

fn show(front: &Front, vm: &Record, open: OpenPort) -> Port {
    let OpenPort { port, token, is_public } = open;
    let token = (!is_public).then_some(token);
    let url = front.url(&vm.name, &vm.id, port, token.as_deref());
    let (url, problem) = url.map_or_else(|problem| (None, Some(problem)), |url| (Some(url), None));
    Port { vm: vm.name.clone(), port, public: is_public, url, token, host: None, problem }
}

fn show_published(vm: &Record, published: Published) -> Port {
    let host = Some(published.host().to_string());
    let Published { guest_port, problem, .. } = published;
    Port { vm: vm.name.clone(), port: guest_port, public: true, url: None, token: None, host, problem }
}

/// The VM and the port in the path.
pub(super) struct PortOf(String, u16);

impl<S: Send + Sync> FromRequestParts<S> for PortOf {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let unread = |error: PathRejection| {
            Failure::bad_request("the port in the path cannot be read").because(error.body_text())
        };
        let Path((name, port)) = Path::from_request_parts(parts, state).await.map_err(unread)?;
        Ok(Self(name, port))
    }
}
