//! A gateway that is replaced by another process while it serves.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, client_async};
use tollhouse::handover::{Answer, Ask, Place};

use crate::harness::{Broken, Gateway, H2c, Origin, Program, Wire, get, refused_to_start, soon, until};
use crate::upgrade_sockets::upgrade_at;

/// Clients that ask without a pause and try nothing twice; each says what failed.
struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(gateway: &Gateway) -> Self {
        let address = gateway.address();
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = Vec::new();
        for keep in [true, true, true, false] {
            let (stop, answered) = (stop.clone(), answered.clone());
            clients.push(tokio::spawn(async move {
                let mut failures = Vec::new();
                let mut client = Wire::connect(address).await;
                while !stop.load(Ordering::Relaxed) {
                    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
                    let answer = client.answer().await;
                    let goes_on = match &answer {
                        Ok(answer) if answer.status == 200 => {
                            keep && answer.field("connection") != Some("close")
                        }
                        other => {
                            failures.push(format!("HTTP/1: {other:?}"));
                            false
                        }
                    };
                    if !goes_on {
                        client = Wire::connect(address).await;
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                failures
            }));
        }
        Self { stop, answered, clients }
    }

    /// Waits until so many more were answered.
    async fn goes_on(&self, count: usize) {
        let before = self.answered.load(Ordering::Relaxed);
        until("answers", || (self.answered.load(Ordering::Relaxed) >= before + count).then_some(())).await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let failures = client.await.expect("a client");
            assert!(failures.is_empty(), "{} failed: {}", failures.len(), failures[0]);
        }
        self.answered.load(Ordering::Relaxed)
    }
}

async fn upgraded(gateway: &mut Gateway) {
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_over_several_upgrades() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let traffic = Traffic::start(&gateway);
    for _ in 0..4 {
        traffic.goes_on(50).await;
        upgraded(&mut gateway).await;
    }
    traffic.goes_on(50).await;
    assert!(traffic.end().await > 250);
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.said("another process has taken over"), 4);
    assert_eq!(gateway.said("panic"), 0, "{:#?}", gateway.stderr());
}

#[tokio::test]
async fn a_slow_answer_and_a_websocket_outlive_an_upgrade() {
    let (origin, mut taken) = Origin::handing_over().await;
    let chat = Origin::new(|wire| async move {
        let Ok(mut socket) = accept_async(wire.into_stream()).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
    })
    .await;
    let mut gateway = Gateway::start(&format!(
        "upstreams:\n- {{name: slow, backends: [{{address: \"{}\"}}]}}\n- {{name: chat, backends: [{{address: \"{}\"}}]}}\n\
         routes:\n- {{name: chat, match: {{paths: [/chat]}}, upstream: chat}}\n- {{name: slow, upstream: slow}}",
        origin.address, chat.address
    ))
    .await;
    let stream = Wire::connect(gateway.address()).await.into_stream();
    let (mut socket, _) = soon("101", client_async("ws://a/chat", stream)).await.expect("a WebSocket");
    let mut download = Wire::connect(gateway.address()).await;
    download.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = soon("the request", taken.recv()).await.expect("an origin");
    wire.head().await.expect("a head");
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await;
    assert_eq!(download.head().await.expect("a head").line, "HTTP/1.1 200 OK");
    upgraded(&mut gateway).await;
    let hello = Message::text("still there?");
    socket.send(hello.clone()).await.expect("sent");
    assert_eq!(soon("an echo", socket.next()).await.expect("a message").expect("open"), hello);
    wire.send("later").await;
    assert_eq!(download.exactly(10).await.expect("the whole body"), b"firstlater");
    download.closed().await;
    socket.close(None).await.expect("sent");
    while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    assert_eq!(gateway.ended().await.code(), Some(0), "nothing is under way any more");
}

