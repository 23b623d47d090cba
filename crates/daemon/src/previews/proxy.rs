//! One request: who it is for, whether it goes on, and what comes back.

use super::access::{self, Verdict};
use super::body::Answer;
use super::exchange::Connection;
use super::headers;
use super::host::{self, Meaning};
use super::kept::{Goal, Kept, Lease, is_repeatable};
use super::listener::Previews;
use super::page::Page;
use super::pulse::Pulse;
use crate::fleet::{FleetError, Visit};
use crate::stream::{reach, relay};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Whose requests they are.
pub(super) struct Caller {
    pub(super) from: IpAddr,
    pub(super) pulse: Arc<Pulse>,
    pub(super) kept: Arc<Kept>,
}

/// What a guest said, over which connection, and that somebody is in it.
struct Answered {
    response: Response<Incoming>,
    connection: Connection,
    visit: Visit,
}

/// What stands between a client's request and a guest.
pub(super) struct Asked {
    /// The VM's name as it was written, and the port.
    vm: String,
    port: u16,
    host: HeaderValue,
}

impl Previews {
    /// Answers a request of `caller`.
    pub(super) async fn answer(&self, request: Request<Incoming>, caller: &Caller) -> Response<Answer> {
        let under_way = caller.pulse.begin();
        let headers = request.headers().clone();
        let response = match self.pass(request, caller).await {
            Ok(response) => response,
            Err(page) => page.answer(&headers),
        };
        response.map(|answer| answer.holding(under_way))
    }

    async fn pass(&self, request: Request<Incoming>, caller: &Caller) -> Result<Response<Answer>, Page> {
        let Caller { from, pulse, kept } = caller;
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
        let protocol = headers::to_guest(&mut parts.headers, &asked.host, *from);
        parts.version = Version::HTTP_11;

        let goal = (id, asked.port);
        let keeps = is_http1 && protocol.is_none() && is_repeatable(&parts, &body);
        let kept = keeps.then_some(kept);
        let Answered { response, connection, visit } =
            self.ask(&asked, &goal, parts, body, kept.map(Arc::as_ref)).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = protocol.zip(upgrade).ok_or_else(|| {
                let matter = format!("what listens on port {} of {} speaks another protocol", asked.port, asked.vm);
                Page::new(StatusCode::BAD_GATEWAY, matter, "Nobody had asked for one.")
            })?;
            drop(visit); // From here on, what is carried is a use.
            return Ok(self.switch(response, upgraded, goal.0, permit, pulse, connection));
        }
        let (mut parts, body) = response.into_parts();
        headers::to_client(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let lease = Lease::new(connection, kept.map(|kept| (Arc::clone(kept), goal)));
        let answer = Answer::from_guest(body, lease, is_http1.then(|| Arc::clone(pulse))).holding((visit, permit));
        Ok(Response::from_parts(parts, answer))
    }

    /// Asks over what is kept if that serves, and otherwise over a new connection.
    async fn ask(
        &self,
        asked: &Asked,
        goal: &Goal,
        parts: Parts,
        body: Incoming,
        kept: Option<&Kept>,
    ) -> Result<Answered, Page> {
        if let Some(kept) = kept
            && let Some(answered) = self.ask_again(kept, goal, &parts).await
        {
            return Ok(answered);
        }
        let reached = reach(&self.fleet, &goal.0, goal.1).await;
        let (stream, visit) = reached.map_err(|error| Page::of(&error, &asked.vm, asked.port))?;
        let request = Request::from_parts(parts, Either::Left(body));
        let sent = async {
            let mut connection = Connection::open(stream).await?;
            let response = connection.send(request).await?;
            Ok(Answered { response, connection, visit })
        };
        sent.await.map_err(|error| unanswered(&error, asked))
    }

    /// The answer to a request without a body, over the connection that the caller's last one went over, if that serves.
    async fn ask_again(&self, kept: &Kept, goal: &Goal, parts: &Parts) -> Option<Answered> {
        let mut connection = kept.take(goal)?;
        // It may be asleep, paused or gone: whoever opens a new connection says so.
        let visit = self.fleet.visit(&goal.0).await.ok()?;
        let request = Request::from_parts(parts.clone(), Either::Right(Empty::new()));
        let response = connection.send(request).await.ok()?;
        Some(Answered { response, connection, visit })
    }

    /// Lets client and guest speak another protocol.
    fn switch(
        &self,
        mut response: Response<Incoming>,
        (protocol, client): (HeaderValue, OnUpgrade),
        id: String,
        permit: OwnedSemaphorePermit,
        pulse: &Arc<Pulse>,
        connection: Connection,
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
            drop((permit, connection));
        });
        let (mut parts, _) = response.into_parts();
        let answered = parts.headers.get(hyper::header::UPGRADE).cloned().unwrap_or(protocol);
        headers::to_client(&mut parts.headers);
        headers::ask_for(&mut parts.headers, &answered);
        Response::from_parts(parts, Answer::whole(""))
    }
}

/// What is said when a guest did not answer.
fn unanswered(error: &hyper::Error, Asked { vm, port, .. }: &Asked) -> Page {
    tracing::debug!(vm, %error, "a request was not answered");
    if error.is_user() {
        return Page::new(StatusCode::BAD_REQUEST, "the request's body is not whole", "");
    }
    let matter = format!("what listens on port {port} of {vm} did not answer the request");
    Page::new(StatusCode::BAD_GATEWAY, matter, "Its own log may say why.")
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
