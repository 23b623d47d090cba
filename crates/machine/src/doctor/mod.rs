//! The doctor: what this computer offers to VMs, which way of running them will be taken, and what would help.

mod checks; // one row each
mod kvm; // hardware, software or none

pub use kvm::Kvm;

use serde::Serialize;
use std::path::Path;

/// What the doctor found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How VMs run here.
    pub way: Way,
    /// What kind of KVM this computer has.
    pub kvm: Kvm,
    /// What was looked at, one by one.
    pub rows: Vec<Row>,
}

/// A way to run VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// On this computer's own KVM.
    Native,
    /// In an emulated host: `pando machine`.
    Machine,
    /// None.
    None,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// Whether it is as it should be. Only [`Report::way`] tells whether VMs can be run.
    pub ok: bool,
    /// What to do about it, when it is not.
    pub advice: Option<String>,
}

/// Examines this computer. VMs would keep their files in `state_dir`, and kernels are kept in `cache_dir`; neither need
/// exist, and none is made.
pub fn examine(state_dir: &Path, cache_dir: &Path) -> Report {
    let kvm = Kvm::find();
    let host = checks::emulated_host(cache_dir);
    let way = way(kvm.is_hardware(), host.ok);
    let rows = vec![
        checks::kvm(&kvm),
        host,
        checks::huge_pages(),
        checks::userfaultfd(),
        checks::reflink(state_dir),
        checks::cgroups(),
        checks::network(),
        checks::forwarding(),
        checks::memory(),
        checks::disk(state_dir),
    ];
    Report { way, kvm, rows }
}

fn way(hardware_kvm: bool, emulated_host: bool) -> Way {
    match (hardware_kvm, emulated_host) {
        (true, _) => Way::Native,
        (false, true) => Way::Machine,
        (false, false) => Way::None,
    }
}

impl Row {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, found: found.into(), ok: true, advice: None }
    }

    fn bad(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, found: found.into(), ok: false, advice: Some(advice.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_taken_before_an_emulated_host_and_an_emulated_host_before_nothing() {
        assert_eq!([way(true, true), way(true, false)], [Way::Native; 2]);
        assert_eq!([way(false, true), way(false, false)], [Way::Machine, Way::None]);
    }

    #[test]
    fn programs_can_read_the_report() {
        let report = Report {
            way: Way::Machine,
            kvm: Kvm::Software { ns_per_instruction: 300 },
            rows: vec![Row::bad("cgroups", "none", "mount them")],
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"way":"machine","kvm":{"kind":"software","ns_per_instruction":300},"rows":[{"what":"cgroups","found":"none","ok":false,"advice":"mount them"}]}"#
        );
    }

    #[test]
    fn an_examination_leaves_nothing_behind_and_tells_about_everything() {
        let folder = tempfile::tempdir().unwrap();
        let report = examine(&folder.path().join("not/there"), &folder.path().join("nor/this"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(report.rows.len(), 10);
        for row in report.rows {
            assert_eq!(row.ok, row.advice.is_none(), "{row:?}");
        }
    }
}
