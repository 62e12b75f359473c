//! The gateway as a child process.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use super::{Origin, until};

/// A running gateway; it is killed when dropped, and so is who took its place.
pub(crate) struct Gateway {
    child: Child,
    /// The process that took the child's place, if one did.
    successor: Option<u32>,
    directory: TempDir,
    /// Bound addresses by the listener's name.
    listeners: BTreeMap<String, SocketAddr>,
    stderr: Arc<Mutex<Vec<String>>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(pid) = self.successor {
            kill("KILL", pid);
        }
        if std::thread::panicking() {
            for line in self.stderr.lock().iter() {
                let _ = writeln!(std::io::stderr(), "gateway: {line}");
            }
        }
    }
}

/// What every document begins with: one listener, no admin, the access log in a file.
fn document(directory: &Path, rest: &str) -> String {
    document_with(directory, r#"{name: plain, address: "127.0.0.1:0"}"#, rest)
}

fn document_with(directory: &Path, listeners: &str, rest: &str) -> String {
    let log = directory.join("access.log");
    format!(
        "version: 1\nadmin: {{address: none}}\nlisteners: [{listeners}]\n\
         observability: {{access_log: {{to: \"{}\"}}}}\n{rest}\n",
        log.display()
    )
}

impl Gateway {
    /// Starts with a document of these keys, beside `version`, `admin`, `listeners` and `observability`.
    pub(crate) async fn start(rest: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let text = document(directory.path(), rest);
        std::fs::write(directory.path().join("tollhouse.yaml"), text).expect("write");
        Self::launch(directory).await
    }

    /// Starts with one route that sends everything to this origin, and these further keys.
    pub(crate) async fn before(origin: &Origin, rest: &str) -> Self {
        Self::to(origin.address, rest).await
    }

    /// As [`before`](Self::before), with an admin listener for [`refused`](Self::refused).
    pub(crate) async fn counting(origin: &Origin, rest: &str) -> Self {
        Self::counting_all(&all_to(origin.address, rest)).await
    }

    /// As [`start`](Self::start), with an admin listener.
    pub(crate) async fn counting_all(rest: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let text = document(directory.path(), rest);
        let text = text.replace("admin: {address: none}", "admin: {address: \"127.0.0.1:0\"}");
        std::fs::write(directory.path().join("tollhouse.yaml"), text).expect("write");
        Self::launch(directory).await
    }

    /// As [`start`](Self::start), with an admin listener for who has [`TOKEN`](Self::TOKEN).
    pub(crate) async fn administered(rest: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        std::fs::write(directory.path().join("tollhouse.yaml"), Self::administered_text(&directory, rest))
            .expect("write");
        Self::launch(directory).await
    }

    /// Writes the document anew for an [`administered`](Self::administered) gateway.
    pub(crate) fn rewrite_administered(&self, rest: &str) {
        std::fs::write(self.file(), Self::administered_text(&self.directory, rest)).expect("write");
    }

    fn administered_text(directory: &TempDir, rest: &str) -> String {
        let admin = format!("admin: {{address: \"127.0.0.1:0\", token: {}}}", Self::TOKEN);
        document(directory.path(), rest).replace("admin: {address: none}", &admin)
    }

    /// What opens the admin listener.
    pub(crate) const TOKEN: &str = "an-admin-token";

    /// Asks the admin listener, with JSON as the body if there is some.
    pub(crate) async fn ask_admin(&self, line: &str, body: &str) -> super::Answer {
        let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n", Self::TOKEN);
        let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let bytes = format!("{head}{length}Connection: close\r\n\r\n{body}");
        super::exchange(self.admin().await, bytes).await.unwrap_or_else(|error| panic!("{line}: {error:?}"))
    }

    /// The address of the admin listener.
    async fn admin(&self) -> SocketAddr {
        let bound = self.says("admin bound address=").await;
        let address = bound.rsplit('=').next().and_then(|address| address.trim().parse().ok());
        address.expect("an address")
    }

    /// Starts with one route that sends everything to this address, and these further keys.
    pub(crate) async fn to(address: SocketAddr, rest: &str) -> Self {
        Self::start(&all_to(address, rest)).await
    }

    /// Starts in a folder with files that these listeners need, and these further keys.
    pub(crate) async fn within(directory: TempDir, listeners: &str, rest: &str) -> Self {
        let text = document_with(directory.path(), listeners, rest);
        std::fs::write(directory.path().join("tollhouse.yaml"), text).expect("write");
        Self::launch(directory).await
    }

    /// Writes the document anew, with these listeners and further keys.
    pub(crate) fn rewrite(&self, listeners: &str, rest: &str) {
        let text = document_with(self.directory.path(), listeners, rest);
        std::fs::write(self.file(), text).expect("write");
    }

    /// Starts the program again, after it ended, with what it left.
    pub(crate) async fn again(mut self) -> Self {
        let none = TempDir::new().expect("a temporary directory");
        Self::launch(std::mem::replace(&mut self.directory, none)).await
    }

    async fn launch(directory: TempDir) -> Self {
        // The upgrade socket is in it.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("our own folder");
        let mut command = command(&directory.path().join("tollhouse.yaml"));
        let mut child = command.stdout(Stdio::null()).spawn().expect("the gateway starts");
        let stderr: Arc<Mutex<Vec<String>>> = Arc::default();
        let (pipe, lines) = (child.stderr.take().expect("piped"), stderr.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                lines.lock().push(line);
            }
        });
        let mut gateway = Self { child, successor: None, directory, listeners: BTreeMap::new(), stderr };
        gateway.listeners = until("the listeners", || gateway.listening()).await;
        gateway
    }

    /// The bound addresses, once the gateway says that it accepts on all of them.
    fn listening(&mut self) -> Option<BTreeMap<String, SocketAddr>> {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("the gateway ended with {status}: {:#?}", self.stderr.lock());
        }
        let lines = self.stderr.lock();
        let ready = lines.iter().filter(|line| line.contains("listening listener=")).count();
        let bound: BTreeMap<_, _> = lines.iter().filter_map(|line| bound(line)).collect();
        (ready > 0 && ready == bound.len()).then_some(bound)
    }

    /// The address of the listener `plain`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener("plain")
    }

    /// The address of a listener.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        self.listeners[name]
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.successor.unwrap_or(self.child.id())
    }

    /// Runs `tollhouse upgrade`; gives its exit code and what it said. The process that took the place is the
    /// one that signals go to from then on.
    pub(crate) async fn upgrade(&mut self) -> (Option<i32>, String) {
        let socket = self.upgrade_socket();
        self.upgrade_by("--socket", &socket).await
    }

    /// As [`upgrade`](Self::upgrade), of the gateway that this option names.
    pub(crate) async fn upgrade_by(&mut self, option: &str, path: &Path) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollhouse"));
        command.env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", self.directory.path());
        command.args(["upgrade", "--output", "json", option]).arg(path);
        let output = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
        let output = output.await.expect("no panic");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            let told: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
            assert_eq!(told["old"], self.pid(), "who was replaced");
            self.successor = told["new"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        }
        (output.status.code(), said)
    }

    /// Where the gateway is asked to let another process take its place.
    pub(crate) fn upgrade_socket(&self) -> PathBuf {
        self.directory.path().join("tollhouse-upgrade.sock")
    }

    /// The lines on standard error so far.
    pub(crate) fn stderr(&self) -> Vec<String> {
        self.stderr.lock().clone()
    }

    /// Waits for a line on standard error that contains this.
    pub(crate) async fn says(&self, text: &str) -> String {
        until(text, || self.stderr.lock().iter().find(|line| line.contains(text)).cloned()).await
    }

    /// How many lines on standard error contain this.
    pub(crate) fn said(&self, text: &str) -> usize {
        self.stderr.lock().iter().filter(|line| line.contains(text)).count()
    }

    /// The access log so far, as it is.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default()
    }

    /// The lines of the access log so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.log_text()
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Waits for a line in the access log.
    pub(crate) async fn log_line(&self, matches: impl Fn(&Value) -> bool) -> Value {
        until("a line in the access log", || self.log().into_iter().find(&matches)).await
    }

    /// The document's path.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("tollhouse.yaml")
    }

    /// What the document has to be for these keys.
    pub(crate) fn text(&self, rest: &str) -> String {
        document(self.directory.path(), rest)
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        assert!(kill(name, self.pid()));
    }

    /// Waits for the process that was started first to end by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the gateway to end", || child.try_wait().expect("a child")).await
    }

    /// How many requests and connections were refused by this rule.
    pub(crate) async fn refused(&self, rule: &str) -> u64 {
        self.number(&format!("tollhouse_requests_refused_total{{reason=\"{rule}\"}}")).await
    }

    /// The number of this series, name and labels as on the page of metrics.
    pub(crate) async fn number(&self, series: &str) -> u64 {
        let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let text = super::exchange(self.admin().await, ask).await.expect("metrics").text();
        let count = text.lines().find_map(|of| of.strip_prefix(series)?.strip_prefix(' '));
        count.unwrap_or_else(|| panic!("{series}: {text}")).parse().expect("a number")
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

pub(super) fn kill(signal: &str, pid: u32) -> bool {
    let mut command = Command::new("kill");
    command.arg(format!("-{signal}")).arg(pid.to_string()).stderr(Stdio::null());
    command.status().expect("kill runs").success()
}

fn all_to(address: SocketAddr, rest: &str) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{address}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]\n{rest}"
    )
}

fn command(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollhouse"));
    let folder = file.parent().expect("a folder");
    // Its upgrade socket is in the folder of the document, and so is who plays the service manager.
    command.env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", folder);
    command.env("STATE_DIRECTORY", folder);
    command.env("NOTIFY_SOCKET", folder.join("notify.sock"));
    command.arg("run").arg("-c").arg(file).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// `... bound listener=NAME address=IP:PORT`.
fn bound(line: &str) -> Option<(String, SocketAddr)> {
    let (_, facts) = line.split_once("bound listener=")?;
    let (name, address) = facts.split_once(" address=")?;
    Some((name.to_owned(), address.trim().parse().ok()?))
}

/// Runs a document that must not start; gives the exit code and what was said.
pub(crate) fn refused_to_start(document: &str) -> (Option<i32>, String) {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("tollhouse.yaml");
    std::fs::write(&file, document).expect("write");
    let mut child = command(&file).stdout(Stdio::null()).spawn().expect("the gateway starts");
    let until = Instant::now() + super::SOON;
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("the gateway runs with {document}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("a child");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
