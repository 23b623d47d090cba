//! `pando config ls`.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::out;
use crate::render::Table;
use pando_wire::api::Setting;
use std::process::ExitCode;

/// List all settings.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando config ls")]
pub(super) struct Args {}

pub(super) async fn run(_: &Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.get("/settings").await?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&render(&body.read::<Vec<Setting>>()?, out::width()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(settings: &[Setting], width: Option<usize>) -> String {
    let mut table = Table::new(["KEY", "VALUE", "DEFAULT", "ABOUT…"]);
    for Setting { key, value, default, about } in settings {
        table.row([key, value, default, about].map(Clone::clone).into());
    }
    table.render(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_one_line() {
        let setting =
            Setting { key: "idle-timeout".into(), value: "5m".into(), default: "off".into(), about: "naps".into() };
        let expected = "KEY           VALUE  DEFAULT  ABOUT\nidle-timeout  5m     off      naps\n";
        assert_eq!(render(&[setting], None), expected);
    }
}
