//! What any route may answer besides its own answers, in the document: said here once for all of them.

use axum::http::StatusCode;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};

/// What every route answers to a request that came over TCP without the token: see `auth.rs`.
pub(super) fn add_unauthorized(document: &mut OpenApi) {
    for operation in operations(document) {
        add(operation, StatusCode::UNAUTHORIZED, "Over TCP: the token is missing or wrong");
    }
}

/// What every route answers that asks the fleet: to a request of which a part cannot be read (`body.rs`) where it has
/// parts, and when the host or the daemon fails (`error.rs`).
pub(super) fn add_failures(document: &mut OpenApi) {
    for operation in operations(document) {
        if operation.parameters.is_some() || operation.request_body.is_some() {
            add(operation, StatusCode::BAD_REQUEST, "The request is not what this route wants");
        }
        add(operation, StatusCode::INTERNAL_SERVER_ERROR, "The host or the daemon cannot do it");
    }
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    let items = document.paths.paths.values_mut();
    items.flat_map(|item| [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch]).flatten()
}

/// Adds an answer that the operation does not describe itself.
fn add(operation: &mut Operation, status: StatusCode, description: &str) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
    let response: RefOr<Response> =
        ResponseBuilder::new().description(description).content("application/json", content).build().into();
    operation.responses.responses.entry(status.as_str().to_owned()).or_insert(response);
}
