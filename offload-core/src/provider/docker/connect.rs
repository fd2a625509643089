//! Finding the Docker daemon as the `docker` command finds it, and saying what is wrong when it cannot be used.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::super::{ProviderError, ProviderResult};

/// Where the daemon is when nothing says otherwise.
const DEFAULT_ADDRESS: &str = "unix:///var/run/docker.sock";

/// The longest that a single request may take: building an image, or taking in a large project.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a daemon may take to be started again.
const RESTART: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(250);

/// A daemon that answers.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    pub(super) docker: Docker,
    /// How it was reached, for messages.
    pub(super) address: String,
}

impl Daemon {
    /// Connects to the daemon that `DOCKER_HOST`, the Docker context or the default names.
    pub(super) async fn connect() -> ProviderResult<Self> {
        let settings = Settings {
            host: std::env::var("DOCKER_HOST").ok(),
            context: std::env::var("DOCKER_CONTEXT").ok(),
            tls: std::env::var("DOCKER_TLS_VERIFY").is_ok_and(|value| !value.is_empty()),
            config_dir: std::env::var_os("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| std::env::home_dir().map(|home| home.join(".docker")))
                .unwrap_or_default(),
        };
        Self::connect_to(settings.address()?).await
    }

    async fn connect_to(address: String) -> ProviderResult<Self> {
        let docker = Docker::connect_with_host(&address).map_err(|error| cannot_use(&address, &error))?;
        let docker = docker.negotiate_version().await.map_err(|error| cannot_use(&address, &error))?;
        Ok(Self { docker: docker.with_timeout(TIMEOUT), address })
    }

    /// Whether the daemon still answers.
    pub(super) async fn answers(&self) -> bool {
        let docker = self.docker.clone().with_timeout(Duration::from_secs(5));
        docker.ping().await.is_ok()
    }

    /// Waits until a daemon that has gone away answers again, as it does after a restart; returns whether it does.
    pub(super) async fn comes_back(&self) -> bool {
        let until = Instant::now() + RESTART;
        while !self.answers().await {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(AGAIN).await;
        }
        true
    }
}

/// What decides where the daemon is.
struct Settings {
    host: Option<String>,
    context: Option<String>,
    tls: bool,
    config_dir: PathBuf,
}

impl Settings {
    fn address(&self) -> ProviderResult<String> {
        let address = match self.host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => host.to_owned(),
            None => match self.context_name()? {
                Some(name) => context_address(&self.config_dir, &name)?,
                None => DEFAULT_ADDRESS.to_owned(),
            },
        };
        let tunnel = "forward its socket instead, `ssh -NL /tmp/docker.sock:/var/run/docker.sock HOST`, and set \
                      DOCKER_HOST=unix:///tmp/docker.sock";
        let refused = |what: &str| {
            Err(ProviderError::Unusable(format!(
                "the Docker daemon is at {address}, and {what} is something that Offload cannot do yet; {tunnel}"
            )))
        };
        match address.split_once("://").map(|(scheme, _)| scheme) {
            Some("unix") => Ok(address),
            Some("tcp" | "http") if self.tls => refused("TLS (DOCKER_TLS_VERIFY)"),
            Some("tcp" | "http") => Ok(address),
            Some("https") => refused("TLS"),
            Some("ssh") => refused("reaching it through ssh"),
            _ => Err(ProviderError::Unusable(format!(
                "{address:?} is no address of a Docker daemon; DOCKER_HOST is to be unix://PATH or tcp://HOST:PORT"
            ))),
        }
    }

    /// The context in use; `None` for the default one.
    fn context_name(&self) -> ProviderResult<Option<String>> {
        let chosen = match self.context.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => Some(name.to_owned()),
            None => {
                let path = self.config_dir.join("config.json");
                match std::fs::read(&path) {
                    Ok(text) => {
                        let config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| {
                            ProviderError::Unusable(format!(
                                "cannot tell where the Docker daemon is: {} is not JSON: {error}; mend it, or set \
                                 DOCKER_HOST",
                                path.display()
                            ))
                        })?;
                        config.get("currentContext").and_then(|name| name.as_str()).map(str::to_owned)
                    }
                    // Nobody chose one.
                    Err(_) => None,
                }
            }
        };
        Ok(chosen.filter(|name| !name.is_empty() && name != "default"))
    }
}

/// The address in a context's file, whose directory is named by a hash of the context's name.
fn context_address(config_dir: &Path, name: &str) -> ProviderResult<String> {
    let mut hash = String::new();
    for byte in Sha256::digest(name) {
        let _ = write!(hash, "{byte:02x}");
    }
    let path = config_dir.join("contexts/meta").join(hash).join("meta.json");
    let host = std::fs::read(&path).ok().and_then(|text| {
        let meta: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(meta.pointer("/Endpoints/docker/Host")?.as_str()?.to_owned())
    });
    host.ok_or_else(|| {
        ProviderError::Unusable(format!(
            "the Docker context {name:?} is in use, and {} does not say where its daemon is; choose another with \
             `docker context use`, or set DOCKER_HOST",
            path.display()
        ))
    })
}

