//! `/etc/passwd` and `/etc/group`: who a program runs as.
//!
//! Read by ourselves, since a static binary has no name service; users from elsewhere (LDAP) have only their numbers.

use crate::failure;
use pando_wire::agent::{Failure, FailureKind};
use std::{fs, path::Path};

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// Supplementary group ids.
    pub(crate) groups: Vec<u32>,
    /// For `HOME`.
    pub(crate) home: String,
}

/// Looks `user` up in the files below `root`; see [`pando_wire::agent::Exec::user`]. Missing files are empty ones.
pub(crate) fn find(root: &Path, user: Option<&str>) -> Result<Credentials, Failure> {
    let read = |name| fs::read(root.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    resolve(user.unwrap_or("0"), &read("etc/passwd").unwrap_or_default(), &read("etc/group").unwrap_or_default())
}

/// `user` is `name`, `uid`, `name:group` or `uid:gid`, a group being a name or a number.
fn resolve(user: &str, passwd: &str, group: &str) -> Result<Credentials, Failure> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let users = || passwd.lines().filter_map(User::parse);
    let groups = || group.lines().filter_map(Group::parse);

    // A name that is all digits is a number: so say POSIX tools.
    let number = id(user);
    let known = match number {
        Some(uid) => users().find(|known| known.uid == uid),
        None => users().find(|known| known.name == user),
    };
    let Some(uid) = number.or(known.as_ref().map(|known| known.uid)) else {
        return Err(failure::of(FailureKind::NotFound, format!("there is no user {user:?} in /etc/passwd")));
    };
    let gid = match wanted_group {
        // Without an entry it is root's, as with Docker: images that set a bare number count on it.
        None => known.as_ref().map_or(0, |known| known.gid),
        Some(wanted) => match id(wanted).or_else(|| groups().find(|known| known.name == wanted).map(|known| known.gid))
        {
            Some(gid) => gid,
            None => {
                return Err(failure::of(FailureKind::NotFound, format!("there is no group {wanted:?} in /etc/group")));
            }
        },
    };
    // As Docker has it: an explicit group is the only one.
    let mut supplementary = Vec::new();
    if let (Some(known), None) = (&known, wanted_group) {
        supplementary.extend(groups().filter(|group| group.has(known.name)).map(|group| group.gid));
        supplementary.retain(|other| *other != gid);
        supplementary.sort_unstable();
        supplementary.dedup();
    }
    let home = known.map(|known| known.home).filter(|home| !home.is_empty());
    Ok(Credentials {
        uid,
        gid,
        groups: supplementary,
        home: home.unwrap_or(if uid == 0 { "/root" } else { "/" }).to_owned(),
    })
}

/// A numeric id. `u32::MAX` is none: to `setresuid` it means "leave it", which here would be root.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> User<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let (_comment, home) = (fields.next()?, fields.next()?);
        Some(Self { name, uid, gid, home })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password, gid) = (fields.next()?, fields.next()?, id(fields.next()?)?);
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nana:x:1000:100:Ana,,,:/home/ana:/bin/bash\n\
                          max:x:4294967295:4294967295::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:ana\nwheel:x:10:bob,ana\nnobody-there:x:12:\n";

    fn ids(user: &str) -> (u32, u32, Vec<u32>) {
        let found = resolve(user, PASSWD, GROUP).unwrap();
        (found.uid, found.gid, found.groups)
    }

    #[test]
    fn a_name_brings_its_groups_and_its_home() {
        assert_eq!(ids("ana"), (1000, 100, vec![10]));
        assert_eq!(resolve("ana", PASSWD, GROUP).unwrap().home, "/home/ana");
    }

    #[test]
    fn numbers_need_no_entry_and_take_what_an_entry_says() {
        assert_eq!(ids("1000"), (1000, 100, vec![10]));
        assert_eq!(ids("4711"), (4711, 0, vec![]));
        assert_eq!(ids("4711:12"), (4711, 12, vec![]));
        assert_eq!(resolve("0", "", "").unwrap(), Credentials { uid: 0, gid: 0, groups: vec![], home: "/root".into() });
    }

    #[test]
    fn a_named_group_is_the_only_one() {
        assert_eq!(ids("ana:wheel"), (1000, 10, vec![]));
    }

    #[test]
    fn who_is_not_there_is_not_found() {
        for user in ["eve", "ana:nope", "", "-1"] {
            assert_eq!(resolve(user, PASSWD, GROUP).unwrap_err().kind, FailureKind::NotFound, "{user:?}");
        }
    }

    #[test]
    fn the_id_that_means_leave_it_is_never_used() {
        for user in ["max", "4294967295", "0:4294967295"] {
            assert!(resolve(user, PASSWD, GROUP).is_err(), "{user:?}");
        }
    }
}
