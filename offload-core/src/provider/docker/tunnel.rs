//! A Docker daemon on another machine (`ssh://…`): its socket, brought here by the user's own `ssh`.
//!
//! The `docker` command starts an `ssh` and a `docker` over there for every request. A run makes hundreds, and holds a
//! stream for each container; so one `ssh` forwards the socket, and all of them go through it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::time::timeout;

use super::super::ssh::{Target, not_started, socket_directory};
use super::super::{ProviderError, ProviderResult};
use crate::config::SshHostConfig;
use crate::connector::{quote, quote_always};
use crate::random;

/// Where a daemon listens when the address does not say.
const SOCKET: &str = "/var/run/docker.sock";
/// How long the other machine may take to let us in and to answer.
const PATIENCE: Duration = Duration::from_secs(40);
/// What is said over there comes behind this word: login shells may have said something before.
const MARK: &str = "offload-docker-socket";

/// Stands as long as it is not dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    socket: PathBuf,
    _ssh: Child,
    /// When this ends, so does the other end, however we end.
    _input: ChildStdin,
}

/// What is behind `ssh://`.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    socket: String,
}

impl Address {
    fn parse(address: &str) -> Option<Self> {
        let rest = address.strip_prefix("ssh://")?;
        let (place, socket) = rest.split_once('/').map_or((rest, ""), |(place, path)| (place, path));
        let socket = if socket.is_empty() { SOCKET.to_owned() } else { format!("/{socket}") };
        let (user, place) =
            place.rsplit_once('@').map_or((None, place), |(user, place)| (Some(user.to_owned()), place));
        let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => place.rsplit_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map(str::parse).transpose().ok()?;
        let is_named = !host.is_empty() && user.as_deref() != Some("");
        is_named.then(|| Self { user, host: host.to_owned(), port, socket })
    }
}

impl Tunnel {
    /// Brings the socket of the daemon at `address` here.
    ///
    /// # Errors
    ///
    /// What keeps it from being reached, and what to do.
    pub(super) async fn open(address: &str) -> ProviderResult<Self> {
        let unusable = |reason: String| ProviderError::Unusable(reason);
        let Address { user, host, port, socket } = Address::parse(address).ok_or_else(|| {
            unusable(format!(
                "{address:?} is no address of a Docker daemon; behind ssh it is ssh://[USER@]HOST[:PORT][/PATH/TO/SOCKET]"
            ))
        })?;
        let config = SshHostConfig { host, user, port, slots: None, identity: None, workdir: None };
        let mut target = Target::new(&config, Path::new(""), Path::new("ssh"));
        let cannot = |reason: String| unusable(format!("the Docker daemon at {address} cannot be used: {reason}"));
        target.check_configuration().await.map_err(cannot)?;
        let here = socket_directory().map_err(cannot)?;
        let here = here.join(format!("docker-{}-{}", std::process::id(), random::word().get(..8).unwrap_or_default()));
        let quoted = quote(&socket);
        let look = format!(
            "if ! test -S {quoted}; then echo {MARK} missing; elif ! test -w {quoted}; then echo {MARK} refused; \
             else echo {MARK}; fi; exec cat >/dev/null"
        );
        let mut ssh = target.forwarding(&here, &socket);
        ssh.arg(format!("exec /bin/sh -c {}", quote_always(&look))).kill_on_drop(true);
        let mut child = ssh.spawn().map_err(|error| cannot(not_started(&error)))?;
        let (Some(input), Some(output), Some(mut errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(cannot("`ssh` was started without its streams".to_owned()));
        };
        let mut lines = BufReader::new(output).split(b'\n');
        let answer = timeout(PATIENCE, async {
            while let Ok(Some(line)) = lines.next_segment().await {
                if let Some((_, said)) = String::from_utf8_lossy(&line).split_once(MARK) {
                    return Some(said.trim().to_owned());
                }
            }
            None
        });
        match answer.await.as_ref().map(|said| said.as_deref()) {
            Ok(Some("")) => {
                // Or `ssh` would be held up when it complains.
                tokio::spawn(async move { errors.read_to_end(&mut Vec::new()).await });
                Ok(Self { socket: here, _ssh: child, _input: input })
            }
            Ok(Some("missing")) => Err(unusable(format!(
                "there is no Docker daemon at {address}: there is no socket {socket} there; start it, or name another \
                 socket (DOCKER_HOST=ssh://HOST/PATH/TO/SOCKET)"
            ))),
            Ok(Some(_)) => Err(unusable(format!(
                "you are not permitted to use the Docker daemon at {address}: join its group there (`sudo usermod -aG \
                 docker $USER`), or run Docker rootless there"
            ))),
            Ok(None) => {
                let mut said = Vec::new();
                let _ = errors.read_to_end(&mut said).await;
                Err(cannot(target.explain(&said)))
            }
            Err(_) => Err(cannot(format!("nothing was heard from {} for {} s", target.name(), PATIENCE.as_secs()))),
        }
    }

    /// Where the daemon is reached from here.
    pub(super) fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // An `ssh` that is killed leaves it.
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_user_a_port_and_a_socket_if_need_be() {
        let parsed = |address: &str| {
            Address::parse(address).map(|it| (it.user.unwrap_or_default(), it.host, it.port, it.socket))
        };
        let expected = |user: &str, host: &str, port, socket: &str| {
            Some((user.to_owned(), host.to_owned(), port, socket.to_owned()))
        };
        assert_eq!(parsed("ssh://box"), expected("", "box", None, SOCKET));
        assert_eq!(parsed("ssh://me@box:2222/"), expected("me", "box", Some(2222), SOCKET));
        assert_eq!(parsed("ssh://[::1]:22/run/d.sock"), expected("", "::1", Some(22), "/run/d.sock"));
        for wrong in ["ssh://", "ssh:///run/d.sock", "ssh://box:http", "ssh://@box"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
