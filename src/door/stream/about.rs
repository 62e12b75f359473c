//! What else Pingora asks of a stream.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::AsyncWriteExt;

use super::DoorStream;

#[async_trait]
impl Peek for DoorStream {
    /// Shows what the door has read: the whole preface, of a client of HTTP/2.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let n = self.lead.len().min(buf.len());
        buf[..n].copy_from_slice(&self.lead[..n]);
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for DoorStream {
    async fn shutdown(&mut self) {
        let _ = self.flush().await;
        self.inner_mut().close().await;
    }
}

impl UniqueID for DoorStream {
    fn id(&self) -> UniqueIDType {
        self.inner().socket().as_raw_fd()
    }
}

impl Ssl for DoorStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner().ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner().alpn()
    }
}

impl GetTimingDigest for DoorStream {
    // Nobody asks for them.
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }

    fn get_read_pending_time(&self) -> Duration {
        Duration::ZERO
    }

    fn get_write_pending_time(&self) -> Duration {
        Duration::ZERO
    }
}

impl GetProxyDigest for DoorStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.carrier.clone())
    }
}

impl GetSocketDigest for DoorStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        let facts = self.facts();
        let digest = SocketDigest::from_raw_fd(self.inner().socket().as_raw_fd());
        // Filled here, it never asks the kernel.
        let _ = digest.peer_addr.set(facts.peer.map(Into::into));
        let _ = digest.local_addr.set(facts.local.map(Into::into));
        Some(Arc::new(digest))
    }
}
