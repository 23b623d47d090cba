//! One request: who it is for, whether it goes on, and what comes back.

use super::access::{self, Verdict};
use super::body::Answer;
use super::exchange::{self, Driver};
use super::headers;
use super::host::{self, Meaning};
use super::listener::Previews;
use super::page::Page;
use super::pulse::Pulse;
use crate::fleet::FleetError;
use crate::stream::{reach, relay};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// What stands between a client's request and a guest.
pub(super) struct Asked {
    /// The VM's name as it was written, and the port.
    vm: String,
    port: u16,
    host: HeaderValue,
}

impl Previews {
    /// Answers a request of the client at `from`.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        from: IpAddr,
        pulse: &Arc<Pulse>,
    ) -> Response<Answer> {
        let under_way = pulse.begin();
        let headers = request.headers().clone();
        let response = match self.pass(request, from, pulse).await {
            Ok(response) => response,
            Err(page) => page.answer(&headers),
        };
        response.map(|answer| answer.holding(under_way))
    }

    async fn pass(
        &self,
        request: Request<Incoming>,
        from: IpAddr,
        pulse: &Arc<Pulse>,
    ) -> Result<Response<Answer>, Page> {
        let permit = Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            let advice = "Others have to end first.";
            Page::new(StatusCode::SERVICE_UNAVAILABLE, "too many previews are being looked at", advice)
        })?;
        let (mut parts, body) = request.into_parts();
        let asked = asked(&parts, &self.domain)?;
        let failed = |error: FleetError| Page::of(&error, &asked.vm, asked.port);
        let (id, open) = self.fleet.port(&asked.vm, asked.port).await.map_err(failed)?;
        match access::judge(&mut parts, &asked.vm, asked.port, open.as_ref()) {
            Verdict::Admitted => (),
            Verdict::Redirected(response) => return Ok(response),
            Verdict::Refused(page) => return Err(page),
        }
        let is_http1 = parts.version < Version::HTTP_2;
        if !is_http1 {
            parts.headers.remove(hyper::header::UPGRADE);
        }
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let protocol = headers::to_guest(&mut parts.headers, &asked.host, from);
        parts.version = Version::HTTP_11;

        let (stream, visit) = reach(&self.fleet, &id, asked.port).await.map_err(failed)?;
        let sent = exchange::send(stream, Request::from_parts(parts, body)).await;
        let (response, driver) = sent.map_err(|error| {
            tracing::debug!(vm = id, %error, "a request was not answered");
            if error.is_user() {
                return Page::new(StatusCode::BAD_REQUEST, "the request's body is not whole", "");
            }
            let matter = format!("what listens on port {} of {} did not answer the request", asked.port, asked.vm);
            Page::new(StatusCode::BAD_GATEWAY, matter, "Its own log may say why.")
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = protocol.zip(upgrade).ok_or_else(|| {
                let matter = format!("what listens on port {} of {} speaks another protocol", asked.port, asked.vm);
                Page::new(StatusCode::BAD_GATEWAY, matter, "Nobody had asked for one.")
            })?;
            drop(visit); // From here on, what is carried is a use.
            return Ok(self.switch(response, upgraded, id, permit, pulse, driver));
        }
        let (mut parts, body) = response.into_parts();
        headers::to_client(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let answer = Answer::from_guest(body, is_http1.then(|| Arc::clone(pulse))).holding((driver, visit, permit));
        Ok(Response::from_parts(parts, answer))
    }

    /// Lets client and guest speak another protocol.
    fn switch(
        &self,
        mut response: Response<Incoming>,
        (protocol, client): (HeaderValue, OnUpgrade),
        id: String,
        permit: OwnedSemaphorePermit,
        pulse: &Arc<Pulse>,
        driver: Driver,
    ) -> Response<Answer> {
        let guest = hyper::upgrade::on(&mut response);
        let (fleet, pulse) = (self.fleet.clone(), Arc::clone(pulse));
        let mut ending = fleet.shutdown();
        tokio::spawn(async move {
            let carried = async {
                let (client, guest) = tokio::try_join!(client, guest).map_err(std::io::Error::other)?;
                relay(TokioIo::new(client), TokioIo::new(guest), || fleet.note_use(&id)).await
            };
            let result = tokio::select! {
                result = carried => result,
                _ = ending.wait_for(|ends| *ends) => Err(std::io::Error::other("the daemon ends")),
            };
            if let Err(error) = result {
                tracing::debug!(%error, "an upgraded connection broke");
                pulse.cut();
            }
            drop((permit, driver));
        });
        let (mut parts, _) = response.into_parts();
        let answered = parts.headers.get(hyper::header::UPGRADE).cloned().unwrap_or(protocol);
        headers::to_client(&mut parts.headers);
        headers::ask_for(&mut parts.headers, &answered);
        Response::from_parts(parts, Answer::whole(""))
    }
}

/// Which port of which VM is asked for: by its one name.
fn asked(parts: &Parts, domain: &str) -> Result<Asked, Page> {
    let bad = |matter: &str| Page::new(StatusCode::BAD_REQUEST, matter, "");
    if parts.method == Method::CONNECT {
        return Err(Page::new(StatusCode::METHOD_NOT_ALLOWED, "this is no proxy for other hosts", ""));
    }
    let mut named = parts.headers.get_all(HOST).iter();
    let (header, more) = (named.next(), named.next());
    if more.is_some() {
        return Err(bad("the request names two hosts"));
    }
    let authority = parts.uri.authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    let authority = authority.transpose().map_err(|_| bad("the request names no possible host"))?;
    let host = match (header, authority) {
        (Some(header), Some(authority)) if !header.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            return Err(bad("the request names two hosts"));
        }
        (Some(header), _) => header.clone(),
        (None, Some(authority)) if parts.version == Version::HTTP_2 => authority,
        (None, _) => return Err(bad("the request names no host")),
    };
    let name = host.to_str().ok().and_then(host::of_authority);
    let name = name.ok_or_else(|| bad("the request names no possible host"))?;
    let form = format!("A port of a VM is seen at http://PORT-VM.{domain}, which pando port VM PORT prints.");
    match host::meaning(&name, domain) {
        Meaning::Port(port, vm) => Ok(Asked { vm: vm.to_owned(), port, host }),
        Meaning::Nothing => Err(Page::new(StatusCode::NOT_FOUND, format!("{name} is no port of a VM"), form)),
        Meaning::Foreign => Err(Page::new(StatusCode::MISDIRECTED_REQUEST, format!("{name} is not served here"), form)),
    }
}
