//! `pando run --from`: VMs from a checkpoint.

use super::super::children;
use super::{Args, publish};
use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{out, parse, render};
use indicatif::ProgressBar;
use pando_wire::api::{BucketRunRequest, CheckpointRunReport, ForkRequest, Vm};
use std::process::ExitCode;
use std::time::Duration;

pub(super) async fn run(checkpoint: &str, args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let env = parse::environment(&args.env_file, args.env)?;
    let ForkRequest { mut children, .. } =
        children::request(args.count, args.name.as_deref(), args.prefix.as_deref(), &env);
    let wanted = args.ports.publish;
    match &mut children[..] {
        [only] => only.publish.clone_from(&wanted),
        _ if wanted.is_empty() => (),
        _ => return Err(Failure::new("a port of the host is one VM's: -p goes with --count 1 only")),
    }
    let bucket = args.bucket.map(|url| args.server.bucket(url)).transpose()?;
    let client = Client::open().await?;

    let spinner = ProgressBar::new_spinner().with_message("waking");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let (origin, answer) = match bucket {
        None => {
            let path = format!("/checkpoints/{}/run", segment(checkpoint));
            ("the store", client.post_json(&path, &ForkRequest { children, via: None }).await)
        }
        Some(bucket) => {
            let (checkpoint, cache_bytes) = (checkpoint.to_owned(), args.bucket_cache);
            let request = BucketRunRequest { bucket, checkpoint, children, cache_bytes };
            ("the bucket", client.post_json("/store/run", &request).await)
        }
    };
    spinner.finish_and_clear();

    let body = answer?;
    let report: CheckpointRunReport = body.read()?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&children::names(&report.children))?;
        out::note(&format!("{}\n", summary(&report, origin)));
        if let (false, Some(id)) = (wanted.is_empty(), report.children.iter().find_map(|child| child.id.as_ref())) {
            let vm: Vm = client.get(&format!("/vms/{}", segment(id))).await?.read()?;
            publish::chosen(&wanted, &vm.published).iter().for_each(|line| out::note(line));
        }
    }
    Ok(children::tell(&children::warnings(&report.children), &report.children))
}

/// Where they came from, and how soon the last of them answered.
fn summary(report: &CheckpointRunReport, cold: &str) -> String {
    let origin = if report.warm { "forked from memory".to_owned() } else { format!("woken from {cold}") };
    let last = report.children.iter().filter_map(|child| child.ready_us).max();
    let ready = last.map(|us| format!(", ready in {}", render::micros(us)));
    format!("{origin}{}", ready.unwrap_or_default())
}
