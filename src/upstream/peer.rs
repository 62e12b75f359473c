//! From a chosen backend to the peer that Pingora connects to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::HOST;
use pingora::protocols::{ALPN, TcpKeepalive};
use pingora::upstreams::peer::HttpPeer;
use tokio::net::TcpStream;

use super::{Backend, Picked, Upstream};
use crate::config::upstream::{HostHeader, Protocol, relative};

/// What a certificate has to be for where nobody says that: a name that is nobody's (RFC 6761 s6.4), so that no
/// connection comes about. Without a name, Pingora would take any certificate.
const NOBODY: &str = "nobody.invalid";
/// How long nothing comes before the other end is asked whether it is there, how long after that again, and how often in
/// vain before the connection is dead.
const KEEPALIVE: (Duration, Duration, usize) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// Requests in flight on one HTTP/2 connection; Pingora's own default is one.
const H2_STREAMS: usize = 100;

impl Upstream {
    /// The peer for this backend: every limit, protocol and trust setting of the upstream applied.
    pub fn peer(&self, picked: &Picked) -> HttpPeer {
        let mut peer = self.peer_at(picked.address, self.server_name(&picked.backend));
        peer.options.idle_timeout = Some(self.idle_timeout(picked));
        peer
    }

    /// A plain connection to this backend, which was just chosen, that is waiting for a request; for one that must not be
    /// sent twice, it is asked of the system whether the backend has closed it.
    pub fn reuse(&self, picked: &Picked, once: bool) -> Option<TcpStream> {
        picked.backend.idle.take(picked.address, once, picked.guard.started())
    }

    /// Keeps a connection to this backend from now on for the next request, if it may be kept.
    pub fn keep(&self, picked: &Picked, stream: TcpStream, now: Instant) {
        let pool = &self.written.pool;
        let most = usize::try_from(pool.idle).unwrap_or(usize::MAX);
        picked.backend.idle.put(stream, picked.address, most, now + pool.idle_timeout.get());
    }

    /// The peer for this address: every limit, protocol and trust setting of the upstream applied.
    pub(super) fn peer_at(&self, address: SocketAddr, server_name: &str) -> HttpPeer {
        let tls = self.trust.as_ref();
        let is_unknown = server_name.is_empty() && tls.is_some_and(|tls| tls.verify);
        let server_name = if is_unknown { NOBODY } else { server_name };
        let mut peer = HttpPeer::new(address, tls.is_some(), server_name.to_owned());
        // Pingora pools by address, SNI and flags, but knows neither authorities nor protocols.
        peer.group_key = self.group_key;
        peer.client_cert_key = tls.and_then(|tls| tls.client.clone());
        let (options, timeouts) = (&mut peer.options, &self.written.timeouts);
        options.connection_timeout = Some(timeouts.connect.get());
        options.total_connection_timeout = Some(timeouts.connect.get());
        options.read_timeout = timeouts.read.get();
        options.write_timeout = timeouts.read.get();
        options.verify_cert = tls.is_none_or(|tls| tls.verify);
        options.verify_hostname = options.verify_cert;
        options.ca = tls.and_then(|tls| tls.ca.clone());
        options.alpn = match self.written.protocol {
            Protocol::Http1 => ALPN::H1,
            Protocol::H2 | Protocol::H2c => ALPN::H2,
            Protocol::Auto => ALPN::H2H1,
        };
        options.max_h2_streams = H2_STREAMS;
        options.tcp_keepalive = self.keepalive.then(keepalive);
        peer
    }

    /// What the backend sees as `Host`, given what the client sent. An empty `original` is replaced
    /// by the backend's own address.
    pub fn host_header<'a>(&'a self, picked: &'a Picked, original: &'a str) -> &'a str {
        self.host_for(&picked.backend, original)
    }

    /// What the first backend would see, for requests that are not sent.
    pub fn likely_host(&self, original: &str) -> String {
        let now = self.backends.now();
        let first = now.balancer.backends().first();
        first.map_or(original, |backend| self.host_for(backend, original)).to_owned()
    }

    fn host_for<'a>(&'a self, backend: &'a Backend, original: &'a str) -> &'a str {
        match &self.written.host {
            HostHeader::Preserve if !original.is_empty() => original,
            HostHeader::Preserve | HostHeader::Backend => backend.authority(),
            HostHeader::Name(name) => name,
        }
    }

    /// Never empty with TLS: an IP backend without a written name was refused when the upstream was built, and so were
    /// registries that tell whom to trust.
    pub(super) fn server_name<'a>(&'a self, backend: &'a Backend) -> &'a str {
        let Some(tls) = &self.trust else { return "" };
        let told = || self.following().and_then(|following| following.written().server_name().map(relative));
        tls.sni.as_deref().or_else(|| backend.name().map(relative)).or_else(told).unwrap_or_default()
    }

    /// How long the connection may idle afterwards. Pingora bounds its pool only as a whole; so the
    /// connections that would exceed ours are closed at once.
    fn idle_timeout(&self, picked: &Picked) -> Duration {
        let pool = &self.written.pool;
        let keep = usize::try_from(pool.idle).is_ok_and(|idle| picked.guard.rank <= idle);
        if keep { pool.idle_timeout.get() } else { Duration::ZERO }
    }
}

fn keepalive() -> TcpKeepalive {
    let (idle, interval, count) = KEEPALIVE;
    TcpKeepalive {
        idle,
        interval,
        count,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    }
}

/// The host a request head names: its `Host`, else nothing.
pub(super) fn host_of(headers: &HeaderMap) -> &str {
    headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_backend_of_which_no_name_is_known_is_not_trusted() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let written = json!({
            "name": "users", "backends": [{"address": "192.0.2.1:443"}], "tls": {"sni": "users.test"},
        });
        let written = serde_json::from_value(written).unwrap();
        let mut upstream = Upstream::build(&written, Path::new(""), None).unwrap();
        let name = |upstream: &Upstream| {
            let backend = &upstream.backends()[0];
            let peer = upstream.peer_at("192.0.2.1:443".parse().unwrap(), upstream.server_name(backend));
            (peer.sni, peer.options.verify_cert)
        };
        assert_eq!(name(&upstream), ("users.test".to_owned(), true));
        upstream.trust.as_mut().unwrap().sni = None;
        assert_eq!(name(&upstream), (NOBODY.to_owned(), true));
        upstream.trust.as_mut().unwrap().verify = false;
        assert_eq!(name(&upstream), (String::new(), false), "that is what is written");
    }
}
