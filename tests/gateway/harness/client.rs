//! Requests in one line each.

use std::net::SocketAddr;

use super::{Answer, Broken, Wire};

/// Sends these bytes on a new connection and reads one answer.
pub(crate) async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Result<Answer, Broken> {
    let mut wire = Wire::connect(address).await;
    wire.send(bytes).await;
    wire.answer().await
}

/// Sends a request without a body, with these further lines.
pub(crate) async fn request(address: SocketAddr, line: &str, fields: &str) -> Answer {
    let bytes = format!("{line} HTTP/1.1\r\nHost: example.test\r\n{fields}\r\n");
    let mut wire = Wire::connect(address).await;
    wire.send(&bytes).await;
    let method = line.split(' ').next().unwrap_or_default();
    wire.answer_to(method).await.unwrap_or_else(|e| panic!("{line}: {e:?}"))
}

/// Asks for a path.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, &format!("GET {path}"), "").await
}
