//! Finding the Docker daemon as the `docker` command finds it, and saying what is wrong when it cannot be used.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, ClientVersion, Docker};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::super::{ProviderError, ProviderResult};
use super::tunnel::Tunnel;

/// Where the daemon is when nothing says otherwise.
const DEFAULT_ADDRESS: &str = "unix:///var/run/docker.sock";

/// The longest that a single request may take: building an image, or taking in a large project.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The oldest version of the API that has all that is asked for. Older ones ignore what they do not know, such as
/// `platform`.
const OLDEST: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };

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
    /// What it is reached through, as long as anybody uses it.
    _tunnel: Option<Arc<Tunnel>>,
}

impl Daemon {
    /// Connects to the daemon that `DOCKER_HOST`, the Docker context or the default names.
    pub(super) async fn connect() -> ProviderResult<Self> {
        let settings = Settings {
            host: std::env::var("DOCKER_HOST").ok(),
            context: std::env::var("DOCKER_CONTEXT").ok(),
            verify: std::env::var("DOCKER_TLS_VERIFY").is_ok_and(|value| !value.is_empty()),
            certificates: std::env::var_os("DOCKER_CERT_PATH").filter(|path| !path.is_empty()).map(PathBuf::from),
            config_dir: std::env::var_os("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| std::env::home_dir().map(|home| home.join(".docker")))
                .unwrap_or_default(),
        };
        Self::connect_to(settings.target()?).await
    }

    async fn connect_to(target: Target) -> ProviderResult<Self> {
        let Target { address, certificates } = target;
        let cannot = |error: Error| cannot_use(&address, certificates.as_deref(), &error);
        let tunnel = if address.starts_with("ssh://") { Some(Arc::new(Tunnel::open(&address).await?)) } else { None };
        let docker = match &certificates {
            None => {
                Docker::connect_with_host(&tunnel.as_ref().map_or_else(|| address.clone(), |tunnel| tunnel.address()))
            }
            Some(dir) => {
                let [key, certificate, authority] = ["key.pem", "cert.pem", "ca.pem"].map(|name| dir.join(name));
                let timeout = TIMEOUT.as_secs();
                Docker::connect_with_ssl(&address, &key, &certificate, &authority, timeout, API_DEFAULT_VERSION)
            }
        };
        let docker = docker.map_err(cannot)?.negotiate_version().await.map_err(cannot)?;
        let version = docker.client_version();
        if version < OLDEST {
            return Err(ProviderError::Unusable(format!(
                "the Docker daemon at {address} is too old: it knows version {version} of the API, and Offload needs \
                 {OLDEST}, which is in Docker 20.10 and newer; update it"
            )));
        }
        Ok(Self { docker: docker.with_timeout(TIMEOUT), address, _tunnel: tunnel })
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
    /// Both sides are to prove who they are.
    verify: bool,
    /// Where the certificates for that are.
    certificates: Option<PathBuf>,
    config_dir: PathBuf,
}

/// Where the daemon is, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    address: String,
    /// The directory with `ca.pem`, `cert.pem` and `key.pem` for TLS; `None`: without.
    certificates: Option<PathBuf>,
}

impl Settings {
    fn target(&self) -> ProviderResult<Target> {
        let own = self.certificates.clone().unwrap_or_else(|| self.config_dir.clone());
        let (address, certificates) = match self.host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => (host.to_owned(), self.verify.then_some(own.clone())),
            None => match self.context_name()? {
                Some(name) => context(&self.config_dir, &name)?,
                None => (DEFAULT_ADDRESS.to_owned(), None),
            },
        };
        let certificates = match address.split_once("://").map(|(scheme, _)| scheme) {
            Some("unix" | "ssh") => None,
            Some("tcp" | "http") => certificates,
            Some("https") => Some(certificates.unwrap_or(own)),
            _ => {
                return Err(ProviderError::Unusable(format!(
                    "{address:?} is no address of a Docker daemon; DOCKER_HOST is to be unix://PATH, tcp://HOST:PORT or \
                     ssh://HOST"
                )));
            }
        };
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            if let Some(dir) = &certificates
                && let Err(error) = std::fs::File::open(dir.join(name))
            {
                return Err(ProviderError::Unusable(format!(
                    "the Docker daemon at {address} is to be reached with TLS, and {} cannot be read: {error}; \
                     DOCKER_CERT_PATH is to name the directory with ca.pem, cert.pem and key.pem",
                    dir.join(name).display()
                )));
            }
        }
        Ok(Target { address, certificates })
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

/// The address in a context's file, whose directory is named by a hash of the context's name, and where its certificates
/// are, if it has any.
fn context(config_dir: &Path, name: &str) -> ProviderResult<(String, Option<PathBuf>)> {
    let mut hash = String::new();
    for byte in Sha256::digest(name) {
        let _ = write!(hash, "{byte:02x}");
    }
    let path = config_dir.join("contexts/meta").join(&hash).join("meta.json");
    let meta = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let host = meta.as_ref().and_then(|meta| Some(meta.pointer("/Endpoints/docker/Host")?.as_str()?.to_owned()));
    let host = host.ok_or_else(|| {
        ProviderError::Unusable(format!(
            "the Docker context {name:?} is in use, and {} does not say where its daemon is; choose another with \
             `docker context use`, or set DOCKER_HOST",
            path.display()
        ))
    })?;
    let certificates = config_dir.join("contexts/tls").join(hash).join("docker");
    Ok((host, certificates.join("ca.pem").exists().then_some(certificates)))
}

/// What keeps the daemon at `address` from being used, and what to do.
fn cannot_use(address: &str, certificates: Option<&Path>, error: &Error) -> ProviderError {
    let said = told(error);
    let place = certificates.map(|dir| dir.display().to_string()).unwrap_or_default();
    let kind = match error {
        // Only whether it is there was looked at, which may have been refused, too.
        Error::SocketNotFoundError(_) => address
            .strip_prefix("unix://")
            .and_then(|path| std::fs::symlink_metadata(path).err())
            .map(|error| error.kind()),
        _ => io_kind(error),
    };
    let reason = match (error, kind) {
        (_, Some(io::ErrorKind::PermissionDenied)) => format!(
            "you are not permitted to use the Docker daemon at {address}; join its group (`sudo usermod -aG docker \
             $USER`, then log in again), or run Docker rootless"
        ),
        (Error::DockerResponseServerError { .. }, _) if said.contains("HTTP request to an HTTPS server") => format!(
            "the Docker daemon at {address} is to be reached with TLS; set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to \
             the directory with ca.pem, cert.pem and key.pem"
        ),
        _ if certificates.is_some() && said.contains("InvalidContentType") => {
            format!("the Docker daemon at {address} does not speak TLS ({said}); unset DOCKER_TLS_VERIFY")
        }
        _ if certificates.is_some() && said.contains("invalid peer certificate") => format!(
            "the Docker daemon at {address} does not prove that it is the one ({said}); {place}/ca.pem is to be what its \
             certificate was signed with, and the certificate is to name its host"
        ),
        // It closes the connection, with or without an alert that says why.
        _ if certificates.is_some() && (said.contains("fatal alert") || said.contains("connection")) => format!(
            "the Docker daemon at {address} does not take the certificate {place}/cert.pem ({said}); it is to be signed \
             with what the daemon was given by --tlscacert"
        ),
        (Error::SocketNotFoundError(_), _) | (_, Some(io::ErrorKind::NotFound)) => {
            format!(
                "there is no Docker daemon at {address}; start it (`sudo systemctl start docker`), or set DOCKER_HOST"
            )
        }
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
            said
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
        Settings { host: None, context: None, verify: false, certificates: None, config_dir: config_dir.to_owned() }
    }

    #[test]
    fn the_daemon_is_where_the_docker_command_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = |settings: Settings| settings.target().unwrap();
        let address = |settings: Settings| target(settings).address;
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

        // With certificates, a context is reached by TLS; so is a host if that is asked for.
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            let tls = dir.path().join("contexts/tls").join(meta.file_name().unwrap()).join("docker");
            std::fs::create_dir_all(&tls).unwrap();
            std::fs::write(tls.join(name), "").unwrap();
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::write(meta.join("meta.json"), text.replace("unix:///run/user/7/docker.sock", "tcp://box:2376"))
            .unwrap();
        let found = target(settings(dir.path()));
        assert!(found.address == "tcp://box:2376" && found.certificates.unwrap().ends_with("docker"));
        let host = |host: &str| Settings { host: Some(host.to_owned()), ..settings(dir.path()) };
        assert_eq!(target(host("tcp://box:2375")).certificates, None);
        let own = Some(dir.path().to_owned());
        assert_eq!(target(Settings { verify: true, ..host("tcp://box:2376") }).certificates, own);
        assert_eq!(target(host("https://box:2376")).certificates, own);
        assert_eq!(target(Settings { verify: true, ..host("unix:///run/docker.sock") }).certificates, None);
    }

