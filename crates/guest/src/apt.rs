//! Debian's package manager, with package lists of our own.
//!
//! The system's lists may be months old (an image of Debian comes with those of its day), and it takes root to renew them.
//! So whoever downloads fetches lists into a folder of their own first, from the sources that the system names, checked
//! with the keys that it has. Nothing of the system is changed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder with package lists.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// In `directory`, which is created. Call [`update`](Self::update) first.
    ///
    /// # Errors
    ///
    /// When it cannot be.
    pub fn new(directory: PathBuf) -> io::Result<Self> {
        // Apt makes neither by itself.
        fs::create_dir_all(directory.join("state/lists/partial"))?;
        fs::create_dir_all(directory.join("cache/archives/partial"))?;
        Ok(Self { directory })
    }

    /// Gets the lists of today: about 15 MB. Apt lists what it can, so after an error a package may be found all the
    /// same.
    ///
    /// # Errors
    ///
    /// Why not all are here, in one line.
    pub fn update(&self) -> Result<(), String> {
        run(self.command("apt-get").args(["-q", "update"])).map(drop)
    }

    /// What `package` depends on, one line each, as `apt-cache depends` prints it.
    pub(crate) fn depends(&self, package: &str) -> Result<String, String> {
        run(self.command("apt-cache").args(["depends", package]))
    }

    /// Downloads the archive of `package`.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf, String> {
        let into = self.directory.join(package);
        fs::create_dir_all(&into).map_err(|error| format!("cannot create {}: {error}", into.display()))?;
        run(self.command("apt-get").args(["-q", "download", package]).current_dir(&into))?;
        let files = fs::read_dir(&into).map_err(|error| format!("cannot read {}: {error}", into.display()))?;
        let mut paths = files.flatten().map(|entry| entry.path());
        paths.find(|path| path.extension().is_some_and(|it| it == "deb")).ok_or("apt downloaded nothing".into())
    }

    /// Downloads the archives of `packages` and of all that they depend on, as if nothing was installed. The
    /// folder they are in.
    ///
    /// # Errors
    ///
    /// Why not all are here, in one line.
    pub fn download_closure(&self, packages: &[&str]) -> Result<PathBuf, String> {
        let nothing = self.directory.join("nothing-installed");
        fs::write(&nothing, "").map_err(|error| format!("cannot write {}: {error}", nothing.display()))?;
        let mut install = self.command("apt-get");
        install.arg("-o").arg(format!("Dir::State::status={}", nothing.display()));
        // There is nothing to lock, and the lock of what is installed is the system's.
        install.args(["-q", "-y", "-o", "Debug::NoLocking=1", "--no-install-recommends", "--download-only", "install"]);
        run(install.args(packages))?;
        Ok(self.directory.join("cache/archives"))
    }

    fn command(&self, program: &str) -> Command {
        let set = |name: &str, value: &Path| format!("{name}={}", value.display());
        let mut command = Command::new(program);
        command.arg("-o").arg(set("Dir::State", &self.directory.join("state")));
        command.arg("-o").arg(set("Dir::State::status", Path::new("/var/lib/dpkg/status")));
        command.arg("-o").arg(set("Dir::Cache", &self.directory.join("cache")));
        // Root's apt downloads as another user, who may not write here.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }
}

/// Unpacks the package `archive` into `tree`.
pub(crate) fn unpack(archive: &Path, tree: &Path) -> Result<(), String> {
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(tree)).map(drop)
}

/// What a command prints, or why it did not work, in one line.
fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().map_err(|error| format!("cannot run {name}: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let why = words.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it did not say why");
        return Err(format!("{name}: {why}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
