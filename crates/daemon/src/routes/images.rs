//! What VMs begin from.

use super::body::{Name, upload};
use super::error::{Failure, Json};
use super::{nothing, to_its_end};
use crate::fleet::Fleet;
use crate::images::Incoming;
use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use pando_wire::api::{Error, Image};

/// All images.
#[utoipa::path(get, path = "/images", responses((status = 200, body = [Image])))]
pub(super) async fn list(State(fleet): State<Fleet>) -> Result<Json<Vec<Image>>, Failure> {
    Ok(Json(fleet.images().await?))
}

/// Import an image: a tar archive of a root file system, compressed or not, or a raw disk.
///
/// The body may be as long as it likes. An image that is there already is not stored twice.
#[utoipa::path(
    post,
    path = "/images",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Image), (status = 400, body = Error, description = "It is no image, or not all of it arrived"))
)]
pub(super) async fn import(State(fleet): State<Fleet>, body: Body) -> Result<Json<Image>, Failure> {
    let (sender, incoming) = Incoming::channel();
    let importing = to_its_end(async move { fleet.import(incoming).await });
    let (image, ()) = tokio::join!(importing, upload(body, sender));
    Ok(Json(image?))
}

/// Remove an image that no VM needs.
#[utoipa::path(
    delete,
    path = "/images/{digest}",
    params(("digest" = String, Path, description = "Its digest")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, body = Error, description = "There is no such image"),
        (status = 409, body = Error, description = "A VM needs it"),
    )
)]
pub(super) async fn remove(State(fleet): State<Fleet>, Name(digest): Name) -> Result<impl IntoResponse, Failure> {
    to_its_end(async move { fleet.remove_image(&digest).await }).await?;
    Ok(nothing())
}
