//! `/etc/resolv.conf` and `/etc/hosts`.

use pando_wire::network::Network;
use std::{fs, io, path::Path};

/// Ends the line of `/etc/hosts` that is ours to change.
const OURS: &str = "# this machine, by Pando";

/// Has programs ask who knows names.
///
/// What an image has there is of the place where it was built, so it is overwritten at every start, as Docker does. A
/// link to something is a choice and stays; one to nothing (whoever would make its target does not run) is replaced.
pub(super) fn write_resolver(root: &Path, network: &Network) -> io::Result<()> {
    let path = root.join("etc/resolv.conf");
    let is_link = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
    if !root.join("etc").is_dir() || (is_link && path.exists()) {
        return Ok(());
    }
    if is_link {
        fs::remove_file(&path)?;
    }
    let why = "Written by Pando at every start. A link to a file of your own is left alone.";
    fs::write(path, format!("# {why}\nnameserver {}\n", network.name_server))
}

/// Has programs find `localhost` and the machine's own name in `/etc/hosts`. Lines of others are left alone.
pub(crate) fn know_yourself(root: &Path, name: &str) -> io::Result<()> {
    let etc = root.join("etc");
    if !etc.is_dir() {
        return Ok(()); // Nobody looks there.
    }
    // Where a link leads to.
    let path = etc.join("hosts").canonicalize().unwrap_or_else(|_| etc.join("hosts"));
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let after = hosts(&before, name);
    if after == before {
        return Ok(());
    }
    // Programs of a child run, and must not find half of it. What is mounted there is not replaced, but written to.
    let temporary = path.with_file_name(".hosts.pando");
    fs::write(&temporary, &after)?;
    if let Ok(metadata) = fs::metadata(&path) {
        fs::set_permissions(&temporary, metadata.permissions())?;
    }
    fs::rename(&temporary, &path).or_else(|_| {
        let _ = fs::remove_file(&temporary);
        fs::write(&path, &after)
    })
}

/// `before`, with what is missing.
fn hosts(before: &str, name: &str) -> String {
    let kept: Vec<_> = before.lines().filter(|line| !line.trim_end().ends_with(OURS)).collect();
    let has = |address: Option<&str>, name: &str| {
        kept.iter().any(|line| {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let its = words.next();
            address.is_none_or(|address| its == Some(address)) && words.any(|word| word == name)
        })
    };
    let mut missing = Vec::new();
    if !has(Some("127.0.0.1"), "localhost") {
        missing.push("127.0.0.1\tlocalhost".to_owned());
    }
    if !has(Some("::1"), "localhost") {
        missing.push("::1\tlocalhost ip6-localhost ip6-loopback".to_owned());
    }
    if !name.is_empty() && name != "localhost" && !has(None, name) {
        missing.push(format!("127.0.1.1\t{name}\t{OURS}"));
    }
    kept.into_iter().map(str::to_owned).chain(missing).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root_with(file: &str, text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc").join(file), text).unwrap();
        root
    }

    fn resolver(root: &tempfile::TempDir) -> String {
        write_resolver(root.path(), &Network::GUEST).unwrap();
        fs::read_to_string(root.path().join("etc/resolv.conf")).unwrap()
    }

    #[test]
    fn what_an_image_knew_where_it_was_built_is_overwritten() {
        let root = root_with("resolv.conf", "nameserver 127.0.0.53\n");
        assert!(resolver(&root).ends_with("\nnameserver 192.168.241.1\n"));
        assert!(!resolver(&root).contains("127.0.0.53"));
        fs::remove_file(root.path().join("etc/resolv.conf")).unwrap();
        assert!(resolver(&root).contains("192.168.241.1"));
    }

    #[test]
    fn a_link_to_something_stays_and_one_to_nothing_is_replaced() {
        let root = root_with("mine", "nameserver 9.9.9.9\n");
        let link = root.path().join("etc/resolv.conf");
        symlink("mine", &link).unwrap();
        assert_eq!(resolver(&root), "nameserver 9.9.9.9\n");
        fs::remove_file(&link).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", &link).unwrap();
        assert!(resolver(&root).contains("192.168.241.1"));
        assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn an_image_without_etc_is_left_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        write_resolver(root.path(), &Network::GUEST).unwrap();
        know_yourself(root.path(), "a").unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_machine_knows_itself_and_localhost_also_without_a_file() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        know_yourself(root.path(), "base").unwrap();
        let text = fs::read_to_string(root.path().join("etc/hosts")).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>()).collect();
        assert_eq!(lines, [["127.0.0.1", "localhost"], ["::1", "localhost"], ["127.0.1.1", "base"]]);
    }

    #[test]
    fn a_twin_takes_its_parents_name_out_and_leaves_all_other_lines_alone() {
        let mine = "127.0.0.1 localhost # mine\n10.0.0.1\tdb\n127.0.1.1 base.example\n::1 localhost\n";
        let base = hosts(mine, "base");
        assert_eq!(base, format!("{mine}127.0.1.1\tbase\t{OURS}\n"));
        let twin = hosts(&base, "twin");
        assert_eq!(twin, format!("{mine}127.0.1.1\ttwin\t{OURS}\n"));
        assert_eq!(hosts(&twin, "twin"), twin);
    }

    #[test]
    fn a_name_that_the_image_has_a_line_for_is_its_own_affair() {
        let mine = "127.0.0.1 localhost\n::1 localhost\n192.168.241.2 base\n";
        assert_eq!(hosts(mine, "base"), mine);
        // But not in a remark.
        assert!(hosts("127.0.0.1 localhost # base\n", "base").contains("127.0.1.1\tbase"));
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_link_stays_one() {
        use std::os::unix::fs::PermissionsExt;
        let root = root_with("real", "");
        let (real, link) = (root.path().join("etc/real"), root.path().join("etc/hosts"));
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        know_yourself(root.path(), "base").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().contains("base"));
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
