//! One side of a copy, as it is typed.

use std::path::PathBuf;
use std::str::FromStr;

/// Where something is copied from or to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// In a VM.
    Vm {
        /// Its name or id.
        vm: String,
        /// An absolute path.
        path: String,
    },
    /// On this computer; `-` is a standard stream.
    Local(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    /// A colon before any slash makes a VM of what is before it.
    fn from_str(text: &str) -> Result<Self, String> {
        // What a shell makes of a variable that is not set.
        if text.is_empty() || text.starts_with(':') {
            return Err("it has no name in front of the colon, and is no path; a path like that starts with ./".into());
        }
        let Some((vm, path)) = text.split_once(':').filter(|(vm, _)| !vm.contains('/')) else {
            return Ok(Self::Local(text.into()));
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self::Vm { vm: vm.to_owned(), path })
    }
}

/// The folder that holds `path`, and the name in it; `None` for the root and for what ends in `.` or `..`.
pub(super) fn parent_and_name(path: &str) -> Option<(String, String)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/')?;
    if matches!(name, "" | "." | "..") {
        return None;
    }
    Some((if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_names_a_vm() {
        let vm = |vm: &str, path: &str| Endpoint::Vm { vm: vm.to_owned(), path: path.to_owned() };
        assert_eq!("web:/etc".parse(), Ok(vm("web", "/etc")));
        assert_eq!("web:etc/a:b".parse(), Ok(vm("web", "/etc/a:b")));
        assert_eq!("web:".parse(), Ok(vm("web", "/")));
        for local in ["./a:b", "/a:b", "a", "-", "./:a"] {
            assert_eq!(local.parse(), Ok(Endpoint::Local(local.into())), "{local}");
        }
        for wrong in ["", ":a"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_in_a_vm_has_a_folder_and_a_name() {
        let both = |parent: &str, name: &str| Some((parent.to_owned(), name.to_owned()));
        assert_eq!(parent_and_name("/srv/www/"), both("/srv", "www"));
        assert_eq!(parent_and_name("/srv"), both("/", "srv"));
        assert_eq!(parent_and_name("/"), None);
        assert_eq!(parent_and_name("/srv/.."), None);
    }
}
