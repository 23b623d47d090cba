//! A bucket, as a request names it. What proves who asks is forgotten with the request, but by page servers, which forget
//! it when they end.

use super::super::blocking;
use super::super::error::FleetError;
use pando_store::{Bucket, BucketError, BucketSpec, SpecError};
use pando_wire::api;
use std::time::Duration;

/// How long a server may take for one request: a pack of 16 MiB comes through 2 Mbit/s then.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may be away: a restart. Somebody waits, and what was sent or fetched is not sent or fetched again.
const PATIENCE: Duration = Duration::from_secs(15);

/// Prepares to talk to it. Nothing is sent yet. `failed` says what it means when that cannot be.
pub(super) async fn open(
    asked: api::Bucket,
    failed: impl FnOnce(BucketError) -> FleetError + Send + 'static,
) -> Result<Bucket, FleetError> {
    let spec = spec(asked).map_err(|error| FleetError::Invalid(error.to_string()))?;
    let spec = BucketSpec { timeout: TIMEOUT, patience: PATIENCE, ..spec };
    // It reads the certificates of the host.
    blocking(move || Bucket::new(&spec).map_err(failed)).await
}

/// The bucket that a request names.
pub fn spec(asked: api::Bucket) -> Result<BucketSpec, SpecError> {
    let api::Bucket { url, endpoint, region, access_key_id, secret_access_key, session_token } = asked;
    let variable = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some(access_key_id.clone()),
        "AWS_SECRET_ACCESS_KEY" => Some(secret_access_key.clone()),
        "AWS_SESSION_TOKEN" => session_token.clone(),
        "AWS_ENDPOINT_URL" => endpoint.clone(),
        "AWS_REGION" => region.clone(),
        _ => None,
    };
    BucketSpec::new(&url, variable)
}

/// Makes a [`FleetError::Bucket`].
pub(super) fn failed(wanted: &'static str, name: &str) -> impl Fn(BucketError) -> FleetError + Clone + use<> {
    let name = name.to_owned();
    move |source| FleetError::Bucket { name: name.clone(), wanted, source: source.into() }
}
