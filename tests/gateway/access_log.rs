//! The access log in its formats, written by the real binary and changed while it serves.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::harness::{Gateway, Origin, Wire, exchange, get, soon, until};

const ROUTES: &str = "routes: [{name: all, respond: {body: pong}}]";

/// A gateway that writes its log to a pipe that nobody reads; it is killed when dropped.
struct Unread {
    child: Child,
    folder: TempDir,
    stderr: Arc<Mutex<Vec<String>>>,
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Unread {
    fn start() -> Self {
        let folder = TempDir::new().expect("a temporary directory");
        // The upgrade socket is in it.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("our own folder");
        Self::write(&folder, "json");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollhouse"));
        command.env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET");
        command.env("XDG_RUNTIME_DIR", folder.path()).env("STATE_DIRECTORY", folder.path());
        command.arg("run").arg("-c").arg(folder.path().join("tollhouse.yaml")).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the gateway starts");
        let stderr: Arc<Mutex<Vec<String>>> = Arc::default();
        let (pipe, lines) = (child.stderr.take().expect("piped"), stderr.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                lines.lock().push(line);
            }
        });
        Self { child, folder, stderr }
    }

    fn write(folder: &TempDir, format: &str) {
        let any = "address: \"127.0.0.1:0\"";
        let text = format!(
            "version: 1\nadmin: {{{any}}}\nlisteners: [{{name: plain, {any}}}]\n\
             observability: {{access_log: {{format: {format}}}}}\n{ROUTES}\n"
        );
        std::fs::write(folder.path().join("tollhouse.yaml"), text).expect("write");
    }

    async fn says(&self, text: &str) -> String {
        until(text, || self.stderr.lock().iter().find(|line| line.contains(text)).cloned()).await
    }

    async fn bound(&self, text: &str) -> SocketAddr {
        let line = self.says(text).await;
        let address = line.rsplit_once("address=").and_then(|(_, address)| address.trim().parse().ok());
        address.expect("an address")
    }

    /// Lines of the log that were dropped.
    async fn dropped(&self) -> u64 {
        let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let text = exchange(self.bound("admin bound address=").await, ask).await.expect("metrics").text();
        let count = text.lines().find_map(|line| line.strip_prefix("tollhouse_access_log_dropped_total "));
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    /// Asks until the pipe is full, and the queue before it: that is of 8192 lines.
    async fn fill(&self) {
        let (address, before) = (self.bound("bound listener=plain").await, self.dropped().await);
        let client = || {
            tokio::spawn(async move {
                let mut client = Wire::connect(address).await;
                for _ in 0..2_500 {
                    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
                    client.answer().await.expect("an answer");
                }
            })
        };
        for client in [client(), client(), client(), client()] {
            client.await.expect("no panic");
        }
        assert!(self.dropped().await > before);
    }
}

/// Has the gateway write its log another way.
async fn reformat(gateway: &Gateway, format: &str, count: usize) {
    let text = gateway.text(ROUTES).replace("access_log: {", &format!("access_log: {{format: '{format}', "));
    std::fs::write(gateway.file(), text).expect("write");
    until("a reload", || (gateway.said("configuration reloaded") >= count).then_some(())).await;
}

async fn last_line(gateway: &Gateway, part: &str) -> String {
    until("a line in the access log", || {
        let text = gateway.log_text();
        let line = text.split_inclusive('\n').find(|line| line.contains(part) && line.ends_with('\n'));
        line.map(|line| line.trim_end().to_owned())
    })
    .await
}

/// Apache's and NGINX's `combined`, with `\xHH` for what could end its quotes.
#[tokio::test]
async fn a_combined_line_is_one_that_tools_read() {
    let gateway = Gateway::start(ROUTES).await;
    reformat(&gateway, "combined", 1).await;
    let request = "GET /a%22b?api_key=s3cret HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\
                   User-Agent: x\" 200 1 \"\\\r\nReferer: https://r.test/?access_token=s3cret\r\n\r\n";
    exchange(gateway.address(), request).await.expect("an answer");
    let line = last_line(&gateway, "/a%22b").await;
    let pattern = regex::Regex::new(
        "^127\\.0\\.0\\.1 - - \\[[0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}:[0-9:]{8} \\+0000\\] (.*)$",
    );
    let found = pattern.expect("a pattern").captures(&line).map(|found| found[1].to_owned());
    assert_eq!(
        found.as_deref(),
        Some(
            "\"GET /a%22b?api_key=*** HTTP/1.1\" 200 4 \"https://r.test/?access_token=***\" \
             \"x\\x22 200 1 \\x22\\x5C\""
        ),
        "{line}"
    );
}

