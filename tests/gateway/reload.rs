//! Changing and ending a gateway under traffic.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::harness::{Gateway, H2c, Origin, Wire, exchange, get, soon, until};

/// Clients that ask without a pause, and count what was not answered as it should be.
struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
    answered: Arc<AtomicUsize>,
}

impl Traffic {
    fn start(address: std::net::SocketAddr) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let clients = [true, true, false].map(|keep| {
            let (stop, answered) = (stop.clone(), answered.clone());
            tokio::spawn(async move {
                let (mut asked, mut failures) = (0, Vec::new());
                let mut client = Wire::connect(address).await;
                while !stop.load(Ordering::Relaxed) {
                    if !keep {
                        client = Wire::connect(address).await;
                    }
                    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
                    asked += 1;
                    match client.answer().await {
                        Ok(answer) if answer.status == 200 => {}
                        other => failures.push(format!("{other:?}")),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                (asked, failures)
            })
        });
        Self { stop, clients: clients.into(), answered }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = 0;
        for client in self.clients {
            let (asked, failures) = client.await.expect("a client");
            assert!(failures.is_empty(), "{} of {asked} failed: {}", failures.len(), failures[0]);
            sum += asked;
        }
        sum
    }
}

fn document(origin: &Origin, body: usize) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes:\n\
         - {{name: generation, match: {{paths: [/generation]}}, respond: {{status: 200, body: \"{body}\"}}}}\n\
         - {{name: all, upstream: origin}}\n",
        origin.address
    )
}

async fn serves(gateway: &Gateway, body: usize) {
    let body = body.to_string();
    soon("the new document", async {
        while get(gateway.address(), "/generation").await.text() != body {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_changes_good_and_bad_cost_no_request() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 0)).await;
    let traffic = Traffic::start(gateway.address());
    for n in 1..=200 {
        let text = gateway.text(&document(&origin, n));
        let text = if n % 2 == 0 { text } else { text.replace("upstream: origin", "upstream: orgin") };
        let written = gateway.file().with_extension("new");
        std::fs::write(&written, text).expect("write");
        // Half of them as editors do, half in place.
        match n % 4 {
            0 | 1 => std::fs::rename(&written, gateway.file()).expect("rename"),
            _ => drop(std::fs::copy(&written, gateway.file()).expect("copy")),
        }
        if n % 20 == 0 {
            serves(&gateway, n).await;
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(traffic.end().await > 100);
    until("ten reloads", || (gateway.said("configuration reloaded") >= 10).then_some(())).await;
}

#[tokio::test]
async fn a_bad_change_is_reported_and_the_running_document_stays() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 1)).await;
    let bad = gateway.text(&document(&origin, 2)).replace("upstream: origin", "upstream: orgin");
    std::fs::write(gateway.file(), bad).expect("write");
    gateway.says("the changed configuration is refused").await;
    let problem = gateway.says("orgin").await;
    assert!(problem.contains("origin") && problem.contains("tollhouse.yaml:"), "{problem}");
    assert_eq!(get(gateway.address(), "/generation").await.text(), "1");
    std::fs::write(gateway.file(), gateway.text(&document(&origin, 3))).expect("write");
    serves(&gateway, 3).await;
    assert!(gateway.says("configuration reloaded").await.contains("generation=2"));
}

#[tokio::test]
async fn a_file_that_is_gone_for_a_moment_is_found_again() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 1)).await;
    std::fs::remove_file(gateway.file()).expect("remove");
    gateway.says("the changed configuration is refused").await;
    assert_eq!(get(gateway.address(), "/generation").await.text(), "1");
    std::fs::write(gateway.file(), gateway.text(&document(&origin, 2))).expect("write");
    serves(&gateway, 2).await;
}

#[tokio::test]
async fn a_document_that_is_written_slowly_is_used_once_it_is_whole() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 1)).await;
    // The start looks at the document once more by itself; that is over then.
    std::fs::write(gateway.file(), gateway.text(&document(&origin, 2))).expect("write");
    serves(&gateway, 2).await;
    let text = gateway.text(&document(&origin, 3));
    // What stands before the last route is a document, too.
    let (first, rest) = text.split_at(text.find("- {name: all").expect("the last route"));
    let mut file = File::create(gateway.file()).expect("begun anew");
    file.write_all(first.as_bytes()).expect("written");
    let reloaded = tokio::time::timeout(Duration::from_secs(2), gateway.says("generation=3"));
    assert!(reloaded.await.is_err(), "half of it is in use");
    file.write_all(rest.as_bytes()).expect("written");
    drop(file);
    serves(&gateway, 3).await;
    gateway.says("generation=3").await;
    assert_eq!(get(gateway.address(), "/x").await.status, 200);
}

