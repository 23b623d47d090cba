//! How the daemon is set.

use super::body::{Body, Name};
use super::error::{Failure, Json};
use super::to_its_end;
use crate::fleet::Fleet;
use axum::extract::State;
use pando_wire::api::{Error, Setting, SettingRequest};

/// All settings.
#[utoipa::path(get, path = "/settings", responses((status = 200, body = [Setting])))]
pub(super) async fn list(State(fleet): State<Fleet>) -> Json<Vec<Setting>> {
    Json(fleet.settings())
}

/// One setting.
#[utoipa::path(
    get,
    path = "/settings/{name}",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = Setting), (status = 404, body = Error, description = "There is no such setting"))
)]
pub(super) async fn get(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Setting>, Failure> {
    Ok(Json(fleet.setting(&name)?))
}

/// Change a setting. It holds at once, and for the daemons after this one.
#[utoipa::path(
    put,
    path = "/settings/{name}",
    params(("name" = String, Path, description = "Its name")),
    request_body = SettingRequest,
    responses(
        (status = 200, body = Setting),
        (status = 400, body = Error, description = "It cannot be that"),
        (status = 404, body = Error, description = "There is no such setting"),
    )
)]
pub(super) async fn set(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Body(SettingRequest { value }): Body<SettingRequest>,
) -> Result<Json<Setting>, Failure> {
    to_its_end(async move { fleet.set(&name, &value).await }).await.map(Json)
}

/// Make a setting what it is when nobody sets it.
#[utoipa::path(
    delete,
    path = "/settings/{name}",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = Setting), (status = 404, body = Error, description = "There is no such setting"))
)]
pub(super) async fn unset(State(fleet): State<Fleet>, Name(name): Name) -> Result<Json<Setting>, Failure> {
    to_its_end(async move { fleet.unset(&name).await }).await.map(Json)
}
