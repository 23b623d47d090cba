//! VMs. Wherever a path has `{name}`, an id serves as well.

use super::body::{Body, Name, Options};
use super::error::{Failure, Json};
use super::{nothing, to_its_end};
use crate::fleet::Fleet;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use pando_wire::api::{Error, ExecReport, ExecRequest, ForkReport, ForkRequest, NetworkRequest, RunRequest, Vm};
use serde::Deserialize;
use std::time::Duration;
use utoipa::IntoParams;

/// The longest that a guest is given to power off.
const MAX_STOP_MS: u64 = 600_000;

/// All VMs, oldest first.
#[utoipa::path(get, path = "/vms", responses((status = 200, body = [Vm])))]
pub(super) async fn list(State(fleet): State<Fleet>) -> Result<Json<Vec<Vm>>, Failure> {
    Ok(Json(fleet.list().await?))
}

/// Create a VM, boot it and wait until its agent answers. When that fails, there is no VM.
#[utoipa::path(
    post,
    path = "/vms",
    request_body = RunRequest,
    responses(
        (status = 200, body = Vm),
        (status = 400, body = Error, description = "The request says what cannot be"),
        (status = 404, body = Error, description = "There is no such image"),
        (status = 409, body = Error, description = "The name is taken, or a port of the host"),
        (status = 500, body = Error, description = "It does not boot; the causes end in the last lines of its console"),
        (status = 503, body = Error, description = "There is no KVM, or no memory"),
    )
)]
pub(super) async fn run(State(fleet): State<Fleet>, Body(request): Body<RunRequest>) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.run(request).await }).await.map(Json)
}

/// One VM, with what its memory costs.
#[utoipa::path(
    get,
    path = "/vms/{name}",
    params(("name" = String, Path, description = "Its name or id")),
    responses((status = 200, body = Vm), (status = 404, body = Error, description = "There is no such VM"))
)]
pub(super) async fn get(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Vm>, Failure> {
    Ok(Json(fleet.get(&name).await?))
}

/// How to remove a VM.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveOptions {
    /// End it first if it runs.
    #[serde(default)]
    force: bool,
}

/// Remove a VM and what was on its disk. What its children share with it stays until they are removed.
#[utoipa::path(
    delete,
    path = "/vms/{name}",
    params(("name" = String, Path, description = "Its name or id"), RemoveOptions),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It runs, or belongs to another build"),
    )
)]
pub(super) async fn remove(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(options): Options<RemoveOptions>,
) -> Result<impl IntoResponse, Failure> {
    to_its_end(async move { fleet.remove(&name, options.force).await }).await?;
    Ok(nothing())
}

/// Change what a VM's network reaches: at once, and whenever it begins again. The request says all of it, but for the mode,
/// which stays when absent. Connections go on, but for those to what is no longer reached.
#[utoipa::path(
    patch,
    path = "/vms/{name}/network",
    params(("name" = String, Path, description = "Its name or id")),
    request_body = NetworkRequest,
    responses(
        (status = 200, body = Vm),
        (status = 400, body = Error, description = "It says what cannot be, or the VM has no network"),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It belongs to another build"),
        (status = 503, body = Error, description = "It cannot be applied, and the one before holds"),
    )
)]
pub(super) async fn change_network(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Body(request): Body<NetworkRequest>,
) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.change_network(&name, request).await }).await.map(Json)
}

/// Fork a running or paused VM. The report tells of every child, also of those that failed.
#[utoipa::path(
    post,
    path = "/vms/{name}/fork",
    params(("name" = String, Path, description = "The parent's name or id")),
    request_body = ForkRequest,
    responses(
        (status = 200, body = ForkReport),
        (status = 400, body = Error, description = "There are no children in it, or too many"),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It neither runs nor is paused, belongs to another build, or is too deep in its tree"),
        (status = 500, body = Error, description = "The monitor cannot fork; it goes on as it was"),
        (status = 503, body = Error, description = "There is no room for so many children"),
    )
)]
pub(super) async fn fork(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Body(request): Body<ForkRequest>,
) -> Result<Json<ForkReport>, Failure> {
    to_its_end(async move { fleet.fork(&name, request).await }).await.map(Json)
}

/// Make a VM stand still.
#[utoipa::path(
    post,
    path = "/vms/{name}/pause",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, body = Vm),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It does not run, or belongs to another build"),
    )
)]
pub(super) async fn pause(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.pause(&name).await }).await.map(Json)
}