#[tokio::test]
async fn a_document_that_its_tests_refuse_is_tried_again_when_a_file_that_it_names_changes() {
    let routes = |filters: &str, body: &str| {
        format!("routes: [{{name: all, filters: [{filters}], respond: {{body: \"{body}\"}}}}]")
    };
    let gateway = Gateway::start(&routes("", "1")).await;
    let denied = gateway.file().with_file_name("deny.txt");
    std::fs::write(&denied, "192.0.2.0/24\n").expect("write");
    let tests = "tests: [{name: open, request: {path: /, client: 192.0.2.1}, expect: {status: 200}}]";
    let text = format!("{}\n{tests}", routes("{ip_access: {deny_file: deny.txt}}", "2"));
    std::fs::write(gateway.file(), gateway.text(&text)).expect("write");
    gateway.says("the changed configuration is refused").await;
    assert_eq!(get(gateway.address(), "/generation").await.text(), "1");
    std::fs::write(&denied, "198.51.100.0/24\n").expect("write");
    serves(&gateway, 2).await;
}

#[tokio::test]
async fn tests_that_fail_refuse_a_reload_and_an_upgrade_and_only_warn_at_a_start() {
    let document = |body: &str, status: u16| {
        format!(
            "routes: [{{name: all, respond: {{body: \"{body}\"}}}}]\n\
             tests: [{{name: open, request: {{path: /}}, expect: {{status: {status}}}}}]\n"
        )
    };
    let mut gateway = Gateway::start(&document("1", 503)).await;
    gateway.says("test `open` fails").await;
    std::fs::write(gateway.file(), gateway.text(&document("2", 503))).expect("write");
    gateway.says("the changed configuration is refused").await;
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(1), "the file is wrong: {said}");
    assert!(said.contains("tollhouse.yaml:") && said.contains("test `open` fails"), "{said}");
    assert_eq!(get(gateway.address(), "/").await.text(), "1");
    std::fs::write(gateway.file(), gateway.text(&document("3", 200))).expect("write");
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(get(gateway.address(), "/").await.text(), "3");
}

#[tokio::test]
async fn a_change_is_refused_while_the_log_or_the_directory_that_it_names_cannot_be_opened() {
    let routes = |body: usize| format!("routes: [{{name: all, respond: {{body: \"{body}\"}}}}]\n");
    let gateway = Gateway::start(&routes(1)).await;
    let (log, cache) = (gateway.file().with_file_name("log"), gateway.file().with_file_name("cache"));
    let logging = gateway.text(&routes(2)).replace("/access.log", "/log/access.log");
    let disk = format!("{{path: \"{}\", size: 64MiB}}", cache.join("disk").display());
    let caching = gateway.text(&format!("server: {{cache: {{disk: {disk}}}}}\n{}", routes(3)));
    for (body, folder, text, why) in [
        (2, log, logging, "observability.access_log.to: cannot open the access log: Not a directory"),
        (3, cache, caching, "server.cache.disk.path: cannot use the directory: Not a directory"),
    ] {
        std::fs::write(&folder, "").expect("write");
        std::fs::write(gateway.file(), text).expect("write");
        assert!(gateway.says(why).await.contains("tollhouse.yaml:"));
        assert_eq!(get(gateway.address(), "/").await.text(), (body - 1).to_string());
        std::fs::remove_file(&folder).expect("removed");
        std::fs::create_dir(&folder).expect("made");
        gateway.signal("HUP");
        serves(&gateway, body).await;
    }
}

#[tokio::test]
async fn a_listener_may_take_the_name_of_one_that_is_gone() {
    let listener = |name: &str, address: &str| format!("{{name: {name}, address: \"{address}:0\"}}");
    let (first, second) = (listener("plain", "127.0.0.1"), listener("web", "127.0.0.2"));
    let routes = |name: &str| {
        format!("routes: [{{name: all, match: {{listeners: [{name}]}}, respond: {{body: {name}}}}}]")
    };
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let gateway = Gateway::within(folder, &format!("{first}, {second}"), &routes("web")).await;
    let address = gateway.listener("web");
    assert_eq!(get(address, "/").await.text(), "web");
    gateway.rewrite(&second, &routes("web"));
    gateway.says("configuration reloaded").await;
    gateway.rewrite(&listener("plain", "127.0.0.2"), &routes("plain"));
    until("a reload", || (gateway.said("configuration reloaded") == 2).then_some(())).await;
    assert_eq!(get(address, "/").await.text(), "plain");
}

