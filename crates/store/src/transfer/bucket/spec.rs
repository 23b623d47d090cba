//! Which bucket, and as whom.

use std::fmt;
use std::time::Duration;

/// A bucket, and how to talk to it.
#[derive(Clone)]
pub struct BucketSpec {
    /// Its name.
    pub bucket: String,
    /// What the names of all objects begin with, without slashes at its ends. May be empty.
    pub prefix: String,
    /// The server, such as `http://127.0.0.1:9000`. `None` for Amazon's.
    pub endpoint: Option<String>,
    /// The region; most other servers do not care.
    pub region: String,
    /// Who asks.
    pub access_key: String,
    /// What proves it.
    pub secret_key: String,
    /// For temporary credentials.
    pub session_token: Option<String>,
    /// How long one request may take.
    pub timeout: Duration,
    /// How long a request is tried again, while the server is not there or says that it cannot.
    pub patience: Duration,
}

/// Why there is no bucket to talk to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It is called otherwise.
    #[error("{0:?} is no bucket: s3://bucket/prefix is expected")]
    Url(String),
    /// The server is not named in a way that can be used.
    #[error("{0:?} is no server: http://address or https://address is expected")]
    Endpoint(String),
    /// Nobody said who asks.
    #[error("there are no credentials for s3://{bucket}: {variable} is not set")]
    Credentials {
        /// The bucket.
        bucket: String,
        /// What is missing.
        variable: &'static str,
    },
}

impl BucketSpec {
    /// The bucket of `s3://bucket/prefix`, with what `variable` says: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and,
    /// where they are set, `AWS_SESSION_TOKEN`, `AWS_ENDPOINT_URL` and `AWS_REGION`.
    pub fn new(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, SpecError> {
        let wrong = || SpecError::Url(url.to_owned());
        let path = url.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let is_plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
        let prefix = prefix.trim_matches('/');
        let climbs = prefix.split('/').any(|part| matches!(part, "." | ".."));
        if bucket.is_empty() || !is_plain(path) || climbs || prefix.contains("//") {
            return Err(wrong());
        }
        let needed = |name: &'static str| {
            variable(name).ok_or_else(|| SpecError::Credentials { bucket: bucket.to_owned(), variable: name })
        };
        let endpoint = variable("AWS_ENDPOINT_URL");
        if let Some(wrong) = endpoint.as_ref().filter(|endpoint| !is_server(endpoint)) {
            return Err(SpecError::Endpoint(wrong.clone()));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint,
            region: variable("AWS_REGION").unwrap_or_else(|| "us-east-1".to_owned()),
            access_key: needed("AWS_ACCESS_KEY_ID")?,
            secret_key: needed("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN"),
            timeout: Duration::from_secs(60),
            patience: Duration::from_secs(120),
        })
    }
}

/// Whether this is a scheme and a place. A name and a password before the place would get into messages.
fn is_server(endpoint: &str) -> bool {
    let place = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://")).unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]/".contains(&byte);
    !place.starts_with(['/', ':']) && !place.is_empty() && place.bytes().all(is_plain)
}

impl fmt::Display for BucketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.prefix {
            "" => write!(f, "s3://{}", self.bucket),
            prefix => write!(f, "s3://{}/{prefix}", self.bucket),
        }
    }
}

/// Never the keys.
impl fmt::Debug for BucketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketSpec({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        matches!(name, "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY").then(|| "secret".to_owned())
    }

    #[test]
    fn a_url_names_bucket_and_prefix() {
        let spec = |url| BucketSpec::new(url, variable).map(|spec| (spec.bucket, spec.prefix));
        assert_eq!(spec("s3://bucket"), Ok(("bucket".into(), String::new())));
        assert_eq!(spec("s3://bucket/a/b/"), Ok(("bucket".into(), "a/b".into())));
        for wrong in ["bucket", "s3://", "s3:///x", "s3://a b", "s3://a/../b", "s3://a/b//c", "http://a/b"] {
            assert_eq!(spec(wrong), Err(SpecError::Url(wrong.into())));
        }
    }

    #[test]
    fn a_server_is_a_scheme_and_a_place_without_a_password() {
        let spec = |endpoint: &str| {
            BucketSpec::new("s3://bucket", |name| match name {
                "AWS_ENDPOINT_URL" => Some(endpoint.to_owned()),
                name => variable(name),
            })
        };
        for right in ["http://127.0.0.1:9000", "https://s3.example.org/", "http://[::1]:9000"] {
            assert_eq!(spec(right).unwrap().endpoint.as_deref(), Some(right));
        }
        for wrong in ["", "127.0.0.1:9000", "ftp://a", "http://", "http:///x", "http://me:secret@a", "http://a b"] {
            assert_eq!(spec(wrong).unwrap_err(), SpecError::Endpoint(wrong.into()));
        }
    }

    #[test]
    fn missing_credentials_are_named_and_present_ones_never_shown() {
        let refused = BucketSpec::new("s3://bucket", |_| None).unwrap_err();
        assert_eq!(refused.to_string(), "there are no credentials for s3://bucket: AWS_ACCESS_KEY_ID is not set");
        let spec = BucketSpec::new("s3://bucket/x", variable).unwrap();
        assert_eq!(format!("{spec} {spec:?}"), "s3://bucket/x BucketSpec(s3://bucket/x)");
    }
}
