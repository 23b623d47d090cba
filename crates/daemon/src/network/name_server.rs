//! Who answers this host's questions for names, and its VMs'.

use std::fs;
use std::net::Ipv4Addr;

/// Where they are listed. The first of most hosts with systemd's resolver has nobody but itself, on the loopback, whom VMs
/// cannot reach; the second has those that it asks.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The first IPv4 name server that is not on the loopback; `None` when there is none, or none can be read.
pub(super) fn name_server() -> Option<Ipv4Addr> {
    FILES.iter().find_map(|path| first(&fs::read_to_string(path).ok()?))
}

fn first(resolv_conf: &str) -> Option<Ipv4Addr> {
    resolv_conf.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let server: Ipv4Addr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        (!server.is_loopback() && !server.is_unspecified()).then_some(server)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_server_that_a_vm_can_reach_is_taken() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 127.0.0.53\nnameserver ::1\n nameserver 192.0.2.1 # x\nnameserver 192.0.2.2\n";
        assert_eq!(first(text), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(first("nameserver 127.0.0.53\nnameserver 0.0.0.0\n"), None);
    }
}