#[tokio::test]
async fn a_template_takes_effect_on_reload() {
    let gateway = Gateway::start(ROUTES).await;
    get(gateway.address(), "/json").await;
    gateway.log_line(|line| line["path"] == "/json").await;
    reformat(&gateway, "${request.method} ${request.path} ${status} ${bytes_out} ${route} ${upstream}", 1)
        .await;
    get(gateway.address(), "/template").await;
    assert_eq!(last_line(&gateway, "/template").await, "GET /template 200 4 all -");
}

#[tokio::test]
async fn what_a_line_hides_goes_by_the_document_that_its_request_began_on_and_by_the_one_in_use() {
    let (origin, mut taken) = Origin::handing_over().await;
    let rest = format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes:\n\
         - {{name: open, match: {{paths: [/open, /late]}}, upstream: origin}}\n\
         - {{name: all, respond: {{body: pong}}}}",
        origin.address
    );
    let gateway = Gateway::start(&rest).await;
    let reload = async |text: &str, count: usize| {
        std::fs::write(gateway.file(), text).expect("write");
        until("a reload", || (gateway.said("configuration reloaded") >= count).then_some(())).await;
    };
    let query = async |path: &str| gateway.log_line(|line| line["path"] == path).await["query"].clone();
    // Not quite what the gateway began with: to a watch that has not looked meanwhile, nothing would have changed.
    let showing = gateway.text(&format!("{rest}\n"));
    let hiding = showing.replace("access_log: {", "access_log: {redact: ['query:token'], ");
    reload(&hiding, 1).await;
    let mut client = Wire::connect(gateway.address()).await;
    let mut open = async |client: &mut Wire, path: &str| {
        client.send(format!("GET {path}?token=s3cret HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let mut wire = soon("a request", taken.recv()).await.expect("a connection");
        wire.head().await.expect("a request");
        wire
    };
    let end = async |client: &mut Wire, mut wire: Wire| {
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
    };
    let hidden = open(&mut client, "/open").await;
    reload(&showing, 2).await;
    end(&mut client, hidden).await;
    assert_eq!(query("/open").await, "token=***");
    get(gateway.address(), "/shown?token=s3cret").await;
    assert_eq!(query("/shown").await, "token=s3cret");
    let late = open(&mut client, "/late").await;
    // A log that cannot be opened refuses the change.
    std::fs::write(gateway.file(), hiding.replace("to: \"", "to: \"/no/such/folder")).expect("write");
    gateway.says("cannot open the access log").await;
    // What the new document hides is hidden at once, also of what is no request.
    reload(&hiding, 3).await;
    // Who has it hidden saw it in the lines before.
    end(&mut client, late).await;
    assert_eq!(query("/late").await, "token=***");
    get(gateway.address(), "/hidden?token=s3cret").await;
    assert_eq!(query("/hidden").await, "token=***");
    let broken = exchange(gateway.address(), "GET /broken?token=s3cret\r\n\r\n").await;
    assert_eq!((broken.expect("an answer").status, query("/broken").await), (400, "token=***".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_the_log_keeps_no_gateway_from_reloading_and_ending() {
    let mut gateway = Unread::start();
    gateway.fill().await;
    let dropped = gateway.dropped().await;
    Unread::write(&gateway.folder, "combined");
    gateway.says("configuration reloaded").await;
    assert!(gateway.dropped().await >= dropped, "what the old log dropped stays counted");
    gateway.fill().await;
    let mut kill = Command::new("kill");
    assert!(kill.arg("-TERM").arg(gateway.child.id().to_string()).status().expect("kill runs").success());
    let status = until("the gateway to end", || gateway.child.try_wait().expect("a child")).await;
    assert_eq!(status.code(), Some(0));
}
