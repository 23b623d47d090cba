//! VMs as they were at one instant. Wherever a path has `{name}`, an id serves as well.

use super::body::{Body, Name, Options, upload};
use super::error::{Failure, Json};
use super::{nothing, to_its_end};
use crate::fleet::Fleet;
use crate::images::Incoming;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use pando_wire::api::{
    BucketRunRequest, Checkpoint, CheckpointRequest, CheckpointRunReport, Collected, Error, ForkRequest, Progress,
    PullRequest, Pulled, PushRequest, Pushed, Verified,
};
use serde::Deserialize;
use std::convert::Infallible;
use tokio::sync::oneshot;
use utoipa::IntoParams;

/// All checkpoints, oldest first.
#[utoipa::path(get, path = "/checkpoints", responses((status = 200, body = [Checkpoint])))]
pub(super) async fn list(State(fleet): State<Fleet>) -> Result<Json<Vec<Checkpoint>>, Failure> {
    Ok(Json(fleet.checkpoints().await?))
}

/// Keep a running or paused VM as it is now, for others to begin from. It goes on, and the checkpoint writes itself into
/// the store meanwhile.
#[utoipa::path(
    post,
    path = "/vms/{name}/checkpoint",
    params(("name" = String, Path, description = "The VM's name or id")),
    request_body = CheckpointRequest,
    responses(
        (status = 200, body = Checkpoint),
        (status = 400, body = Error, description = "The name cannot be one"),
        (status = 404, body = Error, description = "There is no such VM"),
        (status = 409, body = Error, description = "It neither runs nor is paused, or the name is taken"),
        (status = 500, body = Error, description = "The monitor cannot fork; it goes on as it was"),
        (status = 503, body = Error, description = "There is no room for it"),
    )
)]
pub(super) async fn create(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Body(request): Body<CheckpointRequest>,
) -> Result<Json<Checkpoint>, Failure> {
    to_its_end(async move { fleet.create_checkpoint(&name, request).await }).await.map(Json)
}

/// One checkpoint, with what the memory of its seed costs.
#[utoipa::path(
    get,
    path = "/checkpoints/{name}",
    params(("name" = String, Path, description = "Its name or id")),
    responses((status = 200, body = Checkpoint), (status = 404, body = Error, description = "There is no such checkpoint"))
)]
pub(super) async fn get(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Checkpoint>, Failure> {
    Ok(Json(fleet.checkpoint(&name).await?))
}

/// Remove a checkpoint. VMs that were run from it live on; its room in the store is taken back by the next collection.
#[utoipa::path(
    delete,
    path = "/checkpoints/{name}",
    params(("name" = String, Path, description = "Its name or id")),
    responses((status = 204, description = "It is gone"), (status = 404, body = Error, description = "There is no such checkpoint"))
)]
pub(super) async fn remove(State(fleet): State<Fleet>, Name(name): Name) -> Result<impl IntoResponse, Failure> {
    to_its_end(async move { fleet.remove_checkpoint(&name).await }).await?;
    Ok(nothing())
}

/// Run VMs from a checkpoint: forks of its seed while it has one, and otherwise from the store. The report tells of each,
/// also of those that failed.
#[utoipa::path(
    post,
    path = "/checkpoints/{name}/run",
    params(("name" = String, Path, description = "Its name or id")),
    request_body = ForkRequest,
    responses(
        (status = 200, body = CheckpointRunReport),
        (status = 400, body = Error, description = "There are no VMs in it, or too many"),
        (status = 404, body = Error, description = "There is no such checkpoint"),
        (status = 409, body = Error, description = "It could not be stored, and its seed is gone"),
        (status = 500, body = Error, description = "The seed cannot fork, or the store cannot be read"),
        (status = 503, body = Error, description = "There is no KVM, or no room for so many"),
    )
)]
pub(super) async fn run(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Body(request): Body<ForkRequest>,
) -> Result<Json<CheckpointRunReport>, Failure> {
    to_its_end(async move { fleet.run_from(&name, request).await }).await.map(Json)
}

/// Export a checkpoint that is stored, as one stream: what the daemon knows of it, and all that it needs of the store, but
/// not the image. An answer that breaks off is not all of it.
#[utoipa::path(
    get,
    path = "/checkpoints/{name}/export",
    params(("name" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = Error, description = "There is no such checkpoint"),
        (status = 409, body = Error, description = "It is not stored"),
    )
)]
pub(super) async fn export(State(fleet): State<Fleet>, Name(name): Name) -> Result<impl IntoResponse, Failure> {
    let bytes = fleet.export_checkpoint(&name).await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], axum::body::Body::from_stream(bytes)))
}

/// How a checkpoint is imported.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportOptions {
    /// Its name here; the one that it had when absent.
    name: Option<String>,
}

/// Import a checkpoint that was exported. Every byte is checked; it is here in full then, or not at all. The image that
/// it needs must be here.
#[utoipa::path(
    post,
    path = "/checkpoints",
    params(ImportOptions),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Checkpoint),
        (status = 400, body = Error, description = "It is no export, damaged, or not all of it arrived"),
        (status = 409, body = Error, description = "The image is missing, the name is taken, or it is here already"),
    )
)]
pub(super) async fn import(
    State(fleet): State<Fleet>,
    Options(options): Options<ImportOptions>,
    body: axum::body::Body,
) -> Result<Json<Checkpoint>, Failure> {
    let (sender, incoming) = Incoming::channel();
    let importing = to_its_end(async move { fleet.import_checkpoint(options.name, incoming).await });
    let (checkpoint, ()) = tokio::join!(importing, upload(body, sender));
    Ok(Json(checkpoint?))
}

