//! `pando images`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::render::{self, Table};
use crate::{out, parse};
use pando_wire::api::Image;
use std::process::ExitCode;

/// List images that were imported, or remove some.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando images\n  pando images --rm 4f0c2a…   # the whole digest")]
pub(crate) struct Args {
    /// Remove this image, which no VM may need.
    #[arg(long, value_name = "DIGEST", value_parser = parse::name())]
    rm: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    if !args.rm.is_empty() {
        let request = |client: Client, digest: String| async move {
            client.delete(&format!("/images/{}", segment(&digest))).await
        };
        return super::each::each(args.rm, context, request).await;
    }
    let body = Client::open().await?.get("/images").await?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&render(&body.read::<Vec<Image>>()?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Digests are never cut: 64 characters and a size fit 80 columns, and they are there to be copied.
fn render(images: &[Image]) -> String {
    let mut table = Table::new(["DIGEST", "SIZE"]);
    for image in images {
        table.row(vec![image.digest.clone(), render::bytes(image.size_bytes)]);
    }
    table.render(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_and_a_size_fit_80_columns() {
        let text = render(&[Image { digest: "d".repeat(64), size_bytes: 1_100_000_000 }]);
        assert!(text.contains(&"d".repeat(64)) && text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
