//! The REST API. Every route is on this page; what they do is the fleet's business, and how its errors look in HTTP is
//! said once, in `error.rs`.

mod agent; // a connection to a guest
mod answers; // what any route may answer
mod body; // what comes in
mod checkpoints; // VMs as they were at one instant
mod error; // what goes wrong
mod events; // what happened, as a stream
mod images; // what VMs begin from
mod meta; // about the daemon
mod ports; // ports of VMs that can be seen
mod settings; // how the daemon is set
mod vms; // VMs

use crate::fleet::Fleet;
use crate::previews::Front;
use axum::response::IntoResponse;
use axum::{Extension, Router};
use error::Failure;
use std::future::Future;
use std::sync::Arc;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Run Linux microVMs and fork them while they run. On the Unix socket the caller's user decides, on TCP a bearer token.
#[derive(OpenApi)]
#[openapi(info(title = "Pando"))]
struct Document;

/// Every route that a daemon serves.
fn all() -> OpenApiRouter<Fleet> {
    let mut all = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(meta::version))
        .routes(routes!(meta::document))
        .merge(of_fleet());
    answers::add_unauthorized(all.get_openapi_mut());
    all
}

/// Those that ask the fleet.
fn of_fleet() -> OpenApiRouter<Fleet> {
    let mut routes = OpenApiRouter::new()
        .routes(routes!(images::list, images::import))
        .routes(routes!(images::remove))
        .routes(routes!(vms::list, vms::run))
        .routes(routes!(vms::get, vms::remove))
        .routes(routes!(vms::change_network))
        .routes(routes!(vms::fork))
        .routes(routes!(vms::pause))
        .routes(routes!(vms::resume))
        .routes(routes!(vms::hibernate))
        .routes(routes!(vms::wake))
        .routes(routes!(vms::start))
        .routes(routes!(vms::stop))
        .routes(routes!(vms::kill))
        .routes(routes!(vms::exec))
        .routes(routes!(vms::logs))
        .routes(routes!(agent::connect))
        .routes(routes!(ports::list))
        .routes(routes!(ports::open, ports::close))
        .routes(routes!(checkpoints::list, checkpoints::import))
        .routes(routes!(checkpoints::create))
        .routes(routes!(checkpoints::get, checkpoints::remove))
        .routes(routes!(checkpoints::run))
        .routes(routes!(checkpoints::export))
        .routes(routes!(checkpoints::push))
        .routes(routes!(checkpoints::pull))
        .routes(routes!(checkpoints::run_from_bucket))
        .routes(routes!(checkpoints::collect))
        .routes(routes!(checkpoints::verify))
        .routes(routes!(checkpoints::progress))
        .routes(routes!(events::list))
        .routes(routes!(settings::list))
        .routes(routes!(settings::get, settings::set, settings::unset));
    answers::add_failures(routes.get_openapi_mut());
    routes
}

/// The routes, ready to be served, and the document that describes them.
pub(crate) fn routes(fleet: Fleet, previews: Arc<Front>) -> (Router, utoipa::openapi::OpenApi) {
    let (router, document) = all().split_for_parts();
    let router = router
        .fallback(async || Failure::no_route())
        .method_not_allowed_fallback(async || Failure::no_method())
        .layer(Extension(previews))
        .with_state(fleet);
    (router, document)
}

/// The OpenAPI document of the API, as `GET /openapi.json` serves it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    all().into_openapi()
}

/// Runs an operation to its end also when the client goes away meanwhile: half a fork is worse than one that nobody
/// asked for any more.
async fn to_its_end<T: Send + 'static, E: Into<Failure> + Send + 'static>(
    operation: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(operation).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Failure::cut_short()),
    }
}

/// An answer of 204.
fn nothing() -> impl IntoResponse {
    axum::http::StatusCode::NO_CONTENT
}
