//! A real Redis, which tests stop, pause and start again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use redis::{Connection, FromRedisValue};
use tempfile::TempDir;

use super::until;

const PROGRAM: &str = "/usr/bin/redis-server";

/// A Redis on a Unix socket; it is killed when dropped.
pub(crate) struct Redis {
    child: Option<Child>,
    directory: TempDir,
    options: Vec<String>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Redis {
    /// An empty one.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// As [`Redis::start`], with these options, such as `--requirepass`.
    pub(crate) async fn with(options: &[&str]) -> Self {
        let mut redis = Self::later(options);
        redis.restart().await;
        redis
    }

    /// One that is not running yet.
    pub(crate) fn later(options: &[&str]) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: install the package `redis-server`");
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Self { child: None, directory: TempDir::new().expect("a temporary directory"), options }
    }

    /// Starts it, empty, where it was.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let child = Command::new(PROGRAM)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("Redis starts");
        let child = self.child.insert(child);
        let socket = self.directory.path().join("redis.sock");
        until("Redis", || {
            assert!(child.try_wait().expect("a child").is_none(), "Redis ended");
            std::os::unix::net::UnixStream::connect(&socket).ok()
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

    /// Has it stand still, with its connections open, or go on.
    pub(crate) fn pause(&self, paused: bool) {
        let pid = self.child.as_ref().expect("it runs").id();
        assert!(super::gateway::kill(if paused { "STOP" } else { "CONT" }, pid));
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// What a document calls it.
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A connection of its operator's.
    pub(crate) fn connection(&self) -> Connection {
        let mut url = self.url();
        if let Some(at) = self.options.iter().position(|option| option == "--requirepass") {
            url = format!("{url}?pass={}", self.options[at + 1]);
        }
        redis::Client::open(url).and_then(|client| client.get_connection()).expect("a connection")
    }

    /// Asks it something, as its operator.
    pub(crate) fn ask<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut asked = redis::cmd(command[0]);
        for part in &command[1..] {
            asked.arg(*part);
        }
        asked.query(&mut self.connection()).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Has it take another password from now on, and closes its connections.
    pub(crate) fn rotate(&self, password: &str) {
        let mut operator = self.connection();
        let set = ["CONFIG", "SET", "requirepass", password];
        let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
        for command in [&set[..], &kill[..]] {
            let done = redis::cmd(command[0]).arg(&command[1..]).query(&mut operator);
            let () = done.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        }
    }

    /// Ids of the connections that have run scripts.
    pub(crate) fn clients(&self) -> Vec<String> {
        let list: String = self.ask(&["CLIENT", "LIST"]);
        let ours = list.lines().filter(|line| line.contains("cmd=eval"));
        ours.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    }
}
