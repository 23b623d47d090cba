//! What is looked at without being run.

use crate::TaskError;
use crate::cargo::{cargo, root, target_dir};

/// Format, clippy, documentation; a warning is an error. The fuzz targets are a workspace of their own.
pub(crate) fn run() -> Result<(), TaskError> {
    crate::run(cargo().args(["fmt", "--all", "--check"]).current_dir(root()))?;
    crate::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).current_dir(root()))?;
    let fuzz = root().join("fuzz");
    crate::run(cargo().args(["fmt", "--check"]).current_dir(&fuzz))?;
    // In the same folder: they share most dependencies, and their profile.
    let mut clippy = cargo();
    clippy.args(["clippy", "--all-targets", "--target-dir"]).arg(target_dir());
    crate::run(clippy.args(["--", "-D", "warnings"]).current_dir(&fuzz))?;
    let document = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    crate::run(cargo().args(document).env("RUSTDOCFLAGS", "-D warnings").current_dir(root()))
}
