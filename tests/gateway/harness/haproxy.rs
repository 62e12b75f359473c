//! A real HAProxy, as the origin or in front of the gateway.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{refusing_each, soon};

const PROGRAM: &str = "/usr/sbin/haproxy";

/// A running HAProxy; it is killed when dropped.
pub(crate) struct Haproxy {
    child: Child,
    /// Speaks HTTP/1.1.
    pub(crate) http1: SocketAddr,
    /// Speaks HTTP/2 by prior knowledge.
    pub(crate) h2c: SocketAddr,
    _directory: TempDir,
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Haproxy {
    /// Answers `/empty` with 204, `/same` with 304, and all else with 200 and its version and path.
    pub(crate) async fn start() -> Self {
        Self::with(
            "\x20 http-request return status 204 if { path /empty }\n\
             \x20 http-request return status 304 hdr etag '\"a\"' if { path /same }\n\
             \x20 http-request return status 200 content-type text/plain lf-string \"%HV %[path]\"\n",
        )
        .await
    }

    /// Sends everything to this server, with these options.
    pub(crate) async fn before(server: SocketAddr, options: &str) -> Self {
        Self::with(&format!(
            "  default_backend gateway\nbackend gateway\n  server gateway {server} {options}\n"
        ))
        .await
    }

    async fn with(rules: &str) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: install the package `haproxy`");
        let directory = TempDir::new().expect("a temporary directory");
        // HAProxy does not tell which port 0 became, so ones that are free now are used.
        let [http1, h2c] = refusing_each().await;
        let config = directory.path().join("haproxy.cfg");
        std::fs::write(&config, configuration(http1, h2c, rules)).expect("write");
        let child = Command::new(PROGRAM)
            .args(["-db", "-q", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .expect("HAProxy starts");
        let mut haproxy = Self { child, http1, h2c, _directory: directory };
        haproxy.ready().await;
        haproxy
    }

    async fn ready(&mut self) {
        soon("HAProxy", async {
            while TcpStream::connect(self.h2c).await.is_err() {
                assert!(self.child.try_wait().expect("a child").is_none(), "HAProxy ended");
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

fn configuration(http1: SocketAddr, h2c: SocketAddr, rules: &str) -> String {
    format!(
        "global\n  maxconn 200\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         frontend all\n  bind {http1}\n  bind {h2c} proto h2\n{rules}"
    )
}
