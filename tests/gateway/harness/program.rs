//! Programs in other languages that speak in lines of JSON: real gRPC peers, a real provider of OpenID Connect.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::until;

/// A running program; it is killed when dropped.
pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Runs a file below `tests` with these arguments, in Python.
    pub(crate) fn python(file: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(cached("python/bin/python"));
        Self::spawn(command.arg("-u").arg(below_tests(file)).args(arguments))
    }

    /// Runs a file below `tests` with the modules of Node.
    pub(crate) fn node(file: &str) -> Self {
        let modules = cached("node/node_modules");
        let folder = modules.parent().expect("a folder");
        Self::spawn(Command::new("/usr/bin/env").arg("node").arg(below_tests(file)).arg(folder))
    }

    fn spawn(command: &mut Command) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let command = command.env_clear().env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (pipe, said) = (child.stdout.take().expect("piped"), lines.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                said.lock().push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")));
            }
        });
        Self { input: child.stdin.take(), child, lines }
    }

    /// Ends it at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child");
    }

    /// Gives it a line to read.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open until the drop");
        input.write_all(format!("{line}\n").as_bytes()).expect("it reads");
    }

    /// Waits for a line.
    pub(crate) async fn says(&self, matches: impl Fn(&Value) -> bool) -> Value {
        until("a line from a program", || self.said().into_iter().find(&matches)).await
    }

    /// The lines so far.
    pub(crate) fn said(&self) -> Vec<Value> {
        self.lines.lock().clone()
    }

    /// Waits for its end and gives the last line.
    pub(crate) async fn outcome(&mut self) -> Value {
        let child = &mut self.child;
        let status = until("a program to end", || child.try_wait().expect("a child")).await;
        let last = until("what a program says", || self.lines.lock().last().cloned()).await;
        assert!(status.success(), "it failed: {last}");
        last
    }
}

fn below_tests(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(file)
}

/// What `tests/setup.sh` prepares.
fn cached(path: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let path = cache.expect("a home directory").join("tollhouse").join(path);
    assert!(path.exists(), "{} is missing: run `tests/setup.sh test`", path.display());
    path
}
