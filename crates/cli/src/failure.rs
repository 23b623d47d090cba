//! The one place that prints errors:
//!
//! ```text
//! error: cannot read the image ./rootfs
//!   because: permission denied
//! ```

use crate::agent::AgentError;
use crate::{client, out, render};
use pando_wire::agent::FailureKind;
use std::error::Error;
use std::process::ExitCode;

/// Exit status when what was typed makes no sense.
pub(crate) const USAGE: u8 = 2;
/// Exit status when there is no such thing as was asked for.
pub(crate) const NOT_FOUND: u8 = 3;
/// Exit status when time was up, as `timeout(1)` has it.
pub(crate) const TIMED_OUT: u8 = 124;
/// Exit status when nobody reads standard output any more: 128 + `SIGPIPE`.
const NOBODY_READS: u8 = 141;

/// Why a command did not do what was asked, and the status it exits with.
///
/// Every error becomes one with `?`, its sources becoming the `because` lines.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What could not be done, then its causes, outermost first.
    lines: Vec<String>,
    code: u8,
}

impl Failure {
    /// One sentence, exit status 1.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self { lines: vec![sentence.into()], code: 1 }
    }

    /// Nobody reads what we print, which is nothing to print an error about.
    pub(crate) fn nobody_reads() -> Self {
        Self { lines: Vec::new(), code: NOBODY_READS }
    }

    /// Says what was wanted when this happened.
    #[must_use]
    pub(crate) fn under(mut self, sentence: impl Into<String>) -> Self {
        self.lines.insert(0, sentence.into());
        self
    }

    /// Adds a cause below those that are there.
    #[must_use]
    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.lines.push(cause.into());
        self
    }

    /// The same with another exit status.
    #[must_use]
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// What could not be done, then its causes, outermost first.
    pub(crate) fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The status it exits with.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Prints it on standard error and yields the status to exit with.
    pub(crate) fn print(self) -> ExitCode {
        out::note(&self.render());
        ExitCode::from(self.code)
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for (index, line) in self.lines.iter().enumerate() {
            text.push_str(if index == 0 { "error: " } else { "  because: " });
            text.push_str(&render::printable(line));
            text.push('\n');
        }
        text
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut failure = Self::new(error.to_string());
        let mut next: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            if let Some(AgentError::Failed { failure: told, .. }) = cause.downcast_ref()
                && told.kind == FailureKind::NotFound
            {
                failure.code = NOT_FOUND;
            }
            if let Some(error) = answer(cause) {
                failure.lines.extend_from_slice(error.told_causes());
                if error.is_not_found() {
                    failure.code = NOT_FOUND;
                }
            }
            next = cause.source();
            failure.lines.extend(next.map(ToString::to_string));
        }
        failure
    }
}

/// The daemon's answer in `cause`. What is transparent hides it from the chain of sources.
fn answer<'a>(cause: &'a (dyn Error + 'static)) -> Option<&'a client::Error> {
    match cause.downcast_ref::<AgentError>() {
        Some(AgentError::Client(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_wire::api;
    use std::io;

    #[test]
    fn an_error_is_followed_by_its_causes() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::from(client::Error::Connect { host: "/run/p.sock".into(), source });
        assert_eq!(failure.render(), "error: cannot reach the daemon at /run/p.sock\n  because: permission denied\n");
        assert_eq!(failure.code(), 1);
    }

    #[test]
    fn no_such_thing_has_a_status_of_its_own_and_keeps_what_the_daemon_told() {
        let error = api::Error { error: "no VM is called gone".into(), because: vec!["it never was".into()] };
        let failure = Failure::from(client::Error::Refused { status: 404, error });
        assert_eq!(failure.render(), "error: no VM is called gone\n  because: it never was\n");
        assert_eq!(failure.code(), NOT_FOUND);
    }

    #[test]
    fn what_is_not_in_a_vm_is_no_such_thing_either_and_an_unknown_route_is_not_one() {
        let agent = |kind| {
            let failure = pando_wire::agent::Failure { kind, message: "there is no /x".into() };
            Failure::from(AgentError::Failed { vm: "web".into(), failure }).code()
        };
        assert_eq!([agent(FailureKind::NotFound), agent(FailureKind::NotPermitted)], [NOT_FOUND, 1]);

        let error = api::Error { error: api::NO_ROUTE.into(), because: Vec::new() };
        assert_eq!(Failure::from(client::Error::Refused { status: 404, error }).code(), 1);
    }

    #[test]
    fn what_a_guest_wrote_cannot_steer_the_terminal() {
        let failure = Failure::new("cannot boot").because("\u{1b}]0;owned\u{7} tail\r");
        assert_eq!(failure.render(), "error: cannot boot\n  because: \u{fffd}]0;owned\u{fffd} tail\n");
    }
}
