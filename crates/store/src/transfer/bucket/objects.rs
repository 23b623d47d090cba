//! Getting and putting objects, patiently.

use super::describe;
use super::error::{BucketError, Said};
use super::spec::BucketSpec;
use crate::format::{
    FileKind, FormatError, HEADER_BYTES, MAX_PACK_BYTES, PackIndex, index_bytes, read_index, seal, unseal,
};
use crate::id::PackId;
use crate::meter::Meter;
use crate::transfer::file::MAX_OTHER_BYTES;
use crate::transfer::intake::IntakeError;
use crate::transfer::names::Name;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How much of a pack is read at first, in bytes: its index is seldom longer, and a longer read takes no longer.
const FIRST_READ: u64 = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// More than there is time for: time is what ends them.
const MOST_RETRIES: usize = 1000;
const BACKOFF: BackoffConfig =
    BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };

/// A bucket with checkpoints, or for some. Cloning is cheap.
#[derive(Clone)]
pub struct Bucket {
    objects: Arc<AmazonS3>,
    spec: BucketSpec,
    pub(super) meter: Arc<Meter>,
    /// As it is called in messages.
    pub(super) name: String,
}

/// Never the keys.
impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({self})")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Bucket {
    /// Prepares to talk to a bucket. Nothing is sent yet.
    pub fn new(spec: &BucketSpec) -> Result<Self, BucketError> {
        // One provider per process. Whoever chose before has chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let name = spec.to_string();
        let client = ClientOptions::new()
            .with_timeout(spec.timeout)
            .with_connect_timeout(CONNECT_TIMEOUT.min(spec.timeout))
            .with_allow_http(spec.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")));
        let retry = RetryConfig { backoff: BACKOFF, max_retries: MOST_RETRIES, retry_timeout: spec.patience };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&spec.bucket)
            .with_region(&spec.region)
            .with_access_key_id(&spec.access_key)
            .with_secret_access_key(&spec.secret_key)
            .with_client_options(client)
            .with_retry(retry);
        if let Some(endpoint) = &spec.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(token) = &spec.session_token {
            builder = builder.with_token(token);
        }
        let unusable = |source: Error| BucketError::Unreachable {
            action: "prepare to find",
            object: "anything".to_owned(),
            bucket: name.clone(),
            source: said(spec, &source),
        };
        let objects = builder.build().map_err(unusable)?;
        Ok(Self { objects: Arc::new(objects), spec: spec.clone(), meter: Arc::default(), name })
    }

    /// The same, which has `meter` say how far a push or a fetch is.
    #[must_use]
    pub fn watched_by(self, meter: Arc<Meter>) -> Self {
        Self { meter, ..self }
    }

    /// The same, with connections of its own.
    pub(super) fn anew(&self) -> Result<Self, BucketError> {
        Self::new(&self.spec)
    }

    /// How long something may take with all that is tried again: what is begun while there is patience may time out.
    pub(super) fn longest(&self) -> Duration {
        self.spec.patience + self.spec.timeout
    }

    /// Says that an object has not come for so long.
    pub(super) fn late(&self, name: &Name, limit: Duration) -> BucketError {
        BucketError::Unreachable {
            action: "read",
            object: name.to_string(),
            bucket: self.name.clone(),
            source: Said::late(limit),
        }
    }

    /// The names of the checkpoints in it, sorted.
    pub async fn checkpoints(&self) -> Result<Vec<String>, BucketError> {
        let listed = self.list("checkpoints").await?;
        let mut names: Vec<_> = listed
            .into_iter()
            .filter_map(|(name, _)| if let Name::Checkpoint(name) = name { Some(name) } else { None })
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The objects of a folder, with their lengths. Those of other names are none of ours.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<(Name, u64)>, BucketError> {
        let listed = self.list_objects(folder).await?;
        let name = |object: &ObjectMeta| format!("{folder}/{}", object.location.filename()?).parse::<Name>().ok();
        Ok(listed.iter().filter_map(|object| Some((name(object)?, object.size))).collect())
    }

    /// All that lies below a folder.
    pub(super) async fn list_objects(&self, folder: &str) -> Result<Vec<ObjectMeta>, BucketError> {
        let listed = self.objects.list(Some(&self.folder(folder))).try_collect().await;
        listed.map_err(|error| self.error("list", folder.to_owned(), error))
    }

    pub(super) async fn delete(&self, name: &Name) -> Result<(), BucketError> {
        self.delete_object(&name.to_string()).await
    }

    pub(super) async fn delete_object(&self, name: &str) -> Result<(), BucketError> {
        self.objects.delete(&self.folder(name)).await.map_err(|error| self.error("remove", name.to_owned(), error))
    }

    /// Removes a checkpoint from it. Its packs and manifests stay until [`Bucket::collect`]:
    /// others may need them.
    pub async fn remove(&self, checkpoint: &str) -> Result<(), BucketError> {
        crate::format::check_name(checkpoint).map_err(crate::store::CheckpointError::from)?;
        let name = Name::Checkpoint(checkpoint.to_owned());
        if self.size(&name).await?.is_none() {
            return Err(BucketError::Absent { checkpoint: checkpoint.to_owned(), bucket: self.name.clone() });
        }
        // Nobody finds it any more before it is gone.
        for name in self.names_of(checkpoint).await? {
            self.delete_object(&describe::object(&name, checkpoint)).await?;
        }
        self.delete(&name).await
    }

    /// Whether it is a store of a format that is known here; `false` where it is none yet.
    pub(super) async fn is_store(&self) -> Result<bool, BucketError> {
        let Some(mark) = self.get(&Name::Mark).await? else { return Ok(false) };
        let damaged = |why| IntakeError::format(&self.name, why);
        match unseal(FileKind::Store, &mark).map_err(damaged)? {
            [] => Ok(true),
            _ => Err(damaged(FormatError::Length).into()),
        }
    }

    pub(super) async fn make_store(&self) -> Result<(), BucketError> {
        self.put(&Name::Mark, seal(FileKind::Store, vec![0; HEADER_BYTES])).await
    }

    /// The length of an object, if there is one of that name.
    pub(super) async fn size(&self, name: &Name) -> Result<Option<u64>, BucketError> {
        match self.objects.head(&self.path(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("find", name.to_string(), error)),
        }
    }

    /// All of an object, if there is one of that name. No more is read than a file of a store can have.
    pub(super) async fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, BucketError> {
        let most = if let Name::Pack(_) = name { MAX_PACK_BYTES } else { MAX_OTHER_BYTES };
        self.get_object(&name.to_string(), most).await
    }

    /// The same of an object that is no file of a store, and of at most so many bytes.
    pub(super) async fn get_object(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, BucketError> {
        let read = async {
            let found = self.objects.get(&self.folder(name)).await?;
            let len = found.meta.size;
            if len > most {
                return Ok(Err(len));
            }
            found.bytes().await.map(Ok)
        };
        match read.await {
            Ok(Ok(bytes)) => Ok(Some(bytes.into())),
            Ok(Err(len)) => Err(BucketError::TooLong { object: name.to_owned(), bucket: self.name.clone(), len }),
            Err(error @ Error::NotFound { .. }) if !is_no_bucket(&error) => Ok(None),
            Err(error) => Err(self.error("read", name.to_owned(), error)),
        }
    }

    /// The index of a pack, of which the beginning is read. `None` if it is not there.
    pub(super) async fn index(&self, id: PackId) -> Result<Option<PackIndex>, BucketError> {
        let name = Name::Pack(id);
        let damaged = |why| IntakeError::format(&name, why);
        let Some((mut start, len)) = self.start(&name, FIRST_READ).await? else { return Ok(None) };
        let wanted = index_bytes(&start).map_err(damaged)?;
        if wanted > start.len() {
            let Some((longer, _)) = self.start(&name, wanted as u64).await? else { return Ok(None) };
            start = longer;
        }
        let index = read_index(&start).map_err(damaged)?;
        if index.file_len == len { Ok(Some(index)) } else { Err(damaged(FormatError::Length).into()) }
    }

    /// The beginning of an object, and how long all of it is.
    async fn start(&self, name: &Name, len: u64) -> Result<Option<(Vec<u8>, u64)>, BucketError> {
        let options = GetOptions { range: Some(GetRange::Bounded(0..len)), ..GetOptions::default() };
        let read = async {
            let found = self.objects.get_opts(&self.path(name), options).await?;
            let len = found.meta.size;
            Ok((found.bytes().await?.into(), len))
        };
        match read.await {
            Ok(start) => Ok(Some(start)),
            Err(error @ Error::NotFound { .. }) if !is_no_bucket(&error) => Ok(None),
            Err(error) => Err(self.error("read", name.to_string(), error)),
        }
    }

    pub(super) async fn put(&self, name: &Name, bytes: Vec<u8>) -> Result<(), BucketError> {
        self.put_object(&name.to_string(), bytes).await
    }

    pub(super) async fn put_object(&self, name: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        let put = self.objects.put(&self.folder(name), bytes.into()).await;
        put.map(drop).map_err(|error| self.error("write", name.to_owned(), error))
    }

    fn path(&self, name: &Name) -> Path {
        self.folder(&name.to_string())
    }

    fn folder(&self, name: &str) -> Path {
        match &*self.spec.prefix {
            "" => Path::from(name),
            prefix => Path::from(format!("{prefix}/{name}")),
        }
    }

    fn error(&self, action: &'static str, object: String, source: Error) -> BucketError {
        let (bucket, said) = (self.name.clone(), said(&self.spec, &source));
        match source {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                BucketError::Refused { bucket, source: said }
            }
            Error::NotFound { .. } => BucketError::NoBucket { bucket, source: said },
            _ => BucketError::Unreachable { action, object, bucket, source: said },
        }
    }
}

/// What `error` says to whoever is told, who may be somebody else than who has the keys.
fn said(spec: &BucketSpec, error: &Error) -> Said {
    let token = spec.session_token.as_deref().unwrap_or_default();
    Said::new(error, &[token, &spec.secret_key, &spec.access_key])
}

/// A server tells a missing bucket from a missing object only by a word in its answer.
fn is_no_bucket(error: &Error) -> bool {
    matches!(error, Error::NotFound { source, .. } if source.to_string().contains("NoSuchBucket"))
}