    #[test]
    fn addresses_that_cannot_be_used_say_why_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |settings: Settings| settings.target().unwrap_err().to_string();
        let host = |host: &str| Settings { host: Some(host.to_owned()), ..settings(dir.path()) };
        let tls = refused(Settings { verify: true, ..host("tcp://box:2376") });
        assert!(
            tls.contains("is to be reached with TLS, and ") && tls.contains("DOCKER_CERT_PATH is to name"),
            "{tls}"
        );
        assert!(refused(host("box")).starts_with("\"box\" is no address of a Docker daemon"));
        let context = refused(Settings { context: Some("gone".to_owned()), ..settings(dir.path()) });
        assert!(context.starts_with("the Docker context \"gone\" is in use"), "{context}");
    }

    fn without_tls(address: String) -> Target {
        Target { address, certificates: None }
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_or_not_listening_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let absent = format!("unix://{}", dir.path().join("absent.sock").display());
        let error = Daemon::connect_to(without_tls(absent.clone())).await.unwrap_err();
        assert!(matches!(error, ProviderError::Unusable(_)));
        assert_eq!(
            error.to_string(),
            format!(
                "there is no Docker daemon at {absent}; start it (`sudo systemctl start docker`), or set DOCKER_HOST"
            )
        );
        let socket = dir.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let error =
            Daemon::connect_to(without_tls(format!("unix://{}", socket.display()))).await.unwrap_err().to_string();
        assert!(error.contains("dead.sock does not answer: connection refused; start it"), "{error}");
    }

    #[tokio::test]
    async fn a_daemon_that_is_ill_is_told_in_its_own_words() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let serve = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let body = r#"{"message": "disk quota exceeded"}"#;
                let head = format!(
                    "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n\
                     Content-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + body).as_bytes()).await;
            }
        });
        let error = Daemon::connect_to(without_tls(format!("unix://{}", socket.display()))).await.unwrap_err();
        serve.abort();
        assert!(matches!(error, ProviderError::Unusable(_)));
        assert!(error.to_string().contains("refuses to serve (500): disk quota exceeded"), "{error}");
    }
}
