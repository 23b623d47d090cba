//! An answer on its way out.

use super::kept::Lease;
use super::pulse::Pulse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The body of an answer, and what lives as long.
pub(super) struct Answer {
    body: Kind,
    pulse: Option<Arc<Pulse>>,
    held: Vec<Box<dyn Any + Send>>,
}

enum Kind {
    Whole(Full<Bytes>),
    FromGuest(Incoming, Lease),
}

impl Answer {
    /// One of ours.
    pub(super) fn whole(text: impl Into<Bytes>) -> Self {
        Self { body: Kind::Whole(Full::new(text.into())), pulse: None, held: Vec::new() }
    }

    /// What comes from a guest, by a connection that is free at its end. When it breaks off, the client's connection is cut
    /// where it carries this answer alone: the end of the connection could look like the end of the answer.
    pub(super) fn from_guest(body: Incoming, mut lease: Lease, pulse: Option<Arc<Pulse>>) -> Self {
        if body.is_end_stream() {
            lease.end(); // Nobody asks for more of it.
        }
        Self { body: Kind::FromGuest(body, lease), pulse, held: Vec::new() }
    }

    /// Keeps `held` until the answer is out, or nobody waits for it.
    pub(super) fn holding(mut self, held: impl Any + Send) -> Self {
        self.held.push(Box::new(held));
        self
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        match &mut this.body {
            Kind::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Kind::FromGuest(body, lease) => {
                let polled = Pin::new(&mut *body).poll_frame(context);
                match &polled {
                    Poll::Ready(Some(Err(_))) => this.pulse.iter().for_each(|pulse| pulse.cut()),
                    Poll::Ready(frame) if frame.is_none() || body.is_end_stream() => lease.end(),
                    _ => (),
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Kind::Whole(body) => body.is_end_stream(),
            Kind::FromGuest(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Kind::Whole(body) => body.size_hint(),
            Kind::FromGuest(body, _) => body.size_hint(),
        }
    }
}
