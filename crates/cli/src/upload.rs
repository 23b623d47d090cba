//! Files on their way to the daemon; above all what `run` calls IMAGE, as the digest of an image that the daemon has.

use crate::archive::{self, Owners, PackError};
use crate::client::{Body, Client};
use crate::failure::{Failure, NOT_FOUND};
use crate::progress;
use bytes::Bytes;
use futures_util::{Stream, stream};
use indicatif::ProgressBar;
use pando_wire::api::Image;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use tokio::sync::mpsc;

/// How much of a digest must be given.
const SHORTEST_DIGEST: usize = 6;
const CHUNK: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 8;

/// Imports `image`, a folder, an archive or a disk image; or finds it among those that were imported.
pub(crate) async fn digest(client: &Client, image: &str) -> Result<String, Failure> {
    let path = Path::new(image);
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return known(client, image).await,
        Err(error) => return Err(Failure::from(error).under(format!("cannot read the image {image}"))),
    };
    if metadata.is_dir() {
        let total = archive::total_bytes(path);
        let (chunks, packing) = archive::stream(path.to_owned(), None, Owners::Kept);
        let answer = import(client, chunks, total).await;
        return match packing.await? {
            // Whoever did not want the archive says why, if anyone does.
            Ok(()) | Err(PackError::Send { .. }) => answer,
            Err(error) => Err(Failure::from(error).under(format!("cannot use {image} as an image"))),
        };
    }
    let failed = |error: io::Error| Failure::from(error).under(format!("cannot read the image {image}"));
    let file = File::open(path).map_err(failed)?;
    Ok(send(client, "/images", file, Some(metadata.len()), failed).await?.read::<Image>()?.digest)
}

/// Posts all that `source` has, of which that many bytes are expected, to `path`. `failed` says what it means when it
/// cannot be read.
pub(crate) async fn send(
    client: &Client,
    path: &str,
    source: impl Read + Send + 'static,
    total_bytes: Option<u64>,
    failed: impl Fn(io::Error) -> Failure,
) -> Result<Body, Failure> {
    let (chunks, reading) = read(source);
    let answer = post(client, path, chunks, total_bytes).await;
    match reading.await? {
        Ok(()) => answer,
        Err(error) => Err(failed(error)),
    }
}

/// The digest that `image` is the beginning of.
async fn known(client: &Client, image: &str) -> Result<String, Failure> {
    let none = || {
        Failure::new(format!("no image {image}: neither a file or folder here nor an imported image's digest"))
            .with_code(NOT_FOUND)
    };
    let like_a_digest = image.len() >= SHORTEST_DIGEST && image.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !like_a_digest {
        return Err(none());
    }
    let images: Vec<Image> = client.get("/images").await?.read()?;
    let mut digests = images.into_iter().map(|image| image.digest).filter(|digest| digest.starts_with(image));
    let digest = digests.next().ok_or_else(none)?;
    if digests.next().is_some() {
        return Err(Failure::new(format!("several images begin with {image}")));
    }
    Ok(digest)
}

/// Sends an image and waits until the daemon has made a disk of it.
async fn import(
    client: &Client,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    total_bytes: u64,
) -> Result<String, Failure> {
    Ok(post(client, "/images", chunks, Some(total_bytes)).await?.read::<Image>()?.digest)
}

/// Posts chunks, and shows how far that is.
async fn post(
    client: &Client,
    path: &str,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    total_bytes: Option<u64>,
) -> Result<Body, Failure> {
    let bar = progress::bytes("importing", total_bytes);
    let answer = client.post_stream(path, counted(chunks, bar.clone())).await;
    bar.finish_and_clear();
    Ok(answer?)
}

/// The chunks, counted by a bar. An archive is a little longer than the files in it; the bar then stays full.
fn counted(
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    bar: ProgressBar,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    stream::unfold((chunks, bar), |(mut chunks, bar)| async {
        let chunk = chunks.recv().await?;
        if let Ok(bytes) = &chunk {
            bar.set_position(bar.length().unwrap_or(u64::MAX).min(bar.position() + bytes.len() as u64));
        }
        Some((chunk, (chunks, bar)))
    })
}

/// Reads `source` in a thread of its own.
fn read(
    mut source: impl Read + Send + 'static,
) -> (mpsc::Receiver<io::Result<Bytes>>, tokio::task::JoinHandle<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let chunk = match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => Bytes::copy_from_slice(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // A receiver that is gone has its own reason.
                    let _ = sender.blocking_send(Err(error.kind().into()));
                    return Err(error);
                }
            };
            if sender.blocking_send(Ok(chunk)).is_err() {
                return Ok(()); // The daemon's answer says why it wants no more.
            }
        }
    });
    (receiver, reading)
}