/// What keeps the daemon at `address` from being used, and what to do.
fn cannot_use(address: &str, error: &Error) -> ProviderError {
    let reason = match (error, io_kind(error)) {
        (Error::SocketNotFoundError(_), _) | (_, Some(io::ErrorKind::NotFound)) => {
            format!(
                "there is no Docker daemon at {address}; start it (`sudo systemctl start docker`), or set DOCKER_HOST"
            )
        }
        (_, Some(io::ErrorKind::PermissionDenied)) => format!(
            "you are not permitted to use the Docker daemon at {address}; join its group (`sudo usermod -aG docker \
             $USER`, then log in again), or run Docker rootless"
        ),
        (_, Some(io::ErrorKind::ConnectionRefused)) => format!(
            "the Docker daemon at {address} does not answer: connection refused; start it (`sudo systemctl start \
             docker`), or set DOCKER_HOST"
        ),
        (Error::RequestTimeoutError, _) => format!(
            "the Docker daemon at {address} does not answer in time; `docker version` should show whether it is well"
        ),
        (Error::DockerResponseServerError { status_code, message }, _) => {
            format!("the Docker daemon at {address} refuses to serve ({status_code}): {message}")
        }
        _ => format!(
            "the Docker daemon at {address} cannot be used: {}; `docker version` should show whether it is well",
            told(error)
        ),
    };
    ProviderError::Unusable(reason)
}

/// The kind of the I/O error that is behind `error`, if one is.
pub(super) fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

/// What an error says: the daemon's own words, or the causes down to the last.
pub(super) fn told(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        _ => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    let _ = write!(text, ": {more}");
                }
                cause = error.source();
            }
            text
        }
    }
}

/// Whether the daemon answered with this HTTP status.
pub(super) fn has_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config_dir: &Path) -> Settings {
        Settings { host: None, context: None, tls: false, config_dir: config_dir.to_owned() }
    }

    #[test]
    fn the_daemon_is_where_the_docker_command_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let address = |settings: Settings| settings.address().unwrap();
        assert_eq!(address(settings(dir.path())), DEFAULT_ADDRESS);

        // As `docker context create rootless --docker host=…` writes it.
        let hash = Sha256::digest("rootless").iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let meta = dir.path().join("contexts/meta").join(hash);
        std::fs::create_dir_all(&meta).unwrap();
        let text =
            r#"{"Name":"rootless","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///run/user/7/docker.sock"}}}"#;
        std::fs::write(meta.join("meta.json"), text).unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"currentContext": "rootless"}"#).unwrap();
        assert_eq!(address(settings(dir.path())), "unix:///run/user/7/docker.sock");
        let default = Settings { context: Some("default".to_owned()), ..settings(dir.path()) };
        assert_eq!(address(default), DEFAULT_ADDRESS);
        let host = Settings { host: Some("tcp://box:2375".to_owned()), ..settings(dir.path()) };
        assert_eq!(address(host), "tcp://box:2375");
    }

    #[test]
    fn addresses_that_cannot_be_used_say_why_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |settings: Settings| settings.address().unwrap_err().to_string();
        let host = |host: &str| Settings { host: Some(host.to_owned()), ..settings(dir.path()) };
        let ssh = refused(host("ssh://box"));
        assert!(ssh.contains("ssh://box, and reaching it through ssh is") && ssh.contains("ssh -NL"), "{ssh}");
        let tls = refused(Settings { tls: true, ..host("tcp://box:2376") });
        assert!(tls.contains("TLS (DOCKER_TLS_VERIFY) is something that Offload cannot do yet"), "{tls}");
        assert!(refused(host("box")).starts_with("\"box\" is no address of a Docker daemon"));
        let context = refused(Settings { context: Some("gone".to_owned()), ..settings(dir.path()) });
        assert!(context.starts_with("the Docker context \"gone\" is in use"), "{context}");
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_or_not_listening_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let absent = format!("unix://{}", dir.path().join("absent.sock").display());
        let error = Daemon::connect_to(absent.clone()).await.unwrap_err();
        assert!(matches!(error, ProviderError::Unusable(_)));
        assert_eq!(
            error.to_string(),
            format!(
                "there is no Docker daemon at {absent}; start it (`sudo systemctl start docker`), or set DOCKER_HOST"
            )
        );
        let socket = dir.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let error = Daemon::connect_to(format!("unix://{}", socket.display())).await.unwrap_err().to_string();
        assert!(error.contains("dead.sock does not answer: connection refused; start it"), "{error}");
    }
}