/// What comes with work that takes long.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Watcher {
    /// What its progress is called while it goes on: a name that nobody else thinks of.
    progress: Option<String>,
}

/// Send a checkpoint that is stored to a bucket: what the daemon knows of it, and all that it needs of the store, but not
/// the image. What is there is not sent again. It is offered there when all of it is there; a client that goes away ends it.
#[utoipa::path(
    post,
    path = "/checkpoints/{name}/push",
    params(("name" = String, Path, description = "Its name or id"), Watcher),
    request_body = PushRequest,
    responses(
        (status = 200, body = Pushed),
        (status = 400, body = Error, description = "The bucket cannot be called that"),
        (status = 403, body = Error, description = "The bucket refuses these keys"),
        (status = 404, body = Error, description = "There is no such checkpoint, or no such bucket"),
        (status = 409, body = Error, description = "It is not stored, or another one is there with its id"),
        (status = 502, body = Error, description = "The bucket's server is away, full or broken"),
    )
)]
pub(super) async fn push(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(watcher): Options<Watcher>,
    Body(request): Body<PushRequest>,
) -> Result<Json<Pushed>, Failure> {
    Ok(Json(fleet.push_checkpoint(&name, request, watcher.progress).await?))
}

/// Fetch a checkpoint from a bucket. Every byte is checked, and what is here is not fetched again. It is here in full then,
/// or not at all; a client that goes away ends it. The image that it needs must be here.
#[utoipa::path(
    post,
    path = "/store/pull",
    params(Watcher),
    request_body = PullRequest,
    responses(
        (status = 200, body = Pulled),
        (status = 400, body = Error, description = "A name cannot be one, or what is known of it there is damaged"),
        (status = 403, body = Error, description = "The bucket refuses these keys"),
        (status = 404, body = Error, description = "There is no such checkpoint there, or no such bucket"),
        (status = 409, body = Error, description = "The image is missing, the name is taken, or it is here already"),
        (status = 502, body = Error, description = "The bucket's server is away or broken, or what lies there is damaged"),
    )
)]
pub(super) async fn pull(
    State(fleet): State<Fleet>,
    Options(watcher): Options<Watcher>,
    Body(request): Body<PullRequest>,
) -> Result<Json<Pulled>, Failure> {
    // Dropped with this future, when the client goes away.
    let (_asking, gone) = oneshot::channel::<Infallible>();
    let gone = async move { drop(gone.await) };
    to_its_end(async move { fleet.pull_checkpoint(request, watcher.progress, gone).await }).await.map(Json)
}

/// Run VMs from a checkpoint that stays in a bucket: their memory comes from there as they touch it, and then the rest. The
/// report tells of each, also of those that failed. The image that they need must be here.
#[utoipa::path(
    post,
    path = "/store/run",
    request_body = BucketRunRequest,
    responses(
        (status = 200, body = CheckpointRunReport),
        (status = 400, body = Error, description = "There are no VMs in it, or too many; or what is known of it there is damaged"),
        (status = 403, body = Error, description = "The bucket refuses these keys"),
        (status = 404, body = Error, description = "There is no such checkpoint there, or no such bucket"),
        (status = 409, body = Error, description = "The image is missing"),
        (status = 502, body = Error, description = "The bucket's server is away or broken, or what lies there is damaged"),
        (status = 503, body = Error, description = "There is no KVM, or no room for so many"),
    )
)]
pub(super) async fn run_from_bucket(
    State(fleet): State<Fleet>,
    Body(request): Body<BucketRunRequest>,
) -> Result<Json<CheckpointRunReport>, Failure> {
    to_its_end(async move { fleet.run_from_bucket(request).await }).await.map(Json)
}

/// Take back the room of what no checkpoint needs.
#[utoipa::path(
    post,
    path = "/store/collect",
    responses((status = 200, body = Collected), (status = 500, body = Error, description = "What is needed is not known"))
)]
pub(super) async fn collect(State(fleet): State<Fleet>) -> Result<Json<Collected>, Failure> {
    to_its_end(async move { fleet.collect().await }).await.map(Json)
}

/// Read all that is stored, check every byte, and tell what is damaged. Takes as long as reading it takes.
#[utoipa::path(
    post,
    path = "/store/verify",
    params(Watcher),
    responses((status = 200, body = Verified), (status = 500, body = Error, description = "The store cannot be read"))
)]
pub(super) async fn verify(
    State(fleet): State<Fleet>,
    Options(watcher): Options<Watcher>,
) -> Result<Json<Verified>, Failure> {
    Ok(Json(fleet.verify(watcher.progress).await?))
}

/// How far a push, a pull or a reading of the store is that goes on.
#[utoipa::path(
    get,
    path = "/progress/{name}",
    params(("name" = String, Path, description = "What it was called when it was asked for")),
    responses((status = 200, body = Progress), (status = 404, body = Error, description = "Nothing of that name goes on"))
)]
pub(super) async fn progress(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Progress>, Failure> {
    let (done, files) = fleet.progress(&name).ok_or_else(Failure::no_progress)?;
    Ok(Json(Progress { done, files }))
}