/// RFC 6455 s7.4.1: 1001 is for a server that goes away.
#[tokio::test]
async fn a_websocket_whose_time_is_over_is_closed_in_words_on_both_sides() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let chat = Origin::new(move |wire| {
        let told = told.clone();
        async move {
            let Ok(mut socket) = accept_async(wire.into_stream()).await else { return };
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Close(frame) = &message {
                    let _ = told.send(frame.as_ref().map(|frame| u16::from(frame.code)));
                } else if socket.send(message).await.is_err() {
                    break;
                }
            }
        }
    })
    .await;
    let mut gateway = Gateway::before(&chat, "server: {drain: 300ms}").await;
    let stream = Wire::connect(gateway.address()).await.into_stream();
    let (mut socket, _) = soon("101", client_async("ws://a/chat", stream)).await.expect("a WebSocket");
    let hello = Message::text("hello");
    socket.send(hello.clone()).await.expect("sent");
    assert_eq!(soon("an echo", socket.next()).await.expect("a message").expect("open"), hello);
    upgraded(&mut gateway).await;
    let Message::Close(Some(frame)) = soon("a close", socket.next()).await.expect("a message").expect("open")
    else {
        panic!("something else than a close frame")
    };
    assert_eq!(u16::from(frame.code), 1001);
    while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    assert_eq!(soon("a close", heard.recv()).await, Some(Some(1001)), "the origin hears it too");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.said("drain is over"), 0, "nothing had to be cut");
}

#[tokio::test]
async fn clients_of_http2_are_told_to_go_and_finish_what_they_began() {
    let (origin, mut taken) = Origin::handing_over().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let h2 = H2c::connect(gateway.address()).await;
    let asking = h2.clone();
    let slow = tokio::spawn(async move { asking.get("/slow").await });
    let mut wire = soon("the request", taken.recv()).await.expect("an origin");
    wire.head().await.expect("a head");
    upgraded(&mut gateway).await;
    let again = || http::Request::get("http://a/again").body(()).expect("valid");
    let refused = async {
        // Nobody answers these; the connection takes no more after GOAWAY (RFC 9113 s6.8).
        while tokio::time::timeout(Duration::from_millis(20), h2.try_send(again())).await.is_err() {}
    };
    soon("GOAWAY", refused).await;
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(slow.await.expect("no panic").text(), "ok");
}

#[tokio::test]
async fn the_new_process_reads_the_changed_document_with_new_and_without_old_listeners() {
    let listeners = |names: &[&str]| {
        let each = names.iter().map(|name| format!("{{name: {name}, address: \"127.0.0.1:0\"}}"));
        each.collect::<Vec<_>>().join(", ")
    };
    let answering = |body: &str| format!("routes: [{{name: all, respond: {{status: 200, body: {body}}}}}]");
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let mut gateway = Gateway::within(folder, &listeners(&["plain", "old"]), &answering("one")).await;
    gateway.rewrite(&listeners(&["new", "plain"]), &answering("two"));
    gateway.says("a change needs `tollhouse upgrade` to take effect setting=listeners").await;
    upgraded(&mut gateway).await;
    let two = get(gateway.address(), "/").await;
    assert_eq!(two.text(), "two");
    let line = gateway.says("bound listener=new").await;
    let new = line.rsplit_once("address=").expect("an address").1.trim().parse().expect("an address");
    assert_eq!(get(new, "/").await.text(), "two");
    gateway.ended().await;
    let old = gateway.listener("old");
    assert!(tokio::net::TcpStream::connect(old).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_with_problems_leaves_the_old_process_serving() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let traffic = Traffic::start(&gateway);
    std::fs::write(gateway.file(), gateway.text("rutes: []")).expect("written");
    for _ in 0..3 {
        let (code, said) = gateway.upgrade().await;
        assert_eq!(code, Some(1), "the file is wrong");
        assert!(said.contains("tollhouse.yaml:") && said.contains("did you mean `routes`?"), "{said}");
    }
    traffic.goes_on(20).await;
    traffic.end().await;
    let document = format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes: [{{name: all, upstream: origin}}]",
        origin.address
    );
    std::fs::write(gateway.file(), gateway.text(&document)).expect("written");
    upgraded(&mut gateway).await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
}

/// A program that is started as the new process.
fn program(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("program");
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("executable");
    path
}

/// What becomes of an upgrade to this program.
async fn upgrade_to(gateway: &Gateway, program: &Path) -> Answer {
    upgrade_at(gateway.upgrade_socket(), program.to_owned()).await
}

