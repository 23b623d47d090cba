//! `pando doctor`.

use crate::context::Context;
use crate::failure::Failure;
use crate::out;
use crate::render::Table;
use pando_daemon::Config;
use pando_machine::doctor::{self, Report, Way};
use std::process::ExitCode;

/// Lines of advice are broken here.
const WIDTH: usize = 80;

/// Tell whether this computer can run VMs, in which way, and what would help.
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 when VMs can be run, on this computer's KVM or in an emulated host; else 1.

Examples:
  pando doctor
  pando doctor --json")]
pub(crate) struct Args {}

pub(super) fn run(_args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let config = Config::default_paths();
    let report = doctor::examine(&config.state_dir, &config.cache_dir);
    if context.json() {
        out::print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        out::print(&render(&report, out::width()))?;
    }
    Ok(if report.way == Way::None { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(report: &Report, width: Option<usize>) -> String {
    let mut table = Table::new(["WHAT", "OK", "FOUND…"]);
    for row in &report.rows {
        let ok = if row.ok { "yes" } else { "no" };
        table.row(vec![row.what.to_owned(), ok.to_owned(), row.found.clone()]);
    }
    let mut text = table.render(width);
    for row in &report.rows {
        if let Some(advice) = &row.advice {
            text.push('\n');
            wrap(&format!("{}: {advice}", row.what), &mut text);
        }
    }
    text.push('\n');
    wrap(
        match report.way {
            Way::Native => "VMs run on this computer's KVM.",
            Way::Machine => "VMs run in an emulated host, once it is started: pando machine start.",
            Way::None => "VMs cannot be run here.",
        },
        &mut text,
    );
    text
}

/// Appends `sentence` in lines of at most [`WIDTH`] characters, the later ones indented.
fn wrap(sentence: &str, text: &mut String) {
    let mut column = 0;
    for word in sentence.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push_str("\n  ");
            column = 2;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_machine::doctor::{Kvm, Row};

    #[test]
    fn a_report_ends_with_the_way_and_fits_the_terminal() {
        let row = |what, found: &str, advice: Option<&str>| Row {
            what,
            found: found.to_owned(),
            ok: advice.is_none(),
            advice: advice.map(str::to_owned),
        };
        let report = Report {
            way: Way::Machine,
            kvm: Kvm::None,
            rows: vec![
                row(
                    "KVM",
                    "no /dev/kvm",
                    Some("load kvm_intel or kvm_amd, and enable virtualization in the firmware of it"),
                ),
                row("huge pages", "always", None),
            ],
        };
        assert_eq!(
            render(&report, Some(80)),
            "\
WHAT        OK   FOUND
KVM         no   no /dev/kvm
huge pages  yes  always

KVM: load kvm_intel or kvm_amd, and enable virtualization in the firmware of it

VMs run in an emulated host, once it is started: pando machine start.
"
        );
        let long = "word ".repeat(40);
        let mut text = String::new();
        wrap(&long, &mut text);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH) && text.lines().count() == 3, "{text}");
    }
}
