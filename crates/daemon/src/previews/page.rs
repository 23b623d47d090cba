//! What is said instead of an answer: a page for who reads pages, a sentence for everybody else.

use super::body::Answer;
use crate::fleet::FleetError;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use pando_wire::api::State;

/// After how many seconds a page that may be of use again asks for it by itself.
const RELOAD_SECONDS: u32 = 2;

/// A status, what is the matter, and what to do.
#[derive(Debug)]
pub(super) struct Page {
    status: StatusCode,
    matter: String,
    advice: String,
    /// Whether to try again by itself.
    reloads: bool,
}

impl Page {
    pub(super) fn new(status: StatusCode, matter: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status, matter: matter.into(), advice: advice.into(), reloads: false }
    }

    fn reloading(self) -> Self {
        Self { reloads: true, ..self }
    }

    /// Why nothing listens to a request for `port` of `vm`.
    pub(super) fn of(error: &FleetError, vm: &str, port: u16) -> Self {
        let matter = error.in_one_line();
        match error {
            FleetError::NoSuchVm(_) => Self::new(StatusCode::NOT_FOUND, matter, "pando ls lists those that there are."),
            FleetError::State { is: State::Stopped, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, matter, format!("Start it: pando start {vm}"))
            }
            FleetError::State { is: State::Paused, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, matter, format!("Let it go on: pando resume {vm}"))
            }
            FleetError::State { .. } | FleetError::NoRoom { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, matter, "It is tried again.").reloading()
            }
            FleetError::NobodyListens { .. } => Self::new(
                StatusCode::BAD_GATEWAY,
                matter,
                format!("Start a server in {vm} that listens on port {port}, at 127.0.0.1 or any address. It is tried again."),
            )
            .reloading(),
            FleetError::OldAgent { .. } => Self::new(StatusCode::BAD_GATEWAY, matter, ""),
            FleetError::Guest { .. } => Self::new(StatusCode::BAD_GATEWAY, matter, "It is tried again.").reloading(),
            FleetError::Agent { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, matter, "It is tried again.").reloading()
            }
            _ => Self::new(StatusCode::BAD_GATEWAY, matter, "The daemon's log says more."),
        }
    }

    /// As whoever sent `headers` reads it.
    pub(super) fn answer(self, headers: &HeaderMap) -> Response<Answer> {
        let accepts = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
        let reads_pages = accepts.flat_map(|accept| accept.split(',')).any(|kind| kind.trim().starts_with("text/html"));
        let (kind, text) = match reads_pages {
            true => ("text/html; charset=utf-8", self.html()),
            false => ("text/plain; charset=utf-8", self.text()),
        };
        let mut response = Response::new(Answer::whole(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers
            .insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"));
        response
    }

    fn text(&self) -> String {
        let advice = if self.advice.is_empty() { String::new() } else { format!("{}\n", self.advice) };
        format!("{}\n{advice}", self.matter)
    }

    fn html(&self) -> String {
        let (status, matter, advice) = (self.status, escape(&self.matter), escape(&self.advice));
        let reload = match self.reloads {
            true => format!("<meta http-equiv=\"refresh\" content=\"{RELOAD_SECONDS}\">\n"),
            false => String::new(),
        };
        format!(
            "<!doctype html>\n<meta charset=\"utf-8\">\n{reload}<title>{status}</title>\n\
             <style>body {{ font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 20vh auto; padding: 0 1rem }}</style>\n\
             <h1>{matter}</h1>\n<p>{advice}</p>\n"
        )
    }
}

/// `text` as text of a page: some of it comes from guests.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_text_and_no_markup() {
        let page = Page::new(StatusCode::BAD_GATEWAY, "<script>\"&\"</script>", "<b>").html();
        assert!(page.contains("&lt;script&gt;&quot;&amp;&quot;&lt;/script&gt;"), "{page}");
        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
    }
}
