//! Ports of the host that are to be ports of the VM, as they are typed.

use pando_wire::api::{Publish, Published};
use std::net::{IpAddr, Ipv4Addr};

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Options {
    /// A TCP port of this computer that is to be port GUEST of the VM. HOST is a free one when absent or 0, ADDRESS
    /// is 127.0.0.1.
    #[arg(short, long, value_name = "[ADDRESS:]HOST:GUEST", value_parser = port, help_heading = "Network")]
    pub(super) publish: Vec<Publish>,
}

/// A port: `8080:80`, `127.0.0.1:9000:9000`, `[::1]:8080:80`, or `80` and `127.0.0.1::80` for a free one of the host.
fn port(text: &str) -> Result<Publish, String> {
    let wrong = || format!("{text:?} is no [ADDRESS:]HOST:GUEST such as 8080:80 or 127.0.0.1:9000:9000");
    let number = |text: &str| {
        let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_digits).ok_or_else(wrong)
    };
    let ports = match text.split_once('/') {
        None | Some((_, "tcp")) => text.trim_end_matches("/tcp"),
        Some((_, "udp")) => return Err(format!("{text:?} is of UDP, and only ports of TCP are published")),
        Some(_) => return Err(wrong()),
    };
    let (host, guest) = match ports.rsplit_once(':') {
        None => (None, number(ports)?),
        Some((host, guest)) => (Some(host), number(guest)?),
    };
    if guest == 0 {
        return Err(format!("{text:?} asks for port 0 of the VM: 1 to 65535 are"));
    }
    let (address, host_port) = match host.map(|host| host.rsplit_once(':').ok_or(host)) {
        None => (Ipv4Addr::LOCALHOST.into(), 0),
        Some(Err(host_port)) => (Ipv4Addr::LOCALHOST.into(), number(host_port)?),
        Some(Ok((address, ""))) => (of_host(address).ok_or_else(wrong)?, 0),
        Some(Ok((address, host_port))) => (of_host(address).ok_or_else(wrong)?, number(host_port)?),
    };
    Ok(Publish { address, host_port, guest_port: guest })
}

/// An address; one of IPv6 is in brackets.
fn of_host(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) => inside.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

/// What is to be said of ports whose number was not asked for: `wanted` are those that were.
pub(super) fn chosen(wanted: &[Publish], published: &[Published]) -> Vec<String> {
    let was_asked_for = |port: &&Published| {
        let of = (port.address, port.host_port);
        !wanted.iter().any(|wanted| (wanted.address, wanted.host_port) == of)
    };
    published.iter().filter(was_asked_for).map(|port| format!("published {port}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_typed_as_it_is_for_containers() {
        let at =
            |address: &str, host_port, guest_port| Publish { address: address.parse().unwrap(), host_port, guest_port };
        for (text, expected) in [
            ("80", at("127.0.0.1", 0, 80)),
            ("0:80", at("127.0.0.1", 0, 80)),
            ("8080:80", at("127.0.0.1", 8080, 80)),
            ("8080:80/tcp", at("127.0.0.1", 8080, 80)),
            ("0.0.0.0:8080:80", at("0.0.0.0", 8080, 80)),
            ("127.0.0.1::80", at("127.0.0.1", 0, 80)),
            ("[::1]:8080:80", at("::1", 8080, 80)),
            ("[::]::80", at("::", 0, 80)),
        ] {
            assert_eq!(port(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused_in_one_sentence() {
        for text in [
            "",
            ":",
            ":80",
            "80:",
            "http",
            "8080:http",
            "65536",
            "8080:65536",
            "-1:80",
            "+80",
            "1:2:3:4",
            "::1:8080:80",
            "localhost:8080:80",
            "127.0.0.1:80",
            "[127.0.0.1]:1:80",
            "8080-8081:80",
            "80/sctp",
            "80/tcp/tcp",
            "80 ",
        ] {
            let expected = format!("{text:?} is no [ADDRESS:]HOST:GUEST such as 8080:80 or 127.0.0.1:9000:9000");
            assert_eq!(port(text), Err(expected));
        }
        assert_eq!(port("53:53/udp"), Err("\"53:53/udp\" is of UDP, and only ports of TCP are published".to_owned()));
        assert_eq!(port("8080:0"), Err("\"8080:0\" asks for port 0 of the VM: 1 to 65535 are".to_owned()));
    }

    #[test]
    fn a_port_that_was_chosen_is_told_and_one_that_was_asked_for_is_not() {
        let published = |host_port, guest_port| Published {
            address: Ipv4Addr::LOCALHOST.into(),
            host_port,
            guest_port,
            problem: None,
        };
        let wanted = [Publish::on_loopback(8080, 80), Publish::on_loopback(0, 81)];
        assert_eq!(
            chosen(&wanted, &[published(8080, 80), published(40001, 81)]),
            ["published 127.0.0.1:40001 -> 81\n"]
        );
    }
}
