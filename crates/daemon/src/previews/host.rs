//! Which VM and port a name means, and which name a port of a VM has.

use std::net::SocketAddr;

/// The longest label of a name.
const MAX_LABEL: usize = 63;

/// Where previews are served.
#[derive(Debug)]
pub(crate) struct Front {
    domain: String,
    /// The TCP port, or in a sentence why there is none.
    port: Result<u16, String>,
}

impl Front {
    /// At this address; or not, in a sentence.
    pub(crate) fn new(domain: &str, address: Result<SocketAddr, String>) -> Self {
        Self { domain: domain.to_owned(), port: address.map(|address| address.port()) }
    }

    /// Where a port of a VM is seen, or why it is not.
    pub(crate) fn url(&self, name: &str, id: &str, port: u16, token: Option<&str>) -> Result<String, String> {
        let at = self.port.clone()?;
        let domain = &self.domain;
        let first_label = name.split('.').next().unwrap_or(name);
        let fits = format!("{port}-{first_label}").len() <= MAX_LABEL && !name.split('.').any(str::is_empty);
        let vm = if fits { name } else { id };
        let at = if at == 80 { String::new() } else { format!(":{at}") };
        let token = token.map(|token| format!("?{}={token}", super::access::TOKEN)).unwrap_or_default();
        Ok(format!("http://{port}-{vm}.{domain}{at}/{token}"))
    }
}

/// Checks a domain for names of previews.
pub(crate) fn check_domain(domain: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A browser takes what ends in a number for an address.
    let is_name = domain.split('.').next_back().is_some_and(|last| last.bytes().any(|byte| !byte.is_ascii_digit()));
    if domain.len() <= 180 && is_name && domain.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!("{domain:?} cannot be the domain of previews: labels of a-z, 0-9 and - can, with dots between"))
}

/// What a host name means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// A port of the VM of this name or id.
    Port(u16, &'a str),
    /// It is of our domain, and of no port.
    Nothing,
    /// It is of another domain.
    Foreign,
}

/// What `host`, in lower case and without a port, means where previews are of `domain`.
pub(super) fn meaning<'a>(host: &'a str, domain: &str) -> Meaning<'a> {
    let Some(label) = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')) else {
        return if host == domain { Meaning::Nothing } else { Meaning::Foreign };
    };
    let Some((port, name)) = label.split_once('-') else { return Meaning::Nothing };
    let is_number = !port.starts_with('0') && port.bytes().all(|byte| byte.is_ascii_digit());
    // An id looks like a name.
    let is_possible = crate::fleet::is_name(name);
    match port.parse() {
        Ok(port) if is_number && is_possible => Meaning::Port(port, name),
        _ => Meaning::Nothing,
    }
}

/// The host of an authority `host[:port]`, in lower case; none if it is no such thing.
pub(super) fn of_authority(authority: &str) -> Option<String> {
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let is_whole = port.is_none_or(is_port) && !host.is_empty() && host.bytes().all(is_host);
    is_whole.then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_name_means_one_port_of_one_vm_or_nothing() {
        let id = "0190a3c2-4f1e-7c3d-9f00-aabbccddeeff";
        let of_id = format!("80-{id}.localhost");
        for (host, expected) in [
            ("3000-web.localhost", Meaning::Port(3000, "web")),
            ("65535-base.1.2.localhost", Meaning::Port(65535, "base.1.2")),
            ("80-7-x.localhost", Meaning::Port(80, "7-x")),
            (&of_id, Meaning::Port(80, id)),
            ("localhost", Meaning::Nothing),
            ("web.localhost", Meaning::Nothing),
            ("0-web.localhost", Meaning::Nothing),
            ("080-web.localhost", Meaning::Nothing),
            ("+80-web.localhost", Meaning::Nothing),
            ("65536-web.localhost", Meaning::Nothing),
            ("80-.localhost", Meaning::Nothing),
            ("80--web.localhost", Meaning::Nothing),
            ("-web.localhost", Meaning::Nothing),
            ("3000-weblocalhost", Meaning::Foreign),
            ("3000-web.localhost.", Meaning::Foreign),
            ("3000-web.localhost.evil", Meaning::Foreign),
            ("evil", Meaning::Foreign),
            ("127.0.0.1", Meaning::Foreign),
        ] {
            assert_eq!(meaning(host, "localhost"), expected, "{host}");
        }
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for (authority, host) in [("A-b.C", Some("a-b.c")), ("a:80", Some("a"))] {
            assert_eq!(of_authority(authority).as_deref(), host);
        }
        for bad in ["", ":80", "a:", "a:b", "a:80:80", "a:65536", "a:+80", "u@a", "a/b", "[::1]:80", "a b", "a_b"] {
            assert_eq!(of_authority(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_url_leads_back_to_its_port_whatever_the_name() {
        let id = Uuid::now_v7().to_string();
        let front = Front::new("localhost", Ok(([127, 0, 0, 1], 7080).into()));
        for (name, vm) in [("web", "web"), ("base.1", "base.1"), (&*"x".repeat(63), &*id), ("a..b", &*id), ("a.", &*id)]
        {
            let url = front.url(name, &id, 3000, None).unwrap();
            assert_eq!(url, format!("http://3000-{vm}.localhost:7080/"));
            let authority = url.strip_prefix("http://").unwrap().strip_suffix('/').unwrap();
            assert_eq!(meaning(&of_authority(authority).unwrap(), "localhost"), Meaning::Port(3000, vm));
        }
        let front = Front::new("p.example", Ok(([0, 0, 0, 0], 80).into()));
        assert_eq!(front.url("web", &id, 80, Some("t")).unwrap(), "http://80-web.p.example/?pando-token=t");
        assert_eq!(Front::new("localhost", Err("off".into())).url("web", &id, 80, None), Err("off".into()));
    }

    #[test]
    fn a_domain_is_one_that_a_browser_takes_for_one() {
        for good in ["localhost", "p.example", "a-b.c1"] {
            assert!(check_domain(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "A", "a_b", "-a", "a-", "127.0.0.1", "a:80", &"a".repeat(64)] {
            assert!(check_domain(bad).is_err(), "{bad}");
        }
    }
}
