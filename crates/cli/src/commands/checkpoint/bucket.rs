//! A bucket, as options and the environment name it.

use crate::failure::{Failure, USAGE};
use pando_wire::api::Bucket;
use std::env;

/// How to talk to a bucket. Keys are no options: everybody on this computer could read them.
#[derive(clap::Args)]
pub(in crate::commands) struct Options {
    /// The server, such as http://127.0.0.1:9000, as the daemon reaches it.
    ///
    /// AWS_ENDPOINT_URL says so, too; Amazon's without either.
    #[arg(long, value_name = "URL", value_hint = clap::ValueHint::Url)]
    endpoint: Option<String>,
    /// The region; AWS_REGION says so, too.
    #[arg(long)]
    region: Option<String>,
}

impl Options {
    /// The bucket of `s3://bucket/prefix`, with the keys of the environment.
    pub(in crate::commands) fn bucket(self, url: String) -> Result<Bucket, Failure> {
        let needed = |name: &str| {
            variable(name).ok_or_else(|| {
                Failure::new(format!("there are no credentials for {url}: {name} is not set")).with_code(USAGE)
            })
        };
        Ok(Bucket {
            access_key_id: needed("AWS_ACCESS_KEY_ID")?,
            secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN"),
            endpoint: self.endpoint.or_else(|| variable("AWS_ENDPOINT_URL")),
            region: self.region.or_else(|| variable("AWS_REGION")),
            url,
        })
    }
}

/// What a variable says, if anything.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