async fn refused(gateway: &Gateway, program: &Path) -> String {
    match upgrade_to(gateway, program).await {
        Answer::Refused { reason, configuration: false } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_dies_before_it_is_ready_costs_nothing() {
    let origin = Origin::echo().await;
    // What is not known yet is waited for: long enough to be killed in between.
    let silent = Origin::new(|mut wire| async move { drop(wire.rest().await) }).await;
    let documents = |health: &str| {
        format!(
            "upstreams:\n- {{name: origin, backends: [{{address: \"{}\"}}]}}\n\
             - {{name: silent, backends: [{{address: \"{}\"}}]{health}}}\nroutes: [{{name: all, upstream: origin}}]",
            origin.address, silent.address
        )
    };
    let mut gateway = Gateway::start(&documents("")).await;
    let traffic = Traffic::start(&gateway);
    let waiting = documents(", health: {active: {type: http, path: /, interval: 20s, timeout: 20s}}");
    std::fs::write(gateway.file(), gateway.text(&waiting)).expect("written");
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    for wait in ["0", "0.01", "0.05", "0.2", "0.5"] {
        let killed = format!(
            "#!/bin/sh\nexec 3<&0\n{} \"$@\" --orphaned <&3 3<&- &\nexec 3<&- </dev/null\n\
             pid=$!\n{{ sleep {wait}; kill -KILL $pid; }} >/dev/null 2>&1 &\n",
            env!("CARGO_BIN_EXE_tollhouse")
        );
        let reason = refused(&gateway, &program(folder.path(), &killed)).await;
        assert!(reason.starts_with("the new process ended before it served"), "{reason}");
    }
    for (text, said) in [
        ("#!/bin/sh\nexit 7\n", "the new process ended before it served (exit status: 7)"),
        ("no program", "cannot start "),
    ] {
        let reason = refused(&gateway, &program(folder.path(), text)).await;
        assert!(reason.starts_with(said), "{reason}");
    }
    assert!(refused(&gateway, Path::new("/nonexistent")).await.starts_with("cannot start /nonexistent: "));
    std::fs::write(gateway.file(), gateway.text(&documents(""))).expect("written");
    upgraded(&mut gateway).await;
    traffic.goes_on(20).await;
    traffic.end().await;
}

#[tokio::test]
async fn a_new_process_that_dies_between_prepared_and_ready_costs_nothing() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let dying = "#!/usr/bin/env python3\n\
        import json, os, socket, struct\n\
        if os.fork(): os._exit(0)\n\
        s = socket.socket(fileno=0)\n\
        def message():\n\
        \x20   length, = struct.unpack('>I', s.recv(4, socket.MSG_WAITALL))\n\
        \x20   return s.recv(length, socket.MSG_WAITALL)\n\
        def say(step):\n\
        \x20   said = json.dumps(step).encode()\n\
        \x20   s.sendall(struct.pack('>I', len(said)) + said)\n\
        say({'begun': {'pid': os.getpid()}})\n\
        message()\n\
        _, sockets, _, _ = socket.recv_fds(s, 1, 1)\n\
        say('prepared')\n\
        message()\n";
    let reason = refused(&gateway, &program(folder.path(), dying)).await;
    assert!(reason.starts_with("the new process ended before it served"), "{reason}");
    assert_eq!(get(gateway.address(), "/").await.status, 200);
}

#[tokio::test]
async fn a_gateway_that_is_told_to_stop_gives_its_place_to_nobody() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::before(&origin, "").await;
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let waiting = program(folder.path(), "#!/bin/sh\nexec sleep 60\n");
    let asked = {
        let place = Place::at(gateway.upgrade_socket());
        let mut channel = place.connect().expect("it listens");
        channel.set_patience(Duration::from_secs(30)).expect("more than zero");
        channel.send(&Ask { program: waiting, config: None }).expect("sent");
        channel
    };
    gateway.says("starting the process that takes over").await;
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    drop(asked);
    assert!(!gateway.upgrade_socket().exists(), "nobody is there to be asked");
}

#[tokio::test]
async fn sigquit_ends_nothing() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    gateway.signal("QUIT");
    gateway.says("SIGQUIT is ignored").await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
}

#[tokio::test]
async fn a_second_gateway_does_not_take_the_socket_of_the_first() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let socket = gateway.upgrade_socket();
    let document = format!(
        "{{version: 1, admin: {{address: none}}, server: {{upgrade_socket: {}}}, \
         listeners: [{{name: a, address: \"127.0.0.1:0\"}}]}}",
        socket.display()
    );
    let (code, said) = refused_to_start(&document);
    assert_eq!(code, Some(3));
    assert!(
        said.contains("cannot open the upgrade socket") && said.contains("another gateway answers there")
    );
    let open = tempfile::TempDir::new().expect("a temporary directory");
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o755)).expect("changed");
    let (code, said) = refused_to_start(
        &document
            .replace(&socket.display().to_string(), &open.path().join("upgrade.sock").display().to_string()),
    );
    assert_eq!(code, Some(3));
    assert!(said.contains("its folder is open to others: `chmod 700` it"), "{said}");
}

