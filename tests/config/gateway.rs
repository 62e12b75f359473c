//! The real program, started on ports of the system's choice and ended with the test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for the program to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program, without anything of this process's environment that could matter to it.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollhouse"));
    command.env_remove("TOLLHOUSE_CONFIG").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs a command of the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program runs")
}

/// How a command ended.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("ended by itself")
}

/// What a command printed.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command complained of.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command printed, as JSON.
pub(crate) fn json_of(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A gateway that serves.
pub(crate) struct Gateway {
    child: Child,
    listeners: HashMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
}

impl Gateway {
    /// Serves a file whose addresses have port 0; waits until `listeners` of them and, if there is
    /// one, the admin listener are bound.
    pub(crate) fn start(file: &Path, environment: &[(&str, &str)], listeners: usize, admin: bool) -> Gateway {
        let mut child = program()
            .args(["run", "-c"])
            .arg(file)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let lines = lines(&mut child);
        let mut gateway = Gateway { child, listeners: HashMap::new(), admin: None };
        let mut log = String::new();
        let until = Instant::now() + PATIENCE;
        while gateway.listeners.len() < listeners || (admin && gateway.admin.is_none()) {
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    gateway.note(&line);
                    log.push_str(&line);
                    log.push('\n');
                }
                Err(_) => panic!("{} does not come up; it said:\n{log}", file.display()),
            }
        }
        gateway
    }

    fn note(&mut self, line: &str) {
        let field = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}="))?;
            Some(rest.split_whitespace().next().unwrap_or_default().trim_matches('"').to_owned())
        };
        let Some(address) = field("address").and_then(|address| address.parse().ok()) else { return };
        if line.contains("admin bound") {
            self.admin = Some(address);
        } else if let Some(listener) = field("listener") {
            self.listeners.insert(listener, address);
        }
    }

    /// Where a listener listens.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        self.listeners[name]
    }

    /// Where the admin API listens.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("started with an admin listener")
    }

    /// Whether the process is still there.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the program says; read to the end, so that it never waits for a reader.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}