#[tokio::test]
async fn a_change_while_the_gateway_starts_is_not_missed() {
    let (origin, mut probed) = Origin::handing_over().await;
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let file = folder.path().join("tollhouse.yaml");
    let health = "health: {active: {type: http, path: /, interval: 20s, timeout: 20s}}";
    let text = document(&origin, 1).replace("}]}]\nroutes", &format!("}}], {health}}}]\nroutes"));
    let started = Gateway::within(folder, "{name: plain, address: \"127.0.0.1:0\"}", &text);
    let change = async {
        // The document was read when its backend is probed, and nothing is watched before that is answered.
        let mut wire = soon("a probe", probed.recv()).await.expect("a probe");
        wire.head().await.expect("a head");
        let changed = std::fs::read_to_string(&file).expect("read").replace("body: \"1\"", "body: \"2\"");
        std::fs::write(&file, changed).expect("write");
        wire.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    };
    let (gateway, ()) = tokio::join!(started, change);
    serves(&gateway, 2).await;
    assert!(gateway.says("configuration reloaded").await.contains("generation=2"));
}

#[tokio::test]
async fn a_listener_that_is_renamed_serves_on_and_one_that_is_gone_says_so() {
    let listener = |name: &str, address: &str| format!("{{name: {name}, address: \"{address}:0\"}}");
    let routes = |name: &str| {
        format!("routes: [{{name: all, match: {{listeners: [{name}]}}, respond: {{body: {name}}}}}]")
    };
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let gateway = Gateway::within(folder, &listener("plain", "127.0.0.1"), &routes("plain")).await;
    assert_eq!(get(gateway.address(), "/").await.text(), "plain");
    gateway.rewrite(&listener("web", "127.0.0.1"), &routes("web"));
    gateway.says("configuration reloaded").await;
    assert_eq!(get(gateway.address(), "/").await.text(), "web");
    gateway.log_line(|line| line["listener"] == "web").await;
    // What is no request at all is told of by the same name.
    assert_eq!(exchange(gateway.address(), "GET\r\n\r\n").await.expect("an answer").status, 400);
    let line = gateway.log_line(|line| line["status"] == 400).await;
    assert_eq!(line["listener"], "web", "{line}");
    gateway.rewrite(&listener("other", "127.0.0.2"), &routes("other"));
    until("a reload", || (gateway.said("configuration reloaded") == 2).then_some(())).await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("this listener is no longer configured"), "{answer:?}");
}

#[tokio::test]
async fn a_hangup_signal_reloads_and_ends_nothing() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 1)).await;
    std::fs::write(gateway.file(), gateway.text(&document(&origin, 2))).expect("write");
    gateway.signal("HUP");
    serves(&gateway, 2).await;
    gateway.signal("HUP");
    assert_eq!(get(gateway.address(), "/generation").await.text(), "2");
}

#[tokio::test]
async fn a_document_that_is_changed_back_at_once_is_used_whoever_had_the_change_read() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 1)).await;
    for generation in 2..=3 {
        std::fs::write(gateway.file(), gateway.text(&document(&origin, 7))).expect("write");
        gateway.signal("HUP");
        serves(&gateway, 7).await;
        // Within the silence that ends a burst, most of the time: the watch sees what it saw before.
        std::fs::write(gateway.file(), gateway.text(&document(&origin, generation - 1))).expect("write");
        serves(&gateway, generation - 1).await;
        std::fs::write(gateway.file(), gateway.text(&document(&origin, generation))).expect("write");
        serves(&gateway, generation).await;
    }
}

#[tokio::test]
async fn a_request_under_way_ends_on_the_document_it_began_with() {
    let (origin, mut seen) = Origin::handing_over().await;
    let gateway = Gateway::start(&document(&origin, 1)).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = soon("the request", seen.recv()).await.expect("a request");
    std::fs::write(gateway.file(), gateway.text("routes: []")).expect("write");
    gateway.says("configuration reloaded").await;
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.answer().await.expect("an answer").text(), "ok");
    assert_eq!(get(gateway.address(), "/slow").await.status, 404);
}

