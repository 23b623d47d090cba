//! How errors look in HTTP: a status and an `api::Error`.

use crate::auth::Unauthorized;
use crate::fleet::FleetError;
use crate::settings::SettingError;
use axum::http::StatusCode;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::{IntoResponse, Response};
use pando_store::{BucketError, CheckpointError, IntakeError};
use pando_wire::api;
use std::io;

pub(super) use axum::Json;

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    error: String,
    because: Vec<String>,
}

impl Failure {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), because: Vec::new() }
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn because(mut self, cause: impl ToString) -> Self {
        self.because.push(cause.to_string());
        self
    }

    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, api::NO_ROUTE)
    }

    pub(super) fn no_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "the route has no such method")
    }

    pub(super) fn no_progress() -> Self {
        Self::new(StatusCode::NOT_FOUND, "nothing of that name goes on")
    }

    pub(super) fn cut_short() -> Self {
        FleetError::CutShort.into()
    }
}

impl From<FleetError> for Failure {
    fn from(error: FleetError) -> Self {
        let status = match &error {
            FleetError::NoSuchVm(_)
            | FleetError::NoSuchCheckpoint(_)
            | FleetError::NoSuchImage(_)
            | FleetError::NoSuchKernel(_)
            | FleetError::NoSuchPort { .. }
            | FleetError::Setting(SettingError::Unknown(_)) => StatusCode::NOT_FOUND,
            FleetError::NameTaken(_)
            | FleetError::CheckpointTaken(_)
            | FleetError::NotStored(_)
            | FleetError::Unstored { .. }
            | FleetError::NeedsImage { .. }
            | FleetError::State { .. }
            | FleetError::Foreign { .. }
            | FleetError::ImageInUse { .. }
            | FleetError::TooDeep { .. } => StatusCode::CONFLICT,
            FleetError::Setting(SettingError::Value { .. })
            | FleetError::Invalid(_)
            | FleetError::NoImage(_)
            | FleetError::NoExport(_)
            | FleetError::NoNetwork(_)
            | FleetError::Guest { .. } => StatusCode::BAD_REQUEST,
            FleetError::Network { .. } | FleetError::NoKvm { .. } | FleetError::NoRoom { .. } | FleetError::Agent { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            FleetError::NotPublished { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => StatusCode::CONFLICT,
                _ => StatusCode::BAD_REQUEST,
            },
            FleetError::NobodyListens { .. } | FleetError::OldAgent { .. } => StatusCode::BAD_GATEWAY,
            FleetError::Bucket { source, .. } => of_bucket(source),
            FleetError::ExecLate { .. } => StatusCode::GATEWAY_TIMEOUT,
            FleetError::Boot { .. }
            | FleetError::Monitor { .. }
            | FleetError::Host { .. }
            | FleetError::Db(_)
            | FleetError::Abandoned // which nobody hears
            | FleetError::CutShort => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = error.in_one_line(), "a request was not done");
        }
        Self { status, because: error.because(), error: error.to_string() }
    }
}

/// By whose fault a bucket does not take or give something.
fn of_bucket(error: &BucketError) -> StatusCode {
    match error {
        BucketError::Refused { .. } => StatusCode::FORBIDDEN,
        BucketError::NoBucket { .. }
        | BucketError::NoStore(_)
        | BucketError::Absent { .. }
        | BucketError::Checkpoint(CheckpointError::Absent(_)) => StatusCode::NOT_FOUND,
        BucketError::Exists { .. } | BucketError::Intake(IntakeError::Exists(_)) => StatusCode::CONFLICT,
        BucketError::Unreachable { .. }
        | BucketError::TooLong { .. }
        | BucketError::Intake(
            IntakeError::Damaged { .. } | IntakeError::Newer { .. } | IntakeError::Incomplete { .. },
        ) => StatusCode::BAD_GATEWAY,
        BucketError::TooLarge(_)
        | BucketError::Intake(IntakeError::File(_) | IntakeError::Decompress(_))
        | BucketError::Checkpoint(_)
        | BucketError::File(_)
        | BucketError::Runtime(_)
        | BucketError::Interrupted => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(api::Error { error: self.error, because: self.because })).into_response()
    }
}

impl IntoResponse for Unauthorized {
    fn into_response(self) -> Response {
        let failure = Failure::new(StatusCode::UNAUTHORIZED, self.to_string());
        ([(WWW_AUTHENTICATE, "Bearer")], failure).into_response()
    }
}
