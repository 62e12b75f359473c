//! Programs in Python that speak in lines of JSON: real gRPC peers.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::until;

/// A running program; it is killed when dropped.
pub(crate) struct Python {
    child: Child,
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Python {
    /// Runs a file below `tests` with these arguments.
    pub(crate) fn run(file: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(interpreter())
            .arg("-u")
            .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(file))
            .args(arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
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
    pub(crate) fn tell(&mut self) {
        let input = self.input.as_mut().expect("open until the drop");
        input.write_all(b"\n").expect("it reads");
    }

    /// Waits for a line.
    pub(crate) async fn says(&self, matches: impl Fn(&Value) -> bool) -> Value {
        until("a line from Python", || self.said().into_iter().find(&matches)).await
    }

    /// The lines so far.
    pub(crate) fn said(&self) -> Vec<Value> {
        self.lines.lock().clone()
    }

    /// Waits for its end and gives the last line.
    pub(crate) async fn outcome(&mut self) -> Value {
        let child = &mut self.child;
        let status = until("Python to end", || child.try_wait().expect("a child")).await;
        let last = until("what Python says", || self.lines.lock().last().cloned()).await;
        assert!(status.success(), "Python failed: {last}");
        last
    }
}

/// The interpreter that `tests/setup.sh` prepares.
fn interpreter() -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let python = cache.expect("a home directory").join("tollhouse/python/bin/python");
    assert!(python.exists(), "{} is missing: run `tests/setup.sh test`", python.display());
    python
}
