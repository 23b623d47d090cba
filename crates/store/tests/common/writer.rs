//! Writes into a store for a test.
//!
//! ```text
//! store-test-writer churn DIRECTORY NAME TMP  writes, removes and collects until it is killed, and says what it did
//! store-test-writer collect DIRECTORY NAME TMP   the same, and collects each time
//! store-test-writer import DIRECTORY NAME TMP    imports what it has written elsewhere, until it is killed
//! store-test-writer pull DIRECTORY NAME ENDPOINT PREFIX   fetches a checkpoint, and waits to be killed
//! store-test-writer fill DIRECTORY           writes until that fails, and says why
//! store-test-writer read DIRECTORY NAME      reads and exports a checkpoint, and says so
//! store-test-writer hold DIRECTORY NAME      opens a checkpoint, says so, and waits for its standard input to end
//! ```
#![expect(clippy::unwrap_used, reason = "a part of tests")]

#[path = "pages.rs"]
mod common;

use pando_store::{PAGE_BYTES, Store, WriteError};
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["churn", directory, name, _] => churn(Path::new(directory), name, 4),
        ["collect", directory, name, _] => churn(Path::new(directory), name, 1),
        ["import", directory, name, elsewhere] => import(Path::new(directory), name, Path::new(elsewhere)),
        #[cfg(feature = "bucket")]
        ["pull", directory, name, endpoint, prefix] => pull(Path::new(directory), name, endpoint, prefix),
        ["fill", directory] => fill(Path::new(directory)),
        ["read", directory, name] => read(Path::new(directory), name),
        ["hold", directory, name] => {
            let store = Store::open(Path::new(directory))?;
            let open = store.open_checkpoint(name)?;
            println!("open {}", open.checkpoint().name);
            std::io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
        _ => Err("see the beginning of tests/common/writer.rs".into()),
    }
}

/// Keeps the latest three of its checkpoints, and collects after each so many.
fn churn(directory: &Path, name: &str, collect_after: u64) -> Result<(), Box<dyn Error>> {
    let store = Store::create(directory)?;
    println!("begun");
    for number in 0u64.. {
        let checkpoint = format!("{name}-{number}");
        println!("now publishing");
        common::publish(&store, &checkpoint, common::CHURN_PAGES, &common::churned(&checkpoint))?;
        println!("done {checkpoint}");
        if let Some(old) = number.checked_sub(3) {
            println!("removing {name}-{old}");
            store.remove(&format!("{name}-{old}"))?;
        }
        if number % collect_after == collect_after - 1 {
            println!("now collecting");
            store.collect()?;
        }
    }
    Ok(())
}

fn import(directory: &Path, name: &str, elsewhere: &Path) -> Result<(), Box<dyn Error>> {
    let (store, other) = (Store::create(directory)?, Store::create(&elsewhere.join(name))?);
    for number in 0u64.. {
        let checkpoint = format!("{name}-{number}");
        common::publish(&other, &checkpoint, common::CHURN_PAGES, &common::churned(&checkpoint))?;
        let mut export = Vec::new();
        other.export(&[&checkpoint], &mut export)?;
        println!("now importing");
        store.import(&export[..])?;
        println!("done {checkpoint}");
        println!("now starting");
    }
    Ok(())
}

fn fill(directory: &Path) -> Result<(), Box<dyn Error>> {
    let store = Store::open(directory)?;
    for number in 0u64.. {
        let name = format!("fill-{number}");
        // Pages that do not compress, and that no other checkpoint has.
        let pages = (0..64).map(|at| (at, 2 * (1000 * (number + 1) + at) + 1)).collect();
        match common::publish(&store, &name, 64, &pages) {
            Ok(_) => println!("done {name}"),
            Err(error @ WriteError::File(_)) => {
                let cause = error.source().and_then(|error| error.source()).or(error.source());
                println!("failed {error}: {}", cause.map_or_else(String::new, |cause| cause.to_string()));
                return read_while_full(directory);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Fills what is left of the disk, reads, and makes room again.
fn read_while_full(directory: &Path) -> Result<(), Box<dyn Error>> {
    let ballast = directory.join("ballast");
    let mut file = File::create(&ballast)?;
    while file.write_all(&[1; 512]).is_ok() {}
    read(directory, "kept")?;
    Ok(std::fs::remove_file(ballast)?)
}

fn read(directory: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let store = Store::open(directory)?;
    let memory = store.open_checkpoint(name)?.memory()?.ok_or("no memory")?;
    let mut bytes = [0; PAGE_BYTES];
    (0..memory.pages()).try_for_each(|page| memory.read_page(page, &mut bytes).map(drop))?;
    store.export(&[name], std::io::sink())?;
    println!("read {name}");
    Ok(())
}

#[cfg(feature = "bucket")]
fn pull(directory: &Path, name: &str, endpoint: &str, prefix: &str) -> Result<(), Box<dyn Error>> {
    let variable = |variable: &str| match variable {
        "AWS_ENDPOINT_URL" => Some(endpoint.to_owned()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("somebody".to_owned()),
        _ => None,
    };
    let spec = pando_store::BucketSpec::new(&format!("s3://pando-test/{prefix}"), variable)?;
    let (store, bucket) = (Store::open(directory)?, pando_store::Bucket::new(&spec)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    println!("now pulling");
    runtime.block_on(bucket.pull(&store, name))?;
    println!("done {name}");
    std::thread::sleep(std::time::Duration::from_secs(60));
    Ok(())
}