/// Make a paused VM go on.
#[utoipa::path(
    post,
    path = "/vms/{name}/resume",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, body = Vm),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It is not paused, or belongs to another build"),
    )
)]
pub(super) async fn resume(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.resume(&name).await }).await.map(Json)
}

/// Put a running VM to sleep: its memory and machine go into the store, its disk stays, and its process ends.
#[utoipa::path(
    post,
    path = "/vms/{name}/hibernate",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, body = Vm),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It does not run, or belongs to another build"),
        (status = 503, body = Error, description = "The agent does not answer, or the host has too little memory"),
    )
)]
pub(super) async fn hibernate(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.hibernate(&name).await }).await.map(Json)
}

/// Bring back a VM that sleeps. After an error it sleeps on, or is stopped if it has run. A program, a connection to its
/// agent, a fork, a checkpoint, a pause or a stop does so by itself.
#[utoipa::path(
    post,
    path = "/vms/{name}/wake",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, body = Vm),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It does not sleep, or belongs to another build"),
        (status = 503, body = Error, description = "The agent does not answer, or the host has too little memory"),
    )
)]
pub(super) async fn wake(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.wake(&name).await }).await.map(Json)
}

/// Boot a stopped VM again from its disk and wait until its agent answers.
#[utoipa::path(
    post,
    path = "/vms/{name}/start",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, body = Vm),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It is not stopped, or belongs to another build"),
        (status = 500, body = Error, description = "It does not boot; the causes end in the last lines of its console"),
        (status = 503, body = Error, description = "There is no KVM, or no memory"),
    )
)]
pub(super) async fn start(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.start(&name).await }).await.map(Json)
}

/// How to stop a VM.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct StopOptions {
    /// How long the guest may take to power off, at most ten minutes. Ten seconds when absent.
    #[serde(default = "ten_seconds")]
    timeout_ms: u64,
}

fn ten_seconds() -> u64 {
    10_000
}

/// Ask the guest to power off, and end it when it takes too long.
#[utoipa::path(
    post,
    path = "/vms/{name}/stop",
    params(("name" = String, Path, description = "Its name or id"), StopOptions),
    responses(
        (status = 200, body = Vm),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It does not run, or belongs to another build"),
    )
)]
pub(super) async fn stop(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(options): Options<StopOptions>,
) -> Result<Json<Vm>, Failure> {
    let limit = Duration::from_millis(options.timeout_ms.min(MAX_STOP_MS));
    to_its_end(async move { fleet.stop(&name, limit).await }).await.map(Json)
}

/// End a VM now. The guest is not asked.
#[utoipa::path(
    post,
    path = "/vms/{name}/kill",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, body = Vm),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It does not run, or belongs to another build"),
    )
)]
pub(super) async fn kill(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Vm>, Failure> {
    to_its_end(async move { fleet.kill(&name).await }).await.map(Json)
}

/// Run a program in a VM and wait for its end. At most 8 MiB of its output are kept. For a terminal or a stream, speak
/// to the agent.
#[utoipa::path(
    post,
    path = "/vms/{name}/exec",
    params(("name" = String, Path, description = "Its name or id")),
    request_body = ExecRequest,
    responses(
        (status = 200, body = ExecReport),
        (status = 400, body = Error, description = "There is no such program, or it cannot be run so"),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It does not run, or belongs to another build"),
        (status = 503, body = Error, description = "The agent does not answer"),
        (status = 504, body = Error, description = "The program took too long and was killed"),
    )
)]
pub(super) async fn exec(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Body(request): Body<ExecRequest>,
) -> Result<Json<ExecReport>, Failure> {
    Ok(Json(fleet.exec(&name, request).await?))
}

/// How to read a console.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct LogOptions {
    /// Go on until the VM ends.
    #[serde(default)]
    follow: bool,
}

/// What a VM wrote to its console.
#[utoipa::path(
    get,
    path = "/vms/{name}/logs",
    params(("name" = String, Path, description = "Its name or id"), LogOptions),
    responses(
        (status = 200, body = String, content_type = "application/octet-stream"),
        (status = 404, body = Error, description = "There is no such VM"),
    )
)]
pub(super) async fn logs(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(options): Options<LogOptions>,
) -> Result<impl IntoResponse, Failure> {
    let bytes = fleet.logs(&name, options.follow).await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], axum::body::Body::from_stream(bytes)))
}
