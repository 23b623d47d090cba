//! Several VMs that begin together: what each is asked to be, and what came of it.

use crate::failure::Failure;
use crate::out;
use pando_wire::api::{ChildReport, ChildSpec, ForkRequest};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// As [`pando_wire::control::MAX_CHILDREN`], in clap's words.
pub(super) const MAX_COUNT: i64 = pando_wire::control::MAX_CHILDREN as i64;

/// So many: the one called `name`, or `prefix.1` and so on, or as the daemon likes.
pub(super) fn request(
    count: u32,
    name: Option<&str>,
    prefix: Option<&str>,
    env: &BTreeMap<String, String>,
) -> ForkRequest {
    let name = |number| match (name, prefix) {
        (Some(name), _) => Some(name.to_owned()),
        (None, Some(prefix)) => Some(format!("{prefix}.{number}")),
        (None, None) => None,
    };
    let child = |number| ChildSpec { name: name(number), env: env.clone(), ..ChildSpec::default() };
    ForkRequest { children: (1..=count).map(child).collect(), via: None }
}

/// The names of those that run, one per line.
pub(super) fn names(children: &[ChildReport]) -> String {
    let run = children.iter().filter(|child| child.error.is_none());
    run.map(|child| format!("{}\n", child.name)).collect()
}

/// What they may have in common that they should not.
pub(super) fn warnings(children: &[ChildReport]) -> Vec<String> {
    let same = children.iter().filter(|child| child.reseeded == Some(false));
    same.map(|child| format!("{}: its programs ran before its random numbers were its own", child.name)).collect()
}

/// Says what is to be said of them besides their names. The answer is the status to exit with.
pub(super) fn tell(warnings: &[String], children: &[ChildReport]) -> ExitCode {
    warnings.iter().for_each(|warning| out::note(&format!("warning: {warning}\n")));
    let failed: Vec<_> = children.iter().filter_map(failure).collect();
    let all_run = failed.is_empty();
    failed.into_iter().for_each(|failure| {
        failure.print();
    });
    if all_run { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub(super) fn failure(child: &ChildReport) -> Option<Failure> {
    child.error.as_ref().map(|error| Failure::new(format!("{}: {error}", child.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_numbered_behind_a_prefix_and_nameless_without() {
        let names = |count, name, prefix| {
            let request = request(count, name, prefix, &BTreeMap::new());
            request.children.into_iter().map(|child| child.name).collect::<Vec<_>>()
        };
        assert_eq!(names(2, None, None), [None, None]);
        assert_eq!(names(2, None, Some("r")), [Some("r.1".into()), Some("r.2".into())]);
        assert_eq!(names(1, Some("one"), None), [Some("one".into())]);
    }
}
