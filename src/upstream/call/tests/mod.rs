//! Calls to real origins on loopback.

mod errors;
mod exchanges;
mod secure;

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

pub(super) fn caller() -> Caller {
    // A second test of the same process finds it installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Caller::new()
}

pub(super) fn upstream(backends: &[SocketAddr], fields: Value) -> Upstream {
    upstream_in(Path::new(""), backends, fields)
}

pub(super) fn upstream_in(base: &Path, backends: &[SocketAddr], fields: Value) -> Upstream {
    let backends: Vec<_> = backends.iter().map(|address| json!({"address": address.to_string()})).collect();
    let mut whole = json!({"name": "origin", "backends": backends});
    for (key, value) in fields.as_object().unwrap() {
        whole[key] = value.clone();
    }
    Upstream::build(&serde_json::from_value(whole).unwrap(), base).unwrap()
}

pub(super) fn request(method: &str, path: &str) -> RequestHeader {
    let mut head = RequestHeader::build(method, path.as_bytes(), None).unwrap();
    head.insert_header("host", "api.example.com").unwrap();
    head
}

pub(super) async fn get(caller: &Caller, upstream: &Upstream) -> Result<Reply, CallError> {
    caller.send(upstream, request("GET", "/"), Payload::EMPTY, CallOptions::default()).await
}

pub(super) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address that refuses connections.
pub(super) async fn refusing() -> SocketAddr {
    listen().await.1
}

/// An origin that answers every request on every connection with `reply`, and gives the heads it
/// received, each with the number of its connection.
pub(super) async fn answering(
    reply: &'static str,
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<(usize, String)>) {
    let (listener, address) = listen().await;
    let (seen, heads) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                while let Some(head) = read_request(&mut stream).await {
                    let _ = seen.send((connection, head));
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, heads)
}

/// An origin whose first connection is handled by `script` once a request head has arrived.
pub(super) async fn scripted<F>(script: impl FnOnce(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        script(stream).await;
    });
    address
}

/// The head of the next request, its body read and dropped by Content-Length; `None` at the end.
pub(super) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}
