//! `-L` and `-D`: ports of the guest.

use crate::agent::Agent;
use crate::client::Client;
use pando_wire::agent::{Reply, Request};
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelOpenFailure};

/// The port that is meant, if it is one of the guest itself: nothing else is reached through its agent.
pub(super) fn target(host: &str, port: u32) -> Option<u16> {
    let is_local =
        host.eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "::1" | "0.0.0.0" | "::" | "");
    is_local.then_some(port).and_then(|port| u16::try_from(port).ok()).filter(|&port| port > 0)
}

/// Connects `channel` to `port`, and passes bytes on until both sides have ended.
pub(super) async fn open(client: &Client, vm: &str, port: u16, channel: Channel<Msg>, reply: ChannelOpenHandle) {
    let connected = async {
        let mut agent = Agent::ask(client, vm, &Request::Connect { port }).await?;
        match agent.receiver.next().await? {
            Reply::Done => Ok(agent),
            _ => Err(agent.receiver.unexpected()),
        }
    };
    match connected.await {
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await, // Its client says so, and knows no reason.
        Ok(agent) => {
            reply.accept().await;
            let (mut guest, mut channel) = (agent.into_stream(), channel.into_stream());
            // A side that breaks ends both: that is what it was for.
            let _ = tokio::io::copy_bidirectional(&mut guest, &mut channel).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guest_itself_is_reached() {
        assert_eq!(target("localhost", 80), Some(80));
        assert_eq!(target("127.0.0.1", 65_535), Some(65_535));
        assert_eq!(target("::1", 1), Some(1));
        assert_eq!(target("localhost", 0), None);
        assert_eq!(target("localhost", 65_536), None);
        assert_eq!(target("10.0.0.1", 80), None);
        assert_eq!(target("localhost.example.org", 80), None);
    }
}
