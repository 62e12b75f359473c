//! Where a store is, checked, and how it is connected to.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use super::Reason;
use crate::config::Store;
use crate::config::store::{StorePlace, StoreUrl};
use crate::tls::files;

/// Commands that wait to be written; more wait with those who send them, within their deadlines.
const BUFFER: usize = 256;
/// How long one address of a name is tried alone before the next one is, too (RFC 8305 s5).
const HEAD_START: Duration = Duration::from_millis(250);

/// What runs a connection, until it ends.
pub(super) type Driver = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where a store is, and what it is told first.
pub(super) struct Target {
    place: StorePlace,
    settings: RedisConnectionInfo,
    /// Authorities instead of the system's.
    authorities: Option<Vec<CertificateDer<'static>>>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    /// Checks what is written; problems have their key before them. Files are read only relative to a `base`.
    pub(super) fn new(options: &Store, base: Option<&Path>) -> Result<Self, Vec<(&'static str, String)>> {
        let mut problems = Vec::new();
        let settings = settings(options, &mut problems);
        let mut authorities = None;
        match (&options.tls, base) {
            (Some(_), _) if !options.url.is_tls() => {
                problems.push(("tls", "belongs to a `url` with `rediss://`".to_owned()));
            }
            (Some(tls), Some(base)) => match files::certificates(base, &tls.ca) {
                Ok(found) => authorities = Some(found),
                Err(message) => problems.push(("tls.ca", message)),
            },
            _ => {}
        }
        let place = options.url.place.clone();
        let tls = match (&place, base) {
            (StorePlace::Tcp { host, tls: true, .. }, Some(_)) => connector(host, authorities.as_deref())
                .map_err(|(key, message)| problems.push((key, message)))
                .ok(),
            _ => None,
        };
        if problems.is_empty() { Ok(Self { place, settings, authorities, tls }) } else { Err(problems) }
    }

    /// Whether files hold the same for both.
    pub(super) fn same_files(&self, other: &Self) -> bool {
        self.authorities == other.authorities
    }

    /// Connects and proves who it is.
    pub(super) async fn connect(&self) -> Result<(MultiplexedConnection, Driver), Reason> {
        let refused = |error: io::Error| Reason::unreachable(&error);
        match &self.place {
            StorePlace::Unix(path) => self.begin(UnixStream::connect(path).await.map_err(refused)?).await,
            StorePlace::Tcp { host, port, .. } => {
                let addresses = lookup_host((host.as_str(), *port)).await.map_err(refused)?.collect();
                let stream = first_of(addresses, TcpStream::connect::<SocketAddr>).await.map_err(refused)?;
                stream.set_nodelay(true).map_err(refused)?;
                match &self.tls {
                    None => self.begin(stream).await,
                    Some((connector, name)) => {
                        let stream = connector.connect(name.clone(), stream).await.map_err(refused)?;
                        self.begin(stream).await
                    }
                }
            }
        }
    }

    async fn begin<S>(&self, stream: S) -> Result<(MultiplexedConnection, Driver), Reason>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Who asks has a deadline of his own.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(BUFFER);
        let made = MultiplexedConnection::new_with_config(&self.settings, stream, config).await;
        let (connection, driver) = made.map_err(|error: RedisError| Reason::from(error))?;
        Ok((connection, Box::pin(driver)))
    }
}

/// Connects to whichever of these addresses answers first, if the earlier ones do not in time. Behind some there may
/// be nobody who even refuses.
async fn first_of<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut why = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let (mut addresses, mut attempts) = (addresses.into_iter(), FuturesUnordered::new());
    loop {
        attempts.extend(addresses.next().map(&connect));
        tokio::select! {
            done = attempts.next() => match done {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => why = error,
                None => return Err(why),
            },
            () = sleep(HEAD_START), if !addresses.as_slice().is_empty() => {}
        }
    }
}

fn settings(options: &Store, problems: &mut Vec<(&'static str, String)>) -> RedisConnectionInfo {
    let StoreUrl { username, password, db, .. } = &options.url;
    let twice = || "is in `url` already".to_owned();
    if options.username.is_some() && username.is_some() {
        problems.push(("username", twice()));
    }
    if options.password.is_some() && password.is_some() {
        problems.push(("password", twice()));
    }
    let username = options.username.as_ref().or(username.as_ref());
    let password = options.password.as_ref().or(password.as_ref());
    let mut settings = RedisConnectionInfo::default().set_db(*db).set_skip_set_lib_name();
    if let Some(username) = username {
        settings = settings.set_username(username);
        if password.is_none() {
            let key = if options.username.is_some() { "username" } else { "url" };
            problems.push((key, "a user needs a `password` too".to_owned()));
        }
    }
    if let Some(password) = password {
        settings = settings.set_password(password.expose());
    }
    settings
}

fn connector(
    host: &str,
    authorities: Option<&[CertificateDer<'static>]>,
) -> Result<(TlsConnector, ServerName<'static>), (&'static str, String)> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ("url", "the host is not one that a certificate can be for".to_owned()))?;
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(certificates) => {
            for certificate in certificates {
                let unusable = |error| ("tls.ca", format!("holds an unusable authority: {error}"));
                roots.add(certificate.clone()).map_err(unusable)?;
            }
        }
        None => pingora::tls::load_platform_certs_incl_env_into_store(&mut roots)
            .map_err(|_| ("url", "the system's certificate authorities cannot be read".to_owned()))?,
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((TlsConnector::from(Arc::new(config)), name))
}

/// The files that a store names.
pub(crate) fn files_of(options: &Store) -> impl Iterator<Item = &PathBuf> {
    options.tls.iter().map(|tls| &tls.ca)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const SILENT: &str = "192.0.2.1:6379";
    const REFUSING: &str = "192.0.2.2:6379";
    const GOOD: &str = "192.0.2.3:6379";

    /// Which of these is connected to.
    async fn connected(addresses: &[&str]) -> io::Result<SocketAddr> {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let connect = |address: SocketAddr| async move {
            match &*address.to_string() {
                SILENT => pending().await,
                REFUSING => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                _ => Ok(address),
            }
        };
        first_of(addresses, connect).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_leaves_the_others_their_time() {
        let started = tokio::time::Instant::now();
        let found = connected(&[SILENT, REFUSING, SILENT, GOOD]).await.expect("one is good");
        assert_eq!(found.to_string(), GOOD);
        let took = started.elapsed();
        assert!((HEAD_START * 2..HEAD_START * 3).contains(&took), "{took:?}: who refuses takes none");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_refusal_is_told_and_that_there_is_no_address() {
        let refused = connected(&[REFUSING, REFUSING]).await.expect_err("nobody is there");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connected(&[]).await.expect_err("none").kind(), io::ErrorKind::NotFound);
    }
}
