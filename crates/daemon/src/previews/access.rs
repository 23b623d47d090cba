//! Who is let in: everybody where the port is public, else who has its token.
//!
//! The token comes in a URL once, becomes a cookie, and is gone from the URL; or it is a header. Nothing of it reaches the
//! guest, whose programs could otherwise pass it on, and a guest cannot set it.

use super::page::Page;
use crate::db::OpenPort;
use hyper::header::{
    CACHE_CONTROL, COOKIE, HOST, HeaderName, HeaderValue, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE,
};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{HeaderMap, Method, Response, StatusCode};

/// What header, cookie and parameter are called.
pub(super) const TOKEN: &str = "pando-token";
const TOKEN_HEADER: HeaderName = HeaderName::from_static(TOKEN);

/// What becomes of a request.
pub(super) enum Verdict {
    /// It goes on, and nothing of the token is in it.
    Admitted,
    /// The token in its URL was right: it is to come again, with the cookie.
    Redirected(Response<super::body::Answer>),
    /// It does not.
    Refused(Page),
}

/// Judges a request for `port` of `vm`, and takes out of it what is not the guest's business. An answer to somebody who
/// is not let in does not depend on whether the port is open.
pub(super) fn judge(parts: &mut Parts, vm: &str, port: u16, open: Option<&OpenPort>) -> Verdict {
    let cookies = take_cookies(&mut parts.headers);
    let header = parts.headers.remove(TOKEN_HEADER);
    let (path, in_url) = without_token(parts.uri.path_and_query());
    parts.uri = path.clone().into();
    let refused = || {
        let advice = format!("Who may use the VM gets a URL that opens it: pando port {vm} {port}");
        Verdict::Refused(Page::new(StatusCode::UNAUTHORIZED, format!("port {port} of {vm} is not open to you"), advice))
    };
    let Some(open) = open else { return refused() };
    if open.is_public {
        return Verdict::Admitted;
    }
    let right = blake3::hash(open.token.as_bytes());
    // `blake3::Hash` compares in constant time.
    let is_right = |token: &[u8]| blake3::hash(token) == right;
    if let Some(token) = in_url {
        let asks_for_page =
            [Method::GET, Method::HEAD].contains(&parts.method) && !parts.headers.contains_key("upgrade");
        return match is_right(token.as_bytes()) {
            true if asks_for_page => Verdict::Redirected(redirect(&open.token, &path)),
            true => Verdict::Admitted,
            false => refused(),
        };
    }
    let by_header = header.is_some_and(|token| is_right(token.as_bytes()));
    let by_cookie = || is_same_origin(&parts.method, &parts.headers) && cookies.iter().any(|token| is_right(token));
    if by_header || by_cookie() { Verdict::Admitted } else { refused() }
}

/// Whether a guest may not say that to a client: it is about the token.
pub(super) fn is_about_token(set_cookie: &HeaderValue) -> bool {
    let name = set_cookie.as_bytes().split(|&byte| byte == b'=').next().unwrap_or_default();
    name.trim_ascii() == TOKEN.as_bytes()
}

/// Whether a browser that sends a cookie does so for a page of this very name, or for who goes there. Names of forks
/// (`base.1`, `web.1`) look to a browser like one site, and what is in one VM shall not use another with its user's cookie.
fn is_same_origin(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    if let Some(site) = text("sec-fetch-site") {
        let goes_there = text("sec-fetch-mode") == Some(b"navigate") && [Method::GET, Method::HEAD].contains(method);
        return matches!(site, b"same-origin" | b"none") || goes_there;
    }
    let (Some(origin), Some(host)) = (headers.get(ORIGIN), headers.get(HOST)) else { return true };
    let origin = origin.as_bytes();
    let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_bytes()))
}

/// Takes the token's cookies out of the others, which become one header.
fn take_cookies(headers: &mut HeaderMap) -> Vec<Vec<u8>> {
    let (mut tokens, mut others) = (Vec::new(), Vec::new());
    for header in headers.get_all(COOKIE) {
        for pair in header.as_bytes().split(|&byte| byte == b';').map(<[u8]>::trim_ascii) {
            match pair.iter().position(|&byte| byte == b'=') {
                Some(at) if pair[..at].trim_ascii() == TOKEN.as_bytes() => tokens.push(pair[at + 1..].to_vec()),
                _ if pair.is_empty() => (),
                _ => others.push(pair.to_vec()),
            }
        }
    }
    headers.remove(COOKIE);
    // It was made of values that can be values.
    if let (false, Ok(value)) = (others.is_empty(), HeaderValue::from_bytes(&others.join(&b"; "[..]))) {
        headers.insert(COOKIE, value);
    }
    tokens
}

/// A path without the token in its query, and that token.
fn without_token(path: Option<&PathAndQuery>) -> (PathAndQuery, Option<String>) {
    let root = || PathAndQuery::from_static("/");
    let Some(path) = path else { return (root(), None) };
    let Some(query) = path.query() else { return (path.clone(), None) };
    let token = |pair: &str| pair.strip_prefix(TOKEN).and_then(|rest| rest.strip_prefix('=')).map(str::to_owned);
    let Some(found) = query.split('&').find_map(token) else { return (path.clone(), None) };
    let rest: Vec<_> = query.split('&').filter(|pair| token(pair).is_none()).collect();
    let whole = match rest.is_empty() {
        true => path.path().to_owned(),
        false => format!("{}?{}", path.path(), rest.join("&")),
    };
    (whole.parse().unwrap_or_else(|_| root()), Some(found))
}

