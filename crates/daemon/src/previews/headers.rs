//! What goes on to the other side: without what is about one connection alone (RFC 9110, 7.6.1), and without what only a
//! proxy may say.

use super::access;
use hyper::HeaderMap;
use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, SET_COOKIE, UPGRADE};
use std::net::IpAddr;

/// What is about a connection, also when `Connection` does not say so.
const OF_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("te"),
    HeaderName::from_static("transfer-encoding"),
    UPGRADE,
];

/// What a client cannot say of itself. All that begins so is removed.
const FORWARDED: [&str; 3] = ["forwarded", "x-forwarded-", "x-real-ip"];

/// Makes a client's headers those of a request to a guest: `host` is where it wanted to, `from` who it is. The protocol
/// that it wants instead of HTTP is asked for if there is one, and is the answer.
pub(super) fn to_guest(headers: &mut HeaderMap, host: &HeaderValue, from: IpAddr) -> Option<HeaderValue> {
    let protocol = wanted(headers);
    remove_of_connection(headers);
    let claims = |name: &HeaderName| FORWARDED.iter().any(|claim| name.as_str().starts_with(claim));
    let claimed: Vec<_> = headers.keys().filter(|name| claims(name)).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    // We say it to the client ourselves, when the guest's connection is there.
    headers.remove(EXPECT);
    headers.insert(HOST, host.clone());
    headers.insert("x-forwarded-host", host.clone());
    headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    // An address is printable ASCII.
    if let Ok(from) = HeaderValue::from_str(&from.to_canonical().to_string()) {
        headers.insert("x-forwarded-for", from);
    }
    if let Some(protocol) = &protocol {
        ask_for(headers, protocol);
    }
    protocol
}

/// Makes a guest's headers those of an answer to a client.
pub(super) fn to_client(headers: &mut HeaderMap) {
    remove_of_connection(headers);
    let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().cloned().collect();
    if cookies.iter().any(access::is_about_token) {
        headers.remove(SET_COOKIE);
        for cookie in cookies.into_iter().filter(|cookie| !access::is_about_token(cookie)) {
            headers.append(SET_COOKIE, cookie);
        }
    }
}

/// Says that the connection is to be another protocol's.
pub(super) fn ask_for(headers: &mut HeaderMap, protocol: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol.clone());
}

/// The protocol that a client wants. HTTP/2 is none: in it requests would go by without being looked at.
fn wanted(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_asked = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| is_asked)?;
    let is_http = protocol.as_bytes().split(|&byte| byte == b',').any(|name| {
        let name = name.trim_ascii();
        name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"h2"))
            || name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"http"))
    });
    (!is_http).then(|| protocol.clone())
}

fn remove_of_connection(headers: &mut HeaderMap) {
    let named: Vec<_> = tokens(headers).filter_map(|token| token.parse::<HeaderName>().ok()).collect();
    // What frames a message or says where it goes is about more than a connection, whatever a client says.
    let named = named.into_iter().filter(|name| ![HOST, CONTENT_LENGTH].contains(name));
    for name in named.chain(OF_CONNECTION) {
        headers.remove(name);
    }
}

/// What `Connection` names.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn what_is_about_a_connection_or_claimed_does_not_go_on() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Hop, content-length, host"),
            ("x-hop", "1"),
            ("x-kept", "1"),
            ("content-length", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-port", "1"),
            ("x-real-ip", "10.0.0.1"),
        ]);
        let host = HeaderValue::from_static("80-web.localhost");
        assert_eq!(to_guest(&mut map, &host, "::ffff:127.0.0.1".parse().unwrap()), None);
        let mut left: Vec<_> = map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        let expected = [
            "content-length: 3",
            "host: 80-web.localhost",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: 80-web.localhost",
            "x-forwarded-proto: http",
            "x-kept: 1",
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn another_protocol_is_asked_for_and_http_2_is_none() {
        let host = HeaderValue::from_static("a");
        for (connection, upgrade, expected) in [
            ("keep-alive, Upgrade", "websocket", Some("websocket")),
            ("upgrade", "other/2", Some("other/2")),
            ("keep-alive", "websocket", None),
            ("upgrade", "h2c", None),
            ("upgrade", "websocket, H2c", None),
            ("upgrade", "HTTP/2.0", None),
        ] {
            let mut map = headers(&[("connection", connection), ("upgrade", upgrade), ("http2-settings", "x")]);
            let protocol = to_guest(&mut map, &host, "127.0.0.1".parse().unwrap());
            let asked = map.get(UPGRADE).map(|value| value.to_str().unwrap());
            assert_eq!(
                (protocol.is_some(), asked, map.contains_key(CONNECTION)),
                (expected.is_some(), expected, asked.is_some())
            );
            assert!(!map.contains_key("http2-settings"));
        }
    }

    #[test]
    fn a_guest_sets_its_cookies_and_not_ours() {
        let mut map =
            headers(&[("set-cookie", "a=1"), ("set-cookie", " pando-token =x; Path=/"), ("set-cookie", "b=2")]);
        to_client(&mut map);
        assert_eq!(map.get_all(SET_COOKIE).iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    }
}
