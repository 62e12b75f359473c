//! A real etcd, which tests fill, stop and start again.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{exchange, until};

const PROGRAM: &str = "/usr/bin/etcd";

/// A cluster of one etcd; it is killed when dropped.
pub(crate) struct Etcd {
    child: Option<Child>,
    directory: TempDir,
    host: String,
    ports: [u16; 2],
    options: Vec<String>,
    token: Option<String>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An address of loopback that no other test has, so that a port of it can be given up and taken again.
pub(crate) fn own_address() -> String {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    format!("127.101.{high}.{low}")
}

/// A port of this address that is free.
pub(crate) fn free_port(host: &str) -> u16 {
    let listener = TcpListener::bind((host, 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}

impl Etcd {
    /// An empty one.
    pub(crate) async fn start() -> Self {
        let mut etcd = Self::later("http", &[]);
        etcd.restart().await;
        etcd
    }

    /// One that clients reach over TLS, with these options; `{}` stands for a folder with files of its own.
    pub(crate) fn over_tls(files: impl FnOnce(&Path, &str), options: &[&str]) -> Self {
        let etcd = Self::later("https", options);
        files(etcd.directory.path(), &etcd.host);
        etcd
    }

    fn later(scheme: &str, options: &[&str]) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: install the package `etcd-server`");
        let directory = TempDir::new().expect("a temporary directory");
        let host = own_address();
        let ports = [free_port(&host), free_port(&host)];
        let folder = directory.path().display().to_string();
        let mut options: Vec<_> = options.iter().map(|option| option.replace("{}", &folder)).collect();
        let [clients, peers] =
            [format!("{scheme}://{host}:{}", ports[0]), format!("http://{host}:{}", ports[1])];
        for (name, value) in [
            ("--listen-client-urls", &clients),
            ("--advertise-client-urls", &clients),
            ("--listen-peer-urls", &peers),
            ("--initial-advertise-peer-urls", &peers),
        ] {
            options.extend([name.to_owned(), value.clone()]);
        }
        options.push(format!("--initial-cluster=default={peers}"));
        Self { child: None, directory, host, ports, options, token: None }
    }

    /// Starts it, with what it had, where it was.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let child = Command::new(PROGRAM)
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(&self.options)
            // It has to be told that it is wanted where it is not supported.
            .env("ETCD_UNSUPPORTED_ARCH", if cfg!(target_arch = "aarch64") { "arm64" } else { "" })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let child = self.child.insert(child);
        let address = (self.host.as_str(), self.ports[0]);
        until("etcd", || {
            assert!(child.try_wait().expect("a child").is_none(), "etcd ended");
            std::net::TcpStream::connect(address).ok()
        })
        .await;
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Has it run no more (`STOP`), or again (`CONT`).
    pub(crate) fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("it runs");
        assert!(super::gateway::kill(name, child.id()));
    }

    /// Where clients reach it.
    pub(crate) fn address(&self) -> (String, u16) {
        (self.host.clone(), self.ports[0])
    }

    /// What a document calls it.
    pub(crate) fn url(&self) -> String {
        let scheme =
            if self.options.iter().any(|option| option.starts_with("https:")) { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.ports[0])
    }

    /// A file of its folder.
    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Asks it something, as its operator.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let token =
            self.token.as_ref().map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\n{token}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let address = format!("{}:{}", self.host, self.ports[0]).parse().expect("an address");
        let answer = exchange(address, request).await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Writes a key.
    pub(crate) async fn put(&self, key: &str, value: &str) {
        self.put_for(key, value, "0").await;
    }

    /// Writes a key that goes with this lease.
    pub(crate) async fn put_for(&self, key: &str, value: &str, lease: &str) {
        let pair = json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value), "lease": lease});
        self.ask("/v3/kv/put", &pair).await;
    }

    /// Removes a key.
    pub(crate) async fn delete(&self, key: &str) {
        self.ask("/v3/kv/deleterange", &json!({"key": STANDARD.encode(key)})).await;
    }

    /// Forgets everything but what is there now.
    pub(crate) async fn compact(&self) {
        let now = self.ask("/v3/kv/range", &json!({"key": STANDARD.encode("a")})).await;
        self.ask("/v3/kv/compaction", &json!({"revision": now["header"]["revision"], "physical": true}))
            .await;
    }

    /// A lease of so many seconds.
    pub(crate) async fn lease(&self, seconds: u32) -> String {
        let granted = self.ask("/v3/lease/grant", &json!({"TTL": seconds.to_string()})).await;
        granted["ID"].as_str().expect("an id").to_owned()
    }

    /// Lets nobody in any more but `root` and `gateway`, who may read keys that begin with `/users/`.
    pub(crate) async fn protect(&mut self, password: &str) {
        for (path, body) in [
            ("/v3/auth/user/add", json!({"name": "root", "password": "operator"})),
            ("/v3/auth/role/add", json!({"name": "root"})),
            ("/v3/auth/user/grant", json!({"user": "root", "role": "root"})),
            ("/v3/auth/user/add", json!({"name": "gateway", "password": password})),
            ("/v3/auth/role/add", json!({"name": "reader"})),
            (
                "/v3/auth/role/grant",
                json!({"name": "reader", "perm": {
                    "permType": "READ", "key": STANDARD.encode("/users/"), "range_end": STANDARD.encode("/users0"),
                }}),
            ),
            ("/v3/auth/user/grant", json!({"user": "gateway", "role": "reader"})),
            ("/v3/auth/enable", json!({})),
        ] {
            self.ask(path, &body).await;
        }
        let login = json!({"name": "root", "password": "operator"});
        let answer = self.ask("/v3/auth/authenticate", &login).await;
        self.token = answer["token"].as_str().map(str::to_owned);
    }
}
