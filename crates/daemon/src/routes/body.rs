//! What comes in with a request, and how what is wrong with it is said.

use super::error::Failure;
use crate::images::Upload;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// A JSON body, whatever `Content-Type` says. At most 2 MiB.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| Failure::bad_request("the body cannot be read").because(error))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::bad_request("the body is not what this route wants").because(error))?;
        Ok(Self(value))
    }
}

/// Sends on a body of whatever length, and that it is over, if all of it arrived.
pub(super) async fn upload(body: axum::body::Body, to: mpsc::Sender<Upload>) {
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        // Without an `End` the reader knows that it was cut short.
        let Ok(chunk) = chunk else { return };
        // The reader may have seen enough.
        if to.send(Upload::Chunk(chunk)).await.is_err() {
            return;
        }
    }
    let _ = to.send(Upload::End).await;
}

/// What follows the `?`.
pub(super) struct Options<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Options<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(options)) => Ok(Self(options)),
            Err(error) => {
                Err(Failure::bad_request("the query is not what this route wants").because(error.body_text()))
            }
        }
    }
}

/// The one name in the path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(Failure::bad_request("the name in the path cannot be read").because(error.body_text())),
        }
    }
}
