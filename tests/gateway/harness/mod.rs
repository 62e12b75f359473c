//! What the tests are made of: the gateway as a child process, scripted origins, and clients that
//! say exactly what they are told.

mod browser;
pub(crate) mod cached;
mod checked;
mod client;
mod dns;
mod etcd;
pub(crate) mod frames;
mod gateway;
pub(crate) mod h2c;
pub(crate) mod h2raw;
mod haproxy;
mod nginx;
mod oidc;
mod origin;
mod program;
mod redis;
pub(crate) mod secure_origin;
mod tls;
mod wire;
#[cfg(feature = "zookeeper")]
pub(crate) mod zookeeper;

use std::future::Future;
use std::time::Duration;

use sha2::{Digest, Sha256};

pub(crate) use browser::Browser;
pub(crate) use checked::{Checked, Grpc, tls_origin};
pub(crate) use client::{exchange, get, request};
pub(crate) use dns::{Dns, Reply};
pub(crate) use etcd::{Etcd, free_port, own_address};
pub(crate) use gateway::{Gateway, refused_to_start};
pub(crate) use h2c::{H2c, h2_over};
pub(crate) use h2raw::H2Raw;
pub(crate) use haproxy::Haproxy;
pub(crate) use nginx::Nginx;
pub(crate) use oidc::Oidc;
pub(crate) use origin::{Origin, refusing, refusing_each, token};
pub(crate) use program::Program;
pub(crate) use redis::Redis;
pub(crate) use secure_origin::{Identity, TlsOrigin};
pub(crate) use tls::{Authority, Client, Kind, Secure, write_pair};
pub(crate) use wire::{Answer, Broken, Head, Wire};
#[cfg(feature = "zookeeper")]
pub(crate) use zookeeper::Zookeeper;

/// Longest wait for anything that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Waits for something that should happen soon; names it when it does not.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(SOON, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {SOON:?} in vain for {what}"),
    }
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            match ask() {
                Some(answer) => return answer,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

/// `length` bytes that never repeat in step with any buffer.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

/// A hash that grows.
#[derive(Default)]
pub(crate) struct Hash {
    state: Sha256,
    pub(crate) bytes: usize,
}

impl Hash {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len();
    }

    pub(crate) fn hex(self) -> String {
        self.state.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