#[tokio::test]
async fn ending_waits_for_a_slow_request_and_takes_no_new_ones() {
    let (origin, mut seen) = Origin::handing_over().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = soon("the request", seen.recv()).await.expect("a request");
    gateway.signal("TERM");
    gateway.says("stopping").await;
    wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    assert_eq!(client.head().await.expect("a head").field("connection"), Some("close"));
    assert_eq!(client.chunk().await.expect("a chunk"), b"first");
    wire.send("4\r\nlast\r\n0\r\n\r\n").await;
    assert_eq!(client.chunk().await.expect("a chunk"), b"last");
    assert_eq!(client.chunk().await.expect("the end"), b"");
    client.closed().await;
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert!(tokio::net::TcpStream::connect(gateway.address()).await.is_err());
    gateway.log_line(|line| line["path"] == "/slow" && line["status"] == 200).await;
}

#[tokio::test]
async fn an_answer_says_close_while_the_gateway_ends_also_where_an_attempt_has_its_time() {
    let (origin, mut seen) = Origin::handing_over().await;
    let mut gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, retries: {{per_try: 1h}}, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, direct: false, upstream: origin}}]",
        origin.address
    ))
    .await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /one HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut first = soon("a request", seen.recv()).await.expect("a request");
    // RFC 9110 s7.6.1: what an origin says of its own connection.
    first.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\none").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("one", Some("keep-alive")));
    client.send("GET /two HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut second = soon("a request", seen.recv()).await.expect("a request");
    gateway.signal("TERM");
    gateway.says("stopping").await;
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("two", Some("close")));
    client.closed().await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

/// RFC 6455 s4.1: without `Upgrade` in `Connection`, the client gives its connection up.
#[tokio::test]
async fn a_handshake_that_is_answered_while_the_gateway_ends_makes_a_websocket() {
    let (origin, mut seen) = Origin::handing_over().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
               Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.send(ask).await;
    let mut wire = soon("the request", seen.recv()).await.expect("a request");
    wire.head().await.expect("a head");
    gateway.signal("TERM");
    gateway.says("stopping").await;
    let accept = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    wire.send(accept).await;
    let head = client.head().await.expect("a head");
    assert!(head.line.starts_with("HTTP/1.1 101"), "{head:?}");
    assert_eq!(head.field("connection"), Some("Upgrade"));
    client.send("marco").await;
    assert_eq!(wire.exactly(5).await.expect("words"), b"marco");
    wire.send("polo!").await;
    assert_eq!(client.exactly(5).await.expect("words"), b"polo!");
}

#[tokio::test]
async fn new_connections_are_refused_while_a_slow_request_is_waited_for() {
    let (origin, mut seen) = Origin::handing_over().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let _held = soon("the request", seen.recv()).await;
    gateway.signal("TERM");
    gateway.says("stopping").await;
    soon("refusal", async {
        while tokio::net::TcpStream::connect(gateway.address()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0), "a second signal means now");
}

#[tokio::test]
async fn an_idle_gateway_ends_at_once() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let mut idle = Wire::connect(gateway.address()).await;
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    idle.answer().await.expect("an answer");
    let h2 = H2c::connect(gateway.address()).await;
    assert_eq!(h2.get("/").await.status, 200);
    gateway.signal("TERM");
    let begun = std::time::Instant::now();
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_drain_is_over_when_its_time_is() {
    let origin = Origin::new(|mut wire| async move {
        wire.rest().await;
    })
    .await;
    let mut gateway = Gateway::before(&origin, "server: {drain: 300ms}").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("the request", || (origin.connections() > 0).then_some(())).await;
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    gateway.says("drain is over").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keep_alive_clients_lose_nothing_while_documents_change_and_settle() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 0)).await;
    let traffic = Traffic::start(gateway.address());
    let answered = traffic.answered.clone();
    until("some traffic", || (answered.load(Ordering::Relaxed) > 50).then_some(())).await;
    // The upstream goes and comes back: its pooled connections must not be taken for another's.
    std::fs::write(
        gateway.file(),
        gateway.text(
            &document(&origin, 1)
                .replace("name: origin", "name: other")
                .replace("upstream: origin", "upstream: other"),
        ),
    )
    .expect("write");
    serves(&gateway, 1).await;
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_http2_clients_do_not_keep_a_gateway_from_ending() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        busy.spawn(async move {
            let get = || http::Request::get("http://a/").body(()).expect("valid");
            while client.try_send(get()).await {}
        });
    }
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    busy.abort_all();
}
