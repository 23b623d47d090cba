//! The other end of OpenSSH's client.

use super::forward;
use super::session::Session;
use crate::client::Client;
use crate::failure::Failure;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::server::{self, Auth, ChannelOpenHandle, Config, Msg};
use russh::{Channel, ChannelOpenFailure, MethodKind, MethodSet};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Serves one connection on standard input and output.
pub(super) async fn serve(vm: &str) -> Result<ExitCode, Failure> {
    let handler = Handler { client: Client::open().await?, vm: vm.to_owned(), user: String::new() };
    let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    let config = Config {
        methods: MethodSet::from(&[MethodKind::None][..]),
        auth_rejection_time: Duration::ZERO,
        keys: vec![host_key()?],
        inactivity_timeout: None,
        ..Config::default()
    };
    let broken = |error: russh::Error| Failure::new(format!("the connection to ssh broke: {error}"));
    let session = server::run_stream(Arc::new(config), stream, handler).await.map_err(broken)?;
    match session.await {
        Ok(()) | Err(russh::Error::Disconnect | russh::Error::HUP) => Ok(ExitCode::SUCCESS),
        Err(russh::Error::IO(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(ExitCode::SUCCESS),
        Err(error) => Err(broken(error)),
    }
}

/// A key for this connection: the protocol wants one.
fn host_key() -> Result<PrivateKey, Failure> {
    let mut seed = [0; 32];
    rustix::io::retry_on_intr(|| getrandom(&mut seed, GetRandomFlags::empty())).map_err(io::Error::from)?;
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    PrivateKey::new(pair, "pando").map_err(|error| Failure::new(format!("cannot make a host key: {error}")))
}

/// What the client asks for, on one connection.
struct Handler {
    client: Client,
    vm: String,
    /// As whom, in the guest.
    user: String,
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        user.clone_into(&mut self.user);
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        let (client, vm, user) = (self.client.clone(), self.vm.clone(), self.user.clone());
        let handle = session.handle();
        tokio::spawn(Session { client, vm, user, handle }.serve(channel));
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        match forward::target(host, port) {
            None => reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await,
            Some(port) => {
                let (client, vm) = (self.client.clone(), self.vm.clone());
                // In the background: who listens there may be slow, and other channels go on.
                tokio::spawn(async move { forward::open(&client, &vm, port, channel, reply).await });
            }
        }
        Ok(())
    }
}
