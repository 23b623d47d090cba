//! A root file system of Debian with real programs, for the tests that look at those.

use crate::TaskError;
use crate::cargo::root;
use pando_guest::apt::Apt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What runs in it, without what these need.
const PACKAGES: [&str; 5] = ["busybox-static", "nginx-light", "postgresql", "nodejs", "git"];
/// What becomes of their archives.
const RECIPE: &str = "tests/debian/make.sh";

/// The image, as ext4, in the folder `cache`. It is made when there is none of these packages and this recipe: a minute,
/// and 120 MB to download. Whoever wants newer packages removes it.
pub(crate) fn image(cache: &Path) -> Result<PathBuf, TaskError> {
    let folder = cache.join("debian");
    let recipe = root().join(RECIPE);
    let text = fs::read(&recipe).map_err(at(&recipe))?;
    let mut stamp = DefaultHasher::new();
    (PACKAGES, text).hash(&mut stamp);
    let image = folder.join(format!("{:016x}.ext4", stamp.finish()));
    if image.exists() {
        return Ok(image);
    }
    eprintln!("making a Debian with {}", PACKAGES.join(", "));
    // What was left of another recipe, and of a run that was killed.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(at(&folder))?;
    }
    let work = folder.join("work");
    let apt = Apt::new(work.join("apt")).map_err(at(&work))?;
    let updated = apt.update();
    // Without lists, that apt does not know a package is no news.
    let archives = apt.download_closure(&PACKAGES).map_err(|why| TaskError::Debian(updated.err().unwrap_or(why)))?;
    let unnamed = work.join("image");
    crate::run(Command::new(&recipe).arg(work.join("tree")).arg(&unnamed).arg(archives))?;
    fs::rename(&unnamed, &image).map_err(at(&image))?;
    fs::remove_dir_all(&work).map_err(at(&work))?;
    Ok(image)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TaskError {
    let path = path.display().to_string();
    |source| TaskError::File { path, source }
}