#[tokio::test]
async fn who_names_a_document_upgrades_no_gateway_with_another_one() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::before(&origin, "").await;
    // Neither says where its socket is, so that the usual place is that of both.
    let [other, link] = ["other.yaml", "link.yaml"].map(|name| gateway.file().with_file_name(name));
    std::fs::copy(gateway.file(), &other).expect("copied");
    std::os::unix::fs::symlink(gateway.file(), &link).expect("linked");
    let (code, said) = gateway.upgrade_by("-c", &other).await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("/tollhouse.yaml, not ") && said.contains("/other.yaml"), "{said}");
    let (code, said) = gateway.upgrade_by("-c", &link).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn what_is_no_request_for_an_upgrade_is_refused() {
    use std::io::{Read, Write};
    let origin = Origin::echo().await;
    let mut gateway = Gateway::before(&origin, "").await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\x02{}", b"\xff\xff\xff\xff", b""] {
        let mut stream =
            std::os::unix::net::UnixStream::connect(gateway.upgrade_socket()).expect("it listens");
        stream.write_all(garbage).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("open");
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(String::from_utf8_lossy(&said).contains("the request cannot be read"), "{said:?}");
    }
    upgraded(&mut gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_listener_is_ready_throughout_upgrades() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::counting(&origin, "").await;
    let line = gateway.says("admin bound address=").await;
    let admin: std::net::SocketAddr =
        line.rsplit_once('=').expect("an address").1.trim().parse().expect("one");
    let stop = Arc::<AtomicBool>::default();
    let asked = [true, false].map(|keep| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let (mut count, mut client) = (0, Wire::connect(admin).await);
            while !stop.load(Ordering::Relaxed) {
                client.send("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
                let answer = client.answer().await;
                // An idle connection may be closed at any time (RFC 9112 s9.3.1); a new one is another matter.
                assert!(
                    keep && answer.is_err() || answer.as_ref().is_ok_and(|a| a.status == 200),
                    "{answer:?}"
                );
                if !keep || answer.is_err() {
                    client = Wire::connect(admin).await;
                }
                count += 1;
            }
            count
        })
    });
    for _ in 0..3 {
        upgraded(&mut gateway).await;
    }
    stop.store(true, Ordering::Relaxed);
    for asked in asked {
        assert!(asked.await.expect("always ready") > 10);
    }
}

/// As systemd follows it (sd_notify(3)).
#[tokio::test]
async fn the_service_manager_is_told_who_serves() {
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let manager = tokio::net::UnixDatagram::bind(folder.path().join("notify.sock")).expect("bound");
    let told = async || {
        let mut room = [0; 256];
        let length = soon("a message", manager.recv(&mut room)).await.expect("received");
        String::from_utf8_lossy(&room[..length]).trim().to_owned()
    };
    let plain = "{name: plain, address: \"127.0.0.1:0\"}";
    let mut gateway = Gateway::within(folder, plain, "routes: []").await;
    assert_eq!(told().await, "READY=1");
    upgraded(&mut gateway).await;
    assert_eq!(told().await, format!("MAINPID={}", gateway.pid()));
    gateway.signal("TERM");
    assert_eq!(told().await, "STOPPING=1", "and nothing of the process that was replaced");
}

#[tokio::test]
async fn a_grpc_stream_outlives_an_upgrade() {
    let origin = Program::python("grpc/origin.py", &[]);
    let port = origin.says(|line| line["port"].is_u64()).await["port"].clone();
    let mut gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, backends: [{{address: \"127.0.0.1:{port}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]"
    ))
    .await;
    let mut client = Program::python("grpc/client.py", &[&gateway.address().to_string(), "talk"]);
    client.says(|line| line["event"] == "heard").await;
    upgraded(&mut gateway).await;
    client.tell("");
    assert_eq!(client.outcome().await["said"], 2);
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_still_under_way_when_the_drain_is_over_is_cut_in_the_old_process_only() {
    let (origin, mut taken) = Origin::handing_over().await;
    let mut gateway = Gateway::before(&origin, "server: {drain: 300ms}").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let _held = soon("the request", taken.recv()).await.expect("an origin");
    upgraded(&mut gateway).await;
    assert!(matches!(client.answer().await, Err(Broken::Nothing)));
    assert_eq!(gateway.ended().await.code(), Some(0));
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /now HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = soon("the request", taken.recv()).await.expect("an origin");
    wire.head().await.expect("a head");
    wire.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.answer().await.expect("an answer").status, 204);
}
