//! A real ZooKeeper, which tests fill, stop and start again.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use zookeeper_client::{Acls, Client, CreateMode};

use super::etcd::{free_port, own_address};
use super::until;

const JAR: &str = "/usr/share/java/zookeeper.jar";

/// An ensemble of one ZooKeeper; it is killed when dropped.
pub(crate) struct Zookeeper {
    child: Option<Child>,
    directory: TempDir,
    address: String,
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Zookeeper {
    /// An empty one.
    pub(crate) async fn start() -> Self {
        assert!(Path::new(JAR).exists(), "{JAR} is missing: install the package `zookeeper`");
        let directory = TempDir::new().expect("a temporary directory");
        let host = own_address();
        let port = free_port(&host);
        let data = directory.path().join("data");
        let settings = format!(
            "tickTime=200\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={port}\nclientPortAddress={host}\n\
             admin.enableServer=false\n",
            data.display()
        );
        std::fs::write(directory.path().join("zoo.cfg"), settings).expect("written");
        let mut zookeeper = Self { child: None, directory, address: format!("{host}:{port}") };
        zookeeper.restart().await;
        zookeeper
    }

    /// Starts it, with what it had, where it was.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let child = Command::new("/usr/bin/java")
            .args(["-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", JAR])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(self.directory.path().join("zoo.cfg"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Java starts");
        let child = self.child.insert(child);
        until("ZooKeeper", || {
            assert!(child.try_wait().expect("a child").is_none(), "ZooKeeper ended");
            std::net::TcpStream::connect(&self.address).ok()
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

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A session of its own, which ends, with its ephemeral nodes, when it is dropped.
    pub(crate) async fn session(&self) -> Client {
        Client::connector().connect(&self.address).await.expect("a session")
    }
}

/// Makes a node that stays.
pub(crate) async fn create(session: &Client, path: &str, data: &str) {
    let mode = CreateMode::Persistent.with_acls(Acls::anyone_all());
    session.create(path, data.as_bytes(), &mode).await.unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Makes a node that goes with the session.
pub(crate) async fn appear(session: &Client, path: &str, data: &str) {
    let mode = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    session.create(path, data.as_bytes(), &mode).await.unwrap_or_else(|error| panic!("{path}: {error}"));
}
