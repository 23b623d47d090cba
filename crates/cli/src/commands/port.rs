//! `pando port`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::render::Table;
use crate::{complete, out, parse};
use pando_wire::api::{Port, PortRequest};
use std::process::ExitCode;

/// See what listens on a port of a VM in a browser.
///
/// Prints the URL. It needs no network in the VM, and wakes one that sleeps.
#[derive(clap::Args)]
#[command(after_help = "\
What listens in the VM is found at 127.0.0.1 and at any address. The URL of a private port has a token in it, \
which becomes a cookie; programs send it as the header pando-token. A fork has no open ports until they are opened \
for it.

Examples:
  pando port web 3000             # the URL, for who has it
  pando port web 3000 --public    # for everybody who reaches the daemon
  pando port web                  # all that are open or published
  pando port web 3000 --close     # the URL lets nobody in any more")]
pub(crate) struct Args {
    /// Name or id of a VM.
    #[arg(value_parser = parse::name(), add = complete::vm())]
    vm: String,
    /// A port in the VM; all that are open or published when absent.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Let everybody in who reaches the daemon's port for previews.
    #[arg(long, requires = "port")]
    public: bool,
    /// Let in who has the URL; this is how it is at first.
    #[arg(long, requires = "port", conflicts_with = "public")]
    private: bool,
    /// Let nobody in any more.
    #[arg(long, requires = "port", conflicts_with_all = ["public", "private"])]
    close: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let client = Client::open().await?;
    let ports = format!("/vms/{}/ports", segment(&args.vm));
    let Some(port) = args.port else {
        let body = client.get(&ports).await?;
        if context.json() {
            out::json(&body)?;
        } else {
            out::print(&render(&body.read::<Vec<Port>>()?, out::width()))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let path = format!("{ports}/{port}");
    if args.close {
        let body = client.delete(&path).await?;
        if context.json() {
            out::json(&body)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let public = (args.public || args.private).then_some(args.public);
    let body = client.put_json(&path, &PortRequest { public }).await?;
    if context.json() {
        out::json(&body)?;
        return Ok(ExitCode::SUCCESS);
    }
    let port: Port = body.read()?;
    match port.url {
        Some(url) => out::print(&format!("{url}\n")).map(|()| ExitCode::SUCCESS),
        None => Err(Failure::new(port.problem.unwrap_or_else(|| "the daemon serves no previews".to_owned()))),
    }
}

fn render(ports: &[Port], width: Option<usize>) -> String {
    let mut table = Table::new(["PORT", "ACCESS", "URL"]);
    for port in ports {
        let access = if port.public { "public" } else { "private" };
        let (access, at) = match (&port.host, &port.problem) {
            (Some(host), None) => ("published", host.clone()),
            (Some(_), Some(problem)) => ("published", problem.clone()),
            (None, problem) => (access, port.url.as_ref().or(problem.as_ref()).cloned().unwrap_or_default()),
        };
        table.row(vec![port.port.to_string(), access.to_owned(), at]);
    }
    table.render(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_one_line_with_its_url_or_why_there_is_none() {
        let port = |port, public, url: Option<&str>| Port {
            vm: "web".into(),
            port,
            public,
            url: url.map(str::to_owned),
            token: None,
            host: None,
            problem: url.is_none().then(|| "off".to_owned()),
        };
        let ports = [port(80, true, Some("http://80-web.localhost/")), port(3000, false, None)];
        let expected = "PORT  ACCESS   URL\n80    public   http://80-web.localhost/\n3000  private  off\n";
        assert_eq!(render(&ports, None), expected);
        let published = |problem: Option<&str>| Port {
            host: Some("127.0.0.1:8080".into()),
            problem: problem.map(str::to_owned),
            ..port(80, true, None)
        };
        let expected = "PORT  ACCESS     URL\n80    published  127.0.0.1:8080\n80    published  cannot listen\n";
        assert_eq!(render(&[published(None), published(Some("cannot listen"))], None), expected);
    }
}