/// To the same place without the token, which is a cookie from there on: of this name alone, and not for scripts.
fn redirect(token: &str, path: &PathAndQuery) -> Response<super::body::Answer> {
    let mut response = Response::new(super::body::Answer::whole(""));
    *response.status_mut() = StatusCode::SEE_OTHER;
    let path = path.as_str();
    // What begins with two slashes would be another host.
    let is_host = path.starts_with("//") || path.starts_with("/\\");
    let location = if is_host { format!("/.{path}") } else { path.to_owned() };
    let cookie = format!("{TOKEN}={token}; Path=/; HttpOnly; SameSite=Lax");
    let headers = response.headers_mut();
    for (name, value) in [(LOCATION, location), (SET_COOKIE, cookie)] {
        // A path and a token are printable ASCII.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    const RIGHT: &str = "00112233445566778899aabbccddeeff";

    fn open(is_public: bool) -> OpenPort {
        OpenPort { port: 80, token: RIGHT.into(), is_public }
    }

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri).header(HOST, "80-web.localhost:7080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn outcome(parts: &mut Parts, open: Option<&OpenPort>) -> String {
        match judge(parts, "web", 80, open) {
            Verdict::Admitted => format!("in {}", parts.uri),
            Verdict::Redirected(to) => format!("to {}", to.headers()[LOCATION].to_str().unwrap()),
            Verdict::Refused(_) => "out".to_owned(),
        }
    }

    #[test]
    fn the_token_lets_in_by_url_header_and_cookie_and_nothing_else_does() {
        let cookie = format!("a=1; {TOKEN}={RIGHT}; b=2");
        let in_url = format!("/a?x=1&{TOKEN}={RIGHT}&y=2");
        let cases: [(_, &str, &[_], _); 12] = [
            ("GET", &in_url, &[], "to /a?x=1&y=2"),
            ("POST", &in_url, &[], "in /a?x=1&y=2"),
            ("GET", &in_url, &[("upgrade", "websocket")], "in /a?x=1&y=2"),
            ("GET", "/a?pando-token=wrong", &[("cookie", &cookie)], "out"),
            ("GET", "/a?b", &[(TOKEN, RIGHT)], "in /a?b"),
            ("GET", "/a", &[(TOKEN, "wrong")], "out"),
            ("GET", "/a", &[("cookie", &cookie)], "in /a"),
            ("GET", "/a", &[("cookie", "pando-token=wrong"), ("cookie", &cookie)], "in /a"),
            ("GET", "/a", &[("cookie", "pando-token=")], "out"),
            ("GET", "/a", &[("authorization", "Bearer x")], "out"),
            ("GET", &format!("//evil/?{TOKEN}={RIGHT}"), &[], "to /.//evil/"),
            ("GET", "/a", &[], "out"),
        ];
        for (method, uri, headers, expected) in cases {
            let mut parts = request(method, uri, headers);
            assert_eq!(outcome(&mut parts, Some(&open(false))), expected, "{method} {uri} {headers:?}");
            assert!(!format!("{parts:?}").contains(RIGHT), "{parts:?}");
            assert_eq!(outcome(&mut request(method, uri, headers), None), "out", "a port that is not open");
        }
        assert_eq!(outcome(&mut request("GET", "/a", &[]), Some(&open(true))), "in /a");
    }

    #[test]
    fn other_cookies_reach_the_guest_as_one_header() {
        let mut parts = request("GET", "/", &[("cookie", &format!("a=1; {TOKEN}={RIGHT}")), ("cookie", "b=2;c")]);
        outcome(&mut parts, Some(&open(true)));
        assert_eq!(parts.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c"]);
    }

    #[test]
    fn a_page_of_another_vm_cannot_use_the_cookie_of_its_user() {
        let cookie = format!("{TOKEN}={RIGHT}");
        let same = [("cookie", &*cookie), ("origin", "http://80-web.localhost:7080")];
        let other = [("cookie", &*cookie), ("origin", "http://80-web.1.localhost:7080")];
        let none = [("cookie", &*cookie), ("origin", "null")];
        let site = |site, mode| [("cookie", &*cookie), ("sec-fetch-site", site), ("sec-fetch-mode", mode)];
        for (method, headers, expected) in [
            ("POST", &same[..], "in /"),
            ("POST", &other, "out"),
            ("GET", &other, "out"),
            ("POST", &none, "out"),
            ("POST", &site("same-origin", "cors"), "in /"),
            ("GET", &site("none", "navigate"), "in /"),
            ("GET", &site("cross-site", "navigate"), "in /"),
            ("POST", &site("cross-site", "navigate"), "out"),
            ("GET", &site("same-site", "cors"), "out"),
            ("GET", &site("same-site", "websocket"), "out"),
        ] {
            assert_eq!(
                outcome(&mut request(method, "/", headers), Some(&open(false))),
                expected,
                "{method} {headers:?}"
            );
        }
    }
}
