//! One request for each of several VMs, at the same time. One that fails does not keep the others from it.

use crate::client::{Body, Client};
use crate::context::Context;
use crate::failure::Failure;
use crate::out;
use futures_util::future::join_all;
use std::process::ExitCode;

/// Does `request` for every VM in `names` and prints the name of each that it was done for (or the API's body), in
/// their order. The status is that of the first failure.
pub(super) async fn each<F>(
    names: Vec<String>,
    context: &Context,
    request: impl Fn(Client, String) -> F,
) -> Result<ExitCode, Failure>
where
    F: Future<Output = Result<Body, crate::client::Error>>,
{
    let client = Client::open().await?;
    let answers = join_all(names.iter().map(|name| request(client.clone(), name.clone()))).await;
    let mut code = None;
    for (name, answer) in names.iter().zip(answers) {
        match answer {
            Ok(body) if context.json() => out::json(&body)?,
            Ok(_) => out::print(&format!("{name}\n"))?,
            Err(error) => {
                let failure = Failure::from(error);
                code.get_or_insert(failure.code());
                failure.print();
            }
        }
    }
    Ok(code.map_or(ExitCode::SUCCESS, ExitCode::from))
}
