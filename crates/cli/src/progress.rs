//! How far long work is, on standard error, and only if that is a terminal.

use crate::client::{Body, Client, Error};
use indicatif::{ProgressBar, ProgressStyle};
use pando_wire::api::Progress;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal};
use std::time::Duration;

/// How often the daemon is asked.
const PERIOD: Duration = Duration::from_millis(200);

/// A bar for bytes of which that many are expected; it only counts them when nobody knows.
pub(crate) fn bytes(message: &'static str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}"),
        None => (ProgressBar::no_length(), "{msg} {bytes} {bytes_per_sec}"),
    };
    styled(bar, template).with_message(message)
}

/// Has the daemon do what `ask` asks for, which takes a query that says what its progress is called, and shows that.
pub(crate) async fn watch(
    client: &Client,
    message: &'static str,
    ask: impl AsyncFnOnce(&str) -> Result<Body, Error>,
) -> Result<Body, Error> {
    if !io::stderr().is_terminal() {
        return ask("").await;
    }
    // Nobody else has such a number: it is 64 bits of the keys that hash tables of this process begin with.
    let name = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    let query = format!("?progress={name}");
    let asked = ask(&query);
    tokio::pin!(asked);
    let bar = styled(ProgressBar::no_length(), "{msg} {wide_bar} {pos}/{len} files").with_message(message);
    let answer = loop {
        tokio::select! {
            answer = &mut asked => break answer,
            () = tokio::time::sleep(PERIOD) => show(client, &name, &bar).await,
        }
    };
    bar.finish_and_clear();
    answer
}

/// An older daemon knows of no progress, and it may be over.
async fn show(client: &Client, name: &str, bar: &ProgressBar) {
    let asked = client.get(&format!("/progress/{name}")).await;
    if let Ok(Progress { done, files: files @ 1.. }) = asked.and_then(|body| body.read()) {
        bar.set_length(files);
        bar.set_position(done);
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█▌ "));
    }
    bar
}
